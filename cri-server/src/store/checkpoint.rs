//! Records on disk: versioned, checksummed JSON, written whole or not at all.
//!
//! A record is one line of header, `cove-record VERSION SHA256`, and a JSON document that a person can read. It is
//! written to a temporary name and takes the old one's place in one step. Not synced unless asked for: after a power
//! loss every container is dead anyway, and a record that is not whole is found out by its checksum.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::error::Error;

/// The version of the records that this source writes.
const VERSION: u32 = 1;
/// The largest record read, in bytes: far above what a container with 1 MiB of environment needs, far below what
/// would hurt at start-up.
const MAX_RECORD: u64 = 16 * 1024 * 1024;
/// First word of a record.
const MAGIC: &str = "cove-record";

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read or written.
    #[error("{doing} record {path:?}: {source}")]
    Io {
        /// Read, write, sync.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("record {path:?} cannot be used: {reason}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The record is on disk before what it describes is done; it need not survive a power loss, or it must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Renamed into place.
    Renamed,
    /// Synced as well.
    Synced,
}

/// What there is of an `identity.json` that is being written: an object's first record.
pub const UNFINISHED_IDENTITY: &str = "identity.new";

/// Where the record before the present one lies on, of which there are many in an object's life: the next one is written
/// over it, so that no file is made and removed for each. Whatever is in it is read by nobody.
const SPARE: &str = "spare";

/// Writes a record. Blocking.
pub fn write<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<(), RecordError> {
    let temporary = path.with_extension("new");
    write_by(&temporary, path, value, durability)?;
    // A left-over of the older record is of no use, and the next write takes its name.
    let _ = fs::remove_file(&temporary);
    Ok(())
}

/// Writes a record over the one before the last, whose file is kept for that. Blocking.
fn write_in_turn<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<(), RecordError> {
    write_by(&path.with_extension(SPARE), path, value, durability)
}

/// Writes a record to `temporary`, which has the older one afterwards, if there was one.
fn write_by<T: Serialize>(
    temporary: &Path,
    path: &Path,
    value: &T,
    durability: Durability,
) -> Result<(), RecordError> {
    let io = |doing| move |source| RecordError::Io { doing, path: path.to_owned(), source };
    let text = encode(value).map_err(io::Error::other).map_err(io("write"))?;
    let written = write_over(temporary, &text).and_then(|file| match durability {
        Durability::Renamed => Ok(()),
        Durability::Synced => file.sync_data(),
    });
    let placed = written.and_then(|()| place(temporary, path));
    if let Err(source) = placed {
        // What is left of a write that failed (a full disk) is of no use; the record before it stands.
        let _ = fs::remove_file(temporary);
        return Err(io("write")(source));
    }
    if durability == Durability::Synced {
        sync_parent(path).map_err(io("sync"))?;
    }
    Ok(())
}

/// Writes a file whole, over what it has. It is not emptied first, which would make ext4 write it to disk at once when it
/// is closed (see [`place`]).
fn write_over(path: &Path, text: &[u8]) -> io::Result<File> {
    let mut file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.write_all(text)?;
    let length = u64::try_from(text.len()).map_err(io::Error::other)?;
    if file.metadata()?.len() > length {
        file.set_len(length)?;
    }
    Ok(file)
}

/// Gives a written record its name. Where there is an older one the two change names: a rename over a file makes ext4
/// write the new one's data to disk at once (ext4(5), auto_da_alloc), milliseconds on a busy disk.
fn place(temporary: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, temporary, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        // No older one; or a file system that cannot exchange names (renameat2(2)).
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::rename(temporary, path),
        Err(error) => Err(error.into()),
    }
}

/// Reads a record; none if there is no such file. Blocking.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    let io = |source| RecordError::Io { doing: "read", path: path.to_owned(), source };
    let corrupt = |reason: String| RecordError::Corrupt { path: path.to_owned(), reason };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let size = file.metadata().map_err(io)?.len();
    if size > MAX_RECORD {
        return Err(corrupt(format!("{size} bytes are more than the {MAX_RECORD} that a record can have")));
    }
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_RECORD), &mut text).map_err(io)?;
    decode(&text).map(Some).map_err(corrupt)
}

/// Syncs a record that is there, and its name. Blocking.
pub fn sync(path: &Path) -> Result<(), RecordError> {
    let io = |source| RecordError::Io { doing: "sync", path: path.to_owned(), source };
    File::open(path).and_then(|file| file.sync_data()).map_err(io)?;
    sync_parent(path).map_err(io)
}

