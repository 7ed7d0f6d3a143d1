//! The control connections: who may ask, and messages that wait until their reader takes them. A connection that
//! does not read is never waited for: its requests are not read either until it does.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::sockopt::socket_peercred;
use rustix::net::{SocketFlags, accept_with};

use super::watch::{EventFlags, Watched};
use crate::protocol::{MAX_FRAME, Message};
use crate::socket;
use crate::wire::Wire;

/// Messages that may wait before the connection's requests are no longer read.
const FULL: usize = 64;

#[derive(Debug)]
struct Waiting {
    frame: Vec<u8>,
    fd: Option<OwnedFd>,
}

/// One connection.
#[derive(Debug)]
pub struct Peer {
    pub(super) socket: Watched,
    /// Of the daemon at the other end; `None` before its Hello.
    pub generation: Option<u64>,
    queue: VecDeque<Waiting>,
    /// To be closed once all has been sent.
    pub leaving: bool,
    /// What the epoll was told.
    pub watched: EventFlags,
}

impl Peer {
    /// Takes a waiting connection, or none. One that does not come from our own user is closed.
    pub fn accept(listener: &OwnedFd) -> io::Result<Option<Self>> {
        let socket = match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if socket_peercred(&socket)?.uid != rustix::process::geteuid() {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        Ok(Some(Self {
            socket: socket.into(),
            generation: None,
            queue: VecDeque::new(),
            leaving: false,
            watched: EventFlags::IN,
        }))
    }

    /// The next request's bytes and descriptors; `None` at the end.
    pub fn receive(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        socket::receive(self.socket.as_fd())
    }

    /// Sends, or queues what cannot be sent now. An error means that nobody is there.
    pub fn send(&mut self, message: &Message, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let frame = message.to_bytes();
        debug_assert!(frame.len() <= MAX_FRAME, "texts and lists are bounded where they come in");
        if self.queue.is_empty() {
            match socket::send(self.socket.as_fd(), &frame, fd.as_slice()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
        let fd = fd.map(|fd| fd.try_clone_to_owned()).transpose()?;
        self.queue.push_back(Waiting { frame, fd });
        Ok(())
    }

    /// Sends what waits, as far as it goes.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(Waiting { frame, fd }) = self.queue.front() {
            let fd = fd.as_ref().map(AsFd::as_fd);
            match socket::send(self.socket.as_fd(), frame, fd.as_slice()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                result => result?,
            }
            self.queue.pop_front();
        }
        Ok(())
    }

    /// Nothing waits.
    pub fn is_flushed(&self) -> bool {
        self.queue.is_empty()
    }

    /// A further request may be read.
    pub fn listens(&self) -> bool {
        !self.leaving && self.queue.len() < FULL
    }

    /// What to watch for now.
    pub fn wants(&self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.listens());
        flags.set(EventFlags::OUT, !self.queue.is_empty());
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Answer, Failure, Reply};
    use rustix::net::{AddressFamily, SocketType, socketpair};

    #[test]
    fn a_reader_that_does_not_read_is_not_heard() {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, daemon) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let mut peer = Peer {
            socket: socket.into(),
            generation: None,
            queue: VecDeque::new(),
            leaving: false,
            watched: EventFlags::IN,
        };
        let message = |seq| {
            let failure = Failure { step: "x".into(), errno: 0, detail: "y".repeat(4000) };
            Message::Reply(Answer { seq, reply: Reply::Failed(failure) })
        };
        let mut sent = 0;
        while peer.listens() {
            peer.send(&message(sent), Some(daemon.as_fd())).unwrap();
            sent += 1;
        }
        assert_eq!(peer.wants(), EventFlags::OUT);
        // All of it arrives, in order, with its descriptors.
        for seq in 0..sent {
            let (frame, fds) = loop {
                match socket::receive(daemon.as_fd()) {
                    Ok(got) => break got.unwrap(),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
                peer.flush().unwrap();
            };
            assert_eq!(Message::from_bytes(&frame).unwrap(), message(seq));
            assert_eq!(fds.len(), 1);
        }
        peer.flush().unwrap();
        assert_eq!(peer.wants(), EventFlags::IN);
        drop(daemon);
        assert!(peer.send(&message(0), None).is_err());
    }
}
