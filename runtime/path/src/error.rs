//! What can go wrong with a path, with the path in it.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// A path could not be used. Each message names the path as it was given, relative to its root.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The kernel refused a call.
    #[error("{doing} {path:?}: {errno}")]
    Call {
        /// The step, as a verb phrase ("open", "make directory").
        doing: &'static str,
        /// The path, as given, relative to the root.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The path names a device, pipe, socket or directory where only a regular file is read.
    #[error("{path:?} is not a regular file")]
    NotRegular {
        /// The path as given.
        path: PathBuf,
    },
    /// The file is longer than its reader accepts.
    #[error("{path:?} is longer than {cap} bytes")]
    TooLarge {
        /// The path as given.
        path: PathBuf,
        /// The limit in bytes.
        cap: usize,
    },
    /// The path has no last name: it is empty, the root, or ends in `..`.
    #[error("{path:?} has no last name")]
    NoName {
        /// The path as given.
        path: PathBuf,
    },
    /// More symlinks than the kernel itself would follow.
    #[error("{path:?} goes through more than {limit} symlinks")]
    TooManyLinks {
        /// The path as given.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// Somebody changes the tree as fast as we work on it.
    #[error("{path:?} kept changing while it was made")]
    Unstable {
        /// The path as given.
        path: PathBuf,
    },
    /// What is mounted on `/proc` is not a procfs, or not its root.
    #[error("/proc is not the root of a procfs")]
    NotProcfs,
}

impl PathError {
    /// The kernel's answer, where the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Call { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Makes the closure that gives an errno its step and path.
    pub(crate) fn call(doing: &'static str, path: &Path) -> impl FnOnce(Errno) -> Self + use<> {
        let path = path.to_owned();
        move |errno| Self::Call { doing, path, errno }
    }
}
