//! RunPodSandbox.

use std::sync::Arc;

use super::config::SandboxConfig;
use crate::error::Error;
use crate::node::Node;

/// Makes a sandbox, or joins the call that already does, and returns its id once it is ready.
pub async fn run(node: &Arc<Node>, config: SandboxConfig) -> Result<String, Error> {
    let _ = (node, config);
    Err(Error::Unimplemented("RunPodSandbox"))
}
