//! Waiting for a condition, never for a fixed time.

use std::future::Future;
use std::time::{Duration, Instant};

use crate::Outcome;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// Looks until `probe` gives a value; after `limit` fails with the text of what was waited for.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Outcome<Option<T>>) -> Outcome<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            return Err(format!("waited {limit:?} for {what}").into());
        }
        std::thread::sleep(INTERVAL);
    }
}

/// The same for a probe that awaits.
pub async fn until_async<T, F: Future<Output = Outcome<Option<T>>>>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> F,
) -> Outcome<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = probe().await? {
            return Ok(value);
        }
        if Instant::now() >= end {
            return Err(format!("waited {limit:?} for {what}").into());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
