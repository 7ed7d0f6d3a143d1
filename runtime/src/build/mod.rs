//! The builder: a process, forked by the shim, that makes a container (`create`) or enters one (`join`) and becomes
//! or clones the process that runs the user's program.
//!
//! Nothing with more rights than a container is ever a member of a PID namespace that the container is in: see
//! `process`. Nothing of the host is in sight once a path of an image is followed: see `rootfs` and `mounts`.
//! A builder prints nothing and logs nothing; what it has to say goes over its line to the shim.

mod apparmor;
pub mod capabilities;
mod cgroups;
mod create;
mod devices;
mod holder;
mod hooks;
mod identity;
pub mod image_volume;
mod join;
mod line;
mod mapped;
mod masks;
mod mounts;
mod namespaces;
pub mod probe;
mod process;
mod program;
pub mod report;
pub mod request;
pub mod rlimits;
mod rootfs;
mod sources;
mod step;
pub mod userns;
pub mod void;
mod volumes;

use std::os::fd::OwnedFd;

use cove_sys::SingleThreaded;

use self::line::Line;
pub use self::mounts::clean;
use self::userns::UserNamespace;

/// What a builder was given. All descriptors but these are closed as its first act.
#[derive(Debug)]
pub struct Builder {
    /// Proof that the fork's child may go on.
    pub single: SingleThreaded,
    /// Sealed memfd with a [`request::ContainerSpec`] (`create`) or a [`request::ProcessSpec`] (`join`).
    pub spec: OwnedFd,
    /// Where [`report::Report`]s go: a `SOCK_SEQPACKET` socket, close-on-exec.
    pub report: OwnedFd,
    /// Reads one byte when the process is in its cgroups; ends (EOF) when the shim gave up.
    pub gate0: OwnedFd,
    /// Reads one byte when the program may run; ends (EOF) when the shim gave up.
    pub gate1: OwnedFd,
    /// stdin, stdout, stderr of the program.
    pub stdio: [OwnedFd; 3],
    /// stdio is the end of a terminal.
    pub terminal: bool,
    /// The pod's user namespace, if it has one of its own.
    pub user: Option<UserNamespace>,
    /// The [`void`], of which the container's mount namespace is made a copy; else of the host's.
    pub void: Option<OwnedFd>,
}

/// What is left of a [`Builder`] when its line is taken out.
#[derive(Debug)]
struct Work {
    single: SingleThreaded,
    spec: OwnedFd,
    gate0: OwnedFd,
    stdio: [OwnedFd; 3],
    terminal: bool,
    user: Option<UserNamespace>,
    void: Option<OwnedFd>,
}

impl Builder {
    fn split(self) -> (Work, Line) {
        let Self { single, spec, report, gate0, gate1, stdio, terminal, user, void } = self;
        (Work { single, spec, gate0, stdio, terminal, user, void }, Line::new(report, gate1))
    }
}

/// The PID namespace of a container that is being made.
#[derive(Debug)]
pub enum PidEntry {
    /// The builder is already its first process (cloned with CLONE_NEWPID), or, in a pod with a user namespace, clones it.
    First,
    /// That of the pod's init, by its pidfd: entered with setns, the final process is cloned.
    Enter(OwnedFd),
    /// That of another container, by the pidfd of its first process: entered likewise.
    Target(OwnedFd),
    /// The host's: the final process is cloned all the same.
    Host,
}

/// Makes a container and runs its program. Never returns: the last act is exec, or a report and `_exit`.
///
/// The caller has closed every descriptor but those given here.
pub fn create(builder: Builder, pid: PidEntry, holder: Option<OwnedFd>) -> ! {
    let (work, line) = builder.split();
    let Err(failure) = create::run(work, pid, holder, &line);
    line.fail(failure)
}

/// Enters the container whose first process `target` is a pidfd of, and runs a program there. Never returns.
///
/// The caller has closed every descriptor but those given here.
pub fn join(builder: Builder, target: OwnedFd) -> ! {
    let (work, line) = builder.split();
    let Err(failure) = join::run(work, target, &line);
    line.fail(failure)
}

/// What the process that makes the holder mount namespace was given.
#[derive(Debug)]
pub struct HolderRequest {
    /// Proof that the fork's child may go on.
    pub single: SingleThreaded,
    /// As in [`Builder`].
    pub gate0: OwnedFd,
    /// A `SOCK_SEQPACKET` socket: [`report::Report::Ready`] once the holder exists, then the process waits for
    /// `gate1` so that the shim can open /proc/PID/ns/mnt.
    pub report: OwnedFd,
    /// See `report`.
    pub gate1: OwnedFd,
    /// Bytes of the pod's /dev/shm; 0: none.
    pub shm_size: u64,
    /// This process is pid 1 of the pod's PID namespace: mount its proc in the holder, and after gate 1 go on as the
    /// confined init (empty read-only root, no descriptor, no capability, not dumpable, reaps for ever).
    /// Else end after gate 1.
    pub init: bool,
    /// The pod's user namespace. With one this process is not pid 1, but clones the init.
    pub user: Option<UserNamespace>,
    /// As in [`Builder`]. The init lives in the void itself.
    pub void: Option<OwnedFd>,
}

/// Makes the holder mount namespace: a tmpfs root with /shm (tmpfs) and, for an init, /proc, and nothing of the host.
pub fn holder(request: HolderRequest) -> ! {
    let HolderRequest { single, gate0, report, gate1, shm_size, init, user, void } = request;
    let line = Line::new(report, gate1);
    let Err(failure) = holder::run((single, gate0), (shm_size, init), user, void, &line);
    line.fail(failure)
}
