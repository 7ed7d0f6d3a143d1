//! What a builder tells its shim, over a `SOCK_SEQPACKET` pair whose write end is close-on-exec: the end of the
//! messages with no [`Report::Failed`] before it, after gate 1 was opened, means that the program runs.
//!
//! The shim takes the messages in this order, each at most once, each of at most [`crate::protocol::MAX_DETAIL`] and
//! some bytes, and ends a builder that says anything else: `User`, then `Cloned` (not from a builder that is itself
//! the first process), then `Ready`; `Failed` at any point.

use crate::protocol::{Failure, ResolvedUser};
use crate::{wire_enum, wire_struct};

wire_enum! {
    /// One message.
    pub enum Report {
        /// The user was resolved on the rootfs.
        1 => User(ResolvedUser),
        /// The final process exists, a child of the shim.
        2 => Cloned(Cloned),
        /// All is set up; the final process waits at gate 1.
        3 => Ready,
        /// A step failed; the process that says so ends.
        4 => Failed(Failure),
    }
}

wire_struct! {
    /// See [`Report::Cloned`].
    pub struct Cloned {
        /// Pid in the host's PID namespace.
        pub pid: i32,
    }
}
