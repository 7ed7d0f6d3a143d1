//! StartContainer: places and limits, opens the log, hands the shim what to build, and waits for the word that the
//! program runs. Any failure takes away what was made, and leaves the container EXITED with reason StartError.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::Duration;

use cove_runtime::build::image_volume;
use cove_runtime::build::request::{ContainerOrder, ContainerSpec, GroupsPolicy, Rootfs, User};
use cove_runtime::memfd;
use cove_runtime::protocol::{ContainerId, Failure, PidMode, Request, Signal, Start, StartOpen};
use cove_runtime::wire::Wire;
use futures_util::future::join;
use oci_spec::runtime::Spec;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::config::PidNamespace;
use super::live::Container;
use super::state::ContainerFact;
use super::{log, spec, target};
use crate::blocking;
use crate::cgroup::{Placement, Settings};
use crate::detach::ANSWER_LIMIT;
use crate::error::{Error, Kind};
use crate::node::Node;
use crate::sandbox::live::Sandbox;
use crate::shim::Shim;
use crate::step::{Operation, Progress, Steps};

/// The operation, for people and fail points.
pub const START: Operation = Operation {
    name: "StartContainer",
    point: "container.start",
    kind: Kind::Container,
    steps: &["spec", "cgroup", "log", "seal", "start", "run"],
};
/// How long a shim may take to accept a request.
const ACCEPT_LIMIT: Duration = Duration::from_secs(10);
/// How long a builder may take: a hung volume ends here, inside the caller's own limit.
const BUILD_LIMIT: Duration = Duration::from_secs(100);
/// See signal(7).
const SIGKILL: i32 = 9;
/// How long the end of what was begun may take once it is killed.
const UNDO_LIMIT: Duration = Duration::from_secs(10);

/// Runs a created container's program; returns once it runs.
pub async fn start(node: &Arc<Node>, id: &str) -> Result<(), Error> {
    let container = node.containers.find(id, |container| container.view().is_some())?;
    node.join(&container.starting, ANSWER_LIMIT, (START, container.id()), |progress| {
        work(Arc::clone(node), Arc::clone(&container), progress)
    })
    .await
}

async fn work(node: Arc<Node>, container: Arc<Container>, progress: Arc<Progress>) -> Result<(), Error> {
    // Before the lock, which a removal may want meanwhile.
    let shim = sandbox_of(&node, &container)?.adopted_shim().await?;
    let _lock = container.lock.lock().await;
    let result = container.expect_start();
    let only_created = "only a container that was created, and neither started nor stopped, can be started";
    let began = container.record(ContainerFact::Starting, only_created).await;
    let outcome = match began {
        Err(error) => Err(error),
        Ok(()) => {
            let mut steps = Steps::new(progress, container.closing.clone());
            let mut asked = false;
            match sequence(&node, &container, &shim, &mut steps, (&mut asked, result)).await {
                Ok(()) => {
                    note_times(&node, &container, &steps);
                    Ok(())
                }
                Err(error) => Err(undo(&node, &container, &shim, asked, error).await),
            }
        }
    };
    container.start_is_over();
    outcome
}

/// Writes down how long it took, for people. Nobody waits for that.
fn note_times(node: &Arc<Node>, container: &Arc<Container>, steps: &Steps) {
    let (container, times) = (Arc::clone(container), steps.times().to_vec());
    node.tasks.spawn(async move { container.note_steps(times).await });
}

async fn sequence(
    node: &Arc<Node>,
    container: &Arc<Container>,
    shim: &Arc<Shim>,
    steps: &mut Steps,
    (asked, result): (&mut bool, oneshot::Receiver<Result<(), Failure>>),
) -> Result<(), Error> {
    let spec = Arc::from(steps.whole("spec", read_spec(container)).await?);
    target::check(node, &container.identity.config.pid)?;
    // Neither needs the other. Both are over before anything is undone.
    let mut beside = steps.beside();
    let (placement, handed) = join(
        steps.whole("cgroup", place(node, container, &spec)),
        hand_over(node, container, &spec, &mut beside),
    )
    .await;
    steps.join(beside);
    let (placement, (log, memfd)) = (placement?, handed?);
    *asked = true;
    let accepted = steps.step("start", ask(container, shim, memfd, log, placement)).await;
    // A shim that refuses has done nothing; one that is silent may have.
    *asked = !matches!(&accepted, Err(error) if matches!(error.cause(), Error::Failure { .. }));
    accepted?;
    steps.step("run", await_start(container, result)).await
}

