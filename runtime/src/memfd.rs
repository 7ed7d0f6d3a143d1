//! Sealed memory files: specifications, and the program of the shims. Whoever holds one knows that its bytes
//! never change: see memfd_create(2) and F_ADD_SEALS in fcntl(2).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use rustix::io::Errno;

/// Nothing may be written, cut or appended.
const CONTENT: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

/// A memfd that holds `bytes` and can never change, nor be executed where the kernel (6.3) can say so.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(create(name, MemfdFlags::NOEXEC_SEAL)?);
    file.write_all(bytes)?;
    seal(file)
}

/// A copy of a program in a memfd that can be executed and never change (CVE-2019-5736). EACCES where
/// `vm.memfd_noexec` is 2.
pub fn sealed_program(name: &str, program: &mut File) -> io::Result<OwnedFd> {
    let mut file = File::from(create(name, MemfdFlags::EXEC)?);
    io::copy(program, &mut file)?;
    seal(file)
}

/// Reads a sealed memfd whole; refuses one that is not sealed or larger than `limit` bytes.
pub fn read_sealed(fd: OwnedFd, limit: u64) -> io::Result<Vec<u8>> {
    let refused = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    // EINVAL of anything that cannot be sealed: a pipe, a socket, a file on a disk.
    match fcntl_get_seals(&fd) {
        Ok(seals) if seals.contains(CONTENT) => {}
        Ok(_) | Err(Errno::INVAL) => return refused("the memory file is not sealed".to_owned()),
        Err(error) => return Err(error.into()),
    }
    let size = u64::try_from(fstat(&fd)?.st_size).map_err(io::Error::other)?;
    if size > limit {
        return refused(format!("the memory file has {size} bytes, above the limit of {limit}"));
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
    // By offset: the position is shared with whoever sent the descriptor.
    std::os::unix::fs::FileExt::read_exact_at(&File::from(fd), &mut bytes, 0)?;
    Ok(bytes)
}

/// `exec` says whether the file may be executed, which kernels before 6.3 cannot be told (EINVAL): there it may.
fn create(name: &str, exec: MemfdFlags) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | exec) {
        Err(Errno::INVAL) => Ok(memfd_create(name, flags)?),
        result => Ok(result?),
    }
}

fn seal(file: File) -> io::Result<OwnedFd> {
    fcntl_add_seals(&file, CONTENT | SealFlags::SEAL)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::ftruncate;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileExt, PermissionsExt};

    #[test]
    fn keeps_its_bytes() {
        let fd = sealed("cove-test", b"specification").unwrap();
        let file = File::from(fd.try_clone().unwrap());
        assert!(file.write_at(b"x", 0).is_err());
        assert!(ftruncate(&file, 0).is_err() && ftruncate(&file, 99).is_err());
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o111, 0);
        // Twice: reading does not move the position that both sides share.
        assert_eq!(read_sealed(fd.try_clone().unwrap(), 13).unwrap(), b"specification");
        assert_eq!(read_sealed(fd.try_clone().unwrap(), 13).unwrap(), b"specification");
        assert_eq!(read_sealed(fd, 12).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn refuses_what_is_not_sealed() {
        let memfd = memfd_create("cove-test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        let half = memfd_create("cove-test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        fcntl_add_seals(&half, SealFlags::WRITE).unwrap();
        let (pipe, _writer) = rustix::pipe::pipe().unwrap();
        let plain = File::open("/proc/self/exe").unwrap().into();
        for fd in [memfd, half, pipe, plain] {
            assert_eq!(read_sealed(fd, 1 << 30).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_program_runs_and_cannot_be_written() {
        let program = sealed_program("cove-test", &mut File::open("/bin/true").unwrap()).unwrap();
        assert!(File::from(program.try_clone().unwrap()).write_at(b"x", 0).is_err());
        let path = format!("/proc/{}/fd/{}", std::process::id(), program.as_raw_fd());
        assert!(std::process::Command::new(&path).status().unwrap().success());
        // The way of CVE-2019-5736: the open succeeds, what follows does not.
        let again = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        assert!(again.write_at(b"x", 0).is_err() && again.set_len(0).is_err());
        assert!(std::fs::OpenOptions::new().write(true).truncate(true).open(&path).is_err());
    }
}
