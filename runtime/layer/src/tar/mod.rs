//! Reads a tar archive as a stream of entries: POSIX ustar and PAX, GNU long names, numbers in octal or base 256.
//!
//! It touches no file. What two extractors could read in two ways is an error here (A63): a scanner and a node must
//! never see different files in one layer.

mod entry;
mod header;
mod number;
mod path;
mod pax;
mod reader;

pub(crate) use entry::{Entry, Kind, Xattr};
pub(crate) use path::{EntryPath, Role};
pub(crate) use reader::Reader;
