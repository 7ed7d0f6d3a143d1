//! The time that objects carry: nanoseconds since the epoch, each given out once, since a kubelet tells the attempts
//! of a pod apart by it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Strictly increasing, and as near to the wall clock as that allows.
#[derive(Debug, Default)]
pub struct Clock(AtomicI64);

impl Clock {
    /// A time later than every one given out or seen before.
    pub fn now(&self) -> i64 {
        // A wall clock before 1970 or after 2262 counts as 1970: later than the last one still holds.
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| i64::try_from(since.as_nanos()).ok())
            .unwrap_or(1);
        let last = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| Some(wall.max(last.saturating_add(1))))
            .unwrap_or_else(|last| last);
        wall.max(last.saturating_add(1))
    }

    /// A time found in a record: later ones will be later than it.
    pub fn seen(&self, time: i64) {
        self.0.fetch_max(time, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_goes_back() {
        let clock = Clock::default();
        let mut last = 0;
        for _ in 0..1000 {
            let now = clock.now();
            assert!(now > last);
            last = now;
        }
        clock.seen(last + 1_000_000_000_000);
        assert!(clock.now() > last + 1_000_000_000_000);
    }
}
