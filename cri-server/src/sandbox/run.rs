//! RunPodSandbox: one function of named steps. What they are about to do is recorded first: the identity says where all of
//! it will be but for the shim, which bears the sandbox's id, and the attachment, which has a record of its own. Any
//! failure takes down what the records say.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cove_runtime::namespace;
use cove_runtime::protocol::{InitReply, Reply, Request, SandboxSpec, StartInit, UserSandbox};
use cove_runtime::sysctl::as_path;
use futures_util::future::join;
use tracing::Instrument;

use super::config::{NamespaceMode, SandboxConfig, SandboxName};
use super::files::{self, Files};
use super::live::Sandbox;
use super::record::SandboxIdentity;
use super::state::{SandboxFact, SandboxState};
use super::teardown::teardown;
use super::{applier, remove};
use crate::blocking;
use crate::cgroup::{Placement, Settings};
use crate::error::{Error, Kind};
use crate::name::{Claim, Owner};
use crate::node::Node;
use crate::shim::Shim;
use crate::step::{Operation, Progress, Steps};
use crate::store::{self, Durability};

/// The operation, for people and fail points.
pub const RUN: Operation = Operation {
    name: "RunPodSandbox",
    point: "sandbox.run",
    kind: Kind::Sandbox,
    steps: &["record", "shim", "namespaces", "pin", "network", "files", "cgroup", "init", "ready"],
};
/// A kubelet waits 4 minutes for this call (features.md 5.5); the answer comes inside them.
const RUN_LIMIT: Duration = Duration::from_secs(230);
/// How long a shim may take to make namespaces or an init: some milliseconds, and much more on a loaded host.
const SHIM_LIMIT: Duration = Duration::from_secs(30);
/// What users of other runtimes expect of a pod's own network (features.md 1.3): ports below 1024 for everyone.
const UNPRIVILEGED_PORTS: (&str, &str) = ("net.ipv4.ip_unprivileged_port_start", "0");
/// The same: ping for everyone.
const UNPRIVILEGED_PING: &str = "net.ipv4.ping_group_range";
/// The highest group of that range.
const MAX_GROUP: u32 = 2_147_483_647;

/// Makes a sandbox, or joins the call that already does, and returns its id once it is ready.
pub async fn run(node: &Arc<Node>, config: SandboxConfig) -> Result<String, Error> {
    files::check(&config)?;
    if node.config.load().handler(&config.runtime_handler).is_none() {
        return Err(Error::NotFound { kind: Kind::RuntimeHandler, id: config.runtime_handler });
    }
    if config.user_namespace.is_some() {
        node.user_namespaces()?;
    }
    let config = Arc::new(config);
    loop {
        let lives = |id: &str| node.sandboxes.get(id).is_some_and(|sandbox| sandbox.lives());
        let waiter = match node.sandbox_names.claim(&config.name, &config, store::new_id, lives)? {
            Claim::Begin(owner, waiter) => {
                begin(node, owner, Arc::clone(&config));
                waiter
            }
            Claim::Join(waiter) => waiter,
            Claim::Retry(waiter) => {
                // Its failure was told to those who waited for it; this call begins anew.
                let _ = node.wait_for_name(RUN, RUN_LIMIT, waiter).await;
                continue;
            }
            Claim::Finished(id) => return Ok(id),
            Claim::Taken(id) => {
                let name = readable(&config.name);
                return Err(Error::NameTaken { kind: Kind::Sandbox, name, id });
            }
        };
        return node.wait_for_name(RUN, RUN_LIMIT, waiter).await;
    }
}

fn readable(name: &SandboxName) -> String {
    format!("{}/{} (uid {}, attempt {})", name.namespace, name.name, name.uid, name.attempt)
}

/// Makes the sandbox in a task that no caller can cancel.
fn begin(node: &Arc<Node>, owner: Owner<SandboxName, SandboxConfig>, config: Arc<SandboxConfig>) {
    let progress = node.operations.begin(RUN, owner.id());
    let span = tracing::info_span!("run", sandbox = owner.id(), pod = readable(&config.name));
    let tasks = node.tasks.clone();
    let node = Arc::clone(node);
    let work = async move {
        let result = make(&node, &owner, config, progress).await;
        if let Err(error) = &result {
            tracing::warn!(%error, "sandbox was not made");
        }
        // A sandbox that nobody waits for any more is listed: a kubelet finds it, and stops what it does not want.
        owner.finish(result);
    };
    tasks.spawn(work.instrument(span));
}

