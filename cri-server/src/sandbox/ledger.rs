//! Up to which fact everything is on disk: that far a shim may forget what it told.
//!
//! A shim forgets in the order in which it told, so one record that could not be written keeps all facts after it. It
//! is written again until the disk takes it, and then the rest is acknowledged at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::live::Sandbox;
use crate::container::live::Container;
use crate::error::Error;

/// Between two tries to write what could not be written: a full disk is not cleared in a moment.
const WRITE_AGAIN: Duration = Duration::from_secs(2);

/// Whose record it is.
#[derive(Debug, Clone)]
pub enum Object {
    /// The sandbox's.
    Sandbox(Arc<Sandbox>),
    /// That of one of its containers.
    Container(Arc<Container>),
}

/// See the module's header.
#[derive(Debug, Default)]
pub struct Ledger {
    heard: u64,
    told: u64,
    behind: Vec<Object>,
    /// Of the last try to write what is behind, or of the first failure.
    tried: Option<Instant>,
}

impl Ledger {
    /// A fact was applied to `object`; an error says that its record is not written.
    pub fn note(&mut self, serial: u64, object: Option<Object>, result: Result<(), Error>) {
        self.heard = self.heard.max(serial);
        if let (Err(error), Some(object)) = (result, object) {
            tracing::error!(id = object.id(), %error, "a fact could not be recorded; its record is written again");
            self.tried.get_or_insert_with(Instant::now);
            if self.behind.iter().all(|known| known.id() != object.id()) {
                self.behind.push(object);
            }
        }
    }

    /// Waits until what is behind is to be written again: without end while nothing is.
    pub async fn due(&self) {
        match self.tried {
            Some(tried) => sleep_until(tried + WRITE_AGAIN).await,
            None => std::future::pending().await,
        }
    }

    /// Tries to write what is behind. What is not `known` any more was removed, and its record with it.
    pub async fn catch_up(&mut self, known: impl Fn(&Object) -> bool) {
        let mut still = Vec::new();
        for object in std::mem::take(&mut self.behind) {
            match object.write_again().await {
                Ok(()) => tracing::info!(id = object.id(), "its record is written now"),
                Err(_) if known(&object) => still.push(object),
                Err(_) => {}
            }
        }
        self.behind = still;
        self.tried = (!self.behind.is_empty()).then(Instant::now);
    }

    /// What the shim may forget, if it has not been told yet.
    pub fn tell(&mut self) -> Option<u64> {
        let is_new = self.behind.is_empty() && self.heard > self.told;
        is_new.then(|| {
            self.told = self.heard;
            self.heard
        })
    }
}

impl Object {
    /// The object's id.
    pub fn id(&self) -> &str {
        match self {
            Self::Sandbox(sandbox) => sandbox.id(),
            Self::Container(container) => container.id(),
        }
    }

    async fn write_again(&self) -> Result<(), Error> {
        match self {
            Self::Sandbox(sandbox) => sandbox.write_again().await,
            Self::Container(container) => container.write_again().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::state::{SandboxFact, SandboxState};
    use crate::sandbox::teardown::tests::{identity, node};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_disk_that_takes_records_again_lets_the_shim_forget_again() {
        let directory = tempfile::tempdir().unwrap();
        let node = node(directory.path(), "l");
        let identity = identity(&node, directory.path());
        let settings = node.config.load_full();
        let state = SandboxState::default();
        let events = Arc::clone(&node.events);
        let sandbox = Sandbox::new(&settings.root, &settings.state, identity, state, None, events);
        let mut ledger = Ledger::default();
        let apply = async |ledger: &mut Ledger, serial| {
            let result = sandbox.apply(SandboxFact::Closing).await;
            ledger.note(serial, Some(Object::Sandbox(Arc::clone(&sandbox))), result);
        };
        // Its directory is not there: nothing can be written.
        apply(&mut ledger, 1).await;
        ledger.note(2, None, Ok(()));
        ledger.catch_up(|_| true).await;
        assert!(ledger.tell().is_none());
        crate::store::make_private_directory(&sandbox.places.record).unwrap();
        tokio::time::timeout(WRITE_AGAIN * 5, ledger.due()).await.unwrap();
        ledger.catch_up(|_| true).await;
        assert!(sandbox.places.state().exists());
        assert_eq!((ledger.tell(), ledger.tell()), (Some(2), None));
        let nothing_due = tokio::time::timeout(Duration::from_millis(1), ledger.due());
        assert!(nothing_due.await.is_err());
        apply(&mut ledger, 3).await;
        assert_eq!(ledger.tell(), Some(3));
        // A record that was removed holds nothing up.
        std::fs::remove_dir_all(&sandbox.places.record).unwrap();
        let result = sandbox.apply(SandboxFact::Removing).await;
        assert!(result.is_err());
        ledger.note(4, Some(Object::Sandbox(Arc::clone(&sandbox))), result);
        ledger.catch_up(|_| false).await;
        assert_eq!(ledger.tell(), Some(4));
        node.drain().await;
    }
}
