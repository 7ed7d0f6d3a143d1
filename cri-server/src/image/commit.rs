//! The end of a pull: the disk is synced once, the layers become visible, then the image does. For threads that may wait.

use std::sync::Arc;

use cove_layer::Digest;

use super::record::{self, Record};
use super::reference::Reference;
use super::resolve::Resolved;
use super::stage::StagedLayer;
use super::store::{Entry, Index, Store};
use super::{Image, ImageError};

/// Makes the layers and then the image visible under the names of `reference`.
pub(super) fn commit(
    store: &Store,
    reference: &Reference,
    resolved: &Resolved,
    staged: &[Arc<Option<StagedLayer>>],
) -> Result<Arc<Image>, ImageError> {
    let pending: Vec<&StagedLayer> = staged.iter().filter_map(|layer| layer.as_ref().as_ref()).collect();
    let has_new = pending.iter().any(|layer| layer.is_pending());
    if has_new {
        store.layout.sync()?;
    }
    let _writer = store.writer();
    for layer in pending {
        layer.publish()?;
    }
    if has_new {
        store.layout.sync_layers()?;
    }
    let record = merged(&store.index(), reference, resolved);
    record::write(&store.layout.record(&resolved.id), &record)?;
    let (image, robbed) = take_in(store, record, &resolved.id, &resolved.config.diff_ids);
    for record in robbed {
        // The later record has the tag already, also after a restart: this one only says so twice.
        if let Err(error) = record::write(&store.layout.record(&record.0), &record.1) {
            tracing::warn!(image = %record.0, %error, "the record of an image keeps a tag that has moved");
        }
    }
    Ok(image)
}

/// What the image's record becomes: the names that it has, and those of this pull.
fn merged(index: &Index, reference: &Reference, resolved: &Resolved) -> Record {
    let before = index.images.get(&resolved.id).filter(|entry| !entry.record.removed);
    let add = |names: Option<&Vec<String>>, name: Option<String>| {
        let mut names = names.cloned().unwrap_or_default();
        names.extend(name);
        names.sort();
        names.dedup();
        names
    };
    Record {
        id: resolved.id.to_string(),
        sequence: index.sequence + 1,
        removed: false,
        repo_tags: add(before.map(|entry| &entry.record.repo_tags), reference.repo_tag()),
        repo_digests: add(
            before.map(|entry| &entry.record.repo_digests),
            Some(reference.repo_digest(&resolved.asked)),
        ),
        layers: resolved.config.diff_ids.iter().map(Digest::to_string).collect(),
        document_bytes: resolved.document_bytes,
        config: resolved.config.container.clone(),
    }
}

/// Shows the image. Returns the records of those that lost a tag to it.
fn take_in(
    store: &Store,
    record: Record,
    id: &Digest,
    layers: &[Digest],
) -> (Arc<Image>, Vec<(Digest, Record)>) {
    let mut index = store.index();
    for layer in layers {
        if let Some(layer) = index.layers.get_mut(layer) {
            layer.kept_until = None;
        }
    }
    index.sequence = record.sequence;
    index.incomplete.remove(id);
    index.unreadable.remove(&store.layout.record(id));
    let mut robbed = Vec::new();
    for (other, entry) in index.images.iter_mut().filter(|(other, _)| *other != id) {
        if entry.drop_tags(&record.repo_tags) {
            robbed.push((other.clone(), entry.record.clone()));
        }
    }
    let image = store.image(&record, layers, &index.layers);
    index.images.insert(id.clone(), Entry { record, layers: layers.to_vec(), image: image.clone() });
    store.publish(&index);
    (image, robbed)
}
