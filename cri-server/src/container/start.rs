//! StartContainer.

use std::sync::Arc;

use crate::error::Error;
use crate::node::Node;

/// Runs a created container's program; returns once it runs.
pub async fn start(node: &Arc<Node>, id: &str) -> Result<(), Error> {
    let _ = (node, id);
    Err(Error::Unimplemented("StartContainer"))
}
