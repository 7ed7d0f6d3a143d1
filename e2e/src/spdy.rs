//! A SPDY/3.1 client that does what it is told, right or wrong: kubectl and crictl only do it right.

use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::Outcome;

/// The dictionary of header blocks (SPDY Protocol draft 3, section 2.6.10.1).
const DICTIONARY: &[u8] = include_bytes!("../../cri-server/src/stream/spdy/dictionary.bin");
/// The largest frame that a server may send us.
const MAX_FRAME: usize = 1024 * 1024;

/// What a server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of a stream, and whether they are its last.
    Data(u32, Vec<u8>, bool),
    /// A stream is accepted.
    Reply(u32),
    /// A stream is broken off, and why.
    Reset(u32, u32),
    /// A ping, or the answer to one.
    Ping(u32),
    /// No further streams are taken.
    GoAway,
    /// Of another type.
    Other(u16),
}

/// The writing side.
#[derive(Debug)]
pub struct Writer {
    socket: OwnedWriteHalf,
    headers: Compress,
    next: u32,
}

/// The reading side.
#[derive(Debug)]
pub struct Reader(OwnedReadHalf);

/// Address and path of a stream's URL.
pub fn split(url: &str) -> Outcome<(&str, &str)> {
    let rest = url.strip_prefix("http://").ok_or("the URL is not absolute")?;
    let slash = rest.find('/').ok_or("the URL has no path")?;
    Ok(rest.split_at(slash))
}

/// Goes to a stream's URL with this protocol. Fails with the answer's first line if it is not granted.
pub async fn connect(url: &str, protocol: &str) -> Outcome<(Writer, Reader)> {
    let (address, path) = split(url)?;
    let mut socket = TcpStream::connect(address).await?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await?;
    let head = head(&mut socket).await?;
    let line = head.lines().next().unwrap_or_default();
    if !line.contains(" 101 ") {
        return Err(line.into());
    }
    let mut headers = Compress::new(Compression::fast(), true);
    headers.set_dictionary(DICTIONARY)?;
    let (read, write) = socket.into_split();
    Ok((Writer { socket: write, headers, next: 1 }, Reader(read)))
}

/// The head of an answer.
pub async fn head(socket: &mut TcpStream) -> Outcome<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await?);
    }
    Ok(String::from_utf8(head)?)
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Outcome<Vec<u8>> {
    let mut frame = vec![0x80, 3];
    frame.extend_from_slice(&kind.to_be_bytes());
    let length = u32::try_from(body.len())?.to_be_bytes();
    frame.extend_from_slice(&[flags, length[1], length[2], length[3]]);
    frame.extend_from_slice(body);
    Ok(frame)
}

impl Writer {
    /// Opens a stream with these headers; its number.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> Outcome<u32> {
        let id = self.next;
        self.next += 2;
        let mut plain = u32::try_from(headers.len())?.to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&u32::try_from(text.len())?.to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 256);
        self.headers.compress_vec(&plain, &mut block, FlushCompress::Sync)?;
        let mut body = id.to_be_bytes().to_vec();
        body.extend_from_slice(&[0; 6]);
        body.extend_from_slice(&block);
        self.raw(&control(1, 0, &body)?).await?;
        Ok(id)
    }

    /// Opens the two streams of a forwarded connection: that of errors, and that of bytes.
    pub async fn forward(&mut self, request: usize, port: u16) -> Outcome<(u32, u32)> {
        let (request, port) = (request.to_string(), port.to_string());
        let headers = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", request.as_str())];
        let error = self.open(&headers("error")).await?;
        Ok((error, self.open(&headers("data")).await?))
    }

    /// Sends bytes of a stream.
    pub async fn data(&mut self, stream: u32, bytes: &[u8], last: bool) -> Outcome {
        let length = u32::try_from(bytes.len())?.to_be_bytes();
        let mut frame = stream.to_be_bytes().to_vec();
        frame.extend_from_slice(&[u8::from(last), length[1], length[2], length[3]]);
        frame.extend_from_slice(bytes);
        self.raw(&frame).await
    }

    /// Breaks a stream off.
    pub async fn reset(&mut self, stream: u32) -> Outcome {
        let mut body = stream.to_be_bytes().to_vec();
        body.extend_from_slice(&5_u32.to_be_bytes());
        self.raw(&control(3, 0, &body)?).await
    }

    /// Sends bytes as they are.
    pub async fn raw(&mut self, bytes: &[u8]) -> Outcome {
        Ok(self.socket.write_all(bytes).await?)
    }
}

impl Reader {
    /// The next frame; none at the end.
    pub async fn next(&mut self) -> Outcome<Option<Frame>> {
        let mut head = [0; 8];
        match self.0.read_exact(&mut head).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        };
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if length > MAX_FRAME {
            return Err(format!("a frame of {length} bytes").into());
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        let word = |at: usize| -> Outcome<u32> {
            Ok(u32::from_be_bytes(body.get(at..at + 4).ok_or("a short frame")?.try_into()?))
        };
        if head[0] & 0x80 == 0 {
            let stream = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            return Ok(Some(Frame::Data(stream, body, head[4] & 1 != 0)));
        }
        Ok(Some(match u16::from_be_bytes([head[2], head[3]]) {
            2 => Frame::Reply(word(0)?),
            3 => Frame::Reset(word(0)?, word(4)?),
            6 => Frame::Ping(word(0)?),
            7 => Frame::GoAway,
            other => Frame::Other(other),
        }))
    }
}
