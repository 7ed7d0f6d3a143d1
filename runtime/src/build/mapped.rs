//! The sequence of a new container in a pod with a user namespace of its own: first all that needs the host's rights,
//! then into the user namespace, where the kernel's own file systems can only be made while the host's are in sight.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

use cove_path::Root;

use super::create::{begin, furnish, open_proc, read_spec};
use super::line::Line;
use super::process::{Process, clone_first};
use super::report::Report;
use super::request::{ContainerOrder, ContainerSpec, Mount, MountKind};
use super::sources::{self, Detached, Held, is_dev};
use super::step::{At, refuse};
use super::userns::UserNamespace;
use super::{PidEntry, Work, devices, identity, image_volume, namespaces, rlimits, rootfs, volumes};
use crate::protocol::Failure;

/// See [`super::create`], which this is for a [`Work`] with a user namespace.
pub(super) fn run(
    work: Work,
    pid: PidEntry,
    holder: Option<OwnedFd>,
    line: &Line,
) -> Result<Infallible, Failure> {
    let Work { single, spec, gate0, stdio, terminal, user, void } = work;
    drop(void);
    begin(gate0)?;
    let Some(user) = user else { return refuse("userns", "there is no user namespace".to_owned()) };
    let ContainerOrder { spec, hooks } = read_spec(spec)?;
    if hooks.is_some() {
        return refuse("hooks", "a pod with a user namespace cannot have devices with hooks yet".to_owned());
    }
    let proc = open_proc(&spec.process)?;

    // With the host's rights.
    let shared = matches!(&pid, PidEntry::Enter(_) | PidEntry::Target(_));
    let mut held = sources::from_holder(holder)?;
    if let PidEntry::Target(target) = &pid {
        held.take_proc_of(target.as_fd())?;
    }
    let outside = |mount: &Mount| is_made_outside(mount, shared, spec.new_cgroup_namespace);
    let mut detached = open(&spec, &mut held, shared, &user, outside)?;
    make_nodes(&spec, &detached)?;
    namespaces::leave_host()?;
    rootfs::map_layers(&spec.rootfs, &spec.mounts, &user)?;
    image_volume::add(&spec.mounts, &spec.rootfs.target, &mut detached)?;
    let root = Root::from_fd(rootfs::detach(rootfs::assemble(&spec.rootfs)?.as_fd())?);
    let who = identity::resolve(&root, &spec.process.user)?;
    line.say(&Report::User(who.user.clone()));
    // What is copied has the owners that the mapped layers show.
    volumes::fill(&root, &detached, user.ids.host)?;
    user.check(&who.user)?;
    user.give_stdio(&stdio, &who.user)?;
    rlimits::raise(&spec.process.rlimits)?;
    let clone = match pid {
        PidEntry::First => None,
        PidEntry::Enter(member) | PidEntry::Target(member) => {
            namespaces::children_into(member.as_fd())?;
            Some(single)
        }
        PidEntry::Host => {
            return refuse(
                "userns",
                "a pod with a user namespace is never in the host's PID namespace".to_owned(),
            );
        }
    };

    // With those of the pod's root.
    user.enter()?;
    namespaces::own_cgroup(spec.new_cgroup_namespace)?;
    if clone.is_none() {
        clone_first(single, line)?;
    }
    namespaces::leave_host()?;
    detached.extend(open(&spec, &mut held, shared, &user, |mount| !outside(mount))?);
    detached.sort_by_key(|one| place(&spec.mounts, one.mount));
    drop(user);
    rootfs::enter_detached(root.as_fd())?;
    furnish(&root, &spec, detached)?;
    Process { spec: &spec.process, who: &who, stdio, terminal, proc, clone }.run(root, line)
}

/// What a user namespace's root cannot make: mounts of what is the host's, and a /dev with nodes in it.
fn is_made_outside(mount: &Mount, shared_pid: bool, own_cgroup: bool) -> bool {
    match mount.kind {
        MountKind::Bind(_)
        | MountKind::MappedBind(_)
        | MountKind::Image(_)
        | MountKind::Volume(_)
        | MountKind::Shm => true,
        MountKind::Proc => shared_pid,
        MountKind::Cgroup => !own_cgroup,
        MountKind::Tmpfs(_) => is_dev(mount),
        MountKind::Sysfs | MountKind::Mqueue | MountKind::Devpts => false,
    }
}

fn open<'a>(
    spec: &'a ContainerSpec,
    held: &mut Held,
    shared_pid: bool,
    user: &UserNamespace,
    wanted: impl Fn(&Mount) -> bool,
) -> Result<Vec<Detached<'a>>, Failure> {
    sources::open_some(&spec.mounts, held, shared_pid, spec.new_cgroup_namespace, Some(user), wanted)
}

/// mknod(2) is refused inside. Nodes keep the host's owners: what only the host's root may open is not the pod's.
fn make_nodes(spec: &ContainerSpec, detached: &[Detached<'_>]) -> Result<(), Failure> {
    let Some(dev) = detached.iter().find(|one| is_dev(one.mount)) else { return Ok(()) };
    let tree = dev.tree.try_clone().at("devices", || "duplicate a descriptor".to_owned())?;
    devices::nodes(&Root::from_fd(tree), &spec.devices)
}

/// Mounts are attached in the order in which they were asked for.
fn place(mounts: &[Mount], mount: &Mount) -> usize {
    mounts.iter().position(|one| std::ptr::eq(one, mount)).unwrap_or(mounts.len())
}
