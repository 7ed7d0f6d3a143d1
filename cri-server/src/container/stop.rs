//! StopContainer.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::node::Node;

/// Asks a container to end, and kills it after `grace` (0: at once). Unknown, or not running: success.
pub async fn stop(node: &Arc<Node>, id: &str, grace: Duration) -> Result<(), Error> {
    let _ = (node, id, grace);
    Err(Error::Unimplemented("StopContainer"))
}
