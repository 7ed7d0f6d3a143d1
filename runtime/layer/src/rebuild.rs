//! The way back: a layer's archive from what was kept of it and from its files.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use cove_path::{PathError, Root};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, statat};
use rustix::io::{Errno, read};

use crate::error::Name;
use crate::headers::{Segment, Segments};
use crate::stream::as_u64;
use crate::{Algorithm, Digest, Hasher};

/// Bytes of a file that are read at once.
const BUFFER: usize = 256 * 1024;

/// An archive that was made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    /// SHA-256 of it, to compare with the layer's diff ID: only then is it what was unpacked.
    pub diff_id: Digest,
    /// Its bytes.
    pub size: u64,
}

/// A layer's archive could not be made again.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// What was kept of the archive cannot be read, or is damaged.
    #[error("read the tar headers: {0}")]
    Headers(#[source] io::Error),
    /// What was kept of the archive is no such thing, or of another version.
    #[error("the tar headers {0}")]
    Form(&'static str),
    /// The directory of the files cannot be used.
    #[error("the layer's files: {0}")]
    Files(#[source] PathError),
    /// A file's directory is not there, or cannot be opened.
    #[error("file {name}: {source}")]
    Parent {
        /// The file's name.
        name: Name,
        /// Which part, and why.
        source: PathError,
    },
    /// A file cannot be read, or is not there.
    #[error("file {name}: {doing}: {errno}")]
    Read {
        /// The file's name.
        name: Name,
        /// The step, as a verb phrase.
        doing: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Something else has its name.
    #[error("file {0} is no regular file any more")]
    Kind(Name),
    /// It became longer or shorter.
    #[error("file {name} has {found} bytes, and {size} were unpacked")]
    Size {
        /// The file's name.
        name: Name,
        /// Its bytes.
        found: u64,
        /// What it had.
        size: u64,
    },
    /// Whoever takes the archive takes no more.
    #[error("hand over the archive: {0}")]
    Sink(#[source] io::Error),
}

/// Writes a layer's archive to `to`: `headers` is what [`crate::unpack`] wrote, `files` the directory that it unpacked into.
/// Blocks; holds less than 1 MiB. Changes nothing, and follows no symlink out of `files`.
///
/// What was written when the digest turns out wrong is for the caller to throw away.
///
/// # Errors
/// [`RebuildError`]; a bit that flipped within a file is none, and only seen by the digest.
pub fn rebuild(headers: impl Read, files: &Path, to: impl Write) -> Result<Rebuilt, RebuildError> {
    let mut segments = Segments::new(headers)?;
    let root = Root::open(files).map_err(RebuildError::Files)?;
    let mut files = Files { root, directory: None, buffer: vec![0; BUFFER] };
    let mut archive = Hashed { to, hasher: Hasher::new(Algorithm::Sha256), size: 0 };
    while let Some(segment) = segments.next()? {
        match segment {
            Segment::Bytes(bytes) => archive.write(bytes)?,
            Segment::Content { path, size } => files.copy(&path, size, &mut archive)?,
        }
    }
    Ok(Rebuilt { diff_id: archive.hasher.finish(), size: archive.size })
}

struct Hashed<W> {
    to: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), RebuildError> {
        self.hasher.update(bytes);
        self.size = self.size.saturating_add(as_u64(bytes.len()));
        self.to.write_all(bytes).map_err(RebuildError::Sink)
    }
}

/// The files of a layer. Those of one directory come one after another.
struct Files {
    root: Root,
    directory: Option<(PathBuf, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Files {
    fn copy<W: Write>(&mut self, path: &Path, size: u64, to: &mut Hashed<W>) -> Result<(), RebuildError> {
        let name = || Name::new(path.as_os_str().as_bytes());
        let failed = |doing| move |errno| RebuildError::Read { name: name(), doing, errno };
        let (Some(parent), Some(leaf)) = (path.parent(), path.file_name()) else {
            return Err(RebuildError::Form("name a file without a name"));
        };
        let file = self.open(parent, leaf, &name)?;
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER);
            let buffer = self.buffer.get_mut(..most).unwrap_or_default();
            let count = match read(&file, buffer) {
                Ok(0) => return Err(RebuildError::Size { name: name(), found: size - left, size }),
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(failed("read")(errno)),
            };
            to.write(self.buffer.get(..count).unwrap_or_default())?;
            left = left.saturating_sub(as_u64(count));
        }
        let found = rustix::fs::fstat(&file).map_err(failed("stat"))?.st_size;
        let found = u64::try_from(found).unwrap_or_default();
        if found == size { Ok(()) } else { Err(RebuildError::Size { name: name(), found, size }) }
    }

    /// Opens a file, and nothing else: to open a device has effects, and to open a pipe waits.
    fn open(
        &mut self,
        parent: &Path,
        leaf: &OsStr,
        name: &dyn Fn() -> Name,
    ) -> Result<OwnedFd, RebuildError> {
        let failed = |doing| move |errno| RebuildError::Read { name: name(), doing, errno };
        let directory = match self.directory.take() {
            Some((path, fd)) if path == parent => fd,
            _ => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let at = if parent.as_os_str().is_empty() { Path::new("/") } else { parent };
                let opened = self.root.resolve(at, flags);
                opened.map_err(|source| RebuildError::Parent { name: name(), source })?
            }
        };
        let (_, directory) = self.directory.insert((parent.to_owned(), directory));
        let stat = statat(&*directory, leaf, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("stat"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(RebuildError::Kind(name()));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(&*directory, leaf, flags, Mode::empty()).map_err(failed("open"))
    }
}
