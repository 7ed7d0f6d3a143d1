//! Looks whether what lies on disk is what the records say: documents by their digests, layers by how many inodes and bytes
//! they have; and, if asked for, by their content. Changes nothing. For a thread that may wait.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cove_layer::Digest;
use cove_path::{PathError, Tree};
use rustix::fs::{AtFlags, FileType, statat};

use super::bounds::Bounds;
use super::content::{self, Content, Reader};
use super::layout::Layout;
use super::lease::Pins;
use super::manifest::{self, OCI_MANIFEST, Parsed};
use super::record::{self, Headers, LayerRecord, Record};
use super::store::Store;
use super::{ImageError, sha256};

/// Something that is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The image's id; empty: a layer that no image needs.
    pub image: String,
    /// A name of the image, if it has one.
    pub name: String,
    /// `record`, `config`, `manifest`, or a layer.
    pub part: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What a look through the store tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// What is damaged.
    pub findings: Vec<Finding>,
    /// Layers whose content cannot be compared, which no pull would change.
    pub unknown: Vec<Finding>,
}

/// An image as its record has it, listed or not.
#[derive(Debug, Clone)]
pub(super) struct Recorded {
    pub(super) id: Digest,
    pub(super) record: Record,
    /// With the fix-up layer.
    pub(super) layers: Vec<Digest>,
}

impl Recorded {
    /// The layer that Cove made on top of its own.
    fn fix_up(&self) -> Option<Digest> {
        self.record.fix_up.as_ref()?.parse().ok()
    }
}

/// Everything that is damaged. With a `reader` the files of layers are read, too.
pub(super) fn check(store: &Arc<Store>, reader: Option<&Reader<'_>>) -> Checked {
    let (recorded, mut findings) = recorded(store);
    let known: BTreeSet<Digest> = store.index().layers.keys().cloned().collect();
    let needed: BTreeSet<Digest> = recorded.iter().flat_map(|image| image.layers.iter().cloned()).collect();
    let fix_ups: HashSet<Digest> = recorded.iter().filter_map(Recorded::fix_up).collect();
    let (mut damaged, mut unknown) = (BTreeMap::new(), BTreeMap::new());
    for layer in known.union(&needed) {
        // Of an older version's layer that no image needs nobody knows whether it had an archive.
        let has_archive = needed.contains(layer) && !fix_ups.contains(layer);
        match look(store, layer, reader.filter(|_| has_archive)) {
            Content::Same => {}
            Content::Damaged(reason) => drop(damaged.insert(layer, reason)),
            Content::Unknown(reason) => drop(unknown.insert(layer, reason)),
        }
    }
    let mut beyond = Vec::new();
    for image in &recorded {
        let finding = |part: String, reason: String| Finding {
            image: image.id.to_string(),
            name: name(&image.record),
            part,
            reason,
        };
        findings
            .extend(document_faults(store, image).into_iter().map(|(part, reason)| finding(part, reason)));
        let mut seen = HashSet::new();
        let layers = image.layers.iter().filter(|layer| seen.insert(*layer));
        for layer in layers {
            let told = |reason: &String| finding(format!("layer {layer}"), reason.clone());
            findings.extend(damaged.get(layer).map(told));
            beyond.extend(unknown.get(layer).map(told));
        }
    }
    for (layer, reason) in damaged {
        // It may have been collected while it was looked at.
        if !needed.contains(layer) && store.index().layers.contains_key(layer) {
            let part = format!("layer {layer}");
            findings.push(Finding { image: String::new(), name: String::new(), part, reason });
        }
    }
    let ids: HashSet<String> = recorded.iter().map(|image| image.id.to_string()).collect();
    let is_removed = |finding: &Finding| {
        ids.contains(&finding.image) && finding.image.parse().is_ok_and(|id| !is_known(store, &id))
    };
    findings.retain(|finding| !is_removed(finding));
    beyond.retain(|finding| !is_removed(finding));
    Checked { findings, unknown: beyond }
}

/// Looks at one layer. It is kept while its files are read.
fn look(store: &Arc<Store>, layer: &Digest, reader: Option<&Reader<'_>>) -> Content {
    let _pin = reader.map(|_| Pins::new(store.clone(), std::slice::from_ref(layer)));
    match (layer_fault(&store.layout, layer), reader) {
        (Some(fault), _) => Content::Damaged(fault),
        (None, Some(reader)) => content::look(store, layer, reader),
        (None, None) => Content::Same,
    }
}

/// One image, and which of its layers are damaged.
pub(super) fn damaged(
    store: &Arc<Store>,
    id: &Digest,
    reader: Option<&Reader<'_>>,
) -> Result<(Recorded, HashSet<Digest>), ImageError> {
    let (recorded, _) = recorded(store);
    let image = recorded.into_iter().find(|image| image.id == *id);
    let image = image.ok_or_else(|| ImageError::NotFound { reference: id.to_string() })?;
    let fix_up = image.fix_up();
    let is_damaged = |layer: &&Digest| {
        let reader = reader.filter(|_| Some(*layer) != fix_up.as_ref());
        matches!(look(store, layer, reader), Content::Damaged(_))
    };
    let distinct: BTreeSet<&Digest> = image.layers.iter().collect();
    let damaged = distinct.into_iter().filter(is_damaged).cloned().collect();
    Ok((image, damaged))
}

fn name(record: &Record) -> String {
    record.repo_tags.iter().chain(&record.repo_digests).next().cloned().unwrap_or_default()
}

