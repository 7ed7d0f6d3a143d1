//! Connections to registries: direct, or by a proxy. TLS goes over what is made here.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::Service;

use super::origin::{Origin, parse_authority};
use super::proxy::{Proxies, Proxy};

/// How long connecting may take: a host that drops packets answers nothing at all.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// The longest answer of a proxy to CONNECT.
const MAX_HEAD: usize = 8 * 1024;

type Failed = Box<dyn Error + Send + Sync>;

/// Connects, by a proxy where one is to be used.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    proxies: Arc<Proxies>,
    limit: Duration,
}

impl Connector {
    /// `dial` limits how long connecting may take.
    pub(super) fn new(proxies: Arc<Proxies>, dial: Option<Duration>) -> Self {
        let limit = dial.unwrap_or(CONNECT_LIMIT);
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(limit));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        Self { tcp, proxies, limit }
    }
}

/// A connection to a host, or to the proxy that stands for it.
#[derive(Debug)]
pub(super) struct Stream {
    tcp: TokioIo<TcpStream>,
    /// Requests name the host, too.
    is_proxy: bool,
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Failed;
    type Future = BoxFuture<'static, Result<Stream, Failed>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (mut tcp, proxies, limit) = (self.tcp.clone(), self.proxies.clone(), self.limit);
        Box::pin(async move {
            let origin = origin(&uri).ok_or("the URL has no host")?;
            let Some(proxy) = proxies.of(&origin)? else {
                return Ok(Stream { tcp: tcp.call(uri).await?, is_proxy: false });
            };
            let through =
                |error: Failed| Failed::from(format!("proxy {}: {}", proxy.name, super::causes(&*error)));
            let stream = tcp.call(proxy.uri.clone()).await.map_err(|error| through(error.into()))?;
            if !origin.secure {
                return Ok(Stream { tcp: stream, is_proxy: true });
            }
            match timeout(limit, tunnel(stream.into_inner(), proxy, &origin)).await {
                Ok(tunnel) => Ok(Stream { tcp: TokioIo::new(tunnel.map_err(through)?), is_proxy: false }),
                Err(_) => Err(through(format!("no answer to CONNECT in {limit:?}").into())),
            }
        })
    }
}

fn origin(uri: &Uri) -> Option<Origin> {
    let (host, port) = parse_authority(uri.authority()?.as_str()).ok()?;
    Some(Origin::new(uri.scheme_str() == Some("https"), host, port))
}

/// Asks a proxy for a way through (RFC 9110 section 9.3.6).
async fn tunnel(mut stream: TcpStream, proxy: &Proxy, origin: &Origin) -> Result<TcpStream, Failed> {
    let target = origin.authority();
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(authorization) = &proxy.authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await?;
    let mut head = Vec::new();
    // The host speaks only after we did, so nothing of what it says is read here.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return Err("its answer to CONNECT is too long".into());
        }
        head.push(stream.read_u8().await?);
    }
    let status = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    match status {
        [b'2', _, _] => Ok(stream),
        status => Err(format!("it answered {} to CONNECT {target}", status.escape_ascii()).into()),
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.is_proxy)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, parts)
    }
}
