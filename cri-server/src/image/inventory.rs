//! What lies in the image directory, by its names and records alone: for who compares it with what is needed. Changes
//! nothing, and needs no lock.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use cove_layer::Digest;

use super::layout;
use super::record::{self, Record};

/// See the module's header. Left out is what the daemon's next start moves into the trash: layers that are being unpacked,
/// and records that are being written.
#[derive(Debug, Default)]
pub(crate) struct OnDisk {
    /// Directories of layers, by the name that they have on disk.
    pub(crate) layers: BTreeMap<String, OnDiskLayer>,
    /// The layers that each image needs, by image id.
    pub(crate) needed: BTreeMap<String, BTreeSet<String>>,
    /// Records that cannot be used: what they need is not known.
    pub(crate) unreadable: BTreeMap<PathBuf, String>,
    /// What is being deleted, or was when a daemon died.
    pub(crate) trash: BTreeSet<PathBuf>,
}

/// One entry of the layers' directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OnDiskLayer {
    pub(crate) path: PathBuf,
    /// The store knows it, and deletes it when nobody needs it any more; what it cannot read it leaves alone.
    pub(crate) is_whole: bool,
}

/// Looks at `images` below `root`. Missing is empty. Blocking.
pub(crate) fn inventory(root: &Path) -> io::Result<OnDisk> {
    let images = root.join("images");
    let mut found = OnDisk::default();
    for path in entries(&images.join("layers"))? {
        let name = name(&path);
        let is_whole = layout::diff_id(&name).is_some() && layout::read_layer(&path).is_ok();
        found.layers.insert(name, OnDiskLayer { path, is_whole });
    }
    for path in entries(&images.join("records"))? {
        if path.extension().is_some_and(|extension| extension == "new") {
            continue;
        }
        match needs(&path) {
            Ok((id, layers)) => drop(found.needed.insert(id, layers)),
            Err(reason) => drop(found.unreadable.insert(path, reason)),
        }
    }
    found.trash.extend(entries(&images.join("trash"))?);
    Ok(found)
}

fn needs(path: &Path) -> Result<(String, BTreeSet<String>), String> {
    let record: Record = record::read(path).map_err(|error| error.to_string())?;
    let layers = record.layers.iter().chain(&record.fix_up).map(|layer| {
        layer.parse::<Digest>().map(|digest| digest.hex().to_owned()).map_err(|error| error.to_string())
    });
    Ok((record.id.clone(), layers.collect::<Result<_, _>>()?))
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
