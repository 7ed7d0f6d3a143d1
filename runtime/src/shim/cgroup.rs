//! The control groups of one process, by the descriptors that the daemon passed: where it is placed, who else is
//! there, and how they are killed or frozen in one step. Makes and removes no group; knows no path.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::protocol::CgroupPlace;

/// How many levels of groups that a container made are looked into: systemd and kind make about 8.
const MAX_DEPTH: usize = 32;

/// See the module's header.
#[derive(Debug)]
pub enum Cgroup {
    /// Where the shim is.
    None,
    /// cgroup v2: the group's directory.
    Unified(OwnedFd),
    /// cgroup v1: `tasks` of each hierarchy, open for writing, and `cgroup.procs` of a v2 beside them.
    Split(Vec<OwnedFd>),
}

impl Cgroup {
    /// Takes the descriptors that came with a request; refuses a place that does not fit them.
    pub fn new(place: &CgroupPlace, mut fds: Vec<OwnedFd>) -> Option<Self> {
        if fds.len() != usize::from(place.count) {
            return None;
        }
        match (place.unified, fds.len()) {
            (_, 0) => Some(Self::None),
            (true, 1) => fds.pop().map(Self::Unified),
            (true, _) => None,
            (false, _) => Some(Self::Split(fds)),
        }
    }

    /// For CLONE_INTO_CGROUP: the group of v2, be it beside those of v1.
    pub fn directory(&self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::None => Ok(None),
            Self::Unified(directory) => directory.try_clone().map(Some),
            Self::Split(hierarchies) => {
                let Some(procs) = hierarchies.iter().find(|procs| is_v2(procs)) else { return Ok(None) };
                let procs = fs::read_link(format!("/proc/self/fd/{}", procs.as_raw_fd()))?;
                Ok(Some(fs::File::open(procs.with_file_name(""))?.into()))
            }
        }
    }

    /// Moves the calling process, of one thread, into every hierarchy of v1; into v2 it was cloned. A thread that moves
    /// itself by `tasks` takes no lock of the whole host; moved by `cgroup.procs`, it waits for an RCU grace period (5 to
    /// 9 ms for ten hierarchies against 0.5 ms, kernel 6.18).
    pub fn enter(&self) -> io::Result<()> {
        let Self::Split(hierarchies) = self else { return Ok(()) };
        for tasks in hierarchies.iter().filter(|tasks| !is_v2(tasks)) {
            rustix::io::write(tasks, b"0")?;
        }
        Ok(())
    }

    /// Numbers of what it holds open.
    pub fn descriptors(&self) -> Vec<RawFd> {
        match self {
            Self::None => Vec::new(),
            Self::Unified(directory) => vec![directory.as_raw_fd()],
            Self::Split(hierarchies) => hierarchies.iter().map(AsRawFd::as_raw_fd).collect(),
        }
    }

    /// The processes of the group and of those below it, as the host numbers them; never the shim itself.
    pub fn members(&self) -> io::Result<Vec<i32>> {
        let mut members = Vec::new();
        match self {
            Self::None => {}
            Self::Unified(directory) => list(directory, MAX_DEPTH, &mut members)?,
            // Opened anew for each look: v1 answers later reads of an open file from a list up to a second old. One
            // hierarchy is enough, a process is in the group of each.
            Self::Split(hierarchies) => {
                if let Some(procs) = hierarchies.first() {
                    let procs = fs::read_link(format!("/proc/self/fd/{}", procs.as_raw_fd()))?;
                    list(&fs::File::open(procs.with_file_name(""))?.into(), MAX_DEPTH, &mut members)?;
                }
            }
        }
        let own = std::process::id();
        members.retain(|pid| u32::try_from(*pid) != Ok(own));
        Ok(members)
    }

    /// The kernel kills everybody in it and below it in one step. False: this kernel, or v1 alone, has no such step.
    pub fn kill(&self) -> io::Result<bool> {
        let Some(directory) = self.directory()? else { return Ok(false) };
        match openat(directory, "cgroup.kill", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(kill) => Ok(rustix::io::write(kill, b"1").map(|_| true)?),
            // The root group has none.
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// It is in v2 alone.
    pub fn is_unified(&self) -> bool {
        matches!(self, Self::Unified(_))
    }

    /// Stops everybody in it, or lets them go on. That of v1, if the group has one, lies beside one of its `cgroup.procs`.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        let hierarchies = match self {
            Self::None => return Ok(()),
            Self::Unified(directory) => {
                let freezer =
                    openat(directory, "cgroup.freeze", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
                rustix::io::write(freezer, if frozen { b"1" } else { b"0" })?;
                return Ok(());
            }
            Self::Split(hierarchies) => hierarchies,
        };
        let state = if frozen { "FROZEN" } else { "THAWED" };
        for procs in hierarchies {
            let procs = fs::read_link(format!("/proc/self/fd/{}", procs.as_raw_fd()))?;
            match fs::OpenOptions::new().write(true).open(procs.with_file_name("freezer.state")) {
                Ok(mut freezer) => return io::Write::write_all(&mut freezer, state.as_bytes()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The group of v2 in which `process` is, beneath this one. For an exec into a container that has made groups of
    /// its own: the kernel refuses processes in a group that hands its controllers down (EBUSY).
    pub fn beneath(&self, process: i32) -> io::Result<OwnedFd> {
        let Self::Unified(directory) = self else {
            return Err(Errno::INVAL.into());
        };
        let own = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        let of_process = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
        let of_process = of_process.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        let below = below(&own, Path::new(of_process)).ok_or(Errno::XDEV)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(directory, &below, flags, Mode::empty())?)
    }
}

/// The processes of a group and of `depth` levels below it, by which a container that makes groups of its own is not
/// followed for ever.
fn list(group: &OwnedFd, depth: usize, pids: &mut Vec<i32>) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let procs = openat(group, "cgroup.procs", flags, Mode::empty())?;
    match io::read_to_string(fs::File::from(procs)) {
        // 0 stands for a process that our PID namespace does not show.
        Ok(text) => {
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0))
        }
        // A threaded group of v2 has no list: its processes are in the list of its domain, above.
        Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    if depth == 0 {
        return Ok(());
    }
    for entry in Dir::read_from(group)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() != FileType::Directory || name.to_bytes().starts_with(b".") {
            continue;
        }
        let below = openat(group, name, flags | OFlags::DIRECTORY, Mode::empty()).map_err(io::Error::from);
        match below.and_then(|below| list(&below, depth - 1, pids)) {
            // Removed meanwhile: nobody is in it.
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NODEV)) => {}
            done => done?,
        }
    }
    Ok(())
}

