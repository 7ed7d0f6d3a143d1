//! The daemon's side of the shims: launch one a pod, find those of an earlier daemon, ask them things, hear of facts.

mod connection;
mod launch;
mod link;
mod probe;

pub(crate) use launch::{Launcher, find};
pub(crate) use link::{ExecFact, Shim, ShimEvent};
pub(crate) use probe::Probe;

use serde::{Deserialize, Serialize};

/// A process of the host that is told from a later one of the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat.
    pub started: u64,
}

impl ProcessId {
    /// The process of this pid as it is now; none if there is no such process. Blocking.
    pub fn of(pid: i32) -> std::io::Result<Option<Self>> {
        Ok(cove_runtime::process::start_time(pid)?.map(|started| Self { pid, started }))
    }

    /// It is there. Blocking.
    pub fn is_alive(self) -> std::io::Result<bool> {
        cove_runtime::process::is_alive(self.pid, self.started)
    }
}

/// Name of the control socket in a sandbox's state directory.
pub(crate) const SOCKET: &str = "shim.sock";
/// Name of what a shim writes to stdout and stderr, in the same directory.
pub(crate) const LOG: &str = "shim.log";