/// Removes a record; gone is done. Blocking.
pub fn erase(path: &Path) -> Result<(), RecordError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(RecordError::Io { doing: "remove", path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn encode<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    let body = serde_json::to_vec(value)?;
    let mut text = format!("{MAGIC} {VERSION} {}\n", checksum(&body)).into_bytes();
    text.extend_from_slice(&body);
    text.push(b'\n');
    Ok(text)
}

fn decode<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    let end = text.iter().position(|byte| *byte == b'\n').ok_or("it has no header line")?;
    let header = str::from_utf8(&text[..end]).map_err(|_| "its header is not text")?;
    let body = text[end + 1..].strip_suffix(b"\n").ok_or("its last byte is not a newline")?;
    let mut words = header.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(format!("it does not begin with {MAGIC}"));
    }
    match words.next().and_then(|word| word.parse::<u32>().ok()) {
        Some(VERSION) => {}
        Some(other) => return Err(format!("its version is {other}, and this daemon knows {VERSION}")),
        None => return Err("it has no version".to_owned()),
    }
    if words.next() != Some(&checksum(body)) {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn checksum(body: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(body).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// A state that is on disk before it is in force.
#[derive(Debug)]
pub struct Stored<S> {
    path: PathBuf,
    value: ArcSwap<S>,
    writer: Mutex<()>,
    /// What is in force is what is on disk.
    written: AtomicBool,
}

impl<S: Serialize + Clone + PartialEq> Stored<S> {
    /// A state whose record is at `path`; it is written with the first change, or what looks like one.
    pub fn new(path: PathBuf, value: S) -> Self {
        Self {
            path,
            value: ArcSwap::from_pointee(value),
            writer: Mutex::new(()),
            written: AtomicBool::new(false),
        }
    }

    /// The state in force. Takes no lock.
    pub fn get(&self) -> Arc<S> {
        self.value.load_full()
    }

    /// Changes the state: `change` makes the next one or refuses, the record is written, then it is in force and
    /// `publish` is called, in the order of the changes. What cannot be written does not come in force. Blocking.
    pub fn change<T>(
        &self,
        durability: Durability,
        change: impl FnOnce(&mut S) -> Result<T, Error>,
        publish: impl FnOnce(&S),
    ) -> Result<T, Error> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let value = self.value.load_full();
        let mut next = S::clone(&value);
        let result = change(&mut next)?;
        if next != *value || !self.written.load(Ordering::SeqCst) {
            write_in_turn(&self.path, &next, durability)?;
            self.written.store(true, Ordering::SeqCst);
            self.value.store(Arc::new(next));
            publish(&self.value.load());
        }
        Ok(result)
    }

    /// Publishes it as it is, for whoever may see it from now on. Blocking, while a change is written.
    pub fn publish(&self, publish: impl FnOnce(&S)) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        publish(&self.value.load());
    }

    /// Writes what is in force, if that could not be written when it came in force. Blocking.
    pub fn write_again(&self) -> Result<(), RecordError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.written.load(Ordering::SeqCst) {
            write_in_turn(&self.path, &**self.value.load(), Durability::Renamed)?;
            self.written.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Something happened, whether or not the disk can take it: the state is in force and published at once; an
    /// error says that its record is not written, and that the fact must not be acknowledged. Blocking.
    pub fn happened(&self, change: impl FnOnce(&mut S), publish: impl FnOnce(&S)) -> Result<(), RecordError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.value.load_full();
        let mut value = S::clone(&before);
        change(&mut value);
        if value == *before && self.written.load(Ordering::SeqCst) {
            // Known already, and on disk.
            return Ok(());
        }
        let written = write_in_turn(&self.path, &value, Durability::Renamed);
        self.written.store(written.is_ok(), Ordering::SeqCst);
        self.value.store(Arc::new(value));
        publish(&self.value.load());
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Sample {
        name: String,
        value: Option<Vec<u8>>,
    }

    fn sample() -> Sample {
        Sample { name: "pöd".to_owned(), value: Some(vec![0, 255]) }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        assert!(read::<Sample>(&path).unwrap().is_none());
        for durability in [Durability::Renamed, Durability::Synced] {
            write(&path, &sample(), durability).unwrap();
            assert_eq!(read::<Sample>(&path).unwrap(), Some(sample()));
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_form_on_disk_is_kept() {
        let text = String::from_utf8(encode(&sample()).unwrap()).unwrap();
        assert_eq!(
            text,
            "cove-record 1 6c24f2fe39431a5cdb5c17bf9c304c3bd3b51fa3049b3b5ed29b714a6936f7b6\n\
             {\"name\":\"pöd\",\"value\":[0,255]}\n"
        );
    }

    #[test]
    fn what_is_not_whole_is_refused_and_never_panics() {
        let good = encode(&sample()).unwrap();
        for cut in 0..good.len() {
            assert!(decode::<Sample>(&good[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(decode::<Sample>(&bad).is_err(), "bit at {at}");
        }
        let newer = String::from_utf8(good).unwrap().replacen(" 1 ", " 2 ", 1);
        assert!(decode::<Sample>(newer.as_bytes()).unwrap_err().contains("version is 2"));
    }

    #[test]
    fn records_are_written_in_turn_and_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let long = Sample { name: "long".repeat(100), value: None };
        let inode = |name: &str| {
            std::os::unix::fs::MetadataExt::ino(&fs::metadata(path.with_extension(name)).unwrap())
        };
        write_in_turn(&path, &long, Durability::Renamed).unwrap();
        write_in_turn(&path, &sample(), Durability::Renamed).unwrap();
        let files = [inode("json"), inode(SPARE)];
        for value in [sample(), long.clone(), sample(), sample(), long] {
            write_in_turn(&path, &value, Durability::Renamed).unwrap();
            assert_eq!(read(&path).unwrap(), Some(value));
        }
        assert_eq!([inode(SPARE), inode("json")], files);
        // A write that was cut off.
        fs::write(path.with_extension(SPARE), vec![b'x'; 10_000]).unwrap();
        write_in_turn(&path, &sample(), Durability::Synced).unwrap();
        assert_eq!(read(&path).unwrap(), Some(sample()));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode::<Sample>(&bytes).is_err());
        }
    }

    #[test]
    fn a_change_that_cannot_be_written_is_not_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let stored = Stored::new(directory.path().join("gone/state.json"), 1_u32);
        let refused = stored.change(
            Durability::Renamed,
            |n| {
                *n = 2;
                Ok(())
            },
            |_| unreachable!(),
        );
        assert!(refused.is_err());
        assert_eq!(*stored.get(), 1);
        let mut seen = 0;
        assert!(stored.happened(|n| *n = 3, |n| seen = *n).is_err());
        assert_eq!((*stored.get(), seen), (3, 3));
    }
}
