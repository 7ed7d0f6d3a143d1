//! The tree: makes, opens and removes a group in every hierarchy.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::group::{self, Cgroup, Group, MAX_DEPTH};
use super::hierarchy::{self, Hierarchy, Version};
use super::path::split;
use super::{CgroupError, CgroupPath};

/// The controllers that containers are limited by or counted with, turned on in version 2 on the way down.
const WANTED: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];
/// Without one of these a host cannot keep what a container spec promises.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
/// How often a walk begins anew after an ancestor vanished: once for each neighbour that removes its empty parent at
/// the same moment; more than a few at once mean that somebody fights us.
const WALKS: usize = 8;
/// How long a remove waits for killed processes to leave. They leave within a millisecond or so; one in an
/// uninterruptible wait may not, and then the caller's next teardown removes the group.
const REMOVE_DEADLINE: Duration = Duration::from_secs(2);
/// First pause between two tries of rmdir, doubled up to [`REMOVE_PAUSE_MAX`]: an exit takes tens of microseconds.
const REMOVE_PAUSE: Duration = Duration::from_micros(200);
/// Longest pause between two tries of rmdir.
const REMOVE_PAUSE_MAX: Duration = Duration::from_millis(20);

/// What the host has mounted: every v1 hierarchy, with the v2 tree beside them if there is one; or the v2 tree alone.
#[derive(Debug)]
pub struct Hierarchies {
    unified: bool,
    list: Vec<Arc<Hierarchy>>,
}

impl Hierarchies {
    /// Reads what is mounted below /sys/fs/cgroup, once.
    ///
    /// # Errors
    /// [`CgroupError::Mount`] for a hierarchy that cannot be written, [`CgroupError::NoController`] where cpu, memory
    /// or pids is in no hierarchy.
    pub fn detect() -> Result<Self, CgroupError> {
        let mut list = hierarchy::mounted()?;
        let unified =
            list.iter().any(|h| h.version == Version::V2 && NEEDED.iter().all(|needed| h.has(needed)));
        if unified {
            // What is left of version 1 then (name=systemd at most) limits nothing and counts nothing.
            list.retain(|h| h.version == Version::V2);
        }
        if let Some(missing) = NEEDED.into_iter().find(|needed| !list.iter().any(|h| h.has(needed))) {
            return Err(CgroupError::NoController(missing));
        }
        Ok(Self { unified, list: list.into_iter().map(Arc::new).collect() })
    }

    /// The v2 tree carries the controllers.
    #[must_use]
    pub fn unified(&self) -> bool {
        self.unified
    }

    pub(super) fn hierarchies(&self) -> &[Arc<Hierarchy>] {
        &self.list
    }

    /// Makes the cgroup and its missing ancestors in every hierarchy (v1: cpuset filled from the parent; v2:
    /// controllers enabled on the way down). Idempotent. What was made before a failure is left for `remove`.
    ///
    /// # Errors
    /// The kernel refuses a directory or a controller: the error names it.
    pub fn create(&self, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        let groups = self
            .list
            .iter()
            .map(|hierarchy| {
                let dir = self.make(hierarchy, path)?;
                Ok(Group { hierarchy: Arc::clone(hierarchy), path: full(hierarchy, path.relative()), dir })
            })
            .collect::<Result<_, CgroupError>>()?;
        Ok(Cgroup { unified: self.unified, groups })
    }

    /// Opens it where it exists; `None` where no hierarchy has it.
    ///
    /// # Errors
    /// A directory is there and cannot be opened.
    pub fn open(&self, path: &CgroupPath) -> Result<Option<Cgroup>, CgroupError> {
        let mut groups = Vec::new();
        for hierarchy in &self.list {
            if let Some(dir) = open(hierarchy, path.relative())? {
                groups.push(Group {
                    hierarchy: Arc::clone(hierarchy),
                    path: full(hierarchy, path.relative()),
                    dir,
                });
            }
        }
        Ok((!groups.is_empty()).then_some(Cgroup { unified: self.unified, groups }))
    }

