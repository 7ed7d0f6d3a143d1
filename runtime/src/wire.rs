//! The byte form of everything that daemon, shim and builder say to each other.
//!
//! Little-endian, no padding: integers as they are, `bool` and `Option` as one byte 0 or 1, strings, paths and
//! lists as a `u32` length and their content, an enum as one byte of tag and the variant's content. A decoder
//! reads all of its input or refuses it, and allocates nothing that the input does not pay for byte by byte.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Why bytes are not the message that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The input ended inside a field.
    #[error("message ends inside a field")]
    Short,
    /// The input has bytes after the last field.
    #[error("message has {0} bytes after its last field")]
    Trailing(usize),
    /// A tag or flag has a value that this version does not know.
    #[error("unknown {what} tag {tag}")]
    Tag {
        /// The type whose tag it is.
        what: &'static str,
        /// The value found.
        tag: u8,
    },
    /// A string is not UTF-8.
    #[error("string is not UTF-8")]
    Utf8,
}

/// What is left of an input.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Malformed::Short)?;
        self.0 = tail;
        Ok(head)
    }
}

/// A value with a byte form.
pub trait Wire: Sized {
    /// Appends the byte form.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads one value from the front of `input`.
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed>;

    /// The byte form on its own.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    /// The value whose byte form is all of `bytes`.
    fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader(bytes);
        let value = Self::take(&mut input)?;
        match input.0.len() {
            0 => Ok(value),
            n => Err(Malformed::Trailing(n)),
        }
    }
}

macro_rules! wire_integer {
    ($($t:ty),*) => {$(
        impl Wire for $t {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
                let mut raw = [0; size_of::<$t>()];
                raw.copy_from_slice(input.bytes(size_of::<$t>())?);
                Ok(<$t>::from_le_bytes(raw))
            }
        }
    )*};
}
wire_integer!(u8, u16, u32, u64, i32, i64);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        match u8::take(input)? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(Malformed::Tag { what: "bool", tag }),
        }
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    // Nothing here comes near 4 GiB: frames end at 16 KiB and memfds at `protocol::MAX_SPEC`.
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).put(out);
    out.extend_from_slice(bytes);
}

fn take_bytes<'a>(input: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let n = u32::take(input)?;
    input.bytes(n as usize)
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(str::from_utf8(take_bytes(input)?).map_err(|_| Malformed::Utf8)?.to_owned())
    }
}

impl Wire for OsString {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(OsString::from_vec(take_bytes(input)?.to_vec()))
    }
}

impl Wire for PathBuf {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_os_str().as_bytes(), out);
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        OsString::take(input).map(PathBuf::from)
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).unwrap_or(u32::MAX).put(out);
        self.iter().for_each(|item| item.put(out));
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let n = u32::take(input)?;
        // No capacity from the wire: a length that lies ends in `Short` before it costs memory.
        let mut items = Vec::new();
        for _ in 0..n {
            items.push(T::take(input)?);
        }
        Ok(items)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(if bool::take(input)? { Some(T::take(input)?) } else { None })
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok((A::take(input)?, B::take(input)?))
    }
}

/// Declares a struct whose byte form is its fields in order.
#[macro_export]
macro_rules! wire_struct {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$fmeta])* pub $field: $type,)* }
        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                let _ = &out;
                $($crate::wire::Wire::put(&self.$field, out);)*
            }
            fn take(input: &mut $crate::wire::Reader<'_>) -> Result<Self, $crate::wire::Malformed> {
                let _ = &input;
                Ok($name { $($field: $crate::wire::Wire::take(input)?,)* })
            }
        }
    };
}

/// Declares an enum whose byte form is a tag byte and, where the variant has one, its content.
#[macro_export]
macro_rules! wire_enum {
    ($(#[$meta:meta])* pub enum $name:ident {
        $($(#[$vmeta:meta])* $tag:literal => $variant:ident $(($content:ty))?,)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name { $($(#[$vmeta])* $variant $(($content))?,)* }
        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $($crate::wire_enum!(@pat $name $variant $(($content))? inner) => {
                        out.push($tag);
                        $($crate::wire_enum!(@put $content, inner, out);)?
                    })*
                }
            }
            fn take(input: &mut $crate::wire::Reader<'_>) -> Result<Self, $crate::wire::Malformed> {
                match <u8 as $crate::wire::Wire>::take(input)? {
                    $($tag => Ok($crate::wire_enum!(@take $name $variant $(($content))? input)),)*
                    tag => Err($crate::wire::Malformed::Tag { what: stringify!($name), tag }),
                }
            }
        }
    };
    (@pat $name:ident $variant:ident ($content:ty) $inner:ident) => { $name::$variant($inner) };
    (@pat $name:ident $variant:ident $inner:ident) => { $name::$variant };
    (@put $content:ty, $inner:ident, $out:ident) => { <$content as $crate::wire::Wire>::put($inner, $out) };
    (@take $name:ident $variant:ident ($content:ty) $input:ident) => {
        $name::$variant(<$content as $crate::wire::Wire>::take($input)?)
    };
    (@take $name:ident $variant:ident $input:ident) => { $name::$variant };
}

#[cfg(test)]
mod tests {
    use super::*;

    wire_struct! {
        /// Sample.
        pub struct Pair {
            /// A.
            pub a: u32,
            /// B.
            pub b: Option<String>,
        }
    }
    wire_enum! {
        /// Sample.
        pub enum Choice {
            /// None.
            1 => Nothing,
            /// Some.
            2 => Something(Pair),
        }
    }

    #[test]
    fn round_trip_and_refusals() {
        let value = Choice::Something(Pair { a: 7, b: Some("x".into()) });
        let bytes = value.to_bytes();
        assert_eq!(bytes, [2, 7, 0, 0, 0, 1, 1, 0, 0, 0, b'x']);
        assert_eq!(Choice::from_bytes(&bytes), Ok(value));
        assert_eq!(Choice::from_bytes(&[1]), Ok(Choice::Nothing));
        assert_eq!(Choice::from_bytes(&[3]), Err(Malformed::Tag { what: "Choice", tag: 3 }));
        assert_eq!(Choice::from_bytes(&[1, 0]), Err(Malformed::Trailing(1)));
        assert_eq!(Choice::from_bytes(&bytes[..bytes.len() - 1]), Err(Malformed::Short));
        assert_eq!(Vec::<u64>::from_bytes(&u32::MAX.to_le_bytes()), Err(Malformed::Short));
    }
}
