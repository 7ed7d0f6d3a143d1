//! One message with its descriptors over `SOCK_SEQPACKET`. Works on blocking and non-blocking sockets alike: the
//! kernel's EAGAIN is handed up.
//! STUB of the interface; its owner replaces it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Sends one message whole. Refuses an empty one, one above `protocol::MAX_FRAME`, and more than `MAX_FDS`.
pub fn send(socket: BorrowedFd<'_>, frame: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let _ = (socket, frame, fds);
    todo!()
}

/// Receives one message: `None` at the end of the connection. A truncated message is an error. Descriptors are
/// close-on-exec.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let _ = socket;
    todo!()
}
