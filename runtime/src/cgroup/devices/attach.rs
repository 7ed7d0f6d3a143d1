//! Puts a device program on a group of version 2, and finds it there again: the kernel keeps it, and this process keeps
//! nothing, so a daemon that starts anew finds what the last one left. It goes with the group.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::program::{self, MAX_RULES, Rule};
use crate::cgroup::CgroupError;
use crate::cgroup::group::Group;

/// The name that our programs bear, by which they are told from those of others in the group (systemd's, an agent's):
/// those are left alone, and a device must please all.
const NAME: &str = "cove_devices";
/// How much of the verifier's log is told: its end says what it did not like.
const LOG_TOLD: usize = 2048;

/// Makes `rules` the rules of a group: in one step where it has some already. What it had stays where this fails.
pub(super) fn set(group: &Group, rules: &[Rule]) -> Result<(), CgroupError> {
    if rules.len() > MAX_RULES {
        return Err(CgroupError::Limit { limit: "devices", reason: "are more than 2000 rules" });
    }
    let new = cove_sys::load_device_program(NAME, &program::compile(rules)).map_err(|refused| {
        let log = refused.log.trim_end();
        let told = log.char_indices().map(|(at, _)| at).find(|at| log.len() - at <= LOG_TOLD);
        CgroupError::Program {
            doing: "load",
            path: group.path.clone(),
            source: refused.source,
            log: log[told.unwrap_or(log.len())..].to_owned(),
        }
    })?;
    let old = ours(group)?;
    let (replaced, rest) = old.split_first().unzip();
    let replaced: Option<&OwnedFd> = replaced;
    cove_sys::attach_device_program(group.dir.as_fd(), new.as_fd(), replaced.map(AsFd::as_fd))
        .map_err(|source| failed("attach", group, source))?;
    // More than one is what another writer left.
    rest.unwrap_or_default().iter().try_for_each(|old| detach(group, old))
}

/// Takes every rule of ours from a group.
pub(super) fn clear(group: &Group) -> Result<(), CgroupError> {
    match ours(group) {
        // A kernel without eBPF, or without it for cgroups, has no program of ours.
        Err(CgroupError::Program { source, .. })
            if matches!(Errno::from_io_error(&source), Some(Errno::NOSYS | Errno::INVAL)) =>
        {
            Ok(())
        }
        old => old?.iter().try_for_each(|old| detach(group, old)),
    }
}

/// Our programs on a group.
fn ours(group: &Group) -> Result<Vec<OwnedFd>, CgroupError> {
    let ids = cove_sys::device_programs(group.dir.as_fd()).map_err(|e| failed("list", group, e))?;
    let mut ours = Vec::new();
    for id in ids {
        match cove_sys::program_by_id(id) {
            Ok((program, name)) if name == NAME => ours.push(program),
            Ok(_) => {}
            // It went between the two calls.
            Err(e) if is_gone(&e) => {}
            Err(e) => return Err(failed("look at", group, e)),
        }
    }
    Ok(ours)
}

fn detach(group: &Group, program: &OwnedFd) -> Result<(), CgroupError> {
    match cove_sys::detach_device_program(group.dir.as_fd(), program.as_fd()) {
        Err(e) if !is_gone(&e) => Err(failed("detach", group, e)),
        _ => Ok(()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NOENT)
}

fn failed(doing: &'static str, group: &Group, source: io::Error) -> CgroupError {
    CgroupError::Program { doing, path: group.path.clone(), source, log: String::new() }
}

#[cfg(test)]
mod tests;
