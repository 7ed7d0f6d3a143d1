//! Which operations are in flight, at which step, and how old they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::failpoint;
use crate::error::{Error, Kind};

/// What an operation is called.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// For people: the CRI's name of the call.
    pub name: &'static str,
    /// First part of its fail points: `sandbox.run`.
    pub point: &'static str,
    /// What it works on.
    pub kind: Kind,
    /// Its steps that have a fail point, in their order.
    pub steps: &'static [&'static str],
}

/// Where an operation is.
#[derive(Debug)]
pub struct Progress {
    /// What it is.
    pub operation: Operation,
    /// Id of its object.
    pub id: String,
    /// When it began.
    pub begun: Instant,
    at: Mutex<(&'static str, Instant)>,
}

impl Progress {
    /// A step begins.
    pub fn enter(&self, step: &'static str) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = (step, Instant::now());
    }

    /// A step of an operation that runs to its end begins; its fail point may fail it.
    pub async fn reach(&self, step: &'static str) -> Result<(), Error> {
        self.enter(step);
        failpoint::hit(&self.operation, step, &CancellationToken::new()).await
    }

    /// The step it is at, and for how long.
    pub fn at(&self) -> (&'static str, Duration) {
        let (step, since) = *self.at.lock().unwrap_or_else(PoisonError::into_inner);
        (step, since.elapsed())
    }

    /// The answer to a caller whose time is over while the work goes on.
    pub fn still_running(&self) -> Error {
        let (step, age) = self.at();
        let object = format!("{} {}", self.operation.kind, self.id);
        Error::StillRunning { operation: self.operation.name, object, step, age }
    }
}

/// Every operation in flight.
#[derive(Debug, Default)]
pub struct Operations(Mutex<(u64, BTreeMap<u64, Weak<Progress>>)>);

impl Operations {
    /// Enters an operation; it leaves by being dropped.
    pub fn begin(&self, operation: Operation, id: impl Into<String>) -> Arc<Progress> {
        let now = Instant::now();
        let progress =
            Arc::new(Progress { operation, id: id.into(), begun: now, at: Mutex::new(("begin", now)) });
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.1.retain(|_, progress| progress.strong_count() > 0);
        table.0 += 1;
        let number = table.0;
        table.1.insert(number, Arc::downgrade(&progress));
        progress
    }

    /// The operation of this name on this object, if it is in flight.
    pub fn find(&self, name: &str, id: &str) -> Option<Arc<Progress>> {
        self.in_flight().into_iter().find(|progress| progress.operation.name == name && progress.id == id)
    }

    /// Those in flight, the oldest first.
    pub fn in_flight(&self) -> Vec<Arc<Progress>> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.1.values().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_seen_while_it_lives() {
        let operations = Operations::default();
        let operation =
            Operation { name: "RunPodSandbox", point: "sandbox.run", kind: Kind::Sandbox, steps: &[] };
        let first = operations.begin(operation, "a");
        let second = operations.begin(operation, "b");
        first.enter("network");
        let ids: Vec<_> = operations.in_flight().iter().map(|p| p.id.clone()).collect();
        assert_eq!(ids, ["a", "b"]);
        assert!(matches!(first.still_running(), Error::StillRunning { step: "network", .. }));
        drop(first);
        assert_eq!(operations.in_flight().len(), 1);
        drop(second);
        assert!(operations.in_flight().is_empty());
    }
}
