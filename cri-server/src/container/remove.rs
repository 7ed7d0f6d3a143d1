//! RemoveContainer.

use std::sync::Arc;

use crate::error::Error;
use crate::node::Node;

/// Removes a container and everything of it; kills it if it runs. Unknown: success.
pub async fn remove(node: &Arc<Node>, id: &str) -> Result<(), Error> {
    let _ = (node, id);
    Err(Error::Unimplemented("RemoveContainer"))
}
