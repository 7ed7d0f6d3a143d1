//! Containers: from Start over the exit of the first process to the fact that says so, once its output is in the log
//! and nothing of it is left.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::cgroup::Cgroup;
use super::failure;
use super::fork::{self, Kind, Order};
use super::log::Stream;
use super::oom;
use super::request::Given;
use super::serve::Shim;
use super::spawn::{Child, Program, Spawn};
use super::stdio::Output;
use super::watch::{EventFlags, Owner, Token};
use crate::build::PidEntry;
use crate::protocol::{
    ContainerId, ExitStatus, Exited, Fact, Failure, PidMode, Signal, Start, StartFailed, Started,
};

/// The most containers of a pod, ended ones that nobody forgot included. A kubelet keeps one ended one a container.
const MAX_CONTAINERS: usize = 512;
/// How long an exit waits for output and processes that outlive the first process: a program that passed its stdout
/// to a stranger must not keep the container from ending.
const DRAIN: Duration = Duration::from_secs(5);
/// How often killed processes are looked for. They end in well under this, unless the kernel holds them.
const LOOK: Duration = Duration::from_millis(5);

/// Where a container stands.
#[derive(Debug)]
pub enum State {
    /// Its first process is being made.
    Starting(Spawn),
    /// Its program runs.
    Running(Child),
    /// Its first process has ended, its output or other processes have not.
    Ending(Ending),
    /// Nothing of it is left.
    Ended,
}

/// See [`State::Ending`].
#[derive(Debug)]
pub struct Ending {
    status: ExitStatus,
    /// Told at this time at the latest.
    until: Instant,
    /// Processes were left at the last look.
    left: bool,
}

/// See the module's header.
#[derive(Debug)]
pub struct Container {
    id: String,
    pid: PidMode,
    pub(super) state: State,
    pub(super) cgroup: Cgroup,
    oom_events: Option<OwnedFd>,
    /// The kernel killed in the group, as far as is known yet.
    oom: bool,
    oom_score: i32,
    start_time: u64,
    pub(super) output: Option<Output>,
}

impl Container {
    /// When it has to be looked at, though nothing happens.
    pub fn due(&self) -> Option<Instant> {
        match &self.state {
            State::Ending(ending) if ending.left => Some(ending.until.min(Instant::now() + LOOK)),
            State::Ending(ending) => Some(ending.until),
            _ => None,
        }
    }

    /// The pid and pidfd of a first process whose program runs.
    pub fn process(&self) -> Option<&Child> {
        match &self.state {
            State::Running(child) => Some(child),
            _ => None,
        }
    }

    /// Takes the spawn of a container whose program runs.
    pub fn take_spawn(&mut self) -> Option<Spawn> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Starting(spawn) => Some(spawn),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// The end of its first process is the end of all others: the kernel sees to it.
    fn ends_as_one(&self) -> bool {
        self.pid == PidMode::Private
    }

    /// SIGKILL to its first process and its group.
    pub fn kill(&mut self, why: &str) {
        match &mut self.state {
            State::Starting(spawn) => spawn.fail(failure::new("start", 0, why)),
            State::Running(child) => child.kill(),
            State::Ending(_) | State::Ended => {}
        }
        if !matches!(self.state, State::Ended) {
            self.kill_group();
        }
    }

    fn kill_group(&self) {
        if let Err(error) = self.cgroup.kill() {
            super::say(&format!("kill of the cgroup of {}: {error}", self.id));
        }
    }

    fn look_for_oom(&mut self) {
        match self.oom_events.as_ref().map(oom::killed) {
            Some(Ok(killed)) => self.oom |= killed,
            // The group was removed (ENODEV), as systemd does with a scope: what was seen before counts.
            Some(Err(rustix::io::Errno::NODEV)) | None => {}
            Some(Err(error)) => super::say(&format!("count of kills of {}: {error}", self.id)),
        }
    }
}

