//! A procfs that nobody can mount over (R2).
//!
//! What is on `/proc` inside a container is the container's to shape (CVE-2025-52881: labels and sysctls were written
//! to another procfs file by way of a bind mount). This handle is a mount of its own, attached nowhere. It shows the
//! PID namespace of the process that opened it, also after that process enters others.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use cove_guard::Guard;
use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, fstat, fstatfs, readlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen, open_tree,
};

use crate::{PathError, resolve};

/// The inode of a procfs's root directory (PROC_ROOT_INO of linux/proc_ns.h).
const PROC_ROOT_INODE: u64 = 1;

/// No symlink at all, so neither `self` nor `fd/3`; no other mount.
const EXACT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// The private procfs.
#[derive(Debug)]
pub struct Proc {
    fd: OwnedFd,
}

impl Proc {
    /// Makes the handle: a new procfs instance if the kernel permits, else a private clone of the mount on `/proc`.
    /// Call it before entering any container's namespace.
    ///
    /// # Errors
    /// [`PathError::NotProcfs`] when `/proc` is something else; the kernel's answer when neither way is permitted.
    pub fn open() -> Result<Self, PathError> {
        let fd = match new_instance() {
            _ if !Guard::PrivateProc.holds() => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                rustix::fs::open("/proc", flags, Mode::empty())
                    .map_err(PathError::call("open", Path::new("/proc")))?
            }
            Ok(fd) => fd,
            // In a user namespace, or where masks lie on the visible procfs, a new instance is refused.
            Err(_refused) => private_clone().map_err(PathError::call("clone", Path::new("/proc")))?,
        };
        verify(&fd)?;
        Ok(Self { fd })
    }

    /// The root of the procfs.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The path of a file of the calling process, as this procfs numbers it: `own("attr/exec")` is `1234/attr/exec`.
    ///
    /// # Errors
    /// `ENOENT` when the caller is in a PID namespace that this procfs does not show.
    pub fn own(&self, path: &str) -> Result<PathBuf, PathError> {
        let link = Path::new("self");
        let pid = readlinkat(&self.fd, link, Vec::new()).map_err(PathError::call("read link", link))?;
        Ok(Path::new(&*pid.to_string_lossy()).join(path))
    }

    /// Opens a file by its path below the root. Close-on-exec is added.
    ///
    /// # Errors
    /// `ELOOP` for every kind of symlink, `self` included (see [`Proc::own`]).
    pub fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, PathError> {
        let how = if Guard::PrivateProc.holds() { EXACT } else { ResolveFlags::empty() };
        resolve::open(&self.fd, path, flags, Mode::empty(), how).map_err(PathError::call("open /proc", path))
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// As [`Proc::open_at`] and read(2).
    pub fn read(&self, path: &Path) -> Result<Vec<u8>, PathError> {
        let mut content = Vec::new();
        let mut file = std::fs::File::from(self.open_at(path, OFlags::RDONLY)?);
        file.read_to_end(&mut content).map_err(|error| failed("read /proc", path, &error))?;
        Ok(content)
    }

    /// Writes a value in one write(2), which is what the kernel's handlers expect.
    ///
    /// # Errors
    /// As [`Proc::open_at`]; the kernel's answer to the value; `EIO` when it took only a part.
    pub fn write(&self, path: &Path, value: &[u8]) -> Result<(), PathError> {
        let mut file = std::fs::File::from(self.open_at(path, OFlags::WRONLY)?);
        let written = file.write(value).map_err(|error| failed("write /proc", path, &error))?;
        if written == value.len() { Ok(()) } else { Err(PathError::call("write /proc", path)(Errno::IO)) }
    }
}

impl AsFd for Proc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn failed(doing: &'static str, path: &Path, error: &std::io::Error) -> PathError {
    PathError::call(doing, path)(Errno::from_io_error(error).unwrap_or(Errno::IO))
}

fn new_instance() -> Result<OwnedFd, Errno> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Not recursive: what is mounted on top of `/proc`'s files is left behind.
fn private_clone() -> Result<OwnedFd, Errno> {
    open_tree(CWD, "/proc", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

fn verify(fd: &OwnedFd) -> Result<(), PathError> {
    let root = Path::new("/proc");
    let magic = fstatfs(fd).map_err(PathError::call("statfs", root))?.f_type;
    let inode = fstat(fd).map_err(PathError::call("stat", root))?.st_ino;
    if magic == PROC_SUPER_MAGIC && inode == PROC_ROOT_INODE { Ok(()) } else { Err(PathError::NotProcfs) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_its_own_process() {
        for proc in [Proc::open().unwrap(), Proc { fd: private_clone().unwrap() }] {
            verify(&proc.fd).unwrap();
            let comm = proc.own("comm").unwrap();
            assert!(comm.starts_with(std::process::id().to_string()));
            let before = proc.read(&comm).unwrap();
            proc.write(&comm, b"cove-path-test").unwrap();
            assert_eq!(proc.read(&comm).unwrap(), b"cove-path-test\n");
            proc.write(&comm, before.trim_ascii()).unwrap();
        }
    }

    #[test]
    fn follows_nothing() {
        let proc = Proc::open().unwrap();
        let fd = proc.own("fd/0").unwrap();
        let refused: [(&Path, Errno); 4] = [
            (Path::new("self/comm"), Errno::LOOP),
            (&fd, Errno::LOOP),
            (Path::new("../etc/passwd"), Errno::XDEV),
            (Path::new("sys/../../etc/passwd"), Errno::XDEV),
        ];
        for (path, errno) in refused {
            assert_eq!(proc.read(path).unwrap_err().errno(), Some(errno), "{path:?}");
        }
    }
}
