//! Children from fork to reaping: hands each spawn on to whom it belongs, step by step, and each exit likewise.

use super::failure;
use super::serve::Shim;
use super::spawn::{Progress, Spawn};
use super::watch::Owner;
use super::{container, exec, reap};
use crate::protocol::ExitStatus;

/// Exits that are taken in a round.
const EXITS: usize = 256;

impl Shim {
    /// Takes exits, a bounded number a round: orphans may come to the shim and end without end.
    pub(super) fn reap(&mut self) {
        // Emptied first: what ends after the last look raises the signal anew. One of each kind can be pending.
        let _ = self.signals.read_signal();
        self.unreaped = true;
        for _ in 0..EXITS {
            let Some((pid, status)) = reap::next() else {
                self.unreaped = false;
                return;
            };
            // A child that nobody knows is an orphan that came to its subreaper, or a builder whose work is done.
            if let Some(owner) = self.pids.remove(&pid) {
                self.reaped(owner, pid, status);
            }
        }
    }

    fn reaped(&mut self, owner: Owner, pid: i32, status: ExitStatus) {
        if let Some(spawn) = self.spawn_mut(owner) {
            spawn.reaped(pid, status);
            return self.drive(owner);
        }
        self.ended(owner, status);
    }

    fn ended(&mut self, owner: Owner, status: ExitStatus) {
        match owner {
            Owner::Holder => self.init_ended(status),
            Owner::Container(slot) => self.container_ended(slot, status),
            Owner::Exec(slot) => self.exec_ended(slot, status),
        }
    }

    /// Moves a spawn on as far as it goes.
    pub(super) fn drive(&mut self, owner: Owner) {
        while let Some(spawn) = self.spawn_mut(owner) {
            match spawn.advance() {
                Progress::Waiting => return,
                Progress::Cloned(pid) => self.cloned(owner, pid),
                Progress::Ready => self.ready(owner),
                Progress::Runs => return self.runs(owner),
                Progress::Failed(failure) => {
                    return match owner {
                        Owner::Holder => self.holder_failed(failure),
                        Owner::Container(slot) => self.start_failed(slot, failure),
                        Owner::Exec(slot) => self.exec_failed(slot, failure),
                    };
                }
            }
        }
    }

    fn cloned(&mut self, owner: Owner, pid: i32) {
        if self.pids.contains_key(&pid) {
            let detail = format!("process {pid}, which the builder says it cloned, is another's");
            if let Some(spawn) = self.spawn_mut(owner) {
                spawn.fail(failure::new("clone", 0, &detail));
            }
            return;
        }
        self.pids.insert(pid, owner);
    }

    fn ready(&mut self, owner: Owner) {
        let prepared = match owner {
            Owner::Holder => self.holder_ready(),
            Owner::Container(slot) => self.container_ready(slot),
            Owner::Exec(slot) => self.exec_ready(slot),
        };
        if let Some(spawn) = self.spawn_mut(owner) {
            match prepared {
                Ok(()) => spawn.open(),
                Err(failure) => spawn.fail(failure),
            }
        }
    }

    fn runs(&mut self, owner: Owner) {
        let Some(program) = self.take_spawn(owner).and_then(Spawn::into_program) else {
            return;
        };
        // Of a builder that is not the program nothing more is expected but its end.
        self.pids.retain(|pid, known| *known != owner || *pid == program.child.pid);
        let ended = program.ended.clone();
        match owner {
            Owner::Holder => self.holder_runs(program),
            Owner::Container(slot) => self.container_runs(slot, program),
            Owner::Exec(slot) => self.exec_runs(slot, program),
        }
        if let Some(status) = ended {
            self.ended(owner, status);
        }
    }

    fn spawn_mut(&mut self, owner: Owner) -> Option<&mut Spawn> {
        match owner {
            Owner::Holder => self.sandbox.spawn_mut(),
            Owner::Container(slot) => match &mut self.containers.get_mut(&slot)?.state {
                container::State::Starting(spawn) => Some(spawn),
                _ => None,
            },
            Owner::Exec(slot) => match &mut self.execs.get_mut(&slot)?.state {
                exec::State::Starting(spawn) => Some(spawn),
                exec::State::Running(_) => None,
            },
        }
    }

    fn take_spawn(&mut self, owner: Owner) -> Option<Spawn> {
        match owner {
            Owner::Holder => self.sandbox.take_spawn(),
            Owner::Container(slot) => self.containers.get_mut(&slot)?.take_spawn(),
            Owner::Exec(slot) => self.execs.get_mut(&slot)?.take_spawn(),
        }
    }

    /// Registers a spawn that has just been forked.
    pub(super) fn began(&mut self, owner: Owner, spawn: &mut Spawn) {
        self.pids.insert(spawn.builder_pid(), owner);
        self.watch_report(owner, spawn.report());
    }

    /// Writes the OOM score of a process that has not begun. Where the kernel refuses (no CAP_SYS_RESOURCE), the
    /// process keeps what it inherited, which is said once.
    pub(super) fn set_oom_score(&mut self, pid: i32, score: i32) {
        let path = std::path::PathBuf::from(format!("{pid}/oom_score_adj"));
        if let Err(error) = self.proc.write(&path, score.to_string().as_bytes())
            && !std::mem::replace(&mut self.clamped, true)
        {
            super::say(&format!("oom_score_adj {score}: {error}; such processes keep the shim's own"));
        }
    }
}