/// What the shim is handed: where the output goes, and what is to be built.
async fn hand_over(
    node: &Arc<Node>,
    container: &Arc<Container>,
    spec: &Arc<Spec>,
    steps: &mut Steps,
) -> Result<(Option<OwnedFd>, OwnedFd), Error> {
    let log = steps.whole("log", open_log(node, container)).await?;
    let memfd = steps.whole("seal", seal(container, Arc::clone(spec))).await?;
    Ok((log, memfd))
}

/// The spec as it is on disk: what was asked for is what is run.
pub async fn read_spec(container: &Arc<Container>) -> Result<Box<Spec>, Error> {
    let path = container.places.spec();
    blocking::run(move || {
        let system = |error: std::io::Error| Error::system("read", path.display().to_string(), error);
        let json = std::fs::read(&path).map_err(system)?;
        serde_json::from_slice(&json).map_err(|error| system(error.into()))
    })
    .await
}

async fn place(node: &Arc<Node>, container: &Arc<Container>, oci: &Spec) -> Result<Placement, Error> {
    let resources = oci.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    // Limits as they are now: they may have been changed since it was made, or while this waits.
    let _update = container.update.lock().await;
    let settings = Settings {
        limits: spec::limits(&container.resources(), node.cgroups.unified())?,
        devices: cove_runtime::spec::device_rules(&resources),
        all_devices: container.identity.config.privileged,
    };
    node.cgroups.make(&container.identity.cgroup, settings).await
}

async fn open_log(node: &Arc<Node>, container: &Arc<Container>) -> Result<Option<OwnedFd>, Error> {
    let directory = sandbox_of(node, container)?.identity.config.log_directory.clone();
    let (Some(directory), Some(relative)) = (directory, container.identity.config.log_path.clone()) else {
        return Ok(None);
    };
    blocking::run(move || log::open(&directory, &relative).map(Some)).await
}

/// What the builder is asked to build, in a memory file that nobody can change.
async fn seal(container: &Arc<Container>, spec: Arc<Spec>) -> Result<OwnedFd, Error> {
    let container = Arc::clone(container);
    blocking::run(move || {
        let hooks = cove_runtime::spec::hooks(container.id(), &spec, &container.places.bundle)?;
        let wire = ContainerOrder { spec: wire_spec(&container, &spec)?, hooks }.to_bytes();
        memfd::sealed("container", &wire).map_err(|error| {
            Error::system("seal the spec of", format!("container {}", container.id()), error)
        })
    })
    .await
}

fn wire_spec(container: &Container, spec: &Spec) -> Result<ContainerSpec, Error> {
    let identity = &container.identity;
    let rootfs = Rootfs {
        lower: identity.layers.clone(),
        upper: container.places.upper(),
        work: container.places.work(),
        target: container.places.rootfs(),
        readonly: identity.config.readonly_rootfs,
        volatile: identity.volatile,
    };
    let run_as = &identity.config.run_as;
    let user = User {
        user: identity.user.clone(),
        gid: run_as.group,
        // Those asked for, and those of its devices.
        supplemental: spec
            .process()
            .as_ref()
            .and_then(|process| process.user().additional_gids().clone())
            .unwrap_or_default(),
        policy: if run_as.strict_groups { GroupsPolicy::Strict } else { GroupsPolicy::Merge },
    };
    let mut wire = cove_runtime::spec::container(container.id(), spec, rootfs, user)?;
    if let Some(env) = &identity.raw_env {
        wire.process.env = env.iter().cloned().map(OsString::from_vec).collect();
    }
    let has_term = |entry: &OsString| entry.as_encoded_bytes().starts_with(b"TERM=");
    if identity.config.terminal && !wire.process.env.iter().any(has_term) {
        // What other runtimes give (containerd's WithTTY).
        wire.process.env.push("TERM=xterm".into());
    }
    Ok(wire)
}

