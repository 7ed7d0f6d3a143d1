//! Channels over one WebSocket: each message begins with the number of its channel. The framing is tungstenite's.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::body::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Halves};
use super::hang_up::{HangUp, Passed};
use super::idle::Activity;
use super::port_forward;
use super::remote_command::{Report, Session, Sizes, Wanted};
use super::token::PortForward;
use super::transport::{CHUNK, Duplex, IN_QUEUE, OUT_QUEUE, Outgoing, Output};
use crate::node::Node;

/// The largest message. Clients send 32 KiB.
const MAX_MESSAGE: usize = 1024 * 1024;
/// The channel whose messages name a channel that ends (version 5).
const CLOSE: u8 = 255;
/// How long a client may take to hang up once a session is over.
const LINGER: Duration = Duration::from_secs(60);
/// The most ports of one WebSocket: two channels each, numbered in one byte, of which 255 means something else.
const MAX_PORTS: usize = 100;

/// How messages look.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// 1, 4 or 5: the last two tell the end of a command in JSON, 5 can close a channel.
    pub version: u8,
    /// Text: the channel as a digit, and base64.
    pub base64: bool,
}

/// Serves the streams of a command.
pub async fn command<S>(
    client: Connection,
    early: Bytes,
    form: Form,
    activity: &Activity,
    wanted: Wanted,
    session: impl FnOnce(Session) -> S,
) -> io::Result<()>
where
    S: Future<Output = ()>,
{
    // stdin, stdout, stderr, error, resize.
    let takes = [wanted.stdin, false, false, false, wanted.tty];
    let hello = if wanted.stdout {
        1
    } else if wanted.stderr {
        2
    } else {
        3
    };
    serve(client, early, form, activity, &takes, |mut channels| {
        let output = |channel: usize, wanted: bool| wanted.then(|| channels[channel].output.clone());
        let (stdout, stderr) = (output(1, wanted.stdout), output(2, wanted.stderr));
        let error = Report { output: channels[3].output.clone(), json: form.version >= 4 };
        let first = channels[hello].output.clone();
        let sizes = channels.pop().filter(|_| wanted.tty).map(|channel| Sizes::new(channel.input));
        let stdin = wanted.stdin.then(|| channels.swap_remove(0).input);
        let session = session(Session { stdin, stdout, stderr, sizes, error, _held: Vec::new() });
        async move {
            // How older clients know that they are connected.
            if first.write(Bytes::new()).await.is_ok() {
                drop(first);
                session.await;
            }
        }
    })
    .await
}

/// Serves ports of a pod: two channels each, for bytes and for what went wrong.
pub async fn ports(
    client: Connection,
    early: Bytes,
    form: Form,
    activity: &Activity,
    node: &Arc<Node>,
    forward: PortForward,
) -> io::Result<()> {
    if forward.ports.is_empty() || forward.ports.len() > MAX_PORTS {
        return Err(io::Error::other("a WebSocket needs to be asked for with 1 to 100 ports"));
    }
    let takes: Vec<bool> = forward.ports.iter().flat_map(|_| [true, false]).collect();
    serve(client, early, form, activity, &takes, |channels| {
        port_forward::serve_fixed(node, forward, channels)
    })
    .await
}

async fn serve<S>(
    client: Connection,
    early: Bytes,
    form: Form,
    activity: &Activity,
    takes: &[bool],
    session: impl FnOnce(Vec<Duplex>) -> S,
) -> io::Result<()>
where
    S: Future<Output = ()>,
{
    let (queue, outgoing) = mpsc::channel(OUT_QUEUE);
    let hang_up = HangUp::new(client.socket()?, queue.clone());
    let (sink, mut source) = open(client, early).await.split();
    let mut inputs = Vec::new();
    let mut channels = Vec::new();
    for (channel, takes) in (0..).zip(takes) {
        let (sender, input) = mpsc::channel(IN_QUEUE);
        inputs.push(takes.then_some(sender));
        let output = Output::new(channel, queue.clone());
        channels.push(Duplex { input, output, broken: CancellationToken::new() });
    }
    drop(queue);
    let writing = send(sink, outgoing, form, activity);
    tokio::pin!(writing);
    {
        let (reading, session) = (read(&mut source, inputs, form, hang_up, activity), session(channels));
        tokio::pin!(reading, session);
        tokio::select! {
            result = &mut reading => return result,
            result = &mut writing => return result.map(drop),
            () = &mut session => {}
        }
    }
    // What the session wrote is in the queue, which nobody fills any more.
    let mut sink = writing.await?;
    let close = async {
        let normal = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
        sink.send(Message::Close(Some(normal))).await.map_err(of)?;
        while let Some(Ok(_)) = source.next().await {}
        Ok(())
    };
    timeout(LINGER, close).await.unwrap_or(Ok(()))
}

type Sink = SplitSink<WebSocketStream<Connection>, Message>;
type Source = SplitStream<WebSocketStream<Connection>>;

async fn open(client: Connection, early: Bytes) -> WebSocketStream<Connection> {
    let config = WebSocketConfig::default()
        .read_buffer_size(CHUNK)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MAX_MESSAGE)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_partially_read(client, early.to_vec(), Role::Server, Some(config)).await
}

