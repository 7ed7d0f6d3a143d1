//! How far pulls and imports are, for whoever watches: counters that the work adds to, and nothing that it waits for.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// What is being done with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// Its turn has not come.
    Waiting,
    /// Its bytes are arriving and being unpacked.
    Arriving,
    /// It is whole.
    Done,
    /// It was there already.
    Present,
    /// Its files are being read.
    Reading,
}

/// One layer, as the registry or the archive has it.
#[derive(Debug)]
pub struct LayerProgress {
    name: String,
    size: u64,
    bytes: AtomicU64,
    state: AtomicU8,
}

impl LayerProgress {
    /// Nothing of it has come yet.
    pub(super) fn new(name: String, size: u64) -> Self {
        Self { name, size, bytes: AtomicU64::new(0), state: AtomicU8::new(0) }
    }

    /// More bytes have come.
    pub(super) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What is done with it from now on.
    pub(super) fn set(&self, state: LayerState) {
        if matches!(state, LayerState::Arriving | LayerState::Reading) {
            self.bytes.store(0, Ordering::Relaxed);
        }
        let number = match state {
            LayerState::Waiting => 0,
            LayerState::Arriving => 1,
            LayerState::Done => 2,
            LayerState::Present => 3,
            LayerState::Reading => 4,
        };
        self.state.store(number, Ordering::Relaxed);
    }

    fn now(&self) -> LayerNow {
        let state = match self.state.load(Ordering::Relaxed) {
            0 => LayerState::Waiting,
            1 => LayerState::Arriving,
            2 => LayerState::Done,
            3 => LayerState::Present,
            _ => LayerState::Reading,
        };
        let bytes = self.bytes.load(Ordering::Relaxed);
        LayerNow { name: self.name.clone(), size: self.size, bytes, state }
    }
}

/// One layer at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerNow {
    /// The digest of its blob, or its name in the archive.
    pub name: String,
    /// Its bytes, as they are sent.
    pub size: u64,
    /// How many of them have come.
    pub bytes: u64,
    /// What is being done with it.
    pub state: LayerState,
}

/// One pull or import.
#[derive(Debug)]
pub struct Progress {
    subject: String,
    begun: Instant,
    layers: Mutex<Vec<Arc<LayerProgress>>>,
}

impl Progress {
    /// Begins now.
    pub fn new(subject: String) -> Self {
        Self { subject, begun: Instant::now(), layers: Mutex::default() }
    }

    /// A further layer is known.
    pub(super) fn layer(&self, layer: Arc<LayerProgress>) {
        self.lock().push(layer);
    }

    /// The reference that is pulled, or what is imported.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// How long it has been running.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Its layers in their order; none while they are not known.
    pub fn layers(&self) -> Vec<LayerNow> {
        self.lock().iter().map(|layer| layer.now()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<LayerProgress>>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Things that somebody works on, by key: each lives as long as the work.
pub(super) struct Board<K, V>(Mutex<HashMap<K, Weak<V>>>);

impl<K, V> Default for Board<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K, V> fmt::Debug for Board<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Board")
    }
}

impl<K: Eq + Hash, V> Board<K, V> {
    /// What is there under this key, or a new one.
    pub(super) fn join(&self, key: K, make: impl FnOnce() -> V) -> Arc<V> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, weak| weak.strong_count() > 0);
        if let Some(found) = all.get(&key).and_then(Weak::upgrade) {
            return found;
        }
        let made = Arc::new(make());
        all.insert(key, Arc::downgrade(&made));
        made
    }

    /// All that somebody works on.
    pub(super) fn all(&self) -> Vec<Arc<V>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_watched_is_one_and_goes_with_its_work() {
        let board = Board::<&str, Progress>::default();
        let first = board.join("a", || Progress::new("a".into()));
        let second = board.join("a", || Progress::new("other".into()));
        assert!(Arc::ptr_eq(&first, &second) && board.all().len() == 1);
        let layer = Arc::new(LayerProgress::new("l".into(), 10));
        first.layer(layer.clone());
        layer.set(LayerState::Arriving);
        layer.add(3);
        let now = LayerNow { name: "l".into(), size: 10, bytes: 3, state: LayerState::Arriving };
        assert_eq!(second.layers(), [now]);
        drop((first, second));
        assert!(board.all().is_empty());
    }
}
