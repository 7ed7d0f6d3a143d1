//! RemoveContainer: writes down that it is wanted, ends the container, and removes its record last.

use std::sync::Arc;
use std::time::Duration;

use cove_runtime::protocol::{ContainerId, Request};

use super::end;
use super::live::Container;
use crate::blocking;
use crate::detach::ANSWER_LIMIT;
use crate::error::{Error, Kind};
use crate::events::Event;
use crate::node::Node;
use crate::step::{Operation, Progress, pass};
use crate::store;

/// The operation, for people and fail points.
pub const REMOVE: Operation = Operation {
    name: "RemoveContainer",
    point: "container.remove",
    kind: Kind::Container,
    steps: &["intent", "end", "lock"],
};
/// What Remove, a failed Create and recovery share, for fail points.
pub const ERASE: Operation = Operation {
    name: "RemoveContainer",
    point: "container.erase",
    kind: Kind::Container,
    steps: &["forget", "cgroup", "record"],
};
/// How long a shim may take to forget a container: a few bytes of its memory are all that is at stake.
const FORGET_LIMIT: Duration = Duration::from_secs(2);

/// Removes a container and everything of it; kills it if it runs. Unknown: success.
pub async fn remove(node: &Arc<Node>, id: &str) -> Result<(), Error> {
    match node.containers.find(id, |_| true) {
        Ok(container) => join(node, &container).await,
        Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a container, or joins the call that already does.
pub async fn join(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    node.join(&container.removing, ANSWER_LIMIT, (REMOVE, container.id()), |progress| {
        work(Arc::clone(node), Arc::clone(container), progress)
    })
    .await
}

async fn work(node: Arc<Node>, container: Arc<Container>, progress: Arc<Progress>) -> Result<(), Error> {
    progress.reach("intent").await?;
    if container.places.bundle.exists() {
        container.want(|state| state.removing = true).await;
    }
    container.closing.cancel();
    progress.reach("end").await?;
    end::kill(&node, &container).await?;
    progress.reach("lock").await?;
    let _lock = container.lock.lock().await;
    if node.containers.get(container.id()).is_none() {
        // An unfinished Create undid itself, record and all.
        return Ok(());
    }
    erase(&node, &container, &progress).await
}

/// Removes everything of a container that does not run: the one function that Remove, a failed Create and recovery
/// call. What is gone is done.
pub async fn erase(node: &Arc<Node>, container: &Arc<Container>, progress: &Progress) -> Result<(), Error> {
    progress.enter("forget");
    pass(&ERASE, "forget").await?;
    let sandbox = node.sandboxes.get(&container.identity.sandbox);
    if let Some(shim) = sandbox.as_ref().and_then(|sandbox| sandbox.shim.load_full()) {
        let request = Request::Forget(ContainerId { container: container.id().to_owned() });
        if let Err(error) = shim.ask("forget a container of", request, &[], FORGET_LIMIT).await {
            tracing::debug!(container = container.id(), %error, "the shim did not forget the container");
        }
    }
    progress.enter("cgroup");
    pass(&ERASE, "cgroup").await?;
    node.cgroups.remove(&container.identity.cgroup).await?;
    progress.enter("record");
    pass(&ERASE, "record").await?;
    let (root, bundle) = (node.config.load().root.clone(), container.places.bundle.clone());
    let trash = blocking::run(move || store::move_to_trash(&root, &bundle)).await?;
    node.images.release(container.id());
    node.containers.remove(container.id());
    node.container_names.forget(&container.key(), container.id());
    if let Some(sandbox) = sandbox {
        sandbox.children.leave(container.id());
    }
    if let Some(view) = container.view() {
        node.events.publish(Event::ContainerRemoved(view));
    }
    if let Some(trash) = trash {
        node.empty_trash(trash);
    }
    Ok(())
}