/// Carries the bytes of another protocol, which `session` speaks over the halves that it is given (KEP-4006): messages have
/// no meaning of their own.
pub async fn tunnel<S>(client: Connection, early: Bytes, session: impl FnOnce(Halves) -> S) -> io::Result<()>
where
    S: Future<Output = io::Result<()>>,
{
    let (mut sink, mut source) = open(client, early).await.split();
    let (inside, outside) = tokio::io::duplex(CHUNK);
    let (read, write) = tokio::io::split(inside);
    let (mut from, mut to) = tokio::io::split(outside);
    let inward = async {
        while let Some(message) = source.next().await {
            match message.map_err(of)? {
                // A session that is over wants nothing more, and the client is still to be told so.
                Message::Binary(bytes) => drop(to.write_all(&bytes).await),
                Message::Text(_) => return Err(io::Error::other("a tunnel carries no text")),
                Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
            }
        }
        // See above.
        let _ = to.shutdown().await;
        Ok(())
    };
    let outward = async {
        loop {
            let mut bytes = Vec::with_capacity(CHUNK);
            if from.read_buf(&mut bytes).await? == 0 {
                break;
            }
            sink.send(Message::binary(bytes)).await.map_err(of)?;
        }
        let normal = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
        sink.send(Message::Close(Some(normal))).await.map_err(of)
    };
    let session = session((Box::new(read), Box::new(write)));
    let carried = async { tokio::try_join!(inward, outward).map(drop) };
    tokio::pin!(session, carried);
    tokio::select! {
        result = &mut carried => result,
        result = &mut session => {
            result?;
            // What it wrote last.
            timeout(LINGER, carried).await.unwrap_or(Ok(()))
        }
    }
}

fn of(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

async fn send(
    mut sink: Sink,
    mut outgoing: mpsc::Receiver<Outgoing>,
    form: Form,
    activity: &Activity,
) -> io::Result<Sink> {
    while let Some(next) = outgoing.recv().await {
        // Channels to the client end with the socket; there is no message for it.
        match next {
            Outgoing::Data(channel, bytes) => {
                sink.send(form.encode(channel, &bytes)).await.map_err(of)?;
                activity.note();
            }
            Outgoing::Ping => {
                sink.send(Message::Ping(Bytes::new())).await.map_err(of)?;
                // Its own pings are not read meanwhile, and it would take us for dead after a minute (client-go).
                sink.send(Message::Pong(Bytes::new())).await.map_err(of)?;
            }
            _ => {}
        }
    }
    Ok(sink)
}

async fn read(
    source: &mut Source,
    mut inputs: Vec<Option<mpsc::Sender<Bytes>>>,
    form: Form,
    hang_up: HangUp,
    activity: &Activity,
) -> io::Result<()> {
    while let Some(message) = source.next().await {
        activity.note();
        let Some((channel, bytes)) = form.decode(message.map_err(of)?).map_err(io::Error::other)? else {
            continue;
        };
        if channel == CLOSE && form.version >= 5 {
            if let Some(input) = bytes.first().and_then(|channel| inputs.get_mut(usize::from(*channel))) {
                *input = None;
            }
            continue;
        }
        // What is not taken is thrown away, as other servers do.
        if let Some(Some(input)) = inputs.get(usize::from(channel))
            && !bytes.is_empty()
            && hang_up.pass(input, bytes, None).await == Passed::Gone
        {
            return Ok(());
        }
    }
    Ok(())
}

impl Form {
    fn encode(self, channel: u32, bytes: &[u8]) -> Message {
        // Channels are numbered by the daemon, below 255.
        let channel = u8::try_from(channel).unwrap_or(CLOSE);
        if self.base64 {
            let mut text = char::from(b'0'.saturating_add(channel)).to_string();
            STANDARD.encode_string(bytes, &mut text);
            return Message::text(text);
        }
        let mut message = Vec::with_capacity(1 + bytes.len());
        message.push(channel);
        message.extend_from_slice(bytes);
        Message::binary(message)
    }

    /// The channel and its bytes; none for what is no message of a channel.
    fn decode(self, message: Message) -> Result<Option<(u8, Bytes)>, &'static str> {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => return Ok(None),
        };
        let Some((channel, rest)) = bytes.split_first() else { return Ok(None) };
        if !self.base64 {
            return Ok(Some((*channel, bytes.slice(1..))));
        }
        let channel = channel.checked_sub(b'0').ok_or("a channel is not a digit")?;
        let rest = STANDARD.decode(rest).map_err(|_| "a message is not base64")?;
        Ok(Some((channel, rest.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_channel() {
        for base64 in [false, true] {
            let form = Form { version: 4, base64 };
            for channel in [0, 1, 4, 9] {
                let decoded = form.decode(form.encode(channel, b"\x00bytes\xff")).unwrap().unwrap();
                assert_eq!(decoded, (u8::try_from(channel).unwrap(), Bytes::from_static(b"\x00bytes\xff")));
            }
            assert_eq!(form.decode(Message::binary(Vec::new())), Ok(None));
            assert_eq!(form.decode(Message::Ping(Bytes::new())), Ok(None));
        }
        let base64 = Form { version: 1, base64: true };
        assert_eq!(base64.encode(1, b"hi"), Message::text("1aGk="));
        assert!(base64.decode(Message::text("0*")).is_err());
        assert!(base64.decode(Message::text("\u{1}")).is_err());
    }
}
