//! What a command writes: both streams together up to a limit, the rest read and dropped, so that it never waits. All
//! commands together have a budget as well: what it cannot take is refused, and the command with it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::unix::AsyncFd;

/// Bytes that both streams may have together: a kubelet takes messages of 16 MiB, and the reply has a frame.
const MAX_OUTPUT: usize = 16 * 1024 * 1024 - 64 * 1024;
/// Bytes that are kept of all commands together: four that write as much as one may, or some thousands of probes.
const BUDGET: usize = 64 * 1024 * 1024;
/// Bytes of one read: what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// The reading ends.
#[derive(Debug)]
pub struct Pipes {
    stdout: AsyncFd<OwnedFd>,
    stderr: AsyncFd<OwnedFd>,
}

impl Pipes {
    /// Two pipes; the writing ends, stdout first, are the command's.
    pub fn new() -> io::Result<(Self, [OwnedFd; 2])> {
        let pipe = || -> io::Result<(AsyncFd<OwnedFd>, OwnedFd)> {
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            // The reading end alone: the command gets an ordinary pipe.
            rustix::io::ioctl_fionbio(&read, true)?;
            Ok((crate::readiness::watch(read)?, write))
        };
        let ((stdout, out), (stderr, err)) = (pipe()?, pipe()?);
        Ok((Self { stdout, stderr }, [out, err]))
    }
}

/// What may be kept of all commands that run.
#[derive(Debug, Clone)]
pub struct Budget(Arc<AtomicUsize>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(BUDGET)))
    }
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
struct Share {
    budget: Budget,
    taken: usize,
}

impl Share {
    /// False: so much is not left.
    fn take(&mut self, bytes: usize) -> bool {
        let left = &self.budget.0;
        let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        if taken.is_ok() {
            self.taken += bytes;
        }
        taken.is_ok()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.taken, Ordering::Relaxed);
    }
}

/// Why output is read no further.
#[derive(Debug)]
pub enum Broken {
    /// The kernel's answer.
    Io(io::Error),
    /// All commands together have written more than is kept.
    Full,
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What was read.
#[derive(Debug)]
pub struct Collector {
    stdout: Stream,
    stderr: Stream,
    share: Share,
}

#[derive(Debug, Default)]
struct Stream {
    bytes: Vec<u8>,
    ended: bool,
}

impl Collector {
    /// Nothing was read yet.
    pub fn new(budget: &Budget) -> Self {
        let share = Share { budget: budget.clone(), taken: 0 };
        Self { stdout: Stream::default(), stderr: Stream::default(), share }
    }

    /// Reads until both streams end. Cancelled at any wait, it goes on where it was when called again.
    pub async fn read(&mut self, pipes: &Pipes) -> Result<(), Broken> {
        let mut chunk = vec![0; CHUNK];
        while !(self.stdout.ended && self.stderr.ended) {
            let kept = self.stdout.bytes.len() + self.stderr.bytes.len();
            let (stream, pipe) = tokio::select! {
                ready = pipes.stdout.readable(), if !self.stdout.ended => (&mut self.stdout, ready?),
                ready = pipes.stderr.readable(), if !self.stderr.ended => (&mut self.stderr, ready?),
            };
            let mut pipe = pipe;
            match pipe.try_io(|pipe| rustix::io::read(pipe, &mut *chunk).map_err(io::Error::from)) {
                Ok(Ok(0)) => stream.ended = true,
                Ok(Ok(read)) => {
                    let room = MAX_OUTPUT.saturating_sub(kept).min(read);
                    if !self.share.take(room) {
                        return Err(Broken::Full);
                    }
                    stream.bytes.extend_from_slice(&chunk[..room]);
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// stdout and stderr.
    pub fn into_parts(self) -> (Vec<u8>, Vec<u8>) {
        (self.stdout.bytes, self.stderr.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    #[tokio::test]
    async fn both_streams_are_read_to_their_ends() {
        let (pipes, [out, err]) = Pipes::new().unwrap();
        File::from(out).write_all(b"out").unwrap();
        File::from(err).write_all(b"err").unwrap();
        let mut collector = Collector::new(&Budget::default());
        collector.read(&pipes).await.unwrap();
        assert_eq!(collector.into_parts(), (b"out".to_vec(), b"err".to_vec()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_too_much_is_read_and_dropped() {
        let (pipes, [out, err]) = Pipes::new().unwrap();
        drop(err);
        let writer = std::thread::spawn(move || {
            let mut out = File::from(out);
            for _ in 0..20 {
                out.write_all(&vec![b'x'; 1024 * 1024]).unwrap();
            }
        });
        let mut collector = Collector::new(&Budget::default());
        collector.read(&pipes).await.unwrap();
        writer.join().unwrap();
        assert_eq!(collector.into_parts().0.len(), MAX_OUTPUT);
    }

    #[tokio::test]
    async fn all_commands_together_have_a_budget_and_give_it_back() {
        let budget = Budget(Arc::new(AtomicUsize::new(10)));
        let write = |bytes: &'static [u8]| {
            let (pipes, [out, _]) = Pipes::new().unwrap();
            File::from(out).write_all(bytes).unwrap();
            (pipes, Collector::new(&budget))
        };
        let (pipes, mut first) = write(b"sevenby");
        first.read(&pipes).await.unwrap();
        let (pipes, mut second) = write(b"four");
        assert!(matches!(second.read(&pipes).await, Err(Broken::Full)));
        drop((first, second));
        let (pipes, mut third) = write(b"ten bytes!");
        third.read(&pipes).await.unwrap();
        assert_eq!(third.into_parts().0, b"ten bytes!");
        assert_eq!(budget.0.load(Ordering::Relaxed), 10);
    }

    #[tokio::test]
    async fn a_pipe_that_nobody_closes_can_be_left_and_read_again() {
        let (pipes, [out, err]) = Pipes::new().unwrap();
        drop(err);
        let mut out = File::from(out);
        out.write_all(b"a").unwrap();
        let mut collector = Collector::new(&Budget::default());
        let wait = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(wait, collector.read(&pipes)).await.is_err());
        out.write_all(b"b").unwrap();
        drop(out);
        collector.read(&pipes).await.unwrap();
        assert_eq!(collector.into_parts().0, b"ab");
    }
}
