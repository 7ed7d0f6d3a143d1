//! Images: names, registry, pull, store.
//!
//! [`Images`] is what the rest of the daemon uses. A pull is [`pull`], an import [`import`] of what `plan` finds in
//! `contents`; what it needs lies in one file each: names in
//! `reference`, the registry in `registry` over `transport`, documents in `manifest` and `config`, layers in `layer` and
//! `stage`, disk in `layout` and `record`, memory in `store` and `catalog`. Never runs anything that came with an image, and
//! reads none of its labels.

mod auth;
mod background;
mod bounds;
mod catalog;
mod check;
#[cfg(test)]
mod check_tests;
mod collect;
mod commit;
mod config;
mod content;
mod contents;
mod error;
mod export;
#[cfg(test)]
mod export_tests;
mod fix_up;
mod flight;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod hosts;
mod import;
#[cfg(test)]
mod import_tests;
mod inventory;
mod layer;
mod layout;
mod lease;
mod links;
mod manifest;
mod outline;
mod pinned;
mod plan;
mod progress;
mod pull;
mod record;
mod reference;
mod registry;
mod remove;
mod resolve;
mod secret;
mod stage;
mod store;
mod stream;
pub(crate) mod tar;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transport;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cove_layer::{Algorithm, Digest, Limits};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use hyper::body::Bytes;

pub use bounds::Bounds;
pub use check::{Checked, Finding};
pub use error::ImageError;
use flight::Flights;
pub use import::Choices;
pub(crate) use inventory::{OnDisk, OnDiskLayer, inventory};
pub(crate) use links::Links;
pub(crate) use outline::Outline;
use pinned::Pinned;
pub(crate) use pinned::is_pattern;
pub(crate) use plan::Documents;
#[cfg(feature = "containerd")]
pub(crate) use plan::{DOCKER, named_by};
pub(crate) use plan::{INDEX, LAYOUT};
use progress::{Board, LayerProgress};
pub use progress::{LayerNow, LayerState, Progress};
use reference::Reference;
use registry::{Manner, Patience, Ranges, Registry};
pub use secret::Secret;
use store::Store;
use tokio::sync::mpsc;
pub use transport::Proxies;
use transport::{Settings, Transport};

use crate::blocking;

/// How long a registry may send nothing (features.md 5.5).
const PROGRESS_LIMIT: Duration = Duration::from_secs(300);
/// How many layers of one pull are fetched at once (security-bar.md R28).
const PARALLEL_LAYERS: usize = 3;
/// How large a blob is that is fetched in ranges, and how many of them at once (performance.md: less is one connection's).
const RANGE_THRESHOLD: u64 = 64 << 20;
/// See [`RANGE_THRESHOLD`].
const PARALLEL_RANGES: usize = 4;
/// The first and the longest wait for a registry that is busy.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// See [`FIRST_WAIT`].
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What an administrator can choose.
#[derive(Debug, Clone)]
pub struct Options {
    /// Registries (`host` or `host:port`) that are asked without TLS, beside those on loopback.
    pub plain_http: Vec<String>,
    /// Where `REGISTRY/hosts.toml` files and certificates lie, the first that has some counts.
    pub hosts_dirs: Vec<PathBuf>,
    /// Who stands between this node and registries.
    pub proxies: Proxies,
    /// Names of images that are never collected (see `pinned`).
    pub pinned: Vec<String>,
    /// How many layers of one pull are fetched at once.
    pub parallel_layers: usize,
    /// How long a registry may send nothing.
    pub progress: Duration,
    /// How many ranges of one large layer are fetched at once; 1: none is fetched in ranges.
    pub parallel_ranges: usize,
    /// Bytes of a layer from which on it is fetched in ranges.
    pub range_threshold: u64,
    /// The first pause before a registry that is busy is asked again.
    pub first_wait: Duration,
    /// The longest pause that a registry may ask for.
    pub longest_wait: Duration,
    /// What an image may cost before it is unpacked.
    pub bounds: Bounds,
    /// What a layer may take.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            plain_http: Vec::new(),
            hosts_dirs: Vec::new(),
            proxies: Proxies::default(),
            pinned: Vec::new(),
            parallel_layers: PARALLEL_LAYERS,
            progress: PROGRESS_LIMIT,
            parallel_ranges: PARALLEL_RANGES,
            range_threshold: RANGE_THRESHOLD,
            first_wait: FIRST_WAIT,
            longest_wait: LONGEST_WAIT,
            bounds: Bounds::default(),
            limits: Limits::default(),
        }
    }
}

