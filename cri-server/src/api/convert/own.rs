//! Images and their progress on the wire of Cove's own command line.

use cove_layer::Digest;

use super::super::own as wire;
use super::field::no_control;
use crate::error::Error;
use crate::image::{Checked, Finding, Image, LayerNow, LayerState, Progress};

/// The longest reference: see `convert::image`.
const MAX_REFERENCE: usize = 1024;

/// A name of an image that a request has in this field.
pub(in crate::api) fn reference(field: &'static str, text: String) -> Result<String, Error> {
    if text.is_empty() || text.len() > MAX_REFERENCE {
        return Err(Error::invalid(field, format!("must have 1 to {MAX_REFERENCE} bytes")));
    }
    no_control(field, &text)?;
    Ok(text)
}

/// Diff IDs that a request asks after.
pub(in crate::api) fn diff_ids(texts: &[String]) -> Result<Vec<Digest>, Error> {
    let parse = |text: &String| {
        text.parse()
            .map_err(|_| Error::invalid("diff_ids", "has something that is no sha256 or sha512 digest"))
    };
    texts.iter().map(parse).collect()
}

/// An image.
pub(in crate::api) fn image(image: &Image) -> wire::Image {
    wire::Image {
        id: image.id.clone(),
        tags: image.repo_tags.clone(),
        digests: image.repo_digests.clone(),
        size: image.size,
        pinned: image.pinned,
    }
}

/// How far something is.
pub(in crate::api) fn progress(progress: &Progress) -> wire::Progress {
    wire::Progress {
        subject: progress.subject().to_owned(),
        milliseconds: u64::try_from(progress.age().as_millis()).unwrap_or(u64::MAX),
        layers: progress.layers().into_iter().map(layer).collect(),
    }
}

fn layer(LayerNow { name, size, bytes, state }: LayerNow) -> wire::Layer {
    let state = match state {
        LayerState::Waiting => wire::LayerState::Waiting,
        LayerState::Arriving => wire::LayerState::Arriving,
        LayerState::Done => wire::LayerState::Done,
        LayerState::Present => wire::LayerState::Present,
        LayerState::Reading => wire::LayerState::Reading,
    };
    wire::Layer { name, size, bytes, state: state.into() }
}

/// The images that came of it.
pub(in crate::api) fn finished<I: std::ops::Deref<Target = Image>>(images: &[I]) -> wire::Finished {
    wire::Finished { images: images.iter().map(|one| image(one)).collect() }
}

/// What a look through the store tells.
pub(in crate::api) fn checked(Checked { findings, unknown }: Checked) -> wire::Checked {
    let all = |list: Vec<Finding>| list.into_iter().map(finding).collect();
    wire::Checked { findings: all(findings), unknown: all(unknown) }
}

fn finding(Finding { image, name, part, reason }: Finding) -> wire::Finding {
    wire::Finding { image, name, part, reason }
}
