//! Takes the exits of all children: those that the shim forked, those that builders cloned for it, and orphans that
//! came to it as their subreaper. Never waits.

use rustix::process::{Pid, WaitIdOptions, WaitOptions, WaitStatus, wait};

use crate::protocol::ExitStatus;

/// `__WALL` of waitpid(2): children too whose end raises no SIGCHLD. rustix has no name for it.
const WALL: u32 = 0x4000_0000;
/// The same for waitid(2).
pub const ALL_CHILDREN: WaitIdOptions = WaitIdOptions::from_bits_retain(WALL);

/// The next child that has ended. By waitpid(-1) and not by pidfds: a pidfd of an init stays silent while an exec'd
/// child in its namespace is an unreaped zombie.
pub fn next() -> Option<(i32, ExitStatus)> {
    let options = WaitOptions::NOHANG | WaitOptions::from_bits_retain(WALL);
    // ECHILD: there is no child at all.
    let (pid, status) = rustix::io::retry_on_intr(|| wait(options)).ok().flatten()?;
    Some((pid.as_raw_nonzero().get(), convert(status)))
}

/// There is a child, dead or alive.
pub fn any() -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG | ALL_CHILDREN;
    rustix::process::waitid(rustix::process::WaitId::All, look).is_ok()
}

fn convert(status: WaitStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus { code, signal: 0 },
        (None, signal) => {
            let signal = signal.unwrap_or(0);
            ExitStatus { code: 128 + signal, signal }
        }
    }
}

/// A pid as rustix takes it.
pub fn as_pid(pid: i32) -> Option<Pid> {
    if pid > 0 { Pid::from_raw(pid) } else { None }
}
