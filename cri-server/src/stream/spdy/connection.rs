//! One client's connection: streams that it opens go to the session, what the session writes goes to the client. Ends
//! with whichever ends first, and with a session that ends in order after all that it wrote has been sent.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::frame::{self, Control, HEAD, Head, NotSpdy};
use super::headers::{Deflater, Headers, Inflater};
use crate::stream::connection::Halves;
use crate::stream::hang_up::{HangUp, Passed};
use crate::stream::idle::Activity;
use crate::stream::transport::{CHUNK, Duplex, IN_QUEUE, OUT_QUEUE, Outgoing, Output};

/// How long a client may take to read the rest and to hang up once a session is over.
const LINGER: Duration = Duration::from_secs(10);

/// How long one of several connections may take none of what the client sends. Nothing of the others is read meanwhile:
/// the protocol's windows could hold one stream back alone, but no client of Kubernetes keeps them.
const STUCK: Duration = Duration::from_secs(30);

/// The number of all our pings: a server's are even.
const OUR_PING: u32 = 2;

/// A stream that a client opened.
#[derive(Debug)]
pub struct Stream {
    /// Its number.
    pub id: u32,
    headers: Headers,
    /// Its bytes.
    pub bytes: Duplex,
    /// Room for another one comes when this has been dropped.
    _room: OwnedSemaphorePermit,
}

impl Stream {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What a client's streams are.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// The most that may be open.
    pub most: usize,
    /// Each is a connection of its own: one that is stuck is broken off rather than keeping the others waiting.
    pub apart: bool,
}

/// Serves one client until it, or its session, is done. `socket` is its own, whatever carries the halves.
pub async fn serve<S>(
    (read, write): Halves,
    socket: OwnedFd,
    early: Bytes,
    kind: Kind,
    activity: &Activity,
    session: impl FnOnce(mpsc::Receiver<Stream>) -> S,
) -> io::Result<()>
where
    S: Future<Output = ()>,
{
    let (queue, outgoing) = mpsc::channel(OUT_QUEUE);
    let hang_up = HangUp::new(socket, queue.clone());
    let mut read = io::Cursor::new(early).chain(read);
    let (streams, opened) = mpsc::channel(IN_QUEUE);
    let last = AtomicU32::new(0);
    let writing = send(write, outgoing, activity);
    tokio::pin!(writing);
    {
        let reader = Reader {
            streams,
            queue,
            hang_up,
            room: Arc::new(Semaphore::new(kind.most)),
            open: HashMap::new(),
            kind,
            inflater: Inflater::default(),
            last: &last,
            activity,
        };
        let (reading, session) = (reader.run(&mut read), session(opened));
        tokio::pin!(reading, session);
        tokio::select! {
            result = &mut reading => return result,
            result = &mut writing => return result.map(drop),
            () = &mut session => {}
        }
    }
    // What the session wrote is in the queue, which nobody fills any more.
    let mut write = writing.await?;
    write.write_all(&frame::go_away(last.load(Ordering::Relaxed))).await?;
    write.shutdown().await?;
    // A close with bytes unread would make the kernel throw away what the client has not read yet.
    let drain = async {
        let mut rest = vec![0; CHUNK];
        while read.read(&mut rest).await? > 0 {}
        Ok(())
    };
    timeout(LINGER, drain).await.unwrap_or(Ok(()))
}

/// Sends what comes through the queue until nobody holds its other end.
async fn send<W: AsyncWrite + Unpin>(
    mut write: W,
    mut outgoing: mpsc::Receiver<Outgoing>,
    activity: &Activity,
) -> io::Result<W> {
    let mut deflater = Deflater::new().map_err(io::Error::other)?;
    while let Some(next) = outgoing.recv().await {
        match next {
            Outgoing::Data(stream, bytes) => {
                write.write_all(&frame::data(stream, false, bytes.len())).await?;
                write.write_all(&bytes).await?;
            }
            Outgoing::End(stream) => write.write_all(&frame::data(stream, true, 0)).await?,
            Outgoing::Reset(stream) => write.write_all(&frame::cancel(stream)).await?,
            Outgoing::Refuse(stream) => write.write_all(&frame::refuse(stream)).await?,
            Outgoing::Pong(id) => write.write_all(&frame::ping(id)).await?,
            Outgoing::Ping => {
                write.write_all(&frame::ping(OUR_PING)).await?;
                continue;
            }
            Outgoing::Accept(stream) => {
                let block = deflater.empty().map_err(io::Error::other)?;
                write.write_all(&frame::reply(stream, &block)).await?;
            }
        }
        activity.note();
    }
    Ok(write)
}

