//! Signals by number: real-time ones too, which rustix and nix leave out of their signal types.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The highest signal number, SIGRTMAX. See signal(7).
pub const MAX_SIGNAL: i32 = 64;

/// Sends a signal to the process of a pidfd. EINVAL for a number that is no signal, ESRCH once it has been reaped.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: the siginfo pointer may be null (pidfd_send_signal(2)), and the call touches no other memory.
    super::check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// Puts every signal of this process back to its default action: what is ignored stays so over exec, and Rust's
/// runtime ignores SIGPIPE. For a freshly forked child.
pub fn default_signals() {
    // struct sigaction as the kernel has it on x86_64 and aarch64: handler, flags, restorer, mask. SIG_DFL is 0.
    let default = [0_usize; 4];
    for signal in 1..=MAX_SIGNAL {
        // SAFETY: SIG_DFL is no handler, so no code of this program can be called by it; the kernel reads `default`,
        // which outlives the call. libc's wrapper would leave out the two signals that it keeps for its threads,
        // of which this process has none. SIGKILL and SIGSTOP are refused, and always at their default.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                std::ptr::null_mut::<usize>(),
                size_of::<u64>(),
            )
        };
    }
}

/// Ignores SIGCHLD: children are reaped by the kernel as they end, and nobody is told (sigaction(2), NOTES).
pub fn reap_children_unseen() {
    // SAFETY: SIG_IGN is no handler, so no code of this program can be called by it.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn sends_real_time_signals() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        assert_eq!(send_signal(pidfd.as_fd(), 999).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        send_signal(pidfd.as_fd(), 37).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(37));
        assert_eq!(send_signal(pidfd.as_fd(), 9).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
