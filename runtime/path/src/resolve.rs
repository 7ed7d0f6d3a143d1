//! The one call to openat2(2), with its retry.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use cove_guard::Guard;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::PathError;

/// openat2(2) answers EAGAIN when a rename or mount anywhere on the machine raced with a `..`; the number is what
/// runc retries too. A walk that fails this often is being raced on purpose.
const TRIES: u32 = 128;

/// As the container sees it: `..` and symlinks stop at the root, no jump through a magic link.
pub(crate) const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Our own tree: whoever put a symlink or a mount there was not us.
pub(crate) const OURS: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// Opens a directory of the host, from which everything else is resolved; close-on-exec is added.
pub(crate) fn directory(path: &Path, flags: OFlags) -> Result<OwnedFd, PathError> {
    openat(CWD, path, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(PathError::call("open directory", path))
}

/// Opens `path` below `dir` under the rules of `how`; close-on-exec is added.
pub(crate) fn open(
    dir: impl AsFd,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    how: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let (path, how) = match how.contains(ResolveFlags::IN_ROOT) && !Guard::InRoot.holds() {
        false => (path, how),
        true => (anywhere(path), ResolveFlags::empty()),
    };
    let mut tries = 0;
    loop {
        match openat2(dir.as_fd(), path, flags | OFlags::CLOEXEC, mode, how) {
            Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

/// A path below a directory, wherever its symlinks lead: without [`Guard::InRoot`].
pub(crate) fn anywhere(path: &Path) -> &Path {
    let below = path.strip_prefix("/").unwrap_or(path);
    if below.as_os_str().is_empty() { Path::new(".") } else { below }
}
