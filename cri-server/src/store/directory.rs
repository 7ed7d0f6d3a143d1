//! The daemon's own directories: made for root alone, and removed by way of the trash.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use cove_path::Tree;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::error::Error;

/// Name of the directory below a root where what is to be removed waits.
pub const TRASH: &str = "trash";

/// Makes a directory, with its parents, for root alone. Idempotent. Blocking.
pub fn make_private_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| Error::system("create directory", path.display().to_string(), error))
}

/// Makes the directory in which each object has one of its own. Each of those is to begin in a part of the disk of its own,
/// where the file system knows how (`T` of chattr(1)): ext4 would make all of them in one block group, and there look
/// up each inode that was freed in the last minute before it takes another. Blocking.
pub fn make_room(path: &Path) -> Result<(), Error> {
    make_private_directory(path)?;
    let set_apart = || {
        let room = File::open(path)?;
        ioctl_setflags(&room, ioctl_getflags(&room)? | IFlags::TOPDIR)?;
        Ok::<_, io::Error>(())
    };
    if let Err(error) = set_apart() {
        tracing::debug!(path = %path.display(), %error, "objects are not spread over the disk");
    }
    Ok(())
}

/// Takes a directory out of sight in one step; its content is removed later. None if it was gone. Blocking.
pub fn move_to_trash(root: &Path, path: &Path) -> Result<Option<PathBuf>, Error> {
    let trash = root.join(TRASH);
    make_private_directory(&trash)?;
    let target = trash.join(super::new_id()?);
    match std::fs::rename(path, &target) {
        Ok(()) => Ok(Some(target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::system("remove", path.display().to_string(), error)),
    }
}

/// Removes a directory with everything below it, however deep. Gone is done. Blocking.
pub fn remove_tree(path: &Path) -> Result<(), Error> {
    let system = |error: cove_path::PathError| {
        Error::system("remove", path.display().to_string(), io::Error::other(error))
    };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    match std::fs::metadata(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(_) | Err(_) => {}
    }
    Tree::open(parent).and_then(|tree| tree.remove_all(Path::new(name))).map_err(system)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn objects_are_spread_over_the_disk_where_it_can() {
        /// linux/magic.h
        const EXT4: rustix::fs::FsWord = 0xEF53;
        let root = tempfile::tempdir().unwrap();
        let room = root.path().join("a/room");
        for _ in 0..2 {
            make_room(&room).unwrap();
        }
        let room = File::open(&room).unwrap();
        if rustix::fs::fstatfs(&room).unwrap().f_type == EXT4 {
            assert!(ioctl_getflags(&room).unwrap().contains(IFlags::TOPDIR));
        }
    }

    #[test]
    fn what_is_removed_is_out_of_sight_first_and_gone_twice_is_fine() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("containers/abc");
        make_private_directory(&path.join("upper/deep")).unwrap();
        make_private_directory(&path).unwrap();
        let trash = move_to_trash(root.path(), &path).unwrap().unwrap();
        assert!(!path.exists() && trash.join("upper/deep").is_dir());
        assert!(move_to_trash(root.path(), &path).unwrap().is_none());
        remove_tree(&trash).unwrap();
        remove_tree(&trash).unwrap();
        remove_tree(&root.path().join("no/such")).unwrap();
        assert_eq!(fs::read_dir(root.path().join(TRASH)).unwrap().count(), 0);
    }
}
