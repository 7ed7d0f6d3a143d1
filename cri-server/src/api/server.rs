//! The gRPC server on the CRI's sockets: its limits, and its end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt, select_all};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::image_service::ImageApi;
use super::images;
use super::layer::CallLayer;
use super::listen::Listening;
use super::runtime_service::RuntimeApi;
use super::wire::image_service_server::ImageServiceServer;
use super::wire::runtime_service_server::RuntimeServiceServer;
use crate::node::Node;

/// The largest message in either direction: what a kubelet accepts (maxMsgSize of its CRI client).
pub(super) const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Calls at the same time on one connection: a kubelet with 500 pods has some 100 probes and operations under way.
const MAX_STREAMS: u32 = 1024;
/// Resets that wait to be seen before a connection is closed (CVE-2023-44487, rapid reset).
const MAX_PENDING_RESETS: usize = 64;
/// Bytes of headers: a token, a trace context and a timeout take less than 1 KiB.
const MAX_HEADERS: u32 = 16 * 1024;
/// How often an idle peer is asked whether it is still there, and how long it has to answer. A peer that was stopped
/// keeps its connection until then.
const KEEPALIVE: (Duration, Duration) = (Duration::from_mins(5), Duration::from_secs(20));
/// How long calls in flight may take once the end was asked for. hyper waits without limit for an idle connection that
/// never sent anything (hyper#4170).
const DRAIN: Duration = Duration::from_secs(2);

/// Pause after accept(2) failed, for want of descriptors for example: the listener stays readable, and a loop without a
/// pause would take a whole CPU from those who could give some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The clients of a listener, with a pause after a failure.
fn paced(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    UnixListenerStream::new(listener).then(async |accepted| {
        if let Err(error) = &accepted {
            tracing::warn!(%error, "a client cannot be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        accepted
    })
}

/// Serves until `end` is there, then lets calls in flight finish for a bounded time.
pub(crate) async fn serve(
    node: &Arc<Node>,
    sockets: Vec<Listening>,
    end: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    let (listeners, files): (Vec<_>, Vec<_>) = sockets.into_iter().map(Listening::split).unzip();
    let incoming = select_all(listeners.into_iter().map(|listener| paced(listener).boxed()));
    let (ending, mut ended) = tokio::sync::watch::channel(false);
    let serving = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .layer(CallLayer::new(Arc::clone(node)))
        .add_service(
            RuntimeServiceServer::new(RuntimeApi::new(Arc::clone(node)))
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            ImageServiceServer::new(ImageApi::new(Arc::clone(node)))
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(images::service(node.images.clone()))
        .serve_with_incoming_shutdown(incoming, async {
            end.await;
            ending.send_replace(true);
        });
    let overdue = async {
        // The sender lives as long as `serving`: an error means that it has returned.
        if ended.wait_for(|ended| *ended).await.is_ok() {
            tokio::time::sleep(DRAIN).await;
        }
    };
    let served = tokio::select! {
        served = serving => served,
        () = overdue => {
            tracing::warn!(limit = ?DRAIN, "calls are still in flight: they are ended");
            Ok(())
        }
    };
    drop(files);
    served
}
