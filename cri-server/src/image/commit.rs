//! The end of a pull: the disk is synced once, the layers become visible, then the image does. For threads that may wait.

use std::sync::{Arc, MutexGuard};

use cove_layer::Digest;

use super::record::{self, Record};
use super::reference::Reference;
use super::resolve::Resolved;
use super::stage::StagedLayer;
use super::store::{self, Entry, Index, Store};
use super::{Image, ImageError, fix_up};

/// Makes the layers and then the image visible under the names of `reference`.
pub(super) fn commit(
    store: &Arc<Store>,
    reference: &Reference,
    resolved: &Resolved,
    staged: &[Arc<Option<StagedLayer>>],
) -> Result<Arc<Image>, ImageError> {
    let fetched: Vec<&StagedLayer> = staged.iter().filter_map(|layer| Option::as_ref(layer)).collect();
    drop(publish(store, &fetched)?);
    let fix_up = fix_up(store, resolved)?;
    let mut layers = resolved.config.diff_ids.clone();
    let mut made = Vec::new();
    if let Some(staged) = &fix_up {
        layers.push(fix_up::key(&resolved.id));
        made.extend(staged);
    }
    let _writer = publish(store, &made)?;
    let record = merged(&store.index(), reference, resolved, fix_up.is_some());
    let path = store.layout.record(&resolved.id);
    let was_unreadable = store.index().unreadable.contains(&path);
    if was_unreadable {
        // Not every thing that may lie there (a directory) can be replaced by a file.
        store.discard(&path)?;
    }
    record::write(&path, &record)?;
    let (image, robbed) = take_in(store, record, &resolved.id, &layers);
    for record in robbed {
        // The later record has the tag already, also after a restart: this one only says so twice.
        if let Err(error) = record::write(&store.layout.record(&record.0), &record.1) {
            tracing::warn!(image = %record.0, %error, "the record of an image keeps a tag that has moved");
        }
    }
    Ok(image)
}

/// Syncs the disk once, if there is something new, and makes it visible. Returns the writer lock.
fn publish<'store>(
    store: &'store Store,
    layers: &[&StagedLayer],
) -> Result<MutexGuard<'store, ()>, ImageError> {
    let has_new = layers.iter().any(|layer| layer.is_pending());
    if has_new {
        store.layout.sync()?;
    }
    let writer = store.writer();
    for layer in layers {
        layer.publish()?;
    }
    if has_new {
        store.layout.sync_layers()?;
    }
    Ok(writer)
}

/// The layer on top of the image's own, where one is needed: made now, or (`Some(None)`) there already.
fn fix_up(store: &Arc<Store>, resolved: &Resolved) -> Result<Option<Option<StagedLayer>>, ImageError> {
    let (stack, is_there) = {
        let index = store.index();
        let is_there = index.layers.contains_key(&fix_up::key(&resolved.id));
        (store::stack(&resolved.config.diff_ids, &index.layers), is_there)
    };
    if is_there { Ok(Some(None)) } else { Ok(fix_up::make(store, &resolved.id, &stack)?.map(Some)) }
}

/// What the image's record becomes: the names that it has, and those of this pull.
fn merged(index: &Index, reference: &Reference, resolved: &Resolved, has_fix_up: bool) -> Record {
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
        fix_up: has_fix_up.then(|| fix_up::key(&resolved.id).to_string()),
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
