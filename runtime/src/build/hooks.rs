//! Programs of the host that finish a container's root file system: the createContainer hooks of the OCI runtime spec
//! ("POSIX-platform Hooks"), by which vendors of devices make symlinks and refresh the cache of the dynamic linker.
//!
//! They run in the container's mount namespace before the pivot, when its mounts and nodes are made and the host's files
//! are still in sight: the path is the host's. They run in the container's cgroup. They are children of the builder, so
//! none of them is in a PID namespace that anybody else is in. They are killed with their process group; what has left it ends
//! with the PID namespace of the builder's own, before the program runs, or with the cgroup.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, umask};

use super::request::{Hook, Hooks};
use super::step::{At, refuse};
use crate::protocol::Failure;

const STEP: &str = "hooks";
/// How long a hook may take that names no time: a linker's cache of a large image takes a second or two.
const LIMIT: Duration = Duration::from_secs(10);
/// The most that one may ask for: a start is given up after 100 s.
const MAX_LIMIT: Duration = Duration::from_secs(60);
/// As much of what a hook says on its standard error as is told.
const SAID: usize = 512;
/// File mode creation mask of hooks: the builder has none.
const UMASK: u32 = 0o022;

/// Runs them one after the other; the first that fails is the end of the start. `first`: this process is the first of a
/// PID namespace.
pub(super) fn run(hooks: &Hooks, first: bool) -> Result<(), Failure> {
    let state = format!("{},\"pid\":{}}}", hooks.state, std::process::id());
    let before = umask(Mode::from_raw_mode(UMASK));
    let done = hooks.create_container.iter().try_for_each(|hook| one(hook, &state, first));
    umask(before);
    done
}

fn one(hook: &Hook, state: &str, first: bool) -> Result<(), Failure> {
    let shown = hook.path.display();
    let (said, stderr) = pipe_with(PipeFlags::CLOEXEC).at(STEP, || format!("make a pipe for {shown}"))?;
    rustix::io::ioctl_fionbio(&said, true).at(STEP, || format!("make a pipe for {shown}"))?;
    let stdin = file(state).at(STEP, || format!("write the state for {shown}"))?;
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    command.env_clear();
    for entry in &hook.env {
        let (name, value) = pair(entry.as_bytes());
        command.env(name, value);
    }
    command.current_dir("/").stdin(stdin).stdout(Stdio::null()).stderr(stderr).process_group(0);
    let child = command.spawn().at(STEP, || format!("run {shown}"))?;
    // It holds our end of the pipe.
    drop(command);
    let (ended, said) =
        wait(child, File::from(said), limit(hook), first).at(STEP, || format!("wait for {shown}"))?;
    let words = match ended {
        Some(status) if status.success() => return Ok(()),
        Some(status) => status.to_string(),
        None => format!("took longer than {:?} and was killed", limit(hook)),
    };
    refuse(STEP, format!("{shown}: {words}: {}", String::from_utf8_lossy(&said).trim()))
}

/// `NAME=value`, as it was checked where it came from.
fn pair(entry: &[u8]) -> (&OsStr, &OsStr) {
    let at = entry.iter().position(|byte| *byte == b'=').unwrap_or(entry.len());
    (OsStr::from_bytes(&entry[..at]), OsStr::from_bytes(entry.get(at + 1..).unwrap_or_default()))
}

fn limit(hook: &Hook) -> Duration {
    match hook.timeout {
        0 => LIMIT,
        seconds => Duration::from_secs(seconds.into()).min(MAX_LIMIT),
    }
}

/// A file in memory with this content, at its start.
fn file(content: &str) -> std::io::Result<File> {
    let mut file = File::from(memfd_create("state", MemfdFlags::CLOEXEC)?);
    file.write_all(content.as_bytes())?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Waits for its end, or kills it when its time is over; and kills what it leaves behind. Gives the end of what it said.
fn wait(
    mut child: Child,
    mut pipe: File,
    limit: Duration,
    first: bool,
) -> std::io::Result<(Option<ExitStatus>, Vec<u8>)> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| std::io::Error::other("a child without a pid"))?;
    let pidfd: OwnedFd = pidfd_open(pid, PidfdFlags::empty())?;
    let until = Instant::now() + limit;
    let (mut said, mut ended, mut open) = (Vec::new(), false, true);
    while !ended {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let time = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let (child_end, pipe_end) = (pidfd.as_fd(), pipe.as_fd());
        let mut fds = vec![PollFd::new(&child_end, PollFlags::IN)];
        if open {
            fds.push(PollFd::new(&pipe_end, PollFlags::IN));
        }
        poll(&mut fds, Some(&time))?;
        ended = !fds[0].revents().is_empty();
        let ready = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        drop(fds);
        if ready {
            open = hear(&mut pipe, &mut said)?;
        }
    }
    // While it has not been reaped, its group is its own. It may be empty by now.
    let _gone = kill_process_group(pid, Signal::KILL);
    let status = child.wait()?;
    if first && std::process::id() == 1 {
        // Whoever left the group is still in this PID namespace, of which the container is to be the only one.
        let everybody = nix::unistd::Pid::from_raw(-1);
        let _nobody = nix::sys::signal::kill(everybody, nix::sys::signal::Signal::SIGKILL);
        while nix::sys::wait::waitpid(everybody, None).is_ok() {}
    }
    hear(&mut pipe, &mut said)?;
    Ok((ended.then_some(status), said))
}

/// Takes what can be read now, and keeps the end of it. False once nobody can say more.
fn hear(pipe: &mut File, said: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut chunk = [0; 4096];
    match pipe.read(&mut chunk) {
        Ok(0) => Ok(false),
        Ok(read) => {
            said.extend_from_slice(&chunk[..read]);
            said.drain(..said.len().saturating_sub(SAID));
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}
