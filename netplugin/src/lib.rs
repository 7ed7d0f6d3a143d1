//! The network of a pod: CNI plugins, and the built-in network. Keeps no files: what must be remembered of an
//! attachment is in the sandbox's record.
//!
//! CNI, from the top down: `directory` finds the `conflist` that counts; `chain` runs its plugins over an `attachment`;
//! `plugin` is one run of one of them, in a `process` that cannot outlast its limits; `result` is what they say,
//! `capability` what they may ask to be told. Everything here blocks: a caller with tasks runs it on a thread of its own.
#![forbid(unsafe_code)]

mod attachment;
pub mod builtin;
pub mod capability;
mod chain;
mod conflist;
mod directory;
mod error;
mod plugin;
mod process;
mod result;
mod version;

pub use attachment::{Attachment, VALID_NAME};
pub use chain::Chain;
pub use conflist::{Conflist, Plugin};
pub use directory::{Directories, Seen, Sight};
pub use error::CniError;
pub use plugin::{Plugins, Verb};
pub use process::Limit;
pub use result::{CniResult, Interface, IpConfig, Route};
pub use version::Version;
