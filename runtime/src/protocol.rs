//! What the daemon and a shim say to each other, version 1. No I/O here: both sides use these types, and
//! `socket` carries them.
//!
//! Requests go down, replies and facts come up, over one `SOCK_SEQPACKET` connection a shim. A frame is a
//! [`Frame`] of at most [`MAX_FRAME`] bytes with at most [`MAX_FDS`] descriptors; an empty or truncated message
//! ends the connection. What is larger (specification, arguments, environment, seccomp program) is a sealed memfd
//! that only the child maps: see `build::request`.
//!
//! A *fact* is something that happened. The shim keeps it as state until the daemon acknowledges it, and sends it
//! again to each daemon that adopts the shim, after [`Request::Hello`] and before [`Message::SnapshotEnd`].

use crate::{wire_enum, wire_struct};

/// The version that a shim of this source speaks. A daemon speaks it and every earlier one.
pub const PROTOCOL: u16 = 1;
/// The build: package version, and the source revision where the build names it (hack/build).
pub const BUILD: &str = match option_env!("COVE_BUILD") {
    Some(build) => build,
    None => env!("CARGO_PKG_VERSION"),
};
/// The argument by which the program looks whether this node can run pods with user namespaces. The directories of
/// layers and of state follow. Exit code 0: it can; else it says why not.
pub const PROBE: &str = "--probe-user-namespaces";
/// The largest frame, in bytes.
pub const MAX_FRAME: usize = 16 * 1024;
/// The most descriptors in one message.
pub const MAX_FDS: usize = 32;
/// The largest specification memfd, in bytes. Arguments and environment end at 2 MiB in the kernel (execve(2),
/// a quarter of the stack limit); the rest is mounts and a seccomp program of at most 32 KiB.
pub const MAX_SPEC: u64 = 16 * 1024 * 1024;
/// The permission bits of the pipe of an attached client that was cut off, by which its end is told from that of what
/// the container writes: a new pipe has 0600.
pub const CUT: u32 = 0o200;
/// The longest text of a [`Failure`], in bytes; longer text is cut.
pub const MAX_DETAIL: usize = 4 * 1024;

wire_struct! {
    /// A request and the number by which its reply is known.
    pub struct Frame {
        /// Chosen by the daemon; its reply carries the same.
        pub seq: u32,
        /// What is asked.
        pub request: Request,
    }
}

