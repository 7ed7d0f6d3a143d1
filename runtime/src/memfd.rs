//! Sealed memory files: specifications, and the program of the shims.
//! STUB of the interface; its owner replaces it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

/// A memfd that holds `bytes` and can never change.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let _ = (name, bytes);
    todo!()
}

/// A copy of a program in a memfd that can be executed and never change (CVE-2019-5736).
pub fn sealed_program(name: &str, program: &mut File) -> io::Result<OwnedFd> {
    let _ = (name, program);
    todo!()
}

/// Reads a sealed memfd whole; refuses one that is not sealed or larger than `limit` bytes.
pub fn read_sealed(fd: OwnedFd, limit: u64) -> io::Result<Vec<u8>> {
    let _ = (fd, limit);
    todo!()
}