/// Every image that is not removed, from its record on disk, and the records that cannot be read.
fn recorded(store: &Store) -> (Vec<Recorded>, Vec<Finding>) {
    let (known, unreadable) = {
        let index = store.index();
        let listed = index.images.iter().filter(|(_, entry)| !entry.record.removed);
        let listed = listed.map(|(id, entry)| (id.clone(), Some(entry.record.clone())));
        let known: Vec<_> = listed.chain(index.incomplete.keys().map(|id| (id.clone(), None))).collect();
        (known, index.unreadable.iter().cloned().collect::<Vec<_>>())
    };
    let mut found = Vec::new();
    let mut findings: Vec<Finding> = unreadable.iter().map(|path| unusable(path, "cannot be read")).collect();
    for (id, in_memory) in known {
        let path = store.layout.record(&id);
        let record = match record::read::<Record>(&path) {
            Ok(record) => Some(record),
            // Removed at this moment.
            Err(_) if !is_known(store, &id) => None,
            Err(error) => {
                findings.push(unusable(&path, &error.to_string()));
                in_memory
            }
        };
        if let Some(record) = record {
            let texts = record.layers.iter().chain(&record.fix_up);
            let layers = texts.filter_map(|layer| layer.parse().ok()).collect();
            found.push(Recorded { id, record, layers });
        }
    }
    (found, findings)
}

fn is_known(store: &Store, id: &Digest) -> bool {
    let index = store.index();
    index.incomplete.contains_key(id) || index.images.get(id).is_some_and(|entry| !entry.record.removed)
}

fn unusable(path: &Path, reason: &str) -> Finding {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    Finding {
        image: format!("sha256:{stem}"),
        name: String::new(),
        part: "record".to_owned(),
        reason: reason.to_owned(),
    }
}

fn document_faults(store: &Store, image: &Recorded) -> Vec<(String, String)> {
    let kept = match store.layout.read_documents(&image.id) {
        Ok(Some(kept)) => kept,
        Ok(None) => return vec![("config".to_owned(), "is not there".to_owned())],
        Err(error) => return vec![("config".to_owned(), error.to_string())],
    };
    let mut faults = Vec::new();
    if let Err(reason) = manifest::verify_digest(&image.id, &kept.config) {
        faults.push(("config".to_owned(), reason));
    }
    let reason = match (&image.record.manifest, &kept.manifest) {
        (None, _) => None,
        (Some(_), None) => Some("is not there".to_owned()),
        (Some(digest), Some(bytes)) if sha256(bytes).as_str() != digest => {
            Some(format!("its digest is {}, and {digest} was kept", sha256(bytes)))
        }
        (Some(_), Some(bytes)) => match manifest::parse(bytes, None, &Bounds::default())
            .or_else(|_| manifest::parse(bytes, Some(OCI_MANIFEST), &Bounds::default()))
        {
            Ok(Parsed::Manifest(manifest)) if manifest.config.digest == image.id => None,
            _ => Some("is not that of this image".to_owned()),
        },
    };
    faults.extend(reason.map(|reason| ("manifest".to_owned(), reason)));
    faults
}

/// What is wrong with a layer.
fn layer_fault(layout: &Layout, layer: &Digest) -> Option<String> {
    let files = layout.layer_files(layer);
    let record: LayerRecord = match record::read(&layout.layer_record(layer)) {
        Ok(record) => record,
        Err(error) => return Some(error.to_string()),
    };
    if let Headers::Kept { bytes, .. } = record.headers
        && let Some(fault) = headers_fault(&layout.layer_headers(layer), bytes)
    {
        return Some(fault);
    }
    let counted = match count(&files) {
        Ok(counted) => counted,
        Err(error) => return Some(error.to_string()),
    };
    let below = record.below?;
    if counted.inodes != below {
        return Some(format!("has {} inodes, and {below} were unpacked", counted.inodes));
    }
    (counted.bytes != record.size)
        .then(|| format!("its files have {} bytes, and {} were unpacked", counted.bytes, record.size))
}

/// What is wrong with what is left of a layer's archive, as far as its length tells.
fn headers_fault(path: &Path, bytes: u64) -> Option<String> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() == bytes => None,
        Ok(metadata) if metadata.is_file() => {
            Some(format!("its tar headers have {} bytes, and {bytes} were kept", metadata.len()))
        }
        Ok(_) => Some("its tar headers are no file".to_owned()),
        Err(error) => Some(format!("its tar headers: {error}")),
    }
}

#[derive(Default)]
struct Counted {
    inodes: u64,
    bytes: u64,
}

/// Inodes below a directory, each once, and the bytes of regular files. Follows nothing.
fn count(files: &Path) -> Result<Counted, PathError> {
    let tree = Tree::open(files)?;
    let (mut counted, mut linked) = (Counted::default(), HashSet::new());
    let mut next = vec![PathBuf::from(".")];
    while let Some(directory) = next.pop() {
        let opened = tree.dir(&directory)?;
        for name in opened.list(Path::new("."))? {
            let path = directory.join(&name);
            let stat = statat(opened.as_fd(), &name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| PathError::Call { doing: "stat", path: path.clone(), errno })?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Directory {
                next.push(path);
            } else if stat.st_nlink > 1 && !linked.insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            counted.inodes += 1;
            if kind == FileType::RegularFile {
                counted.bytes = counted.bytes.saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
            }
        }
    }
    Ok(counted)
}
