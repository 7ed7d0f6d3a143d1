//! Records of images on disk: one header line with version and checksum, then JSON that a person can read. Written to
//! a temporary name, synced, renamed: a reader sees a whole record or none.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ImageConfig, ImageError, sha256};

/// Version of what is written. A daemon reads its own and older ones; a newer one is left alone.
const VERSION: u32 = 1;
/// First word of the header line.
const MAGIC: &str = "cove-image-record";
/// Larger than any record can become (a config is at most 4 MiB).
const MAX_RECORD: u64 = 16 * 1024 * 1024;

/// One image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Digest of the config.
    pub(super) id: String,
    /// Grows with each record that is written: a name in two records belongs to the later one.
    pub(super) sequence: u64,
    /// Its names are gone, and containers still use it: not listed.
    pub(super) removed: bool,
    /// `registry/name:tag`.
    pub(super) repo_tags: Vec<String>,
    /// `registry/name@digest`.
    pub(super) repo_digests: Vec<String>,
    /// Diff IDs, the undermost first.
    pub(super) layers: Vec<String>,
    /// The layer on top of them that Cove made itself, if it was needed.
    pub(super) fix_up: Option<String>,
    /// Bytes of manifest and config.
    pub(super) document_bytes: u64,
    /// Never collected: it was imported so.
    #[serde(default)]
    pub(super) pinned: bool,
    /// Digest of the manifest that is kept beside its config, if one is.
    #[serde(default)]
    pub(super) manifest: Option<String>,
    /// What it says of containers.
    pub(super) config: ImageConfig,
}

/// What a layer takes. Lies beside its files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    /// Bytes of its files.
    pub(super) size: u64,
    /// Its inodes.
    pub(super) inodes: u64,
    /// Its root hides all that lies below, which an overlay does not see for itself.
    pub(super) is_opaque: bool,
    /// Directories that no entry of the layer named, relative to its root: the image decides what they look like
    /// (design.md decision 8). Base64, since a path is bytes.
    pub(super) implicit: Vec<String>,
    /// The digest of the blob that it was unpacked from: who brings the same blob brings the same layer.
    #[serde(default)]
    pub(super) blob: Option<String>,
    /// How many inodes lie below its root, and that its files have `size` bytes in all; `None`: nobody knows.
    #[serde(default)]
    pub(super) below: Option<u64>,
    /// What is left of its archive beside its files.
    #[serde(default)]
    pub(super) headers: Headers,
}

impl LayerRecord {
    /// Bytes of its files and of what is kept beside them.
    pub(super) fn taken(&self) -> u64 {
        match self.headers {
            Headers::Kept { bytes, .. } => self.size.saturating_add(bytes),
            Headers::Unknown | Headers::Ours | Headers::Lost => self.size,
        }
    }
}

/// Whether a layer's archive can be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Headers {
    /// It was unpacked by a version that kept nothing.
    #[default]
    Unknown,
    /// There was no archive: Cove made the layer itself.
    Ours,
    /// No: an entry took the place of an earlier one, whose content is gone.
    Lost,
    /// Yes, by what lies beside its files.
    Kept {
        /// Bytes of that.
        bytes: u64,
        /// Bytes of the archive.
        archive: u64,
    },
}

/// Writes a record and syncs it: on return it survives a power loss.
pub(super) fn write<T: Serialize>(path: &Path, record: &T) -> Result<(), ImageError> {
    let temporary = path.with_extension("new");
    let written = write_to(&temporary, record).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        // Nobody reads the temporary name, and the next start removes it: the first error is the one that counts.
        let _ = std::fs::remove_file(&temporary);
        return Err(ImageError::store("write record", path, error));
    }
    sync_parent(path)
}

/// Syncs the directory that `path` lies in.
pub(super) fn sync_parent(path: &Path) -> Result<(), ImageError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(|error| ImageError::store("sync", parent, error))
}

fn write_to<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&encode(record)?)?;
    file.sync_all()
}

fn encode<T: Serialize>(record: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec_pretty(record)?;
    let mut bytes = format!("{MAGIC} {VERSION} {}\n", sha256(&body)).into_bytes();
    bytes.extend_from_slice(&body);
    bytes.push(b'\n');
    Ok(bytes)
}

/// Writes a record that a later sync of the whole disk and a rename make safe.
pub(super) fn write_unsynced<T: Serialize>(path: &Path, record: &T) -> Result<(), ImageError> {
    encode(record)
        .and_then(|bytes| std::fs::write(path, bytes))
        .map_err(|error| ImageError::store("write", path, error))
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    /// The kernel's answer.
    #[error("{path:?} cannot be read: {source}")]
    Io {
        /// The record.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what was written, or was written by a later version.
    #[error("{path:?} {reason}")]
    Content {
        /// The record.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Reads a record and verifies it.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Unreadable> {
    let io = |source| Unreadable::Io { path: path.to_owned(), source };
    let content = |reason: String| Unreadable::Content { path: path.to_owned(), reason };
    if std::fs::symlink_metadata(path).map_err(io)?.len() > MAX_RECORD {
        return Err(content(format!("is larger than the limit of {MAX_RECORD} bytes")));
    }
    decode(&std::fs::read(path).map_err(io)?).map_err(content)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let end = bytes.iter().position(|b| *b == b'\n').ok_or("has no header")?;
    let header = std::str::from_utf8(&bytes[..end]).map_err(|_| "has no header")?;
    let body = bytes[end + 1..].strip_suffix(b"\n").ok_or("is cut off")?;
    let [MAGIC, version, digest] = header.split(' ').collect::<Vec<_>>()[..] else {
        return Err("has no header".to_owned());
    };
    if version.parse() != Ok(VERSION) {
        return Err(format!("has version {version}; this daemon reads {VERSION}"));
    }
    if sha256(body).to_string() != digest {
        return Err("does not have its checksum".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| format!("is not of its form: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            id: format!("sha256:{}", "0".repeat(64)),
            sequence: 7,
            removed: false,
            repo_tags: vec!["r.io/a:b".into()],
            repo_digests: Vec::new(),
            layers: Vec::new(),
            fix_up: None,
            document_bytes: 3,
            pinned: false,
            manifest: None,
            config: ImageConfig { user: "u".into(), ..ImageConfig::default() },
        }
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.json");
        write(&path, &record()).unwrap();
        assert_eq!(read::<Record>(&path).unwrap(), record());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");

        let good = std::fs::read(&path).unwrap();
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 1;
            assert!(decode::<Record>(&bad).is_err(), "flipped byte {position}");
            assert!(decode::<Record>(&good[..position]).is_err(), "cut at {position}");
        }
        assert!(read::<Record>(&directory.path().join("y.json")).is_err());
    }
}
