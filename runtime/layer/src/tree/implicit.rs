//! The directories that no entry has named so far.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use cove_path::Root;
use rustix::fs::{OFlags, fstat};

use crate::{LayerError, Limits};

type Inode = (u64, u64);

#[derive(Debug, Default)]
pub(crate) struct Implicit {
    paths: HashMap<Inode, PathBuf>,
    bytes: usize,
}

pub(crate) fn inode(fd: impl AsFd) -> Result<Inode, rustix::io::Errno> {
    fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

impl Implicit {
    /// Notes a directory, by its path without symlinks.
    pub(crate) fn add(&mut self, inode: Inode, path: &Path, limits: &Limits) -> Result<(), LayerError> {
        let path = path.strip_prefix("/").unwrap_or(path);
        self.bytes = self.bytes.saturating_add(path.as_os_str().len());
        if self.bytes > limits.implicit {
            let max = crate::stream::as_u64(limits.implicit);
            return Err(LayerError::Limit { limit: "implicit", max });
        }
        self.paths.insert(inode, path.to_owned());
        Ok(())
    }

    /// An entry names this directory.
    pub(crate) fn named(&mut self, inode: Inode) {
        if let Some(path) = self.paths.remove(&inode) {
            self.bytes = self.bytes.saturating_sub(path.as_os_str().len());
        }
    }

    /// Those that are still there, sorted: a later entry may have replaced one, or what it lay in.
    pub(crate) fn finish(self, root: &Root) -> Vec<PathBuf> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let mut left: Vec<_> = self
            .paths
            .into_iter()
            .filter(|(noted, path)| root.resolve(path, flags).is_ok_and(|fd| inode(&fd) == Ok(*noted)))
            .map(|(_, path)| path)
            .collect();
        left.sort();
        left
    }
}
