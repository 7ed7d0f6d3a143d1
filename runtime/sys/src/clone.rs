//! fork by clone3(2), for processes of one thread.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// See clone3(2); libc's constant is an `int`, which this bit does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Namespaces and relation of the new process: `libc::CLONE_*` bits that only make namespaces or choose the
/// parent. Memory is never shared: a bit that would is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CloneFlags(u64);

impl CloneFlags {
    /// A mount namespace of its own.
    pub const NEW_MOUNT: Self = Self(libc::CLONE_NEWNS as u64);
    /// The first process of a PID namespace.
    pub const NEW_PID: Self = Self(libc::CLONE_NEWPID as u64);
    /// A user namespace of its own.
    pub const NEW_USER: Self = Self(libc::CLONE_NEWUSER as u64);
    /// A cgroup namespace of its own.
    pub const NEW_CGROUP: Self = Self(libc::CLONE_NEWCGROUP as u64);
    /// A child of the caller's parent instead of the caller.
    pub const PARENT: Self = Self(libc::CLONE_PARENT as u64);

    /// No namespace, child of the caller.
    pub const fn none() -> Self {
        Self(0)
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Proof that this process has one thread, so that a child may go on with everything a process has (a lock held by
/// another thread at the time of a fork would stay locked in the child for ever).
#[derive(Debug, Clone, Copy)]
pub struct SingleThreaded(());

impl SingleThreaded {
    /// Looks into /proc/self/task. Whoever holds the proof must not start threads; the shim never does.
    pub fn check() -> io::Result<Self> {
        match fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(())),
            n => Err(io::Error::other(format!(
                "this process has {n} threads, and only one may fork and go on"
            ))),
        }
    }

    /// A fork's child has one thread, whatever its parent had.
    const fn child() -> Self {
        Self(())
    }
}

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child(SingleThreaded),
    /// The caller.
    Parent {
        /// The child's pid as the caller's PID namespace numbers it.
        pid: i32,
        /// Stays the child's even when the pid is used again.
        pidfd: OwnedFd,
    },
}

/// The same by clone(2), which knows every flag of [`CloneFlags`] but no cgroup.
fn clone_old(flags: CloneFlags, pidfd: &mut libc::c_int) -> io::Result<libc::c_long> {
    // Here the exit signal is part of the flags, and ignored where the child is a sibling.
    let flags = flags.0 | libc::CLONE_PIDFD as u64 | libc::SIGCHLD as u64;
    // SAFETY: as in `fork`: a copy of this process on a copy of this stack (the stack argument is null), of which
    // no other thread exists. The kernel writes the pidfd, and only in the parent. What is null or 0 after it is
    // read with flags that `CloneFlags` does not hold.
    super::check(unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, &raw mut *pidfd, 0_usize, 0_usize) })
}

/// Forks. With `cgroup`, a directory of cgroup v2, the child begins there (CLONE_INTO_CGROUP).
pub fn fork(_: SingleThreaded, flags: CloneFlags, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is a plain C struct for which all-zero is the documented "unset" of every field.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags.0 | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    // CLONE_PARENT gives the child the exit signal of the caller itself, and clone3(2) refuses another.
    args.exit_signal = if flags.0 & CloneFlags::PARENT.0 == 0 { libc::SIGCHLD as u64 } else { 0 };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    }
    // SAFETY: no CLONE_VM, CLONE_FILES or CLONE_SETTLS is among the flags that `CloneFlags` can hold, so this is a
    // fork: the child runs on its own copy of this stack. The proof says that no other thread exists whose locks
    // the copy could hold. `args` and `pidfd` outlive the call.
    let made = super::check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>())
    });
    let pid = match made {
        // A seccomp filter cannot look into clone3's arguments, so profiles answer ENOSYS to all of it.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) && cgroup.is_none() => {
            clone_old(flags, &mut pidfd)?
        }
        made => made?,
    };
    if pid == 0 {
        return Ok(Forked::Child(SingleThreaded::child()));
    }
    // SAFETY: CLONE_PIDFD succeeded, so the kernel stored a descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent { pid: i32::try_from(pid).map_err(io::Error::other)?, pidfd })
}
