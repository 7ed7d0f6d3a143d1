//! ExecSync.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::node::Node;

/// What a command said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// What it wrote; together with `stderr` below a kubelet's message limit.
    pub stdout: Vec<u8>,
    /// See `stdout`.
    pub stderr: Vec<u8>,
    /// Exit code, or 128 + signal.
    pub code: i32,
}

/// Runs a command in a running container. Dropping the future kills it; so does `timeout`.
pub async fn exec_sync(
    node: &Arc<Node>,
    id: &str,
    cmd: Vec<String>,
    timeout: Option<Duration>,
) -> Result<ExecOutput, Error> {
    let _ = (node, id, cmd, timeout);
    Err(Error::Unimplemented("ExecSync"))
}
