//! All that can be told of a tree, path by path.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use cove_e2e::{Outcome, image};

/// What is told of each path.
pub(crate) type Picture = BTreeMap<PathBuf, String>;

/// How many differences are told.
const SHOWN: usize = 20;

/// Everything below `root` but what is in `left_out`, and below.
pub(crate) fn of(root: &Path, left_out: &[&str]) -> Outcome<Picture> {
    let mut picture = Picture::new();
    // Paths that are one file: the first of them in order of names stands for all.
    let mut inodes: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let name = path.strip_prefix(root)?.to_owned();
        if left_out.iter().any(|left| name == Path::new(left)) {
            continue;
        }
        let meta = fs::symlink_metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let kind = meta.file_type();
        let content = if kind.is_file() {
            inodes.entry((meta.dev(), meta.ino())).or_default().push(name.clone());
            format!("{} bytes {}", meta.size(), image::digest(&fs::read(&path)?))
        } else if kind.is_symlink() {
            format!("-> {:?}", fs::read_link(&path)?)
        } else if kind.is_block_device() || kind.is_char_device() {
            format!("device {:#x}", meta.rdev())
        } else {
            String::new()
        };
        // A directory that holds what the runtime makes has the time of that.
        let holds = |left: &&str| Path::new(left).parent() == Some(&name);
        let time = match kind.is_dir() && left_out.iter().any(holds) {
            true => String::new(),
            false => format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()),
        };
        if kind.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        }
        let attributes = attributes(&path)?;
        let line = format!("{:o} {}:{} {time} {attributes:?} {content}", meta.mode(), meta.uid(), meta.gid());
        picture.insert(name, line);
    }
    for mut names in inodes.into_values() {
        names.sort();
        let first = names[0].clone();
        for name in names {
            if let Some(line) = picture.get_mut(&name) {
                line.push_str(&format!(" = {first:?}"));
            }
        }
    }
    Ok(picture)
}

/// Extended attributes by name, of the link itself where it is one.
fn attributes(path: &Path) -> Outcome<BTreeMap<String, Vec<u8>>> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(error) if std::io::Error::from(error).kind() == ErrorKind::Unsupported => 0,
        Err(error) => return Err(format!("attributes of {}: {error}", path.display()).into()),
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value)?;
        value.truncate(length);
        found.insert(String::from_utf8_lossy(name).into_owned(), value);
    }
    Ok(found)
}

/// Whether both are the same; says where not.
pub(crate) fn same(expected: &Picture, seen: &Picture) -> Outcome {
    let mut differences = Vec::new();
    for name in expected.keys().chain(seen.keys().filter(|name| !expected.contains_key(*name))) {
        let (expected, seen) = (expected.get(name), seen.get(name));
        if expected != seen {
            differences
                .push(format!("{}:\n    expected {expected:?}\n    seen     {seen:?}", name.display()));
        }
    }
    let count = differences.len();
    differences.truncate(SHOWN);
    match count {
        0 => Ok(()),
        count => Err(format!("{count} paths differ:\n  {}", differences.join("\n  ")).into()),
    }
}
