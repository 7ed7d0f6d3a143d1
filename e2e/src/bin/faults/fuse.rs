//! A FUSE file system that hangs: a volume whose server does not answer, as an NFS server that is gone.
//!
//! Spoken to through /dev/fuse itself (fuse(4), and `linux/fuse.h` for the numbers), so that nothing need be installed.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use cove_e2e::Outcome;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// FUSE_LOOKUP, FUSE_FORGET, FUSE_GETATTR, FUSE_INIT.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const INIT: u32 = 26;
/// Of the header of a request, and of an answer.
const REQUEST_HEADER: usize = 40;
/// The largest request that this server lets the kernel make, and some.
const REQUEST_MAX: usize = 128 * 1024;
/// ENOSYS: what the server does not know.
const UNKNOWN: i32 = -38;

/// A mounted file system, gone with the value.
#[derive(Debug)]
pub struct Fuse {
    point: PathBuf,
    device: Option<File>,
    server: Option<JoinHandle<()>>,
}

impl Fuse {
    /// Its server reads nothing at all: whoever asks waits, and can be killed.
    pub fn silent(point: &Path) -> Outcome<Self> {
        let device = Self::mount(point)?;
        Ok(Self { point: point.to_owned(), device: Some(device), server: None })
    }

    /// Its server takes the questions for names and never answers them: whoever asks cannot even be killed.
    pub fn swallowing(point: &Path) -> Outcome<Self> {
        let mut device = Self::mount(point)?;
        // Ends when the file system is aborted: then reading fails (ENODEV).
        let server = std::thread::spawn(move || while serve(&mut device).is_ok() {});
        Ok(Self { point: point.to_owned(), device: None, server: Some(server) })
    }

    fn mount(point: &Path) -> Outcome<File> {
        std::fs::create_dir_all(point)?;
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        mount("cove-faults", point, "fuse", MountFlags::NOSUID, CString::new(options)?.as_c_str())?;
        Ok(device)
    }

    /// Ends it: everyone who waits is told that it is gone (ENOTCONN). Ended already is done.
    pub fn abort(&mut self) -> Outcome {
        if self.device.is_none() && self.server.is_none() {
            return Ok(());
        }
        // Aborts the connection, whether or not the mount is busy (umount2(2), MNT_FORCE).
        let forced = unmount(&self.point, UnmountFlags::FORCE);
        if forced.is_err() {
            unmount(&self.point, UnmountFlags::DETACH)?;
        }
        drop(self.device.take());
        if let Some(server) = self.server.take() {
            server.join().map_err(|_| "the server of the file system panicked")?;
        }
        Ok(())
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        if let Err(error) = self.abort() {
            eprintln!("the file system at {} is left: {error}", self.point.display());
        }
    }
}

/// One request: answered so that the root can be mounted and looked at, and no more.
fn serve(device: &mut File) -> Outcome {
    let mut buffer = vec![0; REQUEST_MAX];
    let length = device.read(&mut buffer)?;
    let request = buffer.get(..length.max(REQUEST_HEADER)).ok_or("a request that is too long")?;
    let number =
        |at: usize| u32::from_ne_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
    let unique = &request[8..16];
    match number(4) {
        INIT => answer(device, 0, unique, &init()),
        GETATTR => answer(device, 0, unique, &root()),
        LOOKUP | FORGET => Ok(()),
        _ => answer(device, UNKNOWN, unique, &[]),
    }
}

/// `struct fuse_out_header`, and what follows it.
fn answer(device: &mut File, error: i32, unique: &[u8], body: &[u8]) -> Outcome {
    let length = u32::try_from(16 + body.len())?;
    let bytes = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), unique, body].concat();
    Ok(device.write_all(&bytes)?)
}

/// `struct fuse_init_out` of protocol 7.31: no feature, the smallest writes.
fn init() -> Vec<u8> {
    let mut out = vec![0; 64];
    for (at, value) in [(0, 7_u32), (4, 31), (8, 65536), (20, 4096), (24, 1)] {
        out[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    out
}

/// `struct fuse_attr_out` of a directory, good for an hour.
fn root() -> Vec<u8> {
    let mut out = vec![0; 104];
    out[0..8].copy_from_slice(&3600_u64.to_ne_bytes());
    out[16..24].copy_from_slice(&1_u64.to_ne_bytes());
    for (at, value) in [(76, 0o40755_u32), (80, 2), (96, 4096)] {
        out[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    out
}