    /// Removes it and what containers made below it, in every hierarchy, with a bounded retry on EBUSY. Gone is done.
    /// Waits up to 2 s for killed processes to leave; it kills nobody itself.
    ///
    /// # Errors
    /// The first refusal, after every hierarchy was tried; EBUSY if somebody is still in it.
    pub fn remove(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let deadline = Instant::now() + REMOVE_DEADLINE;
        let mut result = Ok(());
        for hierarchy in &self.list {
            result = result.and(remove(hierarchy, path.relative(), deadline));
        }
        result
    }

    /// Removes it where it is empty and nobody is in it; leaves it else. For shared parents of ours.
    ///
    /// # Errors
    /// The kernel refuses for another reason than that it is in use.
    pub fn remove_if_empty(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        for hierarchy in &self.list {
            let Some((parent, name)) = parent(hierarchy, path.relative())? else { continue };
            match rmdir(parent.as_fd(), name) {
                Ok(()) | Err(Errno::BUSY | Errno::NOTEMPTY) => {}
                Err(e) => {
                    return Err(CgroupError::system("remove", full(hierarchy, path.relative()), e));
                }
            }
        }
        Ok(())
    }

    /// One group in one hierarchy.
    fn make(&self, hierarchy: &Hierarchy, path: &CgroupPath) -> Result<OwnedFd, CgroupError> {
        if let Some(dir) = open(hierarchy, path.relative())?
            && self.is_ready(hierarchy, &dir)
        {
            return Ok(dir);
        }
        for _ in 1..WALKS {
            match self.walk(hierarchy, path) {
                // A neighbour removed an empty ancestor between two steps.
                Err(CgroupError::System { source, .. } | CgroupError::Value { source, .. })
                    if group::is_gone(&source) => {}
                done => return done,
            }
        }
        self.walk(hierarchy, path)
    }

    /// An existing group needs nothing more: a first make may have been cut off before its last step.
    fn is_ready(&self, hierarchy: &Hierarchy, dir: &OwnedFd) -> bool {
        let words = |name: &str| group::read_below(dir.as_fd(), name).unwrap_or_default();
        if hierarchy.has("cpuset") && !self.unified {
            return !words("cpuset.cpus").trim().is_empty() && !words("cpuset.mems").trim().is_empty();
        }
        if self.unified {
            let there = words("cgroup.controllers");
            return NEEDED.iter().all(|needed| there.split_whitespace().any(|word| word == *needed));
        }
        true
    }

    /// Makes what is missing from the root down.
    fn walk(&self, hierarchy: &Hierarchy, path: &CgroupPath) -> Result<OwnedFd, CgroupError> {
        let mut at = hierarchy.mount.clone();
        let mut dir = hierarchy.root.try_clone().map_err(|e| CgroupError::system("duplicate", &at, e))?;
        for name in split(path.relative()) {
            if self.unified {
                enable_controllers(dir.as_fd(), &at)?;
            }
            at.push(name);
            match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(CgroupError::system("make", at, e)),
            }
            let child = group::open_below(dir.as_fd(), Path::new(name), OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(|e| CgroupError::system("open", &at, e))?;
            if hierarchy.has("cpuset") && hierarchy.version == Version::V1 {
                fill_cpuset(dir.as_fd(), child.as_fd(), &at)?;
            }
            dir = child;
        }
        Ok(dir)
    }
}

fn full(hierarchy: &Hierarchy, relative: &Path) -> std::path::PathBuf {
    hierarchy.mount.join(relative)
}

fn open(hierarchy: &Hierarchy, relative: &Path) -> Result<Option<OwnedFd>, CgroupError> {
    group::open_dir(hierarchy.root.as_fd(), relative)
        .map_err(|e| CgroupError::system("open", full(hierarchy, relative), e))
}

/// The directory that a group is in, and the group's name there; `None` where that directory is gone.
fn parent<'a>(
    hierarchy: &Hierarchy,
    relative: &'a Path,
) -> Result<Option<(OwnedFd, &'a OsStr)>, CgroupError> {
    let name = relative.file_name().expect("a checked path has a last part");
    let above = relative.parent().unwrap_or(Path::new(""));
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    Ok(open(hierarchy, above)?.map(|dir| (dir, name)))
}

