//! What is left of a layer's archive when its files are taken out: headers, extensions, padding, the zeros at its end. Kept
//! beside the files, it gives the archive again byte for byte (the idea is that of tar-split).
//!
//! Form: [`MAGIC`], then one zstd frame with a checksum, in it segment after segment: a mark, then for [`BYTES`] a length (32
//! bits, little-endian) and so many bytes of the archive; for [`CONTENT`] the size of a file (64 bits), the length of its path
//! (16 bits) and the path, in place of its content; [`END`] once, and nothing after it.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use zstd::stream::read::Decoder;
use zstd::stream::write::Encoder;

use crate::RebuildError;

/// Names the form and its version.
const MAGIC: &[u8] = b"cove-tar-headers 1\n";
/// The end.
const END: u8 = 0;
/// Bytes of the archive.
const BYTES: u8 = 1;
/// A file's content.
const CONTENT: u8 = 2;
/// The most bytes of one segment.
const SEGMENT: usize = 64 << 10;
/// zstd's fastest ordinary level: headers are so alike that a higher one gains little, and a pull waits for it.
const LEVEL: i32 = 1;
/// A window of 128 KiB, so that writer and reader need little memory: what is alike lies near.
const WINDOW_LOG: u32 = 17;

/// Writes segments while a layer is unpacked. What goes wrong is told by [`HeadersWriter::check`], so that who consumes bytes
/// need not look each time.
pub(crate) struct HeadersWriter {
    frame: Encoder<'static, File>,
    pending: Vec<u8>,
    failed: Option<io::Error>,
}

impl HeadersWriter {
    pub(crate) fn new(mut to: File) -> io::Result<Self> {
        to.write_all(MAGIC)?;
        let mut frame = Encoder::new(to, LEVEL)?;
        frame.window_log(WINDOW_LOG)?;
        frame.include_checksum(true)?;
        Ok(Self { frame, pending: Vec::with_capacity(SEGMENT), failed: None })
    }

    /// These bytes come next in the archive.
    pub(crate) fn bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.failed.is_none() {
            let room = SEGMENT - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            if self.pending.len() == SEGMENT {
                self.note(Self::flush);
            }
            bytes = later;
        }
    }

    /// The content of this file comes next.
    pub(crate) fn content(&mut self, path: &Path, size: u64) {
        self.note(|this| {
            this.flush()?;
            let path = path.as_os_str().as_bytes();
            let length = u16::try_from(path.len()).map_err(io::Error::other)?;
            this.frame.write_all(&[CONTENT])?;
            this.frame.write_all(&size.to_le_bytes())?;
            this.frame.write_all(&length.to_le_bytes())?;
            this.frame.write_all(path)
        });
    }

    /// What went wrong so far.
    pub(crate) fn check(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// After the last byte. Gives how many bytes the file has.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        self.note(Self::flush);
        self.check()?;
        self.frame.write_all(&[END])?;
        Ok(self.frame.finish()?.metadata()?.len())
    }

    fn note(&mut self, write: impl FnOnce(&mut Self) -> io::Result<()>) {
        if self.failed.is_none() {
            self.failed = write(self).err();
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            let length = u32::try_from(pending.len()).map_err(io::Error::other)?;
            self.frame.write_all(&[BYTES])?;
            self.frame.write_all(&length.to_le_bytes())?;
            self.frame.write_all(&pending)?;
        }
        self.pending = pending;
        self.pending.clear();
        Ok(())
    }
}

/// What comes next in the archive.
pub(crate) enum Segment<'a> {
    Bytes(&'a [u8]),
    Content { path: PathBuf, size: u64 },
}

/// Reads segments. They lie on a disk that may have damaged them.
pub(crate) struct Segments<R: Read> {
    frame: Decoder<'static, io::BufReader<R>>,
    bytes: Vec<u8>,
}

impl<R: Read> Segments<R> {
    pub(crate) fn new(mut from: R) -> Result<Self, RebuildError> {
        let mut magic = [0; MAGIC.len()];
        from.read_exact(&mut magic).map_err(RebuildError::Headers)?;
        if magic != MAGIC {
            return Err(RebuildError::Form("are not of the form that this version reads"));
        }
        let mut frame = Decoder::new(from).map_err(RebuildError::Headers)?.single_frame();
        frame.window_log_max(WINDOW_LOG).map_err(RebuildError::Headers)?;
        Ok(Self { frame, bytes: Vec::new() })
    }

