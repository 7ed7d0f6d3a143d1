//! For tests: a registry on loopback that can misbehave, and images to put into it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cove_layer::Digest;
use futures_util::stream;
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use serde_json::json;
use tokio::sync::Semaphore;

use super::manifest::host_architecture;
use super::{Images, Options, sha256};

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// How a path is answered instead of well.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    Status(u16),
    Redirect(String),
    /// Half of the body, and then the connection ends.
    Short,
    /// Half of the body, and then nothing until `Registry::let_go`.
    Hang,
    /// No answer at all until `Registry::let_go`.
    Silent,
    Encoded,
    /// So many bytes of each body, and then the connection ends.
    Breaks(usize),
    /// The same, so many times.
    BreaksFirst(usize, usize),
    /// 429 with this `Retry-After`, so many times.
    Busy(&'static str, usize),
}

#[derive(Debug, Default)]
struct State {
    documents: HashMap<String, (String, Vec<u8>)>,
    faults: HashMap<String, Fault>,
    hits: HashMap<String, usize>,
    authorizations: Vec<(String, Option<String>)>,
    ranges: Vec<(String, String)>,
    knows_no_ranges: bool,
    password: Option<String>,
    challenge: Option<String>,
    claimed: Option<String>,
}

/// A registry that serves until it is dropped.
#[derive(Debug)]
pub(super) struct TestRegistry {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<State>>,
    gate: Arc<Semaphore>,
    server: tokio::task::JoinHandle<()>,
}

/// What was pushed.
#[derive(Debug, Clone)]
pub(super) struct Pushed {
    pub(super) manifest: Digest,
    pub(super) config: Digest,
    pub(super) blobs: Vec<Digest>,
    pub(super) diff_ids: Vec<Digest>,
}

type Body = BoxBody<Bytes, std::io::Error>;

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl TestRegistry {
    pub(super) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, gate) = (Arc::new(Mutex::new(State::default())), Arc::new(Semaphore::new(0)));
        let server = {
            let (state, gate) = (state.clone(), gate.clone());
            tokio::spawn(async move {
                loop {
                    let (connection, _) = listener.accept().await.unwrap();
                    let (state, gate) = (state.clone(), gate.clone());
                    let service = service_fn(move |request| answer(state.clone(), gate.clone(), request));
                    let connection = hyper_util::rt::TokioIo::new(connection);
                    tokio::spawn(
                        hyper::server::conn::http1::Builder::new().serve_connection(connection, service),
                    );
                }
            })
        };
        Self { address, state, gate, server }
    }

    pub(super) fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub(super) fn put(&self, path: &str, media_type: &str, bytes: Vec<u8>) {
        self.state.lock().unwrap().documents.insert(path.to_owned(), (media_type.to_owned(), bytes));
    }

    pub(super) fn fault(&self, path: &str, fault: Fault) {
        self.state.lock().unwrap().faults.insert(path.to_owned(), fault);
    }

    pub(super) fn mend(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    pub(super) fn let_go(&self) {
        self.gate.add_permits(100);
    }

    /// From now on every `Range` is ignored.
    pub(super) fn knows_no_ranges(&self) {
        self.state.lock().unwrap().knows_no_ranges = true;
    }

    /// Paths and ranges that were asked for.
    pub(super) fn ranges(&self) -> Vec<(String, String)> {
        self.state.lock().unwrap().ranges.clone()
    }

    /// What a request without the right `Authorization` is answered with.
    pub(super) fn challenge(&self, challenge: &str) {
        self.state.lock().unwrap().challenge = Some(challenge.to_owned());
    }

    /// From now on everything but `/token` needs this `Authorization`.
    pub(super) fn protect(&self, authorization: &str) {
        self.state.lock().unwrap().password = Some(authorization.to_owned());
    }

    pub(super) fn claim(&self, digest: &str) {
        self.state.lock().unwrap().claimed = Some(digest.to_owned());
    }

    pub(super) fn hits(&self, path: &str) -> usize {
        self.state.lock().unwrap().hits.get(path).copied().unwrap_or(0)
    }

    pub(super) fn hits_below(&self, prefix: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.hits.iter().filter(|(path, _)| path.contains(prefix)).map(|(_, count)| count).sum()
    }

    pub(super) fn authorizations(&self) -> Vec<(String, Option<String>)> {
        self.state.lock().unwrap().authorizations.clone()
    }

    /// Pushes an image of these layers (tar archives).
    pub(super) fn push(&self, name: &str, tag: &str, layers: &[Vec<u8>]) -> Pushed {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| sha256(layer)).collect();
        self.push_with(name, tag, layers, &diff_ids)
    }

    pub(super) fn push_with(&self, name: &str, tag: &str, layers: &[Vec<u8>], diff_ids: &[Digest]) -> Pushed {
        let blobs: Vec<Vec<u8>> = layers.iter().map(|layer| gzip(layer)).collect();
        let diff_id_texts: Vec<String> = diff_ids.iter().map(Digest::to_string).collect();
        let config = serde_json::to_vec(&json!({
            "architecture": host_architecture(), "os": "linux", "config": {"Cmd": ["sh"], "Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": diff_id_texts},
        }))
        .unwrap();
        let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": sha256(bytes).to_string(), "size": bytes.len()});
        let layers: Vec<_> = blobs.iter().map(|blob| descriptor(LAYER, blob)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config), "layers": layers});
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let pushed = Pushed {
            manifest: sha256(&manifest),
            config: sha256(&config),
            blobs: blobs.iter().map(|blob| sha256(blob)).collect(),
            diff_ids: diff_ids.to_vec(),
        };
        self.put(&blob_path(name, &pushed.config), "application/octet-stream", config);
        for blob in blobs {
            self.put(&blob_path(name, &sha256(&blob)), "application/octet-stream", blob);
        }
        self.put_manifest(name, tag, MANIFEST, manifest);
        pushed
    }

    pub(super) fn put_manifest(&self, name: &str, tag: &str, media_type: &str, bytes: Vec<u8>) {
        self.put(&format!("/v2/{name}/manifests/{}", sha256(&bytes)), media_type, bytes.clone());
        self.put(&format!("/v2/{name}/manifests/{tag}"), media_type, bytes);
    }
}

