//! The gate before every call that needs the whole model: shut until recovery has filled it, since a partial list
//! makes a kubelet start every pod a second time.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::Error;

/// How long a call waits for the gate: longer than a recovery of 1,000 pods takes, far below a kubelet's 2 minutes.
const GATE_WAIT: Duration = Duration::from_secs(10);

/// Shut at first, opened once.
#[derive(Debug)]
pub struct Gate(watch::Sender<bool>);

impl Default for Gate {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Gate {
    /// Lets every call through from now on.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    /// Recovery has filled the model.
    pub fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for the gate, at most ten seconds, then refuses with `Unavailable`.
    pub async fn pass(&self) -> Result<(), Error> {
        let mut open = self.0.subscribe();
        match timeout(GATE_WAIT, open.wait_for(|open| *open)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                Err(Error::Unavailable("the daemon is still reading its records: try again in a moment"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn holds_calls_back_until_opened_and_no_longer_than_its_limit() {
        let gate = Arc::new(Gate::default());
        assert!(matches!(gate.pass().await, Err(Error::Unavailable(_))));
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.pass().await }
        });
        tokio::task::yield_now().await;
        gate.open();
        assert!(waiting.await.unwrap().is_ok());
        assert!(gate.is_open() && gate.pass().await.is_ok());
    }
}
