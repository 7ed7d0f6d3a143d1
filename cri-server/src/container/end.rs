//! How a container is brought to its end: its stop signal once, SIGKILL for its whole cgroup when its time is over,
//! and the wait for the fact that it has ended.
//!
//! One task a container does it, whoever asks and however often; a later wish can only bring the end nearer.

use std::sync::Arc;
use std::time::Duration;

use cove_runtime::protocol::{Request, Signal};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::{sleep, timeout};

use super::live::Container;
use super::state::{ContainerFact, Stage};
use super::zombie;
use crate::blocking;
use crate::detach::ANSWER_LIMIT;
use crate::error::{Error, Kind};
use crate::node::Node;
use crate::step::{Operation, Progress};

/// The operation, for people and fail points.
pub const STOP: Operation = Operation {
    name: "StopContainer",
    point: "container.stop",
    kind: Kind::Container,
    steps: &["signal", "grace", "kill"],
};
/// How long the end may take after SIGKILL: what takes longer waits in the kernel (features.md 5.5).
const EXIT_LIMIT: Duration = Duration::from_secs(10);
/// Between two kills: a fork may have escaped the first on cgroup v1.
const KILL_AGAIN: Duration = Duration::from_millis(500);
/// How long a shim may take to tell of an end that /proc shows already.
const TELL_LIMIT: Duration = Duration::from_secs(1);
/// How long a shim may take to pass a signal on.
const SIGNAL_LIMIT: Duration = Duration::from_secs(2);
/// SIGKILL, and the exit code that it leaves.
const KILLED: (i32, i32) = (9, 137);

/// Kills a container and waits for its end. Not running is done.
pub async fn kill(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    stop(node, container, Duration::ZERO).await
}

/// Asks a container to end, kills it after `grace`, and waits for its end. Not running is done.
pub async fn stop(node: &Arc<Node>, container: &Arc<Container>, grace: Duration) -> Result<(), Error> {
    let state = container.state();
    let starting = container.is_starting() || state.stage == Stage::Starting;
    if !state.may_run() && !starting {
        return Ok(());
    }
    let kill_at = now().saturating_add(u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX));
    container.want(move |state| state.stop_by(kill_at)).await;
    if starting {
        // A first process at its gate is pid 1 and ignores SIGTERM: what is not running yet is killed at once.
        container.closing.cancel();
    }
    join(node, container, grace.saturating_add(ANSWER_LIMIT)).await
}

/// Goes on with a stop that an earlier daemon began.
pub async fn go_on(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    join(node, container, Duration::MAX).await
}

async fn join(node: &Arc<Node>, container: &Arc<Container>, limit: Duration) -> Result<(), Error> {
    node.join(&container.ending, limit, (STOP, container.id()), |progress| {
        drive(Arc::clone(node), Arc::clone(container), progress)
    })
    .await
}

/// Nanoseconds of CLOCK_BOOTTIME.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    // Neither is ever negative: the clock counts from the host's start.
    seconds.unwrap_or_default().saturating_mul(1_000_000_000).saturating_add(nanoseconds.unwrap_or_default())
}

async fn drive(node: Arc<Node>, container: Arc<Container>, progress: Arc<Progress>) -> Result<(), Error> {
    progress.reach("signal").await?;
    signal(&node, &container).await?;
    progress.reach("grace").await?;
    let mut changes = container.changes();
    let mut ended = false;
    loop {
        changes.mark_unchanged();
        let state = container.state();
        if !state.may_run() && !container.is_starting() {
            return Ok(());
        }
        let kill_at = state.stop.map_or(0, |intent| intent.kill_at);
        let left = if state.process().is_some() { kill_at.saturating_sub(now()) } else { 0 };
        if left == 0 {
            break;
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = sleep(Duration::from_nanos(left).min(TELL_LIMIT)) => {
                // A shim that is stopped leaves it a zombie, and says nothing: there is nothing more to wait for.
                if std::mem::replace(&mut ended, unreaped(&container).await.is_some()) && ended {
                    break;
                }
            }
        }
    }
    progress.reach("kill").await?;
    kill_all(&node, &container).await
}

