//! What the sessions see of a client, whichever protocol it speaks: channels with bytes in and bytes out.

use hyper::body::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Messages that may wait for a client to read, each of at most [`CHUNK`] bytes.
pub const OUT_QUEUE: usize = 8;
/// Messages that may wait on one channel for whoever takes what the client sends.
pub const IN_QUEUE: usize = 8;
/// The most bytes of one message: what a pipe holds (pipe(7)).
pub const CHUNK: usize = 64 * 1024;

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
