//! Which groups there are below one, each hierarchy by itself: a group that is left in one of them only is left.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::group::{self, Group};
use super::hierarchy::Hierarchy;
use super::{CgroupError, CgroupPath, Hierarchies};

/// A group in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// Its directory.
    pub directory: PathBuf,
    /// Its place in the tree, the same in every hierarchy.
    pub path: PathBuf,
    /// Pids in it, by the PID namespace of this process; ascending. Those below it are not counted, but for the
    /// deepest level that was asked for.
    pub pids: Vec<i32>,
}

impl Hierarchies {
    /// The group at `path` and those below it, `depth` levels of them, in every hierarchy. What goes meanwhile is left
    /// out.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn below(&self, path: &CgroupPath, depth: usize) -> Result<Vec<Present>, CgroupError> {
        let mut found = Vec::new();
        for hierarchy in self.hierarchies() {
            walk(hierarchy, path.as_path(), depth, &mut found)?;
        }
        Ok(found)
    }

    /// Directories in which the group is missing: one a hierarchy.
    ///
    /// # Errors
    /// A directory is there and cannot be opened.
    pub fn missing(&self, path: &CgroupPath) -> Result<Vec<PathBuf>, CgroupError> {
        let mut missing = Vec::new();
        for hierarchy in self.hierarchies() {
            let directory = hierarchy.mount.join(path.relative());
            let there = group::open_dir(hierarchy.root.as_fd(), path.relative())
                .map_err(|error| CgroupError::system("open", &directory, error))?;
            if there.is_none() {
                missing.push(directory);
            }
        }
        Ok(missing)
    }
}

fn walk(
    hierarchy: &std::sync::Arc<Hierarchy>,
    path: &Path,
    depth: usize,
    found: &mut Vec<Present>,
) -> Result<(), CgroupError> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let directory = hierarchy.mount.join(relative);
    let failed = |doing, error| CgroupError::system(doing, &directory, error);
    let opened = group::open_dir(hierarchy.root.as_fd(), relative).map_err(|error| failed("open", error))?;
    let Some(dir) = opened else { return Ok(()) };
    let children = group::children(dir.as_fd()).map_err(|error| failed("list", error))?;
    let group = Group { hierarchy: std::sync::Arc::clone(hierarchy), path: directory.clone(), dir };
    let mut pids = BTreeSet::new();
    if depth == 0 {
        group.pids(&mut pids)?;
    } else {
        group.own_pids(&mut pids)?;
    }
    found.push(Present { directory, path: path.to_owned(), pids: pids.into_iter().collect() });
    if depth > 0 {
        for child in children {
            walk(hierarchy, &path.join(child), depth - 1, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::super::testing::{Scratch, Sleeper};

    #[test]
    fn tells_each_hierarchy_by_itself() {
        let scratch = Scratch::new("inventory");
        let pod = scratch.create("pod");
        scratch.create("pod/one/deep/deeper");
        let mut sleeper = Sleeper::start();
        pod.add(sleeper.pid()).unwrap();
        let path = scratch.path("pod");
        let found = scratch.hierarchies.below(&path, 1).unwrap();
        let hierarchies = found.iter().filter(|group| group.path == path.as_path()).count();
        assert_eq!(found.len(), 2 * hierarchies, "the group itself, and one level");
        let here = found.iter().find(|group| group.path == path.as_path()).unwrap();
        assert_eq!(here.pids, [sleeper.pid()]);
        let gone = &found.iter().find(|group| group.path.ends_with("pod/one")).unwrap().directory;
        for name in ["deep/deeper", "deep", ""] {
            std::fs::remove_dir(gone.join(name)).unwrap();
        }
        let one = path.join("one").unwrap();
        assert_eq!(&scratch.hierarchies.missing(&one).unwrap()[..], std::slice::from_ref(gone));
        assert_eq!(scratch.hierarchies.below(&one, 0).unwrap().len(), hierarchies - 1);
        pod.kill().unwrap();
        super::super::testing::wait_until("the end of the sleeper", || sleeper.ended());
        scratch.hierarchies.remove(&path).unwrap();
        assert!(scratch.hierarchies.below(&path, 3).unwrap().is_empty());
    }
}
