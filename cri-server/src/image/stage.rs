//! A layer on its way into the store: a directory in `tmp` that becomes visible by one rename, or goes to the trash.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cove_layer::Digest;

use super::ImageError;
use super::background::Job;
use super::layout::{HEADERS, RECORD};
use super::record::{self, Headers, LayerRecord};
use super::store::{KEEP_LAYERS, LayerEntry, Store};

/// A directory that a layer is being unpacked into. Dropped, it goes to the trash.
#[derive(Debug)]
pub(super) struct Stage {
    store: Arc<Store>,
    directory: Option<PathBuf>,
}

impl Stage {
    /// Makes the directory.
    pub(super) fn new(store: Arc<Store>) -> Result<Self, ImageError> {
        let directory = Some(store.layout.stage()?);
        Ok(Self { store, directory })
    }

    /// Where the files go.
    pub(super) fn files(&self) -> PathBuf {
        self.directory.as_deref().unwrap_or(Path::new("")).join("fs")
    }

    /// A new file for what is left of the archive beside its files.
    pub(super) fn headers(&self) -> Result<File, ImageError> {
        let path = self.directory.as_deref().unwrap_or(Path::new("")).join(HEADERS);
        File::create_new(&path).map_err(|error| ImageError::store("create", path, error))
    }

    /// The layer is whole and verified.
    pub(super) fn finish(mut self, diff_id: Digest, layer: &LayerRecord) -> Result<StagedLayer, ImageError> {
        let directory = self.directory.as_deref().unwrap_or(Path::new(""));
        if layer.headers == Headers::Lost {
            // Of no use, then.
            let path = directory.join(HEADERS);
            std::fs::remove_file(&path).map_err(|error| ImageError::store("remove", path, error))?;
        }
        record::write_unsynced(&directory.join(RECORD), layer)?;
        let kept = self.directory.take().map(|directory| Kept {
            diff_id: diff_id.clone(),
            directory,
            size: layer.taken(),
            inodes: layer.inodes,
            is_opaque: layer.is_opaque,
            blob: layer.blob.as_ref().and_then(|blob| blob.parse().ok()),
        });
        Ok(StagedLayer {
            store: self.store.clone(),
            diff_id,
            kept: Mutex::new(kept),
            is_unwanted: AtomicBool::new(false),
            replaces: AtomicBool::new(false),
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(directory) = self.directory.take() {
            throw_away(&self.store, &directory);
        }
    }
}

fn throw_away(store: &Store, directory: &Path) {
    if let Err(error) = store.discard(directory) {
        tracing::warn!(%error, "a half-unpacked layer stays in tmp until the next start");
    }
}

/// A whole layer that is not visible yet.
#[derive(Debug)]
pub(super) struct Kept {
    diff_id: Digest,
    directory: PathBuf,
    size: u64,
    inodes: u64,
    is_opaque: bool,
    blob: Option<Digest>,
}

/// A whole layer, and whether it is visible yet. Shared by all pulls that wait for it; when the last of them is gone and it
/// is not visible, it is made so in the background, for the next try.
#[derive(Debug)]
pub(super) struct StagedLayer {
    store: Arc<Store>,
    diff_id: Digest,
    kept: Mutex<Option<Kept>>,
    is_unwanted: AtomicBool,
    replaces: AtomicBool,
}

impl StagedLayer {
    /// Whether it still has to be synced and published.
    pub(super) fn is_pending(&self) -> bool {
        self.lock().is_some()
    }

    /// Makes it visible, once. The disk was synced since it became whole, and the caller holds the store's writer lock.
    pub(super) fn publish(&self) -> Result<(), ImageError> {
        let mut kept = self.lock();
        let Some(layer) = kept.take() else { return Ok(()) };
        let published = publish(&self.store, &layer, None, self.replaces.load(Ordering::Relaxed));
        if published.is_err() {
            *kept = Some(layer);
        }
        published
    }

    /// There is no room for it: it is not kept for a next try.
    pub(super) fn unwanted(&self) {
        self.is_unwanted.store(true, Ordering::Relaxed);
    }

    /// What lies in its place is damaged: it is taken away, unless a container needs it.
    pub(super) fn replacing(&self) {
        self.replaces.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StagedLayer {
    fn drop(&mut self) {
        let Some(kept) = self.lock().take() else { return };
        if self.is_unwanted.load(Ordering::Relaxed) {
            throw_away(&self.store, &kept.directory);
        } else {
            tracing::debug!(layer = %self.diff_id, "a pull was cut off: its whole layer is kept");
            self.store.later(Job::Keep(kept));
        }
    }
}

/// Makes a whole layer of a pull that was cut off visible.
pub(super) fn keep(store: &Store, kept: Kept) -> Result<(), ImageError> {
    let kept_until = Instant::now().checked_add(KEEP_LAYERS);
    let published = store.layout.sync().and_then(|()| {
        let _writer = store.writer();
        publish(store, &kept, kept_until, false)?;
        store.publish(&store.index());
        store.layout.sync_layers()
    });
    if published.is_err() {
        throw_away(store, &kept.directory);
    }
    published
}

/// Renames it into place, unless another pull was first.
fn publish(
    store: &Store,
    kept: &Kept,
    kept_until: Option<Instant>,
    replaces: bool,
) -> Result<(), ImageError> {
    let is_there = store.index().layers.contains_key(&kept.diff_id);
    if is_there && !replaces {
        return store.discard(&kept.directory);
    }
    if is_there && let Some(image) = store.index().user_of(&kept.diff_id) {
        let reason =
            format!("layer {} is damaged, and containers run from it: remove them first", kept.diff_id);
        return Err(ImageError::Damaged { image, reason });
    }
    if is_run_from(store, &kept.diff_id) {
        store.layout.publish_record(&kept.directory, &kept.diff_id)?;
        store.later(Job::EmptyTrash);
    } else if store.layout.publish(&kept.directory, &kept.diff_id)? {
        store.later(Job::EmptyTrash);
    }
    let entry = LayerEntry {
        size: kept.size,
        inodes: kept.inodes,
        is_opaque: kept.is_opaque,
        blob: kept.blob.clone(),
        kept_until,
    };
    store.index().layers.insert(kept.diff_id.clone(), entry);
    Ok(())
}

/// A layer whose record was damaged lies there, and containers may run from its files: those came there whole, by rename, and
/// must not be taken away from below an overlay.
fn is_run_from(store: &Store, diff_id: &Digest) -> bool {
    let index = store.index();
    let used =
        index.incomplete.iter().any(|(id, layers)| layers.contains(diff_id) && index.is_used(id.as_str()));
    used && store.layout.layer_files(diff_id).is_dir()
}
