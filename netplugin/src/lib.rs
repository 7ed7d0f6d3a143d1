//! The network of a pod: CNI plugins, and the built-in network. Keeps no files: what must be remembered of an
//! attachment is in the sandbox's record.
#![forbid(unsafe_code)]

pub mod builtin;
