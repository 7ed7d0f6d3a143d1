//! PodSandboxStatus: reads what is published.

use std::sync::Arc;

use super::SandboxView;
use crate::error::Error;
use crate::node::Node;

/// A sandbox by its id or a unique prefix of it.
pub fn status(node: &Node, id: &str) -> Result<Arc<SandboxView>, Error> {
    let _ = (node, id);
    Err(Error::Unimplemented("PodSandboxStatus"))
}
