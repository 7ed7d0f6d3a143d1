//! Forks a builder and lets it through gate 0: the one place where the shim makes a process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use cove_guard::Guard;
use cove_sys::{CloneFlags, Forked, SingleThreaded};
use nix::sys::signal::SigSet;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use super::cgroup::Cgroup;
use super::failure;
use super::spawn::{Child, Spawn};
use crate::build::report::Report;
use crate::build::userns::UserNamespace;
use crate::build::{self, Builder, HolderRequest, PidEntry};
use crate::protocol::Failure;
use crate::wire::Wire;

/// What is forked.
#[derive(Debug)]
pub enum Kind {
    /// A container's first process.
    Create {
        /// Its PID namespace.
        pid: PidEntry,
        /// The pod's holder mount namespace.
        holder: Option<OwnedFd>,
    },
    /// A further process in the container whose first process is behind this pidfd.
    Join(OwnedFd),
}

/// What a builder gets from outside.
#[derive(Debug)]
pub struct Order {
    /// Create or join.
    pub kind: Kind,
    /// The specification's memfd, which the shim never reads.
    pub spec: OwnedFd,
    /// stdin, stdout, stderr of the program.
    pub stdio: [OwnedFd; 3],
    /// They are the end of a terminal.
    pub terminal: bool,
    /// The pod's user namespace.
    pub user: Option<UserNamespace>,
    /// What its mount namespace is a copy of, if not of the host's.
    pub void: Option<OwnedFd>,
}

/// What the child becomes.
#[derive(Debug)]
enum Task {
    Build(Order),
    Hold { shm_size: u64, init: bool, user: Option<UserNamespace>, void: Option<OwnedFd> },
}

/// Ends of the builder's own sockets and pipes.
struct Ends {
    report: OwnedFd,
    gate0: OwnedFd,
    gate1: OwnedFd,
}

/// Forks the builder of a container or exec. `process`: whose group is taken where `cgroup` itself refuses.
pub fn builder(
    single: SingleThreaded,
    order: Order,
    cgroup: &Cgroup,
    process: Option<i32>,
) -> Result<Spawn, Failure> {
    let task = Task::Build(order);
    watch(single, task.flags(), cgroup, process, task)
}

/// Forks the process that makes the holder mount namespace, and with `init` becomes the pod's init.
pub fn holder(
    single: SingleThreaded,
    (shm_size, init): (u64, bool),
    (user, void): (Option<UserNamespace>, Option<OwnedFd>),
    cgroup: &Cgroup,
) -> Result<Spawn, Failure> {
    let task = Task::Hold { shm_size, init, user, void };
    watch(single, task.flags(), cgroup, None, task)
}

impl Task {
    /// It is to be the first process of a PID namespace.
    fn is_first(&self) -> bool {
        match self {
            Self::Build(order) => matches!(order.kind, Kind::Create { pid: PidEntry::First, .. }),
            Self::Hold { init, .. } => *init,
        }
    }

    fn user(&self) -> Option<&UserNamespace> {
        match self {
            Self::Build(order) => order.user.as_ref(),
            Self::Hold { user, .. } => user.as_ref(),
        }
    }

    /// The pod's user namespace owns its PID namespaces, so they are made in there.
    fn flags(&self) -> CloneFlags {
        if self.is_first() && self.user().is_none() { CloneFlags::NEW_PID } else { CloneFlags::none() }
    }

    /// The builder clones the process that runs the program, or becomes it.
    fn clones(&self) -> bool {
        match self {
            Self::Build(_) => !self.is_first() || self.user().is_some(),
            Self::Hold { init, user, .. } => *init && user.is_some(),
        }
    }

    /// All that the child keeps beside its own ends.
    fn keep(&self) -> Vec<RawFd> {
        let mut keep = match self {
            Self::Build(order) => order.keep(),
            Self::Hold { .. } => Vec::new(),
        };
        let (Self::Build(Order { void, .. }) | Self::Hold { void, .. }) = self;
        keep.extend(void.as_ref().map(AsRawFd::as_raw_fd));
        keep.extend(self.user().map(|user| user.namespace.as_raw_fd()));
        keep
    }

    /// In the child.
    fn carry_out(self, single: SingleThreaded, ends: Ends) -> ! {
        match self {
            Self::Build(order) => order.carry_out(single, ends),
            Self::Hold { shm_size, init, user, void } => {
                let Ends { report, gate0, gate1 } = ends;
                build::holder(HolderRequest { single, gate0, report, gate1, shm_size, init, user, void })
            }
        }
    }
}

