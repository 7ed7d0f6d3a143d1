//! What the records say, as any process may read them: a record is whole or it is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cove_netplugin::builtin;

use crate::config::Config;
use crate::container::record::{ContainerIdentity, Places as ContainerPlaces};
use crate::container::state::ContainerState;
use crate::error::Error;
use crate::network::Attachment;
use crate::sandbox::record::{Places, SandboxIdentity};
use crate::sandbox::state::{SandboxState, Stage};
use crate::store::{self, RecordError};

/// A sandbox by its records.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) identity: SandboxIdentity,
    pub(super) places: Places,
    /// None: it cannot be read.
    pub(super) state: Option<SandboxState>,
    /// As the network wrote it, or why it cannot be read.
    pub(super) attachment: Result<Option<Attachment>, String>,
}

/// A container by its records.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) identity: ContainerIdentity,
    pub(super) places: ContainerPlaces,
    /// None: it cannot be read.
    pub(super) state: Option<ContainerState>,
}

/// See the module's header.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) pods: BTreeMap<String, Pod>,
    pub(super) members: BTreeMap<String, Member>,
    /// Objects whose identity cannot be read: the directory of each, and why. Nothing of them is judged.
    pub(super) unreadable: BTreeMap<String, (PathBuf, String)>,
    /// Directories of objects that have no record: by id.
    pub(super) unrecorded: BTreeMap<String, PathBuf>,
    /// What lies among the records and is none.
    pub(super) strangers: BTreeSet<PathBuf>,
    /// Records that are being written, or were when a daemon died.
    pub(super) temporary: BTreeSet<PathBuf>,
}

impl Known {
    /// Reads every record. Blocking.
    pub(super) fn read(config: &Config) -> Result<Self, Error> {
        let mut known = Self::default();
        known.room(&config.root.join("sandboxes"), |known, id| {
            let places = Places::new(&config.root, &config.state, id);
            let Some(identity) = store::read::<SandboxIdentity>(&places.identity())? else {
                return Ok(false);
            };
            let attachment = store::read(&places.attachment()).map_err(|error| error.to_string());
            let state = state(store::read(&places.state()));
            known.pods.insert(id.to_owned(), Pod { identity, places, state, attachment });
            Ok(true)
        })?;
        known.room(&config.root.join("containers"), |known, id| {
            let places = ContainerPlaces::new(&config.root, id);
            let Some(identity) = store::read::<ContainerIdentity>(&places.identity())? else {
                return Ok(false);
            };
            let state = state(store::read(&places.state()));
            known.members.insert(id.to_owned(), Member { identity, places, state });
            Ok(true)
        })?;
        Ok(known)
    }

    /// One directory an object. `read` is false where there is no record.
    fn room(
        &mut self,
        room: &Path,
        read: impl Fn(&mut Self, &str) -> Result<bool, RecordError>,
    ) -> Result<(), Error> {
        for path in entries(room)? {
            let Some(id) = path.file_name().and_then(|name| name.to_str()).filter(|name| store::is_id(name))
            else {
                self.strangers.insert(path);
                continue;
            };
            for file in entries(&path)? {
                if file.extension().is_some_and(|extension| extension == "new") {
                    self.temporary.insert(file);
                }
            }
            match read(self, id) {
                Ok(true) => {}
                Ok(false) => drop(self.unrecorded.insert(id.to_owned(), path)),
                Err(error) => drop(self.unreadable.insert(id.to_owned(), (path.clone(), error.to_string()))),
            }
        }
        Ok(())
    }

    /// Nothing can be said of what belongs to this id.
    pub(super) fn is_unreadable(&self, id: &str) -> bool {
        self.unreadable.contains_key(id)
    }

    /// A sandbox, whose record does not say that it is taken down: it may have anything in the kernel.
    pub(super) fn stands(&self, id: &str) -> bool {
        self.is_unreadable(id) || self.pods.get(id).is_some_and(Pod::stands)
    }

    /// A container of a sandbox that stands.
    pub(super) fn may_have_cgroup(&self, id: &str) -> bool {
        self.is_unreadable(id)
            || self.members.get(id).is_some_and(|member| self.stands(&member.identity.sandbox))
    }

    /// The attachments to the built-in network of sandboxes that stand. Of what a CNI plugin gave, the plugin knows.
    pub(super) fn attachments(&self) -> impl Iterator<Item = (&str, &builtin::Attachment)> {
        self.pods
            .iter()
            .filter(|(_, pod)| pod.stands())
            .filter_map(|(id, pod)| Some((id.as_str(), pod.attachment.as_ref().ok()?.as_ref()?.builtin()?)))
    }

    /// There is an object whose network is not known.
    pub(super) fn hides_attachments(&self) -> bool {
        !self.unreadable.is_empty() || self.pods.values().any(|pod| pod.attachment.is_err())
    }
}

impl Pod {
    /// Its record does not say that it is taken down.
    pub(super) fn stands(&self) -> bool {
        self.state.as_ref().is_none_or(|state| !state.down)
    }

    /// All that its record names should be there: it is ready, and nobody wants it gone.
    pub(super) fn is_settled(&self) -> Option<&SandboxState> {
        self.state
            .as_ref()
            .filter(|state| state.stage == Stage::Ready && !state.closing && !state.removing && !state.down)
    }
}

/// One that is missing is one that was not changed yet.
fn state<S: Default>(read: Result<Option<S>, RecordError>) -> Option<S> {
    read.ok().map(Option::unwrap_or_default)
}

/// The paths in a directory; of one that is missing, none.
pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |error| Error::system("list", directory.display().to_string(), error);
    match std::fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect(),
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(failed(error)),
    }
}
