//! Which network configuration counts: the first by name in the first directory that has one that can be used.
//!
//! Other programs write these files while nodes run, and not always in one piece. So a file counts from when it is
//! first whole; and one that is written anew counts as it was until it is whole again. Nothing is watched: a look costs
//! one listing and one stat a file, and only what has changed is read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::conflist::{Conflist, MAX_FILE};
use crate::error::CniError;

/// Names that are looked at end so.
const EXTENSIONS: [&str; 3] = ["conflist", "conf", "json"];
/// How many files of a directory are looked at: real ones have one to five.
const MAX_FILES: usize = 64;

/// Directories of network configurations, and what was read of them.
#[derive(Debug)]
pub struct Directories {
    paths: Vec<PathBuf>,
    known: BTreeMap<PathBuf, Known>,
}

/// A file as it was when it was read.
#[derive(Debug)]
struct Known {
    stamp: Option<Stamp>,
    usable: Option<Arc<Conflist>>,
    fault: Option<String>,
}

/// What changes when a file does.
type Stamp = (u64, u64, u64, i64, i64, i64, i64);

/// What a look found.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    /// The configuration that counts.
    pub chosen: Option<Arc<Conflist>>,
    /// Every file that was looked at, in order.
    pub seen: Vec<Seen>,
    /// Directories that cannot be listed, and why.
    pub unread: Vec<(PathBuf, String)>,
}

/// A file that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it now.
    pub fault: Option<String>,
}

impl Directories {
    /// Those of a configuration; nothing is read yet, and none needs to exist.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, known: BTreeMap::new() }
    }

    /// Looks again. Blocking.
    pub fn look(&mut self) -> Sight {
        let mut sight = Sight::default();
        let mut now = BTreeMap::new();
        for directory in &self.paths {
            let files = match list(directory) {
                Ok(files) => files,
                Err(error) => {
                    sight.unread.push((directory.clone(), error.to_string()));
                    continue;
                }
            };
            for file in files {
                let known = again(&file, self.known.remove(&file));
                if sight.chosen.is_none() {
                    sight.chosen.clone_from(&known.usable);
                }
                sight.seen.push(Seen { file: file.clone(), fault: known.fault.clone() });
                now.insert(file, known);
            }
        }
        self.known = now;
        sight
    }
}

/// The files of a directory that may be configurations, by name.
fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|found| EXTENSIONS.iter().any(|known| found == *known)) {
            files.push(path);
        }
    }
    files.sort();
    files.truncate(MAX_FILES);
    Ok(files)
}

fn again(file: &Path, before: Option<Known>) -> Known {
    let stamp = stamp(file);
    let usable = match before {
        // What was wrong is read again: it may have been completed within one tick of the clock.
        Some(known) if known.fault.is_none() && known.stamp.is_some() && known.stamp == stamp => {
            return known;
        }
        Some(known) => known.usable,
        None => None,
    };
    match read(file) {
        Ok(list) => Known { stamp, usable: Some(Arc::new(list)), fault: None },
        Err(CniError::Conflist { reason, .. }) => Known { stamp, usable, fault: Some(reason) },
        Err(error) => Known { stamp, usable, fault: Some(error.to_string()) },
    }
}

fn stamp(file: &Path) -> Option<Stamp> {
    let found = fs::metadata(file).ok()?;
    Some((
        found.dev(),
        found.ino(),
        found.size(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ))
}

fn read(file: &Path) -> Result<Conflist, CniError> {
    let fault = |reason: String| CniError::Conflist { file: file.to_owned(), reason };
    let failed = |error: io::Error| fault(format!("cannot be read: {error}"));
    // A FIFO would wait for a writer, a device may be anything.
    if !fs::metadata(file).map_err(failed)?.is_file() {
        return Err(fault("is no regular file".to_owned()));
    }
    let mut text = Vec::new();
    let limit = u64::try_from(MAX_FILE).unwrap_or(u64::MAX).saturating_add(1);
    File::open(file).and_then(|file| file.take(limit).read_to_end(&mut text)).map_err(failed)?;
    let text = String::from_utf8(text).map_err(|_| fault("is not UTF-8".to_owned()))?;
    Conflist::parse(file, &text)
}

#[cfg(test)]
mod test {
    use super::*;

    fn text(name: &str) -> String {
        format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"a"}}]}}"#)
    }

    fn chosen(sight: &Sight) -> Option<&str> {
        sight.chosen.as_ref().map(|list| list.name.as_str())
    }

    #[test]
    fn the_first_that_can_be_used_counts() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut directories =
            Directories::new(vec![one.path().join("missing"), one.path().into(), two.path().into()]);
        let sight = directories.look();
        assert_eq!((chosen(&sight), sight.seen.len(), sight.unread.len()), (None, 0, 1));
        fs::write(two.path().join("00-two.conflist"), text("two")).unwrap();
        assert_eq!(chosen(&directories.look()), Some("two"));
        fs::write(one.path().join("20-b.conf"), text("b")).unwrap();
        fs::write(one.path().join("10-a.conflist"), "{").unwrap();
        for other in [".00.conflist", "00-x.conflist.tmp", "00-y.bak", "00-z"] {
            fs::write(one.path().join(other), text("other")).unwrap();
        }
        fs::create_dir(one.path().join("00-d.conflist")).unwrap();
        let sight = directories.look();
        assert_eq!(chosen(&sight), Some("b"), "a file that was never whole does not count");
        let faults: Vec<_> = sight.seen.iter().map(|seen| seen.fault.as_deref().unwrap_or("")).collect();
        assert!(faults[0].contains("no regular file") && faults[1].contains("JSON"), "{faults:?}");
        assert_eq!((faults.len(), faults[2], faults[3]), (4, "", ""));
        fs::write(one.path().join("10-a.conflist"), text("a")).unwrap();
        assert_eq!(chosen(&directories.look()), Some("a"));
    }

    #[test]
    fn a_file_that_is_written_anew_counts_as_it_was_until_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("10-a.json");
        let mut directories = Directories::new(vec![directory.path().into()]);
        fs::write(&file, text("old")).unwrap();
        assert_eq!(chosen(&directories.look()), Some("old"));
        let new = text("new");
        for part in [0, 1, new.len() / 2, new.len() - 1] {
            fs::write(&file, &new[..part]).unwrap();
            let sight = directories.look();
            assert_eq!(chosen(&sight), Some("old"));
            assert!(sight.seen[0].fault.is_some());
        }
        fs::write(&file, &new).unwrap();
        assert_eq!(chosen(&directories.look()), Some("new"));
        fs::remove_file(&file).unwrap();
        assert_eq!(chosen(&directories.look()), None);
    }

    #[test]
    fn what_is_too_large_or_no_file_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut directories = Directories::new(vec![directory.path().into()]);
        let large = File::create(directory.path().join("a.conf")).unwrap();
        large.set_len(1 << 30).unwrap();
        nix_fifo(&directory.path().join("b.conf"));
        fs::write(directory.path().join("c.conf"), [0xff, 0xfe]).unwrap();
        std::os::unix::fs::symlink("/nowhere", directory.path().join("d.conf")).unwrap();
        let faults: Vec<_> = directories.look().seen.into_iter().map(|seen| seen.fault.unwrap()).collect();
        for (fault, words) in faults.iter().zip(["more than", "regular file", "UTF-8", "cannot be read"]) {
            assert!(fault.contains(words), "{fault}");
        }
    }

    fn nix_fifo(path: &Path) {
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
    }
}
