//! One message with its descriptors over `SOCK_SEQPACKET`. Works on blocking and non-blocking sockets alike: the
//! kernel's EAGAIN is handed up. Knows nothing of what a message means.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};

use crate::protocol::{MAX_FDS, MAX_FRAME};

const CONTROL: usize = rustix::cmsg_space!(ScmRights(MAX_FDS));

/// Sends one message whole. Refuses an empty one, one above `protocol::MAX_FRAME`, and more than `MAX_FDS`
/// descriptors (`InvalidInput`). A peer that has gone is EPIPE, never SIGPIPE.
pub fn send(socket: BorrowedFd<'_>, frame: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if frame.is_empty() || frame.len() > MAX_FRAME || fds.len() > MAX_FDS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a message of {} bytes and {} descriptors cannot be sent", frame.len(), fds.len()),
        ));
    }
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("descriptors do not fit the control buffer"));
    }
    let sent = retry_on_intr(|| sendmsg(socket, &[IoSlice::new(frame)], &mut control, SendFlags::NOSIGNAL))?;
    // unix(7): a SEQPACKET message goes whole or not at all.
    if sent == frame.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
}

/// Receives one message: `None` at the end of the connection. A message whose bytes or descriptors were truncated is
/// an error (`InvalidData`), and what came with it is closed. Descriptors are close-on-exec.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    // Its length first: a buffer for the largest frame would cost each shim 16 KiB for ever.
    let look = RecvFlags::PEEK | RecvFlags::TRUNC;
    let (_, length) = retry_on_intr(|| recv(socket, &mut [0_u8; 0], look))?;
    let mut space = [MaybeUninit::uninit(); CONTROL];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut frame = vec![0; length.min(MAX_FRAME)];
    let got = retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut frame)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "truncated message"));
    }
    frame.truncate(got.bytes);
    // An empty message reads as the end (unix(7)): nobody of ours sends one.
    Ok(if frame.is_empty() { None } else { Some((frame, fds)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{fstat, memfd_create};
    use rustix::io::{FdFlags, fcntl_getfd};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::os::fd::AsFd;

    fn pair(flags: SocketFlags) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | flags, None).unwrap()
    }

    #[test]
    fn carries_bytes_and_descriptors() {
        let (a, b) = pair(SocketFlags::empty());
        let file = memfd_create("cove-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        for (bytes, count) in [(1, 0), (MAX_FRAME, 1), (7, MAX_FDS)] {
            let frame: Vec<u8> = (0..bytes).map(|i| u8::try_from(i % 251).unwrap()).collect();
            send(a.as_fd(), &frame, &vec![file.as_fd(); count]).unwrap();
            let (got, fds) = receive(b.as_fd()).unwrap().unwrap();
            assert_eq!(got, frame);
            assert_eq!(fds.len(), count);
            for fd in fds {
                assert_eq!(fstat(&fd).unwrap().st_ino, fstat(&file).unwrap().st_ino);
                assert!(fcntl_getfd(&fd).unwrap().contains(FdFlags::CLOEXEC));
            }
        }
    }

    #[test]
    fn refuses_what_cannot_be_sent() {
        let (a, b) = pair(SocketFlags::NONBLOCK);
        for (bytes, fds) in [(0, 0), (MAX_FRAME + 1, 0), (1, MAX_FDS + 1)] {
            let refused = send(a.as_fd(), &vec![0; bytes], &vec![b.as_fd(); fds]).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(receive(b.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(b);
        assert_eq!(send(a.as_fd(), b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(receive(a.as_fd()).unwrap().is_none());
    }

    #[test]
    fn truncation_is_an_error() {
        let (a, b) = pair(SocketFlags::empty());
        rustix::net::send(&a, &vec![0; MAX_FRAME + 1], SendFlags::empty()).unwrap();
        assert_eq!(receive(b.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidData);

        let many = vec![b.as_fd(); MAX_FDS * 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS * 4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        sendmsg(&a, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        assert_eq!(receive(b.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
