//! Named steps of an operation: each has a span, a duration that an operator can read, a place where the operation
//! gives up when its object is to go, and a fail point for tests.

mod failpoint;
mod list;
mod progress;

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub(crate) use failpoint::pass;
pub(crate) use list::points;
pub(crate) use progress::{Operation, Operations, Progress};

use crate::error::Error;

/// How long a step took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTime {
    /// The step.
    pub name: Cow<'static, str>,
    /// How long it took.
    pub duration: Duration,
}

/// The steps of one running operation.
#[derive(Debug)]
pub struct Steps {
    progress: Arc<Progress>,
    closing: CancellationToken,
    times: Vec<StepTime>,
    /// They are what the operation is at, for whoever looks.
    shown: bool,
}

impl Steps {
    /// `closing` is set when the object is to be stopped or removed.
    pub fn new(progress: Arc<Progress>, closing: CancellationToken) -> Self {
        Self { progress, closing, times: Vec::new(), shown: true }
    }

    /// Steps that go on beside these, which alone are shown: those that can take long are to be these.
    pub fn beside(&self) -> Self {
        let (progress, closing) = (Arc::clone(&self.progress), self.closing.clone());
        Self { progress, closing, times: Vec::new(), shown: false }
    }

    /// Takes the durations of what went on beside.
    pub fn join(&mut self, beside: Self) {
        self.times.extend(beside.times);
    }

    /// A step that may be left at any wait: nothing it does goes on after that, or what goes on ends with the shim.
    pub async fn step<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let closing = self.closing.clone();
        let given_up = self.given_up(name);
        self.timed(name, async move {
            tokio::select! {
                biased;
                () = closing.cancelled() => Err(given_up),
                result = work => result,
            }
        })
        .await
    }

    /// A step that runs to its end once begun, since undoing must not meet it half-way. It must be short.
    pub async fn whole<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.go_on(name)?;
        let result = self.timed(name, work).await?;
        self.go_on(name).map(|()| result)
    }

    /// The durations so far, in order.
    pub fn times(&self) -> &[StepTime] {
        &self.times
    }

    /// The operation may go on: nobody wants its object gone.
    fn go_on(&self, step: &'static str) -> Result<(), Error> {
        if self.closing.is_cancelled() { Err(self.given_up(step)) } else { Ok(()) }
    }

    fn given_up(&self, step: &'static str) -> Error {
        Error::Closing {
            operation: self.progress.operation.name,
            kind: self.progress.operation.kind,
            id: self.progress.id.clone(),
            step,
        }
    }

    async fn timed<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        if self.shown {
            self.progress.enter(name);
        }
        let begun = Instant::now();
        let closing = self.closing.clone();
        let operation = self.progress.operation;
        let result = async move {
            failpoint::hit(&operation, name, &closing).await?;
            work.await
        }
        .instrument(tracing::debug_span!("step", name))
        .await;
        let duration = begun.elapsed();
        self.times.push(StepTime { name: Cow::Borrowed(name), duration });
        match result {
            Ok(value) => Ok(value),
            // It says itself where it gave up.
            Err(error @ Error::Closing { .. }) => Err(error),
            Err(error) => {
                Err(error.at(name, format!("{} {}", self.progress.operation.kind, self.progress.id)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const OPERATION: Operation =
        Operation { name: "RunTest", point: "test.run", kind: Kind::Sandbox, steps: &[] };

    fn steps(closing: &CancellationToken) -> Steps {
        Steps::new(Operations::default().begin(OPERATION, "abc"), closing.clone())
    }

    #[tokio::test]
    async fn names_the_step_that_failed_and_keeps_its_time() {
        let mut steps = steps(&CancellationToken::new());
        steps.step("first", async { Ok(()) }).await.unwrap();
        let error =
            steps.whole("second", async { Err::<(), _>(Error::Unavailable("no")) }).await.unwrap_err();
        assert_eq!(error.to_string(), "step second of sandbox abc: no");
        assert!(matches!(error.cause(), Error::Unavailable("no")));
        let names: Vec<_> = steps.times().iter().map(|time| time.name.as_ref()).collect();
        assert_eq!(names, ["first", "second"]);
    }

    #[tokio::test]
    async fn what_goes_on_beside_is_timed_and_not_shown() {
        let mut steps = steps(&CancellationToken::new());
        let mut beside = steps.beside();
        let at = |steps: &Steps| steps.progress.at().0;
        steps.step("long", async { Ok(()) }).await.unwrap();
        beside.step("short", async { Ok(()) }).await.unwrap();
        assert_eq!(at(&steps), "long");
        steps.join(beside);
        let names: Vec<_> = steps.times().iter().map(|time| time.name.as_ref()).collect();
        assert_eq!(names, ["long", "short"]);
    }

    #[tokio::test]
    async fn gives_up_at_a_wait_but_ends_a_whole_step_first() {
        let closing = CancellationToken::new();
        let mut steps = steps(&closing);
        let stop = closing.clone();
        let mut ended = false;
        let done = &mut ended;
        let whole = steps
            .whole("whole", async {
                stop.cancel();
                tokio::task::yield_now().await;
                *done = true;
                Ok(())
            })
            .await;
        assert!(matches!(whole, Err(Error::Closing { step: "whole", .. })));
        assert!(ended);
        let waits = steps.step("waits", std::future::pending::<Result<(), Error>>()).await;
        assert!(matches!(waits, Err(Error::Closing { step: "waits", .. })));
    }
}
