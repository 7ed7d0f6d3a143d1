//! Processes of the host by pid and start time.

use std::fs;
use std::io;

/// Field 22 of /proc/PID/stat, in clock ticks since boot (proc_pid_stat(5)): with the pid, it tells a process from
/// a later one that was given the same pid. `None`: there is no such process.
pub fn start_time(pid: i32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // The process ended between open and read.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // The command name is in parentheses and may hold any byte, so the fields are counted from the last one.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
        .and_then(|field| field.parse().ok())
        .map(Some)
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time")))
}

/// From here on no program that this process executes has a descriptor that was not given to it on purpose: not even one
/// that whoever started this process left open. At the start of `main`.
pub fn keep_descriptors() -> io::Result<()> {
    cove_sys::keep_from_children()
}

/// The process is there, and is the one that was meant.
pub fn is_alive(pid: i32, started: u64) -> io::Result<bool> {
    Ok(start_time(pid)? == Some(started))
}

/// Signals a process by its pidfd, which stays its own even when the pid is used again. Gone is an error (ESRCH).
pub fn signal(pidfd: std::os::fd::BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    cove_sys::send_signal(pidfd, signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_itself_from_nobody() {
        let me = i32::try_from(std::process::id()).unwrap();
        let started = start_time(me).unwrap().unwrap();
        assert!(is_alive(me, started).unwrap());
        assert!(!is_alive(me, started + 1).unwrap());
        assert_eq!(start_time(i32::MAX).unwrap(), None);
    }
}