/// The receiving side of one stream.
#[derive(Debug)]
struct Open {
    input: mpsc::Sender<Bytes>,
    broken: CancellationToken,
}

struct Reader<'a> {
    streams: mpsc::Sender<Stream>,
    queue: mpsc::Sender<Outgoing>,
    hang_up: HangUp,
    room: Arc<Semaphore>,
    open: HashMap<u32, Open>,
    kind: Kind,
    inflater: Inflater,
    last: &'a AtomicU32,
    activity: &'a Activity,
}

impl Reader<'_> {
    /// Reads frames until the client hangs up or breaks the rules.
    async fn run(mut self, read: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        let mut body = Vec::new();
        loop {
            let mut head = [0; HEAD];
            if read.read(&mut head[..1]).await? == 0 {
                return Ok(());
            }
            read.read_exact(&mut head[1..]).await?;
            self.activity.note();
            match Head::parse(head).map_err(io::Error::other)? {
                Head::Data { stream, last, length } => {
                    if !self.data(read, stream, last, length).await? {
                        return Ok(());
                    }
                }
                Head::Control { kind, flags, length } => {
                    body.resize(length, 0);
                    read.read_exact(&mut body).await?;
                    let control = Control::parse(kind, flags, &body).map_err(io::Error::other)?;
                    self.control(control).await?;
                    body.shrink_to(CHUNK / 16);
                }
            }
        }
    }

    /// Hands the bytes of a data frame on, in pieces. False when the client is gone.
    async fn data(
        &mut self,
        read: &mut (impl AsyncRead + Unpin),
        stream: u32,
        last: bool,
        mut length: usize,
    ) -> io::Result<bool> {
        while length > 0 {
            let mut piece = vec![0; length.min(CHUNK)];
            read.read_exact(&mut piece).await?;
            length -= piece.len();
            self.activity.note();
            // For a stream that is over: nobody wants it.
            let Some(open) = self.open.get(&stream) else { continue };
            let patience = (self.kind.apart && self.others_are_open(stream)).then_some(STUCK);
            match self.hang_up.pass(&open.input, piece.into(), patience).await {
                Passed::On => {}
                Passed::Gone => return Ok(false),
                Passed::Stuck => {
                    open.broken.cancel();
                    self.open.remove(&stream);
                    self.send(Outgoing::Reset(stream)).await?;
                }
            }
        }
        if last {
            self.open.remove(&stream);
        }
        Ok(true)
    }

    fn others_are_open(&self, stream: u32) -> bool {
        self.open.iter().any(|(id, open)| *id != stream && !open.input.is_closed())
    }

    async fn control(&mut self, control: Control<'_>) -> io::Result<()> {
        match control {
            Control::Open { stream, last, headers } => {
                let headers = self.inflater.read(headers).map_err(io::Error::other)?;
                self.open(stream, last, headers).await
            }
            Control::Headers { stream, last, headers } => {
                self.inflater.read(headers).map_err(io::Error::other)?;
                if last {
                    self.open.remove(&stream);
                }
                Ok(())
            }
            Control::Reset(stream) => {
                if let Some(open) = self.open.remove(&stream) {
                    open.broken.cancel();
                }
                Ok(())
            }
            // Even numbers are answers to our own.
            Control::Ping(id) if id % 2 == 1 => self.send(Outgoing::Pong(id)).await,
            Control::Ping(_) | Control::GoAway | Control::Nothing => Ok(()),
        }
    }

    async fn open(&mut self, id: u32, last: bool, headers: Headers) -> io::Result<()> {
        // Odd for a client's, and each higher than the one before (section 2.3.2).
        if id.is_multiple_of(2) || id <= self.last.load(Ordering::Relaxed) {
            return Err(io::Error::other(NotSpdy("a stream's number is not the next one")));
        }
        self.last.store(id, Ordering::Relaxed);
        if self.open.len() >= self.kind.most {
            self.open.retain(|_, open| !open.input.is_closed());
        }
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            return self.send(Outgoing::Refuse(id)).await;
        };
        let (sender, input) = mpsc::channel(IN_QUEUE);
        let broken = CancellationToken::new();
        if !last {
            self.open.insert(id, Open { input: sender, broken: broken.clone() });
        }
        self.send(Outgoing::Accept(id)).await?;
        let output = Output::new(id, self.queue.clone());
        let stream = Stream { id, headers, bytes: Duplex { input, output, broken }, _room: room };
        // A session that takes no more streams drops them.
        let _ = self.streams.send(stream).await;
        Ok(())
    }

    async fn send(&self, message: Outgoing) -> io::Result<()> {
        self.queue.send(message).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::super::headers::tests::Client;
    use super::*;

    fn open(client: &mut Client, id: u32) -> Vec<u8> {
        let block = client.block(&[("streamtype", "data")]);
        let mut frame = vec![0x80, 3, 0, 1, 0, 0, 0, u8::try_from(10 + block.len()).unwrap()];
        frame.extend_from_slice(&id.to_be_bytes());
        frame.extend_from_slice(&[0; 6]);
        frame.extend_from_slice(&block);
        frame
    }

    /// Reads frames until a control frame of this kind comes for this stream.
    async fn until(read: &mut (impl AsyncRead + Unpin), kind: u16, stream: u32) {
        loop {
            let mut head = [0; HEAD];
            read.read_exact(&mut head).await.unwrap();
            let (Head::Data { length, .. } | Head::Control { length, .. }) = Head::parse(head).unwrap();
            let mut body = vec![0; length];
            read.read_exact(&mut body).await.unwrap();
            if matches!(Head::parse(head), Ok(Head::Control { kind: found, .. }) if found == kind)
                && body[..4] == stream.to_be_bytes()
            {
                return;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_stuck_is_broken_off_and_the_others_go_on() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (ours, _) = listener.accept().await.unwrap();
        let (said, hears) = tokio::sync::oneshot::channel();
        let server = tokio::spawn(async move {
            let kind = Kind { most: 4, apart: true };
            let activity = Activity::default();
            let ours = crate::stream::connection::Connection::Plain(ours);
            let socket = ours.socket().unwrap();
            serve(ours.split(), socket, Bytes::new(), kind, &activity, async |mut streams| {
                let stuck = streams.recv().await.unwrap();
                let mut other = streams.recv().await.unwrap();
                said.send(other.bytes.input.recv().await).unwrap();
                assert!(stuck.bytes.broken.is_cancelled() && !other.bytes.broken.is_cancelled());
            })
            .await
        });
        let (mut read, mut write) = client.into_split();
        let mut headers = Client::new();
        for id in [1, 3] {
            write.write_all(&open(&mut headers, id)).await.unwrap();
        }
        let flood = tokio::spawn(async move {
            let chunk = vec![0; CHUNK];
            for _ in 0..=IN_QUEUE {
                write.write_all(&frame::data(1, false, chunk.len())).await.unwrap();
                write.write_all(&chunk).await.unwrap();
            }
            write.write_all(&frame::data(3, false, 5)).await.unwrap();
            write.write_all(b"other").await.unwrap();
            write
        });
        until(&mut read, 3, 1).await;
        assert_eq!(hears.await.unwrap().unwrap(), "other");
        drop((flood.await.unwrap(), read));
        server.await.unwrap().unwrap();
    }
}
