//! Directories that a layer made without naming them. A tar may hold `tmp/x` without `tmp/`; what `tmp` looks like is then
//! what the uppermost layer that names it says, not the 0755 that unpacking gave it (design.md decision 8). Layers are
//! shared and never changed, so one more layer on top of the image holds these directories as they should be.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cove_layer::Digest;
use cove_path::{PathError, Tree};
use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::record::{self, Headers, LayerRecord};
use super::stage::{Stage, StagedLayer};
use super::store::Store;
use super::{ImageError, sha256};

/// What overlayfs marks a directory with that hides all below it.
const OPAQUE: &str = "trusted.overlay.opaque";
/// Longest list of names and longest value of extended attributes (xattr(7)).
const MAX_XATTR: usize = 64 * 1024;

/// One layer of the image.
struct Level {
    tree: Tree,
    implicit: BTreeSet<PathBuf>,
}

/// What a layer has under a path.
enum Look {
    /// Nothing, and the layers below are seen.
    Absent,
    /// Something that hides the layers below.
    Hidden,
    /// A directory, and whether it hides the layers below.
    Directory { opaque: bool },
}

/// The name under which the fix-up layer of an image lies.
pub(super) fn key(id: &Digest) -> Digest {
    sha256(format!("fix-up of {id}").as_bytes())
}

/// Makes the fix-up layer of an image whose visible layers are `uppermost_first`, if it needs one. For threads that may
/// wait. Not synced, not visible yet.
pub(super) fn make(
    store: &Arc<Store>,
    id: &Digest,
    uppermost_first: &[Digest],
) -> Result<Option<StagedLayer>, ImageError> {
    let levels = uppermost_first.iter().map(|layer| level(store, layer)).collect::<Result<Vec<_>, _>>()?;
    let failed = |error: PathError| failed(store, id, error);
    let wanted = wanted(&levels).map_err(failed)?;
    if wanted.is_empty() {
        return Ok(None);
    }
    let stage = Stage::new(store.clone())?;
    let inodes = build(&levels, &wanted, &Tree::open(&stage.files()).map_err(failed)?).map_err(failed)?;
    let (below, implicit) = (Some(inodes), Vec::new());
    let headers = Headers::Ours;
    let record = LayerRecord { size: 0, inodes, is_opaque: false, implicit, blob: None, below, headers };
    stage.finish(key(id), &record).map(Some)
}

fn failed(store: &Store, id: &Digest, error: PathError) -> ImageError {
    let errno = error.errno();
    let source = errno.map_or_else(|| std::io::Error::other(error.to_string()), std::io::Error::from);
    let path = match error {
        PathError::Call { path, .. } => path,
        _ => store.layout.layer_files(&key(id)),
    };
    ImageError::store("make the fix-up layer: directory", path, source)
}

fn level(store: &Store, layer: &Digest) -> Result<Level, ImageError> {
    let files = store.layout.layer_files(layer);
    let unusable = |error: String| ImageError::store("read layer", &files, std::io::Error::other(error));
    let record: LayerRecord =
        record::read(&files.with_file_name("layer.json")).map_err(|error| unusable(error.to_string()))?;
    let decode = |path: &String| {
        STANDARD
            .decode(path)
            .map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
            .map_err(|error| unusable(error.to_string()))
    };
    let implicit = record.implicit.iter().map(decode).collect::<Result<_, _>>()?;
    Ok(Level { tree: Tree::open(&files).map_err(|error| unusable(error.to_string()))?, implicit })
}

/// Directories whose metadata comes from below a layer that did not name them, and from which layer.
fn wanted(levels: &[Level]) -> Result<Vec<(PathBuf, usize)>, PathError> {
    let unnamed: BTreeSet<&PathBuf> = levels.iter().flat_map(|level| &level.implicit).collect();
    let mut wanted = Vec::new();
    for path in unnamed {
        if let Some((named, true)) = source(levels, path)? {
            wanted.push((path.clone(), named));
        }
    }
    Ok(wanted)
}

