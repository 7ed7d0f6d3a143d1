//! The sequence of an import: the archive is read and unpacked → its documents say what images it holds → each layer is
//! verified → the images become visible, one after another. For a thread that may wait.

use std::collections::HashSet;
use std::io::Read;
use std::sync::Arc;

use cove_layer::{Digest, Limits};

use super::bounds::Bounds;
use super::commit::{self, Whole};
use super::contents::{Contents, Unpacked};
use super::layout;
use super::lease::Pins;
use super::plan::{self, Documents as _, Planned, PlannedLayer, shown};
use super::progress::Progress;
use super::reference::Reference;
use super::store::Store;
use super::{Image, ImageError, config, fix_up};

/// What whoever imports chooses.
#[derive(Debug, Clone, Default)]
pub struct Choices {
    /// The images are never collected.
    pub pinned: bool,
    /// A name in place of those in the archive, which holds one image.
    pub name: Option<String>,
}

/// Takes in every image of an archive. None is visible before all were found good.
pub(super) fn import(
    store: &Arc<Store>,
    archive: impl Read,
    choices: &Choices,
    bounds: &Bounds,
    limits: &Limits,
    progress: &Progress,
) -> Result<Vec<Arc<Image>>, ImageError> {
    let name = choices.name.as_deref().map(tag).transpose()?;
    let mut contents = Contents::read(store, archive, bounds, limits, progress)?;
    take_in(store, &mut contents, choices.pinned, name, bounds)
}

fn tag(name: &str) -> Result<String, ImageError> {
    let reason = "names no tag: an import gives a name, not a digest";
    let reference = Reference::parse(name)?;
    reference
        .repo_tag()
        .ok_or_else(|| ImageError::InvalidReference { reference: reference.to_string(), reason })
}

fn take_in(
    store: &Arc<Store>,
    contents: &mut Contents<'_>,
    pinned: bool,
    name: Option<String>,
    bounds: &Bounds,
) -> Result<Vec<Arc<Image>>, ImageError> {
    let mut images = plan::plan(contents, bounds)?.images;
    if let Some(name) = name {
        let [image] = &mut images[..] else {
            let reason = format!("holds {} images, and one name was given", images.len());
            return Err(ImageError::archive("the archive", reason));
        };
        (image.tags, image.digests) = (vec![name], Vec::new());
    }
    // Before the first look at what is there: nothing of it is collected until the images' own records count.
    let _pins = Pins::new(store.clone(), &needed(&images));
    let layers = images.iter().map(|image| layers(store, contents, image)).collect::<Result<Vec<_>, _>>()?;
    let wholes =
        images.into_iter().map(|image| whole(contents, image, pinned)).collect::<Result<Vec<_>, _>>()?;
    let mut imported = Vec::new();
    for (whole, layers) in wholes.iter().zip(layers) {
        let staged: Vec<_> = layers.iter().map(|layer| &*layer.staged).collect();
        let image = commit::commit(store, whole, &staged)?;
        tracing::info!(image = %image.id, names = ?image.repo_tags, pinned = image.pinned, "imported");
        imported.push(image);
    }
    Ok(imported)
}

fn needed(images: &[Planned]) -> Vec<Digest> {
    let layers = images.iter().flat_map(|image| &image.layers).map(|layer| layer.diff_id.clone());
    let needed: HashSet<Digest> = layers.chain(images.iter().map(|image| fix_up::key(&image.id))).collect();
    needed.into_iter().collect()
}

/// The layers of an image that are not in the store, each verified.
fn layers(store: &Store, contents: &mut Contents<'_>, image: &Planned) -> Result<Vec<Unpacked>, ImageError> {
    let mut seen = HashSet::new();
    let mut unpacked = Vec::new();
    for layer in image.layers.iter().filter(|layer| seen.insert(&layer.diff_id)) {
        let is_there = store.index().layers.contains_key(&layer.diff_id);
        if is_there {
            contents.left_out(layer);
        } else {
            unpacked.push(verified(contents, image, layer)?);
        }
    }
    Ok(unpacked)
}

fn verified(
    contents: &mut Contents<'_>,
    image: &Planned,
    layer: &PlannedLayer,
) -> Result<Unpacked, ImageError> {
    let unpacked = contents.unpacked(&layer.member, layer.compression, layer.blob.as_ref())?;
    if unpacked.diff_id == layer.diff_id {
        return Ok(unpacked);
    }
    let (found, expected, id) = (&unpacked.diff_id, &layer.diff_id, &image.id);
    let reason = format!("its diff ID is {found}, and the config of {id} says {expected}");
    Err(ImageError::archive(shown(&layer.member), reason))
}

fn whole(contents: &Contents<'_>, image: Planned, pinned: bool) -> Result<Whole, ImageError> {
    let read = |name: &str| {
        contents
            .document(name)?
            .ok_or_else(|| ImageError::archive(shown(name), "is not in the archive any more"))
    };
    let bytes = read(&image.config)?;
    let config = config::parse(&bytes, image.layers.len())
        .map_err(|reason| ImageError::archive(shown(&image.config), reason))?;
    let manifest = image.manifest.as_deref().map(read).transpose()?;
    Ok(Whole {
        id: image.id,
        config,
        documents: layout::Documents { config: bytes, manifest },
        repo_tags: image.tags,
        repo_digests: image.digests,
        pinned,
    })
}
