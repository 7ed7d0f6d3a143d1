//! Image layers: tar in, tree out.
//!
//! [`unpack`] reads one layer as a stream (decompress, hash, parse) and writes it below a directory in the form that
//! overlayfs stacks: whiteouts as 0:0 devices, opaque directories as an extended attribute. It trusts nothing in the
//! layer: every name is resolved by openat2 inside the target, every number is checked before anything is made, every
//! size has a limit in [`Limits`]. It knows no registry and no image, never syncs, and never makes a layer visible:
//! that is for its caller, after it has compared [`Unpacked::diff_id`].
//!
//! What is left of the archive when its files are taken out can be kept beside them: with it [`rebuild`] gives the archive again,
//! byte for byte, which is also how damage within a file is found.
//!
//! [`Archive`] reads what carries images and not files: a tar whose members are layers and documents. It makes nothing.
//!
//! [`fix_up`] then looks at all layers of an image together, for the directories that no entry named.
#![forbid(unsafe_code)]

mod archive;
mod compression;
mod digest;
mod error;
mod fix_up;
mod headers;
mod limits;
mod rebuild;
mod stream;
mod tar;
mod tree;
mod unpack;

pub use archive::{Archive, Body, Member, MemberKind};
pub use compression::Compression;
pub use digest::{Algorithm, Digest, DigestError, Hasher, HashingReader};
pub use error::{Fault, LayerError, Name};
pub use fix_up::{Stacked, fix_up};
pub use limits::Limits;
pub use rebuild::{RebuildError, Rebuilt, rebuild};
pub use unpack::{Unpacked, unpack};
