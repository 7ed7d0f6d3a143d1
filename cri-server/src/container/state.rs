//! The state of a container: what its record holds, and what each fact makes of it. Pure; nothing here acts.

use serde::{Deserialize, Serialize};

use super::config::Resources;
use crate::shim::ProcessId;
use crate::step::StepTime;

/// The identity of a container's first process, as resolved against its rootfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Every group, the primary one included, ascending.
    pub groups: Vec<u32>,
}

/// Where a container is in its life. Times are nanoseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerPhase {
    /// Made, and not started. (Also while StartContainer is at work.)
    Created,
    /// Its program runs.
    Running {
        /// When it began.
        started_at: i64,
    },
    /// Its program has ended, or could not be run.
    Exited {
        /// When it began; 0: never.
        started_at: i64,
        /// When it ended.
        finished_at: i64,
        /// Exit code, or 128 + signal.
        exit_code: i32,
        /// Completed, Error, OOMKilled, StartError, Unknown.
        reason: ExitReason,
        /// More words, at most a few KiB.
        message: String,
    },
    /// It cannot be told.
    Unknown,
}

/// Why a container is not running any more, in the words that kubelets and people know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Another exit code.
    Error,
    /// The kernel killed it for want of memory.
    OOMKilled,
    /// Its program never ran.
    StartError,
    /// Its end was not seen by anyone.
    Unknown,
}

impl ExitReason {
    /// As the CRI spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OOMKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "Unknown",
        }
    }
}

/// Exit code of a container whose program never ran, as every runtime reports it.
const START_FAILED: i32 = 128;
/// Exit code of a container whose end nobody saw, as kubelets know it.
const UNSEEN: i32 = 255;
/// Bytes of a message: it lands in the cluster's API.
const MAX_MESSAGE: usize = 4096;

/// Somebody wants the container to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopIntent {
    /// Its stop signal was sent; it is sent once.
    pub signal_sent: bool,
    /// When it is killed: nanoseconds of CLOCK_BOOTTIME, which no clock change moves. It only moves nearer.
    pub kill_at: u64,
}

/// Where a container is, with what only the daemon needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// CreateContainer is at work; nobody sees it.
    Creating,
    /// Made, and not started.
    Created,
    /// The shim was asked to start it, or is about to be.
    Starting,
    /// Its program runs.
    Running {
        /// Its first process.
        process: ProcessId,
        /// When it began.
        started_at: i64,
    },
    /// See [`ContainerPhase::Exited`].
    Exited {
        /// When it began; 0: never.
        started_at: i64,
        /// When it ended.
        finished_at: i64,
        /// Exit code, or 128 + signal.
        exit_code: i32,
        /// Why.
        reason: ExitReason,
        /// More words.
        message: String,
    },
    /// Its record could not be read: its shim will tell.
    Unknown,
}

impl Stage {
    /// In a word, for messages.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "being started",
            Self::Running { .. } => "running",
            Self::Exited { .. } => "exited",
            Self::Unknown => "unknown",
        }
    }
}

/// What changes while a container lives: `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Where it is.
    pub stage: Stage,
    /// Whom its first process runs as.
    pub user: Option<ResolvedUser>,
    /// Somebody was given its id. Until then it is not listed, and it is removed when nobody comes for it.
    pub claimed: bool,
    /// Somebody wants it to end.
    pub stop: Option<StopIntent>,
    /// Somebody wants it removed.
    pub removing: bool,
    /// The kernel killed a process of it for want of memory.
    pub oom: bool,
    /// How long each step of Create and Start took.
    pub steps: Vec<StepTime>,
    /// Its limits, once they are others than it was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// What happens to a container. Times are nanoseconds since the epoch.
#[derive(Debug, Clone, PartialEq)]
pub enum ContainerFact {
    /// CreateContainer is done; whether somebody waits for its id.
    Created {
        /// See [`ContainerState::claimed`].
        claimed: bool,
        /// How long its steps took.
        steps: Vec<StepTime>,
    },
    /// StartContainer is about to ask the shim.
    Starting,
    /// Its program runs.
    Started {
        /// Its first process.
        process: ProcessId,
        /// Whom it runs as.
        user: ResolvedUser,
        /// When.
        at: i64,
    },
    /// Its program could not be run.
    StartFailed {
        /// When.
        at: i64,
        /// Why.
        message: String,
    },
    /// The kernel killed a process of it for want of memory.
    Oom,
    /// Its first process has ended.
    Exited {
        /// When.
        at: i64,
        /// Exit code, or 128 + signal.
        code: i32,
        /// The kernel killed for want of memory.
        oom: bool,
    },
    /// It is not running any more, and nobody saw its end.
    Lost {
        /// When that was found out.
        at: i64,
        /// How it is known.
        message: String,
    },
}

