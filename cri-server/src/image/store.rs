//! What is known of the images on disk, in memory: filled from the records once, changed with them, published as a catalog
//! that readers take without a lock.
//!
//! Two locks. `writer` is held by threads that may wait while they change files, so that memory and disk change in the
//! same order; `index` is held for moments, never across a system call. Order: writer, then index.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use cove_layer::Digest;

use super::background::Job;
use super::catalog::Catalog;
use super::layout::Layout;
use super::pinned::Pinned;
use super::record::{self, LayerRecord, Record};
use super::{Image, ImageError};

/// How long whole layers of a pull that was cut off wait for its next try.
pub(super) const KEEP_LAYERS: Duration = Duration::from_secs(3600);

/// What one layer takes.
#[derive(Debug, Clone)]
pub(super) struct LayerEntry {
    /// Bytes of its files and of what is kept beside them.
    pub(super) size: u64,
    /// Its inodes.
    pub(super) inodes: u64,
    /// No layer below it is seen.
    pub(super) is_opaque: bool,
    /// The blob that it was unpacked from, where that is known.
    pub(super) blob: Option<Digest>,
    /// No image refers to it yet, and it is kept until then all the same.
    pub(super) kept_until: Option<Instant>,
}

/// A whole image: its record, and what readers get of it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// As on disk.
    pub(super) record: Record,
    /// Diff IDs, the undermost first, and the fix-up layer.
    pub(super) layers: Vec<Digest>,
    /// As readers see it.
    pub(super) image: Arc<Image>,
}

impl Entry {
    /// Another image has these tags now. Whether this one had any of them.
    pub(super) fn drop_tags(&mut self, tags: &[String], pinned: &Pinned) -> bool {
        let before = self.record.repo_tags.len();
        self.record.repo_tags.retain(|tag| !tags.contains(tag));
        let changed = self.record.repo_tags.len() < before;
        if changed {
            let image = Arc::make_mut(&mut self.image);
            image.repo_tags.clone_from(&self.record.repo_tags);
            image.pinned = is_pinned(&self.record, pinned);
        }
        changed
    }
}

/// What is known. Every field is changed under one lock.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Whole images, the removed ones that are still in use among them.
    pub(super) images: BTreeMap<Digest, Entry>,
    /// Images that lack layers: not listed, their layers are kept for the next pull.
    pub(super) incomplete: BTreeMap<Digest, Vec<Digest>>,
    /// Records that could not be read: while there is one, no layer is collected.
    pub(super) unreadable: HashSet<PathBuf>,
    /// Layers that lie in `layers`.
    pub(super) layers: HashMap<Digest, LayerEntry>,
    /// Image ids by container id.
    pub(super) holds: HashMap<String, BTreeSet<String>>,
    /// Leases by image id.
    pub(super) leases: HashMap<String, usize>,
    /// Pulls and leases that need a layer, by diff ID.
    pub(super) pins: HashMap<Digest, usize>,
    /// Whether every container record has told what it holds.
    pub(super) recovered: bool,
    /// Of the record that was written last.
    pub(super) sequence: u64,
}

impl Index {
    /// An image that has this layer and is used.
    pub(super) fn user_of(&self, layer: &Digest) -> Option<String> {
        let mut images = self.images.iter();
        let used = images.find(|(id, entry)| entry.layers.contains(layer) && self.is_used(id.as_str()));
        used.map(|(id, _)| id.to_string())
    }

    /// Whether a container, a lease, or a container that is not known yet needs the image.
    pub(super) fn is_used(&self, id: &str) -> bool {
        !self.recovered || self.leases.contains_key(id) || self.holds.values().any(|held| held.contains(id))
    }
}

/// The images of this node.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) layout: Layout,
    pub(super) pinned: Pinned,
    writer: Mutex<()>,
    index: Mutex<Index>,
    catalog: ArcSwap<Catalog>,
    background: Sender<Job>,
}

impl Store {
    /// Reads every record. What is damaged or lacks layers is not listed and left as it is.
    pub(super) fn open(root: PathBuf, pinned: Pinned, background: Sender<Job>) -> Result<Self, ImageError> {
        let layout = Layout::open(root)?;
        let index = load(&layout, &pinned)?;
        let catalog = ArcSwap::from_pointee(Catalog::new(&index));
        let store =
            Self { layout, pinned, writer: Mutex::default(), index: Mutex::new(index), catalog, background };
        store.later(Job::EmptyTrash);
        Ok(store)
    }

    /// What readers see.
    pub(super) fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    /// Keeps others from changing files. For threads that may wait.
    pub(super) fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known, for a moment.
    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows readers what `index` says. Called before its lock is given back.
    pub(super) fn publish(&self, index: &Index) {
        self.catalog.store(Arc::new(Catalog::new(index)));
    }

    /// Leaves work to the background thread.
    pub(super) fn later(&self, job: Job) {
        if self.background.send(job).is_err() {
            // The thread ends only with a panic of its own; the next start does what it leaves undone.
            tracing::error!(
                "the image store's background thread has ended: nothing is deleted until a restart"
            );
        }
    }

