//! Headers of a tar archive that carries an image: the little that a layout needs, in the form that every tool reads.

/// A block.
const BLOCK: usize = 512;
/// Bytes of a name in a header (POSIX.1-2024 pax, "ustar Interchange Format").
const NAME: usize = 100;

/// The header of a regular file; one with a long name (a blob by SHA-512 has 141 bytes) is two, as GNU tar writes it.
pub(crate) fn header(name: &str, size: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    if name.len() > NAME {
        let long = u64::try_from(name.len() + 1).unwrap_or(u64::MAX);
        bytes.extend_from_slice(&block("././@LongLink", long, b'L'));
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.extend_from_slice(&block(name, size, b'0'));
    bytes
}

/// The zeros between a file of this size and the next header.
pub(crate) fn padding(size: u64) -> usize {
    let last = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    (BLOCK - last) % BLOCK
}

/// What ends an archive.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

fn block(name: &str, size: u64, kind: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name.as_bytes()[..name.len().min(NAME)]);
    for (at, text) in [(100, "0000644\0"), (108, "0000000\0"), (116, "0000000\0"), (136, "00000000000\0")] {
        put(at, text.as_bytes());
    }
    // Eleven octal digits, or, above 8 GiB, the number itself behind a mark (GNU's base 256).
    if size < 1 << 33 {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(156, &[kind]);
    // GNU's own magic, since a long name and a large number are GNU's.
    put(257, b"ustar  \0");
    put(148, b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn another_reader_finds_what_was_written() {
        let long = format!("blobs/sha512/{}", "a".repeat(128));
        let mut archive = Vec::new();
        for (name, content) in [("index.json", "{}"), (long.as_str(), "long"), ("empty", "")] {
            let size = content.len() as u64;
            archive.extend_from_slice(&header(name, size));
            archive.extend_from_slice(content.as_bytes());
            archive.resize(archive.len() + padding(size), 0);
        }
        archive.extend_from_slice(&END);
        let mut read = tar::Archive::new(&archive[..]);
        let found: Vec<_> = read
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (entry.path().unwrap().display().to_string(), text)
            })
            .collect();
        let expected = [("index.json", "{}"), (long.as_str(), "long"), ("empty", "")];
        assert_eq!(found, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
        let large = header("x", 10 << 30);
        assert_eq!(tar::Header::from_byte_slice(&large).size().unwrap(), 10 << 30);
    }
}
