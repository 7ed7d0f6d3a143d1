//! RemovePodSandbox.

use std::sync::Arc;

use crate::error::Error;
use crate::node::Node;

/// Removes a sandbox, its containers and everything of them. Unknown: success.
pub async fn remove(node: &Arc<Node>, id: &str) -> Result<(), Error> {
    let _ = (node, id);
    Err(Error::Unimplemented("RemovePodSandbox"))
}
