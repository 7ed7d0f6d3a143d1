//! Takes away what every look found to be left over. Everything here is of this instance, and gone is done.
//!
//! Beside a running daemon: what is called by an id has no operation, since ids are never given twice. A host port is
//! different, its key comes back: another pod may be given the same address and port at this moment. Its record is
//! written before its element, so the records are read once more after the removal, and what they name is put back.

use std::path::Path;

use cove_netplugin::builtin::{Builtin, Element};
use cove_runtime::cgroup::{CgroupPath, Hierarchies};
use cove_runtime::{mount_table, namespace};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Subject;
use super::finding::{Finding, Outcome, Repair, Result as Told};
use super::known::Known;
use crate::error::Error;
use crate::shim::ProcessId;
use crate::store;

/// One after another, in the order of their kinds: processes first, else their groups could not be removed.
pub(super) fn all(subject: &Subject<'_>, mut found: Vec<Finding>) -> Vec<Told> {
    // Inner groups before those that they are in, inner mounts as well.
    found.sort_by(|a, b| a.kind.cmp(&b.kind).then_with(|| b.name.cmp(&a.name)));
    let repaired = found.into_iter().map(|finding| {
        let outcome = match one(subject, &finding.repair) {
            None => None,
            Some(Ok(())) => Some(Outcome::Removed),
            Some(Err(error)) => Some(Outcome::Failed(error.to_string())),
        };
        Told { finding, outcome }
    });
    repaired.collect()
}

fn one(subject: &Subject<'_>, repair: &Repair) -> Option<Result<(), Error>> {
    let instance = &subject.config.instance;
    Some(match repair {
        Repair::ByHand => return None,
        Repair::Kill { pid, started } => kill(ProcessId { pid: *pid, started: *started }),
        Repair::Cgroup { path, kill } => cgroup(path, *kill),
        Repair::Detach(point) => mount_table::detach(point)
            .map_err(|error| Error::system("unmount", point.display().to_string(), error)),
        Repair::Unpin(path) => {
            namespace::unpin(path).map_err(|error| Error::system("unpin", path.display().to_string(), error))
        }
        Repair::Link(name) => Builtin::remove_link(name).map_err(Into::into),
        Repair::Element(element) => self::element(subject, element),
        Repair::Rules => Builtin::rewrite(instance, &subject.config.network.ranges).map_err(Into::into),
        Repair::Table => Builtin::stop(instance).map_err(Into::into),
        Repair::Delete(path) => store::remove_tree(path),
    })
}

fn kill(process: ProcessId) -> Result<(), Error> {
    let failed = |error| Error::system("kill", format!("process {}", process.pid), error);
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(()) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(errno) => return Err(failed(errno.into())),
    };
    // Looked at after the pidfd was opened: from now on it is this process, or it is not signalled.
    if !process.is_alive().map_err(failed)? {
        return Ok(());
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(failed(errno.into())),
    }
}

fn cgroup(path: &Path, kill: bool) -> Result<(), Error> {
    let tree = Hierarchies::detect()?;
    let path = CgroupPath::new(path)?;
    if kill && let Some(group) = tree.open(&path)? {
        group.kill()?;
    }
    Ok(tree.remove(&path)?)
}

fn element(subject: &Subject<'_>, element: &Element) -> Result<(), Error> {
    let instance = &subject.config.instance;
    Builtin::remove_elements(instance, [element])?;
    let known = Known::read(subject.config)?;
    for (_, attachment) in known.attachments() {
        if Element::of(attachment)?.contains(element) {
            Builtin::restore_elements(instance, attachment)?;
        }
    }
    Ok(())
}
