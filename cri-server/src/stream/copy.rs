//! Bytes between a client's channels and the pipes and terminals of programs.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use hyper::body::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::transport::{CHUNK, Input, Output};

/// How long output is waited for after a program has ended: its children may hold the pipe for ever.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// Sends what a program writes until all that could write are gone, or the program is and nothing more comes.
pub async fn from_program(fd: &AsyncFd<OwnedFd>, to: &Output, over: &CancellationToken) -> io::Result<()> {
    while let Some(bytes) = read(fd, over).await? {
        if to.write(bytes).await.is_err() {
            // Nobody is there to read: the session ends.
            return Ok(());
        }
    }
    Ok(())
}

/// The next bytes; none at the end.
pub async fn read(fd: &AsyncFd<OwnedFd>, over: &CancellationToken) -> io::Result<Option<Bytes>> {
    loop {
        let mut ready = tokio::select! {
            ready = fd.readable() => ready?,
            ready = async { over.cancelled().await; timeout(DRAIN_LIMIT, fd.readable()).await } => match ready {
                Ok(ready) => ready?,
                Err(_) => return Ok(None),
            },
        };
        // Set aside when there is something to be read: a session that is quiet holds none.
        let mut chunk = Vec::with_capacity(CHUNK);
        match ready.try_io(|fd| rustix::io::read(fd, spare_capacity(&mut chunk)).map_err(io::Error::from)) {
            Ok(Ok(0)) => return Ok(None),
            Ok(Ok(_)) => return Ok(Some(taken(chunk))),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            // A terminal that nobody has open any more (pty(7)).
            Ok(Err(error)) if is(&error, Errno::IO) => return Ok(None),
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}

/// What was read, in no more memory than it needs if that is much less than was set aside.
pub fn taken(mut chunk: Vec<u8>) -> Bytes {
    if chunk.len() < CHUNK / 4 {
        chunk.shrink_to_fit();
    }
    chunk.into()
}

/// Writes what a client sends, to the end of it, or until nobody reads it.
pub async fn to_program(input: &mut Input, fd: &AsyncFd<OwnedFd>) -> io::Result<()> {
    while let Some(bytes) = input.recv().await {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let mut ready = fd.writable().await?;
            match ready.try_io(|fd| rustix::io::write(fd, rest).map_err(io::Error::from)) {
                Ok(Ok(written)) => rest = &rest[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // It reads no more: what comes is thrown away, so that the client's other messages are seen.
                Ok(Err(error)) if is(&error, Errno::PIPE) || is(&error, Errno::IO) => {
                    while input.recv().await.is_some() {}
                    return Ok(());
                }
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
    Ok(())
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::transport::Outgoing;
    use tokio::sync::mpsc;

    fn pipe() -> (AsyncFd<OwnedFd>, AsyncFd<OwnedFd>) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        (crate::readiness::watch(read).unwrap(), crate::readiness::watch(write).unwrap())
    }

    #[tokio::test]
    async fn all_bytes_come_through_and_then_the_end() {
        let (read, write) = pipe();
        let ((sender, mut input), (queue, mut outgoing)) = (mpsc::channel(1), mpsc::channel(1));
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let (sent, over) = (Bytes::from(bytes.clone()), CancellationToken::new());
        let client = async move {
            for part in sent.chunks(10_000) {
                sender.send(Bytes::copy_from_slice(part)).await.unwrap();
            }
        };
        let output = Output::new(7, queue);
        let mut got = Vec::new();
        let reader = async {
            while let Some(next) = outgoing.recv().await {
                match next {
                    Outgoing::Data(7, part) => got.extend_from_slice(&part),
                    other => panic!("{other:?}"),
                }
            }
        };
        let writer = async {
            to_program(&mut input, &write).await.unwrap();
            drop(write);
        };
        tokio::join!(
            client,
            writer,
            async move { from_program(&read, &output, &over).await.unwrap() },
            reader
        );
        assert!(got == bytes);
    }

    #[tokio::test]
    async fn a_pipe_that_a_child_holds_is_left() {
        let (read, write) = pipe();
        rustix::io::write(&write, b"last").unwrap();
        let (queue, mut outgoing) = mpsc::channel(8);
        let over = CancellationToken::new();
        over.cancel();
        from_program(&read, &Output::new(1, queue), &over).await.unwrap();
        assert!(matches!(outgoing.recv().await, Some(Outgoing::Data(1, part)) if part == "last"));
        assert!(outgoing.recv().await.is_none());
        drop(write);
    }

    #[tokio::test]
    async fn who_reads_no_more_does_not_hold_the_client_up() {
        let (read, write) = pipe();
        drop(read);
        let (sender, mut input) = mpsc::channel(1);
        let client = async move {
            for _ in 0..100 {
                sender.send(Bytes::from_static(b"x")).await.unwrap();
            }
        };
        let ((), result) = tokio::join!(client, to_program(&mut input, &write));
        result.unwrap();
    }
}
