//! A program that is run with limits: on its time, on what it writes, on who is left when it is done.
//!
//! It has a process group of its own, which is killed whole at its deadline, when it floods, and after its own end: what
//! it started and left behind in its group does not outlive it.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

/// What a plugin may write to its standard output, in bytes: a result has some 500.
pub(crate) const MAX_OUTPUT: usize = 1024 * 1024;
/// What it may write to its standard error before it is taken for one that does not stop.
pub(crate) const MAX_ERRORS: usize = 16 * 1024 * 1024;
/// How much of its standard error is kept.
const KEPT_ERRORS: usize = 4096;
/// How long a program is waited for whose file is still being written (ETXTBSY): an installer at work.
const BUSY: Duration = Duration::from_millis(50);

/// Until when a chain of plugins may run, and a way to end it before.
#[derive(Debug, Clone)]
pub struct Limit {
    /// The whole time that it was given.
    pub time: Duration,
    deadline: Instant,
    end: Arc<OwnedFd>,
}

impl Limit {
    /// From now on.
    ///
    /// # Errors
    /// The kernel gives no descriptor.
    pub fn new(time: Duration) -> io::Result<Self> {
        let end = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { time, deadline: Instant::now() + time, end: Arc::new(end) })
    }

    /// Ends what runs under it, and what is about to. Does not wait.
    pub fn end(&self) {
        // It cannot fail but by overflow, which says that it was ended already.
        let _ = rustix::io::write(&*self.end, &1_u64.to_ne_bytes());
    }
}

/// What came of a run.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It ended by itself.
    Itself {
        status: ExitStatus,
        output: Vec<u8>,
        /// The beginning of them.
        errors: Vec<u8>,
    },
    /// It was killed at its deadline.
    Late,
    /// It was killed since its limit was ended.
    Cancelled,
    /// It was killed since it wrote too much.
    Flood(&'static str, usize),
}

/// A process and its group; nothing is left of them when it is dropped.
#[derive(Debug)]
struct Group(Child);

impl Group {
    /// Before the leader is waited for, its number is the group's and nobody else's.
    fn end(mut self) -> io::Result<ExitStatus> {
        self.kill();
        self.0.wait()
    }

    fn kill(&self) {
        // Fails when nobody is left in it, which is what is wanted.
        let _ = rustix::process::kill_process_group(Pid::from_child(&self.0), Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        // It was waited for already, or is now: it is dead.
        let _ = self.0.wait();
    }
}

/// Runs a command on `input`.
pub(crate) fn run(command: &mut Command, input: &[u8], limit: &Limit) -> io::Result<Ended> {
    command.stdin(Stdio::from(memory(input)?)).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut group = loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && left(limit) > BUSY => {
                std::thread::sleep(BUSY);
            }
            result => break Group(result?),
        }
    };
    let pidfd = rustix::process::pidfd_open(Pid::from_child(&group.0), PidfdFlags::empty())?;
    let (Some(output), Some(errors)) = (group.0.stdout.take(), group.0.stderr.take()) else {
        return Err(io::Error::other("a pipe is missing"));
    };
    let mut output = Pipe::new(output.into(), "standard output", MAX_OUTPUT, MAX_OUTPUT)?;
    let mut errors = Pipe::new(errors.into(), "standard error", MAX_ERRORS, KEPT_ERRORS)?;
    loop {
        let ready = wait(&pidfd, limit, &output, &errors)?;
        let (dead, cancelled) = match ready {
            None => return Ok(Ended::Late),
            Some(ready) => ready,
        };
        if dead {
            // First, so that nobody goes on writing.
            group.kill();
        }
        for pipe in [&mut output, &mut errors] {
            if !pipe.drain()? {
                return Ok(Ended::Flood(pipe.name, pipe.limit));
            }
        }
        if dead {
            let status = group.end()?;
            return Ok(Ended::Itself { status, output: output.kept, errors: errors.kept });
        }
        if cancelled {
            return Ok(Ended::Cancelled);
        }
    }
}

fn left(limit: &Limit) -> Duration {
    limit.deadline.saturating_duration_since(Instant::now())
}

