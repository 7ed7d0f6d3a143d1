//! The one place where what a shim says becomes state: one task a sandbox, in the order in which it was said.
//!
//! A fact is applied, recorded, published, then acknowledged. What the disk cannot take is not acknowledged until it
//! can: the shim tells it again to the next daemon.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cove_runtime::protocol::{ContainerId, Event, Fact, Request, Signal};
use tokio::sync::mpsc;

use super::ledger::{Ledger, Object};
use super::live::Sandbox;
use super::state::SandboxFact;
use crate::blocking;
use crate::container::live::Container;
use crate::container::state::Stage;
use crate::container::{ContainerFact, ResolvedUser};
use crate::error::Error;
use crate::node::Node;
use crate::shim::{ProcessId, Shim, ShimEvent};

/// Facts that may wait to be applied. A full queue stops the reading of the shim, which keeps its facts itself.
const QUEUE: usize = 256;
/// How long a shim may take to be told that a start is given up.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(10);
/// See signal(7).
const SIGKILL: i32 = 9;

/// Attends a shim: its facts are applied to `sandbox` and its containers until its process ends.
pub fn attend(node: &Arc<Node>, sandbox: &Arc<Sandbox>, shim: Arc<Shim>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    sandbox.has_shim(Arc::clone(&shim));
    core_task(Arc::clone(&shim).attend(sender));
    core_task(apply_all(Arc::clone(node), Arc::clone(sandbox), shim, receiver));
}

/// A task without which the model would be wrong for ever: a panic in it ends the daemon, and recovery begins anew.
fn core_task(task: impl Future<Output = ()> + Send + 'static) {
    use futures_util::FutureExt;
    tokio::spawn(async move {
        if std::panic::AssertUnwindSafe(task).catch_unwind().await.is_err() {
            tracing::error!("a core task panicked");
            std::process::abort();
        }
    });
}

async fn apply_all(
    node: Arc<Node>,
    sandbox: Arc<Sandbox>,
    shim: Arc<Shim>,
    mut events: mpsc::Receiver<ShimEvent>,
) {
    let mut ledger = Ledger::default();
    // Containers that the shim spoke of since the connection was made: what it does not speak of does not live.
    let mut spoken_of = std::collections::BTreeSet::new();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = ledger.due() => {
                ledger.catch_up(|object| match object {
                    Object::Sandbox(_) => true,
                    Object::Container(container) => node.containers.get(container.id()).is_some(),
                })
                .await;
                if let Some(serial) = ledger.tell() {
                    shim.acknowledge(serial).await;
                }
                continue;
            }
        };
        match event {
            Some(ShimEvent::Fact(event, fds)) => {
                let (serial, container) = (event.serial, container_of(&event.fact));
                let object = match container {
                    Some(id) => node.containers.get(id).map(Object::Container),
                    None => Some(Object::Sandbox(Arc::clone(&sandbox))),
                };
                if let Some(container) = container {
                    spoken_of.insert(container.to_owned());
                }
                let result = apply(&node, &sandbox, event, fds).await;
                ledger.note(serial, object, result);
            }
            Some(ShimEvent::SnapshotEnd) => {
                settle(&node, &sandbox, &shim, &spoken_of).await;
                spoken_of.clear();
            }
            Some(ShimEvent::Refused) => look_for_ends(&node, &sandbox).await,
            Some(ShimEvent::Gone) => return gone(&node, &sandbox).await,
            None => return,
        }
        if events.is_empty()
            && let Some(serial) = ledger.tell()
        {
            shim.acknowledge(serial).await;
        }
    }
}

fn container_of(fact: &Fact) -> Option<&str> {
    match fact {
        Fact::Started(started) => Some(&started.container),
        Fact::StartFailed(failed) => Some(&failed.container),
        Fact::Oom(oom) => Some(&oom.container),
        Fact::Exited(exited) => Some(&exited.container),
        Fact::ExecStarted(_) | Fact::ExecFailed(_) | Fact::ExecExited(_) | Fact::InitExited(_) => None,
    }
}

async fn apply(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    event: Event,
    fds: Vec<OwnedFd>,
) -> Result<(), Error> {
    node.clock.seen(event.at);
    let at = event.at;
    if matches!(event.fact, Fact::InitExited(_)) {
        return sandbox.apply(SandboxFact::InitExited).await;
    }
    // A container of another sandbox, or of none: a shim has no say in it.
    let Some(container) = container_of(&event.fact)
        .and_then(|id| node.containers.get(id))
        .filter(|container| container.identity.sandbox == sandbox.id())
    else {
        return Ok(());
    };
    match event.fact {
        Fact::Started(started) => {
            let user =
                ResolvedUser { uid: started.user.uid, gid: started.user.gid, groups: started.user.groups };
            let process = ProcessId { pid: started.pid, started: started.start_time };
            container.hold(process, fds.into_iter().next());
            let result = container.apply(ContainerFact::Started { process, user, at }).await;
            container.started(Ok(()));
            result
        }
        Fact::StartFailed(failed) => {
            let message = match failed.failure.errno {
                0 => format!("{}: {}", failed.failure.step, failed.failure.detail),
                errno => {
                    let errno = std::io::Error::from_raw_os_error(errno);
                    format!("{}: {}: {errno}", failed.failure.step, failed.failure.detail)
                }
            };
            let result = container.apply(ContainerFact::StartFailed { at, message }).await;
            container.started(Err(failed.failure));
            result
        }
        Fact::Oom(_) => container.apply(ContainerFact::Oom).await,
        Fact::Exited(exited) => {
            let fact = ContainerFact::Exited { at, code: exited.status.code, oom: exited.oom };
            let result = container.apply(fact).await;
            container.release();
            node.usage.close(container.id());
            drop_cgroup(node, &container);
            result
        }
        Fact::ExecStarted(_) | Fact::ExecFailed(_) | Fact::ExecExited(_) | Fact::InitExited(_) => Ok(()),
    }
}

