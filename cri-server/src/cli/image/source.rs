//! Where the archive of an import comes from, and what of it is sent. All of it may wait for a disk, a pipe or another
//! process: for a thread of its own.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use hyper::body::Bytes;
use tokio::sync::mpsc::Sender;

use super::directory::Directory;
use super::file::TarFile;
use crate::image::{Bounds, ImageError, Outline};

/// Bytes of one message: with as many as may wait on their way the daemon holds 4 MiB.
pub(super) const PIECE: usize = 256 * 1024;

/// What is sent.
pub(super) trait Source: Send {
    /// What it holds, as far as that can be known before it is sent.
    fn outline(&self, bounds: &Bounds) -> Result<Outline, ImageError>;

    /// Sends it as a tar, without what `outline` says that nobody needs.
    fn send(self: Box<Self>, outline: &Outline, pieces: &mut Pieces) -> Result<(), Unread>;
}

/// Why something could not be read to its end.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub(super) struct Unread {
    what: String,
    reason: String,
}

impl Unread {
    pub(super) fn new(what: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self { what: what.to_string(), reason: reason.to_string() }
    }

    /// About a file.
    pub(super) fn file(path: &Path, reason: impl fmt::Display) -> Self {
        Self::new(path.display(), reason)
    }
}

/// Looks what lies there. `-` is standard input.
pub(super) fn open(path: &Path, bounds: &Bounds) -> Result<Box<dyn Source>, Unread> {
    let failed = |error| Unread::file(path, error);
    if path == Path::new("-") {
        return Ok(Box::new(Whole { name: "standard input".to_owned(), reader: io::stdin() }));
    }
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Ok(Box::new(Directory::open(path)?));
    }
    if metadata.is_file() {
        match TarFile::open(file, path, bounds).map_err(failed)? {
            Ok(tar) => return Ok(Box::new(tar)),
            Err(whole) => file = whole,
        }
    }
    Ok(Box::new(Whole { name: path.display().to_string(), reader: file }))
}

/// What can be read only once, or only by whoever takes it in: sent as it is.
struct Whole<R> {
    name: String,
    reader: R,
}

impl<R: Read + Send> Source for Whole<R> {
    fn outline(&self, _: &Bounds) -> Result<Outline, ImageError> {
        Ok(Outline::default())
    }

    fn send(mut self: Box<Self>, _: &Outline, pieces: &mut Pieces) -> Result<(), Unread> {
        let this = &mut *self;
        pieces.copy(&mut this.reader, &this.name).map(drop)
    }
}

/// Where what is read goes.
#[derive(Debug)]
pub(super) struct Pieces {
    sender: Sender<Bytes>,
}

impl Pieces {
    pub(super) fn new(sender: Sender<Bytes>) -> Self {
        Self { sender }
    }

    /// False: nobody wants any more, which is no error of this side.
    pub(super) fn send(&mut self, bytes: impl Into<Bytes>) -> bool {
        let mut bytes = bytes.into();
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            if self.sender.blocking_send(piece).is_err() {
                return false;
            }
        }
        true
    }

    /// Sends all that a source has, and says how much it was. What nobody wants counts as sent.
    pub(super) fn copy(&mut self, source: &mut impl Read, what: impl fmt::Display) -> Result<u64, Unread> {
        let limit = u64::try_from(PIECE).unwrap_or(u64::MAX);
        let mut sent = 0;
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            let read = source.by_ref().take(limit).read_to_end(&mut piece);
            let count = read.map_err(|error| Unread::new(&what, error))?;
            sent += u64::try_from(count).unwrap_or(u64::MAX);
            if count == 0 {
                return Ok(sent);
            }
            if !self.send(piece) {
                return Ok(u64::MAX);
            }
        }
    }
}

/// Sends that many bytes of a source.
pub(super) fn exactly(
    pieces: &mut Pieces,
    source: &mut impl Read,
    size: u64,
    what: impl fmt::Display,
) -> Result<(), Unread> {
    if pieces.copy(&mut source.take(size), &what)? < size {
        return Err(Unread::new(what, "became shorter while it was read"));
    }
    Ok(())
}