/// A file of cgroup v2.
fn is_v2(file: &OwnedFd) -> bool {
    // linux/magic.h, CGROUP2_SUPER_MAGIC
    const MAGIC: rustix::fs::FsWord = 0x6367_7270;
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type == MAGIC)
}

/// What of `group`, a path from the root of the hierarchy, lies below `own`, a path of the file system. Where the
/// hierarchy is mounted is found by the longest end of `own` with which `group` begins.
fn below(own: &Path, group: &Path) -> Option<PathBuf> {
    let names = |path: &Path| -> Vec<Vec<u8>> {
        path.components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .map(|part| part.as_os_str().as_encoded_bytes().to_vec())
            .collect()
    };
    let (own, group) = (names(own), names(group));
    let shared = (1..=own.len().min(group.len())).rev().find(|n| own[own.len() - n..] == group[..*n])?;
    use std::os::unix::ffi::OsStrExt;
    let below: PathBuf = group[shared..].iter().map(|name| OsStr::from_bytes(name)).collect();
    if below.as_os_str().is_empty() { None } else { Some(below) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_group_below() {
        for (own, group, expected) in [
            ("/sys/fs/cgroup/kubepods/pod1/c", "/kubepods/pod1/c/init", Some("init")),
            ("/sys/fs/cgroup/kubepods/pod1/c", "/kubepods/pod1/c/a/b", Some("a/b")),
            ("/sys/fs/cgroup/kubepods/pod1/c", "/kubepods/pod1/c", None),
            ("/sys/fs/cgroup/kubepods/pod1/c", "/kubepods/pod1/d/init", None),
            ("/sys/fs/cgroup/kubepods/pod1/c", "/../elsewhere", None),
        ] {
            assert_eq!(below(Path::new(own), Path::new(group)), expected.map(PathBuf::from), "{group}");
        }
    }

    #[test]
    fn finds_where_a_process_is_below() {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mut mounts = mounts.lines().map(|line| line.split(' '));
        let Some(mut mount) = mounts.find(|fields| fields.clone().nth(2) == Some("cgroup2")) else {
            return; // A machine without cgroup v2 has nothing below.
        };
        let root = Path::new(mount.nth(1).unwrap()).join(format!("cove-shim-unit-{}", std::process::id()));
        let below = root.join("init");
        fs::create_dir_all(&below).unwrap();
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(below.join("cgroup.procs"), sleeper.id().to_string()).unwrap();
        let group = Cgroup::Unified(fs::File::open(&root).unwrap().into());
        let found = group.beneath(i32::try_from(sleeper.id()).unwrap());
        let elsewhere = group.beneath(i32::try_from(std::process::id()).unwrap());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        let same =
            |fd: OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino == rustix::fs::stat(&below).unwrap().st_ino;
        let same = found.map(same);
        fs::remove_dir(&below).unwrap();
        fs::remove_dir(&root).unwrap();
        assert!(same.unwrap());
        assert!(elsewhere.is_err());
    }

    #[test]
    fn members_are_those_of_groups_below_too() {
        for (root, split) in
            [("/sys/fs/cgroup/pids", true), ("/sys/fs/cgroup", false), ("/sys/fs/cgroup/unified", false)]
        {
            let root = Path::new(root);
            if !root.join("cgroup.procs").exists() {
                continue; // A machine has one of the versions, or both.
            }
            let group = root.join(format!("cove-shim-below-{}", std::process::id()));
            let below = group.join("a/b");
            fs::create_dir_all(&below).unwrap();
            let open = || fs::OpenOptions::new().write(true).open(group.join("cgroup.procs")).unwrap();
            let cgroup = match split {
                true => Cgroup::Split(vec![open().into()]),
                false => Cgroup::Unified(fs::File::open(&group).unwrap().into()),
            };
            let mut sleepers = [&group, &below].map(|place| {
                let sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
                fs::write(place.join("cgroup.procs"), sleeper.id().to_string()).unwrap();
                sleeper
            });
            let mut found = cgroup.members();
            for sleeper in &mut sleepers {
                sleeper.kill().unwrap();
                sleeper.wait().unwrap();
            }
            for place in ["a/b", "a", ""] {
                fs::remove_dir(group.join(place)).unwrap();
            }
            let mut expected = sleepers.each_ref().map(|sleeper| i32::try_from(sleeper.id()).unwrap());
            expected.sort_unstable();
            let found = found.as_mut().unwrap();
            found.sort_unstable();
            assert_eq!(*found, expected, "{}", root.display());
        }
    }

    #[test]
    fn freezes_and_thaws_v1() {
        let root = Path::new("/sys/fs/cgroup/freezer");
        if !root.exists() {
            return; // v2 kills a group in one step.
        }
        let group = root.join(format!("cove-shim-unit-{}", std::process::id()));
        fs::create_dir(&group).unwrap();
        let procs = fs::OpenOptions::new().write(true).open(group.join("cgroup.procs")).unwrap();
        let cgroup = Cgroup::Split(vec![fs::File::open("/proc/self/stat").unwrap().into(), procs.into()]);
        let state = || fs::read_to_string(group.join("freezer.state"));
        let states = [("FROZEN", true), ("THAWED", false)]
            .map(|(wanted, frozen)| (wanted, cgroup.freeze(frozen), state()));
        fs::remove_dir(&group).unwrap();
        for (wanted, written, state) in states {
            written.unwrap();
            assert_eq!(state.unwrap().trim(), wanted);
        }
    }

    #[test]
    fn a_place_must_fit_its_descriptors() {
        let fd = || fs::File::open("/").unwrap().into();
        for (unified, count, fds, fits) in [
            (true, 1, 1, true),
            (true, 2, 2, false),
            (true, 1, 0, false),
            (false, 2, 2, true),
            (false, 0, 0, true),
            (false, 0, 1, false),
        ] {
            let fds: Vec<OwnedFd> = (0..fds).map(|_| fd()).collect();
            assert_eq!(Cgroup::new(&CgroupPlace { unified, count }, fds).is_some(), fits);
        }
    }
}
