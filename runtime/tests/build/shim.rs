//! The shim's part: fork, gates, reports, output, end.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use cove_runtime::build::report::Report;
use cove_runtime::build::request::{ContainerSpec, ProcessSpec};
use cove_runtime::build::userns::UserNamespace;
use cove_runtime::build::{self, Builder, HolderRequest, PidEntry};
use cove_runtime::protocol::{Failure, ResolvedUser};
use cove_runtime::wire::Wire;
use cove_runtime::{memfd, socket};
use cove_sys::{CloneFlags, Forked, SingleThreaded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};

use crate::Host;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// What is to be built.
pub enum Job<'a> {
    /// A container with a PID namespace of its own.
    Private(&'a ContainerSpec),
    /// The same, in a pod with a holder.
    Held(&'a ContainerSpec, &'a OwnedFd),
    /// A container in the pod's PID namespace, or the host's.
    Shared(&'a ContainerSpec, Option<&'a Pod>),
    /// A container in the PID namespace of another.
    Beside(&'a ContainerSpec, &'a OwnedFd),
    /// A further process in a container.
    Exec(&'a ProcessSpec, &'a OwnedFd),
    /// Any of these in a pod with a user namespace.
    Mapped(&'a UserNamespace, &'a Job<'a>),
}

/// The holder and the init of a pod.
#[derive(Debug)]
pub struct Pod {
    pub pid: Pid,
    pub init: Option<OwnedFd>,
    pub holder: OwnedFd,
}

/// A process whose program runs or has run.
#[derive(Debug)]
pub struct Running {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub user: ResolvedUser,
    output: OwnedFd,
}

/// What came of a program.
#[derive(Debug)]
pub struct Outcome {
    pub output: String,
    /// The exit code, or 128 and the signal.
    pub code: i32,
}

struct Ends {
    report: OwnedFd,
    gate0: OwnedFd,
    gate1: OwnedFd,
}

fn ends() -> (Ends, Ends) {
    let pair = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let (report, told) = pair();
    let (gate0, open0) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (gate1, open1) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    (Ends { report, gate0, gate1 }, Ends { report: told, gate0: open0, gate1: open1 })
}

/// Waits until `fd` has something to say.
fn ready(fd: impl AsFd) {
    let fd = fd.as_fd();
    let n = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&PATIENCE)).unwrap();
    assert_eq!(n, 1, "nothing was heard in time");
}

fn hear(ours: &Ends) -> Option<Report> {
    ready(&ours.report);
    let (bytes, fds) = socket::receive(ours.report.as_fd()).unwrap()?;
    assert!(fds.is_empty());
    Some(Report::from_bytes(&bytes).unwrap())
}

/// Builds, up to Ready, and opens gate 1.
pub fn start(host: &Host, job: &Job<'_>) -> Result<Running, Failure> {
    start_in(host, job, &[])
}

/// The same, on a terminal.
pub fn start_on(host: &Host, job: &Job<'_>, terminal: &OwnedFd) -> Result<Running, Failure> {
    begin(host, job, &[], Some(terminal))
}

/// The same, in these cgroups.
pub fn start_in(host: &Host, job: &Job<'_>, cgroups: &[PathBuf]) -> Result<Running, Failure> {
    begin(host, job, cgroups, None)
}

fn begin(
    host: &Host,
    job: &Job<'_>,
    cgroups: &[PathBuf],
    terminal: Option<&OwnedFd>,
) -> Result<Running, Failure> {
    let (user, job) = match job {
        Job::Mapped(user, job) => (Some(*user), *job),
        job => (None, job),
    };
    let (theirs, ours) = ends();
    let (output, stdout) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let spec = match job {
        Job::Private(spec) | Job::Held(spec, _) | Job::Shared(spec, _) | Job::Beside(spec, _) => {
            spec.to_bytes()
        }
        Job::Exec(spec, _) => spec.to_bytes(),
        Job::Mapped(..) => unreachable!("a job is mapped once"),
    };
    let spec = memfd::sealed("spec", &spec).unwrap();
    let first = user.is_none() && matches!(job, Job::Private(_) | Job::Held(..));
    let flags = if first { CloneFlags::NEW_PID } else { CloneFlags::none() };
    let (pid, pidfd) = match cove_sys::fork(host.single, flags, None).unwrap() {
        Forked::Child(single) => {
            become_builder(single, theirs, spec, stdout, (job, terminal, user, host.void))
        }
        Forked::Parent { pid, pidfd } => (Pid::from_raw(pid).unwrap(), pidfd),
    };
    drop((theirs, spec, stdout));
    for cgroup in cgroups {
        std::fs::write(cgroup.join("cgroup.procs"), pid.as_raw_nonzero().to_string()).unwrap();
    }
    rustix::io::write(&ours.gate0, b"1").unwrap();
    let mut running = Running { pid, pidfd, user: nobody(), output };
    let result = follow(&ours, &mut running, !first);
    match result {
        Ok(()) => Ok(running),
        Err(failure) => {
            assert!(wait(running.pid) != 0, "a process that failed ends so");
            Err(failure)
        }
    }
}

