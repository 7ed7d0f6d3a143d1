//! Attaches what `sources` made, after the pivot: every destination is resolved inside the container's root, made if
//! it is missing, and mounted on by descriptor. No path of the host can be reached here whatever an image's symlinks
//! say; what they could still do is move a kernel file system out of the way of its masks, so those are only mounted
//! on a real directory (CVE-2019-16884, CVE-2023-27561).

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use cove_guard::Guard;
use cove_path::Root;
use cove_sys::MountAttr;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MoveMountFlags, move_mount};

use super::request::MountKind;
use super::sources::{Detached, is_procfs};
use super::step::{At, refuse};
use crate::protocol::Failure;

const STEP: &str = "mounts";
/// Of destinations that the image lacks.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// What may be mounted over in procfs: files by which lxcfs and its like correct what a container sees of the
/// machine. Everything else there is for the kernel to say (the list is runc's).
const ALLOWED_BELOW_PROC: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Attaches all, in order.
pub(super) fn attach(root: &Root, all: &[Detached<'_>]) -> Result<(), Failure> {
    for detached in all {
        let destination = clean(&detached.destination);
        let target = target(root, detached, &destination)?;
        move_mount(&detached.tree, "", &target, "", by_descriptor())
            .at(STEP, || format!("mount on {}", destination.display()))?;
    }
    Ok(())
}

/// Makes each read-only tmpfs read-only, which waits until what lies on it is made.
pub(super) fn seal(all: &[Detached<'_>]) -> Result<(), Failure> {
    let readonly =
        MountAttr { set: u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()), ..MountAttr::default() };
    for detached in all {
        if detached.sealed_last {
            cove_sys::mount_setattr(detached.tree.as_fd(), false, readonly)
                .at(STEP, || format!("make {} read-only", detached.destination.display()))?;
        }
    }
    Ok(())
}

pub(super) fn by_descriptor() -> MoveMountFlags {
    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH
}

fn target(root: &Root, detached: &Detached<'_>, destination: &Path) -> Result<OwnedFd, Failure> {
    let shown = destination.display();
    if destination == Path::new("/") {
        return refuse(STEP, "/ cannot be mounted over".to_owned());
    }
    if destination == Path::new("/proc")
        && !is_procfs(detached.tree.as_fd()).at(STEP, || "look at /proc's source".to_owned())?
    {
        return refuse(STEP, "only procfs can be mounted on /proc".to_owned());
    }
    let target = if needs_plain_directory(detached, destination) {
        plain_directory(root, destination)?
    } else if detached.directory {
        root.make_dirs(destination, DIRECTORY_MODE).at(STEP, || format!("find the directory {shown}"))?
    } else {
        root.make_file(destination, FILE_MODE).at(STEP, || format!("find the file {shown}"))?
    };
    if is_procfs(target.as_fd()).at(STEP, || format!("look at {shown}"))? {
        let allowed = ALLOWED_BELOW_PROC.iter().any(|path| Path::new(path) == destination);
        if !allowed {
            return refuse(STEP, format!("{shown} is inside procfs, where nothing can be mounted"));
        }
        // The name is on the list; what it leads to must be that very file.
        return root.resolve_plain(destination, OFlags::PATH).at(STEP, || format!("find the file {shown}"));
    }
    Ok(target)
}

/// File systems whose place matters: what masks, labels, sysctls and device nodes are addressed by.
fn needs_plain_directory(detached: &Detached<'_>, destination: &Path) -> bool {
    match detached.mount.kind {
        MountKind::Proc
        | MountKind::Sysfs
        | MountKind::Mqueue
        | MountKind::Devpts
        | MountKind::Shm
        | MountKind::Cgroup => true,
        MountKind::Tmpfs(_) => destination == Path::new("/dev"),
        MountKind::Bind(_) | MountKind::MappedBind(_) | MountKind::Image(_) | MountKind::Volume(_) => {
            destination == Path::new("/proc")
        }
    }
}

/// A directory whose path has no symlink; made if missing.
pub(super) fn plain_directory(root: &Root, path: &Path) -> Result<OwnedFd, Failure> {
    if !Guard::PlainDirectory.holds() {
        return root.make_dirs(path, DIRECTORY_MODE).at(STEP, || format!("make {}", path.display()));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let found = match root.resolve_plain(path, flags) {
        Err(error) if error.errno() == Some(Errno::NOENT) => {
            root.make_dirs(path, DIRECTORY_MODE).at(STEP, || format!("make {}", path.display()))?;
            root.resolve_plain(path, flags)
        }
        found => found,
    };
    match found {
        Err(error) if matches!(error.errno(), Some(Errno::LOOP | Errno::NOTDIR)) => {
            let why = format!("{} must be mounted on an ordinary directory: {error}", path.display());
            let errno = error.errno().map_or(0, Errno::raw_os_error);
            Err(Failure { step: STEP.to_owned(), errno, detail: why })
        }
        found => found.at(STEP, || format!("find {}", path.display())),
    }
}

/// `/a//b/./c/..` as `/a/b`: by the letter, as the kubelet and its users mean it.
pub fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans() {
        for (path, expected) in [
            ("/", "/"),
            ("/a//b/./c/..", "/a/b"),
            ("a/b", "/a/b"),
            ("/../../x", "/x"),
            ("/proc/", "/proc"),
            ("", "/"),
        ] {
            assert_eq!(clean(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}
