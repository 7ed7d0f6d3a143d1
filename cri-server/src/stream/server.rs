//! The server of streams: on loopback, for whoever has a token. Everything else is 404.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::handshake::{Agreed, Protocol, agree};
use super::idle::Activity;
use super::tls::Tls;
use super::token::{Ticket, Tokens};
use super::{attach, exec, port_forward, remote_command, spdy, websocket};
use crate::config;
use crate::error::Error;
use crate::node::Node;

/// How long a client may take to send its request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const MAX_HEAD: usize = 64 * 1024;
/// Headers of a request: a kubelet passes on what its own client sent.
const MAX_HEADERS: usize = 100;
/// Connections at the same time. Each may hold some 2 MiB in its queues when nobody reads.
const MAX_CONNECTIONS: usize = 1024;
/// Streams that a client of a command may have open: five, and one more to be told that it is too many.
const COMMAND_STREAMS: spdy::Kind = spdy::Kind { most: 6, apart: false };
/// Streams of forwarded ports: two a connection, of which a browser opens some dozen.
const PORT_STREAMS: spdy::Kind = spdy::Kind { most: 2 * 1024, apart: true };
/// Pause after accept(2) failed, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What Exec, Attach and PortForward need of the daemon.
#[derive(Debug)]
pub struct Streams {
    listener: Mutex<Option<StdListener>>,
    address: SocketAddr,
    tls: Option<Tls>,
    tokens: Tokens,
    connections: Arc<Semaphore>,
    idle: Duration,
}

impl Streams {
    /// Listens, so that the port is known; nothing is accepted yet.
    pub fn open(options: &config::Stream) -> Result<Self, Error> {
        let address = SocketAddr::new(options.address, options.port);
        let listen = || -> io::Result<_> {
            let listener = StdListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        };
        let tls = Tls::open(options)?;
        let (address, listener) =
            listen().map_err(|error| Error::system("listen for streams on", address.to_string(), error))?;
        Ok(Self {
            listener: Mutex::new(Some(listener)),
            address,
            tls,
            tokens: Tokens::default(),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            idle: Duration::from_secs(options.idle_seconds),
        })
    }

    /// The URL of a stream, for one use. With a scheme: a kubelet takes one without it for https.
    pub fn url(&self, ticket: Ticket) -> Result<String, Error> {
        let (verb, scheme) = (ticket.verb(), if self.tls.is_some() { "https" } else { "http" });
        Ok(format!("{scheme}://{}/{verb}/{}", self.address, self.tokens.issue(ticket)?))
    }
}

/// Accepts clients until the daemon ends, in a task of its own.
pub fn start(node: &Arc<Node>) -> Result<(), Error> {
    let listener = node.streams.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(listener) = listener else { return Ok(()) };
    let listener = TcpListener::from_std(listener)
        .map_err(|error| Error::system("watch", "the listener of streams".to_owned(), error))?;
    let (node, tasks) = (Arc::clone(node), node.tasks.clone());
    tasks.spawn(async move {
        let draining = node.draining.clone();
        draining.run_until_cancelled_owned(accept(node, listener)).await
    });
    Ok(())
}

async fn accept(node: Arc<Node>, listener: TcpListener) -> Infallible {
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%error, "a client of streams cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&node.streams.connections).try_acquire_owned() else {
            tracing::warn!(limit = MAX_CONNECTIONS, "a client of streams is sent away: there are too many");
            continue;
        };
        let (node, tasks) = (Arc::clone(&node), node.tasks.clone());
        tasks.spawn(async move {
            let draining = node.draining.clone();
            draining.run_until_cancelled_owned(hear(node, client, Arc::new(permit))).await
        });
    }
}

