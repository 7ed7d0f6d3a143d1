//! StopContainer. Takes no lock: see `end`.

use std::sync::Arc;
use std::time::Duration;

use super::end;
use crate::error::Error;
use crate::node::Node;

/// Asks a container to end, and kills it after `grace` (0: at once). Unknown, or not running: success.
pub async fn stop(node: &Arc<Node>, id: &str, grace: Duration) -> Result<(), Error> {
    match node.containers.find(id, |_| true) {
        Ok(container) => end::stop(node, &container, grace).await,
        Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
