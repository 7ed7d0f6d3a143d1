//! PortForward: connections to ports of a pod, made inside its network namespace. Each pair of streams is a
//! connection of its own: one that fails or is reset leaves the others alone.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::copy::taken;
use super::spdy::Stream;
use super::token::PortForward;
use super::transport::{CHUNK, Duplex, Input, Output};
use crate::blocking;
use crate::error::{Error, Kind};
use crate::node::Node;

/// How long one stream of a pair waits for the other, as other servers give (cri-streaming: 30 s).
const PAIR_LIMIT: Duration = Duration::from_secs(30);
/// How long a connection inside a pod may take: it never leaves the node.
const DIAL_LIMIT: Duration = Duration::from_secs(10);

/// Half of a pair.
struct Half {
    stream: Stream,
    since: Instant,
}

/// Serves the pairs of streams that a client opens, until it opens no more.
pub async fn serve(node: &Arc<Node>, forward: PortForward, mut streams: mpsc::Receiver<Stream>) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut running = JoinSet::new();
    loop {
        let late = halves.values().map(|half| half.since + PAIR_LIMIT).min();
        tokio::select! {
            stream = streams.recv() => {
                let Some(stream) = stream else { return };
                if let Some((error, data)) = pair(&mut halves, stream).await {
                    running.spawn(serve_pair(Arc::clone(node), forward.sandbox.clone(), error, data));
                }
            }
            Some(ended) = running.join_next() => {
                if let Err(error) = ended {
                    tracing::warn!(%error, "a forwarded connection was broken off");
                }
            }
            () = sleep_until(late.unwrap_or_else(Instant::now)), if late.is_some() => {
                let over = Instant::now() - PAIR_LIMIT;
                let lonely: Vec<String> =
                    halves.iter().filter(|(_, half)| half.since <= over).map(|(id, _)| id.clone()).collect();
                for half in lonely.iter().filter_map(|id| halves.remove(id)).collect::<Vec<_>>() {
                    // A client that is gone needs no word.
                    let _ = half.stream.bytes.output.reset().await;
                }
            }
        }
    }
}

/// Error stream and data stream, when this one completes a pair. What fits nothing is broken off.
async fn pair(halves: &mut HashMap<String, Half>, stream: Stream) -> Option<(Stream, Stream)> {
    let is_error = match stream.header("streamtype") {
        Some("error") => true,
        Some("data") => false,
        _ => {
            // A client that is gone needs no word.
            let _ = stream.bytes.output.reset().await;
            return None;
        }
    };
    // Clients of old send no id, but open the data stream right after the error stream.
    let id = match stream.header("requestid") {
        Some(id) => id.to_owned(),
        None if is_error => stream.id.to_string(),
        None => stream.id.saturating_sub(2).to_string(),
    };
    let Some(half) = halves.remove(&id) else {
        halves.insert(id, Half { stream, since: Instant::now() });
        return None;
    };
    let other_is_error = half.stream.header("streamtype") == Some("error");
    match (is_error, other_is_error) {
        (true, false) => Some((stream, half.stream)),
        (false, true) => Some((half.stream, stream)),
        _ => {
            // See above.
            let _ = stream.bytes.output.reset().await;
            halves.insert(id, half);
            None
        }
    }
}

async fn serve_pair(node: Arc<Node>, sandbox: String, error: Stream, data: Stream) {
    let port = data.header("port").and_then(|port| port.parse().ok()).filter(|port: &u16| *port > 0);
    let result = match port {
        Some(port) => one(&node, &sandbox, port, data.bytes, true).await,
        None => {
            let _ = data.bytes.output.reset().await;
            Err("the port is not a number from 1 to 65535".to_owned())
        }
    };
    tell(&error.bytes.output, result).await;
}

/// What went wrong goes to the error stream, which ends. A client that is gone is told nothing.
async fn tell(error: &Output, result: Result<(), String>) {
    if let Err(text) = result {
        let _ = error.write(Bytes::from(text)).await;
    }
    let _ = error.end().await;
}

