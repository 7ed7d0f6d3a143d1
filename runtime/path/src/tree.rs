//! A directory tree that is our own: state, images.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags, RenameFlags, mkdirat, renameat_with, unlinkat};
use rustix::io::Errno;

use crate::resolve::{self, OURS};
use crate::root::read_bounded;
use crate::{PathError, copy, remove};

/// One of our own directories. Paths are relative, and a symlink, a `..` that leaves, or a mount below it is an
/// error: nobody but us may write there.
#[derive(Debug)]
pub struct Tree {
    fd: OwnedFd,
}

impl Tree {
    /// Opens a directory of the host.
    ///
    /// # Errors
    /// When `path` is missing or not a directory.
    pub fn open(path: &Path) -> Result<Self, PathError> {
        resolve::directory(path, OFlags::RDONLY).map(Self::from_fd)
    }

    /// Takes a directory descriptor (opened for reading, not `O_PATH`).
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// The directory itself.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens an existing file or directory. Close-on-exec is added.
    ///
    /// # Errors
    /// `ELOOP` for a symlink, `EXDEV` for a mount or a way out, else as openat2(2).
    pub fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, PathError> {
        resolve::open(&self.fd, path, flags, Mode::empty(), OURS).map_err(PathError::call("open", path))
    }

    /// Opens a directory below as a tree.
    ///
    /// # Errors
    /// As [`Tree::open_at`].
    pub fn dir(&self, path: &Path) -> Result<Self, PathError> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY).map(Self::from_fd)
    }

    /// Makes one directory, whose parent exists.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken.
    pub fn make_dir(&self, path: &Path, mode: Mode) -> Result<(), PathError> {
        let (parent, leaf) = self.parent(path)?;
        mkdirat(&parent, leaf, mode).map_err(PathError::call("make directory", path))
    }

    /// Makes a directory and its missing parents, all with `mode`, and opens it.
    ///
    /// # Errors
    /// `ENOTDIR` or `ELOOP` when something else has one of the names.
    pub fn make_dirs(&self, path: &Path, mode: Mode) -> Result<Self, PathError> {
        let mut done = PathBuf::new();
        for part in path.components() {
            done.push(part);
            match self.make_dir(&done, mode) {
                Err(error) if error.errno() != Some(Errno::EXIST) => return Err(error),
                _ => {}
            }
        }
        self.dir(path)
    }

    /// Makes a new regular file, open for writing.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken, whatever has it.
    pub fn create(&self, path: &Path, mode: Mode) -> Result<OwnedFd, PathError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        resolve::open(&self.fd, path, flags, mode, OURS).map_err(PathError::call("create", path))
    }

    /// Reads a file of at most `cap` bytes; `None` when nothing has that name.
    ///
    /// # Errors
    /// [`PathError::TooLarge`], or as [`Tree::open_at`].
    pub fn read(&self, path: &Path, cap: usize) -> Result<Option<Vec<u8>>, PathError> {
        match self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => read_bounded(file, path, cap).map(Some),
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces a file as a whole: a reader sees the old content or the new one. A temporary name beside it that an
    /// earlier life left is removed first. Nothing is synced.
    ///
    /// # Errors
    /// As the kernel says; the old content is then still there.
    pub fn replace(&self, path: &Path, content: &[u8], mode: Mode) -> Result<(), PathError> {
        let (_, leaf) = self.parent(path)?;
        let mut name = OsString::from(".");
        name.push(leaf);
        name.push(".new");
        let temporary = path.with_file_name(name);
        let file = match self.create(&temporary, mode) {
            Err(error) if error.errno() == Some(Errno::EXIST) => {
                self.remove_file(&temporary)?;
                self.create(&temporary, mode)?
            }
            other => other?,
        };
        let written = std::fs::File::from(file).write_all(content).map_err(|error| {
            PathError::call("write", path)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        });
        if let Err(error) = written.and_then(|()| self.rename(&temporary, path, RenameFlags::empty())) {
            // The first failure is the one to tell; a leftover of this name is removed by the next call.
            let _ = self.remove_file(&temporary);
            return Err(error);
        }
        Ok(())
    }

    /// Renames inside the tree.
    ///
    /// # Errors
    /// As renameat2(2).
    pub fn rename(&self, from: &Path, to: &Path, flags: RenameFlags) -> Result<(), PathError> {
        let (from_parent, from_leaf) = self.parent(from)?;
        let (to_parent, to_leaf) = self.parent(to)?;
        renameat_with(&from_parent, from_leaf, &to_parent, to_leaf, flags)
            .map_err(PathError::call("rename", from))
    }

    /// The names in a directory of the tree, unsorted.
    ///
    /// # Errors
    /// As [`Tree::open_at`].
    pub fn list(&self, path: &Path) -> Result<Vec<OsString>, PathError> {
        let fd = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let dir = Dir::new(fd).map_err(PathError::call("list", path))?;
        let mut names = Vec::new();
        for entry in dir {
            let name = entry.map_err(PathError::call("list", path))?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    }

    /// Removes a file, symlink or other non-directory; it is no error if nothing has the name.
    ///
    /// # Errors
    /// As unlinkat(2).
    pub fn remove_file(&self, path: &Path) -> Result<(), PathError> {
        let (parent, leaf) = self.parent(path)?;
        match unlinkat(&parent, leaf, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(PathError::call("remove", path)(errno)),
        }
    }

    /// Removes whatever has this name, with all below it; it is no error if nothing has. Never follows a symlink,
    /// never enters a mount, and takes bounded memory and descriptors however deep the tree is.
    ///
    /// # Errors
    /// `EXDEV` or `EBUSY` when something is mounted below; what was removed by then stays removed.
    pub fn remove_all(&self, path: &Path) -> Result<(), PathError> {
        let (parent, leaf) = match self.parent(path) {
            Err(error) if error.errno() == Some(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        remove::remove_all(&parent, &leaf).map_err(PathError::call("remove", path))
    }

    /// Copies everything in this directory into another, which is empty, and gives that one the attributes of this:
    /// owners, modes, times, extended attributes, several names of one file, holes. Never follows a symlink and never
    /// enters a mount.
    ///
    /// # Errors
    /// `EXDEV` when something is mounted below, `EEXIST` when a name is taken; what was copied by then stays.
    pub fn copy_to(&self, to: &Tree) -> Result<(), PathError> {
        copy::copy(self, to)
    }

    fn parent(&self, path: &Path) -> Result<(OwnedFd, OsString), PathError> {
        let no_name = || PathError::NoName { path: path.to_owned() };
        let leaf = path.file_name().ok_or_else(no_name)?.to_owned();
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let fd = self.open_at(parent, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok((fd, leaf))
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confined::{confined, directory};
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn refuses_links_and_ways_out() {
        confined(|| {
            let temp = directory();
            fs::create_dir(temp.path().join("tree")).unwrap();
            fs::write(temp.path().join("secret"), "x").unwrap();
            symlink("..", temp.path().join("tree/up")).unwrap();
            let tree = Tree::open(&temp.path().join("tree")).unwrap();
            for (path, errno) in
                [("up/secret", Errno::LOOP), ("../secret", Errno::XDEV), ("/etc/passwd", Errno::XDEV)]
            {
                assert_eq!(tree.read(Path::new(path), 10).unwrap_err().errno(), Some(errno), "{path}");
                assert_eq!(tree.remove_all(Path::new(path)).unwrap_err().errno(), Some(errno), "{path}");
            }
            tree.remove_all(Path::new("up")).unwrap();
            assert!(temp.path().join("secret").exists());
        });
    }

    #[test]
    fn replaces_files_whole() {
        confined(|| {
            let temp = directory();
            let tree = Tree::open(temp.path()).unwrap();
            tree.make_dirs(Path::new("a/b"), Mode::from(0o700)).unwrap();
            tree.make_dirs(Path::new("a/b"), Mode::from(0o700)).unwrap();
            fs::write(temp.path().join("a/b/.state.json.new"), "left over").unwrap();
            for content in ["one", "two"] {
                tree.replace(Path::new("a/b/state.json"), content.as_bytes(), Mode::from(0o600)).unwrap();
                assert_eq!(tree.read(Path::new("a/b/state.json"), 3).unwrap().unwrap(), content.as_bytes());
            }
            assert_eq!(tree.list(Path::new("a/b")).unwrap(), ["state.json"]);
            assert_eq!(tree.read(Path::new("a/b/none"), 3).unwrap(), None);
            tree.rename(Path::new("a"), Path::new("c"), RenameFlags::NOREPLACE).unwrap();
            assert_eq!(tree.list(Path::new(".")).unwrap(), ["c"]);
        });
    }
}
