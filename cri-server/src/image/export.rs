//! The sequence of an export: images are found and leased → what they are made of is looked up → the archive goes out, documents
//! first, then each layer once, rebuilt and verified while it does. For a thread that may wait.
//!
//! The archive is an OCI image layout, and has the `manifest.json` that `docker load` reads beside it. Blobs are not kept, so
//! layers are plain tars, named by their diff IDs, and the manifest is a new one; the config is the same, and with it the id.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use cove_layer::{Digest, RebuildError};
use serde_json::{Value, json};

use super::lease::{self, Guard};
use super::manifest::{self, OCI_INDEX, OCI_MANIFEST};
use super::plan::{DOCKER, INDEX, LAYOUT, member};
use super::progress::{LayerProgress, LayerState, Progress};
use super::record::{self, Headers, LayerRecord};
use super::reference::{self, Reference};
use super::store::Store;
use super::{Image, ImageError, sha256, tar};

/// Media types of the image specification (media-types.md).
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// See [`CONFIG_TYPE`].
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// Writes the images that `references` name to `to`.
pub(super) fn export(
    store: &Arc<Store>,
    references: &[String],
    to: impl Write,
    progress: &Progress,
) -> Result<Vec<Arc<Image>>, ImageError> {
    let wanted = find(store, references)?;
    let images = wanted.iter().map(|wanted| Exported::new(store, wanted)).collect::<Result<Vec<_>, _>>()?;
    let (mut layers, mut seen) = (Vec::new(), HashSet::new());
    for (image, layer) in images.iter().flat_map(|image| image.layers.iter().map(move |layer| (image, layer)))
    {
        if seen.insert(&layer.diff_id) {
            progress.layer(layer.progress.clone());
            layers.push((image, layer));
        }
    }
    let mut archive = Archive { to };
    archive.member(LAYOUT.0, LAYOUT.1)?;
    archive.document(INDEX, &index(&images))?;
    archive.document(DOCKER, &docker(&images))?;
    for image in &images {
        archive.member(&member(&sha256(&image.manifest)), &image.manifest)?;
        archive.member(&member(&image.id), &image.config)?;
    }
    for (image, layer) in layers {
        archive.layer(store, image, layer)?;
    }
    archive.end()?;
    Ok(wanted.into_iter().map(|wanted| wanted.image).collect())
}

/// An image, and the names that it goes out with.
struct Wanted {
    image: Arc<Image>,
    tags: Vec<String>,
    /// Keeps its layers.
    _guard: Guard,
}

/// Each image once, though several of its names may be given.
fn find(store: &Arc<Store>, references: &[String]) -> Result<Vec<Wanted>, ImageError> {
    let mut found: Vec<Wanted> = Vec::new();
    for text in references {
        let (image, guard) = lease::lease(store, text)?;
        let tags = tags(&image, text);
        match found.iter_mut().find(|wanted| wanted.image.id == image.id) {
            Some(wanted) => {
                wanted.tags.extend(tags);
                wanted.tags.sort();
                wanted.tags.dedup();
            }
            None => found.push(Wanted { image, tags, _guard: guard }),
        }
    }
    Ok(found)
}

/// The one tag that was asked for; all, if the image was asked for by its id or a digest.
fn tags(image: &Image, text: &str) -> Vec<String> {
    let named = Reference::parse(text).ok().filter(|_| !reference::is_whole_id(text));
    match named.and_then(|named| named.repo_tag()).filter(|tag| image.repo_tags.contains(tag)) {
        Some(tag) => vec![tag],
        None => image.repo_tags.clone(),
    }
}

/// One image on its way out.
struct Exported<'a> {
    id: Digest,
    tags: &'a [String],
    layers: Vec<Layer>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

struct Layer {
    diff_id: Digest,
    /// Bytes of its archive.
    size: u64,
    progress: Arc<LayerProgress>,
}

impl<'a> Exported<'a> {
    /// Refuses what cannot be exported before a byte goes out.
    fn new(store: &Store, wanted: &'a Wanted) -> Result<Self, ImageError> {
        let name = &wanted.image.id;
        let not_found = || ImageError::NotFound { reference: name.clone() };
        let id: Digest = name.parse().map_err(|_| not_found())?;
        let entry = store.index().images.get(&id).cloned().ok_or_else(not_found)?;
        let diff_ids = entry.record.layers.iter().map(|layer| layer.parse::<Digest>());
        let diff_ids = diff_ids.collect::<Result<Vec<_>, _>>().map_err(|_| not_found())?;
        let layers = diff_ids
            .into_iter()
            .map(|diff_id| {
                let size = archive_size(store, &id, &diff_id)?;
                let progress = Arc::new(LayerProgress::new(diff_id.to_string(), size));
                Ok(Layer { diff_id, size, progress })
            })
            .collect::<Result<Vec<_>, ImageError>>()?;
        let config = config(store, &id)?;
        let descriptors: Vec<Value> =
            layers.iter().map(|layer| descriptor(LAYER_TYPE, &layer.diff_id, layer.size)).collect();
        let manifest = bytes_of(&json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor(CONFIG_TYPE, &id, length(&config)), "layers": descriptors,
        }));
        Ok(Self { id, tags: &wanted.tags, layers, config, manifest })
    }
}

