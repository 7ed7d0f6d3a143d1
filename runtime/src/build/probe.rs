//! Looks whether this node can run pods with user namespaces, by doing what they need: kernels and file systems differ
//! in each part of it. In mount namespaces that end with the process, so that nothing is left.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use cove_path::Proc;
use cove_sys::{CloneFlags, Forked, MountAttr, SingleThreaded};
use nix::sched::{CloneFlags as Unshared, unshare};
use rustix::fs::{CWD, Mode, mkdir};
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags, move_mount};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::request::Rootfs;
use super::step::{At, refuse};
use super::userns::{self, UserNamespace};
use super::{namespaces, rootfs, sources};
use crate::protocol::{Failure, IdMap};

const STEP: &str = "probe";
/// Any mapping would do; this is the first that a kubelet gives away.
const IDS: IdMap = IdMap { host: 65_536, size: 65_536 };

/// `layers` is the directory of image layers, `state` that of the files that every pod has.
///
/// # Errors
/// What this node cannot do.
pub fn user_namespaces(layers: &Path, state: &Path) -> Result<(), Failure> {
    let single = SingleThreaded::check().at(STEP, || "be alone".to_owned())?;
    let proc = Proc::open().at(STEP, || "open a private procfs".to_owned())?;
    let inside = || {
        unshare(Unshared::CLONE_NEWNET | Unshared::CLONE_NEWIPC)
            .at(STEP, || "make namespaces that a user namespace owns".to_owned())
    };
    let join = |pidfd: BorrowedFd<'_>| {
        let types = ThreadNameSpaceType::NETWORK | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
        move_into_thread_name_spaces(pidfd, types)
            .at(STEP, || "join namespaces of a user namespace".to_owned())
    };
    let user = userns::make(single, &proc, &IDS, &[], inside, join)?;
    drop(proc);
    namespaces::leave_host()?;
    let of_state = sources::clone_tree(CWD, state, OpenTreeFlags::empty())
        .at(STEP, || format!("open {}", state.display()))?;
    map(of_state.as_fd(), &user, &format!("the file system of {}", state.display()))?;
    let tmpfs = scratch()?;
    map(tmpfs.as_fd(), &user, "a tmpfs")?;
    overlay(layers, state, &user)?;
    user.enter()?;
    kernels_own(single)
}

fn scratch() -> Result<std::os::fd::OwnedFd, Failure> {
    sources::make("tmpfs", &[("mode", "0700")], MountAttrFlags::empty())
        .at(STEP, || "make a tmpfs".to_owned())
}

fn map(tree: BorrowedFd<'_>, user: &UserNamespace, what: &str) -> Result<(), Failure> {
    let attr = MountAttr {
        set: u64::from(MountAttrFlags::MOUNT_ATTR_IDMAP.bits()),
        userns: Some(user.namespace.as_fd()),
        ..MountAttr::default()
    };
    cove_sys::mount_setattr(tree, false, attr).at(STEP, || format!("map the owners of {what}"))
}

/// An overlay on mapped layers; what it writes to lies on a tmpfs over `scratch_at`.
fn overlay(layers: &Path, scratch_at: &Path, user: &UserNamespace) -> Result<(), Failure> {
    let doing = || format!("mount a tmpfs on {}", scratch_at.display());
    move_mount(scratch()?, "", CWD, scratch_at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at(STEP, doing)?;
    let [upper, work, target] = ["upper", "work", "target"].map(|name| scratch_at.join(name));
    for made in [&upper, &work, &target] {
        mkdir(made, Mode::RWXU).at(STEP, || format!("make {}", made.display()))?;
    }
    let rootfs =
        Rootfs { lower: vec![layers.to_owned()], upper, work, target, readonly: false, volatile: true };
    rootfs::map_layers(&rootfs, &[], user)?;
    rootfs::assemble(&rootfs).map(drop)
}

/// What only a root of the user namespace makes, and only where the host's own is not hidden in part.
fn kernels_own(single: SingleThreaded) -> Result<(), Failure> {
    let forked = cove_sys::fork(single, CloneFlags::NEW_PID, None)
        .at(STEP, || "make a PID namespace in a user namespace".to_owned())?;
    match forked {
        Forked::Child(_) => {
            let made = namespaces::leave_host().and_then(|()| {
                ["proc", "sysfs", "mqueue", "devpts"].iter().try_for_each(|kind| {
                    sources::make(kind, &[], MountAttrFlags::empty()).map(drop).at(STEP, || {
                        format!("make {kind} in a user namespace (is the host's hidden in part?)")
                    })
                })
            });
            if let Err(failure) = &made {
                println!("{}", failure.detail);
            }
            cove_sys::exit_now(i32::from(made.is_err()))
        }
        Forked::Parent { pidfd, .. } => {
            let ended = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
                .at(STEP, || "wait for the probe".to_owned())?;
            match ended.and_then(|status| status.exit_status()) {
                Some(0) => Ok(()),
                _ => refuse(STEP, "the kernel's file systems cannot be made".to_owned()),
            }
        }
    }
}
