//! A process's end and its session keyring.

use std::io;

/// The operation's number in keyctl(2).
const JOIN_SESSION_KEYRING: libc::c_long = libc::KEYCTL_JOIN_SESSION_KEYRING as libc::c_long;

/// Ends this process without running destructors, exit handlers or flushes: in a forked child those would act on
/// what it shares with its parent. _exit(2).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: exit_group ends the process and touches none of its memory.
    unsafe { libc::_exit(code) }
}

/// Leaves the session keyring that was inherited for a new, empty one (keyctl(2) KEYCTL_JOIN_SESSION_KEYRING), so
/// that keys of the daemon's session are not a container's. A kernel without keyrings has none to leave.
pub fn join_session_keyring() -> io::Result<()> {
    // SAFETY: with a null name the kernel reads no memory of ours, and makes a keyring without a name.
    let joined = super::check(unsafe {
        libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    });
    match joined {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        joined => joined.map(drop),
    }
}
