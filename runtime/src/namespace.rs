//! Network namespaces by name: pin, unpin, and a look inside.
//!
//! A pin is what `ip netns` makes: an empty file with the namespace's nsfs file mounted over it, in a directory that is
//! a shared mount point of its own, so that pins are seen in, and vanish from, every mount namespace that copied
//! the host's. Makes no namespace: the shim does, since a pod's namespaces belong to its user namespace.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use cove_sys::MountAttr;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::LinkNameSpaceType;

/// linux/magic.h
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// How long the lock of a pin directory is waited for. It is held for three system calls; `ip netns` holds the same
/// lock as shortly.
const LOCK_DEADLINE: Duration = Duration::from_secs(5);
/// Pause between two tries to lock.
const LOCK_PAUSE: Duration = Duration::from_micros(200);
/// How many mounts over one name are taken away. Ours is one; `ip netns attach` may have stacked another.
const MAX_STACKED: usize = 8;

/// The flags of a mount and of all below it can be changed at once: mount_setattr(2) with AT_RECURSIVE, of Linux 5.12.
pub fn has_recursive_mount_flags() -> bool {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    // Without a flag to change, nothing is.
    root.is_ok_and(|root| cove_sys::mount_setattr(root.as_fd(), true, MountAttr::default()).is_ok())
}

/// Makes `directory` and makes it a shared mount point of its own, as `ip netns` does, so that pins made later are
/// seen in every mount namespace that copies the host's. Idempotent, also beside `ip netns` and a second daemon.
///
/// # Errors
/// The directory cannot be made, locked within 5 s, or mounted.
pub fn make_pin_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let _lock = lock(directory)?;
    if !is_mount_point(directory)? {
        rustix::mount::mount_bind_recursive(directory, directory)?;
    }
    // Again where it is shared already: that changes nothing.
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change(directory, shared)?)
}

/// Keeps a namespace alive under a name: an empty file with the namespace mounted over it. Idempotent.
///
/// # Errors
/// The directory is not there; [`io::ErrorKind::AlreadyExists`] where another namespace has the name.
pub fn pin(namespace: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let (parent, name) = split(path)?;
    let directory = lock(parent)?;
    let create = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat(&directory, name, create, Mode::RUSR | Mode::RGRP | Mode::ROTH) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let target = open_path(&directory, name)?;
    if is_nsfs(target.as_fd())? {
        let same = identity(target.as_fd())? == identity(namespace)?;
        return if same { Ok(()) } else { Err(Errno::EXIST.into()) };
    }
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = rustix::mount::open_tree(namespace, "", clone)?;
    let onto_itself = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(&mount, "", &target, "", onto_itself)?)
}

/// Undoes `pin`: detaches the mount and removes the file. What is not there is done already.
///
/// # Errors
/// The kernel refuses; or more is mounted over the name than a pin.
pub fn unpin(path: &Path) -> io::Result<()> {
    let (parent, name) = split(path)?;
    let directory = match lock(parent) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        directory => directory?,
    };
    for _ in 0..MAX_STACKED {
        let target = match open_path(&directory, name) {
            Err(Errno::NOENT) => return Ok(()),
            target => target?,
        };
        if !is_nsfs(target.as_fd())? {
            // unlink also takes away what other mount namespaces have mounted over the name.
            return match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
                Err(Errno::NOENT) => Ok(()),
                result => Ok(result?),
            };
        }
        drop(target);
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Unmounted by somebody else meanwhile: the next look tells.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Errno::BUSY.into())
}

/// Opens a pinned namespace; `None` where nothing is pinned (the file is missing or plain).
///
/// # Errors
/// The kernel refuses to open what is there.
pub fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    // NONBLOCK: a pipe under that name must not hold us.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => Ok(is_nsfs(fd.as_fd())?.then_some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Runs `look` on a thread of its own that has entered the network namespace. The caller's thread stays where it is.
///
/// # Errors
/// No thread can be had, or the descriptor is no network namespace. A panic of `look` goes on in the caller.
pub fn in_netns<T: Send>(netns: BorrowedFd<'_>, look: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let enter = move || {
            rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
            Ok(look())
        };
        let entered = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, enter)?;
        entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A pin's directory and its name there.
fn split(path: &Path) -> io::Result<(&Path, &std::ffi::OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if path.is_absolute() => Ok((parent, name)),
        _ => Err(Errno::INVAL.into()),
    }
}

