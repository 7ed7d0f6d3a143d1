//! The holder: a mount namespace with what the containers of a pod share, /shm and, for a shared PID namespace,
//! /proc, and nothing of the host, whose mounts a copy would keep busy. And the init of that PID namespace: it reaps,
//! it has nothing, it can do nothing.

use std::convert::Infallible;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use cove_sys::SingleThreaded;
use nix::sys::signal::SigSet;
use rustix::fs::{Mode, mkdirat};
use rustix::mount::{MountAttrFlags, MoveMountFlags, move_mount};
use rustix::process::setsid;
use rustix::thread::{set_name, set_no_new_privs};

use super::capabilities::Wanted;
use super::line::Line;
use super::process::{become_user, clone_first, die_with_shim, hide};
use super::report::Report;
use super::step::At;
use super::userns::UserNamespace;
use super::{create, namespaces, rootfs, sources, void};
use crate::protocol::{Failure, ResolvedUser};

const STEP: &str = "holder";
const NAME: &CStr = c"cove-init";
/// `nobody` and `nogroup` in every distribution: owns nothing.
const NOBODY: u32 = 65_534;
/// The root of the holder and of the init: a few directories, no file.
const EMPTY_ROOT: [(&str, &str); 3] = [("size", "4k"), ("nr_inodes", "8"), ("mode", "0555")];

/// See [`super::holder`].
pub(super) fn run(
    (single, gate0): (SingleThreaded, OwnedFd),
    (shm_size, init): (u64, bool),
    user: Option<UserNamespace>,
    void: Option<OwnedFd>,
    line: &Line,
) -> Result<Infallible, Failure> {
    create::begin(gate0)?;
    let mut nobody = NOBODY;
    if let Some(user) = user {
        user.enter()?;
        nobody = nobody.min(user.ids.size - 1);
        drop(user);
        if init {
            clone_first(single, line)?;
        }
    }
    build(shm_size, init, void.as_ref())?;
    line.say(&Report::Ready);
    line.pass_gate1();
    if !init {
        cove_sys::exit_now(0);
    }
    empty_root(void)?;
    confine(nobody)?;
    reap()
}

fn build(shm_size: u64, proc: bool, void: Option<&OwnedFd>) -> Result<(), Failure> {
    // First of all: file systems of a user namespace are made in mount namespaces of its own.
    let copy = void.map(|void| void::copy(void.as_fd())).transpose()?;
    if copy.is_none() {
        namespaces::leave_host()?;
    }
    // The proc of the PID namespace that this process is the first of, while the host's is still in sight.
    let proc = if proc { Some(make("proc", &[], none_of_them())?) } else { None };
    let size = shm_size.to_string();
    let shm = match shm_size {
        0 => None,
        _ => Some(make("tmpfs", &[("size", &size), ("mode", "1777")], none_of_them())?),
    };
    let root = copy.map_or_else(new_root, Ok)?;
    for (name, tree) in [("shm", shm), ("proc", proc)] {
        let Some(tree) = tree else { continue };
        move_mount(&tree, "", &root, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .at(STEP, || format!("mount /{name}"))?;
    }
    Ok(())
}

/// Leaves the holder to its descriptor and goes on where nothing is.
fn empty_root(void: Option<OwnedFd>) -> Result<(), Failure> {
    if let Some(void) = void {
        return void::enter(void.as_fd());
    }
    namespaces::leave_host()?;
    new_root()?;
    rootfs::set_readonly()
}

/// A tmpfs with the directories of a holder becomes the root; what was below it is detached.
pub(super) fn new_root() -> Result<OwnedFd, Failure> {
    let root = make("tmpfs", &EMPTY_ROOT, none_of_them())?;
    rootfs::enter_detached(root.as_fd())?;
    for name in ["shm", "proc"] {
        mkdirat(&root, name, Mode::from_raw_mode(0o555)).at(STEP, || format!("make /{name}"))?;
    }
    Ok(root)
}

fn none_of_them() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

fn make(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> Result<OwnedFd, Failure> {
    sources::make(kind, options, flags).at(STEP, || format!("make {kind}"))
}

/// No capability, no way to get one, nobody's user, no ptrace.
fn confine(nobody: u32) -> Result<(), Failure> {
    set_name(NAME).at(STEP, || "take a name".to_owned())?;
    setsid().at(STEP, || "make a session".to_owned())?;
    Wanted::none().limit_bounding()?;
    set_no_new_privs(true).at(STEP, || "set no_new_privs".to_owned())?;
    become_user(&ResolvedUser { uid: nobody, gid: nobody, groups: Vec::new() })?;
    Wanted::none().apply()?;
    hide()?;
    die_with_shim()
}

/// The kernel reaps for a process that ignores SIGCHLD (sigaction(2), NOTES), so this never wakes up. Signals from
/// inside its namespace that it has no handler for do not reach a first process (pid_namespaces(7)).
fn reap() -> Result<Infallible, Failure> {
    cove_sys::default_signals();
    cove_sys::reap_children_unseen();
    SigSet::empty().thread_set_mask().at(STEP, || "unblock signals".to_owned())?;
    // Report and gate go too: from here on the shim hears of this process by its pidfd.
    cove_sys::close_all_except(&[]).at(STEP, || "close every descriptor".to_owned())?;
    loop {
        nix::unistd::pause();
    }
}
