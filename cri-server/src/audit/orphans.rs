//! Processes, control groups, mounts and namespaces that no record knows.

use std::collections::BTreeSet;
use std::path::Path;

use cove_runtime::cgroup::Present;

use super::Subject;
use super::finding::{Finding, Kind, Repair};
use super::known::Known;
use super::seen::{Helper, Seen, id_of};
use crate::container::state::Stage;
use crate::shim::ProcessId;

/// Names of groups that the daemon and its service manager make below the instance's own.
const SERVICE: [&str; 2] = ["shims", "daemon"];

pub(super) fn find(subject: &Subject<'_>, seen: &Seen, known: &Known, found: &mut BTreeSet<Finding>) {
    found.extend(seen.helpers.iter().filter_map(|helper| self::helper(helper, known)));
    for group in &seen.cgroups {
        cgroup(subject, group, known, found);
    }
    for point in &seen.mounts {
        let finding =
            Finding::orphan(Kind::Mount, point.display().to_string(), Repair::Detach(point.clone()));
        found.insert(with_owner(finding, point));
    }
    for (id, (path, is_mounted)) in &seen.pins {
        let is_known = known.stands(id) && known.pods.get(id).is_none_or(|pod| pod.identity.netns.is_some());
        if !is_known {
            let kind = if *is_mounted { Kind::Mount } else { Kind::Netns };
            let repair = Repair::Unpin(path.clone());
            found.insert(Finding::orphan(kind, path.display().to_string(), repair).of(id));
        }
    }
}

/// The first id in a path is whose it was.
fn with_owner(finding: Finding, path: &Path) -> Finding {
    let owner = path.ancestors().filter_map(id_of).last();
    match owner {
        Some(id) => finding.of(id),
        None => finding,
    }
}

/// In the shims' cgroup there are shims of sandboxes that stand, one each, and nobody else.
fn helper(helper: &Helper, known: &Known) -> Option<Finding> {
    let Helper { process, sandbox, line } = helper;
    let kill = Finding::kill(*process);
    let name = format!("{} ({line})", process.pid);
    let Some(id) = sandbox else { return Some(Finding::orphan(Kind::Process, name, kill)) };
    let recorded = known.pods.get(id).and_then(|pod| pod.state.as_ref()?.shim);
    let is_own = known.stands(id) && recorded.is_none_or(|shim| shim == *process);
    (!is_own).then(|| Finding::orphan(Kind::Process, name, kill).of(id))
}

fn cgroup(subject: &Subject<'_>, group: &Present, known: &Known, found: &mut BTreeSet<Finding>) {
    let parent = &subject.config.cgroup_parent;
    let is_idle = subject.daemon.is_none() && known.pods.is_empty() && known.unreadable.is_empty();
    let name = group.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_shared = group.path == *parent
        || group.path.parent() == Some(parent) && SERVICE.contains(&name)
        || known.pods.values().any(|pod| !pod.identity.own_cgroup && group.path == pod.identity.cgroup);
    if is_shared {
        // Shared by the pods; without pods and daemon they are what a daemon that was killed left. Groups of the service
        // manager are its own.
        let is_ours = (group.path == *parent || name == "shims") && group.path.starts_with(parent);
        if is_idle && is_ours {
            let repair = Repair::Cgroup { path: group.path.clone(), kill: false };
            found.insert(Finding::orphan(Kind::Cgroup, group.directory.display().to_string(), repair));
        }
        return;
    }
    let in_service = group.path.strip_prefix(parent).ok().and_then(|below| below.iter().next());
    if in_service.is_some_and(|first| SERVICE.iter().any(|service| first == *service)) {
        return;
    }
    let Some(id) = id_of(&group.path) else {
        // What a container or the init of a pod makes below its own group is its own business.
        if group
            .path
            .ancestors()
            .skip(1)
            .any(|above| id_of(above).is_some_and(|id| known.may_have_cgroup(id)))
        {
            return;
        }
        let repair = Repair::Cgroup { path: group.path.clone(), kill: false };
        found.insert(Finding::orphan(Kind::Cgroup, group.directory.display().to_string(), repair));
        return;
    };
    if !(known.stands(id) || known.may_have_cgroup(id)) {
        let repair = Repair::Cgroup { path: group.path.clone(), kill: true };
        found.insert(Finding::orphan(Kind::Cgroup, group.directory.display().to_string(), repair).of(id));
        return processes(group, id, found);
    }
    // The group of a container that has ended may stay until the container is removed, but nobody is in it.
    let ended = known.members.get(id).and_then(|member| member.state.as_ref());
    if ended.is_some_and(|state| matches!(state.stage, Stage::Exited { .. } | Stage::Created)) {
        processes(group, id, found);
    }
}

fn processes(group: &Present, id: &str, found: &mut BTreeSet<Finding>) {
    for pid in &group.pids {
        let Ok(Some(process)) = ProcessId::of(*pid) else { continue };
        let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name = format!("{pid} ({})", command.trim());
        found.insert(Finding::orphan(Kind::Process, name, Finding::kill(process)).of(id));
    }
}
