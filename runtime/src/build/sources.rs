//! What is mounted in a container, as detached mounts: made while the host's root is still visible, each with its
//! flags and its propagation set, and attached only after the pivot (`mounts`). Nothing here looks into the rootfs.
//!
//! Volumes are touched here and nowhere else before the container's own processes: a hung file server stops this
//! builder and nobody besides.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use cove_path::Root;
use cove_sys::MountAttr;
use rustix::fs::{AtFlags, CWD, FileType, Mode, StatxAttributes, StatxFlags, fstat, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};

use super::mounts::clean;
use super::request::{Bind, Mount, MountKind, Propagation, Tmpfs};
use super::step::{At, refuse};
use super::userns::UserNamespace;
use super::{cgroups, namespaces};
use crate::protocol::Failure;

const STEP: &str = "volumes";
const KERNEL: &str = "filesystems";
const TARGET: &str = "target";
/// Of a mount.
pub(super) const READONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;
/// Mode of a missing source, which is made as a directory (as containerd does).
const SOURCE_MODE: Mode = Mode::from_raw_mode(0o755);

/// A mount that is attached nowhere yet.
#[derive(Debug)]
pub(super) struct Detached<'a> {
    /// What was asked.
    pub mount: &'a Mount,
    /// Where it goes.
    pub destination: PathBuf,
    /// The top of the tree.
    pub tree: OwnedFd,
    /// Its root is a directory.
    pub directory: bool,
    /// It becomes read-only when everything is attached: other things are made in it first.
    pub sealed_last: bool,
}

impl<'a> Detached<'a> {
    /// `tree` for the destination of `mount`.
    pub(super) fn new(mount: &'a Mount, tree: OwnedFd) -> Result<Self, Failure> {
        let stat =
            fstat(&tree).at(STEP, || format!("look at what goes to {}", mount.destination.display()))?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Ok(Self { mount, destination: mount.destination.clone(), tree, directory, sealed_last: false })
    }
}

/// What the pod's holder mount namespace has for this container.
#[derive(Debug, Default)]
pub(super) struct Held {
    shm: Option<OwnedFd>,
    proc: Option<OwnedFd>,
}

/// Clones the pod's shm and, where the pod shares a PID namespace, its proc. A holder without one of them is how the
/// shim says that the host's is meant.
pub(super) fn from_holder(holder: Option<OwnedFd>) -> Result<Held, Failure> {
    let Some(holder) = holder else { return Ok(Held::default()) };
    namespaces::look_into(holder.as_fd(), "the holder", || {
        let take = |path: &str| {
            let doing = || format!("take {path} of the pod");
            let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()).at(STEP, doing)?;
            if !found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
                return Ok(None);
            }
            clone_tree(CWD, path, OpenTreeFlags::empty()).map(Some).at(STEP, doing)
        };
        Ok(Held { shm: take("/shm")?, proc: take("/proc")? })
    })
}

impl Held {
    /// Takes the proc of another container instead, by the pidfd of its first process. A process outside of a PID
    /// namespace cannot make one for it, and nothing with our rights may be inside: so that container's own is cloned,
    /// without what is mounted over it, and looked at before it is believed.
    pub(super) fn take_proc_of(&mut self, target: BorrowedFd<'_>) -> Result<(), Failure> {
        let cloned = namespaces::look_into(target, "the target container", || {
            clone_tree(CWD, "/proc", OpenTreeFlags::AT_SYMLINK_NOFOLLOW)
                .at(TARGET, || "take /proc of the target container".to_owned())
        });
        let tree = match cloned {
            Err(failure) if failure.errno == Errno::SRCH.raw_os_error() => {
                return refuse(TARGET, "the target container has ended".to_owned());
            }
            cloned => cloned?,
        };
        if !is_proc_of(tree.as_fd(), target)
            .at(TARGET, || "look at /proc of the target container".to_owned())?
        {
            return refuse(
                TARGET,
                "/proc of the target container is not that of its PID namespace".to_owned(),
            );
        }
        self.proc = Some(tree);
        Ok(())
    }
}

