//! Why an image operation failed. Every text names the reference, the host, the descriptor or the path that it is about.

use std::path::PathBuf;
use std::sync::Arc;

/// Why an image operation failed. Clonable, since everyone who waits for one pull gets its error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// No image of this name, digest or id is present.
    #[error("image {reference:?} is not present: pull it first")]
    NotFound {
        /// As asked for.
        reference: String,
    },
    /// A prefix that more than one image id begins with.
    #[error("image id {prefix:?} is ambiguous: {count} ids begin with it; give more digits")]
    Ambiguous {
        /// As asked for.
        prefix: String,
        /// How many match.
        count: usize,
    },
    /// Not a reference.
    #[error("image reference {reference:?}: {reason}")]
    InvalidReference {
        /// As asked for, cut to a bounded length.
        reference: String,
        /// What is wrong, and what would be right.
        reason: &'static str,
    },
    /// The credentials of the request cannot be used.
    #[error("credentials for {host}: {reason}")]
    InvalidAuth {
        /// The registry.
        host: String,
        /// What is wrong. Never holds any part of the credentials.
        reason: &'static str,
    },
    /// A file that says where a registry is asked cannot be used.
    #[error("{}: {reason}", path.display())]
    Hosts {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry could not be reached, or stopped answering. The kubelet knows this text by its first word, and only
    /// when the gRPC code is Unknown (features.md D3).
    #[error("RegistryUnavailable: pull of {reference}: {doing} at {host}: {cause}")]
    RegistryUnavailable {
        /// The reference that is pulled.
        reference: String,
        /// Scheme, host and port that were asked.
        host: String,
        /// What was asked for (a manifest, a blob, by tag or digest).
        doing: String,
        /// What went wrong, with every cause beneath.
        cause: String,
    },
    /// The registry answered, but not with what was asked for.
    #[error("pull of {reference}: {doing} at {host}: the registry answered {status}{}", detail_text(detail))]
    Registry {
        /// The reference that is pulled.
        reference: String,
        /// Scheme, host and port that were asked.
        host: String,
        /// What was asked for.
        doing: String,
        /// The HTTP status.
        status: u16,
        /// Codes and messages of the registry's error document, bounded and printable. May be empty.
        detail: String,
    },
    /// What the registry sent is not what its digest, size or form says, or is beyond a limit.
    #[error("pull of {reference}: {descriptor} from {host}: {reason}")]
    Content {
        /// The reference that is pulled.
        reference: String,
        /// Scheme, host and port that sent it.
        host: String,
        /// What it is, with its digest.
        descriptor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer could not be unpacked.
    #[error("pull of {reference}: {descriptor}: unpack into {directory:?}: {source}")]
    Layer {
        /// The reference that is pulled.
        reference: String,
        /// The layer, with its digest and size.
        descriptor: String,
        /// Where its files were being written.
        directory: PathBuf,
        /// Why, with entry, path and errno.
        source: Arc<cove_layer::LayerError>,
    },
    /// An archive that was to be imported is not what it says, lacks something, or is beyond a limit.
    #[error("import: {part}: {reason}")]
    Archive {
        /// The member or the image that it is about.
        part: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer of an archive could not be unpacked.
    #[error("import: {part}: unpack into {directory:?}: {source}")]
    ArchiveLayer {
        /// The member.
        part: String,
        /// Where its files were being written.
        directory: PathBuf,
        /// Why, with entry, path and errno.
        source: Arc<cove_layer::LayerError>,
    },
    /// Something of an image is damaged on disk, and cannot be mended now.
    #[error("image {image}: {reason}")]
    Damaged {
        /// Its id.
        image: String,
        /// What is damaged, why it stays so, and what to do.
        reason: String,
    },
    /// An image cannot be written as an archive.
    #[error("export of image {image}: {reason}")]
    Export {
        /// Its id.
        image: String,
        /// Which part of it, why, and what to do.
        reason: String,
    },
    /// A file of the image store could not be read or written.
    #[error("image store: {doing} {path:?}: {source}")]
    Store {
        /// What was being done ("write record").
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: Arc<std::io::Error>,
    },
}

fn detail_text(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

impl ImageError {
    /// Whether the disk of the store has no room, blocks or inodes.
    pub(crate) fn is_disk_full(&self) -> bool {
        let is_full =
            |errno: rustix::io::Errno| errno == rustix::io::Errno::NOSPC || errno == rustix::io::Errno::DQUOT;
        match self {
            Self::Layer { source, .. } | Self::ArchiveLayer { source, .. } => {
                super::layer::errno(source).is_some_and(is_full)
            }
            Self::Store { source, .. } => rustix::io::Errno::from_io_error(source).is_some_and(is_full),
            _ => false,
        }
    }

    /// The same error, which tells also why the hosts that were asked before had not what was wanted.
    pub(super) fn after(mut self, earlier: &Self) -> Self {
        if let Self::RegistryUnavailable { cause: text, .. }
        | Self::Registry { detail: text, .. }
        | Self::Content { reason: text, .. } = &mut self
        {
            let separator = if text.is_empty() { "" } else { " " };
            *text = format!("{text}{separator}(before: {earlier})");
        }
        self
    }

    /// What is wrong with a part of an archive.
    pub(super) fn archive(part: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Archive { part: part.into(), reason: reason.into() }
    }

    /// A document of an archive that its sender could not read.
    pub(crate) fn unread(name: &str, cause: &dyn std::fmt::Display) -> Self {
        Self::archive(super::plan::shown(name), cause.to_string())
    }

    /// A failed system call of the store.
    pub(super) fn store(
        doing: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::Store { doing, path: path.into(), source: Arc::new(source.into()) }
    }
}
