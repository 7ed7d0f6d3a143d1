//! Paths below a root that somebody else controls: one resolver on openat2(2), and the private procfs handle.
//!
//! [`Root`] sees a directory as its container will: symlinks and `..` stay inside. [`Tree`] is for our own
//! directories, where a symlink or a mount is a sign of tampering and refused. [`Proc`] is a procfs that nobody
//! else can mount over. Nothing here resolves a path by string from the process's own root once a handle is
//! open, and nothing here follows a magic link (`/proc/self/fd/3`).
#![forbid(unsafe_code)]

#[cfg(test)]
mod confined;
mod copy;
mod error;
mod procfs;
mod remove;
mod resolve;
mod root;
mod tree;
mod walk;

pub use error::PathError;
pub use procfs::Proc;
pub use root::Root;
pub use tree::Tree;
