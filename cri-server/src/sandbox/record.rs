//! What is on disk of a sandbox, and where: `identity.json` never changes, `state.json` does, `attachment.json` is
//! written before the pod is attached, and that of CNI synced, so that no power loss can leak an address.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::SandboxConfig;
use crate::store::recover::UNREADABLE;

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

    /// Where recovery puts an `attachment.json` that cannot be read.
    pub fn lost_attachment(&self) -> PathBuf {
        self.attachment().with_extension(UNREADABLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::files::tests::config;
    use crate::sandbox::state::{SandboxFact, SandboxState};
    use crate::shim::ProcessId;

    /// Records that an earlier daemon wrote must be read by every later one: who changes these texts changes the
    /// version of records.
    #[test]
    fn the_forms_on_disk_are_kept() {
        let identity = SandboxIdentity {
            id: "ab".repeat(32),
            config: Arc::new(config()),
            created_at: 7,
            netns: Some("/run/netns/cove-x".into()),
            cgroup: "/cove/x".into(),
            own_cgroup: true,
            shm_size: 67_108_864,
            volatile: true,
        };
        let golden = include_str!("record/identity.json").trim_end();
        assert_eq!(serde_json::to_string(&identity).unwrap(), golden);
        assert_eq!(serde_json::from_str::<SandboxIdentity>(golden).unwrap(), identity);

        let facts = [SandboxFact::Launched(ProcessId { pid: 5, started: 9 }), SandboxFact::Closing];
        let earlier = SandboxState { reached: "cgroup".into(), init: Some(6), ..SandboxState::default() };
        let state = facts.into_iter().fold(earlier, |state, fact| state.on(fact).unwrap());
        let golden = include_str!("record/state.json").trim_end();
        assert_eq!(serde_json::to_string(&state).unwrap(), golden);
        assert_eq!(serde_json::from_str::<SandboxState>(golden).unwrap(), state);
    }
}
