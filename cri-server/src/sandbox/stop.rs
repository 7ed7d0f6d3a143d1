//! StopPodSandbox.

use std::sync::Arc;

use crate::error::Error;
use crate::node::Node;

/// Stops a sandbox and everything in it. Unknown, or stopped already: success.
pub async fn stop(node: &Arc<Node>, id: &str) -> Result<(), Error> {
    let _ = (node, id);
    Err(Error::Unimplemented("StopPodSandbox"))
}
