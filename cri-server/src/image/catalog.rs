//! What readers see: whole images that have not been removed, found by name, id or prefix. Made anew with each change,
//! never changed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::reference::{self, Reference};
use super::store::Index;
use super::{Image, ImageError};

/// Images by every name that they have.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    /// By the digits of the id.
    by_id: BTreeMap<String, Arc<Image>>,
    /// By tag and by digest reference.
    by_name: HashMap<String, Arc<Image>>,
    /// Bytes of all layers, those of removed images that are still in use among them.
    pub(super) used_bytes: u64,
    /// Inodes of all layers.
    pub(super) inodes_used: u64,
}

impl Catalog {
    /// What `index` says.
    pub(super) fn new(index: &Index) -> Self {
        let mut catalog = Self::default();
        for (id, entry) in index.images.iter().filter(|(_, entry)| !entry.record.removed) {
            for name in entry.image.repo_tags.iter().chain(&entry.image.repo_digests) {
                catalog.by_name.insert(name.clone(), entry.image.clone());
            }
            catalog.by_id.insert(id.hex().to_owned(), entry.image.clone());
        }
        catalog.used_bytes = index.layers.values().map(|layer| layer.size).sum();
        catalog.inodes_used = index.layers.values().map(|layer| layer.inodes).sum();
        catalog
    }

    /// Every image, each once.
    pub(super) fn all(&self) -> Vec<Arc<Image>> {
        self.by_id.values().cloned().collect()
    }

    /// Whether the image with this whole id is there.
    pub(super) fn contains(&self, id: &str) -> bool {
        reference::id_digits(id).is_some_and(|digits| self.by_id.contains_key(digits))
    }

    /// The image that `text` names: by whole id, name, or a prefix of exactly one id.
    pub(super) fn find(&self, text: &str) -> Result<Option<&Arc<Image>>, ImageError> {
        let digits = reference::id_digits(text);
        if reference::is_whole_id(text) {
            return Ok(digits.and_then(|digits| self.by_id.get(digits)));
        }
        if let Ok(reference) = Reference::parse(text)
            && let Some(image) = self.by_name.get(&reference.to_string())
        {
            return Ok(Some(image));
        }
        let Some(digits) = digits else { return Ok(None) };
        let mut matching = self.by_id.range(digits.to_owned()..).take_while(|(id, _)| id.starts_with(digits));
        let first = matching.next().map(|(_, image)| image);
        match matching.count() {
            0 => Ok(first),
            more => Err(ImageError::Ambiguous { prefix: text.to_owned(), count: more + 1 }),
        }
    }
}
