//! The shim: the parent of everything in one pod. Single-threaded, static, small; outlives the daemon.
//!
//! It forks builders, places them in cgroups, opens their gates, owns the containers' output and writes their logs,
//! reaps, and keeps what happened until the daemon has recorded it. It never waits for anybody, never parses a
//! specification, and holds no mount. Read [`serve`] first.

mod attach;
mod cgroup;
mod clock;
mod container;
mod exec;
mod exit;
mod facts;
mod failure;
mod fork;
mod hunt;
mod lifecycle;
mod log;
mod loopback;
mod oom;
mod peer;
mod reap;
mod request;
mod sandbox;
mod serve;
mod shutdown;
mod spawn;
mod start_up;
mod stdio;
mod sweep;
mod sysctl;
mod watch;

pub use start_up::main;

/// Tells the operator, in the file that the daemon gave the shim as standard error.
fn say(text: &str) {
    use std::io::Write;
    // A full disk must not end the shim, and there is nowhere else to complain.
    let _unwritten = writeln!(std::io::stderr(), "cove-shim: {text}");
}
