//! Collection: a layer goes when no image, no container, no lease and no pull refers to it; a removed image goes when no
//! container and no lease does. Nothing goes before recovery has told what containers hold.

use std::collections::HashSet;
use std::time::Instant;

use cove_layer::Digest;

use super::ImageError;
use super::background::Job;
use super::record;
use super::store::{Index, LayerEntry, Store};

/// What is left although nobody refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spare {
    /// Whole layers of pulls that were cut off, for some time.
    KeptLayers,
    /// Nothing: room is wanted.
    Nothing,
}

/// Deletes what nobody needs. For threads that may wait; slow parts are left to the background.
pub(super) fn collect(store: &Store, spare: Spare) -> Result<(), ImageError> {
    let _writer = store.writer();
    if !store.index().recovered {
        return Ok(());
    }
    forget_images(store)?;
    let dead = take_dead_layers(store, spare);
    if dead.is_empty() {
        return Ok(());
    }
    let mut failed = Ok(());
    for (diff_id, layer) in dead {
        if let Err(error) = store.layout.discard_layer(&diff_id) {
            // It lies there still, so it still counts.
            let mut index = store.index();
            index.layers.insert(diff_id, layer);
            store.publish(&index);
            failed = Err(error);
        }
    }
    store.later(Job::EmptyTrash);
    failed
}

/// Deletes the records of removed images that nobody uses any more.
fn forget_images(store: &Store) -> Result<(), ImageError> {
    let removed: Vec<Digest> = {
        let index = store.index();
        let dead =
            index.images.iter().filter(|(_, entry)| entry.record.removed && !index.is_used(&entry.record.id));
        dead.map(|(id, _)| id.clone()).collect()
    };
    for id in &removed {
        let path = store.layout.record(id);
        store.discard(&path)?;
        store.layout.discard_documents(id)?;
        store.index().images.remove(id);
    }
    match removed.first() {
        Some(id) => record::sync_parent(&store.layout.record(id)),
        None => Ok(()),
    }
}

fn take_dead_layers(store: &Store, spare: Spare) -> Vec<(Digest, LayerEntry)> {
    let mut index = store.index();
    if !index.unreadable.is_empty() {
        return Vec::new();
    }
    let now = Instant::now();
    let needed = needed(&index);
    let is_dead = |diff_id: &Digest, layer: &LayerEntry| {
        let is_kept = spare == Spare::KeptLayers && layer.kept_until.is_some_and(|until| until > now);
        !needed.contains(diff_id) && !is_kept
    };
    let dead: Vec<_> = index
        .layers
        .iter()
        .filter(|(diff_id, layer)| is_dead(diff_id, layer))
        .map(|(d, l)| (d.clone(), l.clone()))
        .collect();
    for (diff_id, _) in &dead {
        index.layers.remove(diff_id);
    }
    if !dead.is_empty() {
        store.publish(&index);
    }
    dead
}

fn needed(index: &Index) -> HashSet<Digest> {
    let of_images = index.images.values().flat_map(|entry| &entry.layers);
    of_images.chain(index.incomplete.values().flatten()).chain(index.pins.keys()).cloned().collect()
}
