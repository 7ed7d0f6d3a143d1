//! The end of a pull and of an import: the disk is synced once, the layers become visible, then the image does. For threads that may wait.

use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};

use cove_layer::Digest;

use super::config::Config;
use super::layout::Documents;
use super::record::{self, Record};
use super::stage::StagedLayer;
use super::store::{self, Entry, Index, Store};
use super::{Image, ImageError, fix_up, sha256};

/// An image all of whose layers are here, and the names that it gets beside those that it has.
#[derive(Debug)]
pub(super) struct Whole {
    /// Digest of its config.
    pub(super) id: Digest,
    /// What the config says.
    pub(super) config: Config,
    /// As they came.
    pub(super) documents: Documents,
    /// `registry/name:tag`: taken from whoever has them.
    pub(super) repo_tags: Vec<String>,
    /// `registry/name@digest`.
    pub(super) repo_digests: Vec<String>,
    /// Never collected from now on.
    pub(super) pinned: bool,
}

/// Makes the layers and then the image visible.
pub(super) fn commit(
    store: &Arc<Store>,
    whole: &Whole,
    staged: &[&StagedLayer],
) -> Result<Arc<Image>, ImageError> {
    let documents = new_documents(store, whole)?;
    drop(publish(store, staged, documents.is_some())?);
    let fix_up = fix_up(store, whole)?;
    let mut layers = whole.config.diff_ids.clone();
    let mut made = Vec::new();
    if let Some(staged) = &fix_up {
        layers.push(fix_up::key(&whole.id));
        made.extend(staged);
    }
    let _writer = publish(store, &made, false)?;
    if let Some(documents) = documents {
        store.layout.publish_documents(&documents.directory, &whole.id)?;
    }
    let record = merged(&store.index(), whole, fix_up.is_some());
    let path = store.layout.record(&whole.id);
    let was_unreadable = store.index().unreadable.contains(&path);
    if was_unreadable {
        // Not every thing that may lie there (a directory) can be replaced by a file.
        store.discard(&path)?;
    }
    record::write(&path, &record)?;
    let (image, robbed) = take_in(store, record, &whole.id, &layers);
    for record in robbed {
        // The later record has the tag already, also after a restart: this one only says so twice.
        if let Err(error) = record::write(&store.layout.record(&record.0), &record.1) {
            tracing::warn!(image = %record.0, %error, "the record of an image keeps a tag that has moved");
        }
    }
    Ok(image)
}

/// Documents that are not visible yet. Dropped before they are, they go to the trash.
struct StagedDocuments<'store> {
    store: &'store Store,
    directory: PathBuf,
}

impl Drop for StagedDocuments<'_> {
    fn drop(&mut self) {
        // Published, it is not there any more; what cannot be moved now is removed by the next start.
        if let Err(error) = self.store.discard(&self.directory) {
            tracing::warn!(%error, "an image's documents stay in tmp until the next start");
        }
    }
}

/// Stages the image's documents, unless they are kept as they are.
fn new_documents<'store>(
    store: &'store Store,
    whole: &Whole,
) -> Result<Option<StagedDocuments<'store>>, ImageError> {
    let kept = store.layout.read_documents(&whole.id)?;
    let is_kept = kept.is_some_and(|kept| {
        let has_manifest = whole.documents.manifest.is_none() || kept.manifest == whole.documents.manifest;
        kept.config == whole.documents.config && has_manifest
    });
    if is_kept {
        return Ok(None);
    }
    let directory = store.layout.stage_documents(&whole.documents)?;
    Ok(Some(StagedDocuments { store, directory }))
}

/// Syncs the disk once, if there is something new, and makes the layers visible. Returns the writer lock.
fn publish<'store>(
    store: &'store Store,
    layers: &[&StagedLayer],
    is_else_new: bool,
) -> Result<MutexGuard<'store, ()>, ImageError> {
    let has_new = layers.iter().any(|layer| layer.is_pending());
    if has_new || is_else_new {
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
fn fix_up(store: &Arc<Store>, whole: &Whole) -> Result<Option<Option<StagedLayer>>, ImageError> {
    let (stack, is_there) = {
        let index = store.index();
        let is_there = index.layers.contains_key(&fix_up::key(&whole.id));
        (store::stack(&whole.config.diff_ids, &index.layers), is_there)
    };
    if is_there { Ok(Some(None)) } else { Ok(fix_up::make(store, &whole.id, &stack)?.map(Some)) }
}

/// What the image's record becomes: the names that it has, and those that it gets.
fn merged(index: &Index, whole: &Whole, has_fix_up: bool) -> Record {
    let before = index.images.get(&whole.id).filter(|entry| !entry.record.removed);
    let add = |names: Option<&Vec<String>>, more: &[String]| {
        let mut names = names.cloned().unwrap_or_default();
        names.extend_from_slice(more);
        names.sort();
        names.dedup();
        names
    };
    Record {
        id: whole.id.to_string(),
        sequence: index.sequence + 1,
        removed: false,
        repo_tags: add(before.map(|entry| &entry.record.repo_tags), &whole.repo_tags),
        repo_digests: add(before.map(|entry| &entry.record.repo_digests), &whole.repo_digests),
        layers: whole.config.diff_ids.iter().map(Digest::to_string).collect(),
        fix_up: has_fix_up.then(|| fix_up::key(&whole.id).to_string()),
        document_bytes: whole.documents.len(),
        pinned: whole.pinned || before.is_some_and(|entry| entry.record.pinned),
        manifest: match &whole.documents.manifest {
            Some(manifest) => Some(sha256(manifest).to_string()),
            None => before.and_then(|entry| entry.record.manifest.clone()),
        },
        config: whole.config.container.clone(),
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
        if entry.drop_tags(&record.repo_tags, &store.pinned) {
            robbed.push((other.clone(), entry.record.clone()));
        }
    }
    let image = store.image(&record, layers, &index.layers);
    index.images.insert(id.clone(), Entry { record, layers: layers.to_vec(), image: image.clone() });
    store.publish(&index);
    (image, robbed)
}
