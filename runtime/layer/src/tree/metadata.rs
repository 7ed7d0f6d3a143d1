//! Owner, extended attributes, mode and times of what was just made.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::BorrowedFd;

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fsetxattr,
    futimens, utimensat,
};
use rustix::io::Errno;

use crate::LayerError;
use crate::error::Name;
use crate::tar::{Entry, Kind, Xattr};

/// The kernel's XATTR_NAME_MAX.
const NAME_MAX: usize = 255;

/// What the layer may set: file capabilities, and what users may set themselves. Labels and signatures are the
/// node's, and `overlay` attributes would rename and hide files of other layers (R30).
fn allowed(name: &[u8]) -> bool {
    let user = name.strip_prefix(b"user.").is_some_and(|rest| !rest.is_empty());
    let overlay = name.starts_with(b"user.overlay.");
    (user && !overlay && name.len() <= NAME_MAX) || name == b"security.capability"
}

/// Makes the error of a failed step.
pub(crate) fn failed(entry: &Entry, doing: &'static str) -> impl FnOnce(Errno) -> LayerError {
    move |errno| LayerError::Write { name: Name::new(&entry.name), doing, errno }
}

/// Describes a file or directory by its descriptor. Gives the number of attributes that were left out.
pub(crate) fn describe(fd: BorrowedFd<'_>, entry: &Entry) -> Result<u64, LayerError> {
    let (uid, gid) = owner(entry);
    fchown(fd, uid, gid).map_err(failed(entry, "set owner"))?;
    let mut left_out = 0;
    for xattr in &entry.xattrs {
        if !set(fd, xattr).map_err(failed(entry, "set extended attribute"))? {
            left_out += 1;
        }
    }
    fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(failed(entry, "set mode"))?;
    futimens(fd, &times(entry)).map_err(failed(entry, "set times"))?;
    Ok(left_out)
}

/// Describes a symlink, device or pipe by its name. Such a thing is not opened: opening a device has effects. It can
/// have none of the attributes that we permit. The name was made exclusively a moment ago, in a directory that nobody
/// but us can write.
pub(crate) fn describe_name(dir: BorrowedFd<'_>, leaf: &OsStr, entry: &Entry) -> Result<u64, LayerError> {
    let (uid, gid) = owner(entry);
    chownat(dir, leaf, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(entry, "set owner"))?;
    if !matches!(entry.kind, Kind::Symlink(_)) {
        let mode = Mode::from_raw_mode(entry.mode);
        chmodat(dir, leaf, mode, AtFlags::empty()).map_err(failed(entry, "set mode"))?;
    }
    utimensat(dir, leaf, &times(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(failed(entry, "set times"))?;
    Ok(crate::stream::as_u64(entry.xattrs.len()))
}

/// Marks a directory as hiding what the layers below have in it.
pub(crate) fn make_opaque(dir: BorrowedFd<'_>, entry: &Entry) -> Result<(), LayerError> {
    const OPAQUE: &CStr = c"trusted.overlay.opaque";
    fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty()).map_err(failed(entry, "mark opaque"))
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    // The header's parser refuses the number that from_raw forbids.
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime.seconds, tv_nsec: i64::from(entry.mtime.nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

/// `false`: left out.
fn set(fd: BorrowedFd<'_>, xattr: &Xattr) -> Result<bool, Errno> {
    if !allowed(&xattr.name) {
        return Ok(false);
    }
    let Ok(name) = CString::new(xattr.name.clone()) else { return Ok(false) };
    match fsetxattr(fd, &name, &xattr.value, XattrFlags::empty()) {
        Ok(()) => Ok(true),
        // A file system without user attributes loses them, as other runtimes do; a lost capability would break the
        // program, so that is an error.
        Err(Errno::OPNOTSUPP) if xattr.name.starts_with(b"user.") => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes() {
        let long = [b"user.".to_vec(), vec![b'a'; 250]].concat();
        let too_long = [b"user.".to_vec(), vec![b'a'; 251]].concat();
        for (name, permitted) in [
            (&b"security.capability"[..], true),
            (b"user.mime", true),
            (&long, true),
            (&too_long, false),
            (b"user.", false),
            (b"user", false),
            (b"", false),
            (b"user.overlay.opaque", false),
            (b"trusted.overlay.redirect", false),
            (b"trusted.x", false),
            (b"security.selinux", false),
            (b"security.ima", false),
            (b"security.capability.x", false),
            (b"system.posix_acl_access", false),
        ] {
            assert_eq!(allowed(name), permitted, "{}", name.escape_ascii());
        }
    }
}
