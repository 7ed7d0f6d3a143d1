//! Records on disk: versioned, checksummed JSON, written whole or not at all.
//!
//! A record is one line of header (`cove-record VERSION CHECKSUM`) and a JSON document that a person can read. It is
//! written to a temporary name and renamed over the old one. Not synced, unless asked for: after a power loss every
//! container is dead anyway, and a record that is not whole is found out by its checksum.

use std::path::{Path, PathBuf};

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read or written.
    #[error("{doing} record {path:?}: {source}")]
    Io {
        /// Reading, writing.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// It is not what was written.
    #[error("record {path:?} is not whole: {reason}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl RecordError {
    pub(super) fn corrupt(path: &Path, reason: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), reason: reason.into() }
    }
}
