//! The state of a sandbox: what its record holds, and what each fact makes of it. Pure; nothing here acts.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::container::config::Resources;
use crate::shim::ProcessId;
use crate::step::StepTime;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// RunPodSandbox is at work; nobody sees it.
    Making,
    /// Its environment exists and its shim lives.
    Ready,
    /// It can run nothing; what is left of it is to be removed.
    NotReady,
}

/// What changes while a sandbox lives: `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxState {
    /// Where it is in its life.
    pub stage: Stage,
    /// Empty in place of a state that could not be read. (Earlier daemons wrote here how far RunPodSandbox was.)
    pub reached: Cow<'static, str>,
    /// StopPodSandbox or RemovePodSandbox was asked for: nothing new begins.
    pub closing: bool,
    /// RemovePodSandbox was asked for.
    pub removing: bool,
    /// Teardown is done: nothing of it is left in the kernel.
    pub down: bool,
    /// Its shim.
    pub shim: Option<ProcessId>,
    /// Pid of the init of its shared PID namespace.
    pub init: Option<i32>,
    /// Why it is not ready, in words.
    pub reason: Cow<'static, str>,
    /// How long each step of its making took.
    pub steps: Vec<StepTime>,
    /// What the kubelet said last of its cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<PodResources>,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, PartialEq)]
pub enum SandboxFact {
    /// The shim's process was started.
    Launched(ProcessId),
    /// All steps are done.
    Made {
        /// Pid of the init of the shared PID namespace, if there is one.
        init: Option<i32>,
        /// How long they took.
        steps: Vec<StepTime>,
    },
    /// RunPodSandbox failed, in words.
    RunFailed(String),
    /// Somebody wants it stopped.
    Closing,
    /// Somebody wants it removed.
    Removing,
    /// The shim's process has ended.
    ShimGone,
    /// The init has ended, and with it every process in its PID namespace.
    InitExited,
    /// Nothing of it is left in the kernel.
    Down,
    /// The host was restarted.
    HostRestarted,
    /// The kubelet has changed the limits of its cgroup, or is about to.
    Resized(Box<PodResources>),
}

/// What a kubelet says of a pod's cgroup, which is its own to limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodResources {
    /// Of the sandbox itself.
    pub overhead: Option<Resources>,
    /// Of all containers.
    pub resources: Option<Resources>,
}

/// A fact that does not fit the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

impl Default for SandboxState {
    fn default() -> Self {
        Self {
            stage: Stage::Making,
            reached: Cow::Borrowed("reserve"),
            closing: false,
            removing: false,
            down: false,
            shim: None,
            init: None,
            reason: Cow::Borrowed(""),
            steps: Vec::new(),
            resources: None,
        }
    }
}

impl SandboxState {
    /// RunPodSandbox did not come to its end, so nobody was given its id: it was being made, or taken down again. A state
    /// that could not be read has reached nothing, and says nothing of this.
    pub fn was_never_ready(&self) -> bool {
        self.stage == Stage::Making
            || self.stage == Stage::NotReady && self.steps.is_empty() && !self.reached.is_empty()
    }

    /// The next state, or a refusal that changes nothing.
    pub fn on(mut self, fact: SandboxFact) -> Result<Self, Refused> {
        match fact {
            // A process that exists is recorded, whatever is wanted meanwhile: else nobody would end it.
            SandboxFact::Launched(process) => self.shim = Some(process),
            SandboxFact::Made { init, steps } => {
                self.may_be_made()?;
                (self.stage, self.init, self.steps) = (Stage::Ready, init, steps);
            }
            SandboxFact::RunFailed(reason) => self.end(Cow::Owned(reason)),
            SandboxFact::Closing => self.closing = true,
            SandboxFact::Removing => (self.closing, self.removing) = (true, true),
            SandboxFact::Resized(resources) => self.resources = Some(*resources),
            SandboxFact::ShimGone => self.end(Cow::Borrowed("its shim has ended")),
            SandboxFact::InitExited => self.end(Cow::Borrowed("the init of its PID namespace has ended")),
            SandboxFact::HostRestarted => {
                self.end(Cow::Borrowed("the host was restarted"));
                (self.shim, self.init) = (None, None);
            }
            SandboxFact::Down => {
                self.end(Cow::Borrowed("stopped"));
                (self.shim, self.init, self.down) = (None, None, true);
            }
        }
        Ok(self)
    }

