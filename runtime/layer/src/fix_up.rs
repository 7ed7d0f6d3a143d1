//! The right metadata for directories that a layer made without an entry for them.
//!
//! An archive may hold `tmp/file` and no `tmp/`. Overlayfs shows a directory as the topmost layer has it, so that the
//! 0755 of our making would hide the 1777 of the layer below. A layer on top of all, which holds only these
//! directories as the lower layers name them, sets that right (other runtimes copy the parent's metadata while they
//! unpack, and so can unpack only one layer at a time).

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cove_path::{PathError, Tree};
use rustix::fs::{
    Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fgetxattr, flistxattr,
    fsetxattr, fstat, futimens,
};
use rustix::io::Errno;

/// A layer in its place in an image.
#[derive(Debug, Clone, Copy)]
pub struct Stacked<'a> {
    /// Where it was unpacked.
    pub path: &'a Path,
    /// [`crate::Unpacked::implicit`] of it.
    pub implicit: &'a [PathBuf],
}

/// Fills `target`, an empty directory, with the layer to put on top of `layers` (lowest first). Gives the number of
/// directories in it; 0: it is not needed.
///
/// The image's root directory is not looked at: overlayfs shows the writable layer's.
///
/// # Errors
/// When a layer cannot be read or the new one not be written, with the path.
pub fn fix_up(layers: &[Stacked<'_>], target: &Path) -> Result<u64, PathError> {
    let stack = Stack::open(layers)?;
    let target = Tree::open(target)?;
    let mut made: Vec<(PathBuf, OwnedFd, Timestamps)> = Vec::new();
    let asked: BTreeSet<&PathBuf> = layers.iter().flat_map(|layer| layer.implicit).collect();
    for path in asked {
        if !stack.visible(path)?.is_some_and(|shown| shown.is_named_below) {
            continue;
        }
        // Its parents are in this layer too, so they must look as they did.
        let mut chain: Vec<&Path> = path.ancestors().filter(|part| !part.as_os_str().is_empty()).collect();
        chain.reverse();
        for part in chain {
            if let Some(copy) = copy(&stack, &target, part)? {
                made.push(copy);
            }
        }
    }
    // Last, since what is made in a directory changes its time.
    for (path, fd, times) in &made {
        futimens(fd, times).map_err(call("set times", path))?;
    }
    Ok(crate::stream::as_u64(made.len()))
}

/// A directory as the stacked layers show it.
struct Shown {
    /// The directory whose metadata is the right one.
    fd: OwnedFd,
    /// The topmost layer that has it did not name it, and one below does.
    is_named_below: bool,
}

/// What one layer has at a path.
enum Found {
    /// A directory; `last`: nothing below it counts.
    Directory { fd: OwnedFd, last: bool },
    /// Nothing; `last` as above.
    Nothing { last: bool },
}

struct Stack<'a> {
    /// Topmost first.
    layers: Vec<(Tree, BTreeSet<&'a Path>)>,
}

impl<'a> Stack<'a> {
    fn open(layers: &[Stacked<'a>]) -> Result<Self, PathError> {
        let open = |layer: &Stacked<'a>| {
            let implicit = layer.implicit.iter().map(PathBuf::as_path).collect();
            Ok((Tree::open(layer.path)?, implicit))
        };
        Ok(Self { layers: layers.iter().rev().map(open).collect::<Result<_, PathError>>()? })
    }

    /// `None`: the image has no directory of this name.
    fn visible(&self, path: &Path) -> Result<Option<Shown>, PathError> {
        let mut topmost = None;
        for (tree, implicit) in &self.layers {
            let last = match look(tree, path)? {
                Found::Directory { fd, .. } if !implicit.contains(path) => {
                    return Ok(Some(Shown { fd, is_named_below: topmost.is_some() }));
                }
                Found::Directory { fd, last } => {
                    topmost.get_or_insert(fd);
                    last
                }
                Found::Nothing { last } => last,
            };
            if last {
                break;
            }
        }
        Ok(topmost.map(|fd| Shown { fd, is_named_below: false }))
    }
}

/// Looks for `path` part by part: an opaque directory on the way hides the layers below, and so does anything that is
/// no directory, a whiteout or symlink too.
fn look(tree: &Tree, path: &Path) -> Result<Found, PathError> {
    let mut last = false;
    let mut prefix = PathBuf::new();
    let mut found = None;
    for part in path {
        prefix.push(part);
        match tree.open_at(&prefix, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => {
                last |= is_opaque(&fd).map_err(call("read attribute of", &prefix))?;
                found = Some(fd);
            }
            Err(error) => {
                return match error.errno() {
                    Some(Errno::NOENT) => Ok(Found::Nothing { last }),
                    Some(Errno::NOTDIR | Errno::LOOP) => Ok(Found::Nothing { last: true }),
                    _ => Err(error),
                };
            }
        }
    }
    Ok(found.map_or(Found::Nothing { last }, |fd| Found::Directory { fd, last }))
}

fn is_opaque(fd: &OwnedFd) -> Result<bool, Errno> {
    let mut value = [0; 1];
    match fgetxattr(fd, c"trusted.overlay.opaque", &mut value[..]) {
        Ok(_) => Ok(value == *b"y"),
        // ERANGE: a longer value is none that overlayfs knows here.
        Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Makes one directory of the new layer, unless it is there.
fn copy(
    stack: &Stack<'_>,
    target: &Tree,
    path: &Path,
) -> Result<Option<(PathBuf, OwnedFd, Timestamps)>, PathError> {
    let Some(shown) = stack.visible(path)? else { return Ok(None) };
    match target.make_dir(path, Mode::from_raw_mode(0o700)) {
        Err(error) if error.errno() == Some(Errno::EXIST) => return Ok(None),
        other => other?,
    }
    let fd = target.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let stat = fstat(&shown.fd).map_err(call("stat", path))?;
    fchown(&fd, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
        .map_err(call("set owner of", path))?;
    copy_xattrs(&shown.fd, &fd).map_err(call("copy attributes of", path))?;
    fchmod(&fd, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(call("set mode of", path))?;
    let time =
        Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or_default() };
    Ok(Some((path.to_owned(), fd, Timestamps { last_access: time, last_modification: time })))
}

/// Copies what users set; the opaque mark must stay where it is.
fn copy_xattrs(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    /// The kernel's XATTR_LIST_MAX and XATTR_SIZE_MAX.
    const MOST: usize = 64 << 10;
    let mut names = vec![0; MOST];
    let count = flistxattr(from, &mut names[..])?;
    names.truncate(count);
    let user = names.split_inclusive(|byte| *byte == 0).filter(|name| name.starts_with(b"user."));
    for name in user.filter_map(|name| std::ffi::CStr::from_bytes_with_nul(name).ok()) {
        let mut value = vec![0; MOST];
        let count = fgetxattr(from, name, &mut value[..])?;
        value.truncate(count);
        fsetxattr(to, name, &value, XattrFlags::empty())?;
    }
    Ok(())
}

fn call(doing: &'static str, path: &Path) -> impl FnOnce(Errno) -> PathError + use<> {
    let path = path.to_owned();
    move |errno| PathError::Call { doing, path, errno }
}
