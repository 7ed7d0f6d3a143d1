//! The directory that entries are being made in: opened once for as long as entries stay in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use cove_path::{PathError, Root};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, fchmod, fchown, fstat,
    futimens, mkdirat, openat, statat, unlinkat,
};
use rustix::io::Errno;

use crate::error::Name;
use crate::tar::Entry;
use crate::tree::implicit::{Implicit, inode};
use crate::tree::metadata::{failed, make_opaque};
use crate::{LayerError, Limits};

/// What a directory gets that no entry names, until the image's fix-up.
const IMPLICIT_MODE: Mode = Mode::from_raw_mode(0o755);

/// For reading, since an `O_PATH` descriptor takes neither attributes nor times.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

pub(crate) struct Parents<'a> {
    root: Root,
    root_inode: (u64, u64),
    limits: &'a Limits,
    current: Option<Parent>,
    pub(crate) implicit: Implicit,
    /// Directories made here.
    pub(crate) made: u64,
}

/// An open directory of the layer.
pub(crate) struct Parent {
    path: PathBuf,
    fd: OwnedFd,
    /// When it was opened; making things in it changes it.
    mtime: Timespec,
    pub(crate) is_root: bool,
    /// Marked already: an archive may repeat the marker as often as it likes (A41).
    pub(crate) opaque: bool,
}

