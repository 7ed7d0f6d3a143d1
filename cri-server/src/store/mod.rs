//! What is on disk: records, one directory an object, and how a daemon finds its world again.

mod checkpoint;
pub(crate) mod recover;

pub(crate) use checkpoint::RecordError;
