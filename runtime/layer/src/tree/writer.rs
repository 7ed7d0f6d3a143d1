//! Makes one entry after the other.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use cove_path::{Root, Tree};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat,
};
use rustix::io::{Errno, dup, write};

use crate::error::Name;
use crate::tar::{Entry, EntryPath, Kind, Reader, Role};
use crate::tree::implicit::inode;
use crate::tree::metadata::{describe, describe_name, failed, make_opaque};
use crate::tree::parents::{Parent, Parents, is_whiteout};
use crate::{Fault, LayerError, Limits};

/// What nobody else may open before its owner and mode are right.
const PRIVATE_FILE: Mode = Mode::from_raw_mode(0o600);
const PRIVATE_DIRECTORY: Mode = Mode::from_raw_mode(0o700);

pub(crate) struct Writer<'a> {
    parents: Parents<'a>,
    tally: Tally,
}

/// What was made.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Bytes of regular files.
    pub(crate) size: u64,
    pub(crate) inodes: u64,
    pub(crate) skipped_xattrs: u64,
    /// The root hides all layers below.
    pub(crate) opaque_root: bool,
    pub(crate) implicit: Vec<PathBuf>,
    /// An entry took the place of an earlier one: what lies there is less than what was made.
    pub(crate) replaced: bool,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(root: Root, limits: &'a Limits) -> Result<Self, LayerError> {
        Ok(Self { parents: Parents::new(root, limits)?, tally: Tally::default() })
    }

    /// Makes an entry, with its content from `reader`.
    pub(crate) fn place<R: Read>(
        &mut self,
        entry: &Entry,
        reader: &mut Reader<'_, R>,
    ) -> Result<(), LayerError> {
        match entry.path.role().map_err(|fault| entry.fault(fault))? {
            Role::Root => self.root(entry),
            Role::Opaque => self.opaque(entry),
            Role::Whiteout(base) => self.whiteout(entry, &base),
            Role::Ignored => Ok(()),
            Role::Plain => match &entry.kind {
                Kind::Directory => self.directory(entry),
                Kind::Hardlink(target) => self.hardlink(entry, target),
                Kind::File(_) => self.file(entry, reader),
                _ => self.special(entry),
            },
        }
    }

    /// After the last entry.
    pub(crate) fn finish(self) -> Result<Tally, LayerError> {
        let mut tally = self.tally;
        tally.inodes += self.parents.made;
        let (root, implicit) = self.parents.finish()?;
        tally.implicit = implicit.finish(&root);
        Ok(tally)
    }

    fn root(&mut self, entry: &Entry) -> Result<(), LayerError> {
        if !matches!(entry.kind, Kind::Directory) {
            return Err(entry.fault(Fault::Root));
        }
        self.parents.leave(entry)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(self.parents.root().as_fd(), ".", flags, Mode::empty())
            .map_err(failed(entry, "open the root"))?;
        self.tally.skipped_xattrs += describe(root.as_fd(), entry)?;
        Ok(())
    }

    fn opaque(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let parent = self.parents.enter(&entry.path.parent, entry)?;
        if !parent.opaque {
            make_opaque(parent.fd(), entry)?;
            parent.opaque = true;
            self.tally.opaque_root |= parent.is_root;
        }
        Ok(())
    }

    /// A whiteout hides what the layers below have, never what this one has.
    fn whiteout(&mut self, entry: &Entry, base: &OsStr) -> Result<(), LayerError> {
        let parent = self.parents.enter(&entry.path.parent, entry)?;
        match mknodat(parent.fd(), base, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
            Ok(()) => self.tally.inodes += 1,
            Err(Errno::EXIST) => {
                let there = stat(parent, base, entry)?;
                if there.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory) {
                    let fd = open_directory(parent, base).map_err(failed(entry, "open directory"))?;
                    make_opaque(fd.as_fd(), entry)?;
                }
            }
            Err(errno) => return Err(failed(entry, "make whiteout")(errno)),
        }
        Ok(())
    }

    fn directory(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let leaf = &entry.path.leaf;
        let parent = self.parents.enter(&entry.path.parent, entry)?;
        let (mut hides, mut removed) = (false, false);
        let mut made = mkdirat(parent.fd(), leaf, PRIVATE_DIRECTORY);
        if made == Err(Errno::EXIST) {
            let there = stat(parent, leaf, entry)?;
            if there.is_none_or(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory) {
                hides = there.is_some_and(|stat| is_whiteout(&stat));
                remove(parent, leaf, entry)?;
                (removed, self.tally.replaced) = (true, true);
                made = mkdirat(parent.fd(), leaf, PRIVATE_DIRECTORY);
            }
        }
        match made {
            Ok(()) => self.tally.inodes += 1,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(entry, "make directory")(errno)),
        }
        let fd = open_directory(parent, leaf).map_err(failed(entry, "open directory"))?;
        if hides {
            make_opaque(fd.as_fd(), entry)?;
        }
        self.tally.skipped_xattrs += describe(fd.as_fd(), entry)?;
        let inode = inode(&fd).map_err(failed(entry, "stat directory"))?;
        self.parents.implicit.named(inode);
        if removed { self.parents.leave(entry) } else { Ok(()) }
    }

    fn file<R: Read>(&mut self, entry: &Entry, reader: &mut Reader<'_, R>) -> Result<(), LayerError> {
        let leaf = &entry.path.leaf;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.make(entry, "make file", |dir| openat(dir, leaf, flags, PRIVATE_FILE))?;
        reader.place(&entry.path.full());
        loop {
            let chunk = reader.body()?;
            if chunk.is_empty() {
                break;
            }
            let count = match write(&fd, chunk) {
                Ok(count) => count,
                Err(Errno::INTR) => 0,
                Err(errno) => return Err(failed(entry, "write file")(errno)),
            };
            self.tally.size = self.tally.size.saturating_add(crate::stream::as_u64(count));
            reader.take(count);
        }
        self.tally.skipped_xattrs += describe(fd.as_fd(), entry)?;
        Ok(())
    }

    /// A symlink, device or pipe.
    fn special(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let leaf = &entry.path.leaf;
        let node = |dir: BorrowedFd<'_>, kind, device| mknodat(dir, leaf, kind, PRIVATE_FILE, device);
        self.make(entry, "make node", |dir| match &entry.kind {
            Kind::Symlink(target) => symlinkat(target.as_slice(), dir, leaf),
            Kind::CharDevice(major, minor) => node(dir, FileType::CharacterDevice, makedev(*major, *minor)),
            Kind::BlockDevice(major, minor) => node(dir, FileType::BlockDevice, makedev(*major, *minor)),
            Kind::Fifo => node(dir, FileType::Fifo, 0),
            Kind::File(_) | Kind::Directory | Kind::Hardlink(_) => Err(Errno::INVAL),
        })?;
        let parent = self.parents.enter(&entry.path.parent, entry)?;
        self.tally.skipped_xattrs += describe_name(parent.fd(), leaf, entry)?;
        Ok(())
    }

    /// A second name of something that this layer has; the entry's own metadata is that of the first name.
    fn hardlink(&mut self, entry: &Entry, target: &EntryPath) -> Result<(), LayerError> {
        let missing = || entry.fault(Fault::LinkTarget);
        if target.leaf.is_empty() {
            return Err(missing());
        }
        let whole = target.full();
        let (dir, target_leaf) = match self.parents.root().resolve_parent(Path::new(&whole)) {
            Ok(found) => found,
            Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::NOTDIR)) => {
                return Err(missing());
            }
            Err(source) => return Err(LayerError::Parent { name: Name::new(&entry.name), source }),
        };
        let from = match statat(&dir, &target_leaf, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Err(missing()),
            Err(errno) => return Err(failed(entry, "stat link target")(errno)),
        };
        if FileType::from_raw_mode(from.st_mode) == FileType::Directory || is_whiteout(&from) {
            return Err(missing());
        }
        let leaf = &entry.path.leaf;
        let parent = self.parents.enter(&entry.path.parent, entry)?;
        let there = stat(parent, leaf, entry)?;
        if there.is_some_and(|to| (to.st_dev, to.st_ino) == (from.st_dev, from.st_ino)) {
            return Ok(());
        }
        self.make(entry, "make hard link", |to| linkat(&dir, &target_leaf, to, leaf, AtFlags::empty()))?;
        self.tally.inodes -= 1;
        Ok(())
    }

    /// Makes something that is not a directory, in place of whatever has its name.
    fn make<T>(
        &mut self,
        entry: &Entry,
        doing: &'static str,
        mut make: impl FnMut(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, LayerError> {
        let parent = self.parents.enter(&entry.path.parent, entry)?;
        let mut made = make(parent.fd());
        if matches!(made, Err(Errno::EXIST)) {
            remove(parent, &entry.path.leaf, entry)?;
            self.tally.replaced = true;
            made = make(parent.fd());
            self.parents.leave(entry)?;
        }
        self.tally.inodes += 1;
        made.map_err(failed(entry, doing))
    }
}

fn stat(parent: &Parent, leaf: &OsStr, entry: &Entry) -> Result<Option<Stat>, LayerError> {
    match statat(parent.fd(), leaf, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(failed(entry, "stat")(errno)),
    }
}

fn open_directory(parent: &Parent, leaf: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent.fd(), leaf, flags, Mode::empty())
}

/// Removes what an earlier entry of this layer made.
fn remove(parent: &Parent, leaf: &OsStr, entry: &Entry) -> Result<(), LayerError> {
    let fd = dup(parent.fd()).map_err(failed(entry, "open directory"))?;
    Tree::from_fd(fd)
        .remove_all(Path::new(leaf))
        .map_err(|source| LayerError::Parent { name: Name::new(&entry.name), source })
}
