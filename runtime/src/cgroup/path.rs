//! The path of a cgroup, checked once: below this type it is right.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::CgroupError;

/// NAME_MAX of the kernel: the longest name of a directory, in bytes.
const NAME_MAX: usize = 255;
/// PATH_MAX of the kernel, in bytes; /proc/PID/cgroup shows no longer path.
const PATH_MAX: usize = 4096;
/// The names before the first dot of control files. A cgroup `memory.max` beside the file of that name would be
/// refused by the kernel in one hierarchy and made in another. systemd keeps clear of the same names
/// (systemd.exec's sources call it escaping).
const CONTROLLERS: [&str; 19] = [
    "cgroup",
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "io",
    "pids",
    "hugetlb",
    "rdma",
    "misc",
    "dmem",
    "net_cls",
    "net_prio",
    "perf_event",
    "debug",
    "irq",
];
/// Control files of version 1 without a dot in their name.
const CONTROL_FILES: [&str; 3] = ["tasks", "notify_on_release", "release_agent"];

/// A place in the tree, the same in every hierarchy: absolute, below the root, no `.`/`..`, no name of a control
/// file, at most 255 bytes a part.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CgroupPath(PathBuf);

impl CgroupPath {
    /// Checks a path.
    ///
    /// # Errors
    /// [`CgroupError::Path`] that names the path and what is wrong with it.
    pub fn new(path: &Path) -> Result<Self, CgroupError> {
        match fault(path) {
            None => Ok(Self(path.to_owned())),
            Some(reason) => Err(CgroupError::Path { path: path.to_owned(), reason }),
        }
    }

    /// A child, by one name.
    ///
    /// # Errors
    /// As [`Self::new`]; also for a name of more than one part.
    pub fn join(&self, name: &str) -> Result<Self, CgroupError> {
        let path = self.0.join(name);
        if name.contains('/') {
            return Err(CgroupError::Path { path, reason: "the name of a child holds a slash" });
        }
        Self::new(&path)
    }

    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// The path as it is below a hierarchy's root: without the slash at its front.
    pub(super) fn relative(&self) -> &Path {
        self.0.strip_prefix("/").expect("a checked path is absolute")
    }
}

/// What is wrong with a path, if anything.
fn fault(path: &Path) -> Option<&'static str> {
    let bytes = path.as_os_str().as_bytes();
    let Some(rest) = bytes.strip_prefix(b"/") else {
        return Some("is not absolute");
    };
    if rest.is_empty() {
        return Some("is the root of the tree");
    }
    if bytes.len() >= PATH_MAX {
        return Some("is longer than 4095 bytes");
    }
    // Split by hand: `Path::components` hides empty parts and inner dots, which must be refused, not mended.
    rest.split(|byte| *byte == b'/').find_map(name_fault)
}

/// What is wrong with one part of a path, if anything.
fn name_fault(name: &[u8]) -> Option<&'static str> {
    if name.is_empty() {
        return Some("has an empty part");
    }
    if name.len() > NAME_MAX {
        return Some("has a part longer than 255 bytes");
    }
    if name == b"." || name == b".." {
        return Some("has a part `.` or `..`");
    }
    if name.iter().any(u8::is_ascii_control) {
        return Some("has a control character");
    }
    let is_control_file = match name.iter().position(|byte| *byte == b'.') {
        Some(dot) => CONTROLLERS.iter().any(|controller| controller.as_bytes() == &name[..dot]),
        None => CONTROL_FILES.iter().any(|file| file.as_bytes() == name),
    };
    is_control_file.then_some("has a part with the name of a control file")
}

/// The directories above a path's last part, and that part.
pub(super) fn split(relative: &Path) -> Vec<&std::ffi::OsStr> {
    relative
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
        })
        .collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn takes_what_kubelets_and_systemd_make() {
        for path in [
            "/cove",
            "/kubepods/burstable/pod6a0c9d6e-7d0c-4f0e-b0a2-5a4d5b1f3c1e",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-00ff.scope",
            "/user.slice/user@0.service/app",
            "/cpu",
            "/...",
        ] {
            assert!(CgroupPath::new(Path::new(path)).is_ok(), "{path}");
        }
        let long = format!("/{}", "x".repeat(255));
        assert!(CgroupPath::new(Path::new(&long)).is_ok());
    }

    #[test]
    fn refuses_what_no_cgroup_can_be() {
        for (path, reason) in [
            ("", "absolute"),
            ("a/b", "absolute"),
            ("/", "root"),
            ("//a", "empty part"),
            ("/a//b", "empty part"),
            ("/a/", "empty part"),
            ("/a/./b", "`.`"),
            ("/a/..", "`..`"),
            ("/../etc", "`..`"),
            ("/a/cgroup.procs", "control file"),
            ("/memory.max/a", "control file"),
            ("/a/tasks", "control file"),
            ("/a/release_agent", "control file"),
            ("/a\n/b", "control character"),
            ("/a\0b", "control character"),
            (&format!("/{}", "x".repeat(256)), "255"),
            (&"/xxxxxxx".repeat(512), "4095"),
        ] {
            let error = CgroupPath::new(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(reason), "{path:?}: {error}");
        }
    }

    #[test]
    fn a_child_is_one_name() {
        let path = CgroupPath::new(Path::new("/a")).unwrap();
        assert_eq!(path.join("b").unwrap().as_path(), Path::new("/a/b"));
        for name in ["", "..", "b/c", "/etc", "cgroup.procs"] {
            assert!(path.join(name).is_err(), "{name:?}");
        }
    }
}
