//! Descriptors by number: those inherited over an exec, and those that must not be inherited further.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes ownership of a descriptor that the program that executed this one left open, for example 0 to 2.
///
/// Refuses a number that is not open. Call it once a number, at the start of `main`.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(F_GETFD) reads a flag and touches no memory, whatever the number.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    super::check(flags.into())?;
    // SAFETY: the descriptor is open, and by the function's contract it came over exec, so that no other value of
    // this program owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes every descriptor of this process but `keep`. close_range(2), kernel 5.9.
///
/// For a freshly forked child, as its first act. Owned values for the closed descriptors must never be used or
/// dropped again in this process: the child ends by exec or `_exit`, neither of which runs destructors.
pub fn close_all_except(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut first = 0_u32;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: close_range(2) touches no memory. That no owned value of a closed number is used again is the
    // contract of `close_all_except`.
    super::check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Marks every descriptor but 0 to 2 so that no program that is executed from here on has it: also those that this one
/// was left without being told. close_range(2) with CLOSE_RANGE_CLOEXEC, kernel 5.11.
pub fn keep_from_children() -> io::Result<()> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC close_range(2) closes nothing and touches no memory.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    super::check(done).map(drop)
}
