//! One cgroup by its directory descriptors: what the other files of this module read and write through.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::CgroupError;
use super::hierarchy::{Hierarchy, Version};

/// Where a thread is moved alone (v1).
const TASKS: &str = "tasks";
/// Where a process is moved by its pid.
const PROCS: &str = "cgroup.procs";
/// How deep below a group its pids are looked for and removed. A container that may write its cgroup nests its own
/// groups a few levels deep (kind in a pod: about 8); the bound keeps a hostile one from using up descriptors.
pub(super) const MAX_DEPTH: usize = 128;

/// A cgroup in one hierarchy.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) hierarchy: Arc<Hierarchy>,
    /// From the root of the file system, for messages.
    pub(super) path: PathBuf,
    pub(super) dir: OwnedFd,
}

/// A cgroup by its directory descriptors: one a hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    pub(super) unified: bool,
    pub(super) groups: Vec<Group>,
}

/// Opens a name or a relative path below a cgroup directory: never through a link, never onto another mount.
pub(super) fn open_below(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Opens a cgroup directory below another one; `None` where it is not there.
pub(super) fn open_dir(dir: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>, Errno> {
    match open_below(dir, path, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(fd) => Ok(Some(fd)),
        // ENODEV: the group was removed between the look-up and the open.
        Err(Errno::NOENT | Errno::NODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The names of the groups directly below a directory. None for a directory that is gone.
pub(super) fn children(dir: BorrowedFd<'_>) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(Errno::NOENT | Errno::NODEV) => break,
            Err(e) => return Err(e),
        };
        let name = entry.file_name().to_bytes();
        if entry.file_type() == FileType::Directory && name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Reads a control file of a directory whole.
pub(super) fn read_below(dir: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let mut text = String::new();
    File::from(open_below(dir, Path::new(name), OFlags::RDONLY)?).read_to_string(&mut text)?;
    Ok(text)
}

impl Group {
    pub(super) fn is(&self, version: Version) -> bool {
        self.hierarchy.version == version
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn open_file(&self, name: &str, flags: OFlags) -> Result<OwnedFd, CgroupError> {
        open_below(self.dir.as_fd(), Path::new(name), flags)
            .map_err(|e| CgroupError::system("open", self.file(name), e))
    }

    pub(super) fn read(&self, name: &str) -> Result<String, CgroupError> {
        read_below(self.dir.as_fd(), name).map_err(|e| CgroupError::system("read", self.file(name), e))
    }

    /// Writes a value at once, as control files want it.
    pub(super) fn write(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        let file = self.open_file(name, OFlags::WRONLY)?;
        File::from(file).write_all(value.as_bytes()).map_err(|source| CgroupError::Value {
            path: self.file(name),
            value: value.to_owned(),
            source,
        })
    }

    /// As [`Self::write`]; false where the group has no such file, or is gone.
    pub(super) fn write_if_there(&self, name: &str, value: &str) -> Result<bool, CgroupError> {
        match self.write(name, value) {
            Ok(()) => Ok(true),
            Err(CgroupError::System { source, .. } | CgroupError::Value { source, .. })
                if is_gone(&source) =>
            {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// The pids in this group and below it.
    pub(super) fn pids(&self, pids: &mut BTreeSet<i32>) -> Result<(), CgroupError> {
        collect_pids(self.dir.as_fd(), MAX_DEPTH, pids)
            .map_err(|e| CgroupError::system("list the processes of", &self.path, e))
    }

    /// The pids in this group alone.
    pub(super) fn own_pids(&self, pids: &mut BTreeSet<i32>) -> Result<(), CgroupError> {
        list_pids(self.dir.as_fd(), pids)
            .map(drop)
            .map_err(|e| CgroupError::system("list the processes of", &self.path, e))
    }
}

/// False: the group is gone.
fn list_pids(dir: BorrowedFd<'_>, pids: &mut BTreeSet<i32>) -> io::Result<bool> {
    match read_below(dir, PROCS) {
        // 0 stands for a process that our PID namespace cannot see.
        Ok(text) => {
            pids.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid > 0));
            Ok(true)
        }
        Err(e) if is_gone(&e) => Ok(false),
        // A threaded group (version 2) has no list: its processes are in the list of its domain, above.
        Err(e) if e.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Ok(true),
        Err(e) => Err(e),
    }
}

fn collect_pids(dir: BorrowedFd<'_>, depth: usize, pids: &mut BTreeSet<i32>) -> io::Result<()> {
    if !list_pids(dir, pids)? {
        return Ok(());
    }
    let names = children(dir)?;
    if depth == 0 && !names.is_empty() {
        return Err(Errno::LOOP.into());
    }
    for name in names {
        if let Some(child) = open_dir(dir, Path::new(&name))? {
            collect_pids(child.as_fd(), depth - 1, pids)?;
        }
    }
    Ok(())
}

/// The group went away under the descriptor.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NODEV))
}

impl Cgroup {
    /// The group in the hierarchy of a controller.
    pub(super) fn group(&self, controller: &'static str) -> Result<&Group, CgroupError> {
        self.groups
            .iter()
            .find(|group| group.hierarchy.has(controller))
            .ok_or(CgroupError::NoController(controller))
    }

    /// Descriptors for `protocol::CgroupPlace`: v2 the directory; v1 `tasks` of each hierarchy for writing (`cgroup.procs`
    /// of a v2 beside them).
    ///
    /// # Errors
    /// The group is gone, or descriptors are used up.
    pub fn place(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        let open = |group: &Group| {
            if self.unified {
                group.dir.try_clone().map_err(|e| CgroupError::system("duplicate", &group.path, e))
            } else {
                group.open_file(if group.is(Version::V1) { TASKS } else { PROCS }, OFlags::WRONLY)
            }
        };
        self.groups.iter().map(open).collect()
    }

    /// Pids in it and below it in any hierarchy, by the PID namespace of this process; ascending.
    ///
    /// # Errors
    /// A list cannot be read. A group that is gone has no pids.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = BTreeSet::new();
        for group in &self.groups {
            group.pids(&mut pids)?;
        }
        Ok(pids.into_iter().collect())
    }

    /// Moves a process of the host here, in every hierarchy (for the shims' own group).
    ///
    /// # Errors
    /// [`CgroupError::Value`] with ESRCH where there is no such process.
    pub fn add(&self, pid: i32) -> Result<(), CgroupError> {
        // 0 would move this process itself.
        if pid <= 0 {
            let path = self.groups.first().map(|group| group.path.clone()).unwrap_or_default();
            return Err(CgroupError::Value { path, value: pid.to_string(), source: Errno::SRCH.into() });
        }
        self.groups.iter().try_for_each(|group| group.write(PROCS, &pid.to_string()))
    }

    /// Moves the calling thread alone here, in every v1 hierarchy: its children are born here. A thread that moves itself
    /// takes no lock of the whole host, while moving a process by its pid waits for an RCU grace period (5 to 9 ms
    /// for ten hierarchies against 0.5 ms, kernel 6.18). v2 knows no such move, and is left out.
    ///
    /// # Errors
    /// The group is gone.
    pub fn add_this_thread(&self) -> Result<(), CgroupError> {
        let split = self.groups.iter().filter(|group| group.is(Version::V1));
        split.into_iter().try_for_each(|group| group.write(TASKS, "0"))
    }
}

#[cfg(test)]
mod test {
    use super::super::testing::{Scratch, Sleeper};

    #[test]
    fn a_process_is_placed_in_every_hierarchy() {
        let scratch = Scratch::new("place");
        let cgroup = scratch.create("pod");
        let child = scratch.create("pod/child");
        let (one, two) = (Sleeper::start(), Sleeper::start());
        cgroup.add(one.pid()).unwrap();
        child.add(two.pid()).unwrap();

        let mut expected = [one.pid(), two.pid()];
        expected.sort_unstable();
        assert_eq!(cgroup.pids().unwrap(), expected);
        assert_eq!(child.pids().unwrap(), [two.pid()]);
        let place = scratch.path("pod").as_path().to_str().unwrap().to_owned();
        let mine = std::fs::read_to_string(format!("/proc/{}/cgroup", one.pid())).unwrap();
        let placed = mine.lines().filter(|line| line.ends_with(&place)).count();
        assert_eq!(placed, cgroup.groups.len(), "{mine}");
    }

    #[test]
    fn place_opens_one_file_a_hierarchy() {
        let scratch = Scratch::new("fds");
        let cgroup = scratch.create("pod");
        let sleeper = Sleeper::start();
        let fds = cgroup.place().unwrap();
        assert_eq!(fds.len(), cgroup.groups.len());
        if !cgroup.unified {
            for fd in &fds {
                rustix::io::write(fd, sleeper.pid().to_string().as_bytes()).unwrap();
            }
            assert_eq!(cgroup.pids().unwrap(), [sleeper.pid()]);
        }
    }

    #[test]
    fn no_process_is_no_success() {
        let scratch = Scratch::new("add");
        let cgroup = scratch.create("pod");
        for pid in [0, -1, i32::MAX] {
            assert!(cgroup.add(pid).is_err(), "{pid}");
        }
    }
}