impl Shim {
    pub(super) fn start(&mut self, start: Start, mut given: Given) -> Result<(), Failure> {
        let refuse = |detail: &str| Err(failure::new("start", 0, detail));
        if self.sandbox.id.is_empty() {
            return refuse("the sandbox has not been made");
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return refuse("the sandbox has too many containers");
        }
        if start.container.is_empty() || self.find(&start.container).is_some() {
            return refuse("the container has been started before");
        }
        let spec = given.take()?;
        let log = given.take_if(start.log)?;
        let oom_events = given.take_if(start.oom_events)?;
        let cgroup = given.cgroup(&start.cgroup)?;

        let dup = |fd: &OwnedFd| {
            fd.try_clone().map_err(|error| failure::io("start", "duplicate a descriptor", &error))
        };
        let pid = match start.pid {
            PidMode::Private => PidEntry::First,
            PidMode::Host => PidEntry::Host,
            PidMode::Pod => match self.sandbox.init() {
                Some(init) => PidEntry::Enter(dup(&init.pidfd)?),
                None => return refuse("the pod's init does not run"),
            },
        };
        let holder = self.sandbox.holder().map(dup).transpose()?;
        let (output, [stdout, stderr]) = match log {
            Some(log) => Output::new(log)
                .map(|(output, writers)| (Some(output), writers))
                .map_err(|error| failure::io("start", "make the output pipes", &error))?,
            None => (None, [dup(&self.null)?, dup(&self.null)?]),
        };
        let stdio = [dup(&self.null)?, stdout, stderr];
        let order = Order { kind: Kind::Create { pid, holder }, spec, stdio, terminal: false };
        let spawn = fork::builder(self.single, order, &cgroup, None)?;
        self.add(start, spawn, cgroup, oom_events, output);
        Ok(())
    }

