//! What a command writes: both streams together up to a limit, the rest read and dropped, so that it never waits.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Bytes that both streams may have together: a kubelet takes messages of 16 MiB, and the reply has a frame.
const MAX_OUTPUT: usize = 16 * 1024 * 1024 - 64 * 1024;
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

/// What was read.
#[derive(Debug, Default)]
pub struct Collector {
    stdout: Stream,
    stderr: Stream,
}

#[derive(Debug, Default)]
struct Stream {
    bytes: Vec<u8>,
    ended: bool,
}

impl Collector {
    /// Reads until both streams end. Cancelled at any wait, it goes on where it was when called again.
    pub async fn read(&mut self, pipes: &Pipes) -> io::Result<()> {
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
                    stream.bytes.extend_from_slice(&chunk[..room]);
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
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
        let mut collector = Collector::default();
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
        let mut collector = Collector::default();
        collector.read(&pipes).await.unwrap();
        writer.join().unwrap();
        assert_eq!(collector.into_parts().0.len(), MAX_OUTPUT);
    }

    #[tokio::test]
    async fn a_pipe_that_nobody_closes_can_be_left_and_read_again() {
        let (pipes, [out, err]) = Pipes::new().unwrap();
        drop(err);
        let mut out = File::from(out);
        out.write_all(b"a").unwrap();
        let mut collector = Collector::default();
        let wait = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(wait, collector.read(&pipes)).await.is_err());
        out.write_all(b"b").unwrap();
        drop(out);
        collector.read(&pipes).await.unwrap();
        assert_eq!(collector.into_parts().0, b"ab");
    }
}
