//! Looks devices up in the directories of the configuration. A later directory wins over an earlier one; two files of one
//! directory that have the same device take it away from each other, since nobody can tell which is meant.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::document::{self, Document, Edits};
use super::name::Name;

/// More files than any node has in one directory: what is beyond them is not looked at, and said so.
const MAX_FILES: usize = 1024;

/// The edits for the devices of a container, in the order in which they are made: each file's own once, before those of its
/// first device. The error names each device that cannot be had, and why. Blocking.
pub fn find(directories: &[PathBuf], names: &[Name]) -> Result<Vec<Edits>, String> {
    let found = Found::read(directories);
    let mut edits = Vec::new();
    let mut used = BTreeSet::new();
    for name in names {
        let at = found.devices.get(&(name.kind.clone(), name.device.clone()));
        let (file, device) = match at {
            Some(Place::One { file, device, .. }) => (*file, *device),
            Some(Place::Several { directory }) => {
                return Err(format!("{name} is in more than one file of {}", directory.display()));
            }
            None => return Err(found.missing(directories, name)),
        };
        let Some((_, document)) = found.files.get(file) else { continue };
        if used.insert(file) {
            edits.extend(document.container_edits.clone());
        }
        edits.extend(document.devices.get(device).map(|device| device.container_edits.clone()));
    }
    Ok(edits)
}

/// What the directories hold.
#[derive(Debug, Default)]
struct Found {
    files: Vec<(PathBuf, Document)>,
    devices: BTreeMap<(String, String), Place>,
    /// What is not used, and why.
    faults: Vec<(PathBuf, String)>,
}

/// Where a device is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Indexes of the file, and of the device in it.
    One {
        rank: usize,
        file: usize,
        device: usize,
    },
    Several {
        directory: PathBuf,
    },
}

impl Found {
    fn read(directories: &[PathBuf]) -> Self {
        let mut found = Self::default();
        for (rank, directory) in directories.iter().enumerate() {
            match files(directory) {
                Ok(paths) => {
                    if paths.len() > MAX_FILES {
                        let fault = format!("has {} files, of which {MAX_FILES} are read", paths.len());
                        found.faults.push((directory.clone(), fault));
                    }
                    paths.into_iter().take(MAX_FILES).for_each(|path| found.add(rank, directory, path));
                }
                // Most nodes have neither.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => found.faults.push((directory.clone(), error.to_string())),
            }
        }
        found
    }

    fn add(&mut self, rank: usize, directory: &Path, path: PathBuf) {
        let document = match document::read(&path) {
            Ok(document) => document,
            Err(error) => return self.faults.push((path, error.to_string())),
        };
        let file = self.files.len();
        for (device, found) in document.devices.iter().enumerate() {
            let key = (document.kind.clone(), found.name.clone());
            let place = match self.devices.get(&key) {
                Some(Place::One { rank: known, .. }) if *known == rank => {
                    Place::Several { directory: directory.to_owned() }
                }
                Some(Place::Several { directory: known }) if known == directory => continue,
                Some(_) | None => Place::One { rank, file, device },
            };
            self.devices.insert(key, place);
        }
        self.files.push((path, document));
    }

    fn missing(&self, directories: &[PathBuf], name: &Name) -> String {
        let places: Vec<_> = directories.iter().map(|directory| directory.display().to_string()).collect();
        let mut text = format!("{name} is in no file of {}", places.join(", "));
        for (path, fault) in &self.faults {
            // Writing to a string cannot fail.
            let _ = write!(text, "; {} is not used: {fault}", path.display());
        }
        text
    }
}

/// The files of a directory that are read, in the order of their names.
fn files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json" || extension == "yaml") {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    fn file(name: &str, devices: &[&str]) -> String {
        let device =
            |device: &&str| json!({ "name": device, "containerEdits": { "env": [format!("FROM={name}")] } });
        let all: Vec<_> = devices.iter().map(device).collect();
        json!({ "cdiVersion": "0.6.0", "kind": "v.com/c", "devices": all,
                "containerEdits": { "env": [format!("FILE={name}")] } })
        .to_string()
    }

    fn names(all: &[&str]) -> Vec<Name> {
        all.iter().map(|name| Name::parse(name).unwrap()).collect()
    }

    fn env(edits: &[Edits]) -> Vec<String> {
        edits.iter().flat_map(|edits| edits.env.clone().unwrap_or_default()).collect()
    }

    #[test]
    fn a_later_directory_wins_and_a_broken_file_takes_nothing_else_away() {
        let directory = tempfile::tempdir().unwrap();
        let (low, high) = (directory.path().join("low"), directory.path().join("high"));
        let directories = [low.clone(), directory.path().join("missing"), high.clone()];
        fs::create_dir(&low).unwrap();
        fs::create_dir(&high).unwrap();
        fs::write(low.join("a.json"), file("low", &["one", "two"])).unwrap();
        fs::write(high.join("b.json"), file("high", &["two"])).unwrap();
        fs::write(high.join("broken.yaml"), "kind: [").unwrap();
        fs::write(high.join("notes.txt"), "none of ours").unwrap();
        let edits = find(&directories, &names(&["v.com/c=one", "v.com/c=two", "v.com/c=one"])).unwrap();
        assert_eq!(env(&edits), ["FILE=low", "FROM=low", "FILE=high", "FROM=high", "FROM=low"]);
        let missing = find(&directories, &names(&["v.com/c=three"])).unwrap_err();
        for word in ["v.com/c=three", "high", "low", "missing", "broken.yaml is not used"] {
            assert!(missing.contains(word), "{word}: {missing}");
        }
    }

    #[test]
    fn two_files_of_one_directory_take_a_device_from_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let (low, high) = (directory.path().join("low"), directory.path().join("high"));
        fs::create_dir(&low).unwrap();
        fs::create_dir(&high).unwrap();
        for name in ["a", "b", "c"] {
            fs::write(low.join(format!("{name}.json")), file(name, &["one", name])).unwrap();
        }
        let directories = [low, high.clone()];
        let refused = find(&directories, &names(&["v.com/c=one"])).unwrap_err();
        assert!(refused.contains("more than one file of"), "{refused}");
        assert_eq!(env(&find(&directories, &names(&["v.com/c=b"])).unwrap()), ["FILE=b", "FROM=b"]);
        // Where a later directory has it, it is clear again.
        fs::write(high.join("d.json"), file("d", &["one"])).unwrap();
        assert_eq!(env(&find(&directories, &names(&["v.com/c=one"])).unwrap()), ["FILE=d", "FROM=d"]);
    }
}
