//! A container's view of its own cgroups, on /sys/fs/cgroup.
//!
//! v2 with a cgroup namespace: a fresh mount, whose root is the container's cgroup. v2 without: the host's tree, since
//! a fresh mount from the host's namespace would change the options of the host's own. v1: a tmpfs with the
//! container's own directory of each hierarchy, where programs look for their limits; a hierarchy in whose root the
//! container is (it was not placed there) is not shown.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use cove_guard::Guard;
use cove_sys::MountAttr;
use rustix::fs::{CWD, statfs, symlinkat};
use rustix::mount::{MountPropagationFlags, OpenTreeFlags};

use super::request::Mount;
use super::sources::{Detached, clone_tree, flags_of, fresh, make};
use super::step::{At, refuse};
use super::userns::UserNamespace;
use crate::protocol::Failure;

const STEP: &str = "filesystems";
/// Where the host's cgroups are.
const CGROUP: &str = "/sys/fs/cgroup";
/// CGROUP2_SUPER_MAGIC of linux/magic.h.
const CGROUP2: u64 = 0x6367_7270;

/// The mounts that make the view. The process is in the container's cgroups already. `user`: the pod's user namespace,
/// whose root owns what is made for it.
pub(super) fn view<'a>(
    mount: &'a Mount,
    own_namespace: bool,
    user: Option<&UserNamespace>,
) -> Result<Vec<Detached<'a>>, Failure> {
    let unified = statfs(CGROUP).at(STEP, || format!("look at {CGROUP}"))?.f_type.cast_unsigned() == CGROUP2;
    match (unified, own_namespace) {
        (true, true) => Ok(vec![Detached::new(mount, fresh("cgroup2", &[], mount)?)?]),
        (true, false) => Ok(vec![own_directory(mount, mount.destination.clone(), Path::new(CGROUP))?]),
        (false, true) => refuse(STEP, "a cgroup namespace is built for cgroup v2 only".to_owned()),
        (false, false) => first_version(mount, user),
    }
}

fn first_version<'a>(mount: &'a Mount, user: Option<&UserNamespace>) -> Result<Vec<Detached<'a>>, Failure> {
    let read = |path: &str| std::fs::read_to_string(path).at(STEP, || format!("read {path}"));
    let own = hierarchies(&read("/proc/thread-self/mountinfo")?, &read("/proc/thread-self/cgroup")?);
    // Writable until the directories of the hierarchies are made in it.
    let owner = user.map_or(0, |user| user.ids.host).to_string();
    let options = [("mode", "0755"), ("uid", owner.as_str()), ("gid", owner.as_str())];
    let top = make("tmpfs", &options, flags_of(mount).difference(super::sources::READONLY))
        .at(STEP, || "make a tmpfs for cgroups".to_owned())?;
    for hierarchy in &own {
        // `cpu` and `cpuacct` lead to `cpu,cpuacct`.
        for link in hierarchy.name.split(',').filter(|_| hierarchy.name.contains(',')) {
            symlinkat(hierarchy.name.as_str(), &top, link).at(STEP, || format!("make the symlink {link}"))?;
        }
    }
    let mut all = vec![Detached { sealed_last: mount.readonly, ..Detached::new(mount, top)? }];
    for hierarchy in own {
        all.push(own_directory(mount, mount.destination.join(&hierarchy.name), &hierarchy.directory)?);
    }
    Ok(all)
}

fn own_directory<'a>(mount: &'a Mount, destination: PathBuf, source: &Path) -> Result<Detached<'a>, Failure> {
    let tree =
        clone_tree(CWD, source, OpenTreeFlags::empty()).at(STEP, || format!("open {}", source.display()))?;
    let mut flags = flags_of(mount);
    if !Guard::CgroupReadonly.holds() {
        flags.remove(super::sources::READONLY);
    }
    let attr = MountAttr {
        set: u64::from(flags.bits()),
        propagation: u64::from(MountPropagationFlags::PRIVATE.bits()),
        ..MountAttr::default()
    };
    cove_sys::mount_setattr(tree.as_fd(), false, attr)
        .at(STEP, || format!("set the flags of {}", source.display()))?;
    Ok(Detached { destination, ..Detached::new(mount, tree)? })
}

/// A hierarchy of v1, or v2 beside it, that the container has a cgroup in.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    /// Below /sys/fs/cgroup, for example `memory` or `cpu,cpuacct`.
    name: String,
    /// The container's directory on the host.
    directory: PathBuf,
}

/// Joins mountinfo, which says where a hierarchy is mounted, with /proc/PID/cgroup, which says where in it a process
/// is: see proc_pid_mountinfo(5) and cgroups(7).
fn hierarchies(mountinfo: &str, cgroup: &str) -> Vec<Hierarchy> {
    mountinfo.lines().filter_map(|line| one(line, cgroup)).collect()
}

fn one(line: &str, cgroup: &str) -> Option<Hierarchy> {
    let (place, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let (kind, _, options) = (kind.next()?, kind.next()?, kind.next()?);
    let mut place = place.split(' ').skip(3);
    let (root, at) = (place.next()?, place.next()?);
    let name = Path::new(at).strip_prefix(CGROUP).ok()?.to_str()?;
    if name.is_empty() || name.contains('/') {
        return None;
    }
    let path = cgroup.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let here = match kind {
            "cgroup2" => controllers.is_empty(),
            "cgroup" => {
                !controllers.is_empty()
                    && controllers.split(',').all(|one| options.split(',').any(|option| option == one))
            }
            _ => false,
        };
        here.then_some(path)
    })?;
    let below = Path::new(path).strip_prefix(root).ok()?;
    if below.as_os_str().is_empty() {
        return None;
    }
    Some(Hierarchy { name: name.to_owned(), directory: Path::new(at).join(below) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_mounts_and_places() {
        let mountinfo = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                         32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n\
                         33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                         34 31 0:31 /docker/x /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                         35 31 0:32 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
                         36 31 0:33 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                         37 31 0:34 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                         38 23 0:35 / /mnt/memory rw - cgroup cgroup rw,memory\n";
        let cgroup = "7:name=systemd:/s\n4:freezer:/\n3:pids:/docker/x/pod/c\n2:memory:/pod/c\n\
                      1:cpu,cpuacct:/pod/c\n0::/u\n";
        let got: Vec<_> = hierarchies(mountinfo, cgroup)
            .into_iter()
            .map(|one| (one.name, one.directory.to_str().unwrap().to_owned()))
            .collect();
        let expected = [
            ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/pod/c"),
            ("memory", "/sys/fs/cgroup/memory/pod/c"),
            ("pids", "/sys/fs/cgroup/pids/pod/c"),
            ("systemd", "/sys/fs/cgroup/systemd/s"),
            ("unified", "/sys/fs/cgroup/unified/u"),
        ]
        .map(|(name, directory)| (name.to_owned(), directory.to_owned()));
        assert_eq!(got, expected);
    }
}
