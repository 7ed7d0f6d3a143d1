//! How many descriptors a process of Cove's may have open, and how many a container's.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What programs expect that use select(2), which knows no descriptor above 1023: the soft limit of the kernel and of
/// systemd (systemd.exec(5), LimitNOFILE).
const USUAL: u64 = 1024;

/// Raises the soft limit to the hard one: a daemon has some 20 descriptors a pod, a shim some 30 a container.
pub fn allow_all() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Up to the hard limit this is never refused (setrlimit(2)).
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Gives a container's process the usual soft limit back; it may raise it again.
///
/// # Errors
/// Never but for a kernel that breaks setrlimit(2).
pub fn allow_usual() -> rustix::io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = Some(maximum.map_or(USUAL, |maximum| maximum.min(USUAL)));
    setrlimit(Resource::Nofile, Rlimit { current, maximum })
}
