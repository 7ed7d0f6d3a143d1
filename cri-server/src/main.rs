//! Cove's daemon and command line. STUB.
#![forbid(unsafe_code)]
#![allow(dead_code, reason = "skeleton")]

mod config;
mod container;
mod error;
mod image;
mod sandbox;

fn main() {}