/// Opens a directory and takes the lock that `ip netns` takes too; it is given back when the descriptor is closed.
fn lock(directory: &Path) -> io::Result<OwnedFd> {
    let fd =
        rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let deadline = Instant::now() + LOCK_DEADLINE;
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(fd),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => thread::sleep(LOCK_PAUSE),
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Err(Errno::TIMEDOUT.into()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// The directory is the root of a mount (statx(2), kernel 5.8).
fn is_mount_point(directory: &Path) -> io::Result<bool> {
    let status = rustix::fs::statx(CWD, directory, AtFlags::empty(), StatxFlags::empty())?;
    Ok(status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Opens a name as a place, without touching what it is.
fn open_path(directory: &OwnedFd, name: &std::ffi::OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

fn is_nsfs(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(u64::try_from(rustix::fs::fstatfs(fd)?.f_type).is_ok_and(|kind| kind == NSFS_MAGIC))
}

/// Two descriptors of the same namespace have the same device and inode (namespaces(7)).
fn identity(fd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let status = rustix::fs::fstat(fd)?;
    Ok((status.st_dev, status.st_ino))
}

#[cfg(test)]
mod test {
    use std::fs::{self, File};
    use std::path::PathBuf;

    use super::*;

    /// A pin directory that is unmounted and removed when dropped.
    struct Pins(tempfile::TempDir);

    impl Pins {
        fn new() -> Self {
            let pins = Self(tempfile::Builder::new().prefix("cove-netns-").tempdir().unwrap());
            make_pin_directory(&pins.directory()).unwrap();
            pins
        }

        fn directory(&self) -> PathBuf {
            self.0.path().join("deep/netns")
        }

        fn path(&self) -> PathBuf {
            self.directory().join("cove-00ff")
        }

        /// The lines of mountinfo on a path.
        fn mounts(&self, path: &Path) -> Vec<String> {
            let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let path = path.to_str().unwrap();
            text.lines().filter(|line| line.split(' ').nth(4) == Some(path)).map(str::to_owned).collect()
        }
    }

    impl Drop for Pins {
        fn drop(&mut self) {
            for path in [self.path(), self.directory()] {
                while !self.mounts(&path).is_empty() {
                    rustix::mount::unmount(&path, UnmountFlags::DETACH).unwrap();
                }
            }
        }
    }

    /// A network namespace that nothing else keeps alive.
    fn netns() -> OwnedFd {
        thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap().into()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn the_directory_becomes_a_shared_mount_once() {
        let pins = Pins::new();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| make_pin_directory(&pins.directory()).unwrap());
            }
        });
        let mounts = pins.mounts(&pins.directory());
        assert_eq!(mounts.len(), 1, "{mounts:?}");
        assert!(mounts[0].contains(" shared:"), "{mounts:?}");
    }

    #[test]
    fn a_pin_keeps_the_namespace_until_it_is_undone() {
        let pins = Pins::new();
        let namespace = netns();
        let same = identity(namespace.as_fd()).unwrap();
        for _ in 0..2 {
            pin(namespace.as_fd(), &pins.path()).unwrap();
        }
        drop(namespace);
        assert_eq!(pins.mounts(&pins.path()).len(), 1);
        let pinned = open_pin(&pins.path()).unwrap().expect("pinned");
        assert_eq!(identity(pinned.as_fd()).unwrap(), same);
        for _ in 0..2 {
            unpin(&pins.path()).unwrap();
            assert!(!pins.path().exists());
            assert!(open_pin(&pins.path()).unwrap().is_none());
        }
        assert!(pins.mounts(&pins.path()).is_empty());
    }

    #[test]
    fn a_name_is_not_taken_from_another_namespace() {
        let pins = Pins::new();
        pin(netns().as_fd(), &pins.path()).unwrap();
        let error = pin(netns().as_fd(), &pins.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(pins.mounts(&pins.path()).len(), 1);
    }

    #[test]
    fn a_plain_file_is_no_pin_and_becomes_one_or_goes() {
        let pins = Pins::new();
        fs::write(pins.path(), "").unwrap();
        assert!(open_pin(&pins.path()).unwrap().is_none());
        pin(netns().as_fd(), &pins.path()).unwrap();
        assert!(open_pin(&pins.path()).unwrap().is_some());
        unpin(&pins.path()).unwrap();
        fs::write(pins.path(), "").unwrap();
        unpin(&pins.path()).unwrap();
        assert!(!pins.path().exists());
    }

    #[test]
    fn what_is_not_there_is_undone_already() {
        for path in ["/run/cove-no-such-directory/x", "/run/cove-no-such-file"] {
            unpin(Path::new(path)).unwrap();
            assert!(open_pin(Path::new(path)).unwrap().is_none());
        }
        assert!(unpin(Path::new("relative")).is_err());
    }

    #[test]
    fn pins_and_unpins_race_without_leaving_a_mount() {
        let pins = Pins::new();
        let namespace = netns();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        pin(namespace.as_fd(), &pins.path()).unwrap();
                        unpin(&pins.path()).unwrap();
                    }
                });
            }
        });
        assert!(pins.mounts(&pins.path()).is_empty());
        assert!(!pins.path().exists());
    }

    #[test]
    fn looks_inside_without_leaving() {
        let namespace = netns();
        let here = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let there =
            in_netns(namespace.as_fd(), || fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
        assert_ne!(here, there);
        assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), here);
        let no_namespace = File::open("/dev/null").unwrap();
        assert!(in_netns(no_namespace.as_fd(), || ()).is_err());
    }
}