    /// It may still become ready.
    fn may_be_made(&self) -> Result<(), Refused> {
        if self.stage == Stage::Making && !self.closing { Ok(()) } else { Err(Refused) }
    }

    /// Not ready from now on; the first reason stands.
    fn end(&mut self, reason: Cow<'static, str>) {
        if self.stage != Stage::NotReady {
            self.stage = Stage::NotReady;
            self.reason = reason;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SandboxFact as F;
    use Stage::{Making, NotReady, Ready};

    const SHIM: ProcessId = ProcessId { pid: 5, started: 9 };

    fn after(facts: &[F]) -> SandboxState {
        facts
            .iter()
            .fold(SandboxState::default(), |state, fact| state.clone().on(fact.clone()).unwrap_or(state))
    }

    #[test]
    fn what_each_fact_makes_of_it() {
        let made = || F::Made { init: Some(7), steps: Vec::new() };
        let table: &[(&[F], Stage, &str)] = &[
            (&[], Making, ""),
            (&[F::Launched(SHIM)], Making, ""),
            (&[F::Launched(SHIM), made()], Ready, ""),
            (&[F::Launched(SHIM), made(), F::Closing], Ready, ""),
            (&[F::Launched(SHIM), made(), F::Closing, F::Down], NotReady, "stopped"),
            (&[made(), F::ShimGone, F::Down], NotReady, "its shim has ended"),
            (&[made(), F::InitExited, F::ShimGone], NotReady, "the init of its PID namespace has ended"),
            (&[F::RunFailed("no address".into()), F::Down], NotReady, "no address"),
            (&[F::Closing, made()], Making, ""),
            (&[F::ShimGone, made()], NotReady, "its shim has ended"),
            (&[made(), F::HostRestarted], NotReady, "the host was restarted"),
        ];
        for (facts, stage, reason) in table {
            let state = after(facts);
            assert_eq!((state.stage, state.reason.as_ref()), (*stage, *reason), "{facts:?}");
        }
    }

    #[test]
    fn what_was_never_ready_is_known_after_its_init_is_gone() {
        let time = StepTime { name: "shim".into(), duration: std::time::Duration::ZERO };
        let made = F::Made { init: Some(7), steps: vec![time] };
        assert!(after(&[]).was_never_ready());
        assert!(after(&[F::Launched(SHIM), F::InitExited]).was_never_ready());
        assert!(!after(std::slice::from_ref(&made)).was_never_ready());
        assert!(!after(&[made, F::InitExited, F::Down]).was_never_ready());
        let unreadable = SandboxState { stage: NotReady, reached: "".into(), ..SandboxState::default() };
        assert!(!unreadable.was_never_ready());
    }

    #[test]
    fn a_closing_sandbox_makes_no_step_but_remembers_processes() {
        let state = after(&[F::Removing]);
        assert!(state.closing && state.removing);
        assert_eq!(state.clone().on(F::Made { init: None, steps: Vec::new() }), Err(Refused));
        assert_eq!(state.on(F::Launched(SHIM)).unwrap().shim, Some(SHIM));
    }

    #[test]
    fn what_is_said_of_a_pods_cgroup_is_written_down() {
        use crate::container::config::Resources;
        let said = |shares| {
            let resources = Some(Resources { cpu_shares: shares, ..Resources::default() });
            PodResources { overhead: None, resources }
        };
        let state = after(&[F::Resized(Box::new(said(2))), F::Resized(Box::new(said(512)))]);
        assert_eq!(state.resources, Some(said(512)), "the last word counts");
    }

    #[test]
    fn nothing_in_the_kernel_is_remembered_once_down() {
        let made = F::Made { init: Some(7), steps: Vec::new() };
        let state = after(&[F::Launched(SHIM), made, F::Down]);
        assert_eq!((state.shim, state.init, state.down), (None, None, true));
    }
}
