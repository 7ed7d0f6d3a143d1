//! What can be wrong with a layer, with the entry in it.

use std::fmt;
use std::io;

use cove_path::PathError;
use rustix::io::Errno;

/// As much of a hostile name as a message shows.
const SHOWN: usize = 200;

/// A name from a layer, made safe to print: escaped and cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let shown = bytes.get(..SHOWN).unwrap_or(bytes);
        let cut = if shown.len() < bytes.len() { "…" } else { "" };
        Self(format!("\"{}{cut}\"", shown.escape_ascii()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A layer could not be unpacked. What was written by then is for the caller to remove.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The source failed: the network, usually.
    #[error("read the layer: {0}")]
    Source(#[source] io::Error),
    /// The compressed form is broken, cut off, or followed by something else.
    #[error("decompress the layer: {0}")]
    Decompress(#[source] io::Error),
    /// The archive itself is broken at this byte of the uncompressed stream.
    #[error("tar header at byte {offset}: {fault}")]
    Header {
        /// Where the header starts.
        offset: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// An entry that we refuse.
    #[error("tar entry {name}: {fault}")]
    Entry {
        /// Its name.
        name: Name,
        /// What is wrong with it.
        fault: Fault,
    },
    /// More than [`crate::Limits`] permits.
    #[error("layer exceeds the limit {limit} = {max}")]
    Limit {
        /// The field's name.
        limit: &'static str,
        /// Its value.
        max: u64,
    },
    /// The kernel refused to make or describe an entry.
    #[error("tar entry {name}: {doing}: {errno}")]
    Write {
        /// The entry's name.
        name: Name,
        /// The step, as a verb phrase.
        doing: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// An entry's directory could not be opened or made.
    #[error("tar entry {name}: {source}")]
    Parent {
        /// The entry's name.
        name: Name,
        /// Which part, and why.
        source: PathError,
    },
    /// What is kept of the archive beside its files could not be written.
    #[error("write the layer's tar headers: {0}")]
    Headers(#[source] io::Error),
    /// The directory to unpack into cannot be used.
    #[error("unpack target: {0}")]
    Target(#[source] PathError),
    /// The directory to unpack into has something in it.
    #[error("unpack target is not empty")]
    TargetNotEmpty,
}

/// What is wrong with an entry or its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The stream ends inside a header, a body or its padding.
    #[error("the archive is cut off")]
    Truncated,
    /// The header's checksum is wrong: this is no tar header.
    #[error("the checksum is wrong")]
    Checksum,
    /// A numeric field holds something else.
    #[error("field {0} is not a number")]
    Number(&'static str),
    /// A number that the kernel or the format has no room for.
    #[error("field {0} is out of range")]
    Range(&'static str),
    /// One block of zeros, and then more entries.
    #[error("a zero block stands between entries")]
    LoneZeroBlock,
    /// A PAX header that is not a list of `length key=value`.
    #[error("the PAX header is malformed")]
    Pax,
    /// The same thing said twice in different places.
    #[error("{0} is given more than once")]
    Twice(&'static str),
    /// The plain header and its extension say different things.
    #[error("{0} differs between the header and its extension")]
    Disagree(&'static str),
    /// A global PAX header that would change the entries after it.
    #[error("a global PAX header sets {0}")]
    Global(&'static str),
    /// Extension headers with no entry after them.
    #[error("extension headers without an entry")]
    NoEntry,
    /// A sparse file, in any of its three forms.
    #[error("sparse files are not supported")]
    Sparse,
    /// A kind of entry that a layer has no use for.
    #[error("entries of type {} are not supported", char::from(*.0).escape_default())]
    Type(u8),
    /// A character set other than UTF-8 or binary.
    #[error("a PAX character set is not supported")]
    Charset,
    /// A size on an entry that has no content.
    #[error("an entry without content has a size")]
    Body,
    /// `..` in a name, or a NUL.
    #[error("the name has a part that is \"..\" or holds a NUL")]
    Name,
    /// The name of a regular file that ends in a slash.
    #[error("a file's name ends in a slash")]
    Slash,
    /// No link target, or one with a NUL.
    #[error("the link has no usable target")]
    Target,
    /// A hard link to a directory, to nothing, or to a whiteout.
    #[error("the hard link's target is missing or a directory")]
    LinkTarget,
    /// The layer's root as anything but a directory.
    #[error("the root can only be a directory")]
    Root,
    /// A whiteout of nothing, `.` or `..`, or used as a directory.
    #[error("the whiteout names nothing that can be hidden")]
    Whiteout,
    /// A character device 0:0, which overlayfs takes for a whiteout.
    #[error("a device 0:0 would hide files of other layers")]
    WhiteoutDevice,
}
