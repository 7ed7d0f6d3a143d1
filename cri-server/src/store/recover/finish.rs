//! What is done once the gate is open: shims are adopted, and what an earlier daemon began is finished.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::read::{Found, Quarantined};
use crate::blocking;
use crate::container;
use crate::container::live::Container;
use crate::container::state::{ContainerState, Stage as ContainerStage};
use crate::error::Error;
use crate::node::Node;
use crate::sandbox::live::Sandbox;
use crate::sandbox::state::SandboxState;
use crate::sandbox::teardown::teardown;
use crate::sandbox::{self, applier};
use crate::shim::{self, Shim};
use crate::step::{Operation, Progress};
use crate::store::TRASH;

/// The operation, for people.
const RECOVER: Operation =
    Operation { name: "recovery", point: "recover", kind: crate::error::Kind::Sandbox, steps: &[] };

/// Between two tries to take hold of a shim: what keeps it from being had goes away with the burst of start-up.
const HOLD_AGAIN: Duration = Duration::from_millis(500);

/// A sandbox as an earlier daemon left it.
#[derive(Debug)]
pub(super) struct Left {
    sandbox: Arc<Sandbox>,
    state: Arc<SandboxState>,
    /// Containers that were being made, or that nobody came for.
    unfinished: Vec<Arc<Container>>,
}

/// What an earlier daemon left: everything there is, as long as the gate is shut.
pub(super) fn left(node: &Arc<Node>) -> Vec<Left> {
    let all = node.sandboxes.all();
    let left = all.values().map(|sandbox| {
        let children = applier::children(node, sandbox).into_iter();
        let unfinished = children.filter(|child| is_unfinished(&child.state())).collect();
        Left { sandbox: Arc::clone(sandbox), state: sandbox.state(), unfinished }
    });
    left.collect()
}

/// Nobody was given its id, and nobody will come for it.
fn is_unfinished(state: &ContainerState) -> bool {
    (state.stage == ContainerStage::Creating || !state.claimed) && !state.may_run()
}

/// Begins everything that is left to do, one task a sandbox: a shim or a network that hangs holds up nobody else.
pub(super) fn finish(node: &Arc<Node>, left: Vec<Left>, found: Found) {
    let restarted = found.restarted;
    for left in left {
        let owner = Arc::clone(node);
        node.tasks.spawn(async move {
            let progress = owner.operations.begin(RECOVER, left.sandbox.id());
            if let Err(error) = one(&owner, &left, &progress, restarted).await {
                tracing::error!(sandbox = left.sandbox.id(), %error, "recovery of the sandbox is not complete");
            }
        });
    }
    for object in found.quarantined {
        let owner = Arc::clone(node);
        node.tasks.spawn(async move {
            if let Err(error) = sweep(&owner, &object).await {
                tracing::error!(id = object.id, %error, "what is left of an unreadable object could not be removed");
            }
        });
    }
    let trash = node.config.load().root.join(TRASH);
    node.empty_trash(trash);
}

async fn one(node: &Arc<Node>, left: &Left, progress: &Arc<Progress>, restarted: bool) -> Result<(), Error> {
    let Left { sandbox, state, unfinished } = left;
    progress.enter("containers");
    // A container that could not be removed must not keep the others of its pod from being attended.
    let removed = remove_all(node, unfinished, progress).await;
    if state.was_never_ready() {
        // It was never ready: nobody was given its id.
        progress.enter("teardown");
        sandbox.children.close();
        sandbox.closing.cancel();
        teardown(node, sandbox).await?;
        removed?;
        return sandbox::remove::erase(node, sandbox).await;
    }
    if restarted && !state.down {
        // Nothing of it is in the kernel any more; what is elsewhere (an address at a plugin's) is given back.
        progress.enter("teardown");
        teardown(node, sandbox).await?;
    }
    progress.enter("adopt");
    adopt(node, sandbox).await?;
    if state.removing {
        progress.enter("remove");
        return sandbox::remove::join(node, sandbox).await;
    }
    if state.closing && !state.down {
        progress.enter("stop");
        sandbox::stop::join(node, sandbox).await?;
        return removed;
    }
    progress.enter("stops");
    unfinished_stops(node, sandbox);
    removed
}

