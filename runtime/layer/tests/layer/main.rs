//! Layers unpacked on a real file system: benign ones against other extractors, hostile ones beside a canary.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "the helpers of tests fail like the tests")]

mod archive;
mod benign;
mod broken;
mod corpus;
mod escape;
mod fixed;
mod overlay;
mod place;
mod random;
mod rebuild;
