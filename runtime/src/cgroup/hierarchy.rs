//! Which cgroup hierarchies the host has mounted: /proc/self/mountinfo in, checked descriptors out.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use super::CgroupError;

/// Where cgroups are mounted on every distribution (systemd's file-hierarchy(7) and the kernel's cgroup-v1 guide).
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// linux/magic.h
const CGROUP_SUPER_MAGIC: u64 = 0x0027_e0eb;
/// linux/magic.h
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Version of a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// One mounted hierarchy.
#[derive(Debug)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    /// Version 1: what is bound to it, for example `cpu` and `cpuacct`, or `name=systemd`. Version 2: what its root
    /// offers.
    pub(super) controllers: Vec<String>,
    /// Where it is mounted, for messages.
    pub(super) mount: PathBuf,
    /// The directory at its mount point.
    pub(super) root: OwnedFd,
}

impl Hierarchy {
    /// This hierarchy has the controller.
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|mine| mine == controller)
    }
}

/// A line of mountinfo that tells of a cgroup mount.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    device: String,
    root: String,
    point: PathBuf,
    writable: bool,
    version: Version,
    controllers: Vec<String>,
}

/// Opens every hierarchy below /sys/fs/cgroup.
pub(super) fn mounted() -> Result<Vec<Hierarchy>, CgroupError> {
    let file = "/proc/self/mountinfo";
    let text = fs::read_to_string(file).map_err(|e| CgroupError::system("read", file, e))?;
    choose(parse(&text))?.into_iter().map(open).collect()
}

/// See proc_pid_mountinfo(5).
fn parse(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(parse_line).filter(|mount| mount.point.starts_with(CGROUP_ROOT)).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let [_, _, device, root, point, options, ..] = left[..] else { return None };
    let mut right = right.split(' ');
    let version = match right.next()? {
        "cgroup" => Version::V1,
        "cgroup2" => Version::V2,
        _ => return None,
    };
    let super_options = right.nth(1)?;
    let is_flag = |option: &str| {
        matches!(
            option,
            "rw" | "ro" | "xattr" | "noprefix" | "clone_children" | "cpuset_v2_mode" | "favordynmods"
        ) || option.starts_with("release_agent=")
    };
    Some(Mount {
        device: device.to_owned(),
        root: root.to_owned(),
        point: PathBuf::from(unescape(point)),
        writable: has_option(options, "rw") && has_option(super_options, "rw"),
        version,
        controllers: match version {
            Version::V1 => super_options.split(',').filter(|o| !is_flag(o)).map(str::to_owned).collect(),
            Version::V2 => Vec::new(),
        },
    })
}

fn has_option(options: &str, wanted: &str) -> bool {
    options.split(',').any(|option| option == wanted)
}

/// Undoes the octal escapes of mountinfo: blank, tab, newline, backslash.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

/// One mount a hierarchy: the first that can be used. A hierarchy that has only unusable mounts is an error, since a
/// container would escape its limits there.
fn choose(mounts: Vec<Mount>) -> Result<Vec<Mount>, CgroupError> {
    let mut chosen: Vec<Mount> = Vec::new();
    let mut refused: Vec<(Mount, &'static str)> = Vec::new();
    for mount in mounts {
        if chosen.iter().any(|other| other.device == mount.device) {
            continue;
        }
        match fault(&mount) {
            None => chosen.push(mount),
            Some(reason) => refused.push((mount, reason)),
        }
    }
    refused.retain(|(mount, _)| !chosen.iter().any(|other| other.device == mount.device));
    match refused.into_iter().next() {
        Some((mount, reason)) => Err(CgroupError::Mount { mount: mount.point, reason }),
        None => Ok(chosen),
    }
}

/// Why a mount cannot be used. A root that is not `/` is fine (a node inside a container): every path is taken
/// below the mount, as the kubelet beside us does.
fn fault(mount: &Mount) -> Option<&'static str> {
    if !mount.writable {
        return Some("is read-only");
    }
    // Mounted from outside of our cgroup namespace: writes there would be refused, one by one, with EACCES.
    mount.root.starts_with("/..").then_some("shows a tree outside of this cgroup namespace")
}

