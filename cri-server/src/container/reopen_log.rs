//! ReopenContainerLog: after a kubelet renamed a log, the shim goes on in a new file of the old name. No lock: a log is
//! rotated while a container is stopped, too.

use std::sync::Arc;
use std::time::Duration;

use cove_runtime::protocol::{ContainerId, Request};

use super::log;
use super::start::sandbox_of;
use crate::blocking;
use crate::error::{Error, Kind};
use crate::node::Node;

/// How long a shim may take: it finishes the line that it writes.
const REOPEN_LIMIT: Duration = Duration::from_secs(10);

/// Opens the log anew and hands it to the shim. A container that does not run gets no new file: a kubelet would take it
/// for the log of a next attempt.
pub async fn reopen(node: &Arc<Node>, id: &str) -> Result<(), Error> {
    let container = node.containers.find(id, |container| container.view().is_some())?;
    let state = container.state();
    if state.process().is_none() {
        return Err(Error::WrongState {
            kind: Kind::Container,
            id: container.id().to_owned(),
            state: state.stage.word(),
            needed: "only the log of a running container can be reopened",
        });
    }
    let sandbox = sandbox_of(node, &container)?;
    let shim = sandbox.adopted_shim().await?;
    let config = &container.identity.config;
    // Output that is dropped has no log to rotate.
    let (Some(directory), Some(relative)) =
        (sandbox.identity.config.log_directory.clone(), config.log_path.clone())
    else {
        return Ok(());
    };
    let log = blocking::run(move || log::open(&directory, &relative)).await?;
    let request = Request::ReopenLog(ContainerId { container: container.id().to_owned() });
    shim.ask("reopen the log of a container of", request, &[log], REOPEN_LIMIT).await.map(drop)
}
