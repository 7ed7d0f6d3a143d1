//! The one thread that deletes and syncs for the image store while nobody waits. It sleeps until there is work, and
//! ends with the store.

use std::sync::Weak;
use std::sync::mpsc::Receiver;

use super::collect::{self, Spare};
use super::stage;
use super::store::Store;
use super::{ImageError, stage::Kept};

/// Work for the thread.
#[derive(Debug)]
pub(super) enum Job {
    /// Delete what lies in the trash.
    EmptyTrash,
    /// Look for layers that nobody needs any more.
    Collect,
    /// Make a whole layer of a pull that was cut off visible, for its next try.
    Keep(Kept),
}

/// Starts the thread.
pub(super) fn start(store: Weak<Store>, jobs: Receiver<Job>) -> Result<(), ImageError> {
    let run = move || {
        for job in jobs {
            let Some(store) = store.upgrade() else { return };
            if let Err(error) = work(&store, job) {
                tracing::warn!(%error, "the image store could not be tidied; it is tried again with the next change");
            }
        }
    };
    let started = std::thread::Builder::new().name("images".to_owned()).spawn(run);
    started.map(drop).map_err(|error| ImageError::store("start the background thread of", "images", error))
}

fn work(store: &Store, job: Job) -> Result<(), ImageError> {
    match job {
        Job::EmptyTrash => store.layout.empty_trash(),
        Job::Collect => collect::collect(store, Spare::KeptLayers)?,
        Job::Keep(kept) => stage::keep(store, kept)?,
    }
    Ok(())
}