fn open(mount: Mount) -> Result<Hierarchy, CgroupError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(&mount.point, flags, Mode::empty())
        .map_err(|e| CgroupError::system("open", &mount.point, e))?;
    check_kind(&mount, &root)?;
    let controllers = match mount.version {
        Version::V1 => mount.controllers,
        Version::V2 => {
            let file = mount.point.join("cgroup.controllers");
            let text = fs::read_to_string(&file).map_err(|e| CgroupError::system("read", &file, e))?;
            text.split_whitespace().map(str::to_owned).collect()
        }
    };
    Ok(Hierarchy { version: mount.version, controllers, mount: mount.point, root })
}

/// What was opened must be what mountinfo tells of: another mount may lie over it.
fn check_kind(mount: &Mount, root: &OwnedFd) -> Result<(), CgroupError> {
    let failed = |e: rustix::io::Errno| CgroupError::system("stat", &mount.point, e);
    let magic = u64::try_from(rustix::fs::fstatfs(root).map_err(failed)?.f_type).unwrap_or_default();
    let device = rustix::fs::fstat(root).map_err(failed)?.st_dev;
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let expected = match mount.version {
        Version::V1 => CGROUP_SUPER_MAGIC,
        Version::V2 => CGROUP2_SUPER_MAGIC,
    };
    if magic == expected && device == mount.device {
        return Ok(());
    }
    Err(CgroupError::Mount { mount: mount.point.clone(), reason: "lies under another mount" })
}

#[cfg(test)]
mod test {
    use super::*;

    const DEBIAN_V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
34 31 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
35 31 0:29 / /mnt/elsewhere rw - cgroup cgroup rw,cpu,cpuacct
36 31 0:32 / /proc rw - proc proc rw";

    fn points(mounts: &[Mount]) -> Vec<&str> {
        mounts.iter().map(|mount| mount.point.to_str().unwrap()).collect()
    }

    #[test]
    fn reads_mountinfo() {
        let mounts = parse(DEBIAN_V1);
        assert_eq!(
            points(&mounts),
            ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"]
        );
        assert_eq!(mounts[0].controllers, ["cpu", "cpuacct"]);
        assert_eq!(mounts[1].controllers, ["name=systemd"]);
        assert_eq!(mounts[2].version, Version::V2);
        assert!(mounts.iter().all(|mount| mount.writable));
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }

    #[test]
    fn survives_lines_that_are_none() {
        for text in ["", "\n\n", "a", "a - b", "1 2 3:4 / /sys/fs/cgroup rw - cgroup", " - cgroup cgroup rw"]
        {
            assert_eq!(parse(text), [], "{text:?}");
        }
    }

    #[test]
    fn refuses_what_cannot_be_written() {
        let read_only = "32 31 0:29 / /sys/fs/cgroup/cpu ro,relatime - cgroup cgroup rw,cpu";
        let outside = "32 31 0:29 /../.. /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu";
        for (text, reason) in [(read_only, "read-only"), (outside, "outside")] {
            let error = choose(parse(text)).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("/sys/fs/cgroup/cpu"), "{error}");
        }
    }

    #[test]
    fn a_second_mount_of_the_same_hierarchy_does_not_count() {
        let text = "\
32 31 0:29 / /sys/fs/cgroup/ro ro - cgroup cgroup rw,cpu
33 31 0:29 /docker/1 /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
34 31 0:29 / /sys/fs/cgroup/again rw - cgroup cgroup rw,cpu";
        assert_eq!(points(&choose(parse(text)).unwrap()), ["/sys/fs/cgroup/cpu"]);
    }

    #[test]
    fn opens_what_this_machine_has() {
        let hierarchies = mounted().unwrap();
        assert!(hierarchies.iter().any(|h| h.has("memory")), "{hierarchies:?}");
        assert!(hierarchies.iter().any(|h| h.has("pids")), "{hierarchies:?}");
    }
}
