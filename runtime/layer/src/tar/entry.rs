//! One entry, with its header and extensions brought together and checked.

use crate::error::Name;
use crate::tar::header::Header;
use crate::tar::path::{EntryPath, NameTrouble};
use crate::tar::pax::Pax;
use crate::{Fault, LayerError, Limits};

/// An entry that is ready to be made. All numbers are in range for the kernel.
#[derive(Debug)]
pub(crate) struct Entry {
    /// For messages: the name as the archive has it.
    pub(crate) name: Vec<u8>,
    pub(crate) path: EntryPath,
    pub(crate) kind: Kind,
    /// Permission bits, set-id and sticky included; no more.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Vec<Xattr>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// With the bytes of content that follow.
    File(u64),
    Directory,
    Symlink(Vec<u8>),
    Hardlink(EntryPath),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// An extended attribute as the archive has it; nothing is checked but the value's length.
#[derive(Debug)]
pub(crate) struct Xattr {
    pub(crate) name: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// A moment since 1970: nanoseconds count forward also in front of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

impl Time {
    /// Reads `-12.345`: seconds and a fraction, of which nine digits count.
    pub(crate) fn parse(value: &[u8]) -> Result<Self, Fault> {
        const WRONG: Fault = Fault::Number("mtime");
        let (negative, value) = value.strip_prefix(b"-").map_or((false, value), |value| (true, value));
        let mut parts = value.splitn(2, |byte| *byte == b'.');
        let whole = parts.next().unwrap_or_default();
        let fraction = parts.next().unwrap_or_default();
        if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
            return Err(WRONG);
        }
        // As many digits as any 64-bit number has.
        if whole.len() > 19 {
            return Err(Fault::Range("mtime"));
        }
        let digits = |sum: i128, digit: &u8| sum * 10 + i128::from(digit - b'0');
        let seconds = whole.iter().fold(0, digits);
        let padded = fraction.iter().chain(&[b'0'; 9]).take(9);
        let total = seconds * 1_000_000_000 + padded.fold(0, digits);
        let total = if negative { -total } else { total };
        Ok(Self {
            seconds: i64::try_from(total.div_euclid(1_000_000_000)).map_err(|_| Fault::Range("mtime"))?,
            nanoseconds: u32::try_from(total.rem_euclid(1_000_000_000)).map_err(|_| WRONG)?,
        })
    }
}

/// The extension headers in front of an entry.
#[derive(Debug, Default)]
pub(crate) struct Extensions {
    pub(crate) gnu_name: Option<Vec<u8>>,
    pub(crate) gnu_link: Option<Vec<u8>>,
    pub(crate) pax: Option<Pax>,
}

impl Extensions {
    pub(crate) fn is_empty(&self) -> bool {
        self.gnu_name.is_none() && self.gnu_link.is_none() && self.pax.is_none()
    }
}

/// The largest size that a header's eleven octal digits say; PAX may overrule the header only above it.
const OCTAL_SIZE_MAX: u64 = 0o77_777_777_777;

impl Entry {
    /// Brings an entry together.
    ///
    /// # Errors
    /// Whatever makes it unfit to be made, with its name.
    pub(crate) fn new(header: Header, extensions: Extensions, limits: &Limits) -> Result<Self, LayerError> {
        let Extensions { gnu_name, gnu_link, pax } = extensions;
        let pax = pax.unwrap_or_default();
        let shown = pax.path.as_ref().or(gnu_name.as_ref()).unwrap_or(&header.name).clone();
        let fail = |fault| LayerError::Entry { name: Name::new(&shown), fault };
        let build = || -> Result<Self, NameTrouble> {
            let name = one_of("path", gnu_name, pax.path)?.unwrap_or_else(|| header.name.clone());
            let link = one_of("linkpath", gnu_link, pax.link)?.unwrap_or_else(|| header.link.clone());
            let size = agreed_size(header.size, pax.size)?;
            let path = EntryPath::parse(&name, limits)?;
            let kind = kind(&header, &path, link, size, limits)?;
            Ok(Self {
                name,
                path,
                kind,
                mode: header.mode,
                uid: pax.uid.unwrap_or(header.uid),
                gid: pax.gid.unwrap_or(header.gid),
                mtime: pax.mtime.unwrap_or(Time { seconds: header.mtime, nanoseconds: 0 }),
                xattrs: pax.xattrs,
            })
        };
        build().map_err(|trouble| match trouble {
            NameTrouble::Fault(fault) => fail(fault),
            NameTrouble::Limit(limit, max) => LayerError::Limit { limit, max: crate::stream::as_u64(max) },
        })
    }

