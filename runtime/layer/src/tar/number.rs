//! Numeric fields of a header: octal digits, or base 256 with the first bit set (a GNU extension that all read).

use crate::Fault;

/// Reads a field. Octal: spaces, digits, then only spaces and NULs; nothing at all is 0. Base 256: two's complement,
/// big-endian, without the first bit.
pub(crate) fn parse(name: &'static str, field: &[u8]) -> Result<i128, Fault> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(name, field, *first),
        _ => octal(name, field),
    }
}

/// As [`parse`], for a number that must fit `T`.
pub(crate) fn bounded<T: TryFrom<i128>>(name: &'static str, field: &[u8]) -> Result<T, Fault> {
    T::try_from(parse(name, field)?).map_err(|_| Fault::Range(name))
}

fn octal(name: &'static str, field: &[u8]) -> Result<i128, Fault> {
    let field = field.trim_ascii_start();
    let digits = field.iter().take_while(|byte| matches!(byte, b'0'..=b'7')).count();
    let (digits, rest) = field.split_at(digits);
    if !rest.iter().all(|byte| matches!(byte, b' ' | 0)) {
        return Err(Fault::Number(name));
    }
    // No field is longer than 12 bytes, so that no sum comes near the type's end.
    Ok(digits.iter().fold(0, |sum: i128, digit| (sum << 3) | i128::from(digit - b'0')))
}

fn base_256(name: &'static str, field: &[u8], first: u8) -> Result<i128, Fault> {
    if field.len() > 15 {
        return Err(Fault::Range(name));
    }
    // The second bit is the sign.
    let start = if first & 0x40 == 0 { i128::from(first & 0x3f) } else { i128::from(first & 0x3f) - 0x40 };
    let rest = field.get(1..).unwrap_or_default();
    Ok(rest.iter().fold(start, |sum, byte| sum * 256 + i128::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_and_base_256() {
        let cases: [(&[u8], Result<i128, Fault>); 14] = [
            (b"0000644\0", Ok(0o644)),
            (b"   644 \0", Ok(0o644)),
            (b"77777777777\0", Ok(0o77_777_777_777)),
            (b"777777777777", Ok(0o777_777_777_777)),
            (b"\0\0\0\0", Ok(0)),
            (b"        ", Ok(0)),
            (b"0008\0", Err(Fault::Number("f"))),
            (b"-1\0", Err(Fault::Number("f"))),
            (b"1 2\0", Err(Fault::Number("f"))),
            (b"\x0012\0", Err(Fault::Number("f"))),
            (b"\x80\0\0\0\0\0\0\0\0\0\0\x05", Ok(5)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Ok(-1)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", Ok(1 << 63)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Ok(-2)),
        ];
        for (field, value) in cases {
            assert_eq!(parse("f", field), value, "{field:?}");
        }
    }

    #[test]
    fn ranges() {
        let two_to_63: &[u8] = b"\x80\0\0\0\x80\0\0\0\0\0\0\0";
        assert_eq!(bounded::<i64>("mtime", two_to_63), Err(Fault::Range("mtime")));
        assert_eq!(bounded::<u64>("size", two_to_63), Ok(1 << 63));
        assert_eq!(bounded::<u64>("size", b"\xff\xff\xff\xff"), Err(Fault::Range("size")));
        assert_eq!(bounded::<u32>("uid", b"\x80\0\0\x01\0\0\0\0"), Err(Fault::Range("uid")));
    }
}