async fn make(
    node: &Arc<Node>,
    owner: &Owner<SandboxName, SandboxConfig>,
    config: Arc<SandboxConfig>,
    progress: Arc<Progress>,
) -> Result<(), Error> {
    let sandbox = reserve(node, owner.id(), config);
    let _lock = sandbox.lock.lock().await;
    let mut steps = Steps::new(progress, sandbox.closing.clone());
    let Err(error) = sequence(node, &sandbox, &mut steps).await else { return Ok(()) };
    owner.undoing();
    Err(undo(node, &sandbox, error).await)
}

/// The sandbox in the index, seen by nobody but Stop and Remove.
fn reserve(node: &Arc<Node>, id: &str, config: Arc<SandboxConfig>) -> Arc<Sandbox> {
    let settings = node.config.load();
    let handler = settings.handler(&config.runtime_handler).cloned().unwrap_or_default();
    let identity = SandboxIdentity {
        id: id.to_owned(),
        created_at: node.clock.now(),
        netns: (config.network != NamespaceMode::Node)
            .then(|| settings.netns_dir.join(format!("{}-{id}", settings.instance))),
        cgroup: config.cgroup_parent.clone().unwrap_or_else(|| settings.cgroup_parent.join(id)),
        own_cgroup: config.cgroup_parent.is_none(),
        shm_size: if config.ipc == NamespaceMode::Node { 0 } else { handler.shm_size },
        volatile: handler.volatile,
        config,
    };
    let events = Arc::clone(&node.events);
    let state = SandboxState::default();
    let sandbox = Sandbox::new(&settings.root, &settings.state, identity, state, None, events);
    node.sandboxes.insert(id.to_owned(), Arc::clone(&sandbox));
    sandbox
}

async fn sequence(node: &Arc<Node>, sandbox: &Arc<Sandbox>, steps: &mut Steps) -> Result<(), Error> {
    steps.whole("record", record(sandbox)).await?;
    let shim = steps.whole("shim", launch(node, sandbox)).await?;
    let netns = steps.step("namespaces", make_namespaces(node, sandbox, &shim)).await?;
    // Neither needs the other. Both are over before anything is undone.
    let mut beside = steps.beside();
    let (connected, init) =
        join(connect(node, sandbox, netns, steps), inhabit(node, sandbox, &shim, &mut beside)).await;
    steps.join(beside);
    let init = match (connected, init) {
        (Ok(()), init) => init?,
        (Err(error), Ok(_)) => return Err(error),
        (Err(error), Err(other)) => return Err(error.then(other)),
    };
    let times = steps.times().to_vec();
    steps
        .step("ready", async {
            sandbox.list();
            sandbox.record(SandboxFact::Made { init, steps: times }, "ready").await
        })
        .await
}

/// The pod's network, and the files that tell of it.
async fn connect(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    netns: Option<OwnedFd>,
    steps: &mut Steps,
) -> Result<(), Error> {
    if let Some(netns) = netns {
        let netns = steps.whole("pin", pin(sandbox, netns)).await?;
        steps.whole("network", attach(node, sandbox, netns)).await?;
    }
    steps.whole("files", write_files(sandbox)).await
}

/// The pod's cgroup, the holder of its /dev/shm, and its init, whose pid it gives.
async fn inhabit(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    shim: &Shim,
    steps: &mut Steps,
) -> Result<Option<i32>, Error> {
    let placement = steps.whole("cgroup", place_init(node, sandbox)).await?;
    steps.step("init", start_init(sandbox, shim, placement)).await
}

