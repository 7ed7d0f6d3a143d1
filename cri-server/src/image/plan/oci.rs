//! An OCI image layout (image-layout.md of the image specification): `index.json` names images, and what it leads to lies
//! below `blobs` by digest.

use std::collections::HashSet;

use cove_layer::Digest;
use serde::Deserialize;

use super::{Documents, INDEX, Planned, PlannedLayer, add, required};
use crate::image::ImageError;
use crate::image::bounds::Bounds;
use crate::image::config;
use crate::image::manifest::{self, Descriptor, Manifest, OCI_INDEX, Parsed};
use crate::image::reference::{Reference, Selector};

/// What is read of a descriptor's annotations: under which names the image was stored. Nothing else counts.
#[derive(Debug, Default, Deserialize)]
struct Names {
    /// annotations.md of the image specification; a whole reference, or, by some tools, a tag alone.
    #[serde(rename = "org.opencontainers.image.ref.name")]
    reference: Option<String>,
    /// containerd's and Docker's, always whole.
    #[serde(rename = "io.containerd.image.name")]
    name: Option<String>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    annotations: Option<Names>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Named>,
}

/// The file that makes a directory an image layout (image-layout.md of the image specification).
pub(crate) const LAYOUT: (&str, &[u8]) = ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
/// Below this directory members are named by their digests, and a layout has nothing but what its documents name.
pub(in crate::image) const BLOBS: &str = "blobs/";

/// The member that a digest names.
pub(in crate::image) fn member(digest: &Digest) -> String {
    format!("{BLOBS}{}/{}", digest.algorithm().name(), digest.hex())
}

/// The digest that names a member.
pub(crate) fn named_by(member: &str) -> Option<Digest> {
    member.strip_prefix(BLOBS)?.replacen('/', ":", 1).parse().ok()
}

/// Adds the images that `index` leads to.
pub(super) fn images(
    documents: &impl Documents,
    index: &[u8],
    bounds: &Bounds,
    images: &mut Vec<Planned>,
) -> Result<(), ImageError> {
    let wrong = |reason: String| ImageError::archive(INDEX, reason);
    let Parsed::Index(entries) = manifest::parse(index, Some(OCI_INDEX), bounds).map_err(wrong)? else {
        return Err(wrong("is no index".to_owned()));
    };
    let named: Index = serde_json::from_slice(index).map_err(|error| wrong(error.to_string()))?;
    for (entry, named) in entries.into_iter().zip(named.manifests) {
        if entry.platform.as_ref().is_some_and(|platform| !platform.is_ours()) {
            continue;
        }
        let (tags, digests) = names(&named.annotations.unwrap_or_default(), &entry.digest)?;
        let Some((descriptor, manifest)) = descend(documents, entry, bounds)? else { continue };
        let (config, layers) = layers(documents, manifest)?;
        let (id, manifest) = (config.digest.clone(), Some(member(&descriptor.digest)));
        add(images, Planned { id, config: member(&config.digest), manifest, tags, digests, layers })?;
    }
    if images.is_empty() {
        return Err(wrong(format!("holds no image for linux on {}", manifest::host_architecture())));
    }
    Ok(())
}

/// The names that annotations give. A tag alone names no image: whoever imports gives it a name.
fn names(names: &Names, asked: &Digest) -> Result<(Vec<String>, Vec<String>), ImageError> {
    let reference = names.reference.as_ref().filter(|text| text.contains(['/', ':', '@']));
    let (mut tags, mut digests) = (Vec::new(), Vec::new());
    for text in names.name.iter().chain(reference) {
        let reference = Reference::parse(text)?;
        // A digest that is not that of what it names would be a lie.
        if matches!(&reference.selector, Selector::Digest(digest) if digest != asked) {
            continue;
        }
        tags.extend(reference.repo_tag());
        digests.push(reference.repo_digest(asked));
    }
    for list in [&mut tags, &mut digests] {
        let mut seen = HashSet::new();
        list.retain(|name| seen.insert(name.clone()));
    }
    Ok((tags, digests))
}

/// Goes down through indexes to the manifest for this machine, and visits no digest twice. `None`: there is none.
fn descend(
    documents: &impl Documents,
    from: Descriptor,
    bounds: &Bounds,
) -> Result<Option<(Descriptor, Manifest)>, ImageError> {
    let mut seen = HashSet::new();
    let mut next = vec![(from, 0)];
    while let Some((descriptor, depth)) = next.pop() {
        let wrong = |reason: String| ImageError::archive(format!("manifest {descriptor}"), reason);
        if !seen.insert(descriptor.digest.clone()) {
            continue;
        }
        if seen.len() > bounds.documents {
            return Err(wrong(format!("leads to more than image_limits.documents = {}", bounds.documents)));
        }
        if depth > bounds.index_depth {
            let limit = bounds.index_depth;
            return Err(wrong(format!("lies deeper than image_limits.index_depth = {limit}")));
        }
        let bytes = required(documents, &member(&descriptor.digest))?;
        descriptor.verify(&bytes).map_err(wrong)?;
        match manifest::parse(&bytes, Some(&descriptor.media_type), bounds).map_err(wrong)? {
            Parsed::Manifest(manifest) => return Ok(Some((descriptor, manifest))),
            Parsed::Index(index) => {
                let candidates = manifest::candidates(&index).into_iter().rev();
                next.extend(candidates.map(|candidate| (candidate.clone(), depth + 1)));
            }
        }
    }
    Ok(None)
}

/// The layers of a manifest with what its config says of them.
fn layers(
    documents: &impl Documents,
    manifest: Manifest,
) -> Result<(Descriptor, Vec<PlannedLayer>), ImageError> {
    let wrong = |reason: String| ImageError::archive(format!("config {}", manifest.config), reason);
    let bytes = required(documents, &member(&manifest.config.digest))?;
    manifest.config.verify(&bytes).map_err(wrong)?;
    let config = config::parse(&bytes, manifest.layers.len()).map_err(wrong)?;
    let layer = |(diff_id, layer): (Digest, manifest::Layer)| PlannedLayer {
        diff_id,
        member: member(&layer.blob.digest),
        compression: layer.compression,
        blob: Some(layer.blob),
    };
    let layers = config.diff_ids.into_iter().zip(manifest.layers).map(layer).collect();
    Ok((manifest.config, layers))
}
