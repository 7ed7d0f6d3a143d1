//! A directory that somebody else's paths are resolved in, as the container sees it.

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat};
use rustix::io::Errno;

use crate::resolve::{self, IN_ROOT};
use crate::{PathError, walk};

/// A root directory and everything below it. All paths are taken relative to it, with or without a leading `/`;
/// whoever changes the tree meanwhile can make a call fail, but can never make it leave the root.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens a directory of the host as a root.
    ///
    /// # Errors
    /// When `path` is missing or not a directory.
    pub fn open(path: &Path) -> Result<Self, PathError> {
        resolve::directory(path, OFlags::PATH).map(Self::from_fd)
    }

    /// The root of the calling process.
    ///
    /// # Errors
    /// When the kernel refuses to open `/`.
    pub fn of_process() -> Result<Self, PathError> {
        Self::open(Path::new("/"))
    }

    /// Takes a directory descriptor (`O_PATH` is enough) as a root.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// The root directory itself.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens what `path` names inside the root. Close-on-exec is added. Nothing is ever created here.
    ///
    /// # Errors
    /// The errno of openat2(2); `EINVAL` when the flags ask to create or truncate.
    pub fn resolve(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, PathError> {
        self.resolve_how(path, flags, IN_ROOT)
    }

    /// As [`Root::resolve`], but refuses a path with a symlink in it: for what only counts in its own place, such as
    /// the directory that procfs is mounted on.
    ///
    /// # Errors
    /// `ELOOP` for a symlink; else as [`Root::resolve`].
    pub fn resolve_plain(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, PathError> {
        self.resolve_how(path, flags, IN_ROOT.union(ResolveFlags::NO_SYMLINKS))
    }

    fn resolve_how(&self, path: &Path, flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, PathError> {
        if flags.intersects(OFlags::CREATE | OFlags::TRUNC | OFlags::TMPFILE.difference(OFlags::DIRECTORY)) {
            return Err(PathError::call("open", path)(Errno::INVAL));
        }
        resolve::open(&self.fd, path, flags, Mode::empty(), how).map_err(PathError::call("open", path))
    }

    /// Opens the directory that holds the last name of `path`, and gives that name. The name may be anything or
    /// nothing yet: use it with `O_NOFOLLOW` or an `*at` call that does not follow.
    ///
    /// # Errors
    /// As [`Root::resolve`]; [`PathError::NoName`] for an empty path, `/`, and paths that end in `..`.
    pub fn resolve_parent(&self, path: &Path) -> Result<(OwnedFd, OsString), PathError> {
        let no_name = || PathError::NoName { path: path.to_owned() };
        let leaf = path.file_name().ok_or_else(no_name)?.to_owned();
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("/"),
        };
        Ok((self.resolve(parent, OFlags::PATH | OFlags::DIRECTORY)?, leaf))
    }

    /// Makes `path` and its missing parents, like `mkdir -p` run inside the root: symlinks are followed inside the
    /// root, also those whose target is not there yet. Gives the last directory as `O_PATH`. The umask applies.
    ///
    /// # Errors
    /// `ENOTDIR` when a part is not a directory; else as the kernel says.
    pub fn make_dirs(&self, path: &Path, mode: Mode) -> Result<OwnedFd, PathError> {
        walk::make(self, path, mode, walk::Last::Directory, &mut |_made| Ok(()))
    }

    /// As [`Root::make_dirs`], and calls `made` with the path (no symlinks in it) of each directory that was missing,
    /// once it is there.
    ///
    /// # Errors
    /// As [`Root::make_dirs`], and what `made` refuses.
    pub fn make_dirs_noting<E: From<PathError>>(
        &self,
        path: &Path,
        mode: Mode,
        made: &mut dyn FnMut(&Path) -> Result<(), E>,
    ) -> Result<OwnedFd, E> {
        walk::make(self, path, mode, walk::Last::Directory, made)
    }

    /// Gives what `path` names (never a symlink) as `O_PATH`, or makes an empty regular file there, with its missing
    /// parents (0755). Symlinks are followed inside the root. The umask applies.
    ///
    /// # Errors
    /// As [`Root::make_dirs`].
    pub fn make_file(&self, path: &Path, mode: Mode) -> Result<OwnedFd, PathError> {
        walk::make(self, path, mode, walk::Last::File, &mut |_made| Ok(()))
    }

    /// Reads a regular file of a hostile tree (an image's `/etc/passwd`), or `None` when nothing has that name. A
    /// pipe or device is refused without opening it; a file over `cap` bytes is refused, not cut.
    ///
    /// # Errors
    /// [`PathError::NotRegular`], [`PathError::TooLarge`], or the kernel's answer.
    pub fn read_regular(&self, path: &Path, cap: usize) -> Result<Option<Vec<u8>>, PathError> {
        // Opening a device has effects of its own, so the kind is looked at first; it is looked at again on the
        // descriptor that is read, for whoever swaps the two.
        let probe = match self.resolve(path, OFlags::PATH) {
            Ok(fd) => fd,
            Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::NOTDIR)) => return Ok(None),
            Err(error) => return Err(error),
        };
        require_regular(&probe, path)?;
        let file = self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        require_regular(&file, path)?;
        read_bounded(file, path, cap).map(Some)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn require_regular(fd: &OwnedFd, path: &Path) -> Result<(), PathError> {
    let stat = fstat(fd).map_err(PathError::call("stat", path))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(PathError::NotRegular { path: path.to_owned() }),
    }
}