/// How large the archive of a layer is, if it can be made again.
fn archive_size(store: &Store, image: &Digest, layer: &Digest) -> Result<u64, ImageError> {
    let refused = |reason: String| ImageError::Export { image: image.to_string(), reason };
    let record: LayerRecord = record::read(&store.layout.layer_record(layer))
        .map_err(|error| refused(format!("layer {layer}: {error}: {MEND}")))?;
    match record.headers {
        Headers::Kept { archive, .. } => Ok(archive),
        Headers::Lost => Err(refused(format!(
            "layer {layer} cannot be given out again: its archive names a path twice, and only what came last is kept"
        ))),
        Headers::Unknown | Headers::Ours => Err(refused(format!("layer {layer} {OLDER}"))),
    }
}

/// What is said of a layer without tar headers.
pub(super) const OLDER: &str = "was unpacked by an older version, which kept no tar headers: pull again (`cove check --content --repair` does)";
/// What to do about damage.
const MEND: &str = "`cove check --repair` pulls it again";

/// The config of an image, verified: it is what the id stands for.
fn config(store: &Store, id: &Digest) -> Result<Vec<u8>, ImageError> {
    let refused = |reason: String| ImageError::Export {
        image: id.to_string(),
        reason: format!("its config {reason}: {MEND}"),
    };
    let kept = store.layout.read_documents(id)?.ok_or_else(|| refused("is not there".to_owned()))?;
    manifest::verify_digest(id, &kept.config).map_err(refused)?;
    Ok(kept.config)
}

/// Names an image once for each of its tags.
fn index(images: &[Exported<'_>]) -> Value {
    let mut entries = Vec::new();
    for image in images {
        let entry = descriptor(OCI_MANIFEST, &sha256(&image.manifest), length(&image.manifest));
        entries.extend(image.tags.iter().map(|tag| {
            let mut named = entry.clone();
            // containerd and Docker read the one, skopeo and umoci the other.
            named["annotations"] =
                json!({"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": tag});
            named
        }));
        if image.tags.is_empty() {
            entries.push(entry);
        }
    }
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
}

/// What `docker load` reads.
fn docker(images: &[Exported<'_>]) -> Value {
    let entry = |image: &Exported<'_>| {
        let layers: Vec<String> = image.layers.iter().map(|layer| member(&layer.diff_id)).collect();
        json!({"Config": member(&image.id), "RepoTags": image.tags, "Layers": layers})
    };
    images.iter().map(entry).collect()
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest.as_str(), "size": size})
}

fn bytes_of(document: &Value) -> Vec<u8> {
    document.to_string().into_bytes()
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// The archive that goes out.
struct Archive<W> {
    to: W,
}

impl<W: Write> Archive<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.to.write_all(bytes).map_err(gone)
    }

    fn document(&mut self, name: &str, document: &Value) -> Result<(), ImageError> {
        self.member(name, &bytes_of(document))
    }

    fn member(&mut self, name: &str, bytes: &[u8]) -> Result<(), ImageError> {
        let size = length(bytes);
        self.write(&tar::header(name, size))?;
        self.write(bytes)?;
        self.write(&vec![0; tar::padding(size)])
    }

    fn layer(&mut self, store: &Store, image: &Exported<'_>, layer: &Layer) -> Result<(), ImageError> {
        let Layer { diff_id, size, progress } = layer;
        let refused = |reason: String| ImageError::Export {
            image: image.id.to_string(),
            reason: format!("layer {diff_id}: {reason}: `cove check --content --repair` pulls it again"),
        };
        self.write(&tar::header(&member(diff_id), *size))?;
        progress.set(LayerState::Reading);
        let path = store.layout.layer_headers(diff_id);
        let headers = File::open(&path).map_err(|error| refused(format!("its tar headers: {error}")))?;
        let to = Counted { to: &mut self.to, progress };
        let rebuilt = match cove_layer::rebuild(headers, &store.layout.layer_files(diff_id), to) {
            Ok(rebuilt) => rebuilt,
            Err(RebuildError::Sink(error)) => return Err(gone(error)),
            Err(error) => return Err(refused(error.to_string())),
        };
        if rebuilt.diff_id != *diff_id || rebuilt.size != *size {
            return Err(refused(format!(
                "a file of it is damaged: its content has digest {}",
                rebuilt.diff_id
            )));
        }
        progress.set(LayerState::Done);
        self.write(&vec![0; tar::padding(*size)])
    }

    fn end(mut self) -> Result<(), ImageError> {
        self.write(&tar::END)?;
        self.to.flush().map_err(gone)
    }
}

/// Nobody takes the archive any more, and nobody reads this.
fn gone(error: io::Error) -> ImageError {
    ImageError::store("hand over", "archive", error)
}

/// Adds what is written to a progress.
struct Counted<'a, W> {
    to: &'a mut W,
    progress: &'a LayerProgress,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.progress.add(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
