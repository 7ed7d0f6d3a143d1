//! How a container ends: from the exit of its first process to the fact that says so, once its output is in the log and
//! nothing of it is left, or its time is up.

use std::time::{Duration, Instant};

use super::container::{Container, State};
use super::log::Stream;
use super::oom;
use super::serve::Shim;
use crate::protocol::{ContainerId, ExitStatus, Exited, Fact, PidMode};

/// How long an exit waits for output and processes that outlive the first process: a program that passed its stdout
/// to a stranger must not keep the container from ending.
const DRAIN: Duration = Duration::from_secs(5);

/// See [`State::Ending`].
#[derive(Debug)]
pub struct Ending {
    status: ExitStatus,
    /// Told at this time at the latest.
    until: Instant,
    /// Processes were left after the last turn of killing them.
    left: bool,
}

impl Container {
    /// When it has to be looked at, though nothing happens.
    pub fn due(&self) -> Option<Instant> {
        match &self.state {
            State::Ending(ending) if ending.left => Some(ending.until.min(self.sweep.due())),
            State::Ending(ending) => Some(ending.until),
            _ => None,
        }
    }

    /// The end of its first process is the end of all others: the kernel sees to it.
    fn ends_as_one(&self) -> bool {
        self.pid == PidMode::Private
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
    pub(super) fn oom(&mut self, slot: u32) {
        if let Some(container) = self.containers.get_mut(&slot) {
            container.look_for_oom();
        }
    }

    pub(super) fn container_ended(&mut self, slot: u32, status: ExitStatus) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        container.look_for_oom();
        container.oom_events = None;
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
            ending.left = match container.sweep.turn(&container.cgroup) {
                Ok(left) => left,
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
            return;
        }
        if let Some(output) = &mut container.output {
            if !output.ended() && !late {
                return;
            }
            output.close(&mut self.input);
        }
        container.close();
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
}
