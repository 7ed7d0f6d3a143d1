//! One connection to a shim: frames go out, messages come in. Knows nothing of what they mean.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cove_runtime::protocol::{Answer, Frame, Message, Reply, Request};
use cove_runtime::socket;
use cove_runtime::wire::Wire;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

/// A reply and the descriptors that came with it.
pub type Answered = (Reply, Vec<OwnedFd>);

/// A request that was sent. Dropped, nobody waits for its reply any more.
#[derive(Debug)]
pub struct Sent<'a> {
    connection: &'a Connection,
    seq: u32,
    reply: oneshot::Receiver<Answered>,
}

impl Sent<'_> {
    /// Waits for the reply; none when the connection ends before.
    pub async fn reply(mut self) -> Option<Answered> {
        (&mut self.reply).await.ok()
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        self.connection.pending().remove(&self.seq);
    }
}

/// A connected control socket.
#[derive(Debug)]
pub struct Connection {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU32,
    pending: Mutex<HashMap<u32, oneshot::Sender<Answered>>>,
}

impl Connection {
    /// Connects to the socket in `directory`. Does not wait: a shim that listens takes it when it can.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        at_socket(directory, |address| rustix::net::connect(&socket, address))?;
        Ok(Self {
            socket: crate::readiness::watch(socket)?,
            next: AtomicU32::new(1),
            pending: Mutex::default(),
        })
    }

    /// Sends a request.
    pub async fn send(&self, request: Request, fds: &[BorrowedFd<'_>]) -> io::Result<Sent<'_>> {
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        if !matches!(request, Request::Acknowledge(_)) {
            self.pending().insert(seq, sender);
        }
        // Before it is written: whoever gives up during that leaves nothing either.
        let sent = Sent { connection: self, seq, reply };
        let frame = Frame { seq, request }.to_bytes();
        self.write(&frame, fds).await?;
        Ok(sent)
    }

    async fn write(&self, frame: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut ready = self.socket.writable().await?;
            match ready.try_io(|socket| socket::send(socket.as_fd(), frame, fds)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// The next message that is no reply; none at the end. Replies are handed to those who wait for them. Messages
    /// that are not of the protocol end the connection.
    pub async fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let received = match ready.try_io(|socket| socket::receive(socket.as_fd())) {
                Ok(result) => result?,
                Err(_would_block) => continue,
            };
            let Some((bytes, fds)) = received else { return Ok(None) };
            match Message::from_bytes(&bytes).map_err(io::Error::other)? {
                Message::Reply(Answer { seq, reply }) => {
                    if let Some(waiting) = self.pending().remove(&seq) {
                        // Nobody waits any more when the request's deadline is over: the reply is of no use then.
                        let _ = waiting.send((reply, fds));
                    }
                }
                message => return Ok(Some((message, fds))),
            }
        }
    }

    /// The connection is over: everyone who waits for a reply is told.
    pub fn close(&self) {
        self.pending().clear();
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<u32, oneshot::Sender<Answered>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listening socket in `directory`, which its shim inherits as stdin. Connections can be made at once.
pub fn listen(directory: &Path) -> io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    at_socket(directory, |address| rustix::net::bind(&socket, address))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Connections that may wait to be accepted: one daemon's, and the next one's after a crash.
const BACKLOG: i32 = 4;

/// Calls `with` with the address of the socket in `directory`, by descriptor: a path of a deep state directory would
/// not fit the 108 bytes of an address (unix(7)).
fn at_socket(
    directory: &Path,
    with: impl FnOnce(&SocketAddrUnix) -> rustix::io::Result<()>,
) -> io::Result<()> {
    let directory = File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), super::SOCKET);
    Ok(with(&SocketAddrUnix::new(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cove_runtime::protocol::{Event, ExitStatus, Fact};
    use std::sync::Arc;

    #[tokio::test]
    async fn replies_find_their_requests_and_facts_come_up_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let listener = listen(directory.path()).unwrap();
        let connection = Arc::new(Connection::open(directory.path()).unwrap());
        let shim = rustix::net::accept(&listener).unwrap();
        let first = connection.send(Request::Shutdown, &[]).await.unwrap();
        let second = connection.send(Request::Shutdown, &[shim.as_fd()]).await.unwrap();
        let mut seqs = Vec::new();
        for fds_sent in [0, 1] {
            let (bytes, fds) = socket::receive(shim.as_fd()).unwrap().unwrap();
            assert_eq!(fds.len(), fds_sent);
            seqs.push(Frame::from_bytes(&bytes).unwrap().seq);
        }
        let fact = Fact::InitExited(ExitStatus { code: 0, signal: 0 });
        let event = Message::Fact(Event { serial: 7, at: 1, fact });
        let reply = |seq, reply| Message::Reply(Answer { seq, reply }).to_bytes();
        for message in [reply(seqs[1], Reply::Sandbox), event.to_bytes(), reply(seqs[0], Reply::Done)] {
            socket::send(shim.as_fd(), &message, &[]).unwrap();
        }
        let (message, _) = connection.receive().await.unwrap().unwrap();
        assert_eq!(message, event);
        drop(shim);
        assert!(connection.receive().await.unwrap().is_none());
        assert_eq!(first.reply().await.unwrap().0, Reply::Done);
        assert_eq!(second.reply().await.unwrap().0, Reply::Sandbox);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let _listener = listen(directory.path()).unwrap();
        let connection = Connection::open(directory.path()).unwrap();
        let asked = async { connection.send(Request::Shutdown, &[]).await.unwrap().reply().await };
        let limit = std::time::Duration::from_millis(10);
        assert!(tokio::time::timeout(limit, asked).await.is_err());
        assert!(connection.pending().is_empty());
    }

    #[tokio::test]
    async fn the_end_tells_everyone_who_waits() {
        let directory = tempfile::tempdir().unwrap();
        let listener = listen(directory.path()).unwrap();
        let connection = Connection::open(directory.path()).unwrap();
        let waiting = connection.send(Request::Shutdown, &[]).await.unwrap();
        drop(listener);
        // A listener that is closed resets what it has not accepted.
        assert!(!matches!(connection.receive().await, Ok(Some(_))));
        connection.close();
        assert!(waiting.reply().await.is_none());
    }
}
