//! mount_setattr(2), kernel 5.12.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Changes to a mount's attributes.
#[derive(Debug, Clone, Copy, Default)]
pub struct MountAttr<'fd> {
    /// `libc::MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// Bits to clear.
    pub clear: u64,
    /// `libc::MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, or 0 to leave it.
    pub propagation: u64,
    /// The user namespace whose mapping the mount takes (with `MOUNT_ATTR_IDMAP` in `set`).
    pub userns: Option<BorrowedFd<'fd>>,
}

/// Changes the mount that `mount` stands for, and with `recursive` every mount below it, or none of them.
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: MountAttr<'_>) -> io::Result<()> {
    let raw = libc::mount_attr {
        attr_set: attr.set,
        attr_clr: attr.clear,
        propagation: attr.propagation,
        userns_fd: match attr.userns {
            Some(fd) => u64::try_from(fd.as_raw_fd()).map_err(io::Error::other)?,
            None => 0,
        },
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `raw` is a mount_attr of the size given, and both outlive the call,
    // which only reads them.
    super::check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const raw,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}
