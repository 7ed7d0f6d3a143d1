//! Descriptors whose readiness the reactor tells: sockets of shims, pidfds, pipes of commands.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Has the reactor watch `fd`, which must not block.
#[expect(
    deprecated,
    reason = "deprecated for types that could close or change their descriptor behind the reactor's back; an OwnedFd \
              cannot, and the successor is an unsafe function, which this crate forbids"
)]
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}
