//! Recursive removal by descriptor, for trees that a container may have shaped to hurt.
//!
//! A tree can be deeper than we have descriptors: below [`DEPTH`] levels a directory is moved up to the top of the
//! tree that is being removed, and removed from there.

use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, SeekFrom, renameat_with, seek, unlinkat,
};
use rustix::io::Errno;

use crate::resolve::{self, OURS};

/// Directories held open at once.
const DEPTH: usize = 64;

/// One getdents64 call's worth of names: the memory that one level takes.
const BATCH: usize = 32 * 1024;

struct Level {
    fd: OwnedFd,
    name: CString,
    /// Directories of the last batch that were not empty.
    pending: Vec<CString>,
}

/// Removes `leaf` of `parent`, whatever it is.
pub(crate) fn remove_all(parent: impl AsFd, leaf: &OsStr) -> Result<(), Errno> {
    let name = CString::new(leaf.as_bytes()).map_err(|_nul| Errno::INVAL)?;
    match unlinkat(parent.as_fd(), &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno),
    }
    let mut stack = Vec::with_capacity(DEPTH);
    match enter(&parent, name) {
        Ok(level) => stack.push(level),
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    }
    let mut moved = 0_u64;
    while let Some(level) = stack.last_mut() {
        if let Some(name) = level.pending.pop() {
            if stack.len() < DEPTH {
                descend(&mut stack, name)?;
            } else {
                move_up(&stack, &name, &mut moved)?;
            }
        } else if empty_batch(level)? {
            leave(&parent, &mut stack)?;
        }
    }
    Ok(())
}

fn enter(parent: impl AsFd, name: CString) -> Result<Level, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let path = Path::new(OsStr::from_bytes(name.as_bytes()));
    let fd = resolve::open(parent, path, flags, Mode::empty(), OURS)?;
    Ok(Level { fd, name, pending: Vec::new() })
}

fn descend(stack: &mut Vec<Level>, name: CString) -> Result<(), Errno> {
    let Some(level) = stack.last() else { return Ok(()) };
    match enter(&level.fd, name) {
        Ok(below) => stack.push(below),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    Ok(())
}

/// Moves a directory that is too deep to hold open to the top, where a later batch finds it.
fn move_up(stack: &[Level], name: &CStr, moved: &mut u64) -> Result<(), Errno> {
    let (Some(top), Some(level)) = (stack.first(), stack.last()) else { return Ok(()) };
    loop {
        *moved += 1;
        let target = format!(".cove-deep-{moved}");
        match renameat_with(&level.fd, name, &top.fd, target, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}

/// Takes the emptied directory off the stack and removes it.
fn leave(parent: impl AsFd, stack: &mut Vec<Level>) -> Result<(), Errno> {
    let Some(level) = stack.pop() else { return Ok(()) };
    let holder = stack.last().map_or(parent.as_fd(), |above| above.fd.as_fd());
    match unlinkat(holder, &level.name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Removes one batch of names; directories with something in them are left in `pending`. `true`: the directory is
/// empty now.
fn empty_batch(level: &mut Level) -> Result<bool, Errno> {
    seek(&level.fd, SeekFrom::Start(0))?;
    let mut buffer = vec![MaybeUninit::uninit(); BATCH];
    let mut names = RawDir::new(&level.fd, &mut buffer);
    let mut seen = 0_u32;
    let mut removed = 0_u32;
    while let Some(entry) = names.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            seen += 1;
            if remove_one(&level.fd, name, entry.file_type())? {
                removed += 1;
            } else {
                level.pending.push(name.to_owned());
            }
        }
        // The next call would read from where we are, past what is left: the batch ends with its buffer.
        if names.is_buffer_empty() && seen > 0 {
            break;
        }
    }
    if seen > 0 && removed == 0 && level.pending.is_empty() {
        return Err(Errno::NOTEMPTY);
    }
    Ok(seen == 0)
}

/// `false`: a directory that is not empty.
fn remove_one(dir: &OwnedFd, name: &CStr, kind: FileType) -> Result<bool, Errno> {
    if kind != FileType::Directory {
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confined::{confined, directory};
    use rustix::fs::{mkdirat, openat, symlinkat};
    use std::fs;

    #[test]
    fn removes_wide_and_odd_trees() {
        confined(|| {
            let temp = directory();
            let tree = temp.path().join("tree");
            for directory in 0..300 {
                let at = tree.join(format!("d{directory}/inner"));
                fs::create_dir_all(&at).unwrap();
                fs::write(at.join("file"), "x").unwrap();
            }
            for file in 0..3000 {
                fs::write(tree.join(format!("a-long-name-to-fill-batches-{file}")), "").unwrap();
            }
            fs::write(temp.path().join("keep"), "x").unwrap();
            std::os::unix::fs::symlink(temp.path(), tree.join("d0/out")).unwrap();
            let parent = fs::File::open(temp.path()).unwrap();
            remove_all(&parent, OsStr::new("tree")).unwrap();
            remove_all(&parent, OsStr::new("tree")).unwrap();
            let left: Vec<_> = fs::read_dir(temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(left, ["keep"]);
        });
    }

    #[test]
    fn removes_trees_deeper_than_paths_can_say() {
        confined(|| {
            let temp = directory();
            let parent = fs::File::open(temp.path()).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            mkdirat(&parent, "deep", Mode::from(0o755)).unwrap();
            let mut here = openat(&parent, "deep", flags, Mode::empty()).unwrap();
            for level in 0..5000 {
                let name = if level % 70 == 0 { ".cove-deep-1" } else { "n" };
                mkdirat(&here, name, Mode::from(0o755)).unwrap();
                symlinkat("/", &here, "root").unwrap();
                here = openat(&here, name, flags, Mode::empty()).unwrap();
            }
            drop(here);
            remove_all(&parent, OsStr::new("deep")).unwrap();
            assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
        });
    }

    #[test]
    fn never_enters_a_mount() {
        confined(|| {
            let temp = directory();
            let at = temp.path().join("tree/mounted");
            fs::create_dir_all(&at).unwrap();
            rustix::mount::mount("tmpfs", &at, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
            fs::write(at.join("kept"), "x").unwrap();
            let parent = fs::File::open(temp.path()).unwrap();
            let refused = remove_all(&parent, OsStr::new("tree"));
            let kept = at.join("kept").exists();
            rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).unwrap();
            assert!(matches!(refused, Err(Errno::BUSY | Errno::XDEV)), "{refused:?}");
            assert!(kept);
        });
    }
}
