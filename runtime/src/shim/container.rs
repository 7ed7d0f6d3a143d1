//! Containers: from Start to the program that runs, and what is asked of them then. How they end stands in `exit`.

use std::os::fd::{AsFd, OwnedFd};

use super::cgroup::Cgroup;
use super::exit::Ending;
use super::failure;
use super::fork::{self, Kind, Order};
use super::log::Stream;
use super::request::Given;
use super::serve::Shim;
use super::spawn::{Child, Program, Spawn};
use super::stdio::Output;
use super::sweep::Sweep;
use super::watch::{EventFlags, Owner, Token, Watched};
use crate::build::PidEntry;
use crate::protocol::{Fact, Failure, PidMode, Signal, StartFailed, StartOpen, Started};

/// The most containers of a pod, ended ones that nobody forgot included. A kubelet keeps one ended one a container.
const MAX_CONTAINERS: usize = 512;
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

/// See the module's header.
#[derive(Debug)]
pub struct Container {
    pub(super) id: String,
    pub(super) pid: PidMode,
    pub(super) state: State,
    pub(super) cgroup: Cgroup,
    /// How far its group is killed.
    pub(super) sweep: Sweep,
    pub(super) oom_events: Option<Watched>,
    /// The kernel killed in the group, as far as is known yet.
    pub(super) oom: bool,
    oom_score: i32,
    start_time: u64,
    pub(super) output: Option<Output>,
    /// The writing end of its stdin, or its terminal's master. Kept, so that its input does not end with a client.
    pub(super) input: Option<OwnedFd>,
    /// All its streams are a terminal.
    pub(super) terminal: bool,
}

/// What a container is given for its streams, and what stays here.
struct Streams {
    output: Option<Output>,
    input: Option<OwnedFd>,
    stdio: [OwnedFd; 3],
    terminal: bool,
}

impl Container {
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

    /// Nothing of it is left, and nothing is done with it any more but to forget it: it may stay for long, and holds
    /// no descriptor then.
    pub(super) fn close(&mut self) {
        self.state = State::Ended;
        (self.output, self.input, self.oom_events) = (None, None, None);
        self.thaw();
        self.cgroup = Cgroup::None;
    }

    /// SIGKILL to its first process, and a turn of killing its group.
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

    fn kill_group(&mut self) {
        if let Err(error) = self.sweep.turn(&self.cgroup) {
            super::say(&format!("kill of the cgroup of {}: {error}", self.id));
        }
    }

    /// Leaves nobody frozen who was to be killed.
    pub(super) fn thaw(&mut self) {
        if let Err(error) = self.sweep.end(&self.cgroup) {
            super::say(&format!("thaw of the cgroup of {}: {error}", self.id));
        }
    }
}

fn dup(fd: &OwnedFd) -> Result<OwnedFd, Failure> {
    fd.try_clone().map_err(|error| failure::io("start", "duplicate a descriptor", &error))
}

impl Shim {
    pub(super) fn start(&mut self, open: StartOpen, mut given: Given) -> Result<(), Failure> {
        let StartOpen { start, stdin, terminal } = open;
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
        let oom_events = given.take_if(start.oom_events)?.map(Watched::from);
        let streams = self.streams(log, (stdin, terminal), &mut given)?;
        let cgroup = given.cgroup(&start.cgroup)?;

        let (mode, pid) = self.pid_namespace(start.pid)?;
        let holder = self.sandbox.holder().map(dup).transpose()?;
        let Streams { output, input, stdio, terminal } = streams;
        let (user, void) = (self.user()?, self.void()?);
        let order = Order { kind: Kind::Create { pid, holder }, spec, stdio, terminal, user, void };
        let mut spawn = fork::builder(self.single, order, &cgroup, None)?;
        let slot = self.slot();
        self.began(Owner::Container(slot), &mut spawn);
        let container = Container {
            id: start.container,
            pid: mode,
            state: State::Starting(spawn),
            cgroup,
            sweep: Sweep::default(),
            oom_events,
            oom: false,
            oom_score: start.oom_score_adj.unwrap_or(0),
            start_time: 0,
            output,
            input,
            terminal,
        };
        self.add(slot, container);
        Ok(())
    }

    /// Whose PID namespace a container gets, and the way into it.
    fn pid_namespace(&self, asked: PidMode) -> Result<(PidMode, PidEntry), Failure> {
        let entry = match &asked {
            PidMode::Private => PidEntry::First,
            PidMode::Host => PidEntry::Host,
            PidMode::Pod => match self.sandbox.init() {
                Some(init) => PidEntry::Enter(dup(&init.pidfd)?),
                None => return Err(failure::new("start", 0, "the pod's init does not run")),
            },
            PidMode::Target(target) => {
                let target = self.find(&target.container).and_then(|slot| self.containers.get(&slot));
                let Some((target, process)) = target.and_then(|target| Some((target, target.process()?)))
                else {
                    return Err(failure::new("target", 0, "the target container does not run"));
                };
                match &target.pid {
                    PidMode::Private | PidMode::Target(_) => PidEntry::Target(dup(&process.pidfd)?),
                    PidMode::Pod | PidMode::Host => return self.pid_namespace(target.pid.clone()),
                }
            }
        };
        Ok((asked, entry))
    }

    fn streams(
        &self,
        log: Option<OwnedFd>,
        (stdin, terminal): (bool, bool),
        given: &mut Given,
    ) -> Result<Streams, Failure> {
        let pipes = |error| failure::io("start", "take the container's streams", &error);
        // Clients may read what no log takes.
        let log = if log.is_none() && (stdin || terminal) { Some(dup(&self.null)?) } else { log };
        if terminal {
            let (master, user) = (given.take()?, given.take()?);
            let input = Some(dup(&master)?);
            let output = log.map(|log| Output::terminal(log, master)).transpose().map_err(pipes)?;
            let stdio = [dup(&user)?, dup(&user)?, user];
            return Ok(Streams { output, input, stdio, terminal });
        }
        let (from, input) = match stdin {
            true => (given.take()?, Some(given.take()?)),
            false => (dup(&self.null)?, None),
        };
        let (output, [stdout, stderr]) = match log {
            Some(log) => {
                let (output, writers) = Output::new(log).map_err(pipes)?;
                (Some(output), writers)
            }
            None => (None, [dup(&self.null)?, dup(&self.null)?]),
        };
        Ok(Streams { output, input, stdio: [from, stdout, stderr], terminal })
    }

    fn add(&mut self, slot: u32, mut container: Container) {
        let Container { output, oom_events, cgroup, .. } = &mut container;
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(fd) = output.as_mut().and_then(|output| output.fd(stream)) {
                self.must_watch(fd, Token::Output(slot, stream), EventFlags::IN);
            }
        }
        // v2 only: memory.events raises an event, and systemd removes a scope before its exit can be looked at.
        if let (Some(events), Cgroup::Unified(_)) = (oom_events, cgroup) {
            self.must_watch(events, Token::Oom(slot), EventFlags::PRI);
        }
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
        container.close();
        let failed = StartFailed { container: container.id.clone(), failure };
        self.tell(Fact::StartFailed(failed), None);
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
