//! Why a cgroup operation failed.

use std::path::PathBuf;

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The path is not one that a cgroup can have.
    #[error("cgroup path {path:?}: {reason}")]
    Path {
        /// As given.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// A system call failed.
    #[error("{doing} {path:?}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The kernel refused a value.
    #[error("write {value:?} to {path:?}: {source}")]
    Value {
        /// The control file.
        path: PathBuf,
        /// What it was given.
        value: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A limit makes no sense beside another one.
    #[error("cgroup limit {limit}: {reason}")]
    Limit {
        /// Its name in the OCI runtime spec.
        limit: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// What the host has mounted cannot be used.
    #[error("cgroup mount {mount:?}: {reason}")]
    Mount {
        /// Where it is mounted.
        mount: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// A control file holds something else than its documentation says.
    #[error("{path:?} holds no {field}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        field: &'static str,
    },
    /// The group is not in a hierarchy of this controller, because the host has none.
    #[error("the host has no cgroup hierarchy with the controller {0}")]
    NoController(&'static str),
    /// The eBPF program of the device rules is not on a version 2 group.
    #[error(
        "{doing} the device program of {path:?}: {source} (needs CAP_SYS_ADMIN, a kernel with CONFIG_CGROUP_BPF, and no \
         other program without BPF_F_ALLOW_MULTI there or above){}{log}",
        if log.is_empty() { "" } else { "; the kernel's verifier says: " }
    )]
    Program {
        /// What was being done.
        doing: &'static str,
        /// The group.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
        /// The end of its verifier's log, where it has one.
        log: String,
    },
}

impl CgroupError {
    /// The kernel said so, while doing this, with that file.
    pub(super) fn system(
        doing: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::System { doing, path: path.into(), source: source.into() }
    }
}
