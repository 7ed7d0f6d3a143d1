//! What must be true of the host before a daemon starts on it.

use std::fs;
use std::io;

use crate::config::Config;

/// Why this daemon does not start here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// Mounts made here would be seen by nobody else.
    #[error(
        "this is not the mount namespace of pid 1: pods would not see volumes that are mounted later, and would lose \
         theirs when it ends (a unit with PrivateTmp=, ProtectSystem= or MountFlags= does this); to start \
         nevertheless set private_mounts = true"
    )]
    PrivateMounts,
}

/// Refuses a host on which pods would break later.
pub(crate) fn check(config: &Config) -> Result<(), HostError> {
    let ours = fs::read_link("/proc/self/ns/mnt");
    let first = fs::read_link("/proc/1/ns/mnt");
    match same(&ours, &first) {
        Some(false) if !config.private_mounts => Err(HostError::PrivateMounts),
        Some(_) => Ok(()),
        None => {
            tracing::warn!(
                "cannot tell whether this is the mount namespace of pid 1: it may not be looked at"
            );
            Ok(())
        }
    }
}

/// None where one of them may not be read.
fn same<T: PartialEq>(ours: &io::Result<T>, first: &io::Result<T>) -> Option<bool> {
    match (ours, first) {
        (Ok(ours), Ok(first)) => Some(ours == first),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_compared_only_when_both_are_seen() {
        let refused = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(same(&Ok(1), &Ok(1)), Some(true));
        assert_eq!(same(&Ok(1), &Ok(2)), Some(false));
        assert_eq!(same(&Ok(1), &refused()), None);
    }
}
