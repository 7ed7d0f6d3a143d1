//! What is on disk of a container, and where: `identity.json` never changes, `state.json` does, `config.json` is the
//! OCI spec, for people and for every later exec.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::ContainerConfig;
use super::image_volume::VolumeImage;

/// What a container is, for its whole life: `identity.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerIdentity {
    /// 64 lower-case hex digits.
    pub id: String,
    /// Id of its sandbox.
    pub sandbox: String,
    /// As asked for.
    #[serde(with = "crate::store::shared")]
    pub config: Arc<ContainerConfig>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// The image's id.
    pub image_id: String,
    /// A digest reference of the image, or its id where it has none.
    pub image_ref: String,
    /// First tag of the image, or the name that was asked for.
    pub image_name: String,
    /// Layer directories of its root file system, the uppermost first.
    pub layers: Vec<PathBuf>,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Absolute path of its log; none when its output is dropped.
    pub log_path: Option<PathBuf>,
    /// The signal that Stop sends.
    pub stop_signal: i32,
    /// Whom it runs as, before its rootfs is asked: as an image's USER is written.
    pub user: String,
    /// Its environment, byte for byte, where JSON cannot hold it in `config.json`.
    pub raw_env: Option<Vec<Vec<u8>>>,
    /// Written layers are never synced.
    pub volatile: bool,
    /// The images of its image volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_images: Vec<VolumeImage>,
}

/// The files of a container: all in `ROOT/containers/ID`.
#[derive(Debug, Clone)]
pub struct Places {
    /// Its directory.
    pub bundle: PathBuf,
}

impl Places {
    /// Those of `id`.
    pub fn new(root: &Path, id: &str) -> Self {
        Self { bundle: root.join("containers").join(id) }
    }

    /// `identity.json`.
    pub fn identity(&self) -> PathBuf {
        self.bundle.join("identity.json")
    }

    /// `state.json`.
    pub fn state(&self) -> PathBuf {
        self.bundle.join("state.json")
    }

    /// `config.json`, the OCI spec.
    pub fn spec(&self) -> PathBuf {
        self.bundle.join("config.json")
    }

    /// The writable layer.
    pub fn upper(&self) -> PathBuf {
        self.bundle.join("upper")
    }

    /// overlayfs's own.
    pub fn work(&self) -> PathBuf {
        self.bundle.join("work")
    }

    /// What the VOLUMEs of its image are, one directory each.
    pub fn volumes(&self) -> PathBuf {
        self.bundle.join("volumes")
    }

    /// Where the overlay is mounted, in the builder's mount namespace only.
    pub fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::tests::config;
    use crate::container::state::{ContainerFact, ContainerState, ResolvedUser};
    use crate::shim::ProcessId;

    /// Records that an earlier daemon wrote must be read by every later one: who changes these texts changes the
    /// version of records.
    #[test]
    fn the_forms_on_disk_are_kept() {
        let identity = ContainerIdentity {
            id: "cd".repeat(32),
            sandbox: "ab".repeat(32),
            config: Arc::new(config()),
            created_at: 8,
            image_id: "sha256:1".into(),
            image_ref: "r/i@sha256:2".into(),
            image_name: "r/i:1".into(),
            layers: vec!["/l/1".into()],
            cgroup: "/cove/x/cd".into(),
            log_path: Some("/logs/c.log".into()),
            stop_signal: 15,
            user: "web:www".into(),
            raw_env: Some(vec![b"A=\xff".to_vec()]),
            volatile: true,
            volume_images: Vec::new(),
        };
        let golden = include_str!("record/identity.json").trim_end();
        assert_eq!(serde_json::to_string(&identity).unwrap(), golden);
        assert_eq!(serde_json::from_str::<ContainerIdentity>(golden).unwrap(), identity);

        let user = ResolvedUser { uid: 1, gid: 2, groups: vec![2, 3] };
        let running = [
            ContainerFact::Created { claimed: true, steps: Vec::new() },
            ContainerFact::Starting,
            ContainerFact::Started { process: ProcessId { pid: 5, started: 9 }, user, at: 10 },
        ];
        let mut state =
            running.into_iter().fold(ContainerState::default(), |state, fact| state.on(fact).unwrap());
        state.stop_by(11);
        let exited = state.clone().on(ContainerFact::Exited { at: 12, code: 137, oom: true }).unwrap();
        let goldens =
            [(state, include_str!("record/running.json")), (exited, include_str!("record/exited.json"))];
        for (state, golden) in goldens {
            assert_eq!(serde_json::to_string(&state).unwrap(), golden.trim_end());
            assert_eq!(serde_json::from_str::<ContainerState>(golden).unwrap(), state);
        }
    }
}
