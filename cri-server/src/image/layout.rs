//! Where images lie on disk, below one directory:
//!
//! ```text
//! layers/DIFF-ID/fs          files of a layer; layers/DIFF-ID/layer.json what they take
//! layers/DIFF-ID/tar-headers what is left of its archive without its files: with them it is made again
//! records/IMAGE-ID.json      one image
//! documents/IMAGE-ID/        its config and its manifest, byte for byte
//! tmp/N                      layers that are being unpacked
//! trash/N                    what is being deleted
//! ```
//!
//! What lies in `layers` and in `documents` is whole and synced: it came there by rename. Knows nothing of who uses what.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use cove_layer::Digest;

use super::ImageError;
use super::record::{self, LayerRecord};

/// Nobody but root looks at the files of images: they hold setuid programs.
const MODE: u32 = 0o700;

/// Beside the files of a layer: what they take.
pub(super) const RECORD: &str = "layer.json";
/// Beside the files of a layer: what is left of its archive.
pub(super) const HEADERS: &str = "tar-headers";

/// Of an image's documents.
const CONFIG: &str = "config.json";
/// See [`CONFIG`].
const MANIFEST: &str = "manifest.json";
/// Larger than a document can be by any sensible `image_limits.document_bytes`.
const MAX_DOCUMENT: u64 = 256 << 20;

/// What an image was made from, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Documents {
    /// Its digest is the image's id.
    pub(super) config: Vec<u8>,
    /// The manifest that led to it; an archive of `docker save` has none.
    pub(super) manifest: Option<Vec<u8>>,
}

impl Documents {
    /// Bytes of all.
    pub(super) fn len(&self) -> u64 {
        let manifest = self.manifest.as_ref().map_or(0, Vec::len);
        u64::try_from(self.config.len() + manifest).unwrap_or(u64::MAX)
    }
}

/// The directories, and the names that were given in `tmp` and `trash`.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
    next: AtomicU64,
}

impl Layout {
    /// Makes the directories that are missing, and moves what an earlier daemon left half-done into the trash.
    pub(super) fn open(root: PathBuf) -> Result<Self, ImageError> {
        let layout = Self { root, next: AtomicU64::new(0) };
        for directory in [
            layout.root.clone(),
            layout.layers(),
            layout.records(),
            layout.documents(),
            layout.tmp(),
            layout.trash(),
        ] {
            DirBuilder::new()
                .recursive(true)
                .mode(MODE)
                .create(&directory)
                .map_err(|error| ImageError::store("create directory", &directory, error))?;
        }
        let first = names(&layout.trash())?.into_iter().filter_map(|name| name.parse::<u64>().ok()).max();
        layout.next.store(first.map_or(0, |last| last + 1), Ordering::Relaxed);
        for name in names(&layout.tmp())? {
            layout.discard(&layout.tmp().join(name))?;
        }
        Ok(layout)
    }

    /// The directory of everything.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where every layer lies.
    pub(super) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Where records lie.
    pub(super) fn records(&self) -> PathBuf {
        self.root.join("records")
    }

    fn documents(&self) -> PathBuf {
        self.root.join("documents")
    }

    fn documents_of(&self, id: &Digest) -> PathBuf {
        self.documents().join(id.hex())
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Where things lie that are being deleted.
    pub(super) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// The record of an image.
    pub(super) fn record(&self, id: &Digest) -> PathBuf {
        self.records().join(format!("{}.json", id.hex()))
    }

    /// The directory of a layer.
    fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(diff_id.hex())
    }

    /// The files of a layer: what an overlay takes.
    pub(super) fn layer_files(&self, diff_id: &Digest) -> PathBuf {
        self.layer(diff_id).join("fs")
    }

    /// What is left of a layer's archive beside its files.
    pub(super) fn layer_headers(&self, diff_id: &Digest) -> PathBuf {
        self.layer(diff_id).join(HEADERS)
    }