fn remove(hierarchy: &Hierarchy, relative: &Path, deadline: Instant) -> Result<(), CgroupError> {
    let Some((parent, name)) = parent(hierarchy, relative)? else { return Ok(()) };
    remove_tree(parent.as_fd(), name, MAX_DEPTH, deadline)
        .map_err(|e| CgroupError::system("remove", full(hierarchy, relative), e))
}

/// Removes a group, those below it first. The kernel answers EBUSY both for children and for processes.
fn remove_tree(dir: BorrowedFd<'_>, name: &OsStr, depth: usize, deadline: Instant) -> Result<(), Errno> {
    let mut pause = REMOVE_PAUSE;
    loop {
        match rmdir(dir, name) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY) => {}
            Err(e) => return Err(e),
        }
        let Some(group) = group::open_dir(dir, Path::new(name))? else { return Ok(()) };
        let children = group::children(group.as_fd())?;
        if !children.is_empty() {
            if depth == 0 {
                return Err(Errno::LOOP);
            }
            for child in &children {
                remove_tree(group.as_fd(), child, depth - 1, deadline)?;
            }
        } else if Instant::now() >= deadline {
            return Err(Errno::BUSY);
        } else {
            sleep(pause);
            pause = (pause * 2).min(REMOVE_PAUSE_MAX);
        }
    }
}

/// Gone is done.
fn rmdir(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        result => result,
    }
}

/// A new v1 cpuset is empty, and takes no process before it has processors and memory nodes (admin-guide/cgroup-v1).
fn fill_cpuset(parent: BorrowedFd<'_>, child: BorrowedFd<'_>, at: &Path) -> Result<(), CgroupError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let read =
            |dir| group::read_below(dir, name).map_err(|e| CgroupError::system("read", at.join(name), e));
        if !read(child)?.trim().is_empty() {
            continue;
        }
        let value = read(parent)?;
        write_below(child, name, value.trim(), at)?;
    }
    Ok(())
}

/// v2: a controller is in a group when its parent says so in cgroup.subtree_control.
fn enable_controllers(dir: BorrowedFd<'_>, at: &Path) -> Result<(), CgroupError> {
    let read =
        |name: &str| group::read_below(dir, name).map_err(|e| CgroupError::system("read", at.join(name), e));
    let (there, on) = (read("cgroup.controllers")?, read("cgroup.subtree_control")?);
    let missing = missing_controllers(&there, &on);
    if missing.is_empty() { Ok(()) } else { write_below(dir, "cgroup.subtree_control", &missing, at) }
}

/// What to write to cgroup.subtree_control.
fn missing_controllers(there: &str, on: &str) -> String {
    let has = |text: &str, controller: &str| text.split_whitespace().any(|word| word == controller);
    let missing: Vec<String> = WANTED
        .iter()
        .filter(|wanted| has(there, wanted) && !has(on, wanted))
        .map(|controller| format!("+{controller}"))
        .collect();
    missing.join(" ")
}

fn write_below(dir: BorrowedFd<'_>, name: &str, value: &str, at: &Path) -> Result<(), CgroupError> {
    let file = group::open_below(dir, Path::new(name), OFlags::WRONLY)
        .map_err(|e| CgroupError::system("open", at.join(name), e))?;
    File::from(file).write_all(value.as_bytes()).map_err(|source| CgroupError::Value {
        path: at.join(name),
        value: value.to_owned(),
        source,
    })
}

#[cfg(test)]
mod test {
    use super::super::testing::{Scratch, Sleeper};
    use super::*;

    fn is_there(scratch: &Scratch, below: &str) -> bool {
        let name = scratch.path(below);
        scratch.hierarchies.list.iter().any(|h| full(h, name.relative()).exists())
    }