impl Parent {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<'a> Parents<'a> {
    pub(crate) fn new(root: Root, limits: &'a Limits) -> Result<Self, LayerError> {
        let root_inode = inode(root.as_fd()).map_err(|errno| {
            LayerError::Target(PathError::Call { doing: "stat", path: PathBuf::from("/"), errno })
        })?;
        Ok(Self { root, root_inode, limits, current: None, implicit: Implicit::default(), made: 0 })
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// The directory at `path`, made with its parents if it is missing.
    pub(crate) fn enter(&mut self, path: &Path, entry: &Entry) -> Result<&mut Parent, LayerError> {
        if self.current.as_ref().is_none_or(|current| current.path != path) {
            self.leave(entry)?;
            let fd = self.open(path, entry)?;
            let stat = fstat(&fd).map_err(failed(entry, "stat directory"))?;
            let is_root = (stat.st_dev, stat.st_ino) == self.root_inode;
            let parent = Parent { path: path.to_owned(), fd, mtime: mtime(&stat), is_root, opaque: false };
            return Ok(self.current.insert(parent));
        }
        self.current.as_mut().ok_or_else(|| failed(entry, "open directory")(Errno::NOENT))
    }

    /// Gives the directory the time back that it had before entries were made in it. Also needed when something was
    /// removed: the way to the directory may lead elsewhere now.
    pub(crate) fn leave(&mut self, entry: &Entry) -> Result<(), LayerError> {
        self.close().map_err(failed(entry, "restore the directory's times"))
    }

    /// [`Parents::leave`] after the last entry.
    pub(crate) fn finish(mut self) -> Result<(Root, Implicit), LayerError> {
        self.close().map_err(|errno| LayerError::Write {
            name: Name::new(b"/"),
            doing: "restore the directory's times",
            errno,
        })?;
        Ok((self.root, self.implicit))
    }

    fn close(&mut self) -> Result<(), Errno> {
        let Some(parent) = self.current.take() else { return Ok(()) };
        futimens(&parent.fd, &only_mtime(parent.mtime))
    }

    fn open(&mut self, path: &Path, entry: &Entry) -> Result<OwnedFd, LayerError> {
        let parent = |source| LayerError::Parent { name: Name::new(&entry.name), source };
        if path.as_os_str().is_empty() {
            return openat(self.root.as_fd(), ".", DIRECTORY, Mode::empty())
                .map_err(failed(entry, "open the root"));
        }
        let covered = match self.root.resolve(path, DIRECTORY) {
            Ok(fd) => return Ok(fd),
            Err(error) if error.errno() == Some(Errno::NOENT) => false,
            Err(error) if error.errno() == Some(Errno::NOTDIR) => true,
            Err(error) => return Err(parent(error)),
        };
        let holder = self.nearest(path, entry)?;
        if covered {
            self.uncover(path, entry)?;
        }
        let fd = self.make(path, entry)?;
        if let Some((holder, times)) = holder {
            futimens(&holder, &times).map_err(failed(entry, "restore the directory's times"))?;
        }
        openat(&fd, ".", DIRECTORY, Mode::empty()).map_err(failed(entry, "open directory"))
    }

    /// The directory that the first missing one will be made in, and the times to give it back.
    fn nearest(&self, path: &Path, entry: &Entry) -> Result<Option<(OwnedFd, Timestamps)>, LayerError> {
        for ancestor in path.ancestors().skip(1) {
            let ancestor = if ancestor.as_os_str().is_empty() { Path::new("/") } else { ancestor };
            if let Ok(fd) = self.root.resolve(ancestor, DIRECTORY) {
                let stat = fstat(&fd).map_err(failed(entry, "stat directory"))?;
                return Ok(Some((fd, only_mtime(mtime(&stat)))));
            }
        }
        Ok(None)
    }

    fn make(&mut self, path: &Path, entry: &Entry) -> Result<OwnedFd, LayerError> {
        let Self { root, limits, implicit, made, .. } = self;
        let mut note = |path: &Path| -> Result<(), Trouble> {
            *made += 1;
            if *made > limits.entries {
                return Err(LayerError::Limit { limit: "entries", max: limits.entries }.into());
            }
            let fd = root.resolve(path, DIRECTORY | OFlags::NOFOLLOW)?;
            Ok(note_implicit(fd.as_fd(), path, implicit, limits, entry)?)
        };
        let made = root.make_dirs_noting(path, IMPLICIT_MODE, &mut note);
        made.map_err(|trouble| match trouble {
            Trouble::Path(source) => LayerError::Parent { name: Name::new(&entry.name), source },
            Trouble::Layer(error) => error,
        })
    }

    /// A whiteout of this layer lies in the way: the entry after it means a new directory in its place, which hides
    /// what the layers below have there.
    fn uncover(&mut self, path: &Path, entry: &Entry) -> Result<(), LayerError> {
        let parts: Vec<&Path> = path.ancestors().filter(|part| !part.as_os_str().is_empty()).collect();
        for part in parts.into_iter().rev() {
            let parent = |source| LayerError::Parent { name: Name::new(&entry.name), source };
            let (dir, leaf) = self.root.resolve_parent(part).map_err(parent)?;
            let stat =
                statat(&dir, &leaf, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(entry, "stat directory"))?;
            if is_whiteout(&stat) {
                unlinkat(&dir, &leaf, AtFlags::empty()).map_err(failed(entry, "remove whiteout"))?;
                mkdirat(&dir, &leaf, IMPLICIT_MODE).map_err(failed(entry, "make directory"))?;
                let fd = openat(&dir, &leaf, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
                    .map_err(failed(entry, "open directory"))?;
                make_opaque(fd.as_fd(), entry)?;
                return note_implicit(fd.as_fd(), part, &mut self.implicit, self.limits, entry);
            }
        }
        Ok(())
    }
}

/// A failure of the walk, or of what is done to each directory that it makes.
enum Trouble {
    Path(PathError),
    Layer(LayerError),
}

impl From<PathError> for Trouble {
    fn from(error: PathError) -> Self {
        Self::Path(error)
    }
}

impl From<LayerError> for Trouble {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

/// Neither the umask nor a set-group-id parent has a say in it.
fn note_implicit(
    fd: BorrowedFd<'_>,
    path: &Path,
    implicit: &mut Implicit,
    limits: &Limits,
    entry: &Entry,
) -> Result<(), LayerError> {
    fchown(fd, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(failed(entry, "set owner"))?;
    fchmod(fd, IMPLICIT_MODE).map_err(failed(entry, "set mode"))?;
    let inode = inode(fd).map_err(failed(entry, "stat directory"))?;
    implicit.add(inode, path, limits)
}

/// A whiteout of this layer: entries cannot make a device 0:0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn mtime(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or_default() }
}

fn only_mtime(mtime: Timespec) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    Timestamps { last_access: omit, last_modification: mtime }
}
