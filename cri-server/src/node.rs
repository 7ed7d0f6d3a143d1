//! Everything that one daemon holds. Fields only: an operation takes the parts that it uses.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::blocking;
use crate::cgroup::Cgroups;
use crate::config::Config;
use crate::container::config::ContainerConfig;
use crate::container::exec_sync::Budget;
use crate::container::live::{Container, ContainerKey};
use crate::detach::Flight;
use crate::error::{Error, Kind};
use crate::events::Events;
use crate::gate::Gate;
use crate::image::{Images, Options, Proxies};
use crate::name::{Names, Waiter};
use crate::network::Network;
use crate::sandbox::config::{SandboxConfig, SandboxName};
use crate::sandbox::live::Sandbox;
use crate::shim::Launcher;
use crate::stats::Usage;
use crate::step::{Operation, Operations, Progress};
use crate::store::{self, Claims, Clock, Index, RootLock};
use crate::stream::Streams;

/// How long the end of the daemon waits for operations in flight; what is not done by then is finished by the next
/// daemon, from its record. A service manager gives 90 seconds (systemd's TimeoutStopSec).
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// One instance of Cove.
#[derive(Debug)]
pub struct Node {
    /// The configuration in force.
    pub config: ArcSwap<Config>,
    /// Shut until the model is whole.
    pub gate: Gate,
    /// Images.
    pub images: Images,
    /// Sandboxes by id.
    pub sandboxes: Index<Sandbox>,
    /// Containers by id.
    pub containers: Index<Container>,
    /// Who owns a pod's name.
    pub sandbox_names: Names<SandboxName, SandboxConfig>,
    /// Who owns a container's name.
    pub container_names: Names<ContainerKey, ContainerConfig>,
    /// Control groups.
    pub cgroups: Cgroups,
    /// Exec, attach and port-forward.
    pub streams: Streams,
    /// What happens, for whoever listens.
    pub events: Arc<Events>,
    /// The time that objects carry.
    pub clock: Clock,
    /// Operations in flight.
    pub operations: Operations,
    /// What may be kept of what commands write.
    pub exec_output: Budget,
    /// What is kept between two readings of what pods use.
    pub usage: Usage,
    /// Every task that must end before the daemon does.
    pub tasks: TaskTracker,
    /// The daemon is about to end: nobody waits for what may come later.
    pub draining: CancellationToken,
    network: OnceLock<Network>,
    user_namespaces: OnceLock<Result<(), String>>,
    launcher: OnceLock<Arc<Launcher>>,
    _locks: [RootLock; 2],
}

/// What the configuration says of images.
pub(crate) fn image_options(config: &Config) -> Options {
    Options {
        plain_http: config.images.plain_http.clone(),
        hosts_dirs: config.images.hosts_dirs.clone(),
        pinned: config.images.pinned.clone(),
        proxies: Proxies::from_env(),
        parallel_layers: config.images.max_parallel_layers,
        parallel_ranges: config.images.max_parallel_ranges,
        range_threshold: config.images.range_threshold,
        progress: Duration::from_secs(config.images.progress_seconds),
        longest_wait: Duration::from_secs(config.images.max_wait_seconds),
        bounds: config.image_limits.bounds(),
        limits: config.image_limits.layer(),
        ..Options::default()
    }
}

impl Node {
    /// Takes both roots (a second daemon is refused) and opens the image store. Makes nothing in the kernel: that is
    /// recovery's, which knows what is there.
    pub fn open(config: Config) -> Result<Arc<Self>, Error> {
        let locks = [RootLock::take(&config.root)?, RootLock::take(&config.state)?];
        Claims::of(&config.instance).add(&config.root, &config.state)?;
        Ok(Arc::new(Self {
            gate: Gate::default(),
            images: Images::open(&config.root, image_options(&config))?,
            sandboxes: Index::new(Kind::Sandbox),
            containers: Index::new(Kind::Container),
            sandbox_names: Names::default(),
            container_names: Names::default(),
            cgroups: Cgroups::open(config.cgroup_driver, &config.cgroup_parent)?,
            streams: Streams::open(&config.stream)?,
            events: Arc::default(),
            clock: Clock::default(),
            operations: Operations::default(),
            exec_output: Budget::default(),
            usage: Usage::default(),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            network: OnceLock::new(),
            user_namespaces: OnceLock::new(),
            launcher: OnceLock::new(),
            config: ArcSwap::from_pointee(config),
            _locks: locks,
        }))
    }

