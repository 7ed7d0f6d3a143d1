//! The end of the shim: kills everything of the pod, waits (in the loop, never by blocking) until it is gone, answers.

use std::time::{Duration, Instant};

use super::failure;
use super::reap;
use super::serve::Shim;
use crate::protocol::Reply;

/// A process that the kernel holds (a dead NFS server) cannot be waited for; the daemon sees it in the cgroup.
const LIMIT: Duration = Duration::from_secs(10);
/// How long the answer may wait for its reader.
const FLUSH: Duration = Duration::from_secs(1);
/// How often what is left is killed again: what was forked while it was killed.
const LOOK: Duration = Duration::from_millis(5);

/// A shutdown under way.
#[derive(Debug)]
pub struct Shutdown {
    /// Who is told.
    peer: u32,
    seq: u32,
    until: Instant,
    answered: bool,
}

impl Shutdown {
    /// When the loop must look again.
    pub fn due(&self) -> Instant {
        self.until.min(Instant::now() + LOOK)
    }
}

impl Shim {
    pub(super) fn shut_down(&mut self, peer: u32, seq: u32) {
        self.shutdown = Some(Shutdown { peer, seq, until: Instant::now() + LIMIT, answered: false });
        self.kill_all();
    }

    fn kill_all(&mut self) {
        // Whom they started is in the containers' groups.
        for exec in self.execs.values_mut() {
            exec.kill("the shim was shut down before the program ran");
        }
        for container in self.containers.values_mut() {
            container.kill("the shim was shut down before the program ran");
        }
        self.sandbox.kill();
    }

    /// Looks whether all is gone, and answers then. True once the loop may end.
    pub(super) fn shutdown_is_done(&mut self) -> bool {
        let Some(shutdown) = &self.shutdown else { return false };
        let late = Instant::now() >= shutdown.until;
        let (peer, seq) = (shutdown.peer, shutdown.seq);
        if shutdown.answered {
            return late || self.peers.get(&peer).is_none_or(super::peer::Peer::is_flushed);
        }
        if reap::any() && !late {
            self.kill_all();
            return false;
        }
        for container in self.containers.values_mut() {
            container.thaw();
            if let Some(output) = &mut container.output {
                output.close(&mut self.input);
            }
        }
        let reply = if late {
            let detail = format!("processes are left {} s after they were killed", LIMIT.as_secs());
            Reply::Failed(failure::new("shutdown", 0, &detail))
        } else {
            Reply::Done
        };
        self.answer(peer, seq, reply, None);
        let shutdown = Shutdown { peer, seq, until: Instant::now() + FLUSH, answered: true };
        self.shutdown = Some(shutdown);
        self.peers.get(&peer).is_none_or(super::peer::Peer::is_flushed)
    }
}
