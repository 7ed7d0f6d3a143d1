//! RemovePodSandbox: writes down that it is wanted, then stops the sandbox, removes its containers, and its record
//! last.

use std::sync::Arc;

use super::applier::children;
use super::live::Sandbox;
use super::state::SandboxFact;
use super::stop;
use crate::blocking;
use crate::container;
use crate::detach::ANSWER_LIMIT;
use crate::error::{Error, Kind};
use crate::events::Event;
use crate::node::Node;
use crate::step::{Operation, Progress};
use crate::store;

/// The operation, for people and fail points.
pub const REMOVE: Operation = Operation {
    name: "RemovePodSandbox",
    point: "sandbox.remove",
    kind: Kind::Sandbox,
    steps: &["intent", "lock", "stop", "containers", "record"],
};

/// Removes a sandbox, its containers and everything of them. Unknown: success.
pub async fn remove(node: &Arc<Node>, id: &str) -> Result<(), Error> {
    let sandbox = match node.sandboxes.find(id, |_| true) {
        Ok(sandbox) => sandbox,
        Err(Error::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    join(node, &sandbox).await
}

/// Removes a sandbox, or joins the call that already does.
pub async fn join(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    node.join(&sandbox.removing, ANSWER_LIMIT, (REMOVE, sandbox.id()), |progress| {
        work(Arc::clone(node), Arc::clone(sandbox), progress)
    })
    .await
}

async fn work(node: Arc<Node>, sandbox: Arc<Sandbox>, progress: Arc<Progress>) -> Result<(), Error> {
    progress.reach("intent").await?;
    stop::close(&sandbox, SandboxFact::Removing).await;
    progress.reach("lock").await?;
    let _lock = sandbox.lock.lock().await;
    if node.sandboxes.get(sandbox.id()).is_none() {
        // An unfinished Run undid itself, record and all.
        return Ok(());
    }
    progress.reach("stop").await?;
    stop::join(&node, &sandbox).await?;
    progress.reach("containers").await?;
    for child in children(&node, &sandbox) {
        container::remove::join(&node, &child).await?;
    }
    progress.reach("record").await?;
    erase(&node, &sandbox).await
}

/// Removes the record of a sandbox that is down, and with it the sandbox.
pub async fn erase(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let record = sandbox.places.record.clone();
    let root = node.config.load().root.clone();
    blocking::run(move || match store::move_to_trash(&root, &record)? {
        Some(trash) => store::remove_tree(&trash),
        None => Ok(()),
    })
    .await?;
    node.sandboxes.remove(sandbox.id());
    node.sandbox_names.forget(sandbox.name(), sandbox.id());
    if let Some(view) = sandbox.view() {
        node.events.publish(Event::SandboxRemoved(view));
    }
    Ok(())
}
