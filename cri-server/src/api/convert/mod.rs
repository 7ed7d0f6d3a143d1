//! Requests become domain types, or are refused with the path of the field; views become replies.
//!
//! A field that is not built yet is refused by name: a request is never carried out in part.

pub(super) mod container;
pub(super) mod field;
pub(super) mod filter;
pub(super) mod image;
pub(super) mod process;
pub(super) mod sandbox;
pub(super) mod security;
pub(super) mod signal;
pub(super) mod status;
pub(super) mod verbose;
