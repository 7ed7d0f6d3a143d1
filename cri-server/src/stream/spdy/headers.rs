//! Header blocks: names and values, compressed by one zlib stream in each direction with a dictionary that both sides
//! know (SPDY Protocol draft 3, section 2.6.10). What comes out of the decompressor is bounded.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::NotSpdy;

/// The dictionary of the specification.
const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");
/// The most bytes that one block may become: a small one can become a thousand times as large.
const MAX_BLOCK: usize = 64 * 1024;
/// The most headers of one block. Clients send five.
const MAX_HEADERS: usize = 128;

/// Names in lower case, and values.
pub type Headers = Vec<(String, String)>;

/// Reads what a client compresses.
#[derive(Debug)]
pub struct Inflater {
    stream: Decompress,
}

impl Default for Inflater {
    fn default() -> Self {
        Self { stream: Decompress::new(true) }
    }
}

impl Inflater {
    /// The next block. Blocks must be read in order, all of them.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, NotSpdy> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, NotSpdy> {
        const BROKEN: NotSpdy = NotSpdy("a header block cannot be decompressed");
        let (mut out, mut chunk) = (Vec::new(), [0_u8; 4096]);
        loop {
            let (read, written) = (self.stream.total_in(), self.stream.total_out());
            let result = self.stream.decompress(block, &mut chunk, FlushDecompress::Sync);
            let used = usize::try_from(self.stream.total_in() - read).map_err(|_| BROKEN)?;
            let made = usize::try_from(self.stream.total_out() - written).map_err(|_| BROKEN)?;
            block = block.get(used..).ok_or(BROKEN)?;
            out.extend_from_slice(chunk.get(..made).ok_or(BROKEN)?);
            if out.len() > MAX_BLOCK {
                return Err(NotSpdy("a header block is too large"));
            }
            match result {
                Ok(Status::StreamEnd) => return Err(NotSpdy("the compressed stream ends")),
                // All was taken, and the last of it did not fill what it was given.
                Ok(_) if block.is_empty() && made < chunk.len() => return Ok(out),
                Ok(_) if used == 0 && made == 0 => return Err(BROKEN),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.stream.set_dictionary(DICTIONARY).map_err(|_| BROKEN)?;
                }
                Err(_) => return Err(BROKEN),
            }
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, NotSpdy> {
    let count = usize::try_from(take_word(&mut block)?).unwrap_or(usize::MAX);
    if count > MAX_HEADERS {
        return Err(NotSpdy("too many headers"));
    }
    let headers = (0..count)
        .map(|_| Ok((take_text(&mut block)?.to_ascii_lowercase(), take_text(&mut block)?)))
        .collect::<Result<_, _>>()?;
    if block.is_empty() { Ok(headers) } else { Err(NotSpdy("a header block is longer than its headers")) }
}

const SHORT: NotSpdy = NotSpdy("a header block is too short");

fn take_word(block: &mut &[u8]) -> Result<u32, NotSpdy> {
    let (word, rest) = block.split_first_chunk::<4>().ok_or(SHORT)?;
    *block = rest;
    Ok(u32::from_be_bytes(*word))
}

fn take_text(block: &mut &[u8]) -> Result<String, NotSpdy> {
    let length = usize::try_from(take_word(block)?).map_err(|_| SHORT)?;
    let (text, rest) = block.split_at_checked(length).ok_or(SHORT)?;
    *block = rest;
    String::from_utf8(text.to_vec()).map_err(|_| NotSpdy("a header is not UTF-8"))
}

/// Compresses what a client reads.
#[derive(Debug)]
pub struct Deflater {
    stream: Compress,
}

impl Deflater {
    /// Begins with the dictionary.
    pub fn new() -> Result<Self, NotSpdy> {
        let mut stream = Compress::new(Compression::fast(), true);
        stream.set_dictionary(DICTIONARY).map_err(|_| NotSpdy("the dictionary cannot be used"))?;
        Ok(Self { stream })
    }

    /// A block of no headers: nothing that a client wants to know of us.
    pub fn empty(&mut self) -> Result<Vec<u8>, NotSpdy> {
        self.block(&[0; 4])
    }

    fn block(&mut self, plain: &[u8]) -> Result<Vec<u8>, NotSpdy> {
        // More than deflate adds to so little: bound of zlib's compressBound and a sync mark.
        let mut out = Vec::with_capacity(plain.len() + 128);
        self.stream
            .compress_vec(plain, &mut out, FlushCompress::Sync)
            .map_err(|_| NotSpdy("headers cannot be compressed"))?;
        Ok(out)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        block
    }

    /// What a client would send.
    #[derive(Debug)]
    pub struct Client(Deflater);

    impl Client {
        pub fn new() -> Self {
            Self(Deflater::new().unwrap())
        }

        pub fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
            self.0.block(&plain(headers)).unwrap()
        }
    }

    #[test]
    fn blocks_follow_each_other_in_one_stream() {
        let (mut client, mut inflater) = (Client::new(), Inflater::default());
        for n in 0..100 {
            let port = n.to_string();
            let block = client.block(&[("StreamType", "data"), ("port", &port)]);
            let headers = inflater.read(&block).unwrap();
            assert_eq!(headers, [("streamtype".into(), "data".into()), ("port".into(), port)]);
        }
        assert_eq!(inflater.read(&client.0.empty().unwrap()), Ok(vec![]));
    }

    #[test]
    fn what_would_be_large_is_refused() {
        let mut client = Client::new();
        let mut out = Vec::with_capacity(1 << 20);
        client.0.stream.compress_vec(&vec![0; 5 << 20], &mut out, FlushCompress::Sync).unwrap();
        assert!(out.len() < MAX_BLOCK, "{}", out.len());
        assert!(Inflater::default().read(&out).is_err());
        for block in [
            [0xff, 0xff, 0xff, 0xff].to_vec(),
            [0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff].to_vec(),
            [0, 0, 0, 0, 0].to_vec(),
        ] {
            assert!(parse(&block).is_err(), "{block:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_harmful(block in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse(&block);
            let _ = Inflater::default().read(&block);
        }
    }
}