/// `tree` is the top of the procfs of the PID namespace that the process of `pidfd` is in: its process 1 is in that very
/// namespace, and no other's can be.
fn is_proc_of(tree: BorrowedFd<'_>, pidfd: BorrowedFd<'_>) -> Result<bool, Errno> {
    /// Inode number of the top of every procfs: PROC_ROOT_INO of linux/proc_fs.h.
    const TOP: u64 = 1;
    if !is_procfs(tree)? || fstat(tree)?.st_ino != TOP {
        return Ok(false);
    }
    let info = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", pidfd.as_raw_fd()));
    // Field `Pid` of pidfd_open(2); -1 once it has been reaped.
    let pid = info
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok()));
    let Some(pid) = pid.filter(|pid: &i32| *pid > 0) else { return Err(Errno::SRCH) };
    let wanted = rustix::fs::stat(format!("/proc/{pid}/ns/pid"))?;
    let found = match rustix::fs::statat(tree, "1/ns/pid", AtFlags::empty()) {
        // Nothing there, or a process that even we may not look at: not what it should be.
        Err(Errno::NOENT | Errno::ACCESS | Errno::PERM) => return Ok(false),
        found => found?,
    };
    Ok((found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino))
}

/// Makes every mount, in order. `shared_pid`: this container joins a PID namespace whose proc is held.
pub(super) fn open_all(
    mounts: &[Mount],
    mut held: Held,
    shared_pid: bool,
    own_cgroup: bool,
) -> Result<Vec<Detached<'_>>, Failure> {
    open_some(mounts, &mut held, shared_pid, own_cgroup, None, |_| true)
}

/// Makes those that are `wanted`, in order. `user`: the pod's user namespace, whose root owns what is made.
pub(super) fn open_some<'a>(
    mounts: &'a [Mount],
    held: &mut Held,
    shared_pid: bool,
    own_cgroup: bool,
    user: Option<&UserNamespace>,
    wanted: impl Fn(&Mount) -> bool,
) -> Result<Vec<Detached<'a>>, Failure> {
    let mut all = Vec::with_capacity(mounts.len());
    for mount in mounts.iter().filter(|mount| wanted(mount)) {
        let tree = match &mount.kind {
            MountKind::Bind(bind) => open_bind(mount, bind, None)?,
            MountKind::MappedBind(bind) => match user {
                Some(user) => open_bind(mount, bind, Some(user))?,
                None => return refuse(STEP, "a mapped volume needs a user namespace".to_owned()),
            },
            MountKind::Volume(source) => open_volume(mount, source)?,
            // Made in the builder's own mount namespace: see `image_volume`.
            MountKind::Image(_) => continue,
            MountKind::Shm => held_or_host(held.shm.take(), "/dev/shm", mount)?,
            MountKind::Proc if shared_pid => match held.proc.take() {
                Some(tree) => with_flags(tree, mount, KERNEL)?,
                None => return refuse(KERNEL, "no proc of the PID namespace is held (any more)".to_owned()),
            },
            MountKind::Proc => fresh("proc", &[], mount)?,
            MountKind::Sysfs => fresh("sysfs", &[], mount)?,
            MountKind::Mqueue => fresh("mqueue", &[], mount)?,
            // Group 5 is tty in every distribution; 0620 lets a terminal's owner be written to by its group only.
            MountKind::Devpts => {
                let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
                // A user namespace may be too small for that group.
                let known =
                    if user.is_none_or(|user| user.ids.size > 5) { &options[..] } else { &options[..2] };
                fresh("devpts", known, mount)?
            }
            MountKind::Tmpfs(tmpfs) => fresh_tmpfs(tmpfs, mount, user.filter(|_| is_dev(mount)))?,
            MountKind::Cgroup => {
                all.extend(cgroups::view(mount, own_cgroup, user)?);
                continue;
            }
        };
        let sealed_last = mount.readonly && matches!(mount.kind, MountKind::Tmpfs(_));
        all.push(Detached { sealed_last, ..Detached::new(mount, tree)? });
    }
    Ok(all)
}

