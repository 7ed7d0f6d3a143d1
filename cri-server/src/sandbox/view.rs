//! What List and Status tell of a sandbox: a value published whole, read without any lock. Never written to disk.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::config::SandboxConfig;
use crate::network::Attachment;
use crate::step::StepTime;

/// A sandbox as it was at one moment.
#[derive(Debug, Clone)]
pub struct SandboxView {
    /// 64 lower-case hex digits.
    pub id: String,
    /// As asked for.
    pub config: Arc<SandboxConfig>,
    /// Nanoseconds since the epoch; no two objects of a node have the same.
    pub created_at: i64,
    /// READY: its environment exists and its shim lives.
    pub ready: bool,
    /// The pod's addresses, the primary first; none with the host's network and once it was stopped.
    pub addresses: Vec<IpAddr>,
    /// Pid of the shim, which is in the pod's namespaces, while it lives.
    pub pid: Option<i32>,
    /// Where the network namespace is pinned, when the sandbox has one of its own.
    pub netns: Option<PathBuf>,
    /// How long each step of its making took, in order.
    pub steps: Vec<StepTime>,
    /// What the network gave it.
    pub attachment: Option<Arc<Attachment>>,
    /// Why it is not ready, in words; empty while it is.
    pub reason: String,
}
