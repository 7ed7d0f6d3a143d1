//! UpdatePodSandboxResources: what a kubelet says of a pod's cgroup is written down. The cgroup is the kubelet's, and so are
//! its limits.

use std::sync::Arc;

use super::state::{PodResources, SandboxFact};
use crate::error::Error;
use crate::node::Node;

/// Writes down what was said last.
pub async fn update(node: &Arc<Node>, id: &str, resources: PodResources) -> Result<(), Error> {
    let sandbox = node.sandboxes.find(id, |sandbox| sandbox.view().is_some())?;
    sandbox.record(SandboxFact::Resized(Box::new(resources)), "resize").await
}
