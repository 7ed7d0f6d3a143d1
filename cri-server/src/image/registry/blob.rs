//! A blob as a stream of its bytes in order. A connection that breaks is taken up where it broke; a large blob is fetched in
//! ranges, several at once, within a window of memory. Nothing is verified here but lengths: the digest tells at the end
//! whether what several connections sent fits together.

use futures_util::StreamExt as _;
use futures_util::TryStreamExt as _;
use futures_util::stream::{self, BoxStream};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header;
use hyper::{Method, StatusCode};

use super::super::ImageError;
use super::super::manifest::Descriptor;
use super::super::transport::{Broken, Origin};
use super::{Registry, Wanted};

/// How much one range has. With [`Ranges::parallel`] of them a layer holds at most 8 MiB by default, and three layers
/// stay within what a pull may take (security-bar.md R28: 32 MiB).
const RANGE: u64 = 2 << 20;
/// What a connection must have brought for its break not to count: a server that drops each after some bytes is given up.
const GAIN: u64 = 1 << 20;
/// How often in a row a blob is taken up again without such a gain.
const MAX_RESUMES: u32 = 5;

/// When and how a blob is fetched in ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Ranges {
    /// Bytes of a blob from which on it is.
    pub(in crate::image) threshold: u64,
    /// How many ranges of one blob are fetched at once.
    pub(in crate::image) parallel: usize,
}

/// A part of a blob on its way.
struct Stretch<'a> {
    registry: &'a Registry,
    descriptor: &'a Descriptor,
    /// The next byte that is wanted.
    at: u64,
    /// The first byte that is not.
    end: u64,
    sending: Option<Sending>,
    /// How often it was taken up again without a gain.
    resumes: u32,
    /// Where the present connection began.
    since: u64,
}

/// Who sends it.
struct Sending {
    body: Incoming,
    origin: Origin,
    /// Bytes of the body that are not wanted: the server knows no ranges and began from the start.
    skip: u64,
    /// The body goes to the end of the blob.
    to_end: bool,
}

/// The bytes of a blob, in order.
pub(super) async fn open<'a>(
    registry: &'a Registry,
    descriptor: &'a Descriptor,
) -> Result<BoxStream<'a, Result<Bytes, ImageError>>, ImageError> {
    let size = descriptor.size;
    let in_ranges = size >= registry.ranges.threshold.max(1) && size > RANGE && registry.ranges.parallel > 1;
    let mut first = Stretch::new(registry, descriptor, 0, if in_ranges { RANGE } else { size });
    first.connect().await?;
    if first.sending.as_ref().is_some_and(|sending| sending.to_end) {
        first.end = size;
        return Ok(first.stream().boxed());
    }
    let rest = (1..size.div_ceil(RANGE))
        .map(move |n| Stretch::new(registry, descriptor, n * RANGE, ((n + 1) * RANGE).min(size)));
    let pieces = stream::iter(std::iter::once(first).chain(rest))
        .map(|stretch| stretch.stream().try_collect::<Vec<Bytes>>())
        .buffered(registry.ranges.parallel);
    Ok(pieces.map_ok(|piece| stream::iter(piece.into_iter().map(Ok))).try_flatten().boxed())
}

impl<'a> Stretch<'a> {
    fn new(registry: &'a Registry, descriptor: &'a Descriptor, at: u64, end: u64) -> Self {
        Self { registry, descriptor, at, end, sending: None, resumes: 0, since: at }
    }