    /// The record of a layer.
    pub(super) fn layer_record(&self, diff_id: &Digest) -> PathBuf {
        self.layer(diff_id).join(RECORD)
    }

    /// Every layer that lies there with a readable record. What is not readable counts as absent and is kept until a pull
    /// replaces it.
    pub(super) fn find_layers(&self) -> Result<Vec<(Digest, LayerRecord)>, ImageError> {
        let mut found = Vec::new();
        for name in names(&self.layers())? {
            let Some(diff_id) = diff_id(&name) else {
                tracing::warn!(layer = name, "an entry of the layer directory is no layer: left alone");
                continue;
            };
            match read_layer(&self.layer(&diff_id)) {
                Ok(layer) => found.push((diff_id, layer)),
                Err(error) => {
                    tracing::warn!(layer = %diff_id, %error, "a layer is damaged: the next pull replaces it")
                }
            }
        }
        Ok(found)
    }

    /// Names of the files in `records`.
    pub(super) fn record_names(&self) -> Result<Vec<String>, ImageError> {
        names(&self.records())
    }

    /// What is kept of an image's documents. What is missing or no file counts as not kept.
    pub(super) fn read_documents(&self, id: &Digest) -> Result<Option<Documents>, ImageError> {
        let read = |name| read_document(&self.documents_of(id).join(name));
        Ok(match read(CONFIG)? {
            Some(config) => Some(Documents { config, manifest: read(MANIFEST)? }),
            None => None,
        })
    }

    /// Writes an image's documents where nobody looks for them.
    pub(super) fn stage_documents(&self, documents: &Documents) -> Result<PathBuf, ImageError> {
        let stage = self.tmp().join(self.number());
        let write = |name, bytes: &[u8]| fs::write(stage.join(name), bytes);
        DirBuilder::new()
            .mode(MODE)
            .create(&stage)
            .and_then(|()| write(CONFIG, &documents.config))
            .and_then(|()| documents.manifest.iter().try_for_each(|manifest| write(MANIFEST, manifest)))
            .map_err(|error| ImageError::store("write documents", &stage, error))?;
        Ok(stage)
    }

    /// Makes staged, synced documents those of an image.
    pub(super) fn publish_documents(&self, stage: &Path, id: &Digest) -> Result<(), ImageError> {
        let target = self.documents_of(id);
        self.discard(&target)?;
        fs::rename(stage, &target).map_err(|error| ImageError::store("publish documents", &target, error))?;
        record::sync_parent(&target)
    }

    /// Takes an image's documents out of sight.
    pub(super) fn discard_documents(&self, id: &Digest) -> Result<(), ImageError> {
        self.discard(&self.documents_of(id))
    }

    /// Takes the documents out of sight that belong to none of these records.
    pub(super) fn discard_lost_documents(&self, records: &[String]) -> Result<(), ImageError> {
        for name in names(&self.documents())? {
            if !records.iter().any(|record| record.strip_suffix(".json") == Some(&name)) {
                self.discard(&self.documents().join(name))?;
            }
        }
        Ok(())
    }

    /// A new directory for a layer that is being unpacked, with `fs` in it.
    pub(super) fn stage(&self) -> Result<PathBuf, ImageError> {
        let stage = self.tmp().join(self.number());
        let files = stage.join("fs");
        let create = |path: &Path, mode| DirBuilder::new().mode(mode).create(path);
        create(&stage, MODE)
            .and_then(|()| create(&files, 0o755))
            .map_err(|error| ImageError::store("create directory", &files, error))?;
        Ok(stage)
    }

    /// Makes everything that was written below the root survive a power loss.
    pub(super) fn sync(&self) -> Result<(), ImageError> {
        let synced = fs::File::open(&self.root).and_then(|root| Ok(rustix::fs::syncfs(&root)?));
        synced.map_err(|error| ImageError::store("sync the disk of", &self.root, error))
    }

