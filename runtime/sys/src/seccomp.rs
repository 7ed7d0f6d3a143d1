//! seccomp(2) with a ready classic BPF program.

use std::io;

/// Puts `program`, an array of `struct sock_filter`, before every later system call of this process.
///
/// Needs no_new_privs or CAP_SYS_ADMIN. The kernel checks the program and refuses a malformed one.
pub fn set_filter(program: &[u8]) -> io::Result<()> {
    let filters: Vec<libc::sock_filter> = program
        .chunks_exact(size_of::<libc::sock_filter>())
        .map(|raw| libc::sock_filter {
            code: u16::from_ne_bytes([raw[0], raw[1]]),
            jt: raw[2],
            jf: raw[3],
            k: u32::from_ne_bytes([raw[4], raw[5], raw[6], raw[7]]),
        })
        .collect();
    if filters.len() * size_of::<libc::sock_filter>() != program.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let fprog = libc::sock_fprog {
        len: u16::try_from(filters.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        filter: filters.as_ptr().cast_mut(),
    };
    // SAFETY: `fprog` points at `len` instructions that outlive the call; the kernel copies them and writes nothing.
    super::check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const fprog)
    })
    .map(drop)
}
