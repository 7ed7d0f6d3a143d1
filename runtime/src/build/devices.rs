//! Device nodes and the usual symlinks in a /dev of the container's own. All of it goes through one descriptor of a
//! /dev that is a real directory, so an image whose /dev points elsewhere moves nothing (CVE-2026-41579), and each
//! node is looked at after it was made.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use cove_guard::Guard;
use cove_path::Root;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, makedev, mknodat, symlinkat};
use rustix::io::Errno;

use super::mounts::{clean, plain_directory};
use super::request::{Device, Mount, MountKind};
use super::step::{At, refuse};
use crate::protocol::Failure;

const STEP: &str = "devices";
const DEV: &str = "/dev";

/// What programs expect of a /dev (runtime spec, "Default Devices" and "Dev symbolic links").
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Makes the nodes, and the symlinks where /dev is a tmpfs of ours.
pub(super) fn make(root: &Root, mounts: &[Mount], devices: &[Device]) -> Result<(), Failure> {
    let has = |kind: fn(&MountKind) -> bool, at: &str| {
        mounts.iter().any(|mount| kind(&mount.kind) && clean(&mount.destination) == Path::new(at))
    };
    let ours = has(|kind| matches!(kind, MountKind::Tmpfs(_)), DEV);
    if devices.is_empty() && !ours {
        return Ok(());
    }
    let dev = Root::from_fd(plain_directory(root, Path::new(DEV))?);
    nodes(&dev, devices)?;
    if ours {
        for (name, target) in LINKS {
            link(&dev, name, target)?;
        }
        if has(|kind| matches!(kind, MountKind::Devpts), "/dev/pts") {
            link(&dev, "ptmx", "pts/ptmx")?;
        }
    }
    Ok(())
}

/// Makes nodes in a /dev. What exists already is looked at.
pub(super) fn nodes(dev: &Root, devices: &[Device]) -> Result<(), Failure> {
    devices.iter().try_for_each(|device| node(dev, device))
}

fn link(dev: &Root, name: &str, target: &str) -> Result<(), Failure> {
    match symlinkat(target, dev.as_fd(), name) {
        // Something of that name was asked for, as a mount or a device.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).at(STEP, || format!("make the symlink /dev/{name}")),
    }
}

fn node(dev: &Root, device: &Device) -> Result<(), Failure> {
    let shown = device.path.display();
    let path = clean(&device.path);
    let Ok(below) = path.strip_prefix(DEV) else {
        return refuse(STEP, format!("{shown} is not below /dev"));
    };
    let (directory, name) = match (below.parent(), below.file_name()) {
        (Some(parent), Some(name)) => (parent, PathBuf::from(name)),
        _ => return refuse(STEP, format!("{shown} names no device")),
    };
    let at = dev
        .make_dirs(directory, Mode::from_raw_mode(0o755))
        .at(STEP, || format!("make the directory of {shown}"))?;
    let kind = if device.block { FileType::BlockDevice } else { FileType::CharacterDevice };
    let number = makedev(device.major, device.minor);
    match mknodat(&at, &name, kind, Mode::from_raw_mode(device.mode & 0o7777), number) {
        Ok(()) => {
            chownat(
                &at,
                &name,
                Some(Uid::from_raw(device.uid)),
                Some(Gid::from_raw(device.gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .at(STEP, || format!("give {shown} its owner"))?;
        }
        // Only a /dev that is a volume has anything yet: it is taken as it is, if it is that device.
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).at(STEP, || format!("make {shown}")),
    }
    verify(&at, &name, kind, number).at(STEP, || format!("look at {shown}"))?;
    Ok(())
}

/// What has the name is the device that was meant.
fn verify(at: &OwnedFd, name: &Path, kind: FileType, number: u64) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(at.as_fd(), name, flags, Mode::empty())?;
    let stat = fstat(&fd)?;
    let same =
        !Guard::NullDevice.holds() || FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == number;
    if same { Ok(fd) } else { Err(Errno::NODEV) }
}

/// The container's null device, by descriptor: what masks are made of. Whatever else has the name is refused
/// (CVE-2025-31133).
pub(super) fn null(root: &Root) -> Result<OwnedFd, Failure> {
    if !Guard::NullDevice.holds() {
        return root.resolve(Path::new("/dev/null"), OFlags::PATH).at(STEP, || "find /dev/null".to_owned());
    }
    let dev = plain_directory(root, Path::new(DEV))?;
    verify(&dev, Path::new("null"), FileType::CharacterDevice, makedev(1, 3))
        .at(STEP, || "/dev/null is not the null device".to_owned())
}
