//! A WebSocket client for channels, of any version: kubectl and crictl only speak the newest.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Outcome;
use crate::spdy::{head, split};

/// The largest message that a server may send us.
const MAX_MESSAGE: u64 = 1024 * 1024;

/// How long a server may take to hang up.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connected client.
#[derive(Debug)]
pub struct WebSocket {
    socket: TcpStream,
    base64: bool,
}

/// Goes to a stream's URL with this protocol, or without naming one. Fails with the answer's first line if it is not
/// granted.
pub async fn connect(url: &str, protocol: &str) -> Outcome<WebSocket> {
    let (address, path) = split(url)?;
    let mut socket = TcpStream::connect(address).await?;
    let named = format!("Sec-WebSocket-Protocol: {protocol}\r\n");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{}\r\n",
        if protocol.is_empty() { "" } else { &named }
    );
    socket.write_all(request.as_bytes()).await?;
    let head = head(&mut socket).await?;
    let line = head.lines().next().unwrap_or_default();
    if !line.contains(" 101 ") {
        return Err(line.into());
    }
    if !protocol.is_empty() && !head.contains(protocol) {
        return Err(format!("another protocol: {head}").into());
    }
    Ok(WebSocket { socket, base64: protocol.contains("base64") })
}

impl WebSocket {
    /// Sends bytes on a channel.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> Outcome {
        let message = if self.base64 {
            format!("{channel}{}", STANDARD.encode(bytes)).into_bytes()
        } else {
            [&[channel], bytes].concat()
        };
        // Text or binary, whole, masked with zeros (RFC 6455, section 5.2).
        let mut frame = vec![if self.base64 { 0x81 } else { 0x82 }, 0x80 | 126];
        frame.extend_from_slice(&u16::try_from(message.len())?.to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(&message);
        Ok(self.socket.write_all(&frame).await?)
    }

    /// The next bytes and their channel; none when the server closes.
    pub async fn next(&mut self) -> Outcome<Option<(u8, Vec<u8>)>> {
        loop {
            let (kind, length) = (self.socket.read_u8().await?, self.socket.read_u8().await?);
            let length = match length {
                126 => self.socket.read_u16().await?.into(),
                127 => self.socket.read_u64().await?,
                length => length.into(),
            };
            if length > MAX_MESSAGE {
                return Err(format!("a message of {length} bytes").into());
            }
            let mut message = vec![0; usize::try_from(length)?];
            self.socket.read_exact(&mut message).await?;
            match kind & 0x0f {
                1 | 2 => {}
                8 => return Ok(None),
                _ => continue,
            }
            let (channel, rest) = message.split_first().ok_or("a message without a channel")?;
            return Ok(Some(if self.base64 {
                (channel - b'0', STANDARD.decode(rest)?)
            } else {
                (*channel, rest.to_vec())
            }));
        }
    }

    /// Sends bytes as they are.
    pub async fn raw(&mut self, bytes: &[u8]) -> Outcome {
        Ok(self.socket.write_all(bytes).await?)
    }

    /// Waits for the end of the connection, whatever comes before: true if it comes in time.
    pub async fn is_closed(&mut self) -> Outcome<bool> {
        let mut rest = Vec::new();
        match tokio::time::timeout(PATIENCE, self.socket.read_to_end(&mut rest)).await {
            Ok(Err(error)) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error.into()),
            Ok(_) => Ok(true),
            Err(_) => Ok(false),
        }
    }
}
