//! CreateContainer.

use std::sync::Arc;

use super::config::ContainerConfig;
use crate::error::Error;
use crate::node::Node;

/// Makes a container in a sandbox, or joins the call that already does, and returns its id.
pub async fn create(node: &Arc<Node>, sandbox: &str, config: ContainerConfig) -> Result<String, Error> {
    let _ = (node, sandbox, config);
    Err(Error::Unimplemented("CreateContainer"))
}