pub(super) fn clone_tree(
    at: BorrowedFd<'_>,
    path: impl rustix::path::Arg,
    more: OpenTreeFlags,
) -> Result<OwnedFd, Errno> {
    open_tree(at, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | more)
}

/// The container's own /dev.
pub(super) fn is_dev(mount: &Mount) -> bool {
    matches!(mount.kind, MountKind::Tmpfs(_)) && clean(&mount.destination) == Path::new("/dev")
}

fn open_bind(mount: &Mount, bind: &Bind, user: Option<&UserNamespace>) -> Result<OwnedFd, Failure> {
    let source = &bind.source;
    let more = if bind.recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    let tree = match clone_tree(CWD, source, more) {
        Err(Errno::NOENT) => {
            Root::of_process()
                .and_then(|host| host.make_dirs(source, SOURCE_MODE))
                .at(STEP, || format!("make the missing source {}", source.display()))?;
            clone_tree(CWD, source, more)
        }
        done => done,
    }
    .at(STEP, || format!("open the source {}", source.display()))?;
    require_propagation(bind)?;
    let propagation = match bind.propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::HostToContainer => MountPropagationFlags::DOWNSTREAM,
        Propagation::Bidirectional => MountPropagationFlags::SHARED,
    };
    let attr = MountAttr { propagation: u64::from(propagation.bits()), ..MountAttr::default() };
    cove_sys::mount_setattr(tree.as_fd(), true, attr)
        .at(STEP, || format!("set the propagation of {}", source.display()))?;
    if let Some(user) = user {
        let mapped = MountAttr {
            set: bits(MountAttrFlags::MOUNT_ATTR_IDMAP),
            userns: Some(user.namespace.as_fd()),
            ..MountAttr::default()
        };
        cove_sys::mount_setattr(tree.as_fd(), bind.recursive, mapped).at(STEP, || {
            format!("map the owners of {} (can its file system, and those mounted below?)", source.display())
        })?;
    }
    if bind.recursive_readonly {
        let readonly = MountAttr { set: bits(READONLY), ..MountAttr::default() };
        cove_sys::mount_setattr(tree.as_fd(), true, readonly)
            .at(STEP, || format!("make {} and what is mounted below it read-only", source.display()))?;
    }
    with_flags(tree, mount, STEP)
}

/// A directory of the container's own, which nobody else has mounted anything on.
fn open_volume(mount: &Mount, source: &Path) -> Result<OwnedFd, Failure> {
    let tree = clone_tree(CWD, source, OpenTreeFlags::empty())
        .at(STEP, || format!("open the volume {}", source.display()))?;
    let private = u64::from(MountPropagationFlags::PRIVATE.bits());
    let attr = MountAttr { propagation: private, ..MountAttr::default() };
    cove_sys::mount_setattr(tree.as_fd(), false, attr)
        .at(STEP, || format!("make {} private", source.display()))?;
    with_flags(tree, mount, STEP)
}

/// A source that is no peer of anybody cannot propagate: that is an error, since the pod was promised it.
fn require_propagation(bind: &Bind) -> Result<(), Failure> {
    let accepted: &[&str] = match bind.propagation {
        Propagation::Private => return Ok(()),
        Propagation::HostToContainer => &["shared:", "master:"],
        Propagation::Bidirectional => &["shared:"],
    };
    let source = bind.source.display();
    let id = statx(CWD, &bind.source, AtFlags::empty(), StatxFlags::MNT_ID)
        .at(STEP, || format!("look at {source}"))?
        .stx_mnt_id;
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")
        .at(STEP, || "read /proc/thread-self/mountinfo".to_owned())?;
    if propagates(&table, id, accepted) {
        return Ok(());
    }
    refuse(STEP, format!("{source} is on a mount that is not {}", accepted[0].trim_end_matches(':')))
}