    /// The next segment; `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<Segment<'_>>, RebuildError> {
        match self.array()? {
            [BYTES] => {
                let length = usize::try_from(u32::from_le_bytes(self.array()?)).unwrap_or(usize::MAX);
                if length > SEGMENT {
                    return Err(RebuildError::Form("have a segment that is too long"));
                }
                self.bytes.resize(length, 0);
                self.frame.read_exact(&mut self.bytes).map_err(RebuildError::Headers)?;
                Ok(Some(Segment::Bytes(&self.bytes)))
            }
            [CONTENT] => {
                let size = u64::from_le_bytes(self.array()?);
                let mut path = vec![0; usize::from(u16::from_le_bytes(self.array()?))];
                self.frame.read_exact(&mut path).map_err(RebuildError::Headers)?;
                let path = PathBuf::from(std::ffi::OsString::from_vec(path));
                Ok(Some(Segment::Content { path, size }))
            }
            // Reading on to the frame's end compares its checksum.
            [END] => match self.frame.read(&mut [0]).map_err(RebuildError::Headers)? {
                0 => Ok(None),
                _ => Err(RebuildError::Form("go on after their end")),
            },
            _ => Err(RebuildError::Form("have an unknown segment")),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RebuildError> {
        let mut bytes = [0; N];
        self.frame.read_exact(&mut bytes).map_err(RebuildError::Headers)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek as _;

    use super::*;

    /// What is written, as a file has it.
    fn written(write: impl FnOnce(&mut HeadersWriter)) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        let mut writer = HeadersWriter::new(file.try_clone().unwrap()).unwrap();
        write(&mut writer);
        let count = writer.finish().unwrap();
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(count, bytes.len() as u64);
        bytes
    }

    /// Bytes, and the file whose content follows them.
    type Found = (Vec<u8>, Option<(PathBuf, u64)>);

    fn read(bytes: &[u8]) -> Result<Vec<Found>, RebuildError> {
        let mut segments = Segments::new(bytes)?;
        let mut found = vec![(Vec::new(), None)];
        while let Some(segment) = segments.next()? {
            let last = found.last_mut().unwrap();
            match segment {
                Segment::Bytes(bytes) => last.0.extend_from_slice(bytes),
                Segment::Content { path, size } => {
                    last.1 = Some((path, size));
                    found.push((Vec::new(), None));
                }
            }
        }
        Ok(found)
    }

    #[test]
    fn what_is_written_is_read() {
        let long: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let bytes = written(|writer| {
            writer.bytes(b"ab");
            writer.bytes(b"");
            writer.bytes(b"c");
            writer.content(Path::new("etc/x"), u64::MAX);
            writer.content(Path::new("y"), 1);
            writer.bytes(&long);
        });
        let expected = vec![
            (b"abc".to_vec(), Some((PathBuf::from("etc/x"), u64::MAX))),
            (Vec::new(), Some((PathBuf::from("y"), 1))),
            (long, None),
        ];
        assert_eq!(read(&bytes).unwrap(), expected);
    }

    #[test]
    fn every_damage_is_an_error() {
        let good = written(|writer| {
            writer.bytes(&[7; 3000]);
            writer.content(Path::new("etc/passwd"), 12);
            writer.bytes(b"tail");
        });
        for at in 0..good.len() {
            assert!(read(&good[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let found = read(&bad);
                // A frame's header has bits that mean nothing; what comes out is the same then.
                assert!(found.is_err() || found.unwrap() == read(&good).unwrap(), "bit {bit} of {at}");
            }
        }
    }

    #[test]
    fn a_full_disk_is_told() {
        let Ok(full) = File::options().write(true).open("/dev/full") else { return };
        assert!(HeadersWriter::new(full).is_err());
        let read_only = File::open("/dev/null").unwrap();
        let mut writer = HeadersWriter {
            frame: Encoder::new(read_only, LEVEL).unwrap(),
            pending: Vec::new(),
            failed: None,
        };
        let noise: Vec<u8> =
            (0..400_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        writer.bytes(&noise);
        assert!(writer.check().is_err());
    }
}
