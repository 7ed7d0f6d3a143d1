//! A target with a canary beside it, and a picture of a tree to compare.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use cove_layer::{Algorithm, Compression, Digest, LayerError, Limits, Unpacked, unpack};
use nix::sched::{CloneFlags, unshare};

/// All that an unpack could change of one file.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct Facts {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) device: u64,
    pub(crate) links: u64,
    pub(crate) mtime: (i64, i64),
    /// A link's target, or the digest of a file's content: short enough to print.
    pub(crate) content: String,
}

pub(crate) type Picture = BTreeMap<PathBuf, Facts>;

/// Everything below `root`, by its relative path.
pub(crate) fn picture(root: &Path) -> Picture {
    let mut found = Picture::new();
    let mut todo = vec![root.to_owned()];
    while let Some(at) = todo.pop() {
        let metadata = fs::symlink_metadata(&at).unwrap();
        let kind = metadata.file_type();
        let content = if kind.is_symlink() {
            fs::read_link(&at).unwrap().to_str().unwrap().to_owned()
        } else if kind.is_file() {
            Digest::of(Algorithm::Sha256, &fs::read(&at).unwrap()).to_string()
        } else {
            String::new()
        };
        if kind.is_dir() {
            todo.extend(fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path()));
        }
        let facts = Facts {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            device: metadata.rdev(),
            links: if kind.is_dir() { 0 } else { metadata.nlink() },
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            content,
        };
        found.insert(at.strip_prefix(root).unwrap().to_owned(), facts);
    }
    found
}

/// The canary as an absolute name.
pub(crate) const CANARY: &str = "/canary";

/// Works on a thread whose root is `root`: a fault in what is tested then harms a temporary directory, never the machine
/// that the tests run on.
fn confined<T: Send>(root: &Path, work: impl FnOnce() -> T + Send) -> T {
    let confine = || {
        unshare(CloneFlags::CLONE_FS).unwrap();
        rustix::process::chroot(root).unwrap();
        rustix::process::chdir("/").unwrap();
        assert!(Path::new(CANARY).exists() && !Path::new("/etc").exists(), "not confined");
        work()
    };
    std::thread::scope(|scope| scope.spawn(confine).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A directory to unpack in, below one that stands for the host.
pub(crate) struct Place {
    host: tempfile::TempDir,
    before: Picture,
}

impl Place {
    pub(crate) fn new() -> Self {
        // In memory where that is possible: these tests make many small files.
        let host = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let canary = host.path().join("canary");
        fs::create_dir_all(canary.join("dir")).unwrap();
        fs::write(canary.join("file"), "host").unwrap();
        symlink("file", canary.join("link")).unwrap();
        fs::create_dir(host.path().join("target")).unwrap();
        let before = picture(&canary);
        Self { host, before }
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.host.path().join("target")
    }

    pub(crate) fn unpack(&self, archive: &[u8]) -> Result<Unpacked, LayerError> {
        self.unpack_within(archive, &Limits::default())
    }

    pub(crate) fn unpack_within(&self, archive: &[u8], limits: &Limits) -> Result<Unpacked, LayerError> {
        self.unpack_from(archive, Compression::Detect, limits)
    }

    pub(crate) fn unpack_from(
        &self,
        source: impl Read + Send,
        compression: Compression,
        limits: &Limits,
    ) -> Result<Unpacked, LayerError> {
        confined(self.host.path(), || unpack(source, compression, Path::new("/target"), None, limits))
    }

    /// Keeps in `headers` what is left of the archive.
    pub(crate) fn unpack_keeping(&self, archive: &[u8], headers: File) -> Result<Unpacked, LayerError> {
        let (target, limits) = (Path::new("/target"), Limits::default());
        confined(self.host.path(), || unpack(archive, Compression::Detect, target, Some(headers), &limits))
    }

    /// Nothing beside the target was made, changed or removed.
    pub(crate) fn assert_canary(&self, case: &str) {
        assert_eq!(picture(&self.host.path().join("canary")), self.before, "{case}: the canary changed");
        let mut names: Vec<_> =
            fs::read_dir(self.host.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["canary", "target"], "{case}: something was made beside the target");
    }
}
