//! Paths below a root that somebody else controls: one resolver on openat2(2), and the private procfs handle.
//!
//! Nothing here ever takes a path by string from the process's own root once a [`Root`] is open.

/// STUB: replaced by its owner.
#[derive(Debug, thiserror::Error)]
pub enum PathError {}