/// Takes the requests of one connection.
async fn hear(node: Arc<Node>, client: TcpStream, permit: Arc<OwnedSemaphorePermit>) {
    let client = match &node.streams.tls {
        None => Connection::Plain(client),
        Some(tls) => match timeout(HEAD_LIMIT, tls.accept(client)).await {
            Ok(Ok(client)) => Connection::Tls(Box::new(client)),
            Ok(Err(error)) => {
                return tracing::debug!(%error, "a client of streams does not speak TLS as asked for");
            }
            Err(_) => return tracing::debug!("a client of streams took too long for TLS"),
        },
    };
    let service = service_fn(|request| {
        let response = answer(&node, request, &permit);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(client), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a client of streams is sent away");
    }
}

/// Answers a request; what was granted goes on in a task of its own.
fn answer(
    node: &Arc<Node>,
    mut request: Request<Incoming>,
    permit: &Arc<OwnedSemaphorePermit>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let (verb, token) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return status(StatusCode::METHOD_NOT_ALLOWED);
    }
    let Some(known) = node.streams.tokens.look(verb, token) else {
        // What was tried in the wrong place is used up.
        let _ = node.streams.tokens.take(verb, token);
        return status(StatusCode::NOT_FOUND);
    };
    let agreed = match agree(&request, matches!(known, Ticket::PortForward(_))) {
        Ok(agreed) => agreed,
        // The token stays: a client may fall back to another protocol with the same URL.
        Err(refused) => return refused.response(),
    };
    let Some(ticket) = node.streams.tokens.take(verb, token) else {
        return status(StatusCode::NOT_FOUND);
    };
    let Agreed { protocol, .. } = agreed;
    let (upgrade, node, permit) = (hyper::upgrade::on(&mut request), Arc::clone(node), Arc::clone(permit));
    let tasks = node.tasks.clone();
    tasks.spawn(async move {
        let _permit = permit;
        let draining = node.draining.clone();
        let idle = node.streams.idle;
        let (activity, lost) = (Activity::default(), CancellationToken::new());
        let served = async {
            let client = upgrade.await.map_err(io::Error::other)?;
            serve(&node, client, protocol, ticket, &activity, &lost).await
        };
        tokio::select! {
            served = served => if let Err(error) = served {
                tracing::debug!(%error, ?protocol, "a stream was broken off");
            },
            () = activity.idle(idle) => tracing::info!(limit = ?idle, "a stream was idle for too long"),
            () = lost.cancelled() => {}
            () = draining.cancelled() => {}
        }
    });
    agreed.response()
}

fn status(code: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = code;
    response
}

async fn serve(
    node: &Arc<Node>,
    client: Upgraded,
    protocol: Protocol,
    ticket: Ticket,
    activity: &Activity,
    lost: &CancellationToken,
) -> io::Result<()> {
    let parts = client
        .downcast::<TokioIo<Connection>>()
        .map_err(|_| io::Error::other("the connection is not the one that was accepted"))?;
    let (client, early) = (parts.io.into_inner(), parts.read_buf);
    client.set_nodelay()?;
    let socket = client.socket()?;
    match (protocol, ticket) {
        (Protocol::SpdyPorts, Ticket::PortForward(ports)) => {
            spdy::serve(client.split(), socket, early, PORT_STREAMS, activity, |streams| {
                port_forward::serve(node, ports, streams)
            })
            .await
        }
        (Protocol::SpdyCommand(version), ticket) => {
            spdy::serve(client.split(), socket, early, COMMAND_STREAMS, activity, async |mut streams| {
                if let Some(wanted) = ticket.streams()
                    && let Some(session) = remote_command::collect(&mut streams, wanted, version).await
                {
                    command(node, ticket, session, lost).await;
                }
            })
            .await
        }
        (Protocol::TunnelledPorts, Ticket::PortForward(ports)) => {
            websocket::tunnel(client, early, |halves| {
                spdy::serve(halves, socket, Bytes::new(), PORT_STREAMS, activity, |streams| {
                    port_forward::serve(node, ports, streams)
                })
            })
            .await
        }
        (Protocol::Channels { version, base64 }, Ticket::PortForward(ports)) => {
            let form = websocket::Form { version, base64 };
            websocket::ports(client, early, form, activity, node, ports).await
        }
        (Protocol::Channels { version, base64 }, ticket) => {
            let (form, wanted) = (websocket::Form { version, base64 }, ticket.streams());
            let wanted = wanted.ok_or_else(|| io::Error::other("not a command"))?;
            let session = |session| command(node, ticket, session, lost);
            websocket::command(client, early, form, activity, wanted, session).await
        }
        (Protocol::SpdyPorts | Protocol::TunnelledPorts, Ticket::Exec(_) | Ticket::Attach(_)) => {
            Err(io::Error::other("a command has no ports"))
        }
    }
}

/// `lost`: set when the client is not worth waiting for, though not all that it was to be told has been sent.
async fn command(
    node: &Arc<Node>,
    ticket: Ticket,
    session: remote_command::Session,
    lost: &CancellationToken,
) {
    match ticket {
        Ticket::Exec(ticket) => exec::serve(node, ticket, session).await,
        Ticket::Attach(ticket) => attach::serve(node, ticket, session, lost).await,
        Ticket::PortForward(_) => {}
    }
}
