//! Removes the links of detached pods, off the path of a pod's stop.
//!
//! Removing a link waits for the kernel's own deferred work (rcu_barrier(), some 30 ms), for one link as long as for a
//! hundred. So a detach only marks its link with the instance's group, which takes microseconds, and this thread removes
//! the whole group. A link that was marked before a crash goes at the next start.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use super::{NetworkError, link};

/// The asking end: the thread ends when it is dropped.
#[derive(Debug)]
pub(super) struct Reaper(SyncSender<()>);

impl Reaper {
    /// For the links of one group.
    pub(super) fn start(group: u32) -> Result<Self, NetworkError> {
        link::remove_doomed(group)?;
        // Room for one: whoever asks while one waits is meant by that one.
        let (sender, receiver) = sync_channel(1);
        thread::Builder::new()
            .name("net-reaper".to_owned())
            .spawn(move || reap(group, &receiver))
            .map_err(|e| NetworkError::system("start thread", "net-reaper", e))?;
        Ok(Self(sender))
    }

    /// Something is marked.
    pub(super) fn wake(&self) -> Result<(), NetworkError> {
        match self.0.try_send(()) {
            Ok(()) | Err(TrySendError::Full(())) => Ok(()),
            Err(TrySendError::Disconnected(())) => {
                Err(NetworkError::system("wake thread", "net-reaper", rustix::io::Errno::PIPE))
            }
        }
    }
}

fn reap(group: u32, asked: &Receiver<()>) {
    while asked.recv().is_ok() {
        if let Err(error) = link::remove_doomed(group) {
            // They stay marked: the next round tries again.
            tracing::warn!(group, %error, "links of detached pods stay for now");
        }
    }
}