    fn add(
        &mut self,
        start: Start,
        spawn: Spawn,
        cgroup: Cgroup,
        oom_events: Option<OwnedFd>,
        output: Option<Output>,
    ) {
        let slot = self.slot();
        self.began(Owner::Container(slot), &spawn);
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(fd) = output.as_ref().and_then(|output| output.fd(stream)) {
                self.must_watch(fd, Token::Output(slot, stream), EventFlags::IN);
            }
        }
        // v2 only: memory.events raises an event, and systemd removes a scope before its exit can be looked at.
        if let (Some(events), Cgroup::Unified(_)) = (&oom_events, &cgroup) {
            self.must_watch(events.as_fd(), Token::Oom(slot), EventFlags::PRI);
        }
        let container = Container {
            id: start.container,
            pid: start.pid,
            state: State::Starting(spawn),
            cgroup,
            oom_events,
            oom: false,
            oom_score: start.oom_score_adj.unwrap_or(0),
            start_time: 0,
            output,
        };
        self.containers.insert(slot, container);
    }

    pub(super) fn find(&self, id: &str) -> Option<u32> {
        self.containers.iter().find(|(_, container)| container.id == id).map(|(slot, _)| *slot)
    }

    /// All is set up but the program: what the shim itself adds to the process.
    pub(super) fn container_ready(&mut self, slot: u32) -> Result<(), Failure> {
        let Some(container) = self.containers.get_mut(&slot) else { return Ok(()) };
        let State::Starting(spawn) = &container.state else { return Ok(()) };
        if !spawn.has_user() {
            return Err(failure::new("report", 0, "the builder did not say as whom the program runs"));
        }
        let Some(pid) = spawn.process().map(|process| process.pid) else { return Ok(()) };
        container.start_time = crate::process::start_time(pid)
            .map_err(|error| failure::io("start", "read the start time of the process", &error))?
            .unwrap_or(0);
        let score = container.oom_score;
        self.set_oom_score(pid, score);
        Ok(())
    }

    pub(super) fn container_runs(&mut self, slot: u32, program: Program) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        let Program { child, user: Some(user), .. } = program else { return };
        let started = Started {
            container: container.id.clone(),
            pid: child.pid,
            start_time: container.start_time,
            user,
        };
        // Without a descriptor the fact still stands, and the daemon opens the pid by its start time.
        let pidfd = child.pidfd.try_clone().ok();
        container.state = State::Running(child);
        self.tell(Fact::Started(started), pidfd);
    }

    pub(super) fn start_failed(&mut self, slot: u32, failure: Failure) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        container.state = State::Ended;
        container.output = None;
        container.oom_events = None;
        let failed = StartFailed { container: container.id.clone(), failure };
        self.tell(Fact::StartFailed(failed), None);
    }

    pub(super) fn oom(&mut self, slot: u32) {
        if let Some(container) = self.containers.get_mut(&slot) {
            container.look_for_oom();
        }
    }

    pub(super) fn container_ended(&mut self, slot: u32, status: ExitStatus) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        container.look_for_oom();
        container.oom_events = None;
        if !container.ends_as_one() {
            container.kill_group();
        }
        let left = !container.ends_as_one();
        container.state = State::Ending(Ending { status, until: Instant::now() + DRAIN, left });
        if container.oom {
            let oom = ContainerId { container: container.id.clone() };
            self.tell(Fact::Oom(oom), None);
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.pump_now(slot, stream);
        }
        self.settle(slot);
    }

    /// What the ended process left in its pipe, so that the exit need not wait for the next round.
    fn pump_now(&mut self, slot: u32, stream: Stream) {
        if let Some(output) = self.containers.get_mut(&slot).and_then(|container| container.output.as_mut()) {
            /// A pipe holds no more (pipe(7)).
            const PIPE: usize = 64 * 1024 + 1;
            output.pump(stream, PIPE, &mut self.input);
        }
    }

    /// Tells the exit once nothing of the container is left, or its time is up.
    pub(super) fn settle(&mut self, slot: u32) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        let State::Ending(ending) = &mut container.state else { return };
        let late = Instant::now() >= ending.until;
        if ending.left {
            ending.left = match container.cgroup.members() {
                Ok(members) => !members.is_empty(),
                // The group has been removed, so nobody is in it.
                Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound) => false,
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => false,
                Err(error) => {
                    super::say(&format!("who is left of {}: {error}", container.id));
                    false
                }
            };
        }
        let (left, status) = (ending.left, ending.status.clone());
        if left && !late {
            return container.kill_group();
        }
        if let Some(output) = &mut container.output {
            if !output.ended() && !late {
                return;
            }
            output.close(&mut self.input);
        }
        container.state = State::Ended;
        container.output = None;
        let exited = Exited { container: container.id.clone(), status, oom: container.oom };
        self.tell(Fact::Exited(exited), None);
    }

    /// After each round.
    pub(super) fn settle_all(&mut self) {
        let ending: Vec<u32> = self
            .containers
            .iter()
            .filter(|(_, container)| matches!(container.state, State::Ending(_)))
            .map(|(slot, _)| *slot)
            .collect();
        ending.into_iter().for_each(|slot| self.settle(slot));
    }

    pub(super) fn signal(&mut self, signal: &Signal) -> Result<(), Failure> {
        if !(1..=cove_sys::MAX_SIGNAL).contains(&signal.signal) {
            return Err(failure::new("signal", rustix::io::Errno::INVAL.raw_os_error(), "no such signal"));
        }
        let Some(slot) = self.find(&signal.container) else { return Ok(()) };
        let Some(container) = self.containers.get_mut(&slot) else { return Ok(()) };
        let child = match &mut container.state {
            // The first process of a PID namespace ignores SIGTERM at its gate.
            State::Starting(spawn) if !spawn.is_open() => {
                let detail =
                    format!("killed by a request for signal {} before the program ran", signal.signal);
                spawn.fail(failure::new("start", 0, &detail));
                self.drive(Owner::Container(slot));
                return Ok(());
            }
            State::Starting(spawn) => spawn.process(),
            State::Running(child) => Some(&*child),
            State::Ending(_) | State::Ended => None,
        };
        match child.map(|child| cove_sys::send_signal(child.pidfd.as_fd(), signal.signal)) {
            Some(Err(error)) if error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                Err(failure::io("signal", "signal the first process", &error))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn reopen_log(&mut self, id: &str, mut given: Given) -> Result<(), Failure> {
        let log = given.take()?;
        given.end()?;
        let refused = || failure::new("log", 0, "the container does not run, or has no log");
        let slot = self.find(id).ok_or_else(refused)?;
        let output = self.containers.get_mut(&slot).and_then(|container| container.output.as_mut());
        output
            .ok_or_else(refused)?
            .reopen(log)
            .map_err(|error| failure::io("log", "continue in the new log", &error))
    }

    pub(super) fn forget(&mut self, id: &str) -> Result<(), Failure> {
        let Some(slot) = self.find(id) else { return Ok(()) };
        if !matches!(self.containers.get(&slot), Some(Container { state: State::Ended, .. })) {
            return Err(failure::new("forget", 0, "the container has not ended"));
        }
        self.containers.remove(&slot);
        self.facts.forget(id);
        Ok(())
    }
}