/// Takes hold of the sandbox's shim, if it has one that lives. Its facts come by themselves.
async fn adopt(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let state = sandbox.state();
    let Some(process) = state.shim.filter(|_| !state.down) else { return Ok(()) };
    let generation = node.launcher()?.generation;
    let hold = || Shim::hold(sandbox.id().to_owned(), process, sandbox.places.run.clone(), generation);
    let shim = persist(sandbox.id(), &node.draining, hold).await?;
    match shim {
        Some(shim) => {
            applier::attend(node, sandbox, shim);
            Ok(())
        }
        None => {
            applier::gone(node, sandbox).await;
            Ok(())
        }
    }
}

/// Tries until it can be had, or the daemon is about to end: a pod whose shim lives and is not attended is not given up
/// because descriptors are short for a moment.
async fn persist<T>(
    id: &str,
    draining: &CancellationToken,
    mut hold: impl FnMut() -> std::io::Result<T>,
) -> Result<T, Error> {
    loop {
        match hold() {
            Ok(held) => return Ok(held),
            Err(error) => {
                let pause = tokio::time::sleep(HOLD_AGAIN);
                if draining.run_until_cancelled(pause).await.is_none() {
                    return Err(Error::system("take hold of the shim of", id, error));
                }
                tracing::warn!(sandbox = id, %error, "its shim could not be taken hold of; tried again");
            }
        }
    }
}

/// Removes containers that do not run; goes on after a failure, and tells the first.
async fn remove_all(
    node: &Arc<Node>,
    containers: &[Arc<Container>],
    progress: &Arc<Progress>,
) -> Result<(), Error> {
    let mut result = Ok(());
    for container in containers {
        result = result.and(container::remove::erase(node, container, progress).await);
    }
    result
}

/// Stops and removals of containers that an earlier daemon began, each in a task: signalled containers are signalled no
/// second time.
fn unfinished_stops(node: &Arc<Node>, sandbox: &Arc<Sandbox>) {
    for child in applier::children(node, sandbox) {
        let (state, owner) = (child.state(), Arc::clone(node));
        let is_ending = state.stop.is_some() && state.may_run();
        if !(state.removing || is_ending) {
            continue;
        }
        node.tasks.spawn(async move {
            let done = if state.removing {
                container::remove::join(&owner, &child).await
            } else {
                container::end::go_on(&owner, &child).await
            };
            if let Err(error) = done {
                tracing::error!(container = child.id(), %error, "what was begun could not be finished");
            }
        });
    }
}

/// What is in the kernel of an object whose identity cannot be read, found by the id in its names.
async fn sweep(node: &Arc<Node>, object: &Quarantined) -> Result<(), Error> {
    let id = object.id.as_str();
    let config = node.config.load_full();
    let (cgroups, name) = (node.cgroups.clone(), id.to_owned());
    if let Some(process) = blocking::run(move || shim::find(&cgroups, &name)).await? {
        let generation = node.launcher()?.generation;
        let run = config.state.join("sandboxes").join(id);
        let shim = Shim::hold(id.to_owned(), process, run, generation)
            .map_err(|error| Error::system("take hold of the shim of", id, error))?;
        if let Some(shim) = shim {
            shim.kill().map_err(|error| Error::system("kill the shim of", id, error))?;
        }
    }
    let pin = config.netns_dir.join(format!("{}-{id}", config.instance));
    let run = config.state.join("sandboxes").join(id);
    blocking::run(move || {
        cove_runtime::namespace::unpin(&pin)
            .map_err(|error| Error::system("unpin", pin.display().to_string(), error))?;
        sandbox::teardown::remove_directory(&run)
    })
    .await?;
    if let Some(attachment) = &object.attachment {
        node.network()?.detach(attachment, &config.network).await?;
    }
    if let Some(cgroup) = &object.cgroup {
        node.cgroups.remove(cgroup).await?;
    }
    // A sandbox's own parent, or a container's leaf below one of those that are known. Where the kubelet's parent of an
    // unreadable sandbox was, only its containers' records say.
    node.cgroups.remove(&config.cgroup_parent.join(id)).await?;
    for sandbox in node.sandboxes.all().values() {
        node.cgroups.remove(&sandbox.identity.cgroup.join(id)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_had_now_is_had_later_unless_the_daemon_ends() {
        let draining = CancellationToken::new();
        let mut tries = 0;
        let busy = || std::io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
        let held = persist("a", &draining, || {
            tries += 1;
            if tries < 3 { Err(busy()) } else { Ok(7) }
        });
        assert_eq!(held.await.unwrap(), 7);
        draining.cancel();
        assert!(persist("a", &draining, || Err::<(), _>(busy())).await.is_err());
    }
}
