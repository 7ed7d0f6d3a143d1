//! Seccomp profiles: read, written as the runtime spec has them, and compiled to the program that seccomp(2) takes.
//!
//! Ours, because no library is both static and able: a profile has an errno a rule, calls of several ABIs, and must
//! answer ENOSYS to calls that are newer than it. Nothing in here loads a filter or knows which container it is for.
//! Nothing fails open: what is not understood is an error, except names of system calls, which profiles for newer
//! kernels have, and which every runtime passes over.

mod bpf;
mod compile;
mod default;
mod document;
mod error;
mod machine;
mod profile;
mod table;

#[cfg(test)]
mod interpret;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;

pub use compile::compile;
pub use document::PROFILE_LIMIT;
pub use error::SeccompError;
pub use profile::Profile;
