//! Entry after entry from a stream.

use std::io::Read;
use std::path::Path;

use crate::stream::{Finished, Stream, as_u64};
use crate::tar::entry::{Entry, Extensions, Kind};
use crate::tar::header::{BLOCK, Header};
use crate::tar::pax::{Pax, Trouble};
use crate::{Fault, LayerError, Limits};

/// [`BLOCK`] as the type of sizes.
const BLOCK_BYTES: u64 = 512;

pub(crate) struct Reader<'a, R: Read> {
    stream: Stream<R>,
    limits: &'a Limits,
    /// Content of the current entry that was not taken yet.
    body: u64,
    /// It becomes a file's content, so that it need not be kept a second time.
    is_placed: bool,
    /// Zeros after the content, up to the next block.
    padding: u64,
    entries: u64,
}

impl<'a, R: Read> Reader<'a, R> {
    pub(crate) fn new(stream: Stream<R>, limits: &'a Limits) -> Self {
        Self { stream, limits, body: 0, is_placed: false, padding: 0, entries: 0 }
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// How many bytes were taken.
    pub(crate) fn offset(&self) -> u64 {
        self.stream.offset()
    }

    /// The next entry. What is left of the content before it is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        self.pass_body()?;
        let mut extensions = Extensions::default();
        let mut headers = 0;
        loop {
            let offset = self.stream.offset();
            let at = |fault| LayerError::Header { offset, fault };
            let Some(header) = self.header()? else {
                return if extensions.is_empty() { Ok(None) } else { Err(at(Fault::NoEntry)) };
            };
            if !matches!(header.kind, b'x' | b'g' | b'L' | b'K') {
                return self.entry(header, extensions).map(Some);
            }
            let content = self.extension(&header, &mut headers)?;
            extend(&mut extensions, header.kind, content, self.limits).map_err(|trouble| match trouble {
                Trouble::Fault(fault) => at(fault),
                Trouble::Limit(error) => error,
            })?;
        }
    }

    /// The current entry's content is taken whole, and becomes that of the file at `path`.
    pub(crate) fn place(&mut self, path: &Path) {
        if self.body > 0 {
            self.stream.content(path, self.body);
            self.is_placed = true;
        }
    }

    /// The next bytes of the current entry's content; none when all were taken.
    pub(crate) fn body(&mut self) -> Result<&[u8], LayerError> {
        if self.body == 0 {
            return Ok(&[]);
        }
        let offset = self.stream.offset();
        let left = usize::try_from(self.body).unwrap_or(usize::MAX);
        let chunk = self.stream.fill()?;
        if chunk.is_empty() {
            return Err(LayerError::Header { offset, fault: Fault::Truncated });
        }
        Ok(chunk.get(..left).unwrap_or(chunk))
    }

    /// Takes bytes that [`Reader::body`] gave.
    pub(crate) fn take(&mut self, count: usize) {
        if self.is_placed {
            self.stream.consume_content(count);
        } else {
            self.stream.consume(count);
        }
        self.body = self.body.saturating_sub(as_u64(count));
    }

    /// After the last entry: reads the rest, which means nothing.
    pub(crate) fn finish(self) -> Result<Finished, LayerError> {
        self.stream.finish()
    }

    fn pass_body(&mut self) -> Result<(), LayerError> {
        let offset = self.stream.offset();
        let whole = self.stream.skip(self.body)? && self.stream.skip(self.padding)?;
        self.body = 0;
        self.is_placed = false;
        self.padding = 0;
        if whole { Ok(()) } else { Err(LayerError::Header { offset, fault: Fault::Truncated }) }
    }

    /// The next header; `None` at the end: two blocks of zeros, or no more bytes.
    fn header(&mut self) -> Result<Option<Header>, LayerError> {
        let offset = self.stream.offset();
        let at = |fault| LayerError::Header { offset, fault };
        let Some(block) = self.block()? else { return Ok(None) };
        if let Some(header) = Header::parse(&block).map_err(at)? {
            return Ok(Some(header));
        }
        match self.block()? {
            Some(second) if second.iter().any(|byte| *byte != 0) => Err(at(Fault::LoneZeroBlock)),
            _ => Ok(None),
        }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, LayerError> {
        let offset = self.stream.offset();
        let mut block = [0; BLOCK];
        match self.stream.read_block(&mut block)? {
            None => Ok(None),
            Some(true) => Ok(Some(block)),
            Some(false) => Err(LayerError::Header { offset, fault: Fault::Truncated }),
        }
    }

    /// Reads the content of an extension header, whose size is checked first.
    fn extension(&mut self, header: &Header, headers: &mut u64) -> Result<Vec<u8>, LayerError> {
        *headers = headers.saturating_add(header.size).saturating_add(BLOCK_BYTES);
        if *headers > self.limits.headers {
            return Err(LayerError::Limit { limit: "headers", max: self.limits.headers });
        }
        let offset = self.stream.offset();
        let truncated = || LayerError::Header { offset, fault: Fault::Truncated };
        let mut content = vec![0; usize::try_from(header.size).map_err(|_| truncated())?];
        let whole = content.is_empty() || self.stream.read_block(&mut content)? == Some(true);
        if !whole || !self.stream.skip(padding(header.size))? {
            return Err(truncated());
        }
        Ok(content)
    }

    fn entry(&mut self, header: Header, extensions: Extensions) -> Result<Entry, LayerError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(LayerError::Limit { limit: "entries", max: self.limits.entries });
        }
        let entry = Entry::new(header, extensions, self.limits)?;
        if let Kind::File(size) = entry.kind {
            // Refused before anything of it is written.
            if size > self.limits.size {
                return Err(LayerError::Limit { limit: "size", max: self.limits.size });
            }
            self.body = size;
            self.padding = padding(size);
        }
        Ok(entry)
    }
}

fn padding(size: u64) -> u64 {
    (BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES
}

fn extend(extensions: &mut Extensions, kind: u8, content: Vec<u8>, limits: &Limits) -> Result<(), Trouble> {
    let (slot, what) = match kind {
        b'x' if extensions.pax.is_some() => return Err(Fault::Twice("PAX header").into()),
        b'x' => {
            extensions.pax = Some(Pax::parse(&content, limits)?);
            return Ok(());
        }
        b'g' => return Pax::check_global(&content, limits),
        b'K' => (&mut extensions.gnu_link, "long link"),
        _ => (&mut extensions.gnu_name, "long name"),
    };
    let text = content.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
    match slot.replace(text) {
        None => Ok(()),
        Some(_) => Err(Fault::Twice(what).into()),
    }
}
