//! Who answers the commands about images: the daemon, which holds the store, or, where none runs, this process itself.
//!
//! A store has one writer. While a daemon lives it has the lock of its root, and a command asks it over its socket. Without
//! a daemon the command takes that lock for as long as it works, and asks itself by the same service.

use std::error::Error;
use std::io::ErrorKind;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tonic::body::Body;
use tower::Service;

use crate::api;
use crate::api::own::images_client::ImagesClient;
use crate::config::Config;
use crate::image::Images;
use crate::node::image_options;
use crate::store::RootLock;

/// What two ends of a connection within this process hold.
const DUPLEX: usize = 1024 * 1024;
/// The largest message in either direction: that of the server.
pub(super) const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// What this side takes before it says so: one message and more.
const WINDOW: u32 = 4 * 1024 * 1024;

/// A client, and what has to live as long.
pub(super) struct Connected {
    /// Asks.
    pub(super) images: ImagesClient<Channel>,
    _lock: Option<RootLock>,
}

/// Connects to the daemon of this configuration, or does without.
pub(super) async fn connect(config: &Config) -> Result<Connected, Box<dyn Error>> {
    for socket in config.sockets() {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(Connected { images: client(stream).await?, _lock: None }),
            Err(error) if nobody_is_there(&error) => {}
            Err(error) => return Err(told(socket, &error)),
        }
    }
    let lock = RootLock::take(&config.root)?;
    let images = Images::open(&config.root, image_options(config))?;
    let (near, far) = tokio::io::duplex(DUPLEX);
    tokio::spawn(api::serve_images(images, far));
    Ok(Connected { images: client(near).await?, _lock: Some(lock) })
}

fn nobody_is_there(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

fn told(socket: &Path, error: &std::io::Error) -> Box<dyn Error> {
    format!("connect to the daemon at {}: {error}", socket.display()).into()
}

async fn client(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<ImagesClient<Channel>, hyper::Error> {
    let client = ImagesClient::with_origin(Channel::over(stream).await?, Uri::from_static("http://cove"));
    Ok(client.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
}

/// One HTTP/2 connection.
#[derive(Debug, Clone)]
pub(super) struct Channel(SendRequest<Body>);

impl Channel {
    /// Begins HTTP/2 on a stream.
    pub(super) async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Self, hyper::Error> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(TokioIo::new(stream))
            .await?;
        // Its end is seen by whoever waits for an answer.
        tokio::spawn(connection);
        Ok(Self(sender))
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
