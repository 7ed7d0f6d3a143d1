//! ContainerStatus: reads what is published.

use std::sync::Arc;

use super::ContainerView;
use crate::error::Error;
use crate::node::Node;

/// A container by its id or a unique prefix of it.
pub fn status(node: &Node, id: &str) -> Result<Arc<ContainerView>, Error> {
    let _ = (node, id);
    Err(Error::Unimplemented("ContainerStatus"))
}
