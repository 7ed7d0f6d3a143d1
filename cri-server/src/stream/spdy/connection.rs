//! One client's connection: streams that it opens go to the session, what the session writes goes to the client. Ends
//! with whichever ends first, and with a session that ends in order after all that it wrote has been sent.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::frame::{self, Control, HEAD, Head, NotSpdy};
use super::headers::{Deflater, Headers, Inflater};
use crate::stream::hang_up::HangUp;
use crate::stream::idle::Activity;
use crate::stream::transport::{CHUNK, Duplex, IN_QUEUE, OUT_QUEUE, Outgoing, Output};

/// How long a client may take to read the rest and to hang up once a session is over.
const LINGER: Duration = Duration::from_secs(10);

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

/// Serves one client until it, or its session, is done.
pub async fn serve<S>(
    tcp: TcpStream,
    early: Bytes,
    most_streams: usize,
    activity: &Activity,
    session: impl FnOnce(mpsc::Receiver<Stream>) -> S,
) -> io::Result<()>
where
    S: Future<Output = ()>,
{
    let (queue, outgoing) = mpsc::channel(OUT_QUEUE);
    let hang_up = HangUp::new(&tcp, queue.clone())?;
    let (read, write) = tcp.into_split();
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
            room: Arc::new(Semaphore::new(most_streams)),
            open: HashMap::new(),
            most_streams,
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
    most_streams: usize,
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
            if !self.hang_up.pass(&open.input, piece.into()).await {
                return Ok(false);
            }
        }
        if last {
            self.open.remove(&stream);
        }
        Ok(true)
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
        if self.open.len() >= self.most_streams {
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
