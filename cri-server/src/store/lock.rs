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
                let mut holder = String::new();
                // Only for the message: without it the lock is held all the same.
                let _ = Read::take(&mut file, 32).read_to_string(&mut holder);
                let reason = format!("another daemon, pid {}, holds it", holder.trim());
                return Err(Error::system("lock", root.display().to_string(), io::Error::other(reason)));
            }
            Err(TryLockError::Error(source)) => return Err(system("lock")(source)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(system("write lock of"))?;
        Ok(Self(file))
    }
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
        drop(first);
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
