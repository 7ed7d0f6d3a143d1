//! Why a step of a builder failed, in the form in which the operator reads it: the step's name, the object, and the
//! kernel's own word. Nothing is printed or logged here; a failure is sent to the shim once.

use std::io;

use cove_path::PathError;

use crate::protocol::Failure;

/// What a failure can come from.
pub(super) trait Cause {
    /// The kernel's error number; 0 where it was not the kernel that refused.
    fn errno(&self) -> i32;
    /// The error in words.
    fn words(&self) -> String;
}

impl Cause for rustix::io::Errno {
    fn errno(&self) -> i32 {
        self.raw_os_error()
    }
    fn words(&self) -> String {
        io::Error::from_raw_os_error(self.raw_os_error()).to_string()
    }
}

impl Cause for nix::errno::Errno {
    fn errno(&self) -> i32 {
        *self as i32
    }
    fn words(&self) -> String {
        self.desc().to_owned()
    }
}

impl Cause for io::Error {
    fn errno(&self) -> i32 {
        self.raw_os_error().unwrap_or(0)
    }
    fn words(&self) -> String {
        self.to_string()
    }
}

impl Cause for PathError {
    fn errno(&self) -> i32 {
        PathError::errno(self).map_or(0, rustix::io::Errno::raw_os_error)
    }
    fn words(&self) -> String {
        self.to_string()
    }
}

impl Cause for crate::wire::Malformed {
    fn errno(&self) -> i32 {
        0
    }
    fn words(&self) -> String {
        self.to_string()
    }
}

impl Cause for std::ffi::NulError {
    fn errno(&self) -> i32 {
        rustix::io::Errno::INVAL.raw_os_error()
    }
    fn words(&self) -> String {
        "it holds a NUL byte".to_owned()
    }
}

/// Gives an error its step and its object.
pub(super) trait At<T> {
    /// `doing` says what was being done, on what: it is followed by a colon and the error's words.
    fn at(self, step: &str, doing: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Cause> At<T> for Result<T, E> {
    fn at(self, step: &str, doing: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|cause| Failure {
            step: step.to_owned(),
            errno: cause.errno(),
            detail: format!("{}: {}", doing(), cause.words()),
        })
    }
}

/// A refusal of ours, where no system call failed.
pub(super) fn refuse<T>(step: &str, detail: String) -> Result<T, Failure> {
    Err(Failure { step: step.to_owned(), errno: 0, detail })
}
