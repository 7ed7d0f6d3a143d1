//! The containers of a sandbox: closed before it is stopped, so that none is made while it goes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Which containers a sandbox has, and whether more may come.
#[derive(Debug, Default)]
pub struct Children {
    set: Mutex<Set>,
    making: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Set {
    closed: bool,
    ids: BTreeSet<String>,
}

/// The sandbox takes no more containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

/// A container that is being made: in the set until it is committed to, or dropped.
#[derive(Debug)]
pub struct Making {
    children: Arc<Children>,
    id: String,
    committed: bool,
}

impl Children {
    /// A container is about to be made.
    pub fn join(self: &Arc<Self>, id: &str) -> Result<Making, Closed> {
        let mut set = self.lock();
        if set.closed {
            return Err(Closed);
        }
        set.ids.insert(id.to_owned());
        self.making.send_modify(|making| *making += 1);
        Ok(Making { children: Arc::clone(self), id: id.to_owned(), committed: false })
    }

    /// A container found in the records.
    pub fn restore(&self, id: &str) {
        self.lock().ids.insert(id.to_owned());
    }

    /// A container is gone.
    pub fn leave(&self, id: &str) {
        self.lock().ids.remove(id);
    }

    /// No more may come.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Those there are, being made or made.
    pub fn ids(&self) -> Vec<String> {
        self.lock().ids.iter().cloned().collect()
    }

    /// Waits until none is being made any more, at most `limit`: true if so.
    pub async fn settled(&self, limit: Duration) -> bool {
        let mut making = self.making.subscribe();
        matches!(timeout(limit, making.wait_for(|making| *making == 0)).await, Ok(Ok(_)))
    }

    fn lock(&self) -> MutexGuard<'_, Set> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Making {
    /// The container is made: it stays in the set, unless the set was closed meanwhile.
    pub fn commit(&mut self) -> Result<(), Closed> {
        let closed = self.children.lock().closed;
        self.committed = !closed;
        if closed { Err(Closed) } else { Ok(()) }
    }

    /// It could not be undone: it stays in the set, and goes with the sandbox.
    pub fn keep(mut self) {
        self.committed = true;
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if !self.committed {
            self.children.leave(&self.id);
        }
        self.children.making.send_modify(|making| *making -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_set_takes_nobody_and_waits_for_those_on_the_way() {
        let children = Arc::new(Children::default());
        children.join("a").unwrap().commit().unwrap();
        let mut late = children.join("b").unwrap();
        drop(children.join("c").unwrap());
        children.close();
        assert!(children.join("d").is_err());
        assert_eq!(children.ids(), ["a", "b"]);
        assert!(!children.settled(Duration::from_millis(1)).await);
        assert_eq!(late.commit(), Err(Closed));
        // While it is undone it is still there to be found, and waited for.
        assert_eq!(children.ids(), ["a", "b"]);
        assert!(!children.settled(Duration::from_millis(1)).await);
        drop(late);
        assert!(children.settled(Duration::from_secs(1)).await);
        assert_eq!(children.ids(), ["a"]);
    }
}
