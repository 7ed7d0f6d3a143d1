//! Why a profile cannot be had.

use std::io;
use std::path::PathBuf;

/// Why a profile is not taken. The text names the place in the profile.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The file cannot be read.
    #[error("{doing} seccomp profile {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The path of a profile is not absolute.
    #[error("the path {0:?} of a seccomp profile is not absolute")]
    NotAbsolute(PathBuf),
    /// The path leads to something other than a file.
    #[error("seccomp profile {path}: is not a regular file", path = .0.display())]
    NotAFile(PathBuf),
    /// The profile is larger than [`PROFILE_LIMIT`](super::PROFILE_LIMIT).
    #[error("seccomp profile: more than {limit} bytes")]
    TooLong {
        /// The limit, in bytes.
        limit: u64,
    },
    /// Not JSON, or not of a profile's form.
    #[error("seccomp profile: {0}")]
    Form(#[from] serde_json::Error),
    /// A field that must be there is missing or empty.
    #[error("seccomp profile: {field} is missing")]
    Missing {
        /// JSON path.
        field: String,
    },
    /// A word that nobody knows.
    #[error("seccomp profile: {field}: {value:?} is unknown")]
    Unknown {
        /// JSON path.
        field: String,
        /// The word.
        value: String,
    },
    /// Known, but not built here.
    #[error("seccomp profile: {field}: {value} is not built")]
    NotBuilt {
        /// JSON path.
        field: String,
        /// What was asked for.
        value: String,
    },
    /// A value that cannot be.
    #[error("seccomp profile: {field}: {reason}")]
    Invalid {
        /// JSON path.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel takes no program of that size (BPF_MAXINSNS, linux/bpf_common.h).
    #[error("seccomp profile: is longer than the {limit} instructions that the kernel takes")]
    TooManyInstructions {
        /// The limit.
        limit: usize,
    },
    /// What this node is cannot be told.
    #[error("seccomp: {0}")]
    Machine(String),
}
