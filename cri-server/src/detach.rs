//! Runs an operation to its end though its client hangs up, and lets the same request join it.
//!
//! The server drops a call's future when its client goes. What changes the world must not stop half-way, so it runs
//! in a task of its own; the call only waits for it. Two calls of the same operation on the same object are one.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::error::Error;
use crate::step::Progress;

/// When an answer is given although the work goes on: just inside the kubelet's 2 minutes for most calls.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(110);

/// What came of an operation, for everyone who waits for it.
pub type Outcome<T> = Result<T, Arc<Error>>;

/// Waits for `work` as long as a caller may be kept waiting, then says where it is.
pub async fn answer<T>(
    limit: Duration,
    progress: &Progress,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(progress.still_running()),
    }
}

/// Runs `work` in a task that no caller can cancel; a caller waits for it within [`ANSWER_LIMIT`].
pub async fn run<T: Send + 'static>(
    tasks: &TaskTracker,
    limit: Duration,
    progress: Arc<Progress>,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let task = tasks.spawn(work.instrument(tracing::Span::current()));
    answer(limit, &progress, async {
        match task.await {
            Ok(result) => result,
            Err(error) => Err(interrupted(&progress, error)),
        }
    })
    .await
}

fn interrupted(progress: &Progress, error: tokio::task::JoinError) -> Error {
    if error.is_panic() {
        std::panic::resume_unwind(error.into_panic());
    }
    Error::Interrupted {
        operation: progress.operation.name,
        object: format!("{} {}", progress.operation.kind, progress.id),
    }
}

/// One operation of one object: whoever comes while it is under way joins it.
#[derive(Debug)]
pub struct Flight<T>(Mutex<Option<Joinable<T>>>);

/// What is under way, and where its outcome will be.
type Joinable<T> = (Arc<Progress>, watch::Receiver<Option<Outcome<T>>>);

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Joins the operation that is under way, or begins it, and waits for its end within `limit`.
    pub async fn join<F>(
        &self,
        tasks: &TaskTracker,
        limit: Duration,
        begin: impl FnOnce() -> (Arc<Progress>, F),
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let (progress, mut outcome) = self.enter(tasks, begin);
        answer(limit, &progress, async {
            match outcome.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Ok(value))) => Ok(value.clone()),
                Ok(Some(Err(error))) => Err(Error::Joined(Arc::clone(error))),
                Ok(None) | Err(_) => Err(Error::Interrupted {
                    operation: progress.operation.name,
                    object: format!("{} {}", progress.operation.kind, progress.id),
                }),
            }
        })
        .await
    }

    fn enter<F>(&self, tasks: &TaskTracker, begin: impl FnOnce() -> (Arc<Progress>, F)) -> Joinable<T>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut flight = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((progress, outcome)) = flight.as_ref()
            && outcome.borrow().is_none()
            && outcome.has_changed().is_ok()
        {
            return (Arc::clone(progress), outcome.clone());
        }
        let (progress, work) = begin();
        let (sender, outcome) = watch::channel(None);
        *flight = Some((Arc::clone(&progress), outcome.clone()));
        tasks.spawn(
            async move {
                let result = work.await.map_err(Arc::new);
                sender.send_replace(Some(result));
            }
            .instrument(tracing::Span::current()),
        );
        (progress, outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::step::{Operation, Operations};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    fn progress() -> Arc<Progress> {
        let operation = Operation { name: "Test", point: "test", kind: Kind::Container, steps: &[] };
        Operations::default().begin(operation, "x")
    }

    #[tokio::test]
    async fn work_goes_on_without_its_caller() {
        let tasks = TaskTracker::new();
        let (go, done) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let work = {
            let (go, done) = (Arc::clone(&go), Arc::clone(&done));
            async move {
                go.notified().await;
                done.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        };
        let call = run(&tasks, Duration::ZERO, progress(), work).await;
        assert!(matches!(call, Err(Error::StillRunning { .. })));
        go.notify_one();
        tasks.close();
        tasks.wait().await;
        assert_eq!(done.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn callers_join_what_is_under_way_and_begin_anew_after_it() {
        let (tasks, flight) = (TaskTracker::new(), Flight::<usize>::default());
        let runs = Arc::new(AtomicUsize::new(0));
        let begin = || {
            let runs = Arc::clone(&runs);
            (progress(), async move {
                let number = runs.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                if number == 0 { Ok(number) } else { Err(Error::Unavailable("second")) }
            })
        };
        let (a, b) =
            tokio::join!(flight.join(&tasks, ANSWER_LIMIT, begin), flight.join(&tasks, ANSWER_LIMIT, begin));
        assert_eq!((a.unwrap(), b.unwrap()), (0, 0));
        let third = flight.join(&tasks, ANSWER_LIMIT, begin).await.unwrap_err();
        assert!(matches!(third.cause(), Error::Unavailable("second")));
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }
}