impl Options {
    fn transport(&self) -> Settings {
        Settings {
            plain_http: self.plain_http.clone(),
            progress: self.progress,
            redirects: self.bounds.redirects,
            proxies: self.proxies.clone(),
        }
    }

    fn manner(&self) -> Manner {
        Manner {
            transport: Arc::new(Transport::new(self.transport())),
            bounds: self.bounds.clone(),
            ranges: Ranges { threshold: self.range_threshold, parallel: self.parallel_ranges },
            patience: Patience { first: self.first_wait, longest: self.longest_wait },
        }
    }
}

/// What an image says of the containers made from it. Every value comes from the image: hostile until checked.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ImageConfig {
    /// `USER`.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<String>,
    /// `CMD`.
    pub cmd: Vec<String>,
    /// `WORKDIR`.
    pub working_dir: String,
    /// `STOPSIGNAL`, as written.
    pub stop_signal: String,
    /// `VOLUME`s, as written.
    pub volumes: Vec<String>,
}

/// A whole image in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:` and the digest of its config: the same value in all four places of the CRI.
    pub id: String,
    /// `registry/name:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// `registry/name@sha256:…`, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes that its layers, manifest and config take.
    pub size: u64,
    /// Never collected.
    pub pinned: bool,
    /// What it says of containers.
    pub config: ImageConfig,
    /// Directories for an overlay, the uppermost first.
    pub layers: Vec<PathBuf>,
}

/// Keeps an image's layers from being collected while it, or a clone of it, lives.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The image.
    pub image: Arc<Image>,
    _guard: Arc<lease::Guard>,
}

/// Layers that are in the store, and stay there while this lives.
#[derive(Debug)]
pub struct Present {
    /// Their diff IDs.
    pub diff_ids: Vec<Digest>,
    _pins: lease::Pins,
}

/// Credentials of one pull. Nothing of it is stored or logged.
#[derive(Clone, Default)]
pub struct Auth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: Secret,
    /// base64 of `user:password`.
    pub auth: Secret,
    /// The registry that these are for; empty: the image's own.
    pub server_address: String,
    /// Refresh token.
    pub identity_token: Secret,
    /// Bearer token.
    pub registry_token: Secret,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth(…)")
    }
}

/// What images take on disk.
#[derive(Debug, Clone)]
pub struct FsInfo {
    /// Directory on the disk that holds them.
    pub mountpoint: PathBuf,
    /// Bytes.
    pub used_bytes: u64,
    /// Inodes.
    pub inodes_used: u64,
}

/// What pulls share.
#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    manner: Manner,
    hosts_dirs: Vec<PathBuf>,
    /// Pulls that run, by reference and credentials.
    pulls: Flights<PullKey, Image>,
    /// Layers that are being fetched.
    layers: Flights<pull::LayerKey, Option<stage::StagedLayer>>,
    /// How far each pull is.
    pulling: Board<PullKey, Progress>,
    /// How far each layer is.
    fetching: Board<pull::LayerKey, LayerProgress>,
    parallel_layers: usize,
    limits: Arc<Limits>,
}

/// What makes two pulls one: the reference, and the credentials.
type PullKey = (Reference, Option<Digest>);

/// Every image of this node.
#[derive(Debug, Clone)]
pub struct Images {
    shared: Arc<Shared>,
}