    fn stream(self) -> impl stream::Stream<Item = Result<Bytes, ImageError>> + Send + 'a {
        stream::try_unfold(self, |mut stretch| async move {
            Ok(stretch.next().await?.map(|data| (data, stretch)))
        })
    }

    fn what(&self) -> String {
        format!("layer {}", self.descriptor)
    }

    /// The next bytes; `None`: all of this stretch was sent.
    async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        loop {
            let Some(sending) = &mut self.sending else {
                if self.at == self.end {
                    return Ok(None);
                }
                self.reconnect().await?;
                continue;
            };
            match self.registry.transport.next(&mut sending.body).await {
                Ok(Some(mut data)) => {
                    let unwanted = sending.skip.min(length(&data));
                    sending.skip -= unwanted;
                    drop(data.split_to(usize::try_from(unwanted).unwrap_or(usize::MAX)));
                    let left = self.end - self.at;
                    if length(&data) > left {
                        if sending.to_end && self.end == self.descriptor.size {
                            return Err(self.registry.content(&self.what(), "more bytes were sent"));
                        }
                        // A server without ranges goes on beyond what was asked for.
                        data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    }
                    self.at += length(&data);
                    if self.at == self.end && self.end < self.descriptor.size {
                        self.sending = None;
                    }
                    if !data.is_empty() {
                        return Ok(Some(data));
                    }
                }
                Ok(None) if self.at == self.end => self.sending = None,
                Ok(None) => {
                    let missing = format!("ended {} bytes early", self.end - self.at);
                    self.resume(Broken::Unreachable(missing)).await?;
                }
                Err(broken @ Broken::Unreachable(_)) => self.resume(broken).await?,
                Err(broken) => {
                    let origin = sending.origin.clone();
                    return Err(self.registry.broken(&self.what(), &origin, broken));
                }
            }
        }
    }

    /// Lets go of the connection, and waits. Gives up after too many breaks without a gain.
    async fn resume(&mut self, broken: Broken) -> Result<(), ImageError> {
        let Some(sending) = self.sending.take() else { return Ok(()) };
        if self.at - self.since >= GAIN {
            self.resumes = 0;
        }
        let error = self.registry.broken(&self.what(), &sending.origin, broken);
        self.pause(error).await
    }

    /// Waits before the next try, if there is one.
    async fn pause(&mut self, error: ImageError) -> Result<(), ImageError> {
        self.resumes += 1;
        if self.resumes > MAX_RESUMES {
            return Err(error);
        }
        tracing::info!(%error, at = self.at, "a connection broke: its layer is taken up again");
        tokio::time::sleep(self.registry.patience.pause(self.resumes - 1)).await;
        Ok(())
    }

    /// Asks for what is missing. A registry that cannot be reached at once may be so soon, unless it never could.
    async fn reconnect(&mut self) -> Result<(), ImageError> {
        match self.connect().await {
            Err(error @ ImageError::RegistryUnavailable { .. }) if self.resumes > 0 => {
                self.pause(error).await
            }
            connected => connected,
        }
    }

    async fn connect(&mut self) -> Result<(), ImageError> {
        let (what, size) = (self.what(), self.descriptor.size);
        let is_part = self.at > 0 || self.end < size;
        let name = self.descriptor.digest.to_string();
        let range = is_part.then_some((self.at, self.end.max(1) - 1));
        let wanted = Wanted { what: &what, method: &Method::GET, kind: "blobs", name: &name, range };
        let answered = self.registry.ask(wanted).await?;
        let refused = |reason: String| Err(self.registry.content(&what, reason));
        let offered = answered.response.body().size_hint().exact();
        let (skip, to_end) = if answered.response.status() == StatusCode::PARTIAL_CONTENT {
            let part = super::text(answered.response.headers(), header::CONTENT_RANGE.as_str());
            match part.as_deref().and_then(content_range) {
                Some((first, last, total))
                    if is_part && first == self.at && last < self.end && total == size =>
                {
                    (0, last + 1 == size)
                }
                _ => {
                    return refused(format!(
                        "{part:?} was sent, and {range:?} of {size} bytes was asked for"
                    ));
                }
            }
        } else {
            if offered.is_some_and(|offered| offered != size) {
                let offered = offered.unwrap_or_default();
                return refused(format!("{offered} bytes are offered, and the manifest says {size}"));
            }
            (self.at, true)
        };
        self.since = self.at;
        self.sending =
            Some(Sending { origin: answered.origin, body: answered.response.into_body(), skip, to_end });
        Ok(())
    }
}

fn length(data: &Bytes) -> u64 {
    u64::try_from(data.len()).unwrap_or(u64::MAX)
}

/// First byte, last byte and size of a `Content-Range` (RFC 9110 section 14.4).
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (part, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = part.split_once('-')?;
    let (first, last, total) = (first.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
    (first <= last && last < total).then_some((first, last, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_strictly() {
        assert_eq!(content_range("bytes 0-9/10"), Some((0, 9, 10)));
        for bad in
            ["bytes 0-10/10", "bytes 9-0/10", "bytes */10", "bytes 0-9/*", "0-9/10", "bytes -1-9/10", ""]
        {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
