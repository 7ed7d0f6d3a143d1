//! Where a container is in its life.

use serde::{Deserialize, Serialize};

/// The identity of a container's first process, as resolved against its rootfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Every group, the primary one included, ascending.
    pub groups: Vec<u32>,
}

/// Where a container is in its life. Times are nanoseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerPhase {
    /// Made, and not started. (Also while StartContainer is at work.)
    Created,
    /// Its program runs.
    Running {
        /// When it began.
        started_at: i64,
    },
    /// Its program has ended, or could not be run.
    Exited {
        /// When it began; 0: never.
        started_at: i64,
        /// When it ended.
        finished_at: i64,
        /// Exit code, or 128 + signal.
        exit_code: i32,
        /// Completed, Error, OOMKilled, StartError, Unknown.
        reason: ExitReason,
        /// More words, at most a few KiB.
        message: String,
    },
    /// It cannot be told.
    Unknown,
}

/// Why a container is not running any more, in the words that kubelets and people know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Another exit code.
    Error,
    /// The kernel killed it for want of memory.
    OOMKilled,
    /// Its program never ran.
    StartError,
    /// Its end was not seen by anyone.
    Unknown,
}

impl ExitReason {
    /// As the CRI spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OOMKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "Unknown",
        }
    }
}
