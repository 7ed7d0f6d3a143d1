//! Devices of vendors by the Container Device Interface: files on the node that say how a container's OCI spec is edited
//! for a device to work in it (CNCF CDI specification, up to version 1.1.0).
//!
//! A container names its devices; the files are read anew for each container that names one, so none is ever stale. A file
//! that cannot be read or is wrong takes its own devices away and no others.

mod apply;
mod document;
mod name;
mod search;
mod yaml;

pub use apply::apply;
pub use name::Name;
pub use search::find;

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It is too large, or no file.
    #[error("it is {0}")]
    Kind(String),
    /// It is not what JSON or YAML looks like, or has a field that CDI does not have.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It is not YAML as CDI uses it.
    #[error("{0}")]
    Yaml(String),
    /// A value is not what CDI allows.
    #[error("{field}: {reason}")]
    Value {
        /// Its path in the document.
        field: String,
        /// What is wrong.
        reason: String,
    },
}

impl DocumentError {
    fn value(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Value { field: field.into(), reason: reason.into() }
    }
}
