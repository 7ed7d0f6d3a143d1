//! The one door from async code to system calls that can wait: disk, mounts, cgroups, netlink.
//!
//! Paths on users' volumes never come here: they can hang for ever, and only a builder may touch them.

use std::panic;

/// Runs `work` on a thread that may wait, and returns its value. A panic in it goes on in the caller.
///
/// The work runs to its end even when the caller's future is dropped: whoever can be cancelled must not start
/// anything here that an undoing could meet half-way (see `Steps::whole`).
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
        // The runtime is shutting down: the caller's task ends at this await, too.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn hands_on_values_and_panics() {
        assert_eq!(super::run(|| 7).await, 7);
        let task = tokio::spawn(super::run(|| panic!("as meant")));
        assert!(task.await.unwrap_err().is_panic());
    }
}
