//! The line between a builder and its shim: two gates down, reports up. See `report` for the order of reports.
//!
//! A wait at a gate has no time-out of its own: the gate's end is the limit, since the shim closes it when its own
//! deadline passes, and the kernel closes it when the shim dies.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cove_guard::Guard;
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd, read, retry_on_intr};

use super::report::Report;
use crate::protocol::{Failure, MAX_DETAIL};
use crate::socket;
use crate::wire::Wire;

/// Exit code of a builder that failed or was given up; the shim goes by the report, not by the code.
const GIVEN_UP: i32 = 1;

/// The number after those of stdio.
const FIRST_FREE: i32 = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct Line {
    report: OwnedFd,
    gate1: OwnedFd,
}

impl Line {
    /// Takes both away from the numbers of stdio, which the program gets, and makes them close-on-exec.
    pub(super) fn new(report: OwnedFd, gate1: OwnedFd) -> Self {
        let lift = |fd: OwnedFd| match fcntl_dupfd_cloexec(&fd, FIRST_FREE) {
            Ok(lifted) => lifted,
            // Without a line nobody can be told why.
            Err(_) => cove_sys::exit_now(GIVEN_UP),
        };
        let line = Self { report: lift(report), gate1: lift(gate1) };
        if !Guard::CloseOnExec.holds() && fcntl_setfd(&line.gate1, FdFlags::empty()).is_err() {
            cove_sys::exit_now(GIVEN_UP);
        }
        line
    }

    /// What must stay open until exec. Both are close-on-exec.
    pub(super) fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.report.as_fd(), self.gate1.as_fd()]
    }

    /// Tells the shim. Nobody listening means that the shim is gone, and with it every reason to go on.
    pub(super) fn say(&self, report: &Report) {
        if socket::send(self.report.as_fd(), &report.to_bytes(), &[]).is_err() {
            cove_sys::exit_now(GIVEN_UP);
        }
    }

    /// Waits until the program may run; ends the process if it may not.
    pub(super) fn pass_gate1(&self) {
        pass(self.gate1.as_fd());
    }

    /// Tells the shim why, and ends the process.
    pub(super) fn fail(&self, mut failure: Failure) -> ! {
        let mut end = failure.detail.len().min(MAX_DETAIL);
        while !failure.detail.is_char_boundary(end) {
            end -= 1;
        }
        failure.detail.truncate(end);
        self.say(&Report::Failed(failure));
        cove_sys::exit_now(GIVEN_UP)
    }
}

/// Waits for the byte of a gate; ends the process when the gate ends instead.
pub(super) fn pass(gate: BorrowedFd<'_>) {
    let mut byte = [0_u8; 1];
    match retry_on_intr(|| read(gate, &mut byte)) {
        Ok(1) => {}
        Ok(_) | Err(_) => cove_sys::exit_now(GIVEN_UP),
    }
}

/// Waits for a child's peer as `pass` does, but says what happened: used between a builder and its own clone.
pub(super) fn wait_byte(end: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut byte = [0_u8; 1];
    match retry_on_intr(|| read(end, &mut byte))? {
        1 => Ok(()),
        _ => Err(Errno::PIPE),
    }
}