    #[test]
    fn makes_and_removes_in_every_hierarchy_any_number_of_times() {
        let scratch = Scratch::new("tree");
        let path = scratch.path("a/b");
        assert!(scratch.hierarchies.open(&path).unwrap().is_none());
        for _ in 0..2 {
            let cgroup = scratch.hierarchies.create(&path).unwrap();
            assert_eq!(cgroup.groups.len(), scratch.hierarchies.list.len());
        }
        for hierarchy in &scratch.hierarchies.list {
            assert!(full(hierarchy, path.relative()).is_dir(), "{hierarchy:?}");
        }
        assert!(scratch.hierarchies.open(&path).unwrap().is_some());
        for _ in 0..2 {
            scratch.hierarchies.remove(&path).unwrap();
            assert!(!is_there(&scratch, "a/b"));
        }
        assert!(is_there(&scratch, "a"));
    }

    #[test]
    fn a_new_group_takes_a_process_at_once() {
        let scratch = Scratch::new("cpuset");
        let sleeper = Sleeper::start();
        scratch.create("a/b/c").add(sleeper.pid()).unwrap();
    }

    #[test]
    fn mends_a_group_whose_making_was_cut_off() {
        let scratch = Scratch::new("mend");
        scratch.create("a");
        for hierarchy in &scratch.hierarchies.list {
            rustix::fs::mkdirat(&hierarchy.root, scratch.path("a/b").relative(), Mode::from_raw_mode(0o755))
                .unwrap();
        }
        let sleeper = Sleeper::start();
        scratch.create("a/b").add(sleeper.pid()).unwrap();
    }

    #[test]
    fn removes_what_a_container_made_below() {
        let scratch = Scratch::new("below");
        scratch.create("pod/x/y/z");
        scratch.create("pod/x/w");
        scratch.hierarchies.remove(&scratch.path("pod")).unwrap();
        assert!(!is_there(&scratch, "pod"));
    }

    #[test]
    fn an_empty_parent_goes_and_a_used_one_stays() {
        let scratch = Scratch::new("empty");
        scratch.create("a/b");
        scratch.hierarchies.remove_if_empty(&scratch.path("a")).unwrap();
        assert!(is_there(&scratch, "a/b"));
        scratch.hierarchies.remove(&scratch.path("a/b")).unwrap();
        for _ in 0..2 {
            scratch.hierarchies.remove_if_empty(&scratch.path("a")).unwrap();
            assert!(!is_there(&scratch, "a"));
        }
        scratch.hierarchies.remove_if_empty(&scratch.path("never/was")).unwrap();
    }

    #[test]
    fn a_group_in_use_is_not_removed_and_says_busy() {
        let scratch = Scratch::new("busy");
        let sleeper = Sleeper::start();
        scratch.create("a").add(sleeper.pid()).unwrap();
        let error = scratch.hierarchies.remove(&scratch.path("a")).unwrap_err();
        assert!(
            matches!(&error, CgroupError::System { source, .. } if source.kind() == std::io::ErrorKind::ResourceBusy),
            "{error}"
        );
        drop(sleeper);
        scratch.hierarchies.remove(&scratch.path("a")).unwrap();
    }

    #[test]
    fn a_neighbour_who_removes_the_parent_does_not_break_a_make() {
        let scratch = Scratch::new("race");
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let scratch = &scratch;
                scope.spawn(move || {
                    for round in 0..20 {
                        let path = scratch.path(&format!("parent/{thread}-{round}"));
                        scratch.hierarchies.create(&path).unwrap();
                        scratch.hierarchies.remove(&path).unwrap();
                        scratch.hierarchies.remove_if_empty(&scratch.path("parent")).unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn enables_only_what_is_there_and_off() {
        for (there, on, expected) in [
            ("cpuset cpu io memory hugetlb pids rdma misc", "", "+cpu +cpuset +io +memory +pids +hugetlb"),
            ("cpu memory pids", "cpu memory pids", ""),
            ("cpu memory pids", "memory", "+cpu +pids"),
            ("", "", ""),
        ] {
            assert_eq!(missing_controllers(there, on), expected);
        }
    }
}
