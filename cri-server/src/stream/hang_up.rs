//! Notices that a client has gone while nobody reads from it, because what it sent has not been taken yet.

use std::os::fd::OwnedFd;
use std::time::Duration;

use hyper::body::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::transport::{Outgoing, Window};

/// How often a client is looked at that is not read from. Its end has to be noticed, not at once.
const LOOK: Duration = Duration::from_secs(2);

/// What became of bytes that were handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// They were taken.
    On,
    /// The client went away meanwhile.
    Gone,
    /// Nobody took them for too long.
    Stuck,
}

/// A second descriptor of a client's socket, and the way to it.
#[derive(Debug)]
pub struct HangUp {
    socket: OwnedFd,
    queue: mpsc::Sender<Outgoing>,
    window: Window,
}

impl HangUp {
    /// Of this client.
    pub fn new(socket: OwnedFd, queue: mpsc::Sender<Outgoing>) -> Self {
        Self { socket, queue, window: Window::default() }
    }

    /// Hands bytes on. A receiver that is gone does not want them. `patience`: how long it may take none, if there is an
    /// end to it.
    pub async fn pass(&self, to: &mpsc::Sender<Bytes>, bytes: Bytes, patience: Option<Duration>) -> Passed {
        let began = Instant::now();
        let hand_on = async {
            // A session that ends while others of its client's bytes wait must not be waited for.
            let held = tokio::select! {
                held = self.window.hold(bytes) => held,
                () = to.closed() => return,
            };
            let _ = to.send(held).await;
        };
        tokio::pin!(hand_on);
        loop {
            match timeout(LOOK, &mut hand_on).await {
                Ok(()) => return Passed::On,
                Err(_) if self.is_gone() => return Passed::Gone,
                Err(_) if patience.is_some_and(|patience| began.elapsed() >= patience) => {
                    return Passed::Stuck;
                }
                Err(_) => {
                    // The end of a client that had more to send waits behind what we do not read. What it is sent is
                    // answered by its kernel with a reset. A full queue is being sent anyway.
                    let _ = self.queue.try_send(Outgoing::Ping);
                }
            }
        }
    }

    /// No client closes one direction alone: all protocols end their channels in messages.
    fn is_gone(&self) -> bool {
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        poll(&mut fds, Some(&NOW)).is_ok_and(|ready| ready > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_client_that_goes_is_noticed_though_its_bytes_wait() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (ours, _) = listener.accept().await.unwrap();
        let (queue, mut outgoing) = mpsc::channel(1);
        let hang_up = HangUp::new(ours.as_fd().try_clone_to_owned().unwrap(), queue);
        let (sender, mut receiver) = mpsc::channel(1);
        let pass = |text, patience| hang_up.pass(&sender, Bytes::from_static(text), patience);
        assert_eq!(pass(b"a", None).await, Passed::On);
        assert!(!hang_up.is_gone());
        assert_eq!(pass(b"b", Some(LOOK)).await, Passed::Stuck);
        assert!(timeout(2 * LOOK, pass(b"b", None)).await.is_err());
        assert!(matches!(outgoing.recv().await, Some(Outgoing::Ping)));
        drop(client);
        assert_eq!(pass(b"b", None).await, Passed::Gone);
        assert_eq!(receiver.recv().await.unwrap(), "a");
        drop(receiver);
        assert_eq!(pass(b"c", None).await, Passed::On);
    }
}
