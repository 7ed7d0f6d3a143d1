//! Hides paths of the kernel's file systems from a container, or makes them read-only.
//!
//! Each path is resolved once, and what is mounted goes onto that descriptor; then the path is looked at again, and
//! a container whose mask is not where it was asked for is not started (CVE-2025-31133, GHSA-3q8j-pf29-vwv8).

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use cove_guard::Guard;
use cove_path::Root;
use cove_sys::MountAttr;
use rustix::fs::{AtFlags, FileType, OFlags, StatVfsMountFlags, StatxFlags, fstat, fstatvfs, statx};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, move_mount, open_tree};

use super::mounts::by_descriptor;
use super::step::{At, refuse};
use super::{devices, sources};
use crate::protocol::Failure;

const STEP: &str = "masks";

/// Makes each path, with what is mounted below it, read-only. A missing path is skipped.
pub(super) fn make_readonly(root: &Root, paths: &[PathBuf]) -> Result<(), Failure> {
    if !Guard::Masks.holds() {
        return Ok(());
    }
    for path in paths {
        let Some(target) = find(root, path)? else { continue };
        let tree = clone_of(&target, OpenTreeFlags::AT_RECURSIVE)
            .at(STEP, || format!("clone {}", path.display()))?;
        set_readonly(&tree, true).at(STEP, || format!("make {} read-only", path.display()))?;
        put(root, path, &tree, &target)?;
    }
    Ok(())
}

/// Hides each path: a directory behind an empty read-only one, anything else behind the null device. A missing path
/// is skipped.
pub(super) fn mask(root: &Root, paths: &[PathBuf]) -> Result<(), Failure> {
    if !Guard::Masks.holds() {
        return Ok(());
    }
    let mut covers = Covers::default();
    for path in paths {
        let Some(target) = find(root, path)? else { continue };
        let stat = fstat(&target).at(STEP, || format!("look at {}", path.display()))?;
        let cover = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => covers.directory(),
            _ => covers.file(root),
        }?;
        put(root, path, &cover, &target)?;
        covers.attached(cover, FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    }
    Ok(())
}

/// What masks are cloned from.
#[derive(Debug, Default)]
struct Covers {
    /// The first directory mask, once attached: only then can it be cloned on every kernel. All share its tmpfs.
    directory: Option<OwnedFd>,
    null: Option<OwnedFd>,
}

impl Covers {
    fn directory(&self) -> Result<OwnedFd, Failure> {
        let doing = || "make an empty directory".to_owned();
        match &self.directory {
            Some(first) => clone_of(first, OpenTreeFlags::empty()).at(STEP, doing),
            // Its root and one spare: nothing can ever be made in it, nor does it use memory.
            None => {
                sources::make("tmpfs", &[("nr_blocks", "1"), ("nr_inodes", "2"), ("mode", "0755")], sealed())
                    .at(STEP, doing)
            }
        }
    }

    fn file(&mut self, root: &Root) -> Result<OwnedFd, Failure> {
        let null = match self.null.take() {
            Some(null) => null,
            None => devices::null(root)?,
        };
        let cover = clone_of(&null, OpenTreeFlags::empty())
            .and_then(|cover| set_readonly(&cover, false).map(|()| cover).map_err(into_errno))
            .at(STEP, || "clone /dev/null".to_owned())?;
        self.null = Some(null);
        Ok(cover)
    }

    fn attached(&mut self, cover: OwnedFd, directory: bool) {
        if directory && self.directory.is_none() {
            self.directory = Some(cover);
        }
    }
}

fn into_errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn sealed() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

fn clone_of(fd: &OwnedFd, more: OpenTreeFlags) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(fd, "", flags | more)
}

fn set_readonly(tree: &OwnedFd, recursive: bool) -> std::io::Result<()> {
    let set = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    cove_sys::mount_setattr(tree.as_fd(), recursive, MountAttr { set, ..MountAttr::default() })
}

fn find(root: &Root, path: &Path) -> Result<Option<OwnedFd>, Failure> {
    match root.resolve(path, OFlags::PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::NOTDIR)) => Ok(None),
        Err(error) => Err(error).at(STEP, || "find a path to hide or protect".to_owned()),
    }
}

/// Mounts `cover` on `target`, and looks whether the path now leads to a read-only mount that is this very cover.
fn put(root: &Root, path: &Path, cover: &OwnedFd, target: &OwnedFd) -> Result<(), Failure> {
    let shown = path.display();
    move_mount(cover, "", target, "", by_descriptor()).at(STEP, || format!("cover {shown}"))?;
    let Some(seen) = find(root, path)? else { return refuse(STEP, format!("{shown} went away")) };
    let looked = (|| Ok::<_, Errno>((mount_id(&seen)?, mount_id(cover)?, fstatvfs(&seen)?.f_flag)))();
    let (there, meant, flags) = looked.at(STEP, || format!("look at {shown}"))?;
    if there != meant || !flags.contains(StatVfsMountFlags::RDONLY) {
        return refuse(STEP, format!("{shown} is not covered after it was covered"));
    }
    Ok(())
}

fn mount_id(fd: &OwnedFd) -> Result<u64, Errno> {
    Ok(statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}