/// Looks for a mount's optional fields: see proc_pid_mountinfo(5), fields (1) and (7).
fn propagates(mountinfo: &str, id: u64, accepted: &[&str]) -> bool {
    mountinfo.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.next().and_then(|first| first.parse().ok()) == Some(id)
            && fields
                .skip(5)
                .take_while(|field| *field != "-")
                .any(|field| accepted.iter().any(|prefix| field.starts_with(prefix)))
    })
}

fn held_or_host(held: Option<OwnedFd>, host: &str, mount: &Mount) -> Result<OwnedFd, Failure> {
    let tree = match held {
        Some(tree) => tree,
        None => {
            clone_tree(CWD, host, OpenTreeFlags::empty()).at(KERNEL, || format!("open the host's {host}"))?
        }
    };
    let private = u64::from(MountPropagationFlags::PRIVATE.bits());
    let attr = MountAttr { propagation: private, ..MountAttr::default() };
    cove_sys::mount_setattr(tree.as_fd(), true, attr).at(KERNEL, || format!("make {host} private"))?;
    with_flags(tree, mount, KERNEL)
}

/// `owner`: made with the host's rights for the root of this user namespace.
fn fresh_tmpfs(tmpfs: &Tmpfs, mount: &Mount, owner: Option<&UserNamespace>) -> Result<OwnedFd, Failure> {
    let mode = format!("{:o}", tmpfs.mode);
    let size = tmpfs.size.to_string();
    let owner = owner.map(|user| user.ids.host.to_string());
    let mut options = vec![("mode", mode.as_str())];
    if let Some(owner) = &owner {
        options.extend([("uid", owner.as_str()), ("gid", owner.as_str())]);
    }
    if tmpfs.size > 0 {
        options.push(("size", size.as_str()));
    }
    // What is below a read-only tmpfs must be made first: `mounts` makes it read-only when all is attached.
    let mut more = flags_of(mount).difference(READONLY);
    if tmpfs.strict_atime {
        more |= MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    }
    make("tmpfs", &options, more).at(KERNEL, || format!("make a tmpfs for {}", mount.destination.display()))
}

pub(super) fn fresh(kind: &str, options: &[(&str, &str)], mount: &Mount) -> Result<OwnedFd, Failure> {
    make(kind, options, flags_of(mount))
        .at(KERNEL, || format!("make {kind} for {}", mount.destination.display()))
}

/// A file system of the kernel's, for the namespaces that the caller is in.
pub(super) fn make(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    if kind == "devpts" {
        // The only kind there is since 4.7; older words of it are still asked for by name.
        fsconfig_set_flag(&context, "newinstance")?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

fn with_flags(tree: OwnedFd, mount: &Mount, step: &str) -> Result<OwnedFd, Failure> {
    let attr = MountAttr { set: bits(flags_of(mount)), ..MountAttr::default() };
    if attr.set != 0 {
        cove_sys::mount_setattr(tree.as_fd(), false, attr)
            .at(step, || format!("set the flags of {}", mount.destination.display()))?;
    }
    Ok(tree)
}

pub(super) fn flags_of(mount: &Mount) -> MountAttrFlags {
    [
        (mount.readonly, READONLY),
        (mount.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (mount.nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (mount.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ]
    .into_iter()
    .filter(|(asked, _)| *asked)
    .fold(MountAttrFlags::empty(), |all, (_, flag)| all | flag)
}

fn bits(flags: MountAttrFlags) -> u64 {
    u64::from(flags.bits())
}

/// The path names procfs itself, whatever it is called.
pub(super) fn is_procfs(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(rustix::fs::fstatfs(fd)?.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_optional_fields() {
        let table = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                     23 22 0:5 / /dev rw master:7 propagate_from:2 - devtmpfs dev rw\n\
                     24 22 0:6 / /x rw - tmpfs shared:9 rw\n";
        for (id, accepted, expected) in [
            (22, &["shared:"][..], true),
            (23, &["shared:"], false),
            (23, &["shared:", "master:"], true),
            (24, &["shared:"], false),
            (99, &["shared:"], false),
        ] {
            assert_eq!(propagates(table, id, accepted), expected, "{id} {accepted:?}");
        }
    }
}
