//! Clients of HTTP, and the connections that they keep.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{Builder, Client};
use hyper_util::rt::TokioExecutor;

use super::access::Access;
use super::connect::Connector;
use super::proxy::Proxies;
use super::{Broken, tls};

/// Idle connections are closed soon: a node pulls in bursts and must be quiet between them.
const IDLE_LIMIT: Duration = Duration::from_secs(15);
/// The most that one connection buffers, so that a pull stays within its memory (R28).
const READ_BUFFER: usize = 128 * 1024;

pub(super) type PlainClient = Client<Connector, Full<Bytes>>;
pub(super) type SecureClient = Client<HttpsConnector<Connector>, Full<Bytes>>;

/// Connections to hosts that are reached in the same way.
#[derive(Debug)]
pub(super) struct Clients {
    plain: PlainClient,
    /// Made at first use: reading the system's roots costs time and memory that a node without https does not spend.
    secure: OnceLock<Result<SecureClient, String>>,
}

impl Clients {
    /// No connection is made yet.
    pub(super) fn new(proxies: &Arc<Proxies>, access: &Access) -> Self {
        let connector = Connector::new(proxies.clone(), access.dial);
        Self { plain: builder().build(connector), secure: OnceLock::new() }
    }

    /// Without TLS.
    pub(super) fn plain(&self) -> &PlainClient {
        &self.plain
    }

    /// With TLS; what it was made with is given again.
    pub(super) fn secure(&self, proxies: &Arc<Proxies>, access: &Access) -> Result<&SecureClient, Broken> {
        let made = self.secure.get_or_init(|| {
            let connector = hyper_rustls::HttpsConnectorBuilder::new()
                .with_tls_config(tls::config(access)?)
                .https_only()
                .enable_http1()
                .enable_http2()
                .wrap_connector(Connector::new(proxies.clone(), access.dial));
            Ok(builder().build(connector))
        });
        made.as_ref().map_err(|reason| Broken::Refused(reason.clone()))
    }
}

fn builder() -> Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_timer(hyper_util::rt::TokioTimer::new());
    builder.pool_idle_timeout(IDLE_LIMIT);
    builder.http1_max_buf_size(READ_BUFFER);
    builder
}