/// The uppermost layer that names this directory, and whether one above it has it without naming it.
fn source(levels: &[Level], path: &Path) -> Result<Option<(usize, bool)>, PathError> {
    let mut is_unnamed_above = false;
    for (number, level) in levels.iter().enumerate() {
        match look(&level.tree, path)? {
            Look::Absent => (),
            Look::Hidden => return Ok(None),
            Look::Directory { .. } if !level.implicit.contains(path) => {
                return Ok(Some((number, is_unnamed_above)));
            }
            Look::Directory { opaque: true } => return Ok(None),
            Look::Directory { opaque: false } => is_unnamed_above = true,
        }
    }
    Ok(None)
}

fn look(root: &Tree, path: &Path) -> Result<Look, PathError> {
    let mut at: Option<Tree> = None;
    let mut hides = false;
    for part in path.components() {
        match at.as_ref().unwrap_or(root).dir(Path::new(part.as_os_str())) {
            Ok(next) => {
                hides |= is_opaque(&next)?;
                at = Some(next);
            }
            Err(error) => match error.errno() {
                Some(Errno::NOENT) if !hides => return Ok(Look::Absent),
                // A file, a symlink or a whiteout.
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Look::Hidden),
                _ => return Err(error),
            },
        }
    }
    Ok(at.map_or(Look::Absent, |_| Look::Directory { opaque: hides }))
}

fn is_opaque(directory: &Tree) -> Result<bool, PathError> {
    let mut value = [0_u8; 8];
    match rustix::fs::fgetxattr(directory.as_fd(), OPAQUE, &mut value) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(call("read the opaque mark of", Path::new("."), errno)),
    }
}

/// Makes the directories with their parents, then gives them what they should have, the innermost first, since making a
/// child changes the times of its parent. Returns how many were made.
fn build(levels: &[Level], wanted: &[(PathBuf, usize)], target: &Tree) -> Result<u64, PathError> {
    let mut made = HashSet::new();
    let mut sources: Vec<(&Path, Option<usize>)> = Vec::new();
    for (path, named) in wanted {
        let parents: Vec<&Path> =
            path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()).collect();
        for parent in parents.into_iter().rev() {
            if made.insert(parent) {
                target.make_dir(parent, Mode::from_raw_mode(0o755))?;
                sources.push((parent, source(levels, parent)?.map(|(named, _)| named)));
            }
        }
        if made.insert(path) {
            target.make_dir(path, Mode::from_raw_mode(0o755))?;
            sources.push((path, Some(*named)));
        }
    }
    for (path, named) in sources.iter().rev() {
        if let Some(level) = named.and_then(|named| levels.get(named)) {
            copy(&level.tree.dir(path)?, &target.dir(path)?, path)?;
        }
    }
    Ok(u64::try_from(made.len()).unwrap_or(u64::MAX))
}

/// Owner, extended attributes, mode and times, in the order in which none undoes another.
fn copy(from: &Tree, to: &Tree, path: &Path) -> Result<(), PathError> {
    let failed = |doing: &'static str| move |errno| call(doing, path, errno);
    let stat = rustix::fs::fstat(from.as_fd()).map_err(failed("read metadata of"))?;
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to.as_fd(), Some(owner), Some(group)).map_err(failed("set the owner of"))?;
    copy_xattrs(from, to).map_err(failed("copy extended attributes of"))?;
    rustix::fs::fchmod(to.as_fd(), Mode::from_raw_mode(stat.st_mode)).map_err(failed("set the mode of"))?;
    let nanoseconds = |value: u64| value.try_into().unwrap_or_default();
    let times = Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: nanoseconds(stat.st_atime_nsec) },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds(stat.st_mtime_nsec) },
    };
    rustix::fs::futimens(to.as_fd(), &times).map_err(failed("set the times of"))
}

fn copy_xattrs(from: &Tree, to: &Tree) -> Result<(), Errno> {
    let mut names = vec![0_u8; MAX_XATTR];
    let length = match rustix::fs::flistxattr(from.as_fd(), &mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    // `trusted.` is overlayfs's own.
    let copied = |name: &&[u8]| !name.is_empty() && !name.starts_with(b"trusted.");
    for name in names[..length].split(|byte| *byte == 0).filter(copied) {
        let mut value = vec![0_u8; MAX_XATTR];
        let length = rustix::fs::fgetxattr(from.as_fd(), name, &mut value)?;
        rustix::fs::fsetxattr(to.as_fd(), name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

fn call(doing: &'static str, path: &Path, errno: Errno) -> PathError {
    PathError::Call { doing, path: path.to_owned(), errno }
}
