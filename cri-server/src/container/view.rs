//! What List and Status tell of a container: a value published whole, read without any lock. Never written to disk.

use std::path::PathBuf;
use std::sync::Arc;

use super::config::{ContainerConfig, Resources};
use super::state::{ContainerPhase, ResolvedUser};
use crate::step::StepTime;

/// A container as it was at one moment.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// 64 lower-case hex digits.
    pub id: String,
    /// Id of its sandbox.
    pub sandbox: String,
    /// As asked for.
    pub config: Arc<ContainerConfig>,
    /// The image's id.
    pub image_id: String,
    /// A digest reference of the image, or its id where it has none.
    pub image_ref: String,
    /// First tag of the image, or the name that was asked for.
    pub image_name: String,
    /// Ids of the images of its image volumes, each with the place of its mount in the request.
    pub volume_images: Vec<(usize, String)>,
    /// Nanoseconds since the epoch; no two objects of a node have the same.
    pub created_at: i64,
    /// Where it is in its life.
    pub phase: ContainerPhase,
    /// Whom its first process runs as, once the rootfs was asked.
    pub user: Option<ResolvedUser>,
    /// Absolute; none when its output is dropped.
    pub log_path: Option<PathBuf>,
    /// Its first process, while it runs.
    pub pid: Option<i32>,
    /// The signal that Stop sends.
    pub stop_signal: i32,
    /// Its limits as they are in force.
    pub resources: Resources,
    /// How long each step of Create and Start took, in order.
    pub steps: Vec<StepTime>,
    /// Its directory, which holds `config.json`, the OCI spec.
    pub bundle: PathBuf,
}
