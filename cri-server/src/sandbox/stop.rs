//! StopPodSandbox. Takes no lock: it writes down that the sandbox is to close, which makes an unfinished Run give up
//! and undo itself, ends the containers, and takes down what the record says.

use std::sync::Arc;
use std::time::Duration;

use super::applier::children;
use super::live::Sandbox;
use super::state::{SandboxFact, Stage};
use super::teardown::teardown;
use crate::container::end;
use crate::detach::ANSWER_LIMIT;
use crate::error::{Error, Kind};
use crate::node::Node;
use crate::step::{Operation, Progress};

/// The operation, for people and fail points.
pub const STOP: Operation = Operation {
    name: "StopPodSandbox",
    point: "sandbox.stop",
    kind: Kind::Sandbox,
    steps: &["intent", "undo", "containers", "teardown"],
};
/// How long an unfinished Run or Create may take to give up and undo itself: its longest step, and a teardown.
const UNDO_LIMIT: Duration = Duration::from_secs(60);

/// Stops a sandbox and everything in it. Unknown, or stopped already: success.
pub async fn stop(node: &Arc<Node>, id: &str) -> Result<(), Error> {
    let sandbox = match node.sandboxes.find(id, |_| true) {
        Ok(sandbox) => sandbox,
        Err(Error::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    join(node, &sandbox).await
}

/// Stops a sandbox, or joins the call that already does.
pub async fn join(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    node.join(&sandbox.stopping, ANSWER_LIMIT, (STOP, sandbox.id()), |progress| {
        work(Arc::clone(node), Arc::clone(sandbox), progress)
    })
    .await
}

async fn work(node: Arc<Node>, sandbox: Arc<Sandbox>, progress: Arc<Progress>) -> Result<(), Error> {
    if sandbox.state().down {
        return Ok(());
    }
    progress.reach("intent").await?;
    close(&sandbox, SandboxFact::Closing).await;
    progress.reach("undo").await?;
    let undone = tokio::time::timeout(UNDO_LIMIT, sandbox.wait_until(|state| state.stage != Stage::Making));
    if undone.await.is_err() || !sandbox.children.settled(UNDO_LIMIT).await {
        let object = format!("what is being made in sandbox {}", sandbox.id());
        return Err(Error::TimedOut { operation: "the undoing", object, limit: UNDO_LIMIT });
    }
    progress.reach("containers").await?;
    let containers = children(&node, &sandbox);
    let ended = futures_util::future::join_all(containers.iter().map(|one| end::kill(&node, one))).await;
    // Teardown tries each of them again and tells what is wrong; this only says that there is something.
    let trouble = ended.iter().filter(|result| result.is_err()).count();
    if trouble > 0 {
        tracing::warn!(sandbox = sandbox.id(), trouble, "containers did not end");
    }
    progress.reach("teardown").await?;
    teardown(&node, &sandbox).await
}

/// Writes down that the sandbox is to close, then lets nothing new begin.
pub async fn close(sandbox: &Arc<Sandbox>, fact: SandboxFact) {
    // Before its record is written, or while it is removed, there is nothing to find after a crash.
    if sandbox.places.record.exists() {
        sandbox.apply_anyway(fact).await;
    }
    sandbox.children.close();
    sandbox.closing.cancel();
}