/// Sends the stop signal, unless it was sent before or there is no time for it.
async fn signal(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    let state = container.state();
    let wanted = state.stop.is_some_and(|intent| !intent.signal_sent && intent.kill_at > now());
    if !wanted || state.process().is_none() {
        return Ok(());
    }
    // Written first: after a crash it is better not sent than sent twice; the kill comes in any case.
    container
        .want(|state| {
            if let Some(intent) = &mut state.stop {
                intent.signal_sent = true;
            }
        })
        .await;
    let number = container.identity.stop_signal;
    match container.signal(number) {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(error) => {
            return Err(Error::system("send stop signal to", format!("container {}", container.id()), error));
        }
    }
    // No pidfd of it yet: its shim has one.
    let shim = node.sandboxes.get(&container.identity.sandbox).and_then(|sandbox| sandbox.shim.load_full());
    if let Some(shim) = shim {
        let request = Request::Signal(Signal { container: container.id().to_owned(), signal: number });
        if let Err(error) = shim.ask("signal a container of", request, &[], SIGNAL_LIMIT).await {
            tracing::warn!(container = container.id(), %error, "stop signal was not sent; the kill will come");
        }
    }
    Ok(())
}

async fn kill_all(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    let ended = timeout(EXIT_LIMIT, async {
        let mut waited = Duration::ZERO;
        loop {
            node.cgroups.kill(&container.identity.cgroup).await?;
            // By pidfd as well: a process that was moved out of its cgroup is still ours.
            container
                .signal(KILLED.0)
                .map_err(|error| Error::system("kill", format!("container {}", container.id()), error))?;
            let gone = container.wait_until(|state| !state.may_run());
            if timeout(KILL_AGAIN, gone).await.is_ok() {
                return Ok(());
            }
            waited += KILL_AGAIN;
            if waited >= TELL_LIMIT && unseen_end(node, container).await? {
                return Ok(());
            }
        }
    });
    match ended.await {
        Ok(result) => result,
        Err(_) => {
            let state = blocking::run({
                let process = container.state().process();
                move || process.and_then(|process| process_state(process.pid)).unwrap_or('?')
            })
            .await;
            let object = format!(
                "container {} (after SIGKILL its first process is in state {state}; D means that it waits in the \
                 kernel and cannot be ended)",
                container.id()
            );
            Err(Error::TimedOut { operation: "the end", object, limit: EXIT_LIMIT })
        }
    }
}

/// The shim says nothing (it may be stopped itself), but the kernel shows that the container has ended: that is a fact,
/// too. Its exit code is what the kernel keeps of it, or that of the SIGKILL which it was sent.
async fn unseen_end(node: &Arc<Node>, container: &Arc<Container>) -> Result<bool, Error> {
    let state = container.state();
    let code = unreaped(container).await;
    let ended = match state.process() {
        Some(_) if code.is_some() => true,
        Some(process) => {
            blocking::run(move || {
                !process.is_alive().unwrap_or(true) || process_state(process.pid) == Some('Z')
            })
            .await
        }
        None if state.stage == Stage::Unknown => node.cgroups.is_empty(&container.identity.cgroup).await?,
        None => false,
    };
    if ended {
        let at = node.clock.now();
        let code = code.unwrap_or(KILLED.1);
        container.apply_anyway(ContainerFact::Exited { at, code, oom: false }).await;
    }
    Ok(ended)
}

/// The exit code of a first process that has ended and that its shim has not taken.
async fn unreaped(container: &Arc<Container>) -> Option<i32> {
    let process = container.state().process()?;
    blocking::run(move || {
        let code = zombie::exit_code(process.pid);
        // Looked at after it was read: another process of this pid is not it.
        code.filter(|_| process.is_alive().unwrap_or(false))
    })
    .await
}

/// Field 3 of /proc/PID/stat.
fn process_state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_process_is_not_a_zombie_and_the_clock_runs() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(matches!(process_state(me), Some('R' | 'S' | 'D')));
        assert_eq!(process_state(i32::MAX), None);
        let before = now();
        assert!(before > 0 && now() >= before);
    }
}
