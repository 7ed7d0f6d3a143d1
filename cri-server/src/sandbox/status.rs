//! PodSandboxStatus: reads what is published.

use std::sync::Arc;

use super::SandboxView;
use crate::error::{Error, Kind};
use crate::node::Node;

/// A sandbox by its id or a unique prefix of it.
pub fn status(node: &Node, id: &str) -> Result<Arc<SandboxView>, Error> {
    let sandbox = node.sandboxes.find(id, |sandbox| sandbox.view().is_some())?;
    sandbox.view().ok_or_else(|| Error::NotFound { kind: Kind::Sandbox, id: id.to_owned() })
}