    /// What recovery found and made, once.
    pub fn equip(&self, network: Network, launcher: Launcher) {
        let known = self.network.set(network).is_err() || self.launcher.set(Arc::new(launcher)).is_err();
        debug_assert!(!known, "recovery runs once");
    }

    /// What was found out about user namespaces, once.
    pub fn learn_of_user_namespaces(&self, found: Result<(), String>) {
        let known = self.user_namespaces.set(found).is_err();
        debug_assert!(!known, "recovery runs once");
    }

    /// Pods can have user namespaces of their own, or why not.
    pub fn user_namespaces(&self) -> Result<(), Error> {
        match self.user_namespaces.get() {
            None => Err(Error::Unavailable("the daemon does not know yet whether user namespaces work here")),
            Some(Ok(())) => Ok(()),
            Some(Err(reason)) => Err(Error::invalid(
                "config.linux.security_context.namespace_options.userns_options",
                format!("pods cannot have user namespaces on this node: {reason}"),
            )),
        }
    }

    /// The pod network.
    pub fn network(&self) -> Result<&Network, Error> {
        self.network.get().ok_or(Error::Unavailable("the daemon has not set up its network yet"))
    }

    /// Who starts shims.
    pub fn launcher(&self) -> Result<&Launcher, Error> {
        let launcher = self.launcher.get().map(AsRef::as_ref);
        launcher.ok_or(Error::Unavailable("the daemon cannot start shims yet"))
    }

    /// Joins the operation of an object that is under way, or begins it, and waits for its end within `limit`.
    pub async fn join<F>(
        &self,
        flight: &Flight<()>,
        limit: Duration,
        (operation, id): (Operation, &str),
        work: impl FnOnce(Arc<Progress>) -> F,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        flight
            .join(&self.tasks, limit, || {
                let progress = self.operations.begin(operation, id);
                (Arc::clone(&progress), work(progress))
            })
            .await
    }

    /// Waits for the work that a name is claimed by, within `limit`.
    pub async fn wait_for_name(
        &self,
        operation: Operation,
        limit: Duration,
        waiter: Waiter,
    ) -> Result<String, Error> {
        let id = waiter.id.clone();
        let interrupted = || {
            let object = format!("{} {id}", operation.kind);
            Error::Interrupted { operation: operation.name, object }
        };
        match timeout(limit, waiter.outcome()).await {
            Ok(Some(Ok(id))) => Ok(id),
            Ok(Some(Err(error))) => Err(Error::Joined(error)),
            Ok(None) => Err(interrupted()),
            Err(_) => Err(match self.operations.find(operation.name, &id) {
                Some(progress) => progress.still_running(),
                None => interrupted(),
            }),
        }
    }

    /// Removes what lies in the trash, when there is time.
    pub fn empty_trash(&self, path: PathBuf) {
        self.tasks.spawn(async move {
            if let Err(error) = blocking::run(move || store::remove_tree(&path)).await {
                tracing::warn!(%error, "what was removed is still on disk; the next start tries again");
            }
        });
    }

    /// Waits for the operations in flight, for a bounded time. Containers go on.
    pub async fn drain(&self) {
        self.draining.cancel();
        self.tasks.close();
        if timeout(DRAIN_LIMIT, self.tasks.wait()).await.is_err() {
            let left = self.operations.in_flight();
            for progress in &left {
                let (step, age) = progress.at();
                tracing::warn!(
                    operation = progress.operation.name,
                    id = progress.id,
                    step,
                    ?age,
                    "left to the next daemon"
                );
            }
        }
        if self.sandboxes.all().is_empty()
            && let Err(error) = self.close().await
        {
            tracing::warn!(%error, "something of this instance is left in the kernel");
        }
    }

    /// Takes down what the instance shares among its pods, when it has none.
    async fn close(&self) -> Result<(), Error> {
        // The thread that starts shims lives in their cgroup, which could not be removed with it in there.
        if let Some(launcher) = self.launcher.get().cloned() {
            blocking::run(move || launcher.end()).await;
        }
        let mut closed = self.cgroups.close().await;
        // Not there when the daemon ends before recovery did.
        if let Some(network) = self.network.get().cloned() {
            let instance = self.config.load().instance.clone();
            closed = blocking::run(move || network.close(&instance)).await.and(closed);
        }
        let config = self.config.load_full();
        blocking::run(move || Claims::of(&config.instance).remove(&config.root)).await.and(closed)
    }
}
