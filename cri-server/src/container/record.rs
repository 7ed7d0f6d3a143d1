//! What is on disk of a container, and where: `identity.json` never changes, `state.json` does, `config.json` is the
//! OCI spec, for people and for every later exec.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::ContainerConfig;

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

    /// Where the overlay is mounted, in the builder's mount namespace only.
    pub fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }
}
