//! One 512-byte header block (POSIX.1-2024 pax, "ustar Interchange Format"; tar(5) of libarchive for the others).

use crate::Fault;
use crate::tar::number;

pub(crate) const BLOCK: usize = 512;

/// The fields of a header that we read. Names are cut at their NUL.
#[derive(Debug)]
pub(crate) struct Header {
    /// The name, with ustar's prefix in front.
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    major: Field,
    minor: Field,
}

/// A number that only devices are asked for: others have all kinds of things there.
type Field = [u8; 8];

/// The kernel's device numbers (MINORBITS of linux/kdev_t.h).
const MAJOR_MAX: i128 = 0xfff;
const MINOR_MAX: i128 = 0xf_ffff;

impl Header {
    /// Reads a block; `None` for a block of zeros.
    pub(crate) fn parse(block: &[u8; BLOCK]) -> Result<Option<Self>, Fault> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        check_sum(block)?;
        let mode: u64 = number::bounded("mode", &block[100..108])?;
        Ok(Some(Self {
            name: full_name(block),
            link: text(&block[157..257]).to_vec(),
            kind: block[156],
            size: number::bounded("size", &block[124..136])?,
            // Old writers put the file type above the permission bits.
            mode: u32::try_from(mode & 0o7777).map_err(|_| Fault::Range("mode"))?,
            uid: owner("uid", number::parse("uid", &block[108..116])?)?,
            gid: owner("gid", number::parse("gid", &block[116..124])?)?,
            mtime: number::bounded("mtime", &block[136..148])?,
            major: field(&block[329..337]),
            minor: field(&block[337..345]),
        }))
    }

    /// The device number of a device entry.
    pub(crate) fn device(&self) -> Result<(u32, u32), Fault> {
        let one = |name: &'static str, field: &Field, max: i128| {
            let value = number::parse(name, field)?;
            let value = u32::try_from(value).map_err(|_| Fault::Range(name))?;
            if i128::from(value) > max { Err(Fault::Range(name)) } else { Ok(value) }
        };
        Ok((one("devmajor", &self.major, MAJOR_MAX)?, one("devminor", &self.minor, MINOR_MAX)?))
    }
}

/// Checks an owner id. The last number means "leave as it is" to chown(2), so it is none.
pub(crate) fn owner(name: &'static str, value: i128) -> Result<u32, Fault> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Fault::Range(name)),
    }
}

/// The sum of all bytes with the sum's own field read as spaces; old writers summed signed bytes.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), Fault> {
    let asked = number::parse("checksum", &block[148..156]).map_err(|_| Fault::Checksum)?;
    let bytes =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    let (unsigned, signed) = bytes.fold((0_i128, 0_i128), |(unsigned, signed), byte| {
        (unsigned + i128::from(byte), signed + i128::from(byte.cast_signed()))
    });
    if asked == unsigned || asked == signed { Ok(()) } else { Err(Fault::Checksum) }
}

fn full_name(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = text(&block[0..100]);
    // GNU's own magic ("ustar  ") has times where ustar has the prefix; star shortens the prefix for its times.
    let prefix = match (&block[257..263], &block[508..512]) {
        (b"ustar\0", b"tar\0") => text(&block[345..476]),
        (b"ustar\0", _) => text(&block[345..500]),
        _ => &[],
    };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn field(bytes: &[u8]) -> Field {
    let mut field = Field::default();
    for (to, from) in field.iter_mut().zip(bytes) {
        *to = *from;
    }
    field
}