/// A fact that does not fit the state: it was known, or cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

impl Default for ContainerState {
    fn default() -> Self {
        Self {
            stage: Stage::Creating,
            user: None,
            claimed: false,
            stop: None,
            removing: false,
            oom: false,
            steps: Vec::new(),
            resources: None,
        }
    }
}

impl ContainerState {
    /// The next state, or a refusal that changes nothing.
    pub fn on(mut self, fact: ContainerFact) -> Result<Self, Refused> {
        match (fact, &self.stage) {
            (ContainerFact::Created { claimed, steps }, Stage::Creating) => {
                (self.stage, self.claimed, self.steps) = (Stage::Created, claimed, steps);
            }
            (ContainerFact::Starting, Stage::Created) if self.stop.is_none() && !self.removing => {
                self.stage = Stage::Starting;
            }
            (ContainerFact::Started { process, user, at }, Stage::Starting | Stage::Unknown) => {
                (self.stage, self.user) = (Stage::Running { process, started_at: at }, Some(user));
            }
            (
                ContainerFact::StartFailed { at, message },
                Stage::Starting | Stage::Created | Stage::Unknown,
            ) => {
                self.stage = exited(0, at, START_FAILED, ExitReason::StartError, message);
            }
            (ContainerFact::Oom, Stage::Starting | Stage::Running { .. } | Stage::Unknown) => self.oom = true,
            (ContainerFact::Exited { at, code, oom }, stage) => {
                let started_at = match stage {
                    Stage::Running { started_at, .. } => *started_at,
                    // What was lost is found again: the shim saw it after all.
                    Stage::Exited { started_at, reason: ExitReason::Unknown, .. } => *started_at,
                    Stage::Starting | Stage::Unknown => 0,
                    Stage::Creating | Stage::Created | Stage::Exited { .. } => return Err(Refused),
                };
                self.oom |= oom;
                let reason = match code {
                    0 => ExitReason::Completed,
                    _ if self.oom => ExitReason::OOMKilled,
                    _ => ExitReason::Error,
                };
                self.stage = exited(started_at, at, code, reason, String::new());
            }
            (ContainerFact::Lost { at, message }, Stage::Running { started_at, .. }) => {
                self.stage = exited(*started_at, at, UNSEEN, ExitReason::Unknown, message);
            }
            (ContainerFact::Lost { at, message }, Stage::Starting | Stage::Unknown) => {
                self.stage = exited(0, at, UNSEEN, ExitReason::Unknown, message);
            }
            (
                ContainerFact::Created { .. }
                | ContainerFact::Starting
                | ContainerFact::Started { .. }
                | ContainerFact::StartFailed { .. }
                | ContainerFact::Oom
                | ContainerFact::Lost { .. },
                _,
            ) => return Err(Refused),
        }
        Ok(self)
    }

    /// As the CRI sees it.
    pub fn phase(&self) -> ContainerPhase {
        match &self.stage {
            Stage::Creating | Stage::Created | Stage::Starting => ContainerPhase::Created,
            Stage::Running { started_at, .. } => ContainerPhase::Running { started_at: *started_at },
            Stage::Exited { started_at, finished_at, exit_code, reason, message } => ContainerPhase::Exited {
                started_at: *started_at,
                finished_at: *finished_at,
                exit_code: *exit_code,
                reason: *reason,
                message: message.clone(),
            },
            Stage::Unknown => ContainerPhase::Unknown,
        }
    }

    /// Its first process, while it runs.
    pub fn process(&self) -> Option<ProcessId> {
        match &self.stage {
            Stage::Running { process, .. } => Some(*process),
            Stage::Creating | Stage::Created | Stage::Starting | Stage::Exited { .. } | Stage::Unknown => {
                None
            }
        }
    }

    /// Something of it may run.
    pub fn may_run(&self) -> bool {
        match self.stage {
            Stage::Starting | Stage::Running { .. } | Stage::Unknown => true,
            Stage::Creating | Stage::Created | Stage::Exited { .. } => false,
        }
    }

    /// It owns its name: made or being made, and not ended.
    pub fn lives(&self) -> bool {
        !self.removing && !matches!(self.stage, Stage::Exited { .. })
    }

