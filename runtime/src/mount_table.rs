//! The mount table of this mount namespace, and how a mount is taken out of it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// How many mounts over one directory are taken away.
const MAX_STACKED: usize = 64;

/// Where something is mounted, in the order of the table.
///
/// # Errors
/// /proc is not mounted.
pub fn points() -> io::Result<Vec<PathBuf>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Takes every mount on exactly `point` out of the table. None is fine.
///
/// # Errors
/// The kernel refuses.
pub fn detach(point: &Path) -> io::Result<()> {
    for _ in 0..MAX_STACKED {
        match rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing (more) is mounted there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::BUSY.into())
}

/// Field 5 of each line (proc_pid_mountinfo(5)).
fn parse(table: &[u8]) -> Vec<PathBuf> {
    let lines = table.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .collect()
}

/// Blank, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_points_as_they_are() {
        let table =
            b"22 28 0:21 / /sys rw - sysfs sysfs rw\n23 28 0:22 / /a\\040b\\134\\011 rw - tmpfs x rw\n";
        assert_eq!(parse(table), [PathBuf::from("/sys"), PathBuf::from("/a b\\\t")]);
        assert!(points().unwrap().contains(&PathBuf::from("/proc")));
    }

    #[test]
    fn what_is_not_mounted_is_detached_already() {
        let directory = tempfile::tempdir().unwrap();
        detach(directory.path()).unwrap();
        detach(&directory.path().join("absent")).unwrap();
    }
}
