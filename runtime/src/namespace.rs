//! Network namespaces by name: pin, unpin, and a look inside.
//! STUB of the interface; its owner replaces it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// Makes `directory` and makes it a shared mount point of its own, as `ip netns` does, so that pins made later are
/// seen in every mount namespace that copies the host's. Idempotent.
pub fn make_pin_directory(directory: &Path) -> io::Result<()> {
    let _ = directory;
    todo!()
}

/// Keeps a namespace alive under a name: an empty file with the namespace mounted over it. Idempotent.
pub fn pin(namespace: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let _ = (namespace, path);
    todo!()
}

/// Undoes `pin`: detaches the mount and removes the file. What is not there is done already.
pub fn unpin(path: &Path) -> io::Result<()> {
    let _ = path;
    todo!()
}

/// Opens a pinned namespace; `None` where nothing is pinned (the file is missing or plain).
pub fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    let _ = path;
    todo!()
}

/// Runs `look` on a thread of its own that has entered the network namespace.
pub fn in_netns<T: Send>(netns: BorrowedFd<'_>, look: impl FnOnce() -> T + Send) -> io::Result<T> {
    let _ = netns;
    Ok(look())
}
