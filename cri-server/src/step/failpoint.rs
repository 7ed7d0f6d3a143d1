//! Fail points: with the feature `failpoints`, the environment makes the daemon fail, die or stop at a named step.
//!
//! `COVE_FAILPOINT=sandbox.run.network=error:1,container.start.exec=pause` with the actions `error`, `abort`,
//! `pause` (until the object is to go) and `sleep:MILLISECONDS`; `:N` after `error`, `abort` and `pause` means the
//! first N times only. Compiled out of a release.

use tokio_util::sync::CancellationToken;

use super::Operation;
use crate::error::Error;

/// Does what the environment says of this step; without the feature, nothing. A step that its operation does not list
/// would be forgotten by the tests that visit each.
pub(super) async fn hit(
    operation: &Operation,
    step: &'static str,
    closing: &CancellationToken,
) -> Result<(), Error> {
    debug_assert!(
        super::list::knows(operation, step),
        "{}.{step} is not in the list of steps",
        operation.point
    );
    #[cfg(feature = "failpoints")]
    act(&format!("{}.{step}", operation.point), step, closing).await?;
    #[cfg(not(feature = "failpoints"))]
    let _ = (operation, step, closing);
    Ok(())
}

/// The fail point of a step that is none of an operation in flight, but of what several of them share.
pub(crate) async fn pass(operation: &Operation, step: &'static str) -> Result<(), Error> {
    hit(operation, step, &CancellationToken::new()).await
}

#[cfg(feature = "failpoints")]
async fn act(point: &str, step: &'static str, closing: &CancellationToken) -> Result<(), Error> {
    match active::action(point) {
        None => Ok(()),
        Some(active::Action::Error) => {
            Err(Error::Failure { step: step.to_owned(), detail: format!("fail point {point}"), errno: 0 })
        }
        Some(active::Action::Abort) => std::process::abort(),
        Some(active::Action::Pause) => {
            tracing::info!(point, "fail point holds");
            closing.cancelled().await;
            Ok(())
        }
        Some(active::Action::Sleep(duration)) => {
            tracing::info!(point, "fail point holds");
            tokio::time::sleep(duration).await;
            Ok(())
        }
    }
}

#[cfg(feature = "failpoints")]
mod active {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};
    use std::time::Duration;

    /// What happens at a step.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) enum Action {
        /// The step fails.
        Error,
        /// The daemon dies.
        Abort,
        /// The step waits until its object is to go.
        Pause,
        /// The step takes longer.
        Sleep(Duration),
    }

    /// Points of `COVE_FAILPOINT` with how often they still act.
    static POINTS: LazyLock<Mutex<HashMap<String, (Action, u64)>>> =
        LazyLock::new(|| Mutex::new(parse(&std::env::var("COVE_FAILPOINT").unwrap_or_default())));

    /// What to do at `point` now.
    pub(super) fn action(point: &str) -> Option<Action> {
        let mut points = POINTS.lock().unwrap_or_else(PoisonError::into_inner);
        let (action, left) = points.get_mut(point)?;
        *left = left.checked_sub(1)?;
        Some(*action)
    }

    /// Entries that say nothing known are left out: this is for tests.
    fn parse(text: &str) -> HashMap<String, (Action, u64)> {
        let entry = |part: &str| {
            let (point, action) = part.split_once('=')?;
            let (verb, number) = match action.split_once(':') {
                Some((verb, number)) => (verb, Some(number.parse::<u64>().ok()?)),
                None => (action, None),
            };
            let action = match verb {
                "error" => Action::Error,
                "abort" => Action::Abort,
                "pause" => Action::Pause,
                "sleep" => {
                    let sleep = Action::Sleep(Duration::from_millis(number?));
                    return Some((point.trim().to_owned(), (sleep, u64::MAX)));
                }
                _ => return None,
            };
            Some((point.trim().to_owned(), (action, number.unwrap_or(u64::MAX))))
        };
        text.split(',').filter_map(entry).collect()
    }

    #[test]
    fn reads_actions_and_counts() {
        let points = parse("a.b=error:2,c=pause,d=sleep:5,e=what,f");
        assert_eq!(points["a.b"], (Action::Error, 2));
        assert_eq!(points["c"], (Action::Pause, u64::MAX));
        assert_eq!(points["d"], (Action::Sleep(Duration::from_millis(5)), u64::MAX));
        assert_eq!(points.len(), 3);
    }
}
