//! How a layer is compressed: gzip, zstd, or not (R31).

use std::cell::Cell;
use std::io::{self, BufReader, Cursor, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

/// Compressed bytes read at once.
const INPUT: usize = 64 * 1024;

/// Bytes that tell the forms apart.
const MAGIC: u64 = 4;

/// The largest window that we give memory to: 2^27 = 128 MiB, as `zstd --long` makes it and `zstd -d` takes it.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// The form of a layer's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, of one or more members.
    Gzip,
    /// zstd, of one or more frames.
    Zstd,
    /// Decided by the first bytes. Registries hold layers whose media type is wrong; the diff ID covers what comes
    /// out, so believing the bytes is safe.
    Detect,
}

impl Compression {
    /// The form that a layer's media type names (OCI layer.md, Docker image manifest v2.2); `None` for what is no
    /// layer of files.
    #[must_use]
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        let oci =
            ["application/vnd.oci.image.layer.v1.", "application/vnd.oci.image.layer.nondistributable.v1."];
        let docker = [
            "application/vnd.docker.image.rootfs.diff.",
            "application/vnd.docker.image.rootfs.foreign.diff.",
        ];
        let form = oci.iter().chain(&docker).find_map(|prefix| media_type.strip_prefix(prefix))?;
        match form {
            "tar" => Some(Self::None),
            "tar+gzip" | "tar.gzip" => Some(Self::Gzip),
            "tar+zstd" | "tar.zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The form that the first bytes show (RFC 1952, RFC 8878); a plain tar when they show nothing.
    #[must_use]
    pub fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// What is known of the source while a decoder owns it.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Compressed bytes read.
    pub(crate) bytes: Cell<u64>,
    /// The source itself failed, not the decoder.
    pub(crate) failed: Cell<bool>,
}

pub(crate) struct Metered<R> {
    inner: io::Chain<Cursor<Vec<u8>>, R>,
    meter: Rc<Meter>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(count) => {
                let bytes = u64::try_from(count).unwrap_or(u64::MAX);
                self.meter.bytes.set(self.meter.bytes.get().saturating_add(bytes));
                Ok(count)
            }
            Err(error) => {
                self.meter.failed.set(error.kind() != io::ErrorKind::Interrupted);
                Err(error)
            }
        }
    }
}

type Input<R> = BufReader<Metered<R>>;

/// The uncompressed bytes.
pub(crate) enum Decoder<R: Read> {
    None(Input<R>),
    Gzip(Box<MultiGzDecoder<Input<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, Input<R>>),
}

impl<R: Read> Decoder<R> {
    pub(crate) fn new(mut source: R, compression: Compression, meter: Rc<Meter>) -> io::Result<Self> {
        let mut start = Vec::new();
        let compression = match compression {
            Compression::Detect => {
                source.by_ref().take(MAGIC).read_to_end(&mut start)?;
                Compression::sniff(&start)
            }
            named => named,
        };
        let inner = Cursor::new(start).chain(source);
        let input = BufReader::with_capacity(INPUT, Metered { inner, meter });
        Ok(match compression {
            Compression::None | Compression::Detect => Self::None(input),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(input))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Self::Zstd(decoder)
            }
        })
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(input) => input.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types() {
        for (text, form) in [
            ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(Compression::Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar", Some(Compression::None)),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", None),
            ("application/vnd.oci.image.config.v1+json", None),
            ("", None),
        ] {
            assert_eq!(Compression::from_media_type(text), form, "{text}");
        }
    }

    #[test]
    fn first_bytes() {
        for (start, form) in [
            (&b"\x1f\x8b\x08\x00"[..], Compression::Gzip),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x5a\x2a\x4d\x18", Compression::Zstd),
            (b"etc/", Compression::None),
            (b"", Compression::None),
        ] {
            assert_eq!(Compression::sniff(start), form);
        }
    }
}
