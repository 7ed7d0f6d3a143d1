//! What is on disk: records, one directory an object, and how a daemon finds its world again.

mod checkpoint;
mod claim;
mod clock;
mod directory;
mod id;
mod index;
mod lock;
pub(crate) mod recover;
pub(crate) mod shared;

pub(crate) use checkpoint::{Durability, RecordError, Stored, UNFINISHED_IDENTITY, erase, read, sync, write};
pub(crate) use claim::Claims;
pub(crate) use clock::Clock;
pub(crate) use directory::{TRASH, make_private_directory, make_room, move_to_trash, remove_tree};
pub(crate) use id::{is_id, new_id};
pub(crate) use index::Index;
pub(crate) use lock::RootLock;