impl Order {
    fn keep(&self) -> Vec<RawFd> {
        let mut keep: Vec<RawFd> = self.stdio.iter().map(AsRawFd::as_raw_fd).collect();
        keep.push(self.spec.as_raw_fd());
        match &self.kind {
            Kind::Create { pid, holder } => {
                keep.extend(holder.as_ref().map(AsRawFd::as_raw_fd));
                if let PidEntry::Enter(member) | PidEntry::Target(member) = pid {
                    keep.push(member.as_raw_fd());
                }
            }
            Kind::Join(target) => keep.push(target.as_raw_fd()),
        }
        keep
    }

    /// In the child: becomes the builder.
    fn carry_out(self, single: SingleThreaded, ends: Ends) -> ! {
        let Ends { report, gate0, gate1 } = ends;
        let Self { spec, stdio, terminal, user, void, kind } = self;
        let builder = Builder { single, spec, report, gate0, gate1, stdio, terminal, user, void };
        match kind {
            Kind::Create { pid, holder } => build::create(builder, pid, holder),
            Kind::Join(target) => build::join(builder, target),
        }
    }
}

/// Closes all but `keep`: close-on-exec does nothing for a process that waits at its gate (design.md section 2).
fn close_others(keep: &[RawFd]) {
    if Guard::CloseRange.holds() && cove_sys::close_all_except(keep).is_err() {
        // close_range(2) fails only by lack of memory for a larger table. A child that might leak must not go on.
        std::process::abort();
    }
}

/// What the shim's signals were set to is not for its children.
fn reset_signals() {
    cove_sys::default_signals();
    if SigSet::empty().thread_set_mask().is_err() {
        std::process::abort();
    }
}

fn watch(
    single: SingleThreaded,
    flags: CloneFlags,
    cgroup: &Cgroup,
    process: Option<i32>,
    task: Task,
) -> Result<Spawn, Failure> {
    let pipes = || -> io::Result<_> {
        let kind = SocketType::SEQPACKET;
        let (report, builder_report) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&report, true)?;
        let (builder_gate0, gate0) = pipe_with(PipeFlags::CLOEXEC)?;
        let (builder_gate1, gate1) = pipe_with(PipeFlags::CLOEXEC)?;
        let ends = Ends { report: builder_report, gate0: builder_gate0, gate1: builder_gate1 };
        Ok((ends, report, gate0, gate1))
    };
    let (ends, report, gate0, gate1) =
        pipes().map_err(|error| failure::io("fork", "make the builder's pipes", &error))?;
    let forked = fork(single, flags, cgroup, process)
        .map_err(|error| failure::io("fork", "fork the builder into its cgroup", &error))?;
    let builder = match forked {
        Forked::Child(single) => {
            // First of all, and before a frozen cgroup could stop it here: a copy of the shim's sockets in a child that
            // does not run keeps their other ends from ever seeing them closed.
            let mut keep = task.keep();
            keep.extend([&ends.report, &ends.gate0, &ends.gate1].map(AsRawFd::as_raw_fd));
            let kept = keep.len();
            keep.extend(cgroup.descriptors());
            close_others(&keep);
            reset_signals();
            enter(cgroup, &ends);
            keep.truncate(kept);
            close_others(&keep);
            task.carry_out(single, ends)
        }
        Forked::Parent { pid, pidfd } => Child { pid, pidfd },
    };
    let clones = task.clones();
    drop((task, ends));
    // It is in its place before it comes to the gate. Refused only when it has gone, which the reaper tells.
    let _ = rustix::io::write(&gate0, b"0");
    Ok(Spawn::new(builder, clones, report, gate1))
}

/// In the child: takes its place before anything else, or tells why it cannot, and ends.
fn enter(cgroup: &Cgroup, ends: &Ends) {
    if !Guard::CgroupPlace.holds() {
        return;
    }
    if let Err(error) = cgroup.enter() {
        let failure = failure::io("cgroup", "enter the container's cgroups", &error);
        // Nobody listening means that the shim is gone.
        let _ = crate::socket::send(ends.report.as_fd(), &Report::Failed(failure).to_bytes(), &[]);
        cove_sys::exit_now(1);
    }
}

fn fork(
    single: SingleThreaded,
    flags: CloneFlags,
    cgroup: &Cgroup,
    process: Option<i32>,
) -> io::Result<Forked> {
    let directory = cgroup.directory()?;
    match (cove_sys::fork(single, flags, directory.as_ref().map(AsFd::as_fd)), process) {
        (Err(error), Some(process)) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
            let beneath = cgroup.beneath(process)?;
            cove_sys::fork(single, flags, Some(beneath.as_fd()))
        }
        (forked, _) => forked,
    }
}