impl Images {
    /// Opens the store in `images` below `root` (the instance's root directory), reads the records of whole images, and
    /// removes what an earlier daemon left half-done. Nothing is collected before [`Images::recovered`].
    pub fn open(root: &Path, options: Options) -> Result<Self, ImageError> {
        let (sender, jobs) = std::sync::mpsc::channel();
        let store = Arc::new(Store::open(root.join("images"), Pinned::new(&options.pinned), sender)?);
        background::start(Arc::downgrade(&store), jobs)?;
        let shared = Shared {
            store,
            manner: options.manner(),
            hosts_dirs: options.hosts_dirs,
            pulls: Flights::default(),
            layers: Flights::default(),
            pulling: Board::default(),
            fetching: Board::default(),
            parallel_layers: options.parallel_layers.max(1),
            limits: Arc::new(options.limits),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Every container record has said by [`Images::hold`] what it needs: from now on what nobody needs is deleted. Not
    /// called while a container record cannot be read.
    pub fn recovered(&self) {
        self.shared.store.index().recovered = true;
        self.shared.store.later(background::Job::Collect);
    }

    /// Pulls `reference` and returns the image once it is whole, synced and visible. Pulls of the same reference with the
    /// same credentials are one. Cancelled by dropping the future: the last of them ends it, and whole layers are kept.
    pub async fn pull(&self, reference: &str, auth: Option<Auth>) -> Result<Arc<Image>, ImageError> {
        self.pull_watched(reference, auth, |_| ()).await
    }

    /// The same, and tells `watch` where it can be seen how far the pull is.
    pub async fn pull_watched(
        &self,
        reference: &str,
        auth: Option<Auth>,
        watch: impl FnOnce(Arc<Progress>) + Send,
    ) -> Result<Arc<Image>, ImageError> {
        let reference = Reference::parse(reference)?;
        let credentials = auth::Credentials::new(auth.as_ref(), &reference)?;
        let hosts = {
            let (shared, reference) = (self.shared.clone(), reference.clone());
            blocking::run(move || hosts::of(&shared.hosts_dirs, &reference, &shared.manner.transport)).await?
        };
        let registry = Registry::new(self.shared.manner.clone(), reference.clone(), hosts, credentials);
        let key = (reference, auth::fingerprint(auth.as_ref()));
        let new = || Progress::new(registry.reference().to_string());
        let progress = self.shared.pulling.join(key.clone(), new);
        watch(progress.clone());
        let shared = self.shared.clone();
        self.shared.pulls.join(key, || pull::pull(shared, Arc::new(registry), progress).boxed()).await
    }

    /// Every pull that runs, and how far it is.
    pub fn pulls(&self) -> Vec<Arc<Progress>> {
        let mut pulls = self.shared.pulling.all();
        pulls.sort_by_key(|pull| std::cmp::Reverse(pull.age()));
        pulls
    }

    /// Takes in the images of an archive (`docker save`, or a tar of an OCI image layout) that arrives as a stream, and is
    /// unpacked while it does. Dropping the future ends it, and leaves nothing.
    pub async fn import<E>(
        &self,
        archive: impl Stream<Item = Result<Bytes, E>> + Send,
        choices: Choices,
        progress: Arc<Progress>,
    ) -> Result<Vec<Arc<Image>>, ImageError> {
        let (feed, source) = stream::channel();
        let shared = self.shared.clone();
        let working = layer::on_thread("import", move || {
            let bounds = &shared.manner.bounds;
            import::import(&shared.store, source, &choices, bounds, &shared.limits, &progress)
        });
        let feeding = async {
            let mut archive = std::pin::pin!(archive);
            while let Some(bytes) = archive.next().await {
                // Without an end, a feed that is dropped cuts the archive off.
                let Ok(bytes) = bytes else { return };
                if !feed.data(bytes).await {
                    return;
                }
            }
            feed.end().await;
        };
        let ((), imported) = futures_util::future::join(feeding, working).await;
        imported?
    }

    /// Which of these layers are in the store, in the order of the question. They stay there while what is returned lives.
    pub fn present(&self, diff_ids: &[Digest]) -> Present {
        let pins = lease::Pins::new(self.shared.store.clone(), diff_ids);
        let index = self.shared.store.index();
        let there = diff_ids.iter().filter(|diff_id| index.layers.contains_key(diff_id)).cloned().collect();
        Present { diff_ids: there, _pins: pins }
    }

    /// Writes images as an archive that other tools read, too. Its bytes come while the future is waited for; without what the
    /// future gives they are no whole archive. Dropping the receiver ends it.
    pub fn export(
        &self,
        references: Vec<String>,
        progress: Arc<Progress>,
    ) -> (mpsc::Receiver<Bytes>, impl Future<Output = Result<Vec<Arc<Image>>, ImageError>> + Send + use<>)
    {
        let (outlet, pieces) = stream::outlet();
        let store = self.shared.store.clone();
        let working =
            layer::on_thread("export", move || export::export(&store, &references, outlet, &progress));
        (pieces, async move { working.await? })
    }

    /// Looks through the whole store for what is damaged: takes a look at every file of every layer, and with `content` reads
    /// them all. Ended by dropping the future.
    pub async fn check(&self, content: bool, progress: Arc<Progress>) -> Result<Checked, ImageError> {
        let (store, over) = (self.shared.store.clone(), Over::default());
        let is_over = over.0.clone();
        let look = move || {
            let reader = content::Reader { progress: &progress, is_over: &is_over };
            check::check(&store, content.then_some(&reader))
        };
        layer::on_thread("check", look).await
    }

    /// Mends a damaged image by pulling it again: by the digest that it was pulled by, else by its tag. `content`: its files
    /// are read to find out which layers are damaged.
    pub async fn repair(
        &self,
        id: &str,
        content: bool,
        auth: Option<&Auth>,
        progress: Arc<Progress>,
    ) -> Result<Arc<Image>, ImageError> {
        let not_found = || ImageError::NotFound { reference: id.to_owned() };
        let digest: Digest = id.parse().map_err(|_| not_found())?;
        let (store, over) = (self.shared.store.clone(), Over::default());
        let (is_over, watched) = (over.0.clone(), progress.clone());
        let look = move || {
            let reader = content::Reader { progress: &watched, is_over: &is_over };
            check::damaged(&store, &digest, content.then_some(&reader))
        };
        let (image, damaged) = layer::on_thread("check", look).await??;
        let names = image.record.repo_digests.iter().chain(&image.record.repo_tags);
        let Some(name) = names.map(|name| Reference::parse(name)).next() else {
            let reason =
                "is damaged and has no name to be pulled by: remove it, and import it again".to_owned();
            return Err(ImageError::Damaged { image: id.to_owned(), reason });
        };
        let reference = name?;
        let credentials = auth::Credentials::new(auth, &reference)?;
        let hosts = {
            let (shared, reference) = (self.shared.clone(), reference.clone());
            blocking::run(move || hosts::of(&shared.hosts_dirs, &reference, &shared.manner.transport)).await?
        };
        let registry = Registry::new(self.shared.manner.clone(), reference, hosts, credentials);
        pull::again(self.shared.clone(), Arc::new(registry), image, damaged, progress).await
    }

    /// Whole images, each once; with a filter, those it names (by reference or id).
    pub fn list(&self, filter: Option<&str>) -> Vec<Arc<Image>> {
        match filter {
            None => self.shared.store.catalog().all(),
            Some(filter) => self.status(filter).into_iter().collect(),
        }
    }

    /// By tag, digest reference, id, or unique id prefix. Reads memory only.
    pub fn status(&self, reference: &str) -> Option<Arc<Image>> {
        self.shared.store.catalog().find(reference).ok().flatten().cloned()
    }

    /// The config of an image, byte for byte: its digest is the image's id. None where it is not kept any more.
    pub async fn config(&self, image: &Image) -> Result<Option<Vec<u8>>, ImageError> {
        let Ok(id) = image.id.parse::<Digest>() else { return Ok(None) };
        let store = self.shared.store.clone();
        blocking::run(move || Ok(store.layout.read_documents(&id)?.map(|documents| documents.config))).await
    }

    /// Finds an image and keeps it while the lease lives.
    pub fn lease(&self, reference: &str) -> Result<Lease, ImageError> {
        let (image, guard) = lease::lease(&self.shared.store, reference)?;
        Ok(Lease { image, _guard: Arc::new(guard) })
    }

    /// A container record refers to this image (by id), and maybe to others, until `release`: its layers outlive its
    /// names. Idempotent.
    pub fn hold(&self, image_id: &str, container_id: &str) {
        self.shared
            .store
            .index()
            .holds
            .entry(container_id.to_owned())
            .or_default()
            .insert(image_id.to_owned());
    }

    /// The image that this container holds, also after its names were removed.
    #[cfg(test)]
    pub fn held(&self, container_id: &str) -> Option<Arc<Image>> {
        let index = self.shared.store.index();
        let id: Digest = index.holds.get(container_id)?.first()?.parse().ok()?;
        index.images.get(&id).map(|entry| entry.image.clone())
    }

    /// The container record is gone.
    pub fn release(&self, container_id: &str) {
        let held = self.shared.store.index().holds.remove(container_id);
        for image_id in held.into_iter().flatten() {
            lease::collect_if_removed(&self.shared.store, &image_id);
        }
    }

    /// Removes every name of the image that `reference` names; unknown is success. It is invisible at once; layers that a
    /// container or a lease needs stay until they are let go.
    pub async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let (store, reference) = (self.shared.store.clone(), reference.to_owned());
        blocking::run(move || remove::remove(&store, &reference)).await
    }

    /// The one directory in which all layers lie.
    pub fn layers(&self) -> std::path::PathBuf {
        self.shared.store.layout.layers()
    }

    /// What images take on disk: counted while unpacking, never by a walk.
    pub fn fs_info(&self) -> FsInfo {
        let catalog = self.shared.store.catalog();
        FsInfo {
            mountpoint: self.shared.store.layout.root().to_owned(),
            used_bytes: catalog.used_bytes,
            inodes_used: catalog.inodes_used,
        }
    }
}

/// Tells a thread that nobody waits for it any more.
#[derive(Debug, Default)]
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The one form that a name of an image is stored in: `docker.io/library/busybox:latest` for `busybox`.
#[cfg(feature = "containerd")]
pub(crate) fn whole_name(text: &str) -> Result<String, ImageError> {
    Ok(Reference::parse(text)?.to_string())
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}
