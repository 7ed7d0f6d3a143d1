//! One daemon an instance: both roots are locked while it lives.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::error::Error;

/// Holds the lock of a root directory until dropped. The descriptor is close-on-exec: no shim can inherit the lock.
#[derive(Debug)]
pub struct RootLock(#[expect(dead_code, reason = "held, not read: closing it gives the lock up")] File);

impl RootLock {
    /// Makes `root` where it is missing (0711, root's own), refuses one that others could write to, and locks it. A
    /// lock that is held is an error that names its holder.
    pub fn take(root: &Path) -> Result<Self, Error> {
        let system = |doing| move |source| Error::system(doing, root.display().to_string(), source);
        fs::DirBuilder::new().recursive(true).mode(0o711).create(root).map_err(system("create directory"))?;
        let metadata = fs::symlink_metadata(root).map_err(system("read metadata of"))?;
        if !metadata.is_dir() || metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
            let reason = io::Error::other("it must be a directory that only root can write to");
            return Err(Error::system("use directory", root.display().to_string(), reason));
        }
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(root.join("lock"))
            .map_err(system("open lock of"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let reason = format!("another daemon, pid {}, holds it", named(&mut file));
                return Err(Error::system("lock", root.display().to_string(), io::Error::other(reason)));
            }
            Err(TryLockError::Error(source)) => return Err(system("lock")(source)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(system("write lock of"))?;
        Ok(Self(file))
    }

    /// The pid of the daemon that holds the lock of `root`; none where nobody does, or `root` is not there. Takes
    /// nothing and makes nothing.
    pub fn holder(root: &Path) -> Result<Option<i32>, Error> {
        let system = |doing| move |source| Error::system(doing, root.display().to_string(), source);
        let mut file = match File::open(root.join("lock")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(system("open lock of")(error)),
        };
        // Shared, so that two who only look are not taken for a daemon, and given back at once.
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            // 0: it is held, and its holder has not said yet who it is.
            Err(TryLockError::WouldBlock) => Ok(Some(named(&mut file).parse().unwrap_or(0))),
            Err(TryLockError::Error(source)) => Err(system("look at the lock of")(source)),
        }
    }
}

/// Who the lock says holds it. Only for people: without it the lock is held all the same.
fn named(file: &mut File) -> String {
    let mut holder = String::new();
    let _ = Read::take(file, 32).read_to_string(&mut holder);
    holder.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        let first = RootLock::take(&root).unwrap();
        let second = RootLock::take(&root).unwrap_err().to_string();
        assert!(second.contains(&format!("pid {}", std::process::id())), "{second}");
        let me = i32::try_from(std::process::id()).unwrap();
        assert_eq!(RootLock::holder(&root).unwrap(), Some(me));
        drop(first);
        assert_eq!(RootLock::holder(&root).unwrap(), None);
        assert_eq!(RootLock::holder(&directory.path().join("absent")).unwrap(), None);
        RootLock::take(&root).unwrap();
    }

    #[test]
    fn a_root_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(RootLock::take(directory.path()).is_err());
    }
}
