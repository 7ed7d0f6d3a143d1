//! Makes a path inside a root, part by part.
//!
//! Each part is opened from the descriptor of the one before and never by a longer path; a symlink or `..` starts
//! again from the root with the path walked so far. Whoever swaps a part for a symlink meanwhile gets that symlink
//! followed inside the root, and nowhere else (A09).

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use cove_guard::Guard;
use rustix::fs::{FileType, Mode, OFlags, fstat, mkdirat, readlinkat};
use rustix::io::Errno;

use crate::resolve::{self, IN_ROOT};
use crate::{PathError, Root};

/// As many symlinks as the kernel follows in one path (path_resolution(7)).
const LINKS: usize = 40;

/// How often one walk may find a part changed under its hands.
const CHANGES: usize = 128;

/// What the last part becomes when it is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    /// A directory; something else in its place is an error.
    Directory,
    /// An empty regular file; whatever is there already is taken.
    File,
}

/// Parents of a file that had to be made.
const PARENT_MODE: Mode = Mode::from_raw_mode(0o755);

struct Walk<'a, E> {
    root: &'a Root,
    asked: &'a Path,
    mode: Mode,
    last: Last,
    /// Walked already: names only, no `..`.
    done: PathBuf,
    todo: VecDeque<OsString>,
    links: usize,
    changes: usize,
    /// Called with each directory that was made.
    made: &'a mut dyn FnMut(&Path) -> Result<(), E>,
}

pub(crate) fn make<E: From<PathError>>(
    root: &Root,
    path: &Path,
    mode: Mode,
    last: Last,
    made: &mut dyn FnMut(&Path) -> Result<(), E>,
) -> Result<OwnedFd, E> {
    let mut flags = OFlags::PATH;
    if last == Last::Directory {
        flags |= OFlags::DIRECTORY;
    }
    // Most paths are there already; a wrong kind is reported by the walk, with the part that is wrong.
    match root.resolve(path, flags) {
        Ok(fd) => return Ok(fd),
        Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::NOTDIR)) => {}
        Err(error) => return Err(error.into()),
    }
    if !Guard::InRoot.holds() {
        return Ok(make_anywhere(root, path, mode, last)?);
    }
    let mut walk = Walk {
        root,
        asked: path,
        mode,
        last,
        done: PathBuf::from("/"),
        todo: VecDeque::new(),
        links: 0,
        changes: 0,
        made,
    };
    walk.push_front(path);
    walk.run()
}

/// By whole paths, wherever their symlinks lead: without [`Guard::InRoot`].
fn make_anywhere(root: &Root, path: &Path, mode: Mode, last: Last) -> Result<OwnedFd, PathError> {
    let path = resolve::anywhere(path);
    let mut missing: Vec<&Path> = path.ancestors().filter(|part| !part.as_os_str().is_empty()).collect();
    if last == Last::File {
        missing.remove(0);
    }
    for directory in missing.into_iter().rev() {
        match mkdirat(root.as_fd(), directory, PARENT_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(PathError::call("make", directory)(errno)),
        }
    }
    if last == Last::Directory {
        return root.resolve(path, OFlags::PATH | OFlags::DIRECTORY);
    }
    resolve::open(root.as_fd(), path, OFlags::WRONLY | OFlags::CREATE, mode, IN_ROOT)
        .map_err(PathError::call("make", path))?;
    root.resolve(path, OFlags::PATH)
}

impl<E: From<PathError>> Walk<'_, E> {
    fn run(&mut self) -> Result<OwnedFd, E> {
        let mut here = self.root.resolve(Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)?;
        while let Some(name) = self.todo.pop_front() {
            if name == ".." {
                self.done.pop();
                here = self.root.resolve(&self.done, OFlags::PATH | OFlags::DIRECTORY)?;
                continue;
            }
            if let Some(next) = self.step(&here, &name)? {
                here = next;
            }
        }
        Ok(here)
    }

    /// Goes into `name`, makes it, or follows it. `None`: look again from `here`.
    fn step(&mut self, here: &OwnedFd, name: &OsString) -> Result<Option<OwnedFd>, E> {
        let found =
            resolve::open(here, Path::new(name), OFlags::PATH | OFlags::NOFOLLOW, Mode::empty(), IN_ROOT);
        match found {
            Ok(fd) => match self.kind(&fd)? {
                FileType::Symlink => Ok(Some(self.follow(&fd)?)),
                FileType::Directory => {
                    self.done.push(name);
                    Ok(Some(fd))
                }
                _ if self.todo.is_empty() && self.last == Last::File => Ok(Some(fd)),
                _ => Err(self.failed("make directory", name, Errno::NOTDIR).into()),
            },
            Err(Errno::NOENT) => {
                self.create(here, name)?;
                self.todo.push_front(name.clone());
                Ok(None)
            }
            Err(errno) => Err(self.failed("open", name, errno).into()),
        }
    }

    /// Puts the symlink's target in front of what is left, and gives the directory to go on from.
    fn follow(&mut self, link: &OwnedFd) -> Result<OwnedFd, PathError> {
        self.links += 1;
        if self.links > LINKS {
            return Err(PathError::TooManyLinks { path: self.asked.to_owned(), limit: LINKS });
        }
        let target = readlinkat(link, "", Vec::new()).map_err(PathError::call("read link", self.asked))?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            self.done = PathBuf::from("/");
        }
        self.push_front(&target);
        self.root.resolve(&self.done, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Makes the missing part. Somebody else making it first is as good.
    fn create(&mut self, here: &OwnedFd, name: &OsString) -> Result<(), E> {
        self.changes += 1;
        if self.changes > CHANGES.max(self.asked.as_os_str().len()) {
            return Err(PathError::Unstable { path: self.asked.to_owned() }.into());
        }
        let last = self.todo.is_empty();
        let directory = !last || self.last == Last::Directory;
        let made = match (last, self.last) {
            (true, Last::File) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                resolve::open(here, Path::new(name), flags, self.mode, IN_ROOT).map(drop)
            }
            (_, Last::Directory) => mkdirat(here.as_fd(), name, self.mode),
            (false, Last::File) => mkdirat(here.as_fd(), name, PARENT_MODE),
        };
        match made {
            Ok(()) if directory => (self.made)(&self.done.join(name)),
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(self.failed("make", name, errno).into()),
        }
    }

    fn push_front(&mut self, path: &Path) {
        let parts = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            _ => None,
        });
        for part in parts.collect::<Vec<_>>().into_iter().rev() {
            self.todo.push_front(part);
        }
    }

    fn kind(&self, fd: &OwnedFd) -> Result<FileType, PathError> {
        let stat = fstat(fd).map_err(PathError::call("stat", self.asked))?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }

    fn failed(&self, doing: &'static str, name: &OsString, errno: Errno) -> PathError {
        PathError::call(doing, &self.done.join(name))(errno)
    }
}
