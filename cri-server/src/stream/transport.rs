//! What the sessions see of a client, whichever protocol it speaks: channels with bytes in and bytes out.

use std::sync::Arc;

use hyper::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Messages that may wait for a client to read, each of at most [`CHUNK`] bytes.
pub const OUT_QUEUE: usize = 8;
/// Messages that may wait on one channel for whoever takes what the client sends.
pub const IN_QUEUE: usize = 8;
/// The most bytes of one message: what a pipe holds (pipe(7)).
pub const CHUNK: usize = 64 * 1024;

/// Bytes of a client that may wait on all its channels together, for whoever takes them. What it sends beyond waits in
/// the kernel, which tells the client so (TCP's window).
pub const WINDOW: u32 = 1024 * 1024;

/// What a client sends on one channel. Its end is the channel's.
pub type Input = mpsc::Receiver<Bytes>;

/// The client is gone.
#[derive(Debug, thiserror::Error)]
#[error("the client is gone")]
pub struct Gone;

/// What goes to a client.
#[derive(Debug)]
pub enum Outgoing {
    /// Bytes on a channel.
    Data(u32, Bytes),
    /// Nothing more comes on a channel.
    End(u32),
    /// A channel is broken off.
    Reset(u32),
    /// A channel that the client opened is accepted (SPDY).
    Accept(u32),
    /// A channel that the client opened is refused (SPDY).
    Refuse(u32),
    /// The answer to a ping (SPDY).
    Pong(u32),
    /// Asks whether somebody is there. The answer does not matter: a socket that was left answers for itself.
    Ping,
}

/// The room that is left of [`WINDOW`].
#[derive(Debug)]
pub struct Window(Arc<Semaphore>);

impl Default for Window {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(WINDOW as usize)))
    }
}

impl Window {
    /// Waits for room for bytes, which they hold until they are dropped.
    pub async fn hold(&self, bytes: Bytes) -> Bytes {
        // What is larger than the window alone is all that waits.
        let room = u32::try_from(bytes.len()).unwrap_or(WINDOW).min(WINDOW);
        match Arc::clone(&self.0).acquire_many_owned(room).await {
            Ok(room) => Bytes::from_owner(Held { bytes, _room: room }),
            // Nobody closes it.
            Err(_) => bytes,
        }
    }
}

/// Bytes and their room.
struct Held {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// One channel to a client. Waits where the client does not read.
#[derive(Debug, Clone)]
pub struct Output {
    channel: u32,
    queue: mpsc::Sender<Outgoing>,
}

impl Output {
    /// The channel of this number.
    pub fn new(channel: u32, queue: mpsc::Sender<Outgoing>) -> Self {
        Self { channel, queue }
    }

    /// Sends bytes.
    pub async fn write(&self, bytes: Bytes) -> Result<(), Gone> {
        self.queue.send(Outgoing::Data(self.channel, bytes)).await.map_err(|_| Gone)
    }

    /// Nothing more comes.
    pub async fn end(&self) -> Result<(), Gone> {
        self.queue.send(Outgoing::End(self.channel)).await.map_err(|_| Gone)
    }

    /// Breaks the channel off.
    pub async fn reset(&self) -> Result<(), Gone> {
        self.queue.send(Outgoing::Reset(self.channel)).await.map_err(|_| Gone)
    }
}

/// Both directions of one channel.
#[derive(Debug)]
pub struct Duplex {
    /// From the client.
    pub input: Input,
    /// To the client.
    pub output: Output,
    /// The client broke it off.
    pub broken: CancellationToken,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_whatever_its_size() {
        let window = Window::default();
        let chunk = || Bytes::from(vec![7; CHUNK]);
        let mut held = Vec::new();
        for _ in 0..WINDOW as usize / CHUNK {
            held.push(window.hold(chunk()).await);
        }
        assert!(tokio::time::timeout(Duration::from_secs(1), window.hold(chunk())).await.is_err());
        // A part of it keeps the room of the whole.
        let part = held.pop().unwrap().slice(..1);
        assert!(tokio::time::timeout(Duration::from_secs(1), window.hold(chunk())).await.is_err());
        drop(part);
        assert_eq!(window.hold(chunk()).await, chunk());
        drop(held);
        let large = window.hold(Bytes::from(vec![1; 2 * WINDOW as usize])).await;
        assert_eq!(large.len(), 2 * WINDOW as usize);
        assert!(
            tokio::time::timeout(Duration::from_secs(1), window.hold(Bytes::from_static(b"x")))
                .await
                .is_err()
        );
    }
}
