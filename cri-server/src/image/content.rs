//! Compares what the files of a layer hold with its diff ID, by making its archive again: the only way to find a bit that
//! flipped within a file. Changes nothing. For a thread that may wait: it reads all of a layer.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cove_layer::{Digest, RebuildError};

use super::export::OLDER;
use super::progress::{LayerProgress, LayerState, Progress};
use super::record::{self, Headers, LayerRecord};
use super::store::Store;

/// What a look at the content of a layer tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// It is what was unpacked; or nobody waits for the answer any more.
    Same,
    /// What is wrong.
    Damaged(String),
    /// Why nobody can say.
    Unknown(String),
}

/// Who waits for a look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) progress: &'a Progress,
    /// Nobody, once this is true.
    pub(super) is_over: &'a AtomicBool,
}

/// Looks at one layer that is otherwise sound.
pub(super) fn look(store: &Store, layer: &Digest, reader: &Reader<'_>) -> Content {
    let record: LayerRecord = match record::read(&store.layout.layer_record(layer)) {
        Ok(record) => record,
        Err(error) => return Content::Damaged(error.to_string()),
    };
    let size = match record.headers {
        Headers::Kept { archive, .. } => archive,
        Headers::Ours => return Content::Same,
        Headers::Unknown => return Content::Damaged(OLDER.to_owned()),
        Headers::Lost => {
            let reason = "its content cannot be compared: its archive names a path twice, and only what came last is kept";
            return Content::Unknown(reason.to_owned());
        }
    };
    let progress = Arc::new(LayerProgress::new(layer.to_string(), size));
    reader.progress.layer(progress.clone());
    progress.set(LayerState::Reading);
    let rebuilt = match File::open(store.layout.layer_headers(layer)) {
        Ok(headers) => {
            let sink = Sink { progress: &progress, is_over: reader.is_over };
            cove_layer::rebuild(headers, &store.layout.layer_files(layer), sink)
        }
        Err(error) => Err(RebuildError::Headers(error)),
    };
    match rebuilt {
        Ok(rebuilt) if rebuilt.diff_id == *layer => {
            progress.set(LayerState::Done);
            Content::Same
        }
        Ok(rebuilt) => {
            Content::Damaged(format!("a file of it is damaged: its content has digest {}", rebuilt.diff_id))
        }
        Err(RebuildError::Sink(_)) => Content::Same,
        Err(error) => Content::Damaged(error.to_string()),
    }
}

/// Counts what comes, and takes no more once nobody waits.
struct Sink<'a> {
    progress: &'a LayerProgress,
    is_over: &'a AtomicBool,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_over.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.progress.add(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