/// Nobody is in the cgroup of a container that has ended, and nothing is to be read from it any more. Beside the facts,
/// since the kernel may take its time; Remove makes sure of it.
fn drop_cgroup(node: &Arc<Node>, container: &Arc<Container>) {
    let (cgroups, container) = (node.cgroups.clone(), Arc::clone(container));
    node.tasks.spawn(async move {
        if let Err(error) = cgroups.remove(&container.identity.cgroup).await {
            tracing::debug!(container = container.id(), %error, "cgroup is left until the container is removed");
        }
    });
}

/// The shim has told all that it holds: a container that the record says to run, and that the shim does not speak of,
/// does not run.
async fn settle(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    shim: &Arc<Shim>,
    spoken_of: &std::collections::BTreeSet<String>,
) {
    for container in children(node, sandbox) {
        // What is being started by this daemon is none of an earlier connection's business.
        if spoken_of.contains(container.id()) || !container.state().may_run() || container.is_starting() {
            continue;
        }
        if container.state().stage == Stage::Starting {
            // Beside the facts, one of which may be the answer.
            let (node, shim) = (Arc::clone(node), Arc::clone(shim));
            node.tasks.clone().spawn(async move { give_up_start(&node, &shim, &container).await });
            continue;
        }
        lose(node, &container, "its shim does not know it any more").await;
    }
}

/// A start that an earlier daemon asked for, or was about to: nobody waits for it any more, and a shim says nothing of
/// what it is still building. It is told to give up; what it was building it tells of, and what it never began it has
/// nothing to forget of.
async fn give_up_start(node: &Arc<Node>, shim: &Shim, container: &Arc<Container>) {
    let id = container.id().to_owned();
    let kill = Request::Signal(Signal { container: id.clone(), signal: SIGKILL });
    let told = shim.ask("give up a start in", kill, &[], GIVE_UP_LIMIT).await;
    let forgotten = match told {
        Ok(_) => shim.ask("forget", Request::Forget(ContainerId { container: id }), &[], GIVE_UP_LIMIT).await,
        Err(error) => Err(error),
    };
    match forgotten {
        Err(Error::Failure { .. }) => return,
        Err(error) => tracing::warn!(container = container.id(), %error, "its shim could not be asked"),
        Ok(_) => {}
    }
    if container.state().may_run() {
        lose(node, container, "its start was cut off by the end of the daemon").await;
    }
}

/// The shim does not say what happens: a first process that is gone has ended, and only the shim knows how.
async fn look_for_ends(node: &Arc<Node>, sandbox: &Arc<Sandbox>) {
    for container in children(node, sandbox) {
        let Some(process) = container.state().process() else { continue };
        if matches!(blocking::run(move || process.is_alive()).await, Ok(false)) {
            lose(
                node,
                &container,
                "it has ended, and its shim, which does not work for this daemon, knows how",
            )
            .await;
        }
    }
}

/// The shim's process has ended: nothing of the pod is supervised any more, so nothing of it may go on.
pub async fn gone(node: &Arc<Node>, sandbox: &Arc<Sandbox>) {
    sandbox.shim.store(None);
    let state = sandbox.state();
    if !state.closing && !state.down {
        tracing::warn!(sandbox = sandbox.id(), "the sandbox's shim has ended: its containers are killed");
    }
    for container in children(node, sandbox) {
        if container.state().may_run() {
            lose(node, &container, "the shim of its sandbox has ended").await;
        }
    }
    if let Err(error) = node.cgroups.kill(&sandbox.identity.init_cgroup()).await {
        tracing::warn!(sandbox = sandbox.id(), %error, "the init of the PID namespace could not be killed");
    }
    if let Err(error) = sandbox.apply(SandboxFact::ShimGone).await {
        tracing::error!(sandbox = sandbox.id(), %error, "the end of the shim could not be recorded");
    }
}

async fn lose(node: &Arc<Node>, container: &Arc<Container>, message: &'static str) {
    if let Err(error) = node.cgroups.kill(&container.identity.cgroup).await {
        tracing::warn!(container = container.id(), %error, "what is left of a container could not be killed");
    }
    let fact = ContainerFact::Lost { at: node.clock.now(), message: message.to_owned() };
    if let Err(error) = container.apply(fact).await {
        tracing::error!(container = container.id(), %error, "the end of a container could not be recorded");
    }
    container.release();
    container.started(Err(cove_runtime::protocol::Failure {
        step: "shim".to_owned(),
        errno: 0,
        detail: message.to_owned(),
    }));
}

/// The containers of a sandbox, in whatever state.
pub fn children(node: &Node, sandbox: &Sandbox) -> Vec<Arc<Container>> {
    sandbox.children.ids().iter().filter_map(|id| node.containers.get(id)).collect()
}