    /// Moves something out of sight, and has it deleted.
    pub(super) fn discard(&self, path: &Path) -> Result<(), ImageError> {
        self.layout.discard(path)?;
        self.later(Job::EmptyTrash);
        Ok(())
    }

    /// The image as readers see it.
    pub(super) fn image(
        &self,
        record: &Record,
        layers: &[Digest],
        present: &HashMap<Digest, LayerEntry>,
    ) -> Arc<Image> {
        Arc::new(image(&self.layout, &self.pinned, record, layers, present))
    }
}

fn load(layout: &Layout, pinned: &Pinned) -> Result<Index, ImageError> {
    let kept_until = Instant::now().checked_add(KEEP_LAYERS);
    let entry = |layer: LayerRecord| LayerEntry {
        size: layer.taken(),
        inodes: layer.inodes,
        is_opaque: layer.is_opaque,
        blob: layer.blob.and_then(|blob| blob.parse().ok()),
        kept_until,
    };
    let mut index = Index {
        layers: layout.find_layers()?.into_iter().map(|(diff_id, layer)| (diff_id, entry(layer))).collect(),
        ..Index::default()
    };
    let mut records = Vec::new();
    let names = layout.record_names()?;
    layout.discard_lost_documents(&names)?;
    for name in names {
        let path = layout.records().join(&name);
        if name.ends_with(".new") {
            layout.discard(&path)?;
            continue;
        }
        match read(layout, &path) {
            Ok(found) => records.push(found),
            Err(error) => {
                tracing::error!(record = ?path, error, "an image record cannot be used: its image is not listed, and no layer is deleted until it is pulled again or removed");
                index.unreadable.insert(path);
            }
        }
    }
    records.sort_by_key(|(record, ..)| record.sequence);
    for (record, id, layers) in records {
        insert(layout, pinned, &mut index, record, id, layers);
    }
    Ok(index)
}

fn read(layout: &Layout, path: &Path) -> Result<(Record, Digest, Vec<Digest>), String> {
    let record: Record = record::read(path).map_err(|error| error.to_string())?;
    let id: Digest = record.id.parse().map_err(|_| "holds an id that is no digest")?;
    if layout.record(&id) != path {
        return Err(format!("is the record of {id}"));
    }
    let layers: Result<Vec<Digest>, _> =
        record.layers.iter().chain(&record.fix_up).map(|layer| layer.parse()).collect();
    Ok((record, id, layers.map_err(|_| "holds a diff ID that is no digest")?))
}

/// Takes in a record that is later than all before it: its names are its own.
fn insert(
    layout: &Layout,
    pinned: &Pinned,
    index: &mut Index,
    record: Record,
    id: Digest,
    layers: Vec<Digest>,
) {
    index.sequence = record.sequence;
    if let Some(missing) = layers.iter().find(|layer| !index.layers.contains_key(layer)) {
        tracing::warn!(image = %id, layer = %missing, "an image lacks a layer: not listed until it is pulled again");
        index.incomplete.insert(id, layers);
        return;
    }
    for entry in index.images.values_mut() {
        entry.drop_tags(&record.repo_tags, pinned);
    }
    let image = Arc::new(image(layout, pinned, &record, &layers, &index.layers));
    index.images.insert(id, Entry { record, layers, image });
}

/// The layers that an overlay takes, the uppermost first: each once, and none below one that hides them all. A layer that an
/// image names twice is refused by overlayfs; the upper one hides all that the lower one could add.
pub(super) fn stack(layers: &[Digest], present: &HashMap<Digest, LayerEntry>) -> Vec<Digest> {
    let mut seen = HashSet::new();
    let mut stack = Vec::new();
    for layer in layers.iter().rev().filter(|layer| seen.insert(*layer)) {
        stack.push(layer.clone());
        if present.get(layer).is_some_and(|layer| layer.is_opaque) {
            break;
        }
    }
    stack
}

fn is_pinned(record: &Record, pinned: &Pinned) -> bool {
    record.pinned || pinned.names_one_of(record.repo_tags.iter().chain(&record.repo_digests))
}

fn image(
    layout: &Layout,
    pinned: &Pinned,
    record: &Record,
    layers: &[Digest],
    present: &HashMap<Digest, LayerEntry>,
) -> Image {
    let distinct: HashSet<&Digest> = layers.iter().collect();
    let bytes: u64 =
        distinct.into_iter().filter_map(|layer| present.get(layer)).map(|layer| layer.size).sum();
    Image {
        id: record.id.clone(),
        repo_tags: record.repo_tags.clone(),
        repo_digests: record.repo_digests.clone(),
        size: bytes.saturating_add(record.document_bytes),
        pinned: is_pinned(record, pinned),
        config: record.config.clone(),
        layers: stack(layers, present).iter().map(|layer| layout.layer_files(layer)).collect(),
    }
}