fn nobody() -> ResolvedUser {
    ResolvedUser { uid: u32::MAX, gid: u32::MAX, groups: Vec::new() }
}

/// Takes the reports in their order.
fn follow(ours: &Ends, running: &mut Running, clones: bool) -> Result<(), Failure> {
    let builder = running.pid;
    match hear(ours) {
        Some(Report::User(user)) => running.user = user,
        Some(Report::Failed(failure)) => return Err(failure),
        other => panic!("{other:?}, not a user"),
    }
    if clones {
        match hear(ours) {
            Some(Report::Cloned(cloned)) => {
                running.pid = Pid::from_raw(cloned.pid).unwrap();
                running.pidfd = pidfd_open(running.pid, PidfdFlags::empty()).unwrap();
                assert_eq!(wait(builder), 0, "the builder ends well");
            }
            Some(Report::Failed(failure)) => return Err(failure),
            other => panic!("{other:?}, not a clone"),
        }
    }
    match hear(ours) {
        Some(Report::Ready) => {}
        Some(Report::Failed(failure)) => return Err(failure),
        other => panic!("{other:?}, not ready"),
    }
    rustix::io::write(&ours.gate1, b"1").unwrap();
    match hear(ours) {
        None => Ok(()),
        Some(Report::Failed(failure)) => Err(failure),
        other => panic!("{other:?} after ready"),
    }
}

