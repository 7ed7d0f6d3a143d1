//! Removal: every name of the image goes at once. Its record goes too, unless a container or a lease needs its layers;
//! then it stays without names until they are gone.

use cove_layer::Digest;

use super::ImageError;
use super::collect::{self, Spare};
use super::record;
use super::reference;
use super::store::{Index, Store};

/// Removes what `text` names; unknown is success. For threads that may wait.
pub(super) fn remove(store: &Store, text: &str) -> Result<(), ImageError> {
    let found = store.catalog().find(text)?.and_then(|image| image.id.parse::<Digest>().ok());
    {
        let _writer = store.writer();
        match found {
            Some(id) => remove_image(store, &id)?,
            None => remove_unlisted(store, text)?,
        }
    }
    collect::collect(store, Spare::Nothing)
}

fn remove_image(store: &Store, id: &Digest) -> Result<(), ImageError> {
    let used = {
        let mut index = store.index();
        let Some(entry) = index.images.get_mut(id).filter(|entry| !entry.record.removed) else {
            return Ok(());
        };
        entry.record.removed = true;
        let record = entry.record.clone();
        store.publish(&index);
        index.is_used(&record.id).then_some(record)
    };
    // Without a user there is nothing to write, so that a full disk can be made room on: collection deletes the record.
    let Some(mut record) = used else { return Ok(()) };
    record.repo_tags.clear();
    record.repo_digests.clear();
    let written = record::write(&store.layout.record(id), &record);
    let mut index = store.index();
    if let Some(entry) = index.images.get_mut(id) {
        match &written {
            Ok(()) => entry.record = record,
            // The disk still says that it is there, so it is.
            Err(_) => entry.record.removed = false,
        }
    }
    store.publish(&index);
    written
}

/// Removes the record of an image that is not listed: it lacks layers, or the record is damaged.
fn remove_unlisted(store: &Store, text: &str) -> Result<(), ImageError> {
    let id = reference::id_digits(text)
        .map(|digits| format!("sha256:{digits}"))
        .and_then(|id| id.parse::<Digest>().ok());
    let Some(id) = id else { return Ok(()) };
    let path = store.layout.record(&id);
    let is_unlisted = |index: &Index| index.incomplete.contains_key(&id) || index.unreadable.contains(&path);
    if !is_unlisted(&store.index()) {
        return Ok(());
    }
    store.discard(&path)?;
    store.layout.discard_documents(&id)?;
    let mut index = store.index();
    index.incomplete.remove(&id);
    index.unreadable.remove(&path);
    drop(index);
    record::sync_parent(&path)
}