/// Reads to the end, at most `cap` bytes: one byte more is asked for, to tell a full file from a cut one.
pub(crate) fn read_bounded(file: OwnedFd, path: &Path, cap: usize) -> Result<Vec<u8>, PathError> {
    let limit = u64::try_from(cap).unwrap_or(u64::MAX).saturating_add(1);
    let mut content = Vec::new();
    std::fs::File::from(file)
        .take(limit)
        .read_to_end(&mut content)
        .map_err(|error| PathError::call("read", path)(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    if content.len() > cap {
        return Err(PathError::TooLarge { path: path.to_owned(), cap });
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confined::{confined, directory};
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A root beside a canary that its paths try to reach.
    fn planted() -> (tempfile::TempDir, Root) {
        let temp = directory();
        fs::create_dir_all(temp.path().join("root/etc")).unwrap();
        fs::create_dir(temp.path().join("canary")).unwrap();
        fs::write(temp.path().join("canary/passwd"), "host").unwrap();
        let root = Root::open(&temp.path().join("root")).unwrap();
        (temp, root)
    }

    fn canary_untouched(temp: &tempfile::TempDir) {
        let names: Vec<_> = fs::read_dir(temp.path().join("canary")).unwrap().collect();
        assert_eq!(names.len(), 1, "something was made beside the root");
        assert_eq!(fs::read(temp.path().join("canary/passwd")).unwrap(), b"host");
    }

    #[test]
    fn hostile_parents_stay_inside() {
        confined(|| {
            for target in ["../../../../canary", "../canary", "/canary", "/etc/../../canary"] {
                let (temp, root) = planted();
                symlink(target, temp.path().join("root/way")).unwrap();
                let made = root.make_file(Path::new("way/new/file"), Mode::from(0o644)).unwrap();
                assert_eq!(FileType::from_raw_mode(fstat(&made).unwrap().st_mode), FileType::RegularFile);
                assert!(temp.path().join("root/canary/new/file").exists(), "{target}");
                let read = root.read_regular(Path::new("way/passwd"), 100).unwrap();
                assert_eq!(read, None, "{target}");
                canary_untouched(&temp);
            }
        });
    }

    #[test]
    fn dangling_link_is_made_inside() {
        confined(|| {
            let (temp, root) = planted();
            symlink("../run/systemd/resolv.conf", temp.path().join("root/etc/resolv.conf")).unwrap();
            root.make_file(Path::new("/etc/resolv.conf"), Mode::from(0o644)).unwrap();
            assert!(temp.path().join("root/run/systemd/resolv.conf").is_file());
            // A second time it finds the same file.
            root.make_file(Path::new("/etc/resolv.conf"), Mode::from(0o644)).unwrap();
        });
    }

    #[test]
    fn loops_end() {
        confined(|| {
            let (temp, root) = planted();
            symlink("b", temp.path().join("root/a")).unwrap();
            symlink("a", temp.path().join("root/b")).unwrap();
            assert!(root.make_dirs(Path::new("a/x"), Mode::from(0o755)).is_err());
            assert_eq!(root.resolve(Path::new("a"), OFlags::PATH).unwrap_err().errno(), Some(Errno::LOOP));
        });
    }

    #[test]
    fn plain_means_no_symlink() {
        confined(|| {
            let (temp, root) = planted();
            symlink("etc", temp.path().join("root/proc")).unwrap();
            for path in ["proc", "/proc/", "proc/.."] {
                let error = root.resolve_plain(Path::new(path), OFlags::PATH).unwrap_err();
                assert_eq!(error.errno(), Some(Errno::LOOP), "{path}");
            }
            assert!(root.resolve_plain(Path::new("/etc/../etc"), OFlags::PATH).is_ok());
        });
    }

    #[test]
    fn dirs_and_parents() {
        confined(|| {
            let (temp, root) = planted();
            for path in ["x/y/z", "/x/./y//z", "x/../x/y", "/", "../../.."] {
                let made = root.make_dirs(Path::new(path), Mode::from(0o755)).unwrap();
                assert_eq!(
                    FileType::from_raw_mode(fstat(&made).unwrap().st_mode),
                    FileType::Directory,
                    "{path}"
                );
            }
            assert!(temp.path().join("root/x/y/z").is_dir());
            let error = root.make_dirs(Path::new("etc/../x/y/z/../../../file/.."), Mode::from(0o755));
            assert!(error.is_ok(), "{error:?}");
            root.make_file(Path::new("plain"), Mode::from(0o644)).unwrap();
            let error = root.make_dirs(Path::new("plain/x"), Mode::from(0o755)).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::NOTDIR));
            let (_, leaf) = root.resolve_parent(Path::new("/x/new")).unwrap();
            assert_eq!(leaf, "new");
            for path in ["", "/", "..", "x/.."] {
                assert!(
                    matches!(root.resolve_parent(Path::new(path)), Err(PathError::NoName { .. })),
                    "{path}"
                );
            }
        });
    }

    #[test]
    fn reads_only_bounded_regular_files() {
        confined(|| {
            let (temp, root) = planted();
            let at = |name: &str| temp.path().join("root/etc").join(name);
            fs::write(at("ok"), "root:x:0:0").unwrap();
            symlink("/etc/ok", at("link")).unwrap();
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), fifo, Mode::from(0o644), 0).unwrap();
            let zero = rustix::fs::makedev(1, 5);
            rustix::fs::mknodat(
                rustix::fs::CWD,
                at("zero"),
                FileType::CharacterDevice,
                Mode::from(0o644),
                zero,
            )
            .unwrap();
            fs::File::create(at("huge")).unwrap().set_len(2 << 30).unwrap();

            let read = |name: &str, cap| root.read_regular(&Path::new("etc").join(name), cap);
            assert_eq!(read("link", 10).unwrap().unwrap(), b"root:x:0:0");
            assert!(matches!(read("ok", 9), Err(PathError::TooLarge { cap: 9, .. })));
            assert!(matches!(read("huge", 1 << 20), Err(PathError::TooLarge { .. })));
            assert!(matches!(read("fifo", 10), Err(PathError::NotRegular { .. })));
            assert!(matches!(read("zero", 10), Err(PathError::NotRegular { .. })));
            assert!(matches!(read("", 10), Err(PathError::NotRegular { .. })));
            assert_eq!(read("missing", 10).unwrap(), None);
            assert_eq!(read("ok/below", 10).unwrap(), None);
        });
    }

    #[test]
    fn nothing_is_created_by_resolve() {
        confined(|| {
            let (_temp, root) = planted();
            let error = root.resolve(Path::new("x"), OFlags::CREATE | OFlags::WRONLY).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::INVAL));
            let directory = root.resolve(Path::new("etc"), OFlags::RDONLY | OFlags::DIRECTORY);
            assert!(directory.is_ok());
        });
    }
}
