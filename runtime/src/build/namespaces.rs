//! Leaving the host's namespaces, looking into the holder's, and entering a container's.
//!
//! A builder's own PID namespace never changes: setns(2) with CLONE_NEWPID only says where its children go.

use std::os::fd::{AsFd, BorrowedFd};

use cove_sys::MountAttr;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::mount::MountPropagationFlags;
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use super::step::At;
use crate::protocol::Failure;

const STEP: &str = "namespaces";

/// A mount namespace of the builder's own, in which no mount is a peer of the host's: what is mounted and detached
/// from here on is seen by nobody else.
pub(super) fn leave_host() -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWNS).at(STEP, || "make a mount namespace".to_owned())?;
    let root = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at(STEP, || "open /".to_owned())?;
    let private =
        MountAttr { propagation: u64::from(MountPropagationFlags::PRIVATE.bits()), ..MountAttr::default() };
    cove_sys::mount_setattr(root.as_fd(), true, private).at(STEP, || "make every mount private".to_owned())
}

/// A cgroup namespace, rooted where the process is now: after gate 0.
pub(super) fn own_cgroup(asked: bool) -> Result<(), Failure> {
    if !asked {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWCGROUP).at(STEP, || "make a cgroup namespace".to_owned())
}

/// Runs `look` in another mount namespace, which is `whose`, and comes back. Root and working directory are those of the
/// host's mount namespace afterwards. `namespace` is a descriptor of it, or a pidfd of a process in it: setns(2).
pub(super) fn look_into<T>(
    namespace: BorrowedFd<'_>,
    whose: &str,
    look: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    // The host's /proc: a container's is never in sight of a builder that still has host mounts.
    let own = openat(CWD, "/proc/thread-self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .at(STEP, || "open /proc/thread-self/ns/mnt".to_owned())?;
    let mount = Some(LinkNameSpaceType::Mount);
    move_into_link_name_space(namespace, mount).at(STEP, || format!("enter {whose}"))?;
    let seen = look();
    move_into_link_name_space(own.as_fd(), mount).at(STEP, || format!("come back from {whose}"))?;
    seen
}

/// Children are made in the PID namespace of the process that `pidfd` stands for.
pub(super) fn children_into(pidfd: BorrowedFd<'_>) -> Result<(), Failure> {
    move_into_thread_name_spaces(pidfd, ThreadNameSpaceType::PROCESS_ID)
        .at(STEP, || "choose the PID namespace of children (has its first process ended?)".to_owned())
}

/// Enters every namespace of a container's first process, by its pidfd, in one call; the PID namespace for children
/// only.
pub(super) fn enter_container(pidfd: BorrowedFd<'_>) -> Result<(), Failure> {
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::PROCESS_ID;
    move_into_thread_name_spaces(pidfd, all)
        .at(STEP, || "enter the container (has its first process ended?)".to_owned())
}