/// Serves ports that were named beforehand, two channels each.
pub async fn serve_fixed(node: &Arc<Node>, forward: PortForward, channels: Vec<Duplex>) {
    let mut running = JoinSet::new();
    let mut channels = channels.into_iter();
    for port in forward.ports {
        let (Some(data), Some(error)) = (channels.next(), channels.next()) else { break };
        let (node, sandbox) = (Arc::clone(node), forward.sandbox.clone());
        running.spawn(async move {
            // Both channels begin with their port.
            for output in [&data.output, &error.output] {
                if output.write(Bytes::copy_from_slice(&port.to_le_bytes())).await.is_err() {
                    return;
                }
            }
            // A WebSocket cannot say that one direction has ended.
            let result = one(&node, &sandbox, port, data, false).await;
            tell(&error.output, result).await;
        });
    }
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended {
            tracing::warn!(%error, "a forwarded connection was broken off");
        }
    }
}

/// One connection from its making to its end in both directions.
async fn one(node: &Arc<Node>, sandbox: &str, port: u16, data: Duplex, halves: bool) -> Result<(), String> {
    let Duplex { input, output, broken } = data;
    let carried = async {
        let client = dial(node, sandbox, port).await?;
        carry(client, input, &output, halves)
            .await
            .map_err(|error| Error::system("forward to", format!("port {port} of sandbox {sandbox}"), error))
    };
    let result = tokio::select! {
        result = carried => result,
        () = broken.cancelled() => Ok(()),
    };
    if let Err(error) = result {
        // A client that is gone needs no word.
        let _ = output.reset().await;
        return Err(format!("error forwarding port {port} to pod {sandbox}: {error}"));
    }
    Ok(())
}

/// Both directions, each to its own end; or, without `halves`, until the pod ends its own.
async fn carry(client: TcpStream, mut input: Input, output: &Output, halves: bool) -> io::Result<()> {
    let (mut read, mut write) = client.into_split();
    let (up, down) = (upload(&mut input, &mut write), download(&mut read, output));
    if halves {
        return tokio::try_join!(up, down).map(drop);
    }
    tokio::pin!(up, down);
    tokio::select! {
        result = &mut down => result,
        result = &mut up => match result {
            Ok(()) => down.await,
            broken => broken,
        },
    }
}

async fn upload(input: &mut Input, write: &mut OwnedWriteHalf) -> io::Result<()> {
    while let Some(bytes) = input.recv().await {
        write.write_all(&bytes).await?;
    }
    match write.shutdown().await {
        // It has ended both directions already, which is its right.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}

async fn download(read: &mut OwnedReadHalf, output: &Output) -> io::Result<()> {
    loop {
        read.readable().await?;
        // Set aside when there is something to be read: most connections of a pod are quiet.
        let mut chunk = Vec::with_capacity(CHUNK);
        let passed = match read.try_read_buf(&mut chunk) {
            Ok(0) => return output.end().await.or(Ok(())),
            Ok(_) => output.write(taken(chunk)).await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        if passed.is_err() {
            return Ok(());
        }
    }
}

/// Connects to a port on the pod's loopback, by IPv4, else by IPv6.
async fn dial(node: &Arc<Node>, sandbox: &str, port: u16) -> Result<TcpStream, Error> {
    let sandbox = node
        .sandboxes
        .get(sandbox)
        .ok_or_else(|| Error::NotFound { kind: Kind::Sandbox, id: sandbox.to_owned() })?;
    // It must live; what runs in it is its own affair.
    sandbox.adopted_shim().await?;
    let failed = |source: io::Error| {
        Error::system("connect to", format!("port {port} of sandbox {}", sandbox.id()), source)
    };
    let mut outcome = Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let netns = sandbox.identity.netns.clone();
        let socket = blocking::run(move || socket_in(netns.as_deref(), address)).await;
        let connect = async {
            let socket = TcpSocket::from_std_stream(socket?);
            socket.connect(SocketAddr::new(address, port)).await
        };
        let connected = timeout(DIAL_LIMIT, connect).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        match connected {
            Ok(client) => return Ok(client),
            // The first reason is the one that people look for.
            Err(error) if address.is_ipv4() => outcome = Err(error),
            Err(_) => {}
        }
    }
    outcome.map_err(failed)
}

/// A socket that belongs to the network namespace pinned at `netns`, else to the host's.
fn socket_in(netns: Option<&std::path::Path>, address: IpAddr) -> io::Result<std::net::TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let make = || socket_with(family, SocketType::STREAM, flags, None).map_err(io::Error::from);
    let socket = match netns {
        None => make()?,
        Some(path) => {
            let namespace = cove_runtime::namespace::open_pin(path)?
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            cove_runtime::namespace::in_netns(namespace.as_fd(), make)??
        }
    };
    Ok(socket.into())
}
