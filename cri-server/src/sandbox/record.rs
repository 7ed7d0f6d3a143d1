//! What is on disk of a sandbox, and where: `identity.json` never changes, `state.json` does, `attachment.json` is
//! written once, synced, before the pod is attached, so that no power loss can leak an address.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::SandboxConfig;

/// What a sandbox is, for its whole life: `identity.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxIdentity {
    /// 64 lower-case hex digits.
    pub id: String,
    /// As asked for.
    #[serde(with = "crate::store::shared")]
    pub config: Arc<SandboxConfig>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Where its network namespace is pinned; none with the host's network.
    pub netns: Option<PathBuf>,
    /// Parent cgroup of its containers.
    pub cgroup: PathBuf,
    /// The parent is ours to remove; else the kubelet's.
    pub own_cgroup: bool,
    /// Bytes of its /dev/shm; 0: the host's is used.
    pub shm_size: u64,
    /// Writable layers are never synced.
    pub volatile: bool,
}

impl SandboxIdentity {
    /// The cgroup of the init of its shared PID namespace.
    pub fn init_cgroup(&self) -> PathBuf {
        self.cgroup.join(&self.id)
    }
}

/// The directories of a sandbox.
#[derive(Debug, Clone)]
pub struct Places {
    /// Records: `ROOT/sandboxes/ID`.
    pub record: PathBuf,
    /// What dies with the host: `STATE/sandboxes/ID`.
    pub run: PathBuf,
}

impl Places {
    /// Those of `id`.
    pub fn new(root: &Path, state: &Path, id: &str) -> Self {
        Self { record: root.join("sandboxes").join(id), run: state.join("sandboxes").join(id) }
    }

    /// `identity.json`.
    pub fn identity(&self) -> PathBuf {
        self.record.join("identity.json")
    }

    /// `state.json`.
    pub fn state(&self) -> PathBuf {
        self.record.join("state.json")
    }

    /// `attachment.json`.
    pub fn attachment(&self) -> PathBuf {
        self.record.join("attachment.json")
    }
}
