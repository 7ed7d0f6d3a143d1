//! Control groups, versions 1 and 2: the tree, limits, out-of-memory counts, kill, statistics. See cgroups(7).
//! STUB of the interface; its owner replaces it (files: tree limits stats events kill, v1 and v2 side by side in each).

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

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
}

/// A place in the tree, the same in every hierarchy: absolute, no `.`/`..`, no magic name, at most 255 bytes a part.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CgroupPath(PathBuf);

impl CgroupPath {
    /// Checks a path.
    pub fn new(path: &Path) -> Result<Self, CgroupError> {
        Ok(Self(path.to_owned()))
    }
    /// A child, by one name.
    pub fn join(&self, name: &str) -> Result<Self, CgroupError> {
        Self::new(&self.0.join(name))
    }
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

/// What the host has mounted: every v1 hierarchy with controllers, or the v2 tree.
#[derive(Debug)]
pub struct Hierarchies {}

/// Limits in the words of the OCI runtime spec; none is unset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// cpu.shares scale, 2 to 262144 (v2: converted to cpu.weight as runc 1.3 and crun do, quadratic).
    pub cpu_shares: Option<u64>,
    /// Microseconds in a period; negative: none.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// List form.
    pub cpuset_cpus: Option<String>,
    /// List form.
    pub cpuset_mems: Option<String>,
    /// Bytes; -1: none.
    pub memory: Option<i64>,
    /// Bytes of memory and swap together, v1 scale; -1: none.
    pub memory_swap: Option<i64>,
    /// Processes; -1: none.
    pub pids: Option<i64>,
}

impl Hierarchies {
    /// Reads what is mounted below /sys/fs/cgroup.
    pub fn detect() -> Result<Self, CgroupError> {
        Ok(Self {})
    }
    /// cgroup v2 alone is mounted, or carries the controllers.
    pub fn unified(&self) -> bool {
        false
    }
    /// Makes the cgroup and its missing ancestors in every hierarchy (v1: cpuset filled from the parent; v2:
    /// controllers enabled on the way down). Idempotent.
    pub fn create(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        let _ = path;
        todo!()
    }
    /// Opens it where it exists; `None` where no hierarchy has it.
    pub fn open(&self, path: &CgroupPath) -> Result<Option<Cgroup>, CgroupError> {
        let _ = path;
        todo!()
    }
    /// Removes it and what containers made below it, in every hierarchy, with a bounded retry on EBUSY. Gone is done.
    pub fn remove(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let _ = path;
        todo!()
    }
    /// Removes it where it is empty and nobody is in it; leaves it else. For shared parents of ours.
    pub fn remove_if_empty(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let _ = path;
        todo!()
    }
}

/// A cgroup by its directory descriptors: one a hierarchy.
#[derive(Debug)]
pub struct Cgroup {}

impl Cgroup {
    /// Descriptors for `protocol::CgroupPlace`: v2 the directory; v1 `cgroup.procs` of each hierarchy for writing.
    pub fn place(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        todo!()
    }
    /// Sets limits. A value that the kernel refuses is an error that names file and value.
    pub fn set_limits(&self, limits: &Limits) -> Result<(), CgroupError> {
        let _ = limits;
        todo!()
    }
    /// Opens the file whose `oom_kill N` line counts kills: v1 `memory.oom_control`, v2 `memory.events`.
    pub fn oom_events(&self) -> Result<Option<OwnedFd>, CgroupError> {
        todo!()
    }
    /// Pids in it and below it, by the host's PID namespace.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        todo!()
    }
    /// Kills all in it and below: cgroup.kill, else freeze, SIGKILL, and always thaw. Does not wait for their end.
    pub fn kill(&self) -> Result<(), CgroupError> {
        todo!()
    }
    /// Moves a process of the host here, in every hierarchy (for the shims' own group).
    pub fn add(&self, pid: i32) -> Result<(), CgroupError> {
        let _ = pid;
        todo!()
    }
    /// v1 only: the device rules of containers (deny all, then the usual nodes). v2 does this by eBPF, later.
    pub fn set_device_rules(&self, allow_all: bool) -> Result<(), CgroupError> {
        let _ = allow_all;
        todo!()
    }
}
