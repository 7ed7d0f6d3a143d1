//! What holds for every call: one span with its method and objects, its duration, the gate, and the only place where a
//! panic of an operation is caught. Nothing here knows what a call does.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::FutureExt;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, Span, field};

use super::deadline;
use crate::node::Node;

/// Answered while recovery is at work: a kubelet asks them first and decides nothing about pods by them.
const PASS_THE_GATE: [&str; 4] = ["Version", "Status", "RuntimeConfig", "ImageFsInfo"];
/// Asked all the time; a line for each would hide the others.
const POLLED: [&str; 16] = [
    "Version",
    "Status",
    "RuntimeConfig",
    "ImageFsInfo",
    "ListPodSandbox",
    "PodSandboxStatus",
    "ListContainers",
    "ContainerStatus",
    "ContainerStats",
    "ListContainerStats",
    "PodSandboxStats",
    "ListPodSandboxStats",
    "ListImages",
    "ImageStatus",
    // Of Cove's own image service.
    "List",
    "Pulls",
];
/// The longest method name that is logged; a path is as long as a client likes.
const LONGEST_METHOD: usize = 64;

/// Wraps every service of the server.
#[derive(Debug, Clone)]
pub(super) struct CallLayer {
    node: Arc<Node>,
    panics: Arc<AtomicU64>,
}

impl CallLayer {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node, panics: Arc::default() }
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls { inner, layer: self.clone() }
    }
}

/// A service in its layer.
#[derive(Debug, Clone)]
pub(super) struct Calls<S> {
    inner: S,
    layer: CallLayer,
}

impl<S> Service<Request<Body>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The service that was polled ready is the one that must be called.
        let next = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, next);
        let method = method_of(request.uri().path());
        let span = span_of(&method, request.headers());
        let layer = self.layer.clone();
        // Before tonic's own.
        let deadline = deadline::of(request.headers());
        Box::pin(async move { layer.answer(ready, method, request, deadline).await }.instrument(span))
    }
}

impl CallLayer {
    async fn answer<S>(
        self,
        mut service: S,
        method: String,
        request: Request<Body>,
        deadline: Option<tokio::time::Instant>,
    ) -> Result<Response<Body>, S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
    {
        let mut call = Call::begin(&method);
        let answer = async {
            if !PASS_THE_GATE.contains(&method.as_str())
                && let Err(error) = self.node.gate.pass().await
            {
                return Ok(Status::from(error).into_http());
            }
            service.call(request).await
        };
        // Nothing of this call is used after a panic: its operation's own guards undo or mark what was half done.
        let caught = deadline::within(deadline, AssertUnwindSafe(answer).catch_unwind()).await;
        let late = || Ok(Ok(Status::deadline_exceeded("the deadline of the call is over").into_http()));
        let answer = caught.unwrap_or_else(late).unwrap_or_else(|_| {
            let panics = self.panics.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::error!(panics, "a call ended in a panic");
            Ok(Status::internal(format!("the daemon failed in {method}; the fault is in its log"))
                .into_http())
        });
        if let Ok(response) = &answer {
            call.end(response.headers());
        }
        answer
    }
}

/// A call that is being answered.
struct Call<'a> {
    method: &'a str,
    begun: Instant,
    ended: bool,
}

impl<'a> Call<'a> {
    fn begin(method: &'a str) -> Self {
        Self { method, begun: Instant::now(), ended: false }
    }

    /// The edge logs, once. The status of a unary call that failed is in its headers.
    fn end(&mut self, headers: &HeaderMap) {
        self.ended = true;
        let took = self.begun.elapsed();
        match Status::from_header_map(headers).filter(|status| status.code() != Code::Ok) {
            Some(status) if status.code() == Code::Unimplemented => {
                tracing::debug!(?took, error = status.message(), "refused");
            }
            Some(status) => {
                tracing::warn!(?took, code = ?status.code(), error = status.message(), "failed");
            }
            None if POLLED.contains(&self.method) => tracing::trace!(?took, "answered"),
            None => tracing::info!(?took, "answered"),
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.ended {
            tracing::info!(took = ?self.begun.elapsed(), "its client left before the answer");
        }
    }
}

fn method_of(path: &str) -> String {
    path.rsplit('/').next().unwrap_or_default().chars().take(LONGEST_METHOD).collect()
}

fn span_of(method: &str, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        "call",
        method,
        pod = field::Empty,
        sandbox = field::Empty,
        container = field::Empty,
        image = field::Empty,
        traceparent = field::Empty
    );
    if let Some(parent) =
        headers.get("traceparent").and_then(|value| value.to_str().ok()).filter(is_traceparent)
    {
        span.record("traceparent", parent);
    }
    span
}

/// `00-<32 hex>-<16 hex>-<2 hex>` (W3C Trace Context). Anything else is not carried on, and no reason to refuse a call.
fn is_traceparent(value: &&str) -> bool {
    value.len() == 55 && value.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_come_from_paths_and_are_bounded() {
        assert_eq!(method_of("/runtime.v1.RuntimeService/Version"), "Version");
        assert_eq!(method_of(&"x".repeat(10_000)).len(), LONGEST_METHOD);
        assert_eq!(method_of(""), "");
    }

    #[test]
    fn only_well_formed_trace_parents_are_carried() {
        assert!(is_traceparent(&"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        for bad in ["", "00-xyz", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0\n"] {
            assert!(!is_traceparent(&bad), "{bad}");
        }
    }
}