/// Takes down what was made, and with it the record. What could not be taken down stays listed, NOTREADY, so that
/// the kubelet stops and removes it.
async fn undo(node: &Arc<Node>, sandbox: &Arc<Sandbox>, error: Error) -> Error {
    sandbox.closing.cancel();
    sandbox.children.close();
    let undone = match teardown(node, sandbox).await {
        Ok(()) => remove::erase(node, sandbox).await,
        Err(failure) => Err(failure),
    };
    match undone {
        Ok(()) => error,
        Err(failure) => {
            let recorded = sandbox.apply(SandboxFact::RunFailed(error.to_string())).await;
            sandbox.show().await;
            match recorded {
                Ok(()) => error.then(failure),
                Err(unrecorded) => error.then(failure).then(unrecorded),
            }
        }
    }
}

async fn record(sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let made = Arc::clone(sandbox);
    blocking::run(move || {
        for directory in [&made.places.record, &made.places.run] {
            store::make_private_directory(directory)?;
        }
        made.write_first()
    })
    .await
}

async fn launch(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<Arc<Shim>, Error> {
    let process = node.launcher()?.launch(sandbox.id(), &sandbox.places.run).await?;
    let shim =
        Shim::hold(sandbox.id().to_owned(), process, sandbox.places.run.clone(), node.launcher()?.generation)
            .map_err(|error| Error::system("take hold of the shim of", sandbox.id(), error))?
            .ok_or_else(|| {
                let reason = std::io::Error::other(shim_log(sandbox));
                Error::system("start the shim of", format!("sandbox {}", sandbox.id()), reason)
            })?;
    applier::attend(node, sandbox, Arc::clone(&shim));
    // While it gets ready. A daemon that ends before this is written leaves a shim that is found by its name.
    sandbox.record(SandboxFact::Launched(process), "shim").await?;
    Ok(shim)
}

/// Where a shim that ended at once says why.
fn shim_log(sandbox: &Sandbox) -> String {
    format!("it ended at once: see {}", sandbox.places.run.join(crate::shim::LOG).display())
}

async fn make_namespaces(node: &Node, sandbox: &Arc<Sandbox>, shim: &Shim) -> Result<Option<OwnedFd>, Error> {
    let config = &sandbox.identity.config;
    let own_network = config.network != NamespaceMode::Node;
    let spec = SandboxSpec {
        sandbox: sandbox.id().to_owned(),
        new_net: own_network,
        new_ipc: config.ipc != NamespaceMode::Node,
        // The host's network comes with the host's name (features.md 1.3).
        new_uts: own_network,
        hostname: if own_network { files::hostname(config) } else { String::new() },
        sysctls: sysctls(config, &node.config.load().network),
    };
    let (request, fds) = match config.user_namespace {
        None => {
            let void = node.launcher()?.void.try_clone();
            let void =
                void.map_err(|error| Error::system("duplicate a descriptor for", sandbox.id(), error))?;
            (Request::MakeSandbox(spec), vec![void])
        }
        Some(own) => (Request::MakeUserSandbox(UserSandbox { sandbox: spec, ids: own.ids() }), Vec::new()),
    };
    let (reply, fds) = shim.ask("make namespaces of", request, &fds, SHIM_LIMIT).await?;
    let netns = fds.into_iter().next();
    if reply != Reply::Sandbox || netns.is_some() != own_network {
        return Err(Error::Failure {
            step: "namespaces".to_owned(),
            detail: "the shim answered with something else".to_owned(),
            errno: 0,
        });
    }
    Ok(netns)
}

/// Those that the pod asks for, and those that pods are given unless they ask otherwise.
fn sysctls(config: &SandboxConfig, settings: &crate::config::Network) -> Vec<(String, String)> {
    let own = config.network != NamespaceMode::Node;
    let asked = |key: &str| config.sysctls.keys().any(|known| as_path(known) == as_path(key));
    // All groups that there are: the kernel refuses others.
    let last = config.user_namespace.map_or(MAX_GROUP, |own| MAX_GROUP.min(own.length - 1));
    let (ports, open) = UNPRIVILEGED_PORTS;
    let given = [
        (settings.unprivileged_ports, ports, open.to_owned()),
        (settings.unprivileged_ping, UNPRIVILEGED_PING, format!("0 {last}")),
    ];
    given
        .into_iter()
        .filter(|(wanted, key, _)| *wanted && own && !asked(key))
        .map(|(_, key, value)| (key.to_owned(), value))
        .chain(config.sysctls.clone())
        .collect()
}

async fn pin(sandbox: &Arc<Sandbox>, netns: OwnedFd) -> Result<OwnedFd, Error> {
    use std::os::fd::AsFd;
    let Some(path) = sandbox.identity.netns.clone() else { return Ok(netns) };
    blocking::run(move || {
        namespace::pin(netns.as_fd(), &path)
            .map(|()| netns)
            .map_err(|error| Error::system("pin network namespace at", path.display().to_string(), error))
    })
    .await
}

async fn attach(node: &Arc<Node>, sandbox: &Arc<Sandbox>, netns: OwnedFd) -> Result<(), Error> {
    let network = node.network()?;
    let config = node.config.load_full();
    let attachment = network.lease(&sandbox.identity, &config.network).await?;
    sandbox.attach(attachment.clone(), Durability::Renamed).await?;
    // The sync is beside the attaching, and both are over when the step is: no power loss leaks an address.
    let syncing =
        async { if attachment.outlives_the_host() { sandbox.sync_attachment().await } else { Ok(()) } };
    let attaching = network.attach(netns, attachment.clone(), &config.network, &sandbox.closing);
    let (synced, attached) = join(syncing, attaching).await;
    if let Some(complete) = attached? {
        // Plugins are handed what they answered when it is undone.
        sandbox.attach(complete, Durability::Synced).await?;
    }
    synced
}

async fn write_files(sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let sandbox = Arc::clone(sandbox);
    blocking::run(move || {
        let attachment = sandbox.attachment();
        let addresses = attachment.map_or_else(Vec::new, |attachment| attachment.addresses());
        Files::new(&sandbox.identity.config, &addresses)?.write(&sandbox.places.run)
    })
    .await
}

/// Makes the pod's cgroup if it is ours, and that of its init if it has one.
async fn place_init(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<Option<Placement>, Error> {
    let identity = &sandbox.identity;
    if identity.own_cgroup {
        node.cgroups.make_parent(&identity.cgroup).await?;
    }
    if identity.config.pid != NamespaceMode::Pod {
        return Ok(None);
    }
    node.cgroups.make(&identity.init_cgroup(), Settings::default()).await.map(Some)
}

/// Has the shim make the holder of /dev/shm, and the init of a shared PID namespace, whose pid it gives.
async fn start_init(
    sandbox: &Arc<Sandbox>,
    shim: &Shim,
    placement: Option<Placement>,
) -> Result<Option<i32>, Error> {
    let shared_pid = placement.is_some();
    let shm_size = sandbox.identity.shm_size;
    if !shared_pid && shm_size == 0 {
        return Ok(None);
    }
    let Placement { place, fds, .. } = placement.unwrap_or(Placement::nowhere());
    let request = Request::StartInit(StartInit { shared_pid, shm_size, cgroup: place });
    let (reply, _pidfd) = shim.ask("start the init of", request, &fds, SHIM_LIMIT).await?;
    match reply {
        Reply::Init(InitReply { pid }) if pid > 0 => Ok(Some(pid)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Network;
    use crate::sandbox::config::UserNamespace;

    #[test]
    fn pods_are_given_what_they_do_not_ask_for() {
        let mut config = files::tests::config();
        let settings = Network::default();
        assert_eq!(sysctls(&config, &settings).len(), 2);
        config.sysctls.insert("net/ipv4/ip_unprivileged_port_start".into(), "1024".into());
        let set = sysctls(&config, &settings);
        assert_eq!(set.iter().filter(|(key, _)| key.contains("port_start")).count(), 1, "{set:?}");
        let own = UserNamespace { host_id: 1000, length: 10 };
        let mapped = SandboxConfig { user_namespace: Some(own), ..config.clone() };
        let range = ("net.ipv4.ping_group_range".to_owned(), "0 9".to_owned());
        assert!(sysctls(&mapped, &settings).contains(&range), "groups that do not exist are refused");
        let off = Network { unprivileged_ports: false, unprivileged_ping: false, ..Network::default() };
        assert_eq!(sysctls(&config, &off).len(), 1);
        (config.network, config.sysctls) = (NamespaceMode::Node, Default::default());
        assert!(sysctls(&config, &settings).is_empty(), "the host's network is not touched");
    }
}
