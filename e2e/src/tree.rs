//! Directories of a test, and canaries: trees that must not change.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::Outcome;

/// Every path below `root`, with kind, mode, owner, size, change time and content digest of each.
pub fn canary(root: &Path) -> Outcome<BTreeMap<PathBuf, String>> {
    let mut seen = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path)?;
        let content = if meta.is_file() {
            crate::image::digest(&fs::read(&path)?)
        } else if meta.is_symlink() {
            format!("{:?}", fs::read_link(&path)?)
        } else {
            String::new()
        };
        if meta.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        }
        let line = format!(
            "{:o} {}:{} {} {}.{} {content}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.ino(),
            meta.ctime(),
            meta.ctime_nsec()
        );
        seen.insert(path, line);
    }
    Ok(seen)
}