    /// Makes a staged, synced layer visible. Whether something lay there in its place, which was damaged.
    pub(super) fn publish(&self, stage: &Path, diff_id: &Digest) -> Result<bool, ImageError> {
        let target = self.layer(diff_id);
        let was_there = target.symlink_metadata().is_ok();
        if was_there {
            self.discard(&target)?;
        }
        fs::rename(stage, &target).map_err(|error| ImageError::store("publish layer", &target, error))?;
        Ok(was_there)
    }

    /// Gives a layer whose record was damaged, and whose files containers run from, the record of a staged, synced one of the
    /// same content, and what is left of its archive. Its own files stay.
    pub(super) fn publish_record(&self, stage: &Path, diff_id: &Digest) -> Result<(), ImageError> {
        // The record last: it says what else there is.
        for name in [HEADERS, RECORD] {
            let (new, target) = (stage.join(name), self.layer(diff_id).join(name));
            // A directory in its place could not be replaced by a file.
            self.discard(&target)?;
            match fs::rename(&new, &target) {
                Err(error) if name == HEADERS && error.kind() == io::ErrorKind::NotFound => {}
                renamed => {
                    renamed.map_err(|error| ImageError::store("publish record", &target, error))?;
                }
            }
            record::sync_parent(&target)?;
        }
        self.discard(stage)
    }

    /// Makes the names of published layers survive a power loss.
    pub(super) fn sync_layers(&self) -> Result<(), ImageError> {
        record::sync_parent(&self.layers().join("x"))
    }

    /// Takes a layer out of sight.
    pub(super) fn discard_layer(&self, diff_id: &Digest) -> Result<(), ImageError> {
        self.discard(&self.layer(diff_id))
    }

    /// Moves something into the trash. What is not there is gone already.
    pub(super) fn discard(&self, path: &Path) -> Result<(), ImageError> {
        match fs::rename(path, self.trash().join(self.number())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::store("move to trash", path, error))
            }
            _ => Ok(()),
        }
    }

    /// Deletes what lies in the trash. Slow: for a thread that may wait. What cannot be deleted is tried again by the next
    /// call.
    pub(super) fn empty_trash(&self) {
        let entries = names(&self.trash()).unwrap_or_else(|error| {
            tracing::warn!(%error, "the trash cannot be read");
            Vec::new()
        });
        for name in entries {
            let path = self.trash().join(name);
            let removed = match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_file(&path),
                Err(error) => Err(error),
            };
            if let Err(error) = removed
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(?path, %error, "an entry of the trash cannot be deleted");
            }
        }
    }

    fn number(&self) -> String {
        self.next.fetch_add(1, Ordering::Relaxed).to_string()
    }
}

/// The layer that an entry of the layers' directory is called by.
pub(super) fn diff_id(name: &str) -> Option<Digest> {
    let algorithm = if name.len() == 128 { "sha512" } else { "sha256" };
    format!("{algorithm}:{name}").parse().ok()
}

/// What the layer in `directory` takes; an error says that it is not whole.
pub(super) fn read_layer(directory: &Path) -> Result<LayerRecord, String> {
    let layer = record::read(&directory.join(RECORD)).map_err(|error| error.to_string())?;
    match directory.join("fs").symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(layer),
        Ok(_) => Err("its files are no directory".to_owned()),
        Err(error) => Err(format!("its files: {error}")),
    }
}

fn read_document(path: &Path) -> Result<Option<Vec<u8>>, ImageError> {
    let failed = |error| ImageError::store("read document", path, error);
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() <= MAX_DOCUMENT => {
            fs::read(path).map(Some).map_err(failed)
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(None),
    }
}

fn names(directory: &Path) -> Result<Vec<String>, ImageError> {
    let read = || -> io::Result<Vec<String>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    read().map_err(|error| ImageError::store("read directory", directory, error))
}
