//! Reads the records of both kinds into the index. What cannot be used is set aside, never in the way.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::put_by;
use crate::container::image_volume;
use crate::container::live::Container;
use crate::container::record::{ContainerIdentity, Places as ContainerPlaces};
use crate::container::state::{ContainerFact, ContainerState, Stage as ContainerStage};
use crate::error::Error;
use crate::network::{Attachment, Network};
use crate::node::Node;
use crate::sandbox::config::PortMapping;
use crate::sandbox::live::Sandbox;
use crate::sandbox::record::{Places, SandboxIdentity};
use crate::sandbox::state::{SandboxFact, SandboxState, Stage};
use crate::shim;
use crate::store::{self, RecordError};

/// Name of the directory below the root where records lie that nobody can use.
const QUARANTINE: &str = "quarantine";

/// What there is to do once the gate is open.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The host was restarted: nothing of the records is in the kernel.
    pub restarted: bool,
    /// Sandboxes and containers whose identity cannot be read.
    pub quarantined: Vec<Quarantined>,
    /// Containers among them: what images they need is not known.
    pub unreadable_containers: usize,
}

/// An object that nobody can use, and what is known of it all the same.
#[derive(Debug)]
pub(super) struct Quarantined {
    /// Its id.
    pub id: String,
    /// What the network gave a sandbox.
    pub attachment: Option<Attachment>,
    /// Of a container whose sandbox is unknown.
    pub cgroup: Option<PathBuf>,
}

/// Reads everything. Blocking.
pub(super) fn read(node: &Arc<Node>, restarted: bool) -> Result<Found, Error> {
    let config = node.config.load_full();
    let (root, run) = (config.root.clone(), config.state.join("sandboxes"));
    let mut found = Found { restarted, ..Found::default() };
    for id in ids(&root.join("sandboxes"), Some(&run))? {
        match sandbox(node, &id, restarted) {
            Ok(sandbox) => {
                node.clock.seen(sandbox.identity.created_at);
                // One that was being made is undone: who asks for it again gets another, not the id of this.
                if sandbox.lives() && sandbox.state().stage == Stage::Ready {
                    let name = sandbox.name().clone();
                    node.sandbox_names.restore(name, &id, &sandbox.identity.config);
                }
                node.sandboxes.insert(id, sandbox);
            }
            Err(error) => {
                let aside = set_aside(&root, "sandboxes", &id, &error);
                let read = store::read(&aside.join("attachment.json")).ok().flatten();
                let attachment = read.or_else(|| attachment_in_kernel(node, &id, &[]));
                found.quarantined.push(Quarantined { id, attachment, cgroup: None });
            }
        }
    }
    for id in ids(&root.join("containers"), None)? {
        match container(node, &id, restarted) {
            Ok(container) => restore(node, &container),
            Err(error) => {
                found.unreadable_containers += 1;
                let aside = set_aside(&root, "containers", &id, &error);
                let identity = store::read::<ContainerIdentity>(&aside.join("identity.json")).ok().flatten();
                let cgroup = identity.filter(|identity| identity.id == id).map(|identity| identity.cgroup);
                found.quarantined.push(Quarantined { id, attachment: None, cgroup });
            }
        }
    }
    Ok(found)
}

/// Directories whose name is an id; others are not ours to judge. One without any record was cut off before its first:
/// nothing was done yet, so it goes.
fn ids(directory: &Path, run: Option<&Path>) -> Result<Vec<String>, Error> {
    store::make_private_directory(directory)?;
    let system = |error| Error::system("list", directory.display().to_string(), error);
    let mut ids = Vec::new();
    for entry in fs::read_dir(directory).map_err(system)? {
        let name = entry.map_err(system)?.file_name();
        if let Some(id) = name.to_str().filter(|name| store::is_id(name)) {
            let path = directory.join(id);
            if was_never_recorded(&path) {
                // This one first: the other is what it is found by.
                for path in run.map(|run| run.join(id)).iter().chain([&path]) {
                    if let Err(error) = store::remove_tree(path) {
                        tracing::warn!(%error, "what was never finished is left on disk");
                        break;
                    }
                }
            } else {
                ids.push(id.to_owned());
            }
        }
    }
    Ok(ids)
}

fn was_never_recorded(path: &Path) -> bool {
    fs::read_dir(path)
        .is_ok_and(|entries| entries.flatten().all(|entry| entry.file_name() == store::UNFINISHED_IDENTITY))
}

/// Moves an object's directory out of the way, and says where it is now.
fn set_aside(root: &Path, kind: &str, id: &str, error: &RecordError) -> PathBuf {
    let target = root.join(QUARANTINE).join(format!("{kind}-{id}"));
    let moved = fs::create_dir_all(root.join(QUARANTINE))
        .and_then(|()| fs::rename(root.join(kind).join(id), &target));
    tracing::error!(id, %error, ?moved, quarantine = %target.display(), "record is set aside");
    target
}

/// What the kernel shows of a sandbox's attachment, where no record tells it.
fn attachment_in_kernel(node: &Node, id: &str, ports: &[PortMapping]) -> Option<Attachment> {
    let config = node.config.load();
    Network::find(&config.instance, &config.network, id, ports).unwrap_or_else(|error| {
        tracing::error!(sandbox = id, %error, "what the network gave this sandbox is not known any more");
        None
    })
}

