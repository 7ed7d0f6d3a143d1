//! Content digests, checked when they are made: a [`Digest`] is always safe as a file name and in a message.

use std::fmt::{self, Write as _};
use std::io::{self, Read};
use std::str::FromStr;

use sha2::Digest as _;

/// A hash function that the OCI image specification registers (descriptor.md, "Registered algorithms").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, which everything uses.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The name in front of the colon.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the hexadecimal part.
    #[must_use]
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Nothing in front of a colon, or an algorithm that we do not have.
    #[error("digest has an algorithm other than sha256 and sha512")]
    Algorithm,
    /// The wrong number of digits.
    #[error("digest has {found} digits, {} needs {}", .algorithm.name(), .algorithm.hex_len())]
    Length {
        /// The algorithm named.
        algorithm: Algorithm,
        /// How many bytes follow the colon.
        found: usize,
    },
    /// Something other than 0-9 and a-f.
    #[error("digest has a character other than 0-9 and a-f")]
    Character,
}

/// A digest in its one canonical form: `sha256:` and 64 lower-case hexadecimal digits, or `sha512:` and 128.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    text: Box<str>,
}

impl Digest {
    /// Checks a text from outside.
    ///
    /// # Errors
    /// When it is not exactly the canonical form: other algorithms, upper case and other lengths are refused.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::Algorithm)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::Algorithm),
        };
        if hex.len() != algorithm.hex_len() {
            return Err(DigestError::Length { algorithm, found: hex.len() });
        }
        if !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(DigestError::Character);
        }
        Ok(Self { algorithm, text: text.into() })
    }

    /// The digest of bytes in memory.
    #[must_use]
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// The hash function.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digits after the colon.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The whole text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A digest in the making.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Starts with no content.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    /// Adds content.
    pub fn update(&mut self, content: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(content),
            State::Sha512(state) => state.update(content),
        }
    }

    /// The digest of all that was added.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => written(Algorithm::Sha256, &state.finalize()),
            State::Sha512(state) => written(Algorithm::Sha512, &state.finalize()),
        }
    }
}

fn written(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut text = String::with_capacity(algorithm.name().len() + 1 + algorithm.hex_len());
    text.push_str(algorithm.name());
    text.push(':');
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes all that is written");
    }
    Digest { algorithm, text: text.into() }
}

/// Hashes and counts what is read through it.
#[derive(Debug)]
pub struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    count: u64,
}

impl<R: Read> HashingReader<R> {
    /// Wraps a source.
    pub fn new(inner: R, algorithm: Algorithm) -> Self {
        Self { inner, hasher: Hasher::new(algorithm), count: 0 }
    }

    /// Bytes read so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The digest and the number of bytes of what was read, and the source. Whatever the source still holds is in
    /// neither.
    pub fn finish(self) -> (Digest, u64, R) {
        (self.hasher.finish(), self.count, self.inner)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let content = buffer.get(..count).ok_or(io::ErrorKind::InvalidData)?;
        self.hasher.update(content);
        self.count = self.count.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn only_the_canonical_form() {
        let digits = &EMPTY["sha256:".len()..];
        let of_64 = DigestError::Length { algorithm: Algorithm::Sha512, found: 64 };
        let long = "a".repeat(10_000);
        let cases = [
            (EMPTY.to_owned(), None),
            (format!("sha512:{digits}{digits}"), None),
            (format!("sha512:{digits}"), Some(of_64)),
            (format!("sha256:{}", digits.to_uppercase()), Some(DigestError::Character)),
            (format!("SHA256:{digits}"), Some(DigestError::Algorithm)),
            (format!("md5:{digits}"), Some(DigestError::Algorithm)),
            (digits.to_owned(), Some(DigestError::Algorithm)),
            (String::new(), Some(DigestError::Algorithm)),
            (format!("sha256: {}", &digits[1..]), Some(DigestError::Character)),
            ("sha256:../x".into(), Some(DigestError::Length { algorithm: Algorithm::Sha256, found: 4 })),
            (
                format!("sha256:{long}"),
                Some(DigestError::Length { algorithm: Algorithm::Sha256, found: 10_000 }),
            ),
            (format!("sha256:{}", "/".repeat(64)), Some(DigestError::Character)),
        ];
        for (text, error) in cases {
            assert_eq!(Digest::parse(&text).err(), error, "{text}");
        }
    }

    #[test]
    fn hashes_what_is_read() {
        assert_eq!(Digest::of(Algorithm::Sha256, b"").as_str(), EMPTY);
        let mut reader = HashingReader::new(&b"cove"[..], Algorithm::Sha512);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        let (digest, count, _) = reader.finish();
        assert_eq!((digest.clone(), count), (Digest::of(Algorithm::Sha512, b"cove"), 4));
        assert_eq!(digest.hex().len(), 128);
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
}