async fn ask(
    container: &Arc<Container>,
    shim: &Shim,
    memfd: OwnedFd,
    log: Option<OwnedFd>,
    placement: Placement,
) -> Result<(), Error> {
    let config = &container.identity.config;
    let request = Start {
        container: container.id().to_owned(),
        pid: match &config.pid {
            PidNamespace::Pod => PidMode::Pod,
            PidNamespace::Container => PidMode::Private,
            PidNamespace::Node => PidMode::Host,
            PidNamespace::Target(id) => PidMode::Target(ContainerId { container: id.clone() }),
        },
        log: log.is_some(),
        oom_events: placement.oom_events.is_some(),
        // Checked at the door; what does not fit would be clamped by the shim anyway.
        oom_score_adj: i32::try_from(config.resources.oom_score_adj).ok(),
        cgroup: placement.place,
    };
    let (terminal, stdin) = (config.terminal, config.stdin);
    let streams = streams(terminal, stdin).await.map_err(|error| {
        Error::system("make the streams of", format!("container {}", container.id()), error)
    })?;
    let request = if streams.is_empty() {
        Request::Start(request)
    } else {
        Request::StartOpen(StartOpen { start: request, stdin, terminal })
    };
    let fds: Vec<OwnedFd> = [Some(memfd), log, placement.oom_events]
        .into_iter()
        .flatten()
        .chain(streams)
        .chain(placement.fds)
        .collect();
    shim.ask("start a container of", request, &fds, ACCEPT_LIMIT).await.map(drop)
}

/// Both ends of a container's terminal, or of the pipe that is its stdin; the shim keeps ours.
async fn streams(terminal: bool, stdin: bool) -> std::io::Result<Vec<OwnedFd>> {
    if terminal {
        let (master, [user, ..]) = blocking::run(crate::stream::open_terminal).await?;
        return Ok(vec![master, user]);
    }
    if stdin {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // The writing end alone: programs expect a stdin that waits.
        rustix::io::ioctl_fionbio(&write, true)?;
        return Ok(vec![read, write]);
    }
    Ok(Vec::new())
}

async fn await_start(
    container: &Arc<Container>,
    result: oneshot::Receiver<Result<(), Failure>>,
) -> Result<(), Error> {
    match timeout(BUILD_LIMIT, result).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(failure))) if failure.step == image_volume::STEP => {
            let mount = format!("container {}", container.id());
            Err(Error::ImageVolume { mount, source: Box::new(failure.into()) })
        }
        Ok(Ok(Err(failure))) => Err(failure.into()),
        Ok(Err(_)) | Err(_) => {
            let object = format!("container {}", container.id());
            Err(Error::TimedOut { operation: "the building", object, limit: BUILD_LIMIT })
        }
    }
}

/// Ends whatever was begun, and says why it did not run.
async fn undo(node: &Arc<Node>, container: &Arc<Container>, shim: &Shim, asked: bool, error: Error) -> Error {
    let mut error = error;
    if asked && let Err(failure) = end(node, container, shim).await {
        error = error.then(failure);
    }
    if let Err(failure) = node.cgroups.remove(&container.identity.cgroup).await {
        error = error.then(failure);
    }
    let message = error.to_string();
    container.apply_anyway(ContainerFact::StartFailed { at: node.clock.now(), message }).await;
    error
}

/// Ends what the shim may have begun, and waits for it.
async fn end(node: &Arc<Node>, container: &Arc<Container>, shim: &Shim) -> Result<(), Error> {
    let id = container.id().to_owned();
    // The builder by way of the shim, since it may not be in its cgroup yet; a shim that is silent is asked below.
    let kill = Request::Signal(Signal { container: id.clone(), signal: SIGKILL });
    let told = shim.ask("kill a container of", kill, &[], ACCEPT_LIMIT).await;
    node.cgroups.kill(&container.identity.cgroup).await?;
    told?;
    // Asked on the same connection as the start: a shim that has nothing to forget has begun nothing, or ended it.
    let request = Request::Forget(ContainerId { container: id });
    match shim.ask("forget a container of", request, &[], ACCEPT_LIMIT).await {
        Ok(_) => Ok(()),
        Err(Error::Failure { .. }) => {
            let ended = container.wait_until(|state| !state.may_run());
            timeout(UNDO_LIMIT, ended).await.map_err(|_| {
                let object = format!("container {}", container.id());
                Error::TimedOut { operation: "the end", object, limit: UNDO_LIMIT }
            })
        }
        Err(error) => Err(error),
    }
}

/// The sandbox of a container, ready to run something in it.
pub fn sandbox_of(node: &Node, container: &Container) -> Result<Arc<Sandbox>, Error> {
    node.sandboxes
        .get(&container.identity.sandbox)
        .ok_or_else(|| Error::NotFound { kind: Kind::Sandbox, id: container.identity.sandbox.clone() })
}
