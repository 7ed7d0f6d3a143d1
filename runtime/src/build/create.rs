//! The sequence of a new container. Read it from top to bottom: each line is a step, and its file says why.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use cove_guard::Guard;
use cove_path::{Proc, Root};
use rustix::fs::Mode;
use rustix::process::umask;

use super::line::{self, Line};
use super::mounts::clean;
use super::process::{self, Process};
use super::report::Report;
use super::request::{ContainerOrder, ContainerSpec, ProcessSpec};
use super::sources::Detached;
use super::step::At;
use super::{
    PidEntry, Work, devices, hooks, identity, image_volume, mapped, masks, mounts, namespaces, rootfs,
    sources, void, volumes,
};
use crate::memfd;
use crate::protocol::{Failure, MAX_SPEC};
use crate::wire::Wire;

/// See [`super::create`].
pub(super) fn run(
    work: Work,
    pid: PidEntry,
    holder: Option<OwnedFd>,
    line: &Line,
) -> Result<Infallible, Failure> {
    if work.user.is_some() {
        return mapped::run(work, pid, holder, line);
    }
    let Work { single, spec, gate0, stdio, terminal, void, .. } = work;
    begin(gate0)?;
    let ContainerOrder { spec, hooks } = read_spec(spec)?;
    namespaces::own_cgroup(spec.new_cgroup_namespace)?;
    let proc = open_proc(&spec.process)?;

    let shared = matches!(&pid, PidEntry::Enter(_) | PidEntry::Target(_));
    let mut held = sources::from_holder(holder)?;
    if let PidEntry::Target(target) = &pid {
        held.take_proc_of(target.as_fd())?;
    }
    let mut detached = sources::open_all(&spec.mounts, held, shared, spec.new_cgroup_namespace)?;

    // Hooks want the host's mounts in sight.
    let early = hooks.is_some() || !Guard::PivotFirst.holds();
    let (root, void) = open_root(&spec, void.filter(|_| !early), &mut detached)?;
    let who = identity::resolve(&root, &spec.process.user)?;
    line.say(&Report::User(who.user.clone()));
    volumes::fill(&root, &detached, 0)?;
    // Hooks finish what they find, and their files are the host's: only for them is anything attached before the pivot.
    if early {
        fill(&root, &spec, &detached)?;
    }
    if let Some(hooks) = &hooks {
        hooks::run(hooks, matches!(&pid, PidEntry::First))?;
    }
    match void {
        Some(void) => {
            void::copy(void.as_fd())?;
            void::cover(root.as_fd())?;
        }
        None => rootfs::enter(root.as_fd())?,
    }
    if !early {
        fill(&root, &spec, &detached)?;
    }
    protect(&root, &spec, detached)?;

    let clone = match pid {
        PidEntry::First => None,
        PidEntry::Enter(member) | PidEntry::Target(member) => {
            namespaces::children_into(member.as_fd())?;
            drop(member);
            Some(single)
        }
        PidEntry::Host => Some(single),
    };
    Process { spec: &spec.process, who: &who, stdio, terminal, proc, clone }.run(root, line)
}

/// The root file system, and the void if that is what it will be laid over; else it is in a copy of the host's mounts,
/// where alone image volumes can be made. They are put among those of `detached`.
fn open_root<'a>(
    spec: &'a ContainerSpec,
    void: Option<OwnedFd>,
    detached: &mut Vec<Detached<'a>>,
) -> Result<(Root, Option<OwnedFd>), Failure> {
    if let Some(void) = void.filter(|_| !image_volume::among(&spec.mounts))
        && let Some(overlay) = rootfs::assemble_detached(&spec.rootfs)?
    {
        return Ok((Root::from_fd(overlay), Some(void)));
    }
    namespaces::leave_host()?;
    image_volume::add(&spec.mounts, &spec.rootfs.target, detached)?;
    Ok((Root::from_fd(rootfs::assemble(&spec.rootfs)?), None))
}

/// After the pivot: all that lies over the root file system.
pub(super) fn furnish(root: &Root, spec: &ContainerSpec, detached: Vec<Detached<'_>>) -> Result<(), Failure> {
    fill(root, spec, &detached)?;
    protect(root, spec, detached)
}

/// Mounts and nodes.
fn fill(root: &Root, spec: &ContainerSpec, detached: &[Detached<'_>]) -> Result<(), Failure> {
    mounts::attach(root, detached)?;
    devices::make(root, &spec.mounts, &spec.devices)
}

/// What must not be seen or written to; after the pivot, always.
fn protect(root: &Root, spec: &ContainerSpec, detached: Vec<Detached<'_>>) -> Result<(), Failure> {
    masks::make_readonly(root, &spec.readonly_paths)?;
    masks::mask(root, &spec.masked_paths)?;
    make_cwd(root, &spec.process.cwd)?;
    mounts::seal(&detached)?;
    drop(detached);
    if spec.rootfs.readonly { rootfs::set_readonly() } else { Ok(()) }
}

/// What every builder does first.
pub(super) fn begin(gate0: OwnedFd) -> Result<(), Failure> {
    process::hide()?;
    process::die_with_shim()?;
    line::pass(gate0.as_fd());
    drop(gate0);
    // Modes are given where things are made.
    umask(Mode::empty());
    cove_sys::join_session_keyring().at("keyring", || "make a session keyring".to_owned())
}

/// Reads what is to be built.
pub(super) fn read_spec<T: Wire>(spec: OwnedFd) -> Result<T, Failure> {
    let bytes = memfd::read_sealed(spec, MAX_SPEC).at("spec", || "read the specification".to_owned())?;
    T::from_bytes(&bytes).at("spec", || "decode the specification".to_owned())
}

/// A procfs of this process's own PID namespace, opened before any container's mounts are in sight.
pub(super) fn open_proc(process: &ProcessSpec) -> Result<Option<Proc>, Failure> {
    match process.apparmor {
        None => Ok(None),
        Some(_) => Proc::open().map(Some).at("apparmor", || "open a private procfs".to_owned()),
    }
}

/// A working directory that the image lacks is made, as root's.
fn make_cwd(root: &Root, cwd: &Path) -> Result<(), Failure> {
    if !Guard::WorkingDirectory.holds() {
        return Ok(());
    }
    root.make_dirs(&clean(cwd), Mode::from_raw_mode(0o755))
        .map(drop)
        .at("cwd", || "make the working directory".to_owned())
}
