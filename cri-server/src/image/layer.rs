//! One layer from its registry to its files while it arrives: network, digest of the blob, decompression, diff ID, files.
//! Nothing is visible before size, digest and diff ID were found right.

use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cove_layer::{Digest, HashingReader, LayerError, Limits, Unpacked};
use futures_util::TryStreamExt as _;
use tokio::sync::oneshot;

use super::ImageError;
use super::manifest::Layer;
use super::progress::{LayerProgress, LayerState};
use super::record::{Headers, LayerRecord};
use super::registry::Registry;
use super::stage::{Stage, StagedLayer};
use super::store::Store;
use super::stream::{self, Feed, Source};

/// A layer's directory, the root of its files, its record, and what is kept of its archive.
const OWN_INODES: u64 = 4;

/// What the thread that unpacks found.
enum Fault {
    /// A file of the store.
    Store(ImageError),
    /// The layer itself, or the disk below the directory that it was written to.
    Layer(LayerError, PathBuf),
    /// Its digest, size or diff ID.
    Wrong(String),
    /// No bytes came any more: the network side knows why.
    CutOff,
}

/// A layer to fetch.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Its blob.
    pub(super) layer: Layer,
    /// What must come out.
    pub(super) diff_id: Digest,
    /// What lies in its place is of no use.
    pub(super) is_damaged: bool,
}

/// Fetches and unpacks one layer, unless it is there already and not damaged.
pub(super) async fn fetch(
    store: Arc<Store>,
    registry: Arc<Registry>,
    wanted: Wanted,
    limits: Arc<Limits>,
    progress: Arc<LayerProgress>,
) -> Result<Option<StagedLayer>, ImageError> {
    let Wanted { layer, diff_id, is_damaged } = wanted;
    if !is_damaged && store.index().layers.contains_key(&diff_id) {
        progress.set(LayerState::Present);
        return Ok(None);
    }
    progress.set(LayerState::Arriving);
    let (feed, source) = stream::channel();
    let unpacking = {
        let (layer, diff_id) = (layer.clone(), diff_id.clone());
        on_thread("unpack", move || unpack(store, source, &layer, diff_id, &limits))
    };
    let unpacking = async { unpacking.await.map_err(Fault::Store)? };
    let fed = pump(&registry, &layer, feed, &progress);
    let (fed, unpacked) = futures_util::future::join(fed, unpacking).await;
    // Whichever side failed first made the other fail: the network is the cause when the thread only saw no bytes.
    match (fed, unpacked) {
        (_, Ok(staged)) => {
            progress.set(LayerState::Done);
            Ok(Some(staged))
        }
        (Err(network), Err(Fault::CutOff)) => Err(network),
        (_, Err(fault)) => Err(error(&registry, &layer, fault)),
    }
}

/// Runs `work` on a thread of its own: it waits for the network, and would keep a thread of the pool that everything else
/// on this node shares. It starts at once and ends by itself when its source is cut off.
pub(super) fn on_thread<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, ImageError>> {
    let (done, result) = oneshot::channel();
    let run = move || {
        // Nobody waits any more: dropping a whole layer keeps it.
        let _ = done.send(work());
    };
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    async move {
        let failed = |error| ImageError::store("start or end a thread to unpack into", "images", error);
        started.map_err(failed)?;
        result.await.map_err(|_| failed(io::Error::other("the thread panicked")))
    }
}

/// Sends the blob to the thread.
async fn pump(
    registry: &Registry,
    layer: &Layer,
    feed: Feed,
    progress: &LayerProgress,
) -> Result<(), ImageError> {
    let mut blob = registry.blob(&layer.blob).await?;
    while let Some(data) = blob.try_next().await? {
        let count = data.len();
        if !feed.data(data).await {
            return Ok(());
        }
        progress.add(count);
    }
    feed.end().await;
    Ok(())
}

