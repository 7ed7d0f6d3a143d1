//! The server as a client sees it: over a unix socket, by a client that shares only the message types.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::{Layer, Service};

use super::layer::CallLayer;
use super::{bind, serve, wire};
use crate::config::Config;
use crate::node::Node;

/// Far more than anything here takes, and no wait without a limit.
const PATIENCE: Duration = Duration::from_secs(20);

/// A served node in a directory of its own.
struct Served {
    node: Arc<Node>,
    socket: PathBuf,
    end: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Served {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = format!("root = \"{0}/root\"\nstate = \"{0}/state\"", directory.path().display());
        let config = Config::parse(&text, Path::new("test")).unwrap();
        let socket = config.sockets().next().unwrap().to_owned();
        let sockets = bind(&config).unwrap();
        let node = Node::open(config).unwrap();
        let (end, ended) = oneshot::channel();
        let serving = tokio::spawn({
            let node = Arc::clone(&node);
            async move { serve(&node, sockets, async { ended.await.unwrap() }).await.unwrap() }
        });
        Self { node, socket, end: Some(end), serving, _directory: directory }
    }

    async fn client(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Client(sender)
    }

    async fn end(mut self) {
        self.end.take().unwrap().send(()).unwrap();
        tokio::time::timeout(PATIENCE, &mut self.serving).await.unwrap().unwrap();
        assert!(!self.socket.exists(), "the socket's file goes with the daemon");
    }
}

#[derive(Clone)]
struct Client(SendRequest<Body>);

impl Service<Request<Body>> for Client {
    type Response = Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

impl Client {
    async fn call<Q, A>(&self, service: &str, method: &str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = format!("/runtime.v1.{service}/{method}");
        let mut grpc = tonic::client::Grpc::with_origin(self.clone(), Uri::from_static("http://localhost"));
        grpc.ready().await.unwrap();
        let path = PathAndQuery::try_from(path).unwrap();
        let call = grpc.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default());
        tokio::time::timeout(PATIENCE, call).await.expect("an answer").map(tonic::Response::into_inner)
    }
}

/// The calls of a service, as the proto has them.
fn calls(service: &str) -> Vec<&'static str> {
    let proto = include_str!("../../proto/api.proto");
    let (_, rest) = proto.split_once(&format!("service {service} {{")).unwrap();
    let (block, _) = rest.split_once("\n}").unwrap();
    let calls = block.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split_once('('));
    calls.map(|(name, _)| name).collect()
}

/// Never built.
const REFUSED: &[&str] = &["CheckpointContainer", "CheckpointPod", "RestorePod"];
/// Answered without an object.
const ANSWERED: &[&str] = &[
    "Version",
    "Status",
    "RuntimeConfig",
    "ListPodSandbox",
    "ListContainers",
    "ListContainerStats",
    "ListPodSandboxStats",
    "ListMetricDescriptors",
    "ListPodSandboxMetrics",
    "UpdateRuntimeConfig",
    "ListImages",
    "ImageFsInfo",
];
/// Answered by a stream, which is empty where there is nothing: the client here takes that for a missing message.
const STREAMS: &[&str] = &[
    "StreamPodSandboxes",
    "StreamContainers",
    "StreamContainerStats",
    "StreamPodSandboxStats",
    "StreamPodSandboxMetrics",
    "StreamImages",
];
/// Answered by a stream without an end, for which this client would wait.
const ENDLESS: &str = "GetContainerEvents";
/// Refused because an empty request names nothing.
const NEED_AN_OBJECT: &[&str] = &[
    "ContainerStats",
    "PodSandboxStats",
    "UpdateContainerResources",
    "UpdatePodSandboxResources",
    "ReopenContainerLog",
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "PodSandboxStatus",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "ContainerStatus",
    "ExecSync",
    "Attach",
    "Exec",
    "PortForward",
    "ImageStatus",
    "PullImage",
    "RemoveImage",
];