pub(super) fn blob_path(name: &str, digest: &Digest) -> String {
    format!("/v2/{name}/blobs/{digest}")
}

async fn answer(
    state: Arc<Mutex<State>>,
    gate: Arc<Semaphore>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let authorization =
        request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    let range = request.headers().get(header::RANGE).map(|value| value.to_str().unwrap().to_owned());
    let (document, fault, is_allowed, claimed, range, challenge) = {
        let mut state = state.lock().unwrap();
        if let Some(range) = &range {
            state.ranges.push((path.clone(), range.clone()));
        }
        *state.hits.entry(path.clone()).or_default() += 1;
        state.authorizations.push((path.clone(), authorization.clone()));
        let is_allowed = state.password.is_none() || state.password == authorization || path == "/token";
        let fault = state.faults.get(&path).cloned();
        if let Some(Fault::BreaksFirst(_, times) | Fault::Busy(_, times)) = state.faults.get_mut(&path) {
            *times -= 1;
            if *times == 0 {
                state.faults.remove(&path);
            }
        }
        (
            state.documents.get(&path).cloned(),
            fault,
            is_allowed,
            state.claimed.clone(),
            range.filter(|_| !state.knows_no_ranges),
            state.challenge.clone().unwrap_or_else(|| "Basic realm=\"test\"".to_owned()),
        )
    };
    let empty = |status: u16| Response::builder().status(status);
    let whole = |bytes: Vec<u8>| pieces(vec![Some(bytes)], gate.clone());
    let response = match (fault, document) {
        _ if !is_allowed => empty(401).header(header::WWW_AUTHENTICATE, challenge).body(whole(
            br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#.to_vec(),
        )),
        (Some(Fault::Status(status)), _) => empty(status).body(whole(Vec::new())),
        (Some(Fault::Redirect(to)), _) => empty(307).header(header::LOCATION, to).body(whole(Vec::new())),
        (Some(Fault::Busy(retry_after, _)), _) => {
            empty(429).header(header::RETRY_AFTER, retry_after).body(whole(Vec::new()))
        }
        (Some(Fault::Silent), _) => {
            let _permit = gate.acquire().await;
            empty(500).body(whole(Vec::new()))
        }
        (_, None) => empty(404).body(whole(
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#.to_vec(),
        )),
        (fault, Some((media_type, bytes))) => {
            let total = bytes.len();
            let (status, first, bytes) = part(range.as_deref(), bytes);
            let length = bytes.len();
            let mut response =
                empty(status).header(header::CONTENT_TYPE, media_type).header(header::CONTENT_LENGTH, length);
            if status == 206 {
                let part = format!("bytes {first}-{}/{total}", first + length - 1);
                response = response.header(header::CONTENT_RANGE, part);
            }
            if path.contains("/manifests/") {
                let digest = claimed.unwrap_or_else(|| sha256(&bytes).to_string());
                response = response.header("Docker-Content-Digest", digest);
            }
            let (first, second) = bytes.split_at(length / 2);
            let (first, second) = (first.to_vec(), second.to_vec());
            match fault {
                Some(Fault::Breaks(after) | Fault::BreaksFirst(after, _)) if after < length => {
                    response.body(broken(bytes[..after].to_vec()))
                }
                Some(Fault::Short) => response.body(pieces(vec![Some(first)], gate)),
                Some(Fault::Hang) => response.body(pieces(vec![Some(first), None, Some(second)], gate)),
                Some(Fault::Encoded) => response.header(header::CONTENT_ENCODING, "gzip").body(whole(bytes)),
                _ if request.method() == hyper::Method::HEAD => response.body(whole(Vec::new())),
                _ => response.body(whole(bytes)),
            }
        }
    };
    Ok(response.unwrap())
}

