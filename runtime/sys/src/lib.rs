//! The only unsafe code of Cove: system calls that neither `rustix` nor `nix` offers as safe functions, each
//! wrapped in a safe function that says why it is sound. Linux, 64-bit.

mod bpf;
mod clone;
mod fds;
mod memory;
mod mount;
mod process;
mod seccomp;
mod signal;

pub use bpf::{
    Instruction, Refused, attach_device_program, detach_device_program, device_programs, load_device_program,
    program_by_id,
};
pub use clone::{CloneFlags, Forked, SingleThreaded, fork};
pub use fds::{close_all_except, inherited, keep_from_children};
pub use memory::{limit_arenas, trim};
pub use mount::{MountAttr, mount_setattr};
pub use process::{exit_now, join_session_keyring};
pub use seccomp::set_filter;
pub use signal::{MAX_SIGNAL, default_signals, reap_children_unseen, send_signal};

use std::io;

/// Turns the return value of a raw system call into a result.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
