//! Cove's daemon and command line. STUB.
#![forbid(unsafe_code)]
#![allow(dead_code, reason = "skeleton")]

mod config;
mod container;
mod error;
mod gate;
mod image;
mod node;
mod sandbox;
mod step;
mod store;

fn main() {}
