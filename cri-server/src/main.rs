//! The program. All of it is in the library, which the fuzz targets are built from too: go on in `lib.rs`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    cove::main()
}