wire_enum! {
    /// From the daemon to the shim.
    pub enum Request {
        /// First on each connection. Reply: [`Reply::Hello`], then the facts held, then `SnapshotEnd`.
        1 => Hello(Hello),
        /// Makes the sandbox's namespaces. Once. Descriptor, if any: the mount namespace of which those of the pod are made
        /// copies (`build::void`). Reply: [`Reply::Sandbox`] with the descriptor of the network namespace, if a new one was
        /// made.
        2 => MakeSandbox(SandboxSpec),
        /// Makes the holder mount namespace and, for a shared PID namespace, its init. Once, after `MakeSandbox`.
        /// Descriptors: those of `cgroup`. Reply: [`Reply::Init`], with a pidfd if there is an init.
        3 => StartInit(StartInit),
        /// Clones a container's first process. Descriptors: specification memfd; log, if `log`; the file that
        /// counts out-of-memory kills, if `oom_events`; those of `cgroup`. Reply: [`Reply::Done`] once accepted;
        /// the facts `Started` or `StartFailed`, later `Oom` and `Exited`, tell the rest.
        4 => Start(Start),
        /// Runs a further process in a container. Descriptors: specification memfd; stdin, stdout, stderr; those of
        /// `cgroup`. Reply: [`Reply::Done`] once accepted; then `ExecStarted` or `ExecFailed`, later `ExecExited`.
        5 => Exec(Exec),
        /// Signals a container's first process. Reply: [`Reply::Done`], also when it is gone already.
        6 => Signal(Signal),
        /// Kills an exec: its process, its session and its live descendants. Reply: [`Reply::Done`].
        7 => KillExec(ExecId),
        /// Continues a container's log in another file. Descriptor: the new log. Reply: [`Reply::Done`].
        8 => ReopenLog(ContainerId),
        /// The daemon has recorded every fact up to this serial: they need not be sent again. No reply.
        9 => Acknowledge(Acknowledge),
        /// Forgets a container that has ended (or was never started). Reply: [`Reply::Done`].
        10 => Forget(ContainerId),
        /// Kills everything of the pod and ends the shim. Reply: [`Reply::Done`], then the connection ends.
        11 => Shutdown,
        /// As `Start`, of a container that clients can attach to. Descriptors: those of `Start` up to `cgroup`; for a
        /// terminal its master, non-blocking, and its other end; else, with `stdin`, the reading end of its pipe and
        /// the writing end; those of `cgroup`. Reply and facts: as `Start`.
        12 => StartOpen(StartOpen),
        /// Passes a running container's output on, and hands out the way to its input. Descriptors: the writing ends
        /// of a pipe for `stdout`, for `stderr`. Reply: [`Reply::Done`], with `stdin` with the writing end of the
        /// container's stdin or the master of its terminal, if it has one. A pipe whose reader is too far behind is cut
        /// off, and has the mode [`CUT`] from then on.
        13 => Attach(Attach),
        /// Ends a container's stdin for good, unless it is a terminal. Reply: [`Reply::Done`].
        14 => CloseStdin(ContainerId),
        /// As `MakeSandbox`, of a pod with a user namespace of its own, which owns its other namespaces. Reply: the same.
        15 => MakeUserSandbox(UserSandbox),
    }
}

wire_struct! {
    /// Who asks.
    pub struct Hello {
        /// The highest protocol version that the daemon speaks.
        pub protocol: u16,
        /// The daemon's generation: a shim obeys the highest it has seen and refuses a lower one.
        pub generation: u64,
    }
}

wire_struct! {
    /// The environment of a pod.
    pub struct SandboxSpec {
        /// The sandbox's id: 64 hex digits.
        pub sandbox: String,
        /// A network namespace of its own, lo up in it; else the host's.
        pub new_net: bool,
        /// An IPC namespace of its own; else the host's.
        pub new_ipc: bool,
        /// A UTS namespace of its own; else the host's.
        pub new_uts: bool,
        /// For the new UTS namespace; empty leaves it as it is.
        pub hostname: String,
        /// Written to /proc/sys inside the new namespaces: key with dots or slashes, value.
        pub sysctls: Vec<(String, String)>,
    }
}

wire_struct! {
    /// The environment of a pod with a user namespace of its own.
    pub struct UserSandbox {
        /// All the rest.
        pub sandbox: SandboxSpec,
        /// The ids of the user namespace.
        pub ids: IdMap,
    }
}

wire_struct! {
    /// The one mapping of a user namespace, for users and groups alike: 0 and so on inside, `host` and so on outside.
    pub struct IdMap {
        /// What 0 is on the host.
        pub host: u32,
        /// How many ids there are.
        pub size: u32,
    }
}

wire_struct! {
    /// Where a process belongs before it may run.
    pub struct CgroupPlace {
        /// cgroup v2: one descriptor, of the directory (clone3 CLONE_INTO_CGROUP). Else v1: descriptors of
        /// `tasks` (or `cgroup.procs`), open for writing, one a hierarchy.
        pub unified: bool,
        /// How many descriptors of the message are meant. 0: stay where the shim is.
        pub count: u8,
    }
}

wire_struct! {
    /// The holder and the init of a pod.
    pub struct StartInit {
        /// The containers of the pod share one PID namespace.
        pub shared_pid: bool,
        /// Bytes of the pod's /dev/shm; 0: no tmpfs, the containers use the host's.
        pub shm_size: u64,
        /// Where the init belongs.
        pub cgroup: CgroupPlace,
    }
}

