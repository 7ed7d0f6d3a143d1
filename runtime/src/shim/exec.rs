//! Execs: further processes in a running container. Their stdio is the daemon's; the shim only makes, kills and reaps
//! them.

use super::cgroup::Cgroup;
use super::failure;
use super::fork::{self, Kind, Order};
use super::hunt::Hunt;
use super::request::Given;
use super::serve::Shim;
use super::spawn::{Child, Program, Spawn};
use super::watch::Owner;
use crate::protocol::{self, ExecExited, ExecFailed, ExecStarted, ExitStatus, Fact, Failure};
use std::os::fd::AsFd;

/// The most execs of a pod at a time. Each is a process, and probes come one a container and second.
const MAX_EXECS: usize = 1024;
/// Execs that are killed at a time, some milliseconds a turn each.
const HUNTS: usize = 4;

/// Where an exec stands. An ended one is forgotten.
#[derive(Debug)]
pub enum State {
    /// Being made.
    Starting(Spawn),
    /// Its program runs. `None` only while it is handed over.
    Running(Option<Child>),
}

/// See the module's header.
#[derive(Debug)]
pub struct Exec {
    id: u64,
    container: u32,
    /// The connection that asked.
    peer: u32,
    /// It dies with its connection.
    bound: bool,
    oom_score: i32,
    pub(super) state: State,
}

impl Exec {
    /// SIGKILL to its first process alone.
    pub(super) fn kill(&mut self, why: &str) {
        match &mut self.state {
            State::Starting(spawn) => spawn.fail(failure::new("exec", 0, why)),
            State::Running(Some(child)) => child.kill(),
            State::Running(None) => {}
        }
    }

    /// Takes the spawn of an exec whose program runs.
    pub fn take_spawn(&mut self) -> Option<Spawn> {
        match std::mem::replace(&mut self.state, State::Running(None)) {
            State::Starting(spawn) => Some(spawn),
            other => {
                self.state = other;
                None
            }
        }
    }
}

impl Shim {
    pub(super) fn exec(&mut self, peer: u32, exec: protocol::Exec, mut given: Given) -> Result<(), Failure> {
        let refuse = |detail: &str| Err(failure::new("exec", 0, detail));
        if self.execs.len() >= MAX_EXECS {
            return refuse("the sandbox has too many execs");
        }
        if self.execs.values().any(|known| known.id == exec.exec) {
            return refuse("the exec's number is taken");
        }
        let container = self.find(&exec.container);
        let running = container.and_then(|slot| Some((slot, self.containers.get(&slot)?.process()?)));
        let Some((container, process)) = running else {
            return refuse("the container does not run");
        };
        let spec = given.take()?;
        let stdio = [given.take()?, given.take()?, given.take()?];
        let cgroup = given.cgroup(&exec.cgroup)?;
        let target = process
            .pidfd
            .try_clone()
            .map_err(|error| failure::io("exec", "duplicate a descriptor", &error))?;
        let user = self.user()?;
        let order =
            Order { kind: Kind::Join(target), spec, stdio, terminal: exec.terminal, user, void: None };
        let mut spawn = fork::builder(self.single, order, &cgroup, Some(process.pid))?;
        let slot = self.slot();
        self.began(Owner::Exec(slot), &mut spawn);
        let exec = Exec {
            id: exec.exec,
            container,
            peer,
            bound: exec.bound,
            oom_score: exec.oom_score_adj.unwrap_or(0),
            state: State::Starting(spawn),
        };
        self.execs.insert(slot, exec);
        Ok(())
    }

    pub(super) fn exec_ready(&mut self, slot: u32) -> Result<(), Failure> {
        let Some(exec) = self.execs.get(&slot) else { return Ok(()) };
        let State::Starting(spawn) = &exec.state else { return Ok(()) };
        if let Some(process) = spawn.process() {
            let (pid, score) = (process.pid, exec.oom_score);
            self.set_oom_score(pid, score);
        }
        Ok(())
    }

    pub(super) fn exec_runs(&mut self, slot: u32, program: Program) {
        let Some(exec) = self.execs.get_mut(&slot) else { return };
        let fact = Fact::ExecStarted(ExecStarted { exec: exec.id, pid: program.child.pid });
        let peer = exec.peer;
        let pidfd = program.child.pidfd.try_clone();
        exec.state = State::Running(Some(program.child));
        // Without a descriptor the fact still stands: KillExec needs none.
        self.tell_one(peer, fact, pidfd.as_ref().ok().map(AsFd::as_fd));
    }

    pub(super) fn exec_failed(&mut self, slot: u32, failure: Failure) {
        if let Some(exec) = self.execs.remove(&slot) {
            self.tell_one(exec.peer, Fact::ExecFailed(ExecFailed { exec: exec.id, failure }), None);
        }
    }

    pub(super) fn exec_ended(&mut self, slot: u32, status: ExitStatus) {
        if let Some(exec) = self.execs.remove(&slot) {
            self.tell_one(exec.peer, Fact::ExecExited(ExecExited { exec: exec.id, status }), None);
        }
    }

    pub(super) fn kill_exec(&mut self, id: u64) {
        if let Some(slot) = self.execs.iter().find(|(_, exec)| exec.id == id).map(|(slot, _)| *slot) {
            self.kill_exec_at(slot);
        }
    }

    /// A connection has ended: so do its execs.
    pub(super) fn kill_bound(&mut self, peer: u32) {
        let bound: Vec<u32> = self
            .execs
            .iter()
            .filter(|(_, exec)| exec.bound && exec.peer == peer)
            .map(|(slot, _)| *slot)
            .collect();
        bound.into_iter().for_each(|slot| self.kill_exec_at(slot));
    }

    pub(super) fn kill_exec_at(&mut self, slot: u32) {
        let Some(exec) = self.execs.get_mut(&slot) else { return };
        match &mut exec.state {
            State::Starting(spawn) => spawn.fail(failure::new("exec", 0, "killed before the program ran")),
            State::Running(Some(_)) if self.hunts.iter().any(|hunt| hunt.exec == exec.id) => {}
            State::Running(Some(child)) => match Hunt::new(exec.container, exec.id, child) {
                Ok(hunt) => self.hunts.push_back(hunt),
                Err(error) => {
                    super::say(&format!("kill of all processes of exec {}: {error}", exec.id));
                    child.kill();
                }
            },
            State::Running(None) => {}
        }
        self.drive(Owner::Exec(slot));
    }

    /// A turn of some of the execs that are being killed.
    pub(super) fn hunt(&mut self) {
        for _ in 0..self.hunts.len().min(HUNTS) {
            let Some(mut hunt) = self.hunts.pop_front() else { return };
            // A container that is forgotten has ended, with everybody in its group.
            let Some(container) = self.containers.get(&hunt.container) else {
                hunt.end(&Cgroup::None);
                continue;
            };
            let spare = container.process().map_or(0, |process| process.pid);
            match hunt.turn(&container.cgroup, spare) {
                Ok(true) => {}
                Ok(false) => self.hunts.push_back(hunt),
                Err(error) => {
                    super::say(&format!("kill of exec {}: {error}", hunt.exec));
                    hunt.end(&container.cgroup);
                }
            }
        }
    }
}
