//! Images: names, registry, pull, store.
//!
//! STUB of the interface that `container` and `api` use; its owner replaces it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why an image operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image of this name, digest or id is present.
    #[error("image {reference:?} is not present: pull it first")]
    NotFound {
        /// As asked for.
        reference: String,
    },
}

/// What an image says of the containers made from it. Every value comes from the image: hostile until checked.
#[derive(Debug, Clone, Default)]
pub struct ImageConfig {
    /// `USER`.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<String>,
    /// `CMD`.
    pub cmd: Vec<String>,
    /// `WORKDIR`.
    pub working_dir: String,
    /// `STOPSIGNAL`, as written.
    pub stop_signal: String,
    /// `VOLUME`s, as written.
    pub volumes: Vec<String>,
}

/// A whole image in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:` and the digest of its config: the same value in all four places of the CRI.
    pub id: String,
    /// `registry/name:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// `registry/name@sha256:…`, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes that its layers take.
    pub size: u64,
    /// Never collected.
    pub pinned: bool,
    /// What it says of containers.
    pub config: ImageConfig,
    /// Directories for an overlay, the uppermost first.
    pub layers: Vec<PathBuf>,
}

/// Keeps an image's layers from being collected while it lives.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The image.
    pub image: Arc<Image>,
}

/// Credentials of one pull. Nothing of it is stored or logged.
#[derive(Clone, Default)]
pub struct Auth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// base64 of `user:password`.
    pub auth: String,
    /// The registry that these are for; empty: the image's own.
    pub server_address: String,
    /// Refresh token.
    pub identity_token: String,
    /// Bearer token.
    pub registry_token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth(…)")
    }
}

/// What images take on disk.
#[derive(Debug, Clone)]
pub struct FsInfo {
    /// Directory on the disk that holds them.
    pub mountpoint: PathBuf,
    /// Bytes.
    pub used_bytes: u64,
    /// Inodes.
    pub inodes_used: u64,
}

/// Every image of this node.
#[derive(Debug)]
pub struct Images {
    root: PathBuf,
}

impl Images {
    /// Opens the store below `root` (the instance's root directory), reads the records of whole images, removes what
    /// an earlier daemon left half-done. `in_use` names the image ids that container records refer to.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        Ok(Self { root: root.to_owned() })
    }

    /// Pulls `reference` and returns the image's id once it is whole, synced and visible. Cancelled by dropping the
    /// future: whole layers are kept.
    pub async fn pull(&self, reference: &str, auth: Option<Auth>) -> Result<Arc<Image>, ImageError> {
        let _ = (auth, &self.root);
        Err(ImageError::NotFound { reference: reference.to_owned() })
    }

    /// Whole images, each once; with a filter, those it names (by reference or id).
    pub fn list(&self, filter: Option<&str>) -> Vec<Arc<Image>> {
        let _ = filter;
        Vec::new()
    }

    /// By tag, digest reference, id, or unique id prefix. Reads memory only.
    pub fn status(&self, reference: &str) -> Option<Arc<Image>> {
        let _ = reference;
        None
    }

    /// Finds an image and keeps it while the lease lives.
    pub fn lease(&self, reference: &str) -> Result<Lease, ImageError> {
        Err(ImageError::NotFound { reference: reference.to_owned() })
    }

    /// A container record refers to this image (by id) until `release`: its layers outlive its names. Idempotent by
    /// container id.
    pub fn hold(&self, image_id: &str, container_id: &str) {
        let _ = (image_id, container_id);
    }

    /// The container record is gone.
    pub fn release(&self, container_id: &str) {
        let _ = container_id;
    }

    /// Removes every name of the image that `reference` names; unknown is success.
    pub async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let _ = reference;
        Ok(())
    }

    /// What images take on disk: counted while unpacking, never by a walk.
    pub fn fs_info(&self) -> FsInfo {
        FsInfo { mountpoint: self.root.clone(), used_bytes: 0, inodes_used: 0 }
    }
}
