//! What a container's writable layer takes on its disk: measured by one thread while nobody waits, asked for by the
//! calls that tell it, and never measured on a call. Nothing is measured while nobody asks.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

/// The least time between two measurements of one layer: a kubelet asks every 10 seconds.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// A layer is measured at most this part of the time: a container cannot keep the disk busy by its many files.
const REST: u32 = 20;
/// How deep directories are followed: each level takes a descriptor. What lies deeper is not counted.
const MAX_DEPTH: usize = 128;
/// Between two looks for a first measurement: a fresh layer takes far less.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Unit of `st_blocks`: stat(2).
const BLOCK: u64 = 512;

/// What a writable layer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerUsage {
    /// When it was measured, in nanoseconds since the epoch.
    pub at: i64,
    /// Bytes of blocks.
    pub bytes: u64,
    /// Files, directories and all else that has an inode.
    pub inodes: u64,
}

/// The layers that are known.
#[derive(Debug, Default)]
pub(super) struct Layers {
    known: Arc<Known>,
    jobs: OnceLock<Sender<(String, PathBuf)>>,
}

type Known = Mutex<BTreeMap<String, Layer>>;

#[derive(Debug, Default)]
struct Layer {
    usage: Option<LayerUsage>,
    /// It is measured, or will be.
    asked: bool,
    /// When it may be measured again; none: now.
    due: Option<Instant>,
}

impl Layers {
    /// The last measurement of the layer at `upper`. Asks for a new one when the last is old.
    pub(super) fn of(&self, id: &str, upper: &Path) -> Option<LayerUsage> {
        let mut known = locked(&self.known);
        let layer = known.entry(id.to_owned()).or_default();
        if !layer.asked && layer.due.is_none_or(|due| due <= Instant::now()) {
            let jobs = self.jobs.get_or_init(|| start(Arc::clone(&self.known)));
            // The thread ends with this value only.
            layer.asked = jobs.send((id.to_owned(), upper.to_owned())).is_ok();
        }
        layer.usage
    }

    /// As [`Self::of`]; where the layer was never measured, the first measurement is waited for until `end`. Blocking.
    pub(super) fn first_of(&self, id: &str, upper: &Path, end: Instant) -> Option<LayerUsage> {
        loop {
            let usage = self.of(id, upper);
            if usage.is_some() || Instant::now() >= end {
                return usage;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Forgets those that are not `wanted`.
    pub(super) fn retain(&self, wanted: impl Fn(&str) -> bool) {
        locked(&self.known).retain(|id, _| wanted(id));
    }
}

fn locked(known: &Known) -> std::sync::MutexGuard<'_, BTreeMap<String, Layer>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread, which sleeps until it is asked.
fn start(known: Arc<Known>) -> Sender<(String, PathBuf)> {
    let (sender, jobs) = channel();
    let started =
        std::thread::Builder::new().name("layers".to_owned()).spawn(move || measure_all(&known, &jobs));
    if let Err(error) = started {
        tracing::warn!(%error, "writable layers are not measured");
    }
    sender
}

fn measure_all(known: &Known, jobs: &Receiver<(String, PathBuf)>) {
    for (id, upper) in jobs {
        let begun = Instant::now();
        let measured = measure(&upper);
        let took = begun.elapsed();
        let mut known = locked(known);
        // Forgotten meanwhile: its container is gone.
        let Some(layer) = known.get_mut(&id) else { continue };
        layer.asked = false;
        layer.due = Some(begun + AGAIN_AFTER.max(took * REST));
        match measured {
            Ok(usage) => layer.usage = Some(usage),
            Err(error) => tracing::debug!(container = id, %error, "writable layer was not measured"),
        }
    }
}

/// Counts what is below a directory, each inode once. Follows no symlink. What is removed meanwhile does not count.
fn measure(upper: &Path) -> Result<LayerUsage, Errno> {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut count = Count::default();
    count.directory(open(CWD, upper)?, MAX_DEPTH)?;
    Ok(LayerUsage {
        at: i64::try_from(at).unwrap_or(i64::MAX),
        bytes: count.blocks.saturating_mul(BLOCK),
        inodes: count.inodes,
    })
}

#[derive(Debug, Default)]
struct Count {
    blocks: u64,
    inodes: u64,
    /// Those with several names.
    linked: BTreeSet<u64>,
}

impl Count {
    fn directory(&mut self, directory: OwnedFd, depth: usize) -> Result<(), Errno> {
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_directory && stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
                continue;
            }
            self.inodes += 1;
            self.blocks = self.blocks.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0));
            if is_directory && depth > 0 {
                match open(directory.as_fd(), name) {
                    Ok(below) => self.directory(below, depth - 1)?,
                    // Replaced or removed since it was looked at.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

fn open(at: impl AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn counts_each_inode_once_and_follows_nothing() {
        let upper = tempfile::tempdir().unwrap();
        let path = upper.path();
        fs::create_dir_all(path.join("a/b")).unwrap();
        fs::write(path.join("a/one"), vec![1; 100_000]).unwrap();
        fs::hard_link(path.join("a/one"), path.join("a/b/two")).unwrap();
        std::os::unix::fs::symlink("/usr", path.join("out")).unwrap();
        let usage = measure(path).unwrap();
        assert_eq!(usage.inodes, 4);
        assert!((100_000..200_000).contains(&usage.bytes), "{usage:?}");
        assert!(measure(&path.join("missing")).is_err());
        assert!(measure(&path.join("out")).is_err(), "the layer itself is no symlink");
    }

    #[test]
    fn deep_directories_end_the_count_and_not_the_daemon() {
        let upper = tempfile::tempdir().unwrap();
        let deep: PathBuf = (0..MAX_DEPTH + 50).map(|_| "d").collect();
        fs::create_dir_all(upper.path().join(deep)).unwrap();
        assert_eq!(measure(upper.path()).unwrap().inodes, u64::try_from(MAX_DEPTH).unwrap() + 1);
    }

    #[test]
    fn a_call_never_waits_and_the_next_one_knows() {
        let upper = tempfile::tempdir().unwrap();
        fs::write(upper.path().join("file"), "x").unwrap();
        let layers = Layers::default();
        assert_eq!(layers.of("c", upper.path()), None);
        let end = Instant::now() + Duration::from_secs(10);
        while layers.of("c", upper.path()).is_none() {
            assert!(Instant::now() < end, "never measured");
            std::thread::yield_now();
        }
        assert_eq!(layers.of("c", upper.path()).unwrap().inodes, 1);
        layers.retain(|_| false);
        assert!(locked(&layers.known).is_empty());
    }
}
