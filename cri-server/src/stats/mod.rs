//! What containers and pods use: read from cgroup files that stay open, the pod's /proc/net/dev, and the last
//! measurement of each writable layer. Asks nothing of shims and keeps nothing on disk.

mod cgroup;
mod detail;
mod network;
mod writable;

use std::collections::BTreeSet;
use std::sync::Arc;

use cove_runtime::cgroup::Stats as CgroupStats;

pub(crate) use detail::{ContainerDetail, Disk, SandboxDetail, details};
pub(crate) use network::{DEFAULT as DEFAULT_LINK, Interface};
pub(crate) use writable::LayerUsage;

use crate::blocking;
use crate::container::list::{ContainerFilter, PhaseFilter};
use crate::container::{self, ContainerPhase, ContainerView};
use crate::error::{Error, Kind};
use crate::node::Node;
use crate::sandbox::config::NamespaceMode;
use crate::sandbox::list::SandboxFilter;
use crate::sandbox::live::Sandbox;
use crate::sandbox::{self, SandboxView};

/// What is kept between two readings.
#[derive(Debug, Default)]
pub struct Usage {
    readers: cgroup::Readers,
    layers: writable::Layers,
}

/// What a cgroup has used.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// When it was read, in nanoseconds since the epoch; later than every reading before.
    pub at: i64,
    /// What the kernel counts.
    pub stats: CgroupStats,
    /// Billionths of a CPU between the last two readings; none before the second.
    pub nano_cores: Option<u64>,
}

/// What a container uses.
#[derive(Debug, Clone)]
pub struct ContainerUsage {
    /// Whose.
    pub view: Arc<ContainerView>,
    /// Of its cgroup; none once it does not run.
    pub reading: Option<Reading>,
    /// Of its writable layer; none until it was measured once.
    pub layer: Option<LayerUsage>,
}

/// What a pod uses.
#[derive(Debug, Clone)]
pub struct SandboxUsage {
    /// Whose.
    pub view: Arc<SandboxView>,
    /// Of its cgroup; none once it is stopped.
    pub reading: Option<Reading>,
    /// Its links but loopback; empty with the host's network. When they were read is `reading.at`.
    pub links: Vec<Interface>,
    /// Its running containers.
    pub containers: Vec<ContainerUsage>,
}

/// ContainerStats: one container, running or not.
pub async fn container(node: &Arc<Node>, id: &str) -> Result<ContainerUsage, Error> {
    let view = container::status::status(node, id)?;
    let node = Arc::clone(node);
    blocking::run(move || of_container(&node, view)).await
}

/// ListContainerStats: running containers that a filter names, in the order of their making.
pub async fn containers(node: &Arc<Node>, filter: ContainerFilter) -> Result<Vec<ContainerUsage>, Error> {
    let node = Arc::clone(node);
    blocking::run(move || {
        node.usage.forget_all_but(&node);
        running(&node, filter)
    })
    .await
}

/// PodSandboxStats: one pod, ready or not.
pub async fn sandbox(node: &Arc<Node>, id: &str) -> Result<SandboxUsage, Error> {
    let view = sandbox::status::status(node, id)?;
    let node = Arc::clone(node);
    blocking::run(move || of_sandbox(&node, view)).await
}

/// ListPodSandboxStats: ready pods that a filter names, in the order of their making.
pub async fn sandboxes(node: &Arc<Node>, filter: SandboxFilter) -> Result<Vec<SandboxUsage>, Error> {
    let node = Arc::clone(node);
    blocking::run(move || {
        node.usage.forget_all_but(&node);
        let filter = SandboxFilter { ready: Some(true), ..filter };
        let mut all = Vec::new();
        for view in sandbox::list::list(&node, &filter) {
            let usage = of_sandbox(&node, view)?;
            // One that was stopped since it was listed is left out.
            if usage.reading.is_some() {
                all.push(usage);
            }
        }
        Ok(all)
    })
    .await
}

/// Those that run, and still did when their cgroup was read: one that ends meanwhile never fails the list.
fn running(node: &Node, filter: ContainerFilter) -> Result<Vec<ContainerUsage>, Error> {
    let filter = ContainerFilter { phase: Some(PhaseFilter::Running), ..filter };
    let mut all = Vec::new();
    for view in container::list::list(node, &filter) {
        let usage = of_container(node, view)?;
        if usage.reading.is_some() {
            all.push(usage);
        }
    }
    Ok(all)
}

fn of_container(node: &Node, view: Arc<ContainerView>) -> Result<ContainerUsage, Error> {
    let Some(container) = node.containers.get(&view.id) else {
        return Err(Error::NotFound { kind: Kind::Container, id: view.id.clone() });
    };
    let reading = if matches!(view.phase, ContainerPhase::Running { .. }) {
        node.usage.readers.read(node, &view.id, &container.identity.cgroup)?
    } else {
        None
    };
    let layer = node.usage.layers.of(&view.id, &container.places.upper());
    Ok(ContainerUsage { view, reading, layer })
}

fn of_sandbox(node: &Node, view: Arc<SandboxView>) -> Result<SandboxUsage, Error> {
    let Some(sandbox) = node.sandboxes.get(&view.id) else {
        return Err(Error::NotFound { kind: Kind::Sandbox, id: view.id.clone() });
    };
    if !view.ready {
        return Ok(SandboxUsage { view, reading: None, links: Vec::new(), containers: Vec::new() });
    }
    let reading = node.usage.readers.read(node, &view.id, &sandbox.identity.cgroup)?;
    let links = links(&sandbox)?;
    let of_pod = ContainerFilter { sandbox: Some(view.id.clone()), ..ContainerFilter::default() };
    Ok(SandboxUsage { view, reading, links, containers: running(node, of_pod)? })
}

/// Read where the pod's shim is, which is in the pod's network namespace. The host's links are not a pod's.
fn links(sandbox: &Sandbox) -> Result<Vec<Interface>, Error> {
    let Some(shim) = sandbox.state().shim else { return Ok(Vec::new()) };
    if sandbox.identity.config.network == NamespaceMode::Node {
        return Ok(Vec::new());
    }
    let links = network::links(shim.pid)?;
    // Looked at after it was read: a later process of this pid is not ours.
    let alive = shim.is_alive().map_err(|error| Error::system("look at the shim of", sandbox.id(), error))?;
    Ok(if alive { links } else { Vec::new() })
}

impl Usage {
    /// Closes the files of a container that has ended: nothing is to be read from them any more.
    pub fn close(&self, id: &str) {
        self.readers.retain(|known| known != id);
    }

    /// Closes the files of what is gone, and of what does not run any more.
    fn forget_all_but(&self, node: &Node) {
        let (containers, sandboxes) = (node.containers.all(), node.sandboxes.all());
        let run = containers.values().filter(|container| container.state().may_run());
        let ready = sandboxes.values().filter(|sandbox| sandbox.lives());
        let alive: BTreeSet<&str> =
            run.map(|container| container.id()).chain(ready.map(|sandbox| sandbox.id())).collect();
        self.readers.retain(|id| alive.contains(id));
        self.layers.retain(|id| containers.contains_key(id));
    }
}