/// Writes down what was found out, so that it need not be found out again; the marker of a restart, for one, is seen
/// once.
fn keep<S: serde::Serialize + PartialEq>(path: &Path, state: &S, on_disk: Option<&S>) {
    if on_disk != Some(state)
        && let Err(error) = store::write(path, state, store::Durability::Renamed)
    {
        tracing::warn!(%error, "what was found out is not on disk");
    }
}

fn missing(path: PathBuf) -> RecordError {
    RecordError::Corrupt { path, reason: "it is missing".to_owned() }
}

fn sandbox(node: &Arc<Node>, id: &str, restarted: bool) -> Result<Arc<Sandbox>, RecordError> {
    let config = node.config.load();
    let places = Places::new(&config.root, &config.state, id);
    let identity: SandboxIdentity =
        store::read(&places.identity())?.ok_or_else(|| missing(places.identity()))?;
    if identity.id != id {
        let reason = format!("it is that of {}", identity.id);
        return Err(RecordError::Corrupt { path: places.identity(), reason });
    }
    let attachment: Option<Attachment> = store::read(&places.attachment()).unwrap_or_else(|error| {
        tracing::error!(sandbox = id, %error, "what the network gave this sandbox is looked for in the kernel");
        put_by(&places.attachment());
        let found = attachment_in_kernel(node, id, &identity.config.ports);
        if let Some(attachment) = &found {
            keep(&places.attachment(), attachment, None);
        }
        found
    });
    let read = store::read::<SandboxState>(&places.state());
    let on_disk = read.as_ref().ok().cloned().flatten();
    let state = match read {
        Ok(Some(state)) => state,
        // Written just after the identity: the daemon died between.
        Ok(None) => SandboxState::default(),
        Err(error) => {
            tracing::error!(sandbox = id, %error, "the sandbox's state cannot be read: its shim is looked for");
            put_by(&places.state());
            without_state(node, id)
        }
    };
    let state = on_host(state, restarted);
    keep(&places.state(), &state, on_disk.as_ref());
    Ok(Sandbox::new(&config.root, &config.state, identity, state, attachment, Arc::clone(&node.events)))
}

/// A state that cannot be read says nothing about the pod: it lives if its shim does.
fn without_state(node: &Node, id: &str) -> SandboxState {
    let shim = shim::find(&node.cgroups, id).unwrap_or_else(|error| {
        tracing::error!(sandbox = id, %error, "its shim cannot be looked for");
        None
    });
    let unknown = SandboxState { reached: "".into(), ..SandboxState::default() };
    match shim {
        Some(process) => SandboxState { stage: Stage::Ready, shim: Some(process), ..unknown },
        None => SandboxState {
            stage: Stage::NotReady,
            reason: "its record cannot be read, and it has no shim".into(),
            ..unknown
        },
    }
}

/// What /proc says of a record.
fn on_host(state: SandboxState, restarted: bool) -> SandboxState {
    let fact = match state.shim {
        _ if restarted && !state.down => SandboxFact::HostRestarted,
        // What cannot be looked at is not said to be gone.
        Some(process) if !process.is_alive().unwrap_or(true) && state.stage == Stage::Ready => {
            SandboxFact::ShimGone
        }
        Some(_) | None => return state,
    };
    state.clone().on(fact).unwrap_or(state)
}

fn container(node: &Arc<Node>, id: &str, restarted: bool) -> Result<Arc<Container>, RecordError> {
    let config = node.config.load();
    let places = ContainerPlaces::new(&config.root, id);
    let identity: ContainerIdentity =
        store::read(&places.identity())?.ok_or_else(|| missing(places.identity()))?;
    let Some(sandbox) = node.sandboxes.get(&identity.sandbox).filter(|_| identity.id == id) else {
        let reason = format!("its sandbox {} is not known", identity.sandbox);
        return Err(RecordError::Corrupt { path: places.identity(), reason });
    };
    let read = store::read::<ContainerState>(&places.state());
    let on_disk = read.as_ref().ok().cloned().flatten();
    let state = match read {
        Ok(Some(state)) => state,
        Ok(None) => ContainerState::default(),
        Err(error) => {
            tracing::error!(container = id, %error, "the container's state cannot be read: its shim will tell");
            put_by(&places.state());
            ContainerState { stage: ContainerStage::Unknown, claimed: true, ..ContainerState::default() }
        }
    };
    // Without its shim nothing of the pod is supervised: what ran is not said to run.
    let shim_lives = !restarted && sandbox.state().shim.is_some_and(|shim| shim.is_alive().unwrap_or(true));
    let state = if state.may_run() && !shim_lives {
        let message = if restarted { "the host was restarted" } else { "the shim of its sandbox has ended" };
        let fact = ContainerFact::Lost { at: node.clock.now(), message: message.to_owned() };
        state.clone().on(fact).unwrap_or(state)
    } else {
        state
    };
    keep(&places.state(), &state, on_disk.as_ref());
    Ok(Container::new(&config.root, identity, state, &sandbox.closing, Arc::clone(&node.events)))
}

fn restore(node: &Arc<Node>, container: &Arc<Container>) {
    let id = container.id().to_owned();
    node.clock.seen(container.identity.created_at);
    image_volume::hold(&node.images, &container.identity);
    if let Some(sandbox) = node.sandboxes.get(&container.identity.sandbox) {
        sandbox.children.restore(&id);
    }
    let state = container.state();
    if state.lives() && state.claimed {
        node.container_names.restore(container.key(), &id, &container.identity.config);
    }
    if let Some(process) = state.process() {
        container.hold(process, None);
    }
    node.containers.insert(id, Arc::clone(container));
}
