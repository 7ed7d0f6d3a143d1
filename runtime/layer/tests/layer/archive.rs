//! Archives made byte by byte, so that they can say what no tool would.

/// A tar in the making. Names longer than a header's field are cut.
#[derive(Debug, Default, Clone)]
pub(crate) struct Archive(pub(crate) Vec<u8>);

pub(crate) type Block = [u8; 512];

impl Archive {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A header and its content; `edit` may change any byte before the checksum is made.
    pub(crate) fn entry(
        mut self,
        kind: u8,
        name: &str,
        content: &[u8],
        edit: impl FnOnce(&mut Block),
    ) -> Self {
        let mut block = [0_u8; 512];
        put(&mut block, 0, &name.as_bytes()[..name.len().min(100)]);
        put(&mut block, 100, b"0000644\0");
        put(&mut block, 108, b"0000000\0");
        put(&mut block, 116, b"0000000\0");
        put(&mut block, 124, format!("{:011o}\0", content.len()).as_bytes());
        put(&mut block, 136, b"14000000000\0");
        block[156] = kind;
        put(&mut block, 257, b"ustar\x0000");
        put(&mut block, 329, b"0000000\0");
        put(&mut block, 337, b"0000000\0");
        edit(&mut block);
        put(&mut block, 148, b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, content: &str) -> Self {
        self.entry(b'0', name, content.as_bytes(), |_| {})
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(b'5', name, b"", |block| put(block, 100, format!("{mode:07o}\0").as_bytes()))
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.link(b'2', name, target)
    }

    pub(crate) fn hardlink(self, name: &str, target: &str) -> Self {
        self.link(b'1', name, target)
    }

    pub(crate) fn link(self, kind: u8, name: &str, target: &str) -> Self {
        self.entry(kind, name, b"", |block| put(block, 157, target.as_bytes()))
    }

    pub(crate) fn device(self, kind: u8, name: &str, major: &str, minor: &str) -> Self {
        self.entry(kind, name, b"", |block| {
            put(block, 329, &[0; 16]);
            put(block, 329, major.as_bytes());
            put(block, 337, minor.as_bytes());
        })
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let content: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.entry(b'x', "PaxHeaders/x", &content, |_| {})
    }

    /// The two zero blocks.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub(crate) fn put(block: &mut Block, at: usize, value: &[u8]) {
    block[at..at + value.len()].copy_from_slice(value);
}

/// One PAX record, whose length counts its own digits.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}
