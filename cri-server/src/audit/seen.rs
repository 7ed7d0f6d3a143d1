//! What there is in the kernel and on disk that carries the instance's name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cove_netplugin::builtin::{Builtin, Inventory};
use cove_runtime::cgroup::{CgroupPath, Hierarchies, Present};
use cove_runtime::{mount_table, namespace};

use super::Subject;
use super::known::{Known, entries};
use crate::config::NetworkMode;
use crate::error::Error;
use crate::image::{self, OnDisk};
use crate::shim::ProcessId;
use crate::store::{TRASH, is_id};

/// A process in the shims' cgroup.
#[derive(Debug)]
pub(super) struct Helper {
    pub(super) process: ProcessId,
    /// The sandbox that it says it is the shim of.
    pub(super) sandbox: Option<String>,
    /// Its command line.
    pub(super) line: String,
}

/// See the module's header.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) helpers: Vec<Helper>,
    /// Names in the pins' directory, by sandbox id; true: a namespace is mounted there.
    pub(super) pins: BTreeMap<String, (PathBuf, bool)>,
    /// Mounts below the objects' directories.
    pub(super) mounts: BTreeSet<PathBuf>,
    /// Groups below the instance's own, and those in the kubelet's that are called by an id.
    pub(super) cgroups: Vec<Present>,
    pub(super) network: Inventory,
    /// The objects' directories of what dies with the host.
    pub(super) runs: BTreeSet<PathBuf>,
    /// What waits to be removed.
    pub(super) trash: BTreeSet<PathBuf>,
    /// What was set aside because nobody can use it.
    pub(super) quarantine: BTreeSet<PathBuf>,
    pub(super) images: OnDisk,
}

impl Seen {
    /// Looks. Blocking.
    pub(super) fn now(subject: &Subject<'_>, known: &Known) -> Result<Self, Error> {
        let config = subject.config;
        let tree = Hierarchies::detect()?;
        let cgroups = cgroups(&tree, &config.cgroup_parent, known)?;
        let objects =
            [config.root.join("sandboxes"), config.root.join("containers"), config.state.join("sandboxes")];
        let mounts = mount_table::points()
            .map_err(|error| Error::system("read", "the mount table", error))?
            .into_iter()
            .filter(|point| objects.iter().any(|room| point.starts_with(room) && point != room));
        Ok(Self {
            helpers: helpers(subject, &cgroups)?,
            pins: pins(&config.netns_dir, &config.instance)?,
            mounts: mounts.collect(),
            cgroups,
            network: network(subject)?,
            runs: entries(&config.state.join("sandboxes"))?.into_iter().collect(),
            trash: entries(&config.root.join(TRASH))?.into_iter().collect(),
            quarantine: entries(&config.root.join("quarantine"))?.into_iter().collect(),
            images: image::inventory(&config.root)
                .map_err(|error| Error::system("list", "the image directory", error))?,
        })
    }
}

/// Below the instance's own: a pod's, and in it its containers' and its init's. Below a kubelet's: those that are called
/// by an id.
fn cgroups(tree: &Hierarchies, parent: &Path, known: &Known) -> Result<Vec<Present>, Error> {
    let mut found = tree.below(&CgroupPath::new(parent)?, 2)?;
    let foreign: BTreeSet<&PathBuf> = known
        .pods
        .values()
        .map(|pod| &pod.identity)
        .filter(|identity| !identity.own_cgroup && !identity.cgroup.starts_with(parent))
        .map(|identity| &identity.cgroup)
        .collect();
    for path in foreign {
        let below = tree.below(&CgroupPath::new(path)?, 1)?;
        found.extend(below.into_iter().filter(|group| group.path != *path && id_of(&group.path).is_some()));
    }
    Ok(found)
}

/// The id that a path ends with.
pub(super) fn id_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str().filter(|name| is_id(name))
}

/// Everything in the shims' cgroup but the daemon, one thread of which lives there.
fn helpers(subject: &Subject<'_>, cgroups: &[Present]) -> Result<Vec<Helper>, Error> {
    let shims = subject.config.cgroup_parent.join("shims");
    let pids: BTreeSet<i32> =
        cgroups.iter().filter(|group| group.path == shims).flat_map(|group| group.pids.clone()).collect();
    let mut helpers = Vec::new();
    for pid in pids.into_iter().filter(|pid| Some(*pid) != subject.daemon) {
        let failed = |error| Error::system("look at", format!("process {pid}"), error);
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // One that has ended meanwhile is nobody's, and so is a zombie, which has no command line: it is reaped.
        let Some(process) = ProcessId::of(pid).map_err(failed)?.filter(|_| !line.is_empty()) else {
            continue;
        };
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let sandbox = match &words[..] {
            [name, id, ..] if name == "cove-shim" && is_id(id) => Some(id.clone()),
            _ => None,
        };
        helpers.push(Helper { process, sandbox, line: words.join(" ").trim().to_owned() });
    }
    Ok(helpers)
}

fn network(subject: &Subject<'_>) -> Result<Inventory, Error> {
    match (Builtin::inventory(&subject.config.instance), subject.config.network.mode) {
        (Ok(inventory), _) => Ok(inventory),
        // A host whose pods get their network from elsewhere may have no nft.
        (Err(_), NetworkMode::None | NetworkMode::Cni) => Ok(Inventory::default()),
        (Err(error), _) => Err(error.into()),
    }
}

fn pins(directory: &Path, instance: &str) -> Result<BTreeMap<String, (PathBuf, bool)>, Error> {
    let prefix = format!("{instance}-");
    let mut pins = BTreeMap::new();
    for path in entries(directory)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(id) = name.strip_prefix(&prefix).filter(|id| is_id(id)) else { continue };
        let is_mounted = namespace::open_pin(&path)
            .map_err(|error| Error::system("open", path.display().to_string(), error))?
            .is_some();
        pins.insert(id.to_owned(), (path.clone(), is_mounted));
    }
    Ok(pins)
}
