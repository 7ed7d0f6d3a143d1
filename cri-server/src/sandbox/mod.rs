//! Sandboxes.
pub(crate) mod config;
