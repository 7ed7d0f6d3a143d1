//! The directory of an OCI image layout, sent as a tar: the documents first, and then from the smallest to the largest, so
//! that the other side knows what each layer is before it comes. No link is followed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use super::source::{Pieces, Source, Unread, exactly};
use crate::image::{Bounds, Documents, INDEX, ImageError, LAYOUT, Outline, tar};

/// The files of a layout beside its blobs, in the order in which they are of use.
const DOCUMENTS: [&str; 2] = [LAYOUT.0, INDEX];

/// The directory, and what lay in it when it was opened.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    /// In the order in which they are sent, with their sizes.
    files: Vec<(String, u64)>,
}

impl Directory {
    pub(super) fn open(root: &Path) -> Result<Self, Unread> {
        let mut files = Vec::new();
        for name in DOCUMENTS {
            let path = root.join(name);
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_file() => files.push((name.to_owned(), metadata.len())),
                Ok(_) => return Err(Unread::file(&path, "is no file")),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Unread::file(&path, error)),
            }
        }
        let mut blobs = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            let directory = root.join("blobs").join(algorithm);
            let entries = match fs::read_dir(&directory) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                entries => entries.map_err(|error| Unread::file(&directory, error))?,
            };
            for entry in entries {
                let entry = entry.map_err(|error| Unread::file(&directory, error))?;
                let metadata = entry.metadata().map_err(|error| Unread::file(&entry.path(), error))?;
                if let Some(name) = entry.file_name().to_str().filter(|_| metadata.is_file()) {
                    blobs.push((format!("blobs/{algorithm}/{name}"), metadata.len()));
                }
            }
        }
        blobs.sort_by(|(name, size), other| (size, name).cmp(&(&other.1, &other.0)));
        files.extend(blobs);
        Ok(Self { root: root.to_owned(), files })
    }
}

/// What of a directory can be a document, by its name.
struct Small<'a> {
    root: &'a Path,
    sizes: HashMap<&'a str, u64>,
}

impl Documents for Small<'_> {
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        // Only what was listed: a name in a document is no path.
        let Some(size) = self.sizes.get(name) else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = File::open(self.root.join(name)).and_then(|file| file.take(*size).read_to_end(&mut bytes));
        read.map_err(|error| ImageError::unread(name, &error))?;
        Ok(Some(bytes))
    }
}

impl Source for Directory {
    fn outline(&self, bounds: &Bounds) -> Result<Outline, ImageError> {
        let limit = u64::try_from(bounds.document_bytes).unwrap_or(u64::MAX);
        let small = self.files.iter().filter(|(_, size)| *size <= limit);
        let sizes = small.map(|(name, size)| (name.as_str(), *size)).collect();
        Outline::of(&Small { root: &self.root, sizes }, bounds)
    }

    fn send(self: Box<Self>, outline: &Outline, pieces: &mut Pieces) -> Result<(), Unread> {
        for (name, size) in &self.files {
            if outline.is_needless(name, *size) {
                continue;
            }
            let path = self.root.join(name);
            let mut file = File::open(&path).map_err(|error| Unread::file(&path, error))?;
            pieces.send(tar::header(name, *size));
            exactly(pieces, &mut file, *size, path.display())?;
            pieces.send(vec![0; tar::padding(*size)]);
        }
        pieces.send(tar::END.to_vec());
        Ok(())
    }
}
