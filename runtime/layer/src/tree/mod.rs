//! Writes entries below a directory, in the form that overlayfs stacks (R29).
//!
//! A parent is opened once, inside the root; everything after is done on that descriptor with a single name, so that
//! no path is ever resolved twice. New things are made exclusively, never followed; owner, attributes, mode and times
//! are set in that order, since chown(2) takes set-id bits and capabilities away.

mod implicit;
mod metadata;
mod parents;
mod writer;

pub(crate) use writer::Writer;