wire_enum! {
    /// The PID namespace of a container.
    pub enum PidMode {
        /// One of its own.
        1 => Private,
        /// The pod's.
        2 => Pod,
        /// The host's.
        3 => Host,
        /// That of another container of the pod, which must be running.
        4 => Target(ContainerId),
    }
}

wire_struct! {
    /// A container's first process.
    pub struct Start {
        /// The container's id.
        pub container: String,
        /// Its PID namespace.
        pub pid: PidMode,
        /// A log descriptor comes with the message; else output is dropped.
        pub log: bool,
        /// A descriptor of `memory.oom_control` (v1) or `memory.events` (v2) comes with the message.
        pub oom_events: bool,
        /// Written to /proc/PID/oom_score_adj before the process may run; clamped where the kernel refuses.
        pub oom_score_adj: Option<i32>,
        /// Where the process belongs.
        pub cgroup: CgroupPlace,
    }
}

wire_struct! {
    /// A container's first process with a stdin that stays open, or with a terminal.
    pub struct StartOpen {
        /// All the rest.
        pub start: Start,
        /// Its stdin is a pipe that stays open.
        pub stdin: bool,
        /// All three streams are one terminal.
        pub terminal: bool,
    }
}

wire_struct! {
    /// What an attached client wants of a container.
    pub struct Attach {
        /// The container.
        pub container: String,
        /// The way to its input.
        pub stdin: bool,
        /// A pipe for its stdout comes with the message.
        pub stdout: bool,
        /// A pipe for its stderr comes with the message.
        pub stderr: bool,
    }
}

wire_struct! {
    /// A further process in a container.
    pub struct Exec {
        /// Chosen by the daemon; unique in the shim's life.
        pub exec: u64,
        /// The container.
        pub container: String,
        /// Killed when this connection ends (ExecSync), or left alone.
        pub bound: bool,
        /// The stdio descriptors are one end of a terminal: make it the controlling one.
        pub terminal: bool,
        /// As in [`Start`].
        pub oom_score_adj: Option<i32>,
        /// As in [`Start`].
        pub cgroup: CgroupPlace,
    }
}

wire_struct! {
    /// A signal to a container's first process.
    pub struct Signal {
        /// The container.
        pub container: String,
        /// The signal's number.
        pub signal: i32,
    }
}

wire_struct! {
    /// Names a container.
    pub struct ContainerId {
        /// The container's id.
        pub container: String,
    }
}

wire_struct! {
    /// Names an exec.
    pub struct ExecId {
        /// As in [`Exec`].
        pub exec: u64,
    }
}

wire_struct! {
    /// See [`Request::Acknowledge`].
    pub struct Acknowledge {
        /// The highest serial recorded.
        pub serial: u64,
    }
}

wire_enum! {
    /// From the shim to the daemon.
    pub enum Message {
        /// The answer to a request.
        1 => Reply(Answer),
        /// Something that happened, or is the case.
        2 => Fact(Event),
        /// All facts held at the time of `Hello` have been sent.
        3 => SnapshotEnd,
    }
}

wire_struct! {
    /// A reply and the request that it answers.
    pub struct Answer {
        /// The request's number.
        pub seq: u32,
        /// What came of it.
        pub reply: Reply,
    }
}

wire_enum! {
    /// What came of a request.
    pub enum Reply {
        /// Done, or accepted.
        1 => Done,
        /// Not done, and nothing of it is left.
        2 => Failed(Failure),
        /// Who answers.
        3 => Hello(HelloReply),
        /// The namespaces exist. Descriptor: the network namespace, if one was made.
        4 => Sandbox,
        /// Holder and init exist.
        5 => Init(InitReply),
    }
}

wire_struct! {
    /// The shim's word on itself.
    pub struct HelloReply {
        /// The version spoken on this connection.
        pub protocol: u16,
        /// The build of the shim: package version and source revision.
        pub build: String,
        /// The sandbox it serves; empty before `MakeSandbox`.
        pub sandbox: String,
    }
}

