//! Ends a session on which nothing has come or gone for too long.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// When something last came or went.
#[derive(Debug)]
pub struct Activity(Mutex<Instant>);

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Activity {
    /// Something comes or goes.
    pub fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until nothing has come or gone for this long.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + limit;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_active_is_not_idle() {
        let (activity, began) = (Activity::default(), Instant::now());
        let work = async {
            tokio::time::sleep(Duration::from_secs(8)).await;
            activity.note();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = activity.idle(Duration::from_secs(10)) => {}
            () = work => {}
        }
        assert_eq!(began.elapsed().as_secs(), 18);
    }
}
