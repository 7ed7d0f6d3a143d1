//! What `docker save` writes: `manifest.json` lists images by the members that are their configs and layers.

use cove_layer::{Compression, Digest};
use serde::Deserialize;

use super::{DOCKER, Documents, Planned, PlannedLayer, add, required, shown};
use crate::image::bounds::Bounds;
use crate::image::reference::Reference;
use crate::image::{ImageError, config, sha256};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

fn parse(list: &[u8], bounds: &Bounds) -> Result<Vec<Saved>, ImageError> {
    let wrong = |reason: String| ImageError::archive(DOCKER, reason);
    let saved: Vec<Saved> =
        serde_json::from_slice(list).map_err(|error| wrong(format!("is no list of images: {error}")))?;
    if saved.is_empty() {
        return Err(wrong("lists no image".to_owned()));
    }
    if saved.len() > bounds.index_entries {
        let (count, limit) = (saved.len(), bounds.index_entries);
        return Err(wrong(format!(
            "lists {count} images; the limit is image_limits.index_entries = {limit}"
        )));
    }
    Ok(saved)
}

fn tags(saved: &Saved) -> Result<Vec<String>, ImageError> {
    let tags = saved.repo_tags.iter().flatten();
    let parsed = tags.map(|tag| Ok(Reference::parse(tag)?.repo_tag()));
    Ok(parsed.collect::<Result<Vec<_>, ImageError>>()?.into_iter().flatten().collect())
}

/// Adds the images that `list` names.
pub(super) fn images(
    documents: &impl Documents,
    list: &[u8],
    bounds: &Bounds,
    images: &mut Vec<Planned>,
) -> Result<(), ImageError> {
    for saved in parse(list, bounds)? {
        let wrong = |reason: String| ImageError::archive(format!("config {}", shown(&saved.config)), reason);
        let members = saved.layers.as_deref().unwrap_or_default();
        if members.is_empty() {
            return Err(wrong("has no layers".to_owned()));
        }
        if members.len() > bounds.layers {
            let (count, limit) = (members.len(), bounds.layers);
            return Err(wrong(format!("has {count} layers; the limit is image_limits.layers = {limit}")));
        }
        let bytes = required(documents, &saved.config)?;
        let id = sha256(&bytes);
        // These archives name a config by its digest.
        let stem = saved.config.rsplit('/').next().unwrap_or_default();
        let stem = stem.strip_suffix(".json").unwrap_or(stem);
        if format!("sha256:{stem}").parse::<Digest>().is_ok_and(|named| named != id) {
            return Err(wrong(format!("its digest is {id}")));
        }
        let config = config::parse(&bytes, members.len()).map_err(wrong)?;
        let layer = |(diff_id, member): (Digest, &String)| PlannedLayer {
            diff_id,
            member: member.clone(),
            blob: None,
            compression: Compression::Detect,
        };
        let layers = config.diff_ids.into_iter().zip(members).map(layer).collect();
        let (tags, digests) = (tags(&saved)?, Vec::new());
        add(images, Planned { id, config: saved.config, manifest: None, tags, digests, layers })?;
    }
    Ok(())
}

/// Adds only names, to images that are known already.
pub(super) fn names(
    documents: &impl Documents,
    list: &[u8],
    bounds: &Bounds,
    images: &mut [Planned],
) -> Result<(), ImageError> {
    for saved in parse(list, bounds)? {
        let Some(bytes) = documents.document(&saved.config)? else { continue };
        let id = sha256(&bytes);
        let Some(image) = images.iter_mut().find(|image| image.id == id) else { continue };
        for tag in tags(&saved)? {
            if !image.tags.contains(&tag) {
                image.tags.push(tag);
            }
        }
    }
    Ok(())
}