#[tokio::test]
async fn every_call_takes_an_empty_request_cleanly() {
    let served = Served::new();
    served.node.gate.open();
    let client = served.client().await;
    let all: Vec<_> = ["RuntimeService", "ImageService"]
        .into_iter()
        .flat_map(|service| calls(service).into_iter().map(move |method| (service, method)))
        .collect();
    assert_eq!(all.len(), 43, "of cri-api v0.37: {all:?}");
    for (service, method) in all.into_iter().filter(|(_, method)| *method != ENDLESS) {
        // The unit is the message without fields.
        let answer: Result<(), Status> = client.call(service, method, ()).await;
        match answer {
            Ok(()) => assert!(ANSWERED.contains(&method), "{method} was answered"),
            Err(status) if NEED_AN_OBJECT.contains(&method) => {
                assert_eq!(status.code(), Code::InvalidArgument, "{method}: {status}");
            }
            Err(status) if STREAMS.contains(&method) => {
                assert!(status.message().contains("Missing response message"), "{method}: {status}");
            }
            Err(status) => {
                assert!(REFUSED.contains(&method), "{method}: {status}");
                assert_eq!(status.code(), Code::Unimplemented, "{method}: {status}");
                assert!(status.message().contains(method), "{method}: {status}");
            }
        }
    }
    drop(client);
    served.end().await;
}

#[tokio::test]
async fn the_gate_holds_back_what_needs_the_model() {
    let served = Served::new();
    let client = served.client().await;
    let status: wire::StatusResponse =
        client.call("RuntimeService", "Status", wire::StatusRequest { verbose: true }).await.unwrap();
    let conditions = status.status.unwrap().conditions;
    let ready = |kind: &str| conditions.iter().find(|found| found.r#type == kind).unwrap().status;
    assert!(!ready("RuntimeReady") && !ready("NetworkReady"));
    assert!(status.runtime_handlers.iter().any(|handler| handler.name.is_empty()));

    let held = tokio::spawn({
        let client = client.clone();
        async move { client.call::<_, ()>("RuntimeService", "ListPodSandbox", ()).await }
    });
    // Answered after the held one was sent on the same connection.
    let _: wire::VersionResponse = client.call("RuntimeService", "Version", ()).await.unwrap();
    assert!(!held.is_finished());
    served.node.gate.open();
    held.await.unwrap().unwrap();
    drop(client);
    served.end().await;
}

#[tokio::test]
async fn hostile_messages_end_in_an_error_and_nothing_else() {
    let served = Served::new();
    served.node.gate.open();
    let client = served.client().await;
    // Field 2 is `runtime_handler`, a string: these bytes are none.
    let not_utf8 = wire::KeyValue { key: String::new(), value: vec![0xff, 0xfe] };
    let answer = client.call::<_, ()>("RuntimeService", "RunPodSandbox", not_utf8).await;
    assert!(answer.is_err());
    let huge = wire::VersionRequest { version: "v".repeat(17 * 1024 * 1024) };
    assert_eq!(
        client.call::<_, ()>("RuntimeService", "Version", huge).await.unwrap_err().code(),
        Code::OutOfRange
    );
    let large = wire::VersionRequest { version: "v".repeat(15 * 1024 * 1024) };
    client.call::<_, ()>("RuntimeService", "Version", large).await.unwrap();
    let unknown = client.call::<_, ()>("RuntimeService", "Fly", ()).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    drop(client);
    served.end().await;
}

#[tokio::test]
async fn an_idle_client_does_not_hold_the_end_up() {
    let served = Served::new();
    let idle = UnixStream::connect(&served.socket).await.unwrap();
    // Accepted after the idle one, so that one is the server's business by now.
    let client = served.client().await;
    client.call::<_, ()>("RuntimeService", "Version", ()).await.unwrap();
    drop(client);
    served.end().await;
    drop(idle);
}

#[tokio::test]
async fn a_call_that_is_late_says_so() {
    let served = Served::new();
    let client = served.client().await;
    for timeout in [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(50)] {
        // Held back by the gate, for longer than it has.
        let mut request = tonic::Request::new(());
        request.set_timeout(timeout);
        let mut grpc = tonic::client::Grpc::with_origin(client.clone(), Uri::from_static("http://localhost"));
        grpc.ready().await.unwrap();
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/ListPodSandbox");
        let call = grpc.unary(request, path, ProstCodec::<(), ()>::default());
        let late = tokio::time::timeout(PATIENCE, call).await.expect("an answer").unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{timeout:?}: {late}");
    }
    drop(client);
    served.end().await;
}

#[derive(Clone)]
struct Panics;

impl Service<Request<Body>> for Panics {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        Box::pin(async { panic!("as a fault of an operation would") })
    }
}

#[tokio::test]
async fn a_panic_fails_its_call_alone() {
    let served = Served::new();
    let mut calls = CallLayer::new(Arc::clone(&served.node)).layer(Panics);
    for _ in 0..2 {
        let request =
            Request::builder().uri("/runtime.v1.RuntimeService/Version").body(Body::empty()).unwrap();
        let response = calls.call(request).await.unwrap();
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::Internal);
        assert!(status.message().contains("Version"), "{status}");
    }
    served.end().await;
}