fn become_builder(
    single: SingleThreaded,
    theirs: Ends,
    spec: OwnedFd,
    stdout: OwnedFd,
    (job, terminal, user, void): (&Job<'_>, Option<&OwnedFd>, Option<&UserNamespace>, Option<&OwnedFd>),
) -> ! {
    let stdin = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let stderr = stdout.try_clone().unwrap();
    let copy = |fd: &OwnedFd| fd.try_clone().unwrap();
    let stdio = match terminal {
        Some(terminal) => [copy(terminal), copy(terminal), copy(terminal)],
        None => [stdin, stdout, stderr],
    };
    let terminal = terminal.is_some();
    let (pid, holder, target) = match job {
        Job::Private(_) => (Some(PidEntry::First), None, None),
        Job::Held(_, holder) => (Some(PidEntry::First), Some(copy(holder)), None),
        Job::Shared(_, None) => (Some(PidEntry::Host), None, None),
        Job::Shared(_, Some(pod)) => {
            (Some(PidEntry::Enter(copy(pod.init.as_ref().unwrap()))), Some(copy(&pod.holder)), None)
        }
        Job::Beside(_, target) => (Some(PidEntry::Target(copy(target))), None, None),
        Job::Exec(_, target) => (None, None, Some(copy(target))),
        Job::Mapped(..) => unreachable!("a job is mapped once"),
    };
    let user = user.map(|user| user.try_clone().unwrap());
    let mut keep: Vec<_> =
        [&theirs.report, &theirs.gate0, &theirs.gate1, &spec].map(AsRawFd::as_raw_fd).into();
    keep.extend(stdio.iter().chain(&holder).chain(&target).map(AsRawFd::as_raw_fd));
    if let Some(PidEntry::Enter(member) | PidEntry::Target(member)) = &pid {
        keep.push(member.as_raw_fd());
    }
    keep.extend(user.as_ref().map(|user| user.namespace.as_raw_fd()));
    let void = void.map(copy);
    keep.extend(void.as_ref().map(AsRawFd::as_raw_fd));
    cove_sys::close_all_except(&keep).unwrap();
    let Ends { report, gate0, gate1 } = theirs;
    let builder = Builder { single, spec, report, gate0, gate1, stdio, terminal, user, void };
    match (pid, target) {
        (Some(pid), _) => build::create(builder, pid, holder),
        (None, Some(target)) => build::join(builder, target),
        (None, None) => unreachable!("a job is one or the other"),
    }
}

/// A holder, with an init if `shared_pid`.
pub fn pod(host: &Host, shared_pid: bool, shm_size: u64) -> Pod {
    pod_of(host, shared_pid, shm_size, None)
}

/// The same, in a user namespace.
pub fn pod_of(host: &Host, shared_pid: bool, shm_size: u64, user: Option<&UserNamespace>) -> Pod {
    let (theirs, ours) = ends();
    let clones = shared_pid && user.is_some();
    let flags = if shared_pid && !clones { CloneFlags::NEW_PID } else { CloneFlags::none() };
    let (mut pid, mut pidfd) = match cove_sys::fork(host.single, flags, None).unwrap() {
        Forked::Child(single) => {
            let Ends { report, gate0, gate1 } = theirs;
            let user = user.map(|user| user.try_clone().unwrap());
            let mut keep: Vec<_> = [&report, &gate0, &gate1].map(AsRawFd::as_raw_fd).into();
            keep.extend(user.as_ref().map(|user| user.namespace.as_raw_fd()));
            let void = host.void.filter(|_| user.is_none()).map(|void| void.try_clone().unwrap());
            keep.extend(void.as_ref().map(AsRawFd::as_raw_fd));
            cove_sys::close_all_except(&keep).unwrap();
            let init = shared_pid;
            build::holder(HolderRequest { single, gate0, report, gate1, shm_size, init, user, void })
        }
        Forked::Parent { pid, pidfd } => (Pid::from_raw(pid).unwrap(), pidfd),
    };
    drop(theirs);
    rustix::io::write(&ours.gate0, b"1").unwrap();
    if clones {
        match hear(&ours) {
            Some(Report::Cloned(cloned)) => {
                assert_eq!(wait(pid), 0, "the builder ends well");
                pid = Pid::from_raw(cloned.pid).unwrap();
                pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
            }
            other => panic!("{other:?}, not a clone"),
        }
    }
    match hear(&ours) {
        Some(Report::Ready) => {}
        other => panic!("{other:?}, not ready"),
    }
    let path = format!("/proc/{}/ns/mnt", pid.as_raw_nonzero());
    let holder = open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    rustix::io::write(&ours.gate1, b"1").unwrap();
    assert_eq!(hear(&ours), None, "the holder has nothing more to say");
    if !shared_pid {
        assert_eq!(wait(pid), 0);
    }
    Pod { pid, init: shared_pid.then_some(pidfd), holder }
}

impl Running {
    /// Reads all output and waits for the end.
    pub fn finish(self) -> Outcome {
        let mut output = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            ready(&self.output);
            match rustix::io::read(&self.output, &mut chunk).unwrap() {
                0 => break,
                n => output.extend_from_slice(&chunk[..n]),
            }
        }
        let code = wait(self.pid);
        Outcome { output: String::from_utf8_lossy(&output).into_owned(), code }
    }

    /// The next line of output, without its end.
    pub fn line(&self) -> String {
        let mut line = Vec::new();
        let mut byte = [0; 1];
        loop {
            ready(&self.output);
            if rustix::io::read(&self.output, &mut byte).unwrap() == 0 || byte == *b"\n" {
                return String::from_utf8_lossy(&line).into_owned();
            }
            line.push(byte[0]);
        }
    }

    /// Kills it and waits for its end.
    pub fn kill(self) {
        pidfd_send_signal(&self.pidfd, Signal::KILL).unwrap();
        wait(self.pid);
    }
}

/// The exit code of a child, or 128 and the signal.
pub fn wait(pid: Pid) -> i32 {
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    ready(&pidfd);
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap())
}

/// Ends what a failed case has left.
pub fn end_children() {
    let own = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/self/task/{own}/children")).unwrap_or_default();
    let children: Vec<_> =
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter_map(Pid::from_raw).collect();
    // All before any is waited for: an init ends only after everybody in its namespace.
    for child in &children {
        if let Ok(pidfd) = pidfd_open(*child, PidfdFlags::empty()) {
            let _ended = pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
    // Who came later may be in the namespace of an earlier one, which ends after it.
    for child in children.into_iter().rev() {
        wait(child);
    }
}

/// Runs a container to its end.
pub fn run(host: &Host, spec: &ContainerSpec) -> Result<Outcome, Failure> {
    start(host, &Job::Private(spec)).map(Running::finish)
}

/// Runs a container that must do well, and gives its output.
pub fn output(host: &Host, spec: &ContainerSpec) -> String {
    let outcome = run(host, spec).unwrap_or_else(|failure| panic!("{failure:?}"));
    assert_eq!(outcome.code, 0, "{}", outcome.output);
    outcome.output
}
