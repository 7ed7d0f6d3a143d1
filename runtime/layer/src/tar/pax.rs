//! PAX extended headers: `length key=value` records (POSIX.1-2024 pax, "pax Extended Header").

use crate::tar::entry::{Time, Xattr};
use crate::tar::header;
use crate::{Fault, LayerError, Limits};

/// What the extended header of one entry says. Keys that change nothing for us are read over.
#[derive(Debug, Default)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<Time>,
    pub(crate) xattrs: Vec<Xattr>,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

/// Either kind of trouble that records can have: broken, or too long.
pub(crate) enum Trouble {
    Fault(Fault),
    Limit(LayerError),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Pax {
    /// Reads the header of one entry.
    pub(crate) fn parse(content: &[u8], limits: &Limits) -> Result<Self, Trouble> {
        let mut pax = Self::default();
        for_each_record(content, limits, |key, value| pax.take(key, value, limits))?;
        Ok(pax)
    }

    /// Reads a global header, which may only comment: what it sets would hold for all entries after it, and readers
    /// differ on that.
    pub(crate) fn check_global(content: &[u8], limits: &Limits) -> Result<(), Trouble> {
        for_each_record(content, limits, |key, _value| match changes_entry(key) {
            Some(name) => Err(Fault::Global(name).into()),
            None => Ok(()),
        })
    }

    fn take(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), Trouble> {
        match key {
            b"path" => set(&mut self.path, "path", name(value)?)?,
            b"linkpath" => set(&mut self.link, "linkpath", name(value)?)?,
            b"size" => set(&mut self.size, "size", decimal("size", value)?)?,
            b"uid" => set(&mut self.uid, "uid", header::owner("uid", decimal::<i128>("uid", value)?)?)?,
            b"gid" => set(&mut self.gid, "gid", header::owner("gid", decimal::<i128>("gid", value)?)?)?,
            b"mtime" => set(&mut self.mtime, "mtime", Time::parse(value)?)?,
            b"hdrcharset" if !matches!(value, b"BINARY" | b"ISO-IR 10646 2000 UTF-8") => {
                return Err(Fault::Charset.into());
            }
            _ if changes_entry(key) == Some("sparse") => return Err(Fault::Sparse.into()),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.take_xattr(name, value, limits)?;
                }
            }
        }
        Ok(())
    }

    fn take_xattr(&mut self, name: &[u8], value: &[u8], limits: &Limits) -> Result<(), Trouble> {
        if value.len() > limits.xattr_value {
            let max = crate::stream::as_u64(limits.xattr_value);
            return Err(Trouble::Limit(LayerError::Limit { limit: "xattr_value", max }));
        }
        self.xattrs.push(Xattr { name: name.to_vec(), value: value.to_vec() });
        Ok(())
    }
}

/// The keys that mean something to an extractor.
fn changes_entry(key: &[u8]) -> Option<&'static str> {
    match key {
        b"path" => Some("path"),
        b"linkpath" => Some("linkpath"),
        b"size" => Some("size"),
        b"uid" => Some("uid"),
        b"gid" => Some("gid"),
        b"mtime" => Some("mtime"),
        b"hdrcharset" => Some("hdrcharset"),
        b"SCHILY.realsize" => Some("sparse"),
        _ if key.starts_with(b"GNU.sparse.") => Some("sparse"),
        _ if key.starts_with(XATTR) => Some("xattr"),
        _ => None,
    }
}

fn for_each_record(
    mut content: &[u8],
    limits: &Limits,
    mut record: impl FnMut(&[u8], &[u8]) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    while !content.is_empty() {
        let space = content.iter().take(MAX_DIGITS + 1).position(|byte| *byte == b' ').ok_or(Fault::Pax)?;
        let length: usize =
            decimal("length", content.get(..space).ok_or(Fault::Pax)?).map_err(|_| Fault::Pax)?;
        if length > limits.pax_record {
            let max = crate::stream::as_u64(limits.pax_record);
            return Err(Trouble::Limit(LayerError::Limit { limit: "pax_record", max }));
        }
        let (line, rest) = content.split_at_checked(length).ok_or(Fault::Pax)?;
        let line = line.get(space + 1..).and_then(|line| line.strip_suffix(b"\n")).ok_or(Fault::Pax)?;
        let equals = line.iter().position(|byte| *byte == b'=').ok_or(Fault::Pax)?;
        let (key, value) = line.split_at(equals);
        if key.is_empty() || key.contains(&0) {
            return Err(Fault::Pax.into());
        }
        record(key, value.get(1..).unwrap_or_default())?;
        content = rest;
    }
    Ok(())
}

/// Digits of the largest number that fits 64 bits.
const MAX_DIGITS: usize = 20;

/// Digits only: no sign, no space, nothing empty.
fn decimal<T: TryFrom<i128>>(name: &'static str, value: &[u8]) -> Result<T, Fault> {
    if value.is_empty() || value.len() > MAX_DIGITS || !value.iter().all(u8::is_ascii_digit) {
        return Err(Fault::Number(name));
    }
    let number = value.iter().fold(0, |sum: i128, digit| sum * 10 + i128::from(digit - b'0'));
    T::try_from(number).map_err(|_| Fault::Range(name))
}

fn name(value: &[u8]) -> Result<Vec<u8>, Fault> {
    if value.is_empty() || value.contains(&0) { Err(Fault::Name) } else { Ok(value.to_vec()) }
}

fn set<T>(slot: &mut Option<T>, name: &'static str, value: T) -> Result<(), Fault> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Fault::Twice(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(content: &[u8]) -> Result<Pax, String> {
        Pax::parse(content, &Limits::default()).map_err(|trouble| match trouble {
            Trouble::Fault(fault) => fault.to_string(),
            Trouble::Limit(error) => error.to_string(),
        })
    }

    #[test]
    fn records() {
        let pax = outcome(b"11 path=ab\n30 SCHILY.xattr.user.a=b=c\nd\n\n14 mtime=-1.5\n").unwrap();
        assert_eq!(pax.path.unwrap(), b"ab");
        assert_eq!(pax.xattrs[0].name, b"user.a");
        assert_eq!(pax.xattrs[0].value, b"b=c\nd\n");
        assert_eq!(pax.mtime.unwrap(), Time { seconds: -2, nanoseconds: 500_000_000 });
    }

    #[test]
    fn abuse() {
        let cases: [(&[u8], &str); 13] = [
            (b"11 path=abc", "malformed"),
            (b"12 path=ab\n", "malformed"),
            (b"0 path=ab\n", "malformed"),
            (b"2 \n", "malformed"),
            (b"6 =ab\n", "malformed"),
            (b"99999999999999999999999 path=ab\n", "malformed"),
            (b"1073741824 path=ab\n", "limit pax_record"),
            (b"11 path=ab\n11 path=ab\n", "path is given more than once"),
            (b"8 path=\n", "the name has"),
            (b"11 size=-1\n", "size is not a number"),
            (b"28 size=99999999999999999999\n", "malformed"),
            (b"21 GNU.sparse.major=1\n", "malformed"),
            (b"22 GNU.sparse.major=1\n", "sparse"),
        ];
        for (content, message) in cases {
            let error = outcome(content).unwrap_err();
            assert!(error.contains(message), "{}: {error}", content.escape_ascii());
        }
    }
}
