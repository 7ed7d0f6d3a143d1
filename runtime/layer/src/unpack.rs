//! The one way in.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use cove_path::{Root, Tree};

use crate::stream::Stream;
use crate::tar::Reader;
use crate::tree::Writer;
use crate::{Compression, Digest, LayerError, Limits};

/// What became of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// SHA-256 of the uncompressed tar, to compare with the image's configuration before the layer is used.
    pub diff_id: Digest,
    /// Bytes of the regular files' content.
    pub size: u64,
    /// Entries in the archive, extension headers not counted.
    pub entries: u64,
    /// Inodes made, the target itself not counted.
    pub inodes: u64,
    /// Extended attributes that were left out: forbidden, misnamed, or unknown to the file system.
    pub skipped_xattrs: u64,
    /// The root directory is marked opaque: no layer below this one is seen. Overlayfs does not look for the mark on a
    /// root, so whoever stacks the layers must stop here.
    pub opaque_root: bool,
    /// Directories that were made because something lies in them, though no entry names them: relative, sorted,
    /// root-owned, 0755. Their metadata is that of the lower layer which names them.
    pub implicit: Vec<PathBuf>,
    /// An entry took the place of an earlier one, so that [`Unpacked::size`] and [`Unpacked::inodes`] count what is not
    /// there any more, and the archive cannot be made again.
    pub replaced: bool,
    /// Bytes of the uncompressed tar.
    pub archive: u64,
    /// Bytes of what was kept for [`crate::rebuild`]; `None`: nothing was.
    pub headers: Option<u64>,
}

/// Unpacks a layer below `target`, an existing empty directory that only we can write. Blocks; holds less than 1 MiB,
/// and a zstd frame's window of up to 128 MiB. The source is read to its end. Nothing is synced.
///
/// The owner and mode of `target` change if the archive has an entry for its root. `headers`, an empty file, gets what
/// [`crate::rebuild`] needs beside the files: at most as much as the archive has.
///
/// # Errors
/// [`LayerError`]; `target` then holds a part of the layer, which its caller removes.
pub fn unpack(
    source: impl Read,
    compression: Compression,
    target: &Path,
    headers: Option<File>,
    limits: &Limits,
) -> Result<Unpacked, LayerError> {
    let root = Root::open(target).map_err(LayerError::Target)?;
    let tree = Tree::open(target).map_err(LayerError::Target)?;
    if !tree.list(Path::new(".")).map_err(LayerError::Target)?.is_empty() {
        return Err(LayerError::TargetNotEmpty);
    }
    let mut stream = Stream::new(source, compression, limits)?;
    if let Some(headers) = headers {
        stream = stream.keeping(headers)?;
    }
    let mut reader = Reader::new(stream, limits);
    let mut writer = Writer::new(root, limits)?;
    while let Some(entry) = reader.next()? {
        writer.place(&entry, &mut reader)?;
    }
    let entries = reader.entries();
    let stream = reader.finish()?;
    let tally = writer.finish()?;
    Ok(Unpacked {
        diff_id: stream.diff_id,
        size: tally.size,
        entries,
        inodes: tally.inodes,
        skipped_xattrs: tally.skipped_xattrs,
        opaque_root: tally.opaque_root,
        implicit: tally.implicit,
        replaced: tally.replaced,
        archive: stream.size,
        headers: stream.headers,
    })
}