    /// Somebody wants it to end at `kill_at`; a later wish never puts an earlier one off.
    pub fn stop_by(&mut self, kill_at: u64) {
        match &mut self.stop {
            Some(intent) => intent.kill_at = intent.kill_at.min(kill_at),
            None => self.stop = Some(StopIntent { signal_sent: false, kill_at }),
        }
    }
}

fn exited(
    started_at: i64,
    finished_at: i64,
    exit_code: i32,
    reason: ExitReason,
    mut message: String,
) -> Stage {
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    // A kubelet counts its back-off from the end, which cannot be before the beginning whatever a clock did.
    let finished_at = finished_at.max(started_at.saturating_add(1));
    Stage::Exited { started_at, finished_at, exit_code, reason, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ContainerFact as F;

    fn created_as(claimed: bool) -> F {
        F::Created { claimed, steps: Vec::new() }
    }

    fn started(at: i64) -> F {
        let user = ResolvedUser { uid: 1, gid: 2, groups: vec![2] };
        F::Started { process: ProcessId { pid: 7, started: 8 }, user, at }
    }

    fn after(facts: &[F]) -> ContainerState {
        facts
            .iter()
            .fold(ContainerState::default(), |state, fact| state.clone().on(fact.clone()).unwrap_or(state))
    }

    #[test]
    fn how_it_ends() {
        use ExitReason::{Completed, Error, OOMKilled, StartError, Unknown};
        let made = created_as(true);
        let exit = |code, oom| F::Exited { at: 9, code, oom };
        let lost = || F::Lost { at: 8, message: "gone".into() };
        let failed = || F::StartFailed { at: 9, message: "no such file".into() };
        let table = [
            (vec![started(5), exit(0, false)], 5, 9, 0, Completed),
            (vec![started(5), exit(3, false)], 5, 9, 3, Error),
            (vec![started(5), F::Oom, exit(137, false)], 5, 9, 137, OOMKilled),
            (vec![started(5), exit(137, true)], 5, 9, 137, OOMKilled),
            // A child was killed, the program coped.
            (vec![started(5), F::Oom, exit(0, true)], 5, 9, 0, Completed),
            (vec![failed()], 0, 9, 128, StartError),
            (vec![exit(137, false)], 0, 9, 137, Error),
            (vec![started(5), lost()], 5, 8, 255, Unknown),
            (vec![started(5), lost(), exit(4, false)], 5, 9, 4, Error),
            (vec![started(5), exit(4, false), lost(), exit(0, false), started(10), failed()], 5, 9, 4, Error),
            // The clock went back meanwhile.
            (vec![started(50), exit(0, false)], 50, 51, 0, Completed),
        ];
        for (facts, start, finish, code, why) in table {
            let facts = [vec![made.clone(), F::Starting], facts].concat();
            match after(&facts).stage {
                Stage::Exited { started_at, finished_at, exit_code, reason, .. } => {
                    assert_eq!(
                        (started_at, finished_at, exit_code, reason),
                        (start, finish, code, why),
                        "{facts:?}"
                    );
                }
                other => panic!("{facts:?} end in {other:?}"),
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let created = after(&[created_as(false)]);
        assert!(!created.claimed && created.lives() && !created.may_run());
        for fact in [started(1), F::Oom, F::Lost { at: 1, message: String::new() }, created_as(true)] {
            assert_eq!(created.clone().on(fact), Err(Refused));
        }
        let exit = F::Exited { at: 1, code: 0, oom: false };
        assert_eq!(created.clone().on(exit), Err(Refused));
        let mut stopped = created.clone();
        stopped.stop_by(5);
        assert_eq!(stopped.on(F::Starting), Err(Refused));
        let running = after(&[created_as(true), F::Starting, started(5)]);
        assert!(running.may_run() && running.process().is_some());
        assert_eq!(running.on(F::Starting), Err(Refused));
    }

    #[test]
    fn a_stop_only_comes_nearer() {
        let mut state = ContainerState::default();
        for (wish, kill_at) in [(50, 50), (70, 50), (20, 20)] {
            state.stop_by(wish);
            assert_eq!(state.stop, Some(StopIntent { signal_sent: false, kill_at }));
        }
    }

    #[test]
    fn a_message_has_an_end() {
        let message = "ä".repeat(MAX_MESSAGE);
        let state = after(&[created_as(true), F::StartFailed { at: 1, message }]);
        assert!(matches!(state.stage, Stage::Exited { message, .. } if message.len() <= MAX_MESSAGE));
    }
}
