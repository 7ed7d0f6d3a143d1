//! The void: a mount namespace with one mount, an empty read-only root. Mount namespaces of pods are made as copies of
//! it, so that nothing of the host has to be copied to them nor detached from them: detaching waits for an RCU grace
//! period of the whole host (`namespace_unlock` in the kernel's fs/namespace.c), some milliseconds on a busy one, and
//! would do so three times a pod.
//!
//! What a process of a container can reach above its root, by whatever trick, is the void: a directory with two empty
//! directories in it, to which nobody can write. So its root may be entered by chroot(2) here.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};
use rustix::process::{chdir, chroot, fchdir};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::step::{At, refuse};
use super::{holder, namespaces, rootfs};
use crate::protocol::Failure;

const STEP: &str = "void";

/// Makes the void, on a thread of its own. The descriptor keeps it.
///
/// # Errors
/// No thread can be had, or the kernel refuses a mount.
pub fn make() -> Result<OwnedFd, Failure> {
    let made = thread::Builder::new().name("void".to_owned()).spawn(|| {
        namespaces::leave_host()?;
        let void = openat(CWD, "/proc/thread-self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .at(STEP, || "open its mount namespace".to_owned())?;
        holder::new_root()?;
        rootfs::set_readonly()?;
        Ok(void)
    });
    let made = made.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN));
    match made.at(STEP, || "start a thread".to_owned())?.join() {
        Ok(made) => made,
        Err(_) => refuse(STEP, "the thread that makes it panicked".to_owned()),
    }
}

/// Goes there, and stays.
pub(super) fn enter(void: BorrowedFd<'_>) -> Result<(), Failure> {
    move_into_link_name_space(void, Some(LinkNameSpaceType::Mount)).at(STEP, || "enter it".to_owned())
}

/// Goes to a mount namespace of one's own that is a copy of it, and gives its root.
pub(super) fn copy(void: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    enter(void)?;
    unshare(CloneFlags::CLONE_NEWNS).at(STEP, || "copy it".to_owned())?;
    open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at(STEP, || "open its root".to_owned())
}

/// Lays a detached root file system over that of a copy, and makes it the root.
pub(super) fn cover(root: BorrowedFd<'_>) -> Result<(), Failure> {
    move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .at(STEP, || "mount the root file system over it".to_owned())?;
    fchdir(root).at(STEP, || "enter the root file system".to_owned())?;
    chroot(".").at(STEP, || "make it the root".to_owned())?;
    chdir("/").at(STEP, || "enter the new root".to_owned())
}
