//! Ids: 64 lower-case hex digits, never made from anything a caller said.

use std::fmt::Write;

use crate::error::Error;

/// How many digits an id has.
const DIGITS: usize = 64;

/// A new id from 32 random bytes.
pub fn new_id() -> Result<String, Error> {
    let mut bytes = [0_u8; DIGITS / 2];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| Error::system("read", "random bytes", errno))?;
    }
    let mut id = String::with_capacity(DIGITS);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(id, "{byte:02x}");
    }
    Ok(id)
}

/// The text could be an id: a directory of this name may hold a record.
pub fn is_id(text: &str) -> bool {
    text.len() == DIGITS && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ids_and_differ() {
        let (a, b) = (new_id().unwrap(), new_id().unwrap());
        assert!(is_id(&a) && is_id(&b) && a != b);
        for bad in
            ["", "..", &a[1..], &a.to_uppercase().replace(char::is_numeric, "A"), &format!("{}/", &a[1..])]
        {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
