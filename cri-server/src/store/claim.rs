//! Which roots an instance has on this host. What is in the kernel carries the instance's name only, so whoever takes
//! away what no record knows must know of every place where its records may be.
//!
//! One file a pair of roots, called by what the root is and not by its path; it goes with the host's life.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Durability, RecordError, RootLock, erase, make_private_directory, read, write};
use crate::error::Error;

/// Where the claims of all instances of this host are. No instance is called like that: a name has at most 8 letters.
const CLAIMS: &str = "/run/cove-instances";

/// See the module's header.
#[derive(Debug, Serialize, Deserialize)]
struct Roots {
    root: PathBuf,
    state: PathBuf,
}

/// A claim's file, and what it says.
type Claim = (PathBuf, Result<Roots, RecordError>);

/// The claims of one instance.
#[derive(Debug)]
pub struct Claims {
    directory: PathBuf,
    instance: String,
}

impl Claims {
    /// Those of `instance` on this host.
    pub fn of(instance: &str) -> Self {
        Self { directory: PathBuf::from(CLAIMS), instance: instance.to_owned() }
    }

    /// Says that `root` and `state` are the instance's, and forgets roots that are not there any more. Blocking.
    pub fn add(&self, root: &Path, state: &Path) -> Result<(), Error> {
        make_private_directory(&self.directory)?;
        for (path, roots) in self.all()? {
            match roots {
                Ok(roots) if roots.root.exists() => {}
                Ok(_) => erase(&path)?,
                // It keeps `audit --repair` from working, and nothing else.
                Err(error) => {
                    tracing::warn!(%error, "a note of where this instance has records cannot be read")
                }
            }
        }
        let roots = Roots { root: root.to_owned(), state: state.to_owned() };
        Ok(write(&self.place(root)?, &roots, Durability::Renamed)?)
    }

    /// `root` has nothing in the kernel any more. Blocking.
    pub fn remove(&self, root: &Path) -> Result<(), Error> {
        Ok(erase(&self.place(root)?)?)
    }

    /// Refuses where a daemon or pods of this instance have other roots than `root`. Blocking.
    pub fn refuse_others(&self, root: &Path) -> Result<(), Error> {
        let own = if root.exists() { Some(identity(root)?) } else { None };
        for (_, roots) in self.all()? {
            let roots = roots?;
            if !roots.root.exists() || own == Some(identity(&roots.root)?) {
                continue;
            }
            let what = if let Some(pid) = RootLock::holder(&roots.root)? {
                format!("a daemon (pid {pid})")
            } else if has_records(&roots.root)? {
                "pods".to_owned()
            } else {
                continue;
            };
            let reason = format!(
                "{what} of this instance has its records in {} and {}, which {} does not know: run the audit with that \
                 configuration, or give one of the two another instance name",
                roots.root.display(),
                roots.state.display(),
                root.display()
            );
            return Err(Error::system("repair instance", &self.instance, io::Error::other(reason)));
        }
        Ok(())
    }

    fn all(&self) -> Result<Vec<Claim>, Error> {
        let failed = |error| Error::system("list", self.directory.display().to_string(), error);
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let is_own = path.file_stem().is_some_and(|stem| *stem == *self.instance)
                && path.extension().is_some_and(|extension| extension != "new");
            if is_own && let Some(roots) = read(&path).transpose() {
                all.push((path, roots));
            }
        }
        Ok(all)
    }

    fn place(&self, root: &Path) -> Result<PathBuf, Error> {
        let (device, inode) = identity(root)?;
        Ok(self.directory.join(format!("{}.{device:x}-{inode:x}", self.instance)))
    }
}

fn identity(root: &Path) -> Result<(u64, u64), Error> {
    let metadata = std::fs::metadata(root)
        .map_err(|error| Error::system("read metadata of", root.display().to_string(), error))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// There is a directory of a sandbox.
fn has_records(root: &Path) -> Result<bool, Error> {
    let room = root.join("sandboxes");
    match std::fs::read_dir(&room) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::system("list", room.display().to_string(), error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_of_others_count_while_they_have_a_daemon_or_pods() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let claims = |instance: &str| Claims { directory: at("claims"), instance: instance.to_owned() };
        let (own, other) = (at("own"), at("other"));
        for root in [&own, &other] {
            std::fs::create_dir(root).unwrap();
        }
        let one = claims("one");
        one.refuse_others(&at("absent")).unwrap();
        one.add(&own, &at("run")).unwrap();
        one.add(&other, &at("run-other")).unwrap();
        one.refuse_others(&own).unwrap();

        let lock = RootLock::take(&other).unwrap();
        let refused = one.refuse_others(&own).unwrap_err().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        one.refuse_others(&other).unwrap();
        claims("two").refuse_others(&own).unwrap();
        drop(lock);

        std::fs::create_dir_all(other.join("sandboxes/a")).unwrap();
        let refused = one.refuse_others(&own).unwrap_err().to_string();
        assert!(refused.contains(&other.display().to_string()), "{refused}");
        assert!(one.refuse_others(&at("absent")).is_err());
        one.remove(&other).unwrap();
        one.refuse_others(&own).unwrap();
    }

    #[test]
    fn roots_that_are_gone_are_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let claims = Claims { directory: directory.path().join("claims"), instance: "one".to_owned() };
        let (own, gone) = (directory.path().join("own"), directory.path().join("gone"));
        for root in [&own, &gone] {
            std::fs::create_dir(root).unwrap();
            claims.add(root, directory.path()).unwrap();
        }
        std::fs::remove_dir(&gone).unwrap();
        claims.refuse_others(&own).unwrap();
        claims.add(&own, directory.path()).unwrap();
        assert_eq!(claims.all().unwrap().len(), 1);
    }

    #[test]
    fn a_note_that_cannot_be_read_stops_repair_and_no_start() {
        let directory = tempfile::tempdir().unwrap();
        let claims = Claims { directory: directory.path().join("claims"), instance: "one".to_owned() };
        let (own, other) = (directory.path().join("own"), directory.path().join("other"));
        for root in [&own, &other] {
            std::fs::create_dir(root).unwrap();
            claims.add(root, directory.path()).unwrap();
        }
        for root in [&own, &other] {
            std::fs::write(claims.place(root).unwrap(), "noise").unwrap();
        }
        claims.add(&own, directory.path()).unwrap();
        assert!(claims.refuse_others(&own).is_err());
        claims.add(&other, directory.path()).unwrap();
        claims.refuse_others(&own).unwrap();
    }
}
