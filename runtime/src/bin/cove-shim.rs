//! The parent of everything in one pod: see `cove_runtime::shim`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    cove_runtime::shim::main(std::env::args_os())
}