    /// An error about this entry.
    pub(crate) fn fault(&self, fault: Fault) -> LayerError {
        LayerError::Entry { name: Name::new(&self.name), fault }
    }
}

impl From<Fault> for NameTrouble {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

fn one_of(what: &'static str, gnu: Option<Vec<u8>>, pax: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, Fault> {
    match (gnu, pax) {
        (Some(gnu), Some(pax)) if gnu != pax => Err(Fault::Disagree(what)),
        (gnu, pax) => Ok(pax.or(gnu)),
    }
}

fn agreed_size(header: u64, pax: Option<u64>) -> Result<u64, Fault> {
    match pax {
        None => Ok(header),
        Some(size) if size == header || size > OCTAL_SIZE_MAX => Ok(size),
        Some(_) => Err(Fault::Disagree("size")),
    }
}

fn kind(
    header: &Header,
    path: &EntryPath,
    link: Vec<u8>,
    size: u64,
    limits: &Limits,
) -> Result<Kind, NameTrouble> {
    let kind = match header.kind {
        // Before POSIX a directory was a file whose name ends in a slash.
        0 if path.slash => Kind::Directory,
        b'0' | b'7' if path.slash => return Err(Fault::Slash.into()),
        0 | b'0' | b'7' => return Ok(Kind::File(size)),
        b'1' => Kind::Hardlink(EntryPath::parse(&target(link)?, limits)?),
        b'2' if link.len() > limits.path => return Err(NameTrouble::Limit("path", limits.path)),
        b'2' => Kind::Symlink(target(link)?),
        b'3' => match header.device()? {
            (0, 0) => return Err(Fault::WhiteoutDevice.into()),
            (major, minor) => Kind::CharDevice(major, minor),
        },
        b'4' => header.device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' => return Err(Fault::Sparse.into()),
        other => return Err(Fault::Type(other).into()),
    };
    // Extractors differ on whether content follows such an entry.
    if size == 0 { Ok(kind) } else { Err(Fault::Body.into()) }
}

fn target(link: Vec<u8>) -> Result<Vec<u8>, Fault> {
    if link.is_empty() || link.contains(&0) { Err(Fault::Target) } else { Ok(link) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let at = |seconds, nanoseconds| Ok(Time { seconds, nanoseconds });
        for (text, time) in [
            ("0", at(0, 0)),
            ("1350244992.023960108", at(1_350_244_992, 23_960_108)),
            ("1.0000000019", at(1, 1)),
            ("-0.1", at(-1, 900_000_000)),
            ("-1", at(-1, 0)),
            ("5.", at(5, 0)),
            ("9223372036854775807", at(i64::MAX, 0)),
            ("9223372036854775808", Err(Fault::Range("mtime"))),
            ("99999999999999999999", Err(Fault::Range("mtime"))),
            ("", Err(Fault::Number("mtime"))),
            ("-", Err(Fault::Number("mtime"))),
            (".5", Err(Fault::Number("mtime"))),
            ("1e9", Err(Fault::Number("mtime"))),
            ("+1", Err(Fault::Number("mtime"))),
        ] {
            assert_eq!(Time::parse(text.as_bytes()), time, "{text}");
        }
    }
}
