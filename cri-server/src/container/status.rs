//! ContainerStatus: reads what is published.

use std::sync::Arc;

use super::ContainerView;
use crate::error::{Error, Kind};
use crate::node::Node;

/// A container by its id or a unique prefix of it.
pub fn status(node: &Node, id: &str) -> Result<Arc<ContainerView>, Error> {
    let container = node.containers.find(id, |container| container.view().is_some())?;
    container.view().ok_or_else(|| Error::NotFound { kind: Kind::Container, id: id.to_owned() })
}
