//! bpf(2) for programs of the type `BPF_PROG_TYPE_CGROUP_DEVICE`: load, attach, list, detach. Numbers and layouts are
//! those of linux/bpf.h; the kernel takes fields that a layout here does not have as zero.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

// enum bpf_cmd
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
/// enum `bpf_prog_type`
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
/// enum `bpf_attach_type`
const CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 1 << 1;
const F_REPLACE: u32 = 1 << 2;
/// `BPF_OBJ_NAME_LEN`, with the zero at its end.
const NAME_LEN: usize = 16;
/// Most programs of one type that a cgroup can have (`BPF_CGROUP_MAX_PROGS`, kernel/bpf/cgroup.c).
const MAX_PROGRAMS: usize = 64;
/// Kernel 5.2 to 6.3 keep the beginning of a log that is too long, later ones its end; programs here are short.
const LOG_LEN: usize = 64 * 1024;
/// Asks nothing of the kernel: only helpers marked GPL-only look at it, and none is called.
const LICENSE: &CStr = c"Apache-2.0";

/// One instruction: `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Class, source and operation.
    pub opcode: u8,
    /// Destination in the low four bits, source in the high ones (little endian hosts).
    pub registers: u8,
    /// Of a jump: how many instructions after the next one. Of a load: bytes from the address.
    pub offset: i16,
    /// The constant.
    pub immediate: i32,
}

/// The kernel does not take a program.
#[derive(Debug)]
pub struct Refused {
    /// Its answer.
    pub source: io::Error,
    /// What its verifier says; empty where it was not asked.
    pub log: String,
}

#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME_LEN],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
struct GetId {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Whole, since newer kernels answer in its later fields whatever size they are told.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
    spare: [u64; 8],
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct Info {
    prog_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_prog_len: u32,
    xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; NAME_LEN],
}

/// # Safety
/// `T` is the layout of the command in `union bpf_attr`, every address in it is valid for what the command does there,
/// and no other code uses what is written.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is exclusive and of the size given; the rest is promised by the caller.
    super::check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("a borrowed descriptor is not negative")
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for the caller, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address<T: ?Sized>(pointer: *const T) -> u64 {
    // A pointer is 64 bits wide on every host that Cove is built for.
    pointer.cast::<u8>().expose_provenance() as u64
}

/// Loads a device program under a name of at most 15 letters, digits, `_` and `.`.
///
/// # Errors
/// [`Refused`] with the verifier's log.
pub fn load_device_program(name: &str, program: &[Instruction]) -> Result<OwnedFd, Refused> {
    let silent = |source| Refused { source, log: String::new() };
    let mut prog_name = [0; NAME_LEN];
    let place = prog_name[..NAME_LEN - 1].get_mut(..name.len());
    place.ok_or_else(|| silent(io::ErrorKind::InvalidInput.into()))?.copy_from_slice(name.as_bytes());
    let insn_cnt = u32::try_from(program.len()).map_err(|_| silent(io::ErrorKind::InvalidInput.into()))?;
    let load = |log: &mut [u8]| {
        let mut attr = Load {
            prog_type: PROG_TYPE_CGROUP_DEVICE,
            insn_cnt,
            insns: address(program.as_ptr()),
            license: address(LICENSE.as_ptr()),
            log_level: u32::from(!log.is_empty()),
            log_size: u32::try_from(log.len()).map_err(io::Error::other)?,
            log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr().expose_provenance() as u64 },
            kern_version: 0,
            prog_flags: 0,
            prog_name,
            prog_ifindex: 0,
            expected_attach_type: CGROUP_DEVICE,
        };
        // SAFETY: the kernel reads `insn_cnt` instructions and the license, and writes at most `log_size` bytes to the
        // log, which is borrowed exclusively; all outlive the call.
        unsafe { bpf(PROG_LOAD, &mut attr) }.and_then(owned)
    };
    load(&mut []).map_err(|source| {
        let mut log = vec![0; LOG_LEN];
        // Its answer is the first one's, or that the log is too short: only the text is wanted.
        drop(load(&mut log));
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        Refused { source, log: String::from_utf8_lossy(&log[..end]).into_owned() }
    })
}

/// Attaches a device program to a cgroup of version 2, beside others there; or in the place of `old`, with no moment
/// between (kernel 5.6).
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    old: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attr = Attach {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program),
        attach_type: CGROUP_DEVICE,
        attach_flags: F_ALLOW_MULTI | if old.is_some() { F_REPLACE } else { 0 },
        replace_bpf_fd: old.map_or(0, number),
    };
    // SAFETY: there is no address in it.
    unsafe { bpf(PROG_ATTACH, &mut attr) }.map(drop)
}

/// Detaches a device program from a cgroup.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attach {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program),
        attach_type: CGROUP_DEVICE,
        attach_flags: 0,
        replace_bpf_fd: 0,
    };
    // SAFETY: there is no address in it.
    unsafe { bpf(PROG_DETACH, &mut attr) }.map(drop)
}

/// The ids of the device programs that are attached to this very cgroup, in the order in which they run.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MAX_PROGRAMS];
    let mut attr = Query {
        target_fd: number(cgroup),
        attach_type: CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
        prog_cnt: u32::try_from(ids.len()).map_err(io::Error::other)?,
        ..Query::default()
    };
    // SAFETY: the kernel writes at most `prog_cnt` ids to the vector, which is not used meanwhile, and its figures to
    // `attr`, which is larger than its own layout.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    ids.truncate(usize::try_from(attr.prog_cnt).map_err(io::Error::other)?);
    Ok(ids)
}

/// The program with an id, and the name that it was loaded under. ENOENT: it is gone.
pub fn program_by_id(id: u32) -> io::Result<(OwnedFd, String)> {
    let mut attr = GetId { prog_id: id, next_id: 0, open_flags: 0 };
    // SAFETY: there is no address in it.
    let program = owned(unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) }?)?;
    let mut info = Info::default();
    let mut attr = GetInfo {
        bpf_fd: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        info_len: u32::try_from(size_of::<Info>()).map_err(io::Error::other)?,
        info: (&raw mut info).expose_provenance() as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, which is not used meanwhile; the addresses in `info`
    // are zero with lengths of zero, so that it writes nowhere else.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    let end = info.name.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN);
    Ok((program, String::from_utf8_lossy(&info.name[..end]).into_owned()))
}
