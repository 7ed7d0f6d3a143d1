//! From a reference to what has to be fetched: manifest, by way of indexes, and config, each verified before it is read.

use std::collections::HashSet;

use cove_layer::Digest;

use super::config::{self, Config};
use super::layout::Documents;
use super::manifest::{self, Descriptor, Manifest, Parsed};
use super::reference::Selector;
use super::registry::{Document, Registry};
use super::{ImageError, sha256};

/// An image as its registry describes it.
#[derive(Debug)]
pub(super) struct Resolved {
    /// Digest of the document that the reference itself names: of the index, if it is one.
    pub(super) asked: Digest,
    /// Digest of the config: the image's id.
    pub(super) id: Digest,
    /// The layers with their blobs.
    pub(super) manifest: Manifest,
    /// Their diff IDs, and what containers need.
    pub(super) config: Config,
    /// What it was described by, as it came.
    pub(super) documents: Documents,
}

/// Asks the registry what the reference is.
pub(super) async fn resolve(registry: &Registry) -> Result<Resolved, ImageError> {
    let selector = registry.reference().selector_text();
    let what = format!("manifest {selector}");
    let document = registry.manifest(&selector).await?;
    let asked = match &registry.reference().selector {
        Selector::Digest(digest) => {
            manifest::verify_digest(digest, &document.bytes)
                .map_err(|reason| registry.content(&what, reason))?;
            digest.clone()
        }
        Selector::Tag(_) => tagged(registry, &what, &document)?,
    };
    let parsed = manifest::parse(&document.bytes, document.media_type.as_deref(), &registry.bounds)
        .map_err(|reason| registry.content(&what, reason))?;
    let (manifest, manifest_bytes) = match parsed {
        Parsed::Manifest(manifest) => (manifest, document.bytes),
        Parsed::Index(index) => descend(registry, &what, index).await?,
    };
    let config_bytes = registry.small_blob(&manifest.config).await?;
    let config = config::parse(&config_bytes, manifest.layers.len())
        .map_err(|reason| registry.content(&format!("config {}", manifest.config), reason))?;
    let documents = Documents { config: config_bytes, manifest: Some(manifest_bytes) };
    Ok(Resolved { asked, id: manifest.config.digest.clone(), manifest, config, documents })
}

/// The digest of a document that was asked for by tag: its own, which the registry's must equal.
fn tagged(registry: &Registry, what: &str, document: &Document) -> Result<Digest, ImageError> {
    let digest = sha256(&document.bytes);
    match &document.claimed {
        Some(claimed) => {
            let claimed: Digest = claimed.parse().map_err(|_| {
                registry.content(what, "the registry gives a Docker-Content-Digest that is no digest")
            })?;
            manifest::verify_digest(&claimed, &document.bytes)
                .map_err(|reason| registry.content(what, reason))?;
            Ok(claimed)
        }
        None => Ok(digest),
    }
}

/// Goes down through indexes to the manifest for this machine, and visits no digest twice.
async fn descend(
    registry: &Registry,
    what: &str,
    index: Vec<Descriptor>,
) -> Result<(Manifest, Vec<u8>), ImageError> {
    let mut seen = HashSet::new();
    let mut next: Vec<(Descriptor, usize)> = queue(&index, 1);
    while let Some((descriptor, depth)) = next.pop() {
        if !seen.insert(descriptor.digest.clone()) {
            continue;
        }
        let bounds = &registry.bounds;
        if seen.len() > bounds.documents {
            let limit = bounds.documents;
            return Err(
                registry.content(what, format!("leads to more than image_limits.documents = {limit}"))
            );
        }
        let what = format!("manifest {descriptor}");
        if depth > bounds.index_depth {
            let limit = bounds.index_depth;
            return Err(
                registry.content(&what, format!("lies deeper than image_limits.index_depth = {limit}"))
            );
        }
        match fetch(registry, &what, &descriptor).await? {
            (Parsed::Manifest(manifest), bytes) => return Ok((manifest, bytes)),
            (Parsed::Index(index), _) => next.extend(queue(&index, depth + 1)),
        }
    }
    Err(registry.content(what, format!("lists no image for linux on {}", manifest::host_architecture())))
}

/// Last in, first out: the first candidate of the innermost index is looked at next.
fn queue(index: &[Descriptor], depth: usize) -> Vec<(Descriptor, usize)> {
    manifest::candidates(index).into_iter().rev().map(|descriptor| (descriptor.clone(), depth)).collect()
}

async fn fetch(
    registry: &Registry,
    what: &str,
    descriptor: &Descriptor,
) -> Result<(Parsed, Vec<u8>), ImageError> {
    let document = registry.manifest(&descriptor.digest.to_string()).await?;
    let refused = |reason| registry.content(what, reason);
    descriptor.verify(&document.bytes).map_err(refused)?;
    if document.media_type.as_deref().is_some_and(|sent| sent != descriptor.media_type) {
        return Err(refused(format!(
            "was sent as {:?}, and the index says {:?}",
            document.media_type, descriptor.media_type
        )));
    }
    let parsed =
        manifest::parse(&document.bytes, Some(&descriptor.media_type), &registry.bounds).map_err(refused)?;
    Ok((parsed, document.bytes))
}