/// The whole input in memory in place of a pipe: a program that does not read it keeps nobody waiting.
fn memory(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("cni", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// Waits for something to do. None: the time is over. Else whether the process has ended, and whether it is to.
fn wait(pidfd: &OwnedFd, limit: &Limit, output: &Pipe, errors: &Pipe) -> io::Result<Option<(bool, bool)>> {
    let time = left(limit);
    if time.is_zero() {
        return Ok(None);
    }
    let time = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    let watched: Vec<BorrowedFd<'_>> =
        [Some(pidfd.as_fd()), Some(limit.end.as_fd()), output.open(), errors.open()]
            .into_iter()
            .flatten()
            .collect();
    let mut polled: Vec<_> = watched.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    match rustix::event::poll(&mut polled, Some(&time)) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some((!polled[0].revents().is_empty(), !polled[1].revents().is_empty()))),
        Err(Errno::INTR) => Ok(Some((false, false))),
        Err(error) => Err(error.into()),
    }
}

/// The reading end of a pipe, with limits.
#[derive(Debug)]
struct Pipe {
    fd: Option<OwnedFd>,
    name: &'static str,
    limit: usize,
    keep: usize,
    read: usize,
    kept: Vec<u8>,
}

impl Pipe {
    fn new(fd: OwnedFd, name: &'static str, limit: usize, keep: usize) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd: Some(fd), name, limit, keep, read: 0, kept: Vec::new() })
    }

    fn open(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Reads what is there; false if that is more than there may be.
    fn drain(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 * 1024];
        while let Some(fd) = &self.fd {
            match rustix::io::read(fd, &mut buffer) {
                Ok(0) => self.fd = None,
                Ok(count) => {
                    self.read += count;
                    let room = self.keep.saturating_sub(self.kept.len());
                    self.kept.extend_from_slice(&buffer[..count.min(room)]);
                    if self.read > self.limit {
                        return Ok(false);
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str, input: &[u8], time: Duration) -> Ended {
        run(Command::new("/bin/sh").args(["-c", script]), input, &Limit::new(time).unwrap()).unwrap()
    }

    fn gone(pid: &[u8]) {
        let pid = String::from_utf8_lossy(pid).trim().to_owned();
        let end = Instant::now() + SOON;
        // A killed orphan is a zombie until its new parent has waited for it.
        while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z")) {
            assert!(Instant::now() < end, "process {pid} lives");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn gives_input_output_and_the_way_it_ended() {
        let Ended::Itself { status, output, errors } = shell("cat; echo no >&2; exit 3", b"in", SOON) else {
            panic!()
        };
        assert_eq!((status.code(), &*output, &*errors), (Some(3), &b"in"[..], &b"no\n"[..]));
        // Nobody reads it.
        let large = vec![0; 1 << 22];
        assert!(matches!(shell("exit 0", &large, SOON), Ended::Itself { .. }));
    }

    #[test]
    fn ends_what_does_not_end_with_all_that_it_started() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let script = format!("sleep 1000 & echo $! >{}; sleep 1000", file.path().display());
        let begun = Instant::now();
        assert!(matches!(shell(&script, b"", Duration::from_millis(300)), Ended::Late));
        assert!(begun.elapsed() < SOON);
        gone(&std::fs::read(file.path()).unwrap());
    }

    #[test]
    fn ends_what_is_left_behind_by_one_that_ended() {
        let Ended::Itself { output, .. } = shell("sleep 1000 & echo $!", b"", SOON) else { panic!() };
        gone(&output);
    }

    #[test]
    fn ends_floods() {
        let begun = Instant::now();
        assert!(matches!(
            shell("cat /dev/zero", b"", Duration::from_secs(60)),
            Ended::Flood("standard output", MAX_OUTPUT)
        ));
        assert!(matches!(
            shell("cat /dev/zero >&2", b"", Duration::from_secs(60)),
            Ended::Flood("standard error", MAX_ERRORS)
        ));
        assert!(begun.elapsed() < Duration::from_secs(30));
        let Ended::Itself { errors, .. } = shell("head -c 100000 /dev/zero >&2", b"", SOON) else { panic!() };
        assert_eq!(errors.len(), KEPT_ERRORS);
    }

    #[test]
    fn is_ended_from_elsewhere() {
        let limit = Limit::new(Duration::from_secs(60)).unwrap();
        let begun = Instant::now();
        let other = limit.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            other.end();
        });
        let ended = run(Command::new("/bin/sleep").arg("1000"), b"", &limit).unwrap();
        assert!(matches!(ended, Ended::Cancelled) && begun.elapsed() < SOON);
        let after = run(Command::new("/bin/sleep").arg("1000"), b"", &limit).unwrap();
        assert!(matches!(after, Ended::Cancelled), "what begins later is ended, too");
    }

    #[test]
    fn a_program_that_cannot_be_run_is_an_error() {
        let limit = Limit::new(SOON).unwrap();
        assert!(run(&mut Command::new("/no/such/program"), b"", &limit).is_err());
    }
}
