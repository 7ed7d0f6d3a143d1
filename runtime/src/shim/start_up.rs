//! From `main` to the loop: what the shim makes of the process that the daemon started.
//!
//! It is executed from a sealed memfd with a listening `SOCK_SEQPACKET` socket as standard input, a log file (or
//! /dev/null) as the other two, and the sandbox's id as its argument, which nobody reads but `ps`.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;

use cove_path::Proc;
use cove_sys::SingleThreaded;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::{Mode, OFlags};
use rustix::net::SocketType;
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use rustix::process::{DumpableBehavior, set_child_subreaper, set_dumpable_behavior};

use super::facts::Facts;
use super::sandbox::Sandbox;
use super::serve::Shim;
use super::watch::Watch;
use crate::protocol::{BUILD, PROBE, PROTOCOL};

/// The lowest score that still lets an operator's own choice (-1000) win. Needs CAP_SYS_RESOURCE.
const OOM_SCORE: &[u8] = b"-999";

/// Runs the shim. `--version` prints the build and the protocol, by which a daemon knows whether it may use the file; with
/// [`PROBE`] it looks whether this node can run pods with user namespaces, and prints why not.
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let first = args.nth(1);
    if first.as_deref() == Some("--version".as_ref()) {
        println!("cove-shim {BUILD} protocol {PROTOCOL}");
        return ExitCode::SUCCESS;
    }
    if first.as_deref() == Some(PROBE.as_ref()) {
        return probe(args);
    }
    if first.is_none() {
        super::say("the daemon starts this program, with a socket as standard input and a sandbox's id");
        return ExitCode::from(2);
    }
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// The daemon asks, since only a process of one thread can look: see `build::probe`. Says what is missing.
fn probe(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(layers), Some(state)) = (args.next(), args.next()) else {
        println!("{PROBE} needs the directory of layers and that of state");
        return ExitCode::from(2);
    };
    match crate::build::probe::user_namespaces(layers.as_ref(), state.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("{}", failure.detail);
            ExitCode::FAILURE
        }
    }
}

fn start() -> io::Result<()> {
    // Executed from a memfd, the process would be called by the descriptor's number.
    rustix::thread::set_name(c"cove-shim")?;
    let single = SingleThreaded::check()?;
    let listener = take_listener()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    leave_the_daemon()?;
    crate::descriptors::allow_all();
    let proc = Proc::open().map_err(io::Error::other)?;
    lower_oom_score(&proc);
    let shim = Shim {
        single,
        proc,
        null,
        watch: Watch::new()?,
        listener,
        signals: take_signals()?,
        generation: 0,
        peers: BTreeMap::new(),
        facts: Facts::default(),
        pids: BTreeMap::new(),
        sandbox: Sandbox::default(),
        containers: BTreeMap::new(),
        execs: BTreeMap::new(),
        hunts: VecDeque::new(),
        unreaped: false,
        shutdown: None,
        clamped: false,
        next_slot: 0,
        input: Vec::new(),
        rest_at: None,
        held: BTreeMap::new(),
    };
    Ok(shim.serve()?)
}

/// Standard input is the socket; a child must never get it for its own.
fn take_listener() -> io::Result<OwnedFd> {
    let stdin = cove_sys::inherited(0)?;
    let is_ours = socket_type(&stdin).is_ok_and(|kind| kind == SocketType::SEQPACKET)
        && socket_acceptconn(&stdin).unwrap_or(false);
    if !is_ours {
        return Err(io::Error::other("standard input is not a listening SEQPACKET socket"));
    }
    let listener = rustix::io::fcntl_dupfd_cloexec(&stdin, 3)?;
    rustix::io::ioctl_fionbio(&listener, true)?;
    Ok(listener)
}

/// A session of its own, nobody's debuggee, the parent of the pod's orphans.
fn leave_the_daemon() -> io::Result<()> {
    match rustix::process::setsid() {
        // It leads a session already.
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    set_child_subreaper(Some(rustix::process::getpid()))?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    rustix::process::chdir("/")?;
    Ok(())
}

/// A daemon may lack the right: then the shim stays where it is.
fn lower_oom_score(proc: &Proc) {
    let path = PathBuf::from(format!("{}/oom_score_adj", std::process::id()));
    if let Err(error) = proc.write(&path, OOM_SCORE)
        && error.errno() != Some(rustix::io::Errno::ACCESS)
    {
        super::say(&format!("own oom_score_adj: {error}"));
    }
}

/// All signals are blocked; the ends of children come by descriptor. SIGPIPE is ignored by Rust's runtime.
fn take_signals() -> io::Result<SignalFd> {
    SigSet::all().thread_set_mask()?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    Ok(SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}
