//! The bridge from a blob that arrives by async I/O to a thread that reads it, and from a thread that writes an archive to
//! async I/O: bounded, and cut off when the other side goes.

use std::io::{self, Read, Write};

use hyper::body::Bytes;
use tokio::sync::mpsc;

/// How many pieces wait between network and disk. A piece is what one read of a connection gave, at most 128 KiB, so a
/// layer holds at most 2 MiB (security-bar.md R28 allows a pull 32 MiB).
const QUEUE: usize = 16;

enum Piece {
    Data(Bytes),
    End,
}

/// The async side.
#[derive(Debug)]
pub(super) struct Feed(mpsc::Sender<Piece>);

/// The side of a thread that may wait. Ends only when the feed said so: a feed that is dropped is an error.
#[derive(Debug)]
pub(super) struct Source {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

/// Both ends.
pub(super) fn channel() -> (Feed, Source) {
    let (sender, pieces) = mpsc::channel(QUEUE);
    (Feed(sender), Source { pieces, current: Bytes::new(), ended: false })
}

impl Feed {
    /// Waits for room. False: the reader has gone, and has its own error.
    pub(super) async fn data(&self, data: Bytes) -> bool {
        self.0.send(Piece::Data(data)).await.is_ok()
    }

    /// All was sent.
    pub(super) async fn end(self) {
        // A reader that has gone has its own error.
        let _ = self.0.send(Piece::End).await;
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the pull was cut off")),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

/// Bytes of one piece of an archive that goes out.
const PIECE: usize = 256 * 1024;
/// How many of them wait: with the one that is being filled and the one that is being sent, 1.5 MiB.
const OUT: usize = 4;

/// The side of a thread that writes, and may wait. An error once the taker has gone; what is not flushed is lost.
#[derive(Debug)]
pub(super) struct Outlet {
    pieces: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
}

/// Both ends of a way out. The async side gets pieces until the thread's side is dropped.
pub(super) fn outlet() -> (Outlet, mpsc::Receiver<Bytes>) {
    let (pieces, taken) = mpsc::channel(OUT);
    (Outlet { pieces, piece: Vec::with_capacity(PIECE) }, taken)
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.pieces.blocking_send(piece.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_and_a_cut_are_told_apart() {
        for ends in [true, false] {
            let (feed, mut source) = channel();
            let reader = tokio::task::spawn_blocking(move || {
                let mut read = Vec::new();
                source.read_to_end(&mut read).map(|_| read)
            });
            for _ in 0..100 {
                assert!(feed.data(Bytes::from_static(b"abc")).await);
            }
            if ends {
                feed.end().await;
                assert_eq!(reader.await.unwrap().unwrap(), b"abc".repeat(100));
            } else {
                drop(feed);
                assert_eq!(reader.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
            }
        }
    }

    #[tokio::test]
    async fn a_reader_that_goes_stops_the_feed() {
        let (feed, source) = channel();
        drop(source);
        assert!(!feed.data(Bytes::from_static(b"abc")).await);
        feed.end().await;
    }
}
