//! What happened in the pod, kept until the daemon has recorded it. Knows nothing of sockets: whoever sends asks for
//! what is held.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::clock;
use crate::protocol::{Event, Fact};

/// A fact, and the descriptor that goes with it.
#[derive(Debug)]
pub struct Held {
    /// As it is sent.
    pub event: Event,
    fd: Option<OwnedFd>,
    acknowledged: bool,
}

impl Held {
    /// See [`Fact`] for which fact has one.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }
}

/// All facts that may have to be sent again, in their order.
#[derive(Debug, Default)]
pub struct Facts {
    serial: u64,
    last: i64,
    held: Vec<Held>,
}

impl Facts {
    /// Keeps a fact, and gives it its place and time.
    pub fn keep(&mut self, fact: Fact, fd: Option<OwnedFd>) -> &Held {
        if let Fact::Exited(exited) = &fact {
            // Its `Started` was held for the pidfd, of which nobody has use any more.
            self.held.retain(|held| !(held.acknowledged && is_start_of(&held.event.fact, &exited.container)));
        }
        self.serial += 1;
        let event = Event { serial: self.serial, at: self.tick(), fact };
        self.held.push(Held { event, fd, acknowledged: false });
        &self.held[self.held.len() - 1]
    }

    /// A fact that nobody holds: that of an exec.
    pub fn pass(&mut self, fact: Fact) -> Event {
        Event { serial: 0, at: self.tick(), fact }
    }

    /// Everything that a daemon which adopts the shim must learn.
    pub fn held(&self) -> impl Iterator<Item = &Held> {
        self.held.iter()
    }

    /// The daemon has recorded what came up to `serial`. The `Started` of a container that lives stays: the next
    /// daemon needs the pidfd.
    pub fn acknowledge(&mut self, serial: u64) {
        let exited: Vec<String> =
            self.held.iter().filter_map(|held| exit_of(&held.event.fact).map(str::to_owned)).collect();
        for held in &mut self.held {
            held.acknowledged |= held.event.serial <= serial;
        }
        self.held.retain(|held| match &held.event.fact {
            Fact::Started(started) => !held.acknowledged || !exited.contains(&started.container),
            _ => !held.acknowledged,
        });
    }

    /// Drops what is held of a container.
    pub fn forget(&mut self, container: &str) {
        self.held.retain(|held| container_of(&held.event.fact) != Some(container));
    }

    /// Time goes forward, whatever the clock does.
    fn tick(&mut self) -> i64 {
        self.last = clock::now().max(self.last.saturating_add(1));
        self.last
    }
}

fn is_start_of(fact: &Fact, container: &str) -> bool {
    matches!(fact, Fact::Started(started) if started.container == container)
}

fn exit_of(fact: &Fact) -> Option<&str> {
    match fact {
        Fact::Exited(exited) => Some(&exited.container),
        _ => None,
    }
}

fn container_of(fact: &Fact) -> Option<&str> {
    match fact {
        Fact::Started(started) => Some(&started.container),
        Fact::StartFailed(failed) => Some(&failed.container),
        Fact::Oom(oom) => Some(&oom.container),
        Fact::Exited(exited) => Some(&exited.container),
        Fact::ExecStarted(_) | Fact::ExecFailed(_) | Fact::ExecExited(_) | Fact::InitExited(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ContainerId, ExitStatus, Exited, ResolvedUser, Started};

    fn started(container: &str) -> Fact {
        Fact::Started(Started {
            container: container.into(),
            pid: 7,
            start_time: 1,
            user: ResolvedUser { uid: 0, gid: 0, groups: vec![0] },
        })
    }

    fn exited(container: &str) -> Fact {
        let status = ExitStatus { code: 0, signal: 0 };
        Fact::Exited(Exited { container: container.into(), status, oom: true })
    }

    fn serials(facts: &Facts) -> Vec<u64> {
        facts.held().map(|held| held.event.serial).collect()
    }

    #[test]
    fn a_start_is_held_while_the_container_lives() {
        let mut facts = Facts::default();
        facts.keep(started("a"), None);
        facts.keep(started("b"), None);
        facts.acknowledge(2);
        assert_eq!(serials(&facts), [1, 2]);
        facts.keep(Fact::Oom(ContainerId { container: "a".into() }), None);
        facts.keep(exited("a"), None);
        assert_eq!(serials(&facts), [2, 3, 4]);
        facts.acknowledge(3);
        assert_eq!(serials(&facts), [2, 4]);
        facts.acknowledge(4);
        assert_eq!(serials(&facts), [2]);
        facts.forget("b");
        assert_eq!(serials(&facts), [0; 0]);
    }

    #[test]
    fn a_start_that_was_never_recorded_is_sent_with_its_exit() {
        let mut facts = Facts::default();
        facts.keep(started("a"), None);
        facts.keep(exited("a"), None);
        assert_eq!(serials(&facts), [1, 2]);
        facts.acknowledge(1);
        assert_eq!(serials(&facts), [2]);
    }

    #[test]
    fn order_and_time_increase() {
        let mut facts = Facts::default();
        let mut last = (0, 0);
        for _ in 0..100 {
            let event = &facts.keep(exited("a"), None).event;
            assert!(event.serial > last.0 && event.at > last.1);
            last = (event.serial, event.at);
            assert_eq!(facts.pass(exited("a")).serial, 0);
        }
    }
}
