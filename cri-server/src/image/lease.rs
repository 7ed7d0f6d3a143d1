//! What keeps images and layers while they are worked with, in memory only: leases of images, pins of layers.

use std::fmt;
use std::sync::Arc;

use cove_layer::Digest;

use super::Image;
use super::ImageError;
use super::background::Job;
use super::store::Store;

/// Counts for one image while it lives.
pub(super) struct Guard {
    store: Arc<Store>,
    id: String,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({})", self.id)
    }
}

/// Finds an image that is not removed and counts for it, at once.
pub(super) fn lease(store: &Arc<Store>, reference: &str) -> Result<(Arc<Image>, Guard), ImageError> {
    let mut index = store.index();
    // Published under the same lock: it says what the index says.
    let catalog = store.catalog();
    let image =
        catalog.find(reference)?.ok_or_else(|| ImageError::NotFound { reference: reference.to_owned() })?;
    *index.leases.entry(image.id.clone()).or_default() += 1;
    Ok((image.clone(), Guard { store: store.clone(), id: image.id.clone() }))
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut index = self.store.index();
        let Some(count) = index.leases.get_mut(&self.id) else { return };
        *count -= 1;
        if *count == 0 {
            index.leases.remove(&self.id);
            drop(index);
            collect_if_removed(&self.store, &self.id);
        }
    }
}

/// Looks for what nobody needs, if the image has no names any more.
pub(super) fn collect_if_removed(store: &Store, id: &str) {
    if !store.catalog().contains(id) {
        store.later(Job::Collect);
    }
}

/// Counts for layers while a pull lives.
#[derive(Debug)]
pub(super) struct Pins {
    store: Arc<Store>,
    layers: Vec<Digest>,
}

impl Pins {
    /// Counts for each of `layers`, whether it is there or not.
    pub(super) fn new(store: Arc<Store>, layers: &[Digest]) -> Self {
        let mut index = store.index();
        for layer in layers {
            *index.pins.entry(layer.clone()).or_default() += 1;
        }
        drop(index);
        Self { store, layers: layers.to_vec() }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut index = self.store.index();
        for layer in &self.layers {
            if let Some(count) = index.pins.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    index.pins.remove(layer);
                }
            }
        }
        drop(index);
        self.store.later(Job::Collect);
    }
}