/// Status, first byte and bytes of what a `Range` wants.
fn part(range: Option<&str>, bytes: Vec<u8>) -> (u16, usize, Vec<u8>) {
    let Some(range) = range else { return (200, 0, bytes) };
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (first, last) = (first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap());
    (206, first, bytes[first..=last.min(bytes.len() - 1)].to_vec())
}

/// A body that ends early, once what it has is on its way: a server throws away what it has not sent by then.
fn broken(bytes: Vec<u8>) -> Body {
    let frames = stream::unfold(Some(bytes), |bytes| async move {
        match bytes {
            Some(bytes) if bytes.is_empty() => None,
            Some(bytes) => Some((Ok(Frame::data(Bytes::from(bytes))), None)),
            None => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Some((Err(std::io::Error::other("broken")), Some(Vec::new())))
            }
        }
    });
    BoxBody::new(SyncBody(Mutex::new(Box::pin(StreamBody::new(frames)))))
}

/// A body of pieces; `None` waits for the gate.
fn pieces(pieces: Vec<Option<Vec<u8>>>, gate: Arc<Semaphore>) -> Body {
    let frames = stream::unfold((pieces.into_iter(), gate), |(mut pieces, gate)| async move {
        let mut next = pieces.next()?;
        if next.is_none() {
            gate.acquire().await.ok()?.forget();
            next = pieces.next()?;
        }
        Some((Ok(Frame::data(Bytes::from(next?))), (pieces, gate)))
    });
    BoxBody::new(SyncBody(Mutex::new(Box::pin(StreamBody::new(frames)))))
}

/// Streams of async blocks are not `Sync`, which a boxed body wants.
struct SyncBody<B>(Mutex<std::pin::Pin<Box<B>>>);

impl<B: hyper::body::Body> hyper::body::Body for SyncBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.0.lock().unwrap().as_mut().poll_frame(context)
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer of files: a name that ends in '/' is a directory.
pub(super) fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(u64::try_from(content.len()).unwrap());
        header.set_mode(if name.ends_with('/') { 0o755 } else { 0o644 });
        header.set_entry_type(if name.ends_with('/') {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A store in a directory of its own.
#[derive(Debug)]
pub(super) struct TestStore {
    pub(super) root: PathBuf,
    pub(super) images: Images,
}

impl TestStore {
    pub(super) fn open(root: &Path) -> Self {
        Self::open_with(root, Duration::from_secs(20))
    }

    pub(super) fn open_with(root: &Path, progress: Duration) -> Self {
        Self::open_as(root, Options { progress, ..Options::default() })
    }

    pub(super) fn open_as(root: &Path, options: Options) -> Self {
        let options = Options { first_wait: Duration::from_millis(5), ..options };
        let images = Images::open(root, options).unwrap();
        images.recovered();
        Self { root: root.to_owned(), images }
    }

    /// Names in a directory of the store.
    pub(super) fn names(&self, directory: &str) -> Vec<String> {
        let read = std::fs::read_dir(self.root.join("images").join(directory)).unwrap();
        let mut names: Vec<_> = read.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Waits until the store holds exactly these layers and nothing half-done.
    pub(super) async fn settles_with(&self, diff_ids: &[&Digest]) {
        let mut expected: Vec<String> = diff_ids.iter().map(|diff_id| diff_id.hex().to_owned()).collect();
        expected.sort();
        let state = || (self.names("layers"), self.names("tmp"), self.names("trash"));
        let limit = Instant::now() + Duration::from_secs(20);
        while state() != (expected.clone(), Vec::new(), Vec::new()) {
            assert!(Instant::now() < limit, "the store has {:?}; expected layers {expected:?}", state());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
