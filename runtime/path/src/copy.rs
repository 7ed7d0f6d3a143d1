//! Copies what is in one directory into another, by descriptor, for content that somebody else shaped to hurt.
//!
//! Nothing is opened that could block or act on being opened, no symlink is followed, no mount is entered, and few
//! descriptors are held however deep the tree is. What cannot be copied as it is is an error, never left out.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags,
    chmodat, chownat, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, ftruncate, futimens, linkat,
    mkdirat, mknodat, openat, readlinkat, seek, statat, symlinkat, utimensat,
};
use rustix::io::{Errno, pread, pwrite};

use crate::{PathError, Tree};

/// Of a file's content.
const CHUNK: usize = 128 * 1024;
/// XATTR_LIST_MAX and XATTR_SIZE_MAX (linux/limits.h): no list of names and no value is longer.
const XATTR: usize = 64 * 1024;

/// While a tree is being made nobody but its owner looks into it.
const UNFINISHED: Mode = Mode::from_raw_mode(0o700);

struct Copy<'a> {
    from: &'a Tree,
    to: &'a Tree,
    /// Where the first name of a file with several names was copied to, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    buffer: Vec<u8>,
}

/// See [`Tree::copy_to`].
pub(crate) fn copy(from: &Tree, to: &Tree) -> Result<(), PathError> {
    let mut copy = Copy { from, to, links: HashMap::new(), buffer: vec![0; CHUNK.max(XATTR)] };
    let mut todo = vec![PathBuf::from(".")];
    let mut made = Vec::new();
    while let Some(directory) = todo.pop() {
        copy.directory(&directory, &mut todo)?;
        made.push(directory);
    }
    // What is made in a directory changes its times, and its default ACL would be taken over by what is made in it:
    // so the innermost ones come first.
    for directory in made.iter().rev() {
        let source = from.open_at(directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let target = to.open_at(directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let stat = fstat(&source).map_err(PathError::call("look at", directory))?;
        copy.finish(&source, &target, &stat).map_err(PathError::call("copy the attributes of", directory))?;
    }
    Ok(())
}

impl Copy<'_> {
    /// Copies what is in a directory; its own directories are made and left to be done.
    fn directory(&mut self, directory: &Path, todo: &mut Vec<PathBuf>) -> Result<(), PathError> {
        let source = self.from.open_at(directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let target = self.to.open_at(directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let names = Dir::read_from(&source).map_err(PathError::call("list", directory))?;
        for entry in names {
            let entry = entry.map_err(PathError::call("list", directory))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let path = directory.join(OsStr::from_bytes(name.to_bytes()));
            let kind = self
                .entry(source.as_fd(), target.as_fd(), name, &path)
                .map_err(PathError::call("copy", &path))?;
            if kind == FileType::Directory {
                todo.push(path);
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
    ) -> Result<FileType, Errno> {
        let stat = statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            mkdirat(target, name, UNFINISHED)?;
            return Ok(kind);
        }
        if stat.st_nlink > 1 {
            match self.links.entry((stat.st_dev, stat.st_ino)) {
                Entry::Occupied(first) => {
                    link(self.to, first.get(), target, name)?;
                    return Ok(kind);
                }
                Entry::Vacant(vacant) => drop(vacant.insert(path.to_owned())),
            }
        }
        match kind {
            FileType::RegularFile => self.file(source, target, name)?,
            FileType::Symlink => {
                let to = readlinkat(source, name, Vec::new())?;
                symlinkat(&to, target, name)?;
                own(target, name, &stat)?;
                utimensat(target, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            _ => {
                mknodat(target, name, kind, UNFINISHED, stat.st_rdev)?;
                own(target, name, &stat)?;
                chmodat(target, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
                utimensat(target, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
        Ok(kind)
    }

    fn file(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let plain = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = openat(source, name, OFlags::RDONLY | OFlags::NONBLOCK | plain, Mode::empty())?;
        let stat = fstat(&from)?;
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | plain;
        let to = openat(target, name, create, UNFINISHED)?;
        self.content(&from, &to, &stat)?;
        self.finish(&from, &to, &stat)
    }

    /// A hole stays a hole: a file can say that it is larger than any disk.
    fn content(&mut self, from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        ftruncate(to, size)?;
        let mut at = 0;
        while at < size {
            let start = match seek(from, SeekFrom::Data(at)) {
                Ok(start) => start,
                // No data any more.
                Err(Errno::NXIO) => return Ok(()),
                // A file system that knows no holes.
                Err(Errno::INVAL) => at,
                Err(errno) => return Err(errno),
            };
            let end = seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
            at = start;
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
                let n = pread(from, &mut self.buffer[..most], at)?;
                if n == 0 {
                    return Err(Errno::IO);
                }
                let mut rest = &self.buffer[..n];
                while !rest.is_empty() {
                    let written = pwrite(to, rest, at)?;
                    rest = &rest[written..];
                    at += written as u64;
                }
            }
        }
        Ok(())
    }

    /// Owner first: a change of owner takes away file capabilities and set-user-id bits.
    fn finish(&mut self, from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
        fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
        self.xattrs(from, to)?;
        fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
        futimens(to, &times(stat))
    }

    fn xattrs(&mut self, from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
        let length = match flistxattr(from, &mut self.buffer[..XATTR]) {
            Err(Errno::OPNOTSUPP) | Ok(0) => return Ok(()),
            listed => listed?,
        };
        let names = self.buffer[..length].to_vec();
        for name in names.split_inclusive(|byte| *byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { return Err(Errno::IO) };
            let n = fgetxattr(from, name, &mut self.buffer[..XATTR])?;
            fsetxattr(to, name, &self.buffer[..n], XattrFlags::empty())?;
        }
        Ok(())
    }
}

/// One more name of what was copied to `first`.
fn link(to: &Tree, first: &Path, target: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let (Some(parent), Some(leaf)) = (first.parent(), first.file_name()) else { return Err(Errno::INVAL) };
    let parent = to
        .open_at(parent, OFlags::PATH | OFlags::DIRECTORY)
        .map_err(|error| error.errno().unwrap_or(Errno::IO))?;
    linkat(&parent, leaf, target, name, AtFlags::empty())
}

fn own(target: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(target, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

#[expect(clippy::cast_possible_wrap, clippy::unnecessary_cast, reason = "below a billion, of any type")]
fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps {
        last_access: time(stat.st_atime as i64, stat.st_atime_nsec as i64),
        last_modification: time(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

    use rustix::fs::{CWD, getxattr, lgetxattr, makedev, setxattr};

    use super::*;
    use crate::confined::{confined, directory};

    fn trees(at: &Path) -> (Tree, Tree) {
        for name in ["from", "to"] {
            fs::create_dir_all(at.join(name)).unwrap();
        }
        (Tree::open(&at.join("from")).unwrap(), Tree::open(&at.join("to")).unwrap())
    }

    #[test]
    fn everything_comes_as_it_is() {
        confined(|| {
            let temp = directory();
            let (from, to) = trees(temp.path());
            let source = temp.path().join("from");
            fs::create_dir_all(source.join("sub/deeper")).unwrap();
            fs::write(source.join("sub/file"), "content").unwrap();
            fs::hard_link(source.join("sub/file"), source.join("sub/deeper/other")).unwrap();
            symlink("/no/such/place", source.join("link")).unwrap();
            mknodat(CWD, source.join("fifo"), FileType::Fifo, Mode::from(0o640), 0).unwrap();
            let zero = makedev(1, 5);
            mknodat(CWD, source.join("zero"), FileType::CharacterDevice, Mode::from(0o600), zero).unwrap();
            setxattr(source.join("sub"), "trusted.cove", b"\0x", XattrFlags::empty()).unwrap();
            setxattr(source.join("sub/file"), "trusted.cove", b"", XattrFlags::empty()).unwrap();
            std::os::unix::fs::chown(source.join("sub/file"), Some(5), Some(6)).unwrap();
            fs::set_permissions(source.join("sub/file"), fs::Permissions::from_mode(0o4751)).unwrap();
            fs::set_permissions(source.join("sub"), fs::Permissions::from_mode(0o1770)).unwrap();
            std::os::unix::fs::lchown(source.join("link"), Some(7), Some(8)).unwrap();
            std::os::unix::fs::chown(&source, Some(9), Some(10)).unwrap();
            let old = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
            let old = Timestamps { last_access: old, last_modification: old };
            for path in ["sub/file", "sub/deeper", "sub", "link", "zero", "."] {
                utimensat(CWD, source.join(path), &old, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            }

            from.copy_to(&to).unwrap();
            let target = temp.path().join("to");
            let stat = |path: &str| fs::symlink_metadata(target.join(path)).unwrap();
            let who = |path: &str| (stat(path).uid(), stat(path).gid(), stat(path).mode() & 0o7777);
            assert_eq!(fs::read(target.join("sub/file")).unwrap(), b"content");
            assert_eq!(who("sub/file"), (5, 6, 0o4751));
            assert_eq!(who("sub"), (0, 0, 0o1770));
            assert_eq!((who("link").0, who("link").1), (7, 8));
            assert_eq!((who(".").0, who(".").1), (9, 10));
            assert_eq!(stat("sub/file").ino(), stat("sub/deeper/other").ino());
            assert_eq!(fs::read_link(target.join("link")).unwrap(), Path::new("/no/such/place"));
            assert!(stat("fifo").file_type().is_fifo() && who("fifo").2 == 0o640);
            assert!(stat("zero").file_type().is_char_device() && stat("zero").rdev() == zero);
            let mut value = [0; 10];
            assert_eq!(getxattr(target.join("sub"), "trusted.cove", &mut value).unwrap(), 2);
            assert_eq!(&value[..2], b"\0x");
            assert_eq!(lgetxattr(target.join("sub/file"), "trusted.cove", &mut value).unwrap(), 0);
            for path in ["sub/file", "sub/deeper", "sub", "link", "zero", "."] {
                assert_eq!((stat(path).mtime(), stat(path).mtime_nsec()), (1_000_000_000, 5), "{path}");
            }
        });
    }

    #[test]
    fn holes_stay_holes() {
        confined(|| {
            let temp = directory();
            let (from, to) = trees(temp.path());
            let sparse = fs::File::create(temp.path().join("from/sparse")).unwrap();
            sparse.set_len(1 << 40).unwrap();
            std::os::unix::fs::FileExt::write_at(&sparse, b"here", 1 << 39).unwrap();
            from.copy_to(&to).unwrap();
            let copied = fs::File::open(temp.path().join("to/sparse")).unwrap();
            assert_eq!(copied.metadata().unwrap().len(), 1 << 40);
            assert!(copied.metadata().unwrap().blocks() < 1024);
            let mut found = [0; 4];
            std::os::unix::fs::FileExt::read_at(&copied, &mut found, 1 << 39).unwrap();
            assert_eq!(&found, b"here");
        });
    }

    #[test]
    fn deep_trees_need_few_descriptors() {
        confined(|| {
            let temp = directory();
            let (from, to) = trees(temp.path());
            let deep = "d/".repeat(1500);
            from.make_dirs(Path::new(&deep), Mode::from(0o755)).unwrap();
            fs::write(temp.path().join("from").join(&deep).join("file"), "x").unwrap();
            from.copy_to(&to).unwrap();
            assert_eq!(fs::read(temp.path().join("to").join(&deep).join("file")).unwrap(), b"x");
        });
    }

    #[test]
    fn no_symlink_is_followed_and_no_mount_entered() {
        confined(|| {
            let temp = directory();
            fs::create_dir(temp.path().join("canary")).unwrap();
            fs::write(temp.path().join("canary/file"), "of the host").unwrap();
            let (from, to) = trees(temp.path());
            symlink("../canary", temp.path().join("from/out")).unwrap();
            // What is there already is not written through.
            symlink("../canary/file", temp.path().join("to/file")).unwrap();
            from.copy_to(&to).unwrap();
            assert_eq!(fs::read_link(temp.path().join("to/out")).unwrap(), Path::new("../canary"));
            fs::write(temp.path().join("from/file"), "of the image").unwrap();
            fs::remove_file(temp.path().join("to/out")).unwrap();
            let refused = from.copy_to(&to).unwrap_err();
            assert_eq!(refused.errno(), Some(Errno::EXIST), "{refused}");
            assert_eq!(fs::read(temp.path().join("canary/file")).unwrap(), b"of the host");

            let temp = directory();
            let (from, to) = trees(temp.path());
            let at = temp.path().join("from/mounted");
            fs::create_dir(&at).unwrap();
            rustix::mount::mount("tmpfs", &at, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
            let refused = from.copy_to(&to);
            rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).unwrap();
            assert_eq!(refused.unwrap_err().errno(), Some(Errno::XDEV));
        });
    }
}
