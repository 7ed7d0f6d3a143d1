//! What the record of a pod that nobody wants gone says to be there, and is not.

use std::collections::BTreeSet;
use std::path::Path;

use cove_runtime::cgroup::{CgroupPath, Hierarchies};
use cove_runtime::namespace;

use super::finding::{Finding, Kind};
use super::known::{Known, Member, Pod};
use crate::container::state::Stage;
use crate::error::Error;
use crate::sandbox::files::{HOSTNAME, HOSTS, RESOLV_CONF};
use crate::sandbox::state::SandboxState;
use crate::shim::{ProcessId, SOCKET};

const REMAKE: &str = "stop and remove the pod, so that the kubelet makes it anew";
const RESTART: &str = "its container cannot be used: stop it, so that the kubelet starts another";

/// The records are read before this looks: what it does not find was there when they were written.
pub(super) fn find(known: &Known, found: &mut BTreeSet<Finding>) -> Result<(), Error> {
    let tree = Hierarchies::detect()?;
    for (id, pod) in &known.pods {
        let Some(state) = pod.is_settled() else { continue };
        self::pod(id, pod, state, found)?;
        if state.init.is_some() {
            cgroup(&tree, &pod.identity.init_cgroup(), id, REMAKE, found)?;
        }
    }
    for (id, member) in &known.members {
        let settled = known.pods.get(&member.identity.sandbox).is_some_and(|pod| pod.is_settled().is_some());
        if settled {
            self::member(&tree, id, member, found)?;
        }
    }
    Ok(())
}

fn pod(id: &str, pod: &Pod, state: &SandboxState, found: &mut BTreeSet<Finding>) -> Result<(), Error> {
    match state.shim {
        Some(shim) => process("cove-shim", shim, id, REMAKE, found)?,
        None => drop(found.insert(Finding::missing(Kind::Process, "cove-shim", id, REMAKE))),
    }
    if let Some(init) = state.init {
        let comm = std::fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default();
        if comm.trim() != "cove-init" {
            found.insert(Finding::missing(Kind::Process, format!("{init} (cove-init)"), id, REMAKE));
        }
    }
    if let Some(netns) = &pod.identity.netns {
        let name = netns.display().to_string();
        let opened =
            namespace::open_pin(netns).map_err(|error| Error::system("open", name.clone(), error))?;
        if opened.is_none() {
            found.insert(Finding::missing(Kind::Netns, name, id, REMAKE));
        }
    }
    for file in [SOCKET, HOSTS, HOSTNAME, RESOLV_CONF] {
        exists(&pod.places.run.join(file), id, REMAKE, found);
    }
    Ok(())
}

fn member(tree: &Hierarchies, id: &str, member: &Member, found: &mut BTreeSet<Finding>) -> Result<(), Error> {
    let Some(state) = member.state.as_ref().filter(|state| !state.removing) else { return Ok(()) };
    for path in [member.places.spec(), member.places.upper(), member.places.work()] {
        exists(&path, id, RESTART, found);
    }
    for layer in &member.identity.layers {
        if !layer.exists() {
            found.insert(Finding::missing(Kind::Layer, layer.display().to_string(), id, RESTART));
        }
    }
    let Stage::Running { process, .. } = state.stage else { return Ok(()) };
    if state.stop.is_none() {
        self::process("first process", process, id, "restart the daemon, which asks its shim", found)?;
        cgroup(tree, &member.identity.cgroup, id, RESTART, found)?;
    }
    Ok(())
}

fn process(
    name: &str,
    process: ProcessId,
    id: &str,
    advice: &str,
    found: &mut BTreeSet<Finding>,
) -> Result<(), Error> {
    let name = format!("{} ({name})", process.pid);
    let failed = |error| Error::system("look at process", name.clone(), error);
    // One that has ended, and that nobody has reaped, is gone as well.
    if !process.is_alive().map_err(failed)? || is_zombie(process.pid) {
        found.insert(Finding::missing(Kind::Process, name, id, advice));
    }
    Ok(())
}

/// Field 3 of /proc/PID/stat.
fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with(['Z', 'X']))
}

fn cgroup(
    tree: &Hierarchies,
    path: &Path,
    id: &str,
    advice: &str,
    found: &mut BTreeSet<Finding>,
) -> Result<(), Error> {
    for directory in tree.missing(&CgroupPath::new(path)?)? {
        found.insert(Finding::missing(Kind::Cgroup, directory.display().to_string(), id, advice));
    }
    Ok(())
}

fn exists(path: &Path, id: &str, advice: &str, found: &mut BTreeSet<Finding>) {
    if std::fs::symlink_metadata(path).is_err() {
        found.insert(Finding::missing(Kind::File, path.display().to_string(), id, advice));
    }
}