/// Runs on a thread that may wait. Cut off, it moves what it has made to the trash.
fn unpack(
    store: Arc<Store>,
    source: Source,
    layer: &Layer,
    diff_id: Digest,
    limits: &Limits,
) -> Result<StagedLayer, Fault> {
    let stage = Stage::new(store).map_err(Fault::Store)?;
    let mut blob = HashingReader::new(source, layer.blob.digest.algorithm());
    let headers = stage.headers().map_err(Fault::Store)?;
    let unpacked = cove_layer::unpack(&mut blob, layer.compression, &stage.files(), Some(headers), limits);
    if let Err(LayerError::Source(_)) = unpacked {
        return Err(Fault::CutOff);
    }
    // A blob that is not the one asked for is the better reason, so all of it is hashed; a full disk is not its fault.
    let is_writers_fault = unpacked.as_ref().is_err_and(|error| errno(error).is_some());
    if !is_writers_fault {
        verify_blob(blob, layer)?;
    }
    let unpacked = unpacked.map_err(|error| Fault::Layer(error, stage.files()))?;
    if unpacked.diff_id != diff_id {
        return Err(Fault::Wrong(format!(
            "its diff ID is {}, and the config says {diff_id}",
            unpacked.diff_id
        )));
    }
    stage.finish(diff_id, &record(&unpacked, Some(&layer.blob.digest))).map_err(Fault::Store)
}

/// The kernel's answer, where a file could not be written: then the layer is not to blame.
pub(super) fn errno(error: &LayerError) -> Option<rustix::io::Errno> {
    match error {
        LayerError::Write { errno, .. } => Some(*errno),
        LayerError::Parent { source, .. } | LayerError::Target(source) => source.errno(),
        LayerError::Headers(source) => rustix::io::Errno::from_io_error(source),
        _ => None,
    }
}

/// What is kept of a layer beside its files.
pub(super) fn record(unpacked: &Unpacked, blob: Option<&Digest>) -> LayerRecord {
    LayerRecord {
        size: unpacked.size,
        inodes: unpacked.inodes.saturating_add(OWN_INODES),
        is_opaque: unpacked.opaque_root,
        implicit: unpacked.implicit.iter().map(|path| STANDARD.encode(path.as_os_str().as_bytes())).collect(),
        blob: blob.map(Digest::to_string),
        below: (!unpacked.replaced).then_some(unpacked.inodes),
        headers: match unpacked.headers {
            _ if unpacked.replaced => Headers::Lost,
            Some(bytes) => Headers::Kept { bytes, archive: unpacked.archive },
            None => Headers::Unknown,
        },
    }
}

fn verify_blob(mut blob: HashingReader<Source>, layer: &Layer) -> Result<(), Fault> {
    drain(&mut blob).map_err(|_| Fault::CutOff)?;
    let (digest, ..) = blob.finish();
    if digest == layer.blob.digest {
        return Ok(());
    }
    Err(Fault::Wrong(format!("its digest is {digest}")))
}

fn drain(source: &mut impl Read) -> io::Result<u64> {
    io::copy(source, &mut io::sink())
}

fn error(registry: &Registry, layer: &Layer, fault: Fault) -> ImageError {
    let descriptor = format!("layer {}", layer.blob);
    match fault {
        Fault::Store(error) => error,
        Fault::Layer(LayerError::Limit { limit, max }, _) => {
            registry.content(&descriptor, format!("exceeds the limit {} = {max}", limit_key(limit)))
        }
        Fault::Layer(source, directory) => ImageError::Layer {
            reference: registry.reference().to_string(),
            descriptor,
            directory,
            source: Arc::new(source),
        },
        Fault::Wrong(reason) => registry.content(&descriptor, reason),
        Fault::CutOff => registry.content(&descriptor, "ended early"),
    }
}

/// The name of a limit of a layer in the configuration; the kernel's own limits have none there.
pub(super) fn limit_key(limit: &str) -> String {
    match limit {
        "path" | "component" => limit.to_owned(),
        limit => format!("image_limits.layer_{limit}"),
    }
}
