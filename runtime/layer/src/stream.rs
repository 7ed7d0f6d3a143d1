//! The uncompressed bytes of a layer: buffered, hashed, counted, bounded.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;

use crate::compression::{Compression, Decoder, Meter};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::headers::HeadersWriter;
use crate::{LayerError, Limits};

/// Uncompressed bytes held at once; also the largest write to a file.
const BUFFER: usize = 256 * 1024;

pub(crate) struct Stream<R: Read> {
    decoder: Decoder<R>,
    meter: Rc<Meter>,
    limits: Limits,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    hasher: Hasher,
    /// Somebody wants the diff ID.
    is_hashed: bool,
    /// Uncompressed bytes that came out.
    produced: u64,
    /// Uncompressed bytes that were consumed.
    offset: u64,
    /// Keeps what is consumed and is no file's content.
    headers: Option<HeadersWriter>,
}

/// What a stream was.
pub(crate) struct Finished {
    pub(crate) diff_id: Digest,
    /// Its uncompressed bytes.
    pub(crate) size: u64,
    /// Bytes of what was kept of it, where that was asked for.
    pub(crate) headers: Option<u64>,
}

impl<R: Read> Stream<R> {
    pub(crate) fn new(source: R, compression: Compression, limits: &Limits) -> Result<Self, LayerError> {
        let meter = Rc::new(Meter::default());
        let decoder = Decoder::new(source, compression, Rc::clone(&meter)).map_err(LayerError::Source)?;
        Ok(Self {
            decoder,
            meter,
            limits: limits.clone(),
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            hasher: Hasher::new(Algorithm::Sha256),
            is_hashed: true,
            produced: 0,
            offset: 0,
            headers: None,
        })
    }

    /// The same for an archive that has no diff ID: what it carries has digests of its own.
    pub(crate) fn unhashed(self) -> Self {
        Self { is_hashed: false, ..self }
    }

    /// Keeps in `file` what is consumed other than by [`Stream::consume_content`].
    pub(crate) fn keeping(self, file: File) -> Result<Self, LayerError> {
        Ok(Self { headers: Some(HeadersWriter::new(file).map_err(LayerError::Headers)?), ..self })
    }

    /// How many uncompressed bytes lie behind.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes, at least one; none at the end of the layer.
    pub(crate) fn fill(&mut self) -> Result<&[u8], LayerError> {
        if self.start == self.end {
            self.read_more()?;
        }
        Ok(self.buffer.get(self.start..self.end).unwrap_or_default())
    }

    /// Goes on by `count` of the bytes that [`Stream::fill`] gave.
    pub(crate) fn consume(&mut self, count: usize) {
        let count = count.min(self.end - self.start);
        if let Some(headers) = &mut self.headers {
            headers.bytes(self.buffer.get(self.start..self.start + count).unwrap_or_default());
        }
        self.consume_content(count);
    }

    /// The next `size` bytes are the content of a file.
    pub(crate) fn content(&mut self, path: &Path, size: u64) {
        if let Some(headers) = &mut self.headers {
            headers.content(path, size);
        }
    }

    /// [`Stream::consume`] for what [`Stream::content`] announced.
    pub(crate) fn consume_content(&mut self, count: usize) {
        let count = count.min(self.end - self.start);
        self.start += count;
        self.offset = self.offset.saturating_add(as_u64(count));
    }

    /// Fills `block`. `None`: the layer ended before its first byte; `Some(false)`: it ended inside.
    pub(crate) fn read_block(&mut self, block: &mut [u8]) -> Result<Option<bool>, LayerError> {
        let mut done = 0;
        while let Some(rest) = block.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let chunk = self.fill()?;
            if chunk.is_empty() {
                return Ok(if done == 0 { None } else { Some(false) });
            }
            let count = chunk.len().min(rest.len());
            for (to, from) in rest.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.consume(count);
            done += count;
        }
        Ok(Some(true))
    }

    /// Goes on by `count` bytes. `false`: the layer ended before.
    pub(crate) fn skip(&mut self, mut count: u64) -> Result<bool, LayerError> {
        while count > 0 {
            let available = self.fill()?.len();
            if available == 0 {
                return Ok(false);
            }
            let step = usize::try_from(count).unwrap_or(usize::MAX).min(available);
            self.consume(step);
            count -= as_u64(step);
        }
        Ok(true)
    }

    /// Reads to the end, so that all of it is hashed and the source is read out.
    pub(crate) fn finish(mut self) -> Result<Finished, LayerError> {
        loop {
            let available = self.fill()?.len();
            if available == 0 {
                break;
            }
            self.consume(available);
        }
        let headers = self.headers.map(HeadersWriter::finish).transpose().map_err(LayerError::Headers)?;
        Ok(Finished { diff_id: self.hasher.finish(), size: self.produced, headers })
    }

    fn read_more(&mut self) -> Result<(), LayerError> {
        let count = loop {
            match self.decoder.read(&mut self.buffer) {
                Ok(count) => break count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if self.meter.failed.get() => return Err(LayerError::Source(error)),
                Err(error) => return Err(LayerError::Decompress(error)),
            }
        };
        self.start = 0;
        self.end = count;
        if self.is_hashed {
            self.hasher.update(self.buffer.get(..count).unwrap_or_default());
        }
        self.produced = self.produced.saturating_add(as_u64(count));
        if let Some(headers) = &mut self.headers {
            headers.check().map_err(LayerError::Headers)?;
        }
        self.check()
    }

    fn check(&self) -> Result<(), LayerError> {
        let limits = &self.limits;
        if self.produced > limits.size {
            return Err(LayerError::Limit { limit: "size", max: limits.size });
        }
        let expanded = self.produced > self.meter.bytes.get().saturating_mul(limits.expansion);
        if expanded && self.produced > limits.expansion_free {
            return Err(LayerError::Limit { limit: "expansion", max: limits.expansion });
        }
        Ok(())
    }
}

pub(crate) fn as_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