wire_struct! {
    /// The init of a shared PID namespace.
    pub struct InitReply {
        /// Its pid in the host's PID namespace; 0 if there is none.
        pub pid: i32,
    }
}

wire_struct! {
    /// Why something could not be done.
    pub struct Failure {
        /// The step that failed, for example `rootfs`, `mounts`, `identity`, `exec`.
        pub step: String,
        /// The kernel's answer, or 0 where it was not the kernel that refused.
        pub errno: i32,
        /// What was being done, on which object and path.
        pub detail: String,
    }
}

wire_struct! {
    /// A fact with its place in the order of facts of this shim.
    pub struct Event {
        /// Strictly increasing; 0 for what is not held until acknowledged (execs).
        pub serial: u64,
        /// Nanoseconds since the epoch, by the shim's clock, strictly increasing.
        pub at: i64,
        /// What happened.
        pub fact: Fact,
    }
}

wire_enum! {
    /// What happened.
    pub enum Fact {
        /// The container's program runs. Descriptor: its pidfd. Held while the container lives.
        1 => Started(Started),
        /// The container's program could not be run; nothing of it is left.
        2 => StartFailed(StartFailed),
        /// The kernel killed a process of the container for want of memory. Before `Exited`.
        3 => Oom(ContainerId),
        /// The container's first process has ended, and its output is in the log.
        4 => Exited(Exited),
        /// The exec's program runs. Descriptor: its pidfd.
        5 => ExecStarted(ExecStarted),
        /// The exec's program could not be run.
        6 => ExecFailed(ExecFailed),
        /// The exec's process has ended.
        7 => ExecExited(ExecExited),
        /// The init of the shared PID namespace has ended, and with it every process in it.
        8 => InitExited(ExitStatus),
    }
}

wire_struct! {
    /// See [`Fact::Started`].
    pub struct Started {
        /// The container.
        pub container: String,
        /// The pid in the host's PID namespace.
        pub pid: i32,
        /// Field 22 of /proc/PID/stat: with the pid, what tells a process from a later one of the same pid.
        pub start_time: u64,
        /// The user that the builder resolved.
        pub user: ResolvedUser,
    }
}

wire_struct! {
    /// The identity of a process as resolved against the rootfs.
    pub struct ResolvedUser {
        /// User id.
        pub uid: u32,
        /// Primary group id.
        pub gid: u32,
        /// Every group, the primary one included, ascending.
        pub groups: Vec<u32>,
    }
}

wire_struct! {
    /// See [`Fact::StartFailed`].
    pub struct StartFailed {
        /// The container.
        pub container: String,
        /// Why.
        pub failure: Failure,
    }
}

wire_struct! {
    /// How a process ended.
    pub struct ExitStatus {
        /// The exit code, or 128 + the signal's number.
        pub code: i32,
        /// The signal that ended it, or 0.
        pub signal: i32,
    }
}

wire_struct! {
    /// See [`Fact::Exited`].
    pub struct Exited {
        /// The container.
        pub container: String,
        /// How.
        pub status: ExitStatus,
        /// The kernel killed for want of memory in this container's cgroup.
        pub oom: bool,
    }
}

wire_struct! {
    /// See [`Fact::ExecStarted`].
    pub struct ExecStarted {
        /// As in [`Exec`].
        pub exec: u64,
        /// The pid in the host's PID namespace.
        pub pid: i32,
    }
}

wire_struct! {
    /// See [`Fact::ExecFailed`].
    pub struct ExecFailed {
        /// As in [`Exec`].
        pub exec: u64,
        /// Why.
        pub failure: Failure,
    }
}

wire_struct! {
    /// See [`Fact::ExecExited`].
    pub struct ExecExited {
        /// As in [`Exec`].
        pub exec: u64,
        /// How.
        pub status: ExitStatus,
    }
}
