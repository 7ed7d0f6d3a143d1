//! The cgroupfs driver: this daemon writes to the cgroup file systems itself, on threads that may wait.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use cove_runtime::cgroup::{Cgroup, CgroupPath, Detail, DeviceRule, Hierarchies, Limits, StatsReader};
use cove_runtime::protocol::CgroupPlace;

use crate::blocking;
use crate::config::CgroupDriver;
use crate::error::Error;

/// Name of the shims' cgroup below the instance's own: never a pod's, so that a pod's limits never bind its shim.
const SHIMS: &str = "shims";

/// Makes, limits, kills and removes cgroups.
#[derive(Debug, Clone)]
pub struct Cgroups {
    tree: Arc<Hierarchies>,
    parent: CgroupPath,
    shims: CgroupPath,
}

/// What a cgroup is made with.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Limits.
    pub limits: Limits,
    /// Devices that may be used beside the usual ones.
    pub devices: Vec<DeviceRule>,
    /// Every device may be used.
    pub all_devices: bool,
}

/// How a shim places a process.
#[derive(Debug)]
pub struct Placement {
    /// As the protocol says it.
    pub place: CgroupPlace,
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
    /// Counts kills for want of memory.
    pub oom_events: Option<OwnedFd>,
}

impl Placement {
    /// The process stays where its parent is.
    pub const fn nowhere() -> Self {
        Self { place: CgroupPlace { unified: false, count: 0 }, fds: Vec::new(), oom_events: None }
    }
}

impl Cgroups {
    /// Looks at what the host has mounted. `parent` is the instance's own cgroup. Blocking.
    pub fn open(driver: CgroupDriver, parent: &Path) -> Result<Self, Error> {
        if driver == CgroupDriver::Systemd {
            return Err(Error::Unimplemented("cgroup_driver = \"systemd\""));
        }
        let parent = CgroupPath::new(parent)?;
        let shims = parent.join(SHIMS)?;
        Ok(Self { tree: Arc::new(Hierarchies::detect()?), parent, shims })
    }

    /// Removes what is the instance's own and holds nobody: with no pod left, nothing is left.
    pub async fn close(&self) -> Result<(), Error> {
        let this = self.clone();
        blocking::run(move || {
            // A thread that has been joined is in its cgroup for a moment more: this waits for that.
            let removed = this.tree.remove(&this.shims);
            this.tree.remove_if_empty(&this.parent)?;
            Ok(removed?)
        })
        .await
    }

    /// cgroup v2 carries the controllers.
    pub fn unified(&self) -> bool {
        self.tree.unified()
    }

    /// Makes the shims' cgroup. Blocking.
    pub fn make_shims(&self) -> Result<(), Error> {
        Ok(self.tree.create(&self.shims).map(drop)?)
    }

    /// Makes the shims' cgroup, and moves the calling thread there where a thread alone can be moved (v1): what it
    /// starts is born there. Blocking.
    pub fn enter_shims(&self) -> Result<(), Error> {
        Ok(self.tree.create(&self.shims)?.add_this_thread()?)
    }

    /// Moves a shim into the shims' cgroup, unless it was born there. Blocking.
    pub fn place_shim(&self, pid: i32) -> Result<(), Error> {
        if self.tree.unified() { Ok(self.tree.create(&self.shims)?.add(pid)?) } else { Ok(()) }
    }

    /// Pids of everything in the shims' cgroup. Blocking.
    pub fn shims(&self) -> Result<Vec<i32>, Error> {
        match self.tree.open(&self.shims)? {
            Some(cgroup) => Ok(cgroup.pids()?),
            None => Ok(Vec::new()),
        }
    }

    /// Makes a cgroup with its limits, and says how processes are placed in it.
    pub async fn make(&self, path: &Path, settings: Settings) -> Result<Placement, Error> {
        let tree = Arc::clone(&self.tree);
        let path = CgroupPath::new(path)?;
        blocking::run(move || {
            let cgroup = tree.create(&path)?;
            cgroup.set_limits(&settings.limits)?;
            cgroup.set_device_rules(settings.all_devices, &settings.devices)?;
            let oom_events = cgroup.oom_events()?;
            Ok(Placement { oom_events, ..place_of(&cgroup, tree.unified())? })
        })
        .await
    }

    /// Makes a cgroup that holds others.
    pub async fn make_parent(&self, path: &Path) -> Result<(), Error> {
        let tree = Arc::clone(&self.tree);
        let path = CgroupPath::new(path)?;
        blocking::run(move || Ok(tree.create(&path).map(drop)?)).await
    }

    /// How processes are placed in the cgroup at `path`. Gone: they stay where their parent is.
    pub async fn place(&self, path: &Path) -> Result<Placement, Error> {
        let tree = Arc::clone(&self.tree);
        let path = CgroupPath::new(path)?;
        blocking::run(move || match tree.open(&path)? {
            Some(cgroup) => place_of(&cgroup, tree.unified()),
            None => Ok(Placement::nowhere()),
        })
        .await
    }

    /// Opens what statistics of a cgroup come from; none if it is gone. Blocking.
    pub fn reader(&self, path: &Path) -> Result<Option<StatsReader>, Error> {
        match self.tree.open(&CgroupPath::new(path)?)? {
            Some(cgroup) => Ok(Some(cgroup.stats()?)),
            None => Ok(None),
        }
    }

    /// What a cgroup has used, in detail; none if it is gone. Blocking.
    pub fn detail(&self, path: &Path) -> Result<Option<Detail>, Error> {
        match self.tree.open(&CgroupPath::new(path)?)? {
            Some(cgroup) => Ok(cgroup.detail()?),
            None => Ok(None),
        }
    }

    /// Changes limits of a cgroup that is in use: all of them, or none. False: it is gone.
    pub async fn change_limits(&self, path: &Path, limits: Limits) -> Result<bool, Error> {
        let tree = Arc::clone(&self.tree);
        let path = CgroupPath::new(path)?;
        blocking::run(move || match tree.open(&path)? {
            Some(cgroup) => {
                cgroup.change_limits(&limits)?;
                Ok(true)
            }
            None => Ok(false),
        })
        .await
    }

    /// Kills everything in a cgroup and below. Gone is done.
    pub async fn kill(&self, path: &Path) -> Result<(), Error> {
        let tree = Arc::clone(&self.tree);
        let path = CgroupPath::new(path)?;
        blocking::run(move || match tree.open(&path)? {
            Some(cgroup) => Ok(cgroup.kill()?),
            None => Ok(()),
        })
        .await
    }

    /// Nobody is in a cgroup, or it is gone.
    pub async fn is_empty(&self, path: &Path) -> Result<bool, Error> {
        let tree = Arc::clone(&self.tree);
        let path = CgroupPath::new(path)?;
        blocking::run(move || match tree.open(&path)? {
            Some(cgroup) => Ok(cgroup.pids()?.is_empty()),
            None => Ok(true),
        })
        .await
    }

    /// Kills everything in a cgroup and removes it. Gone is done.
    pub async fn remove(&self, path: &Path) -> Result<(), Error> {
        let tree = Arc::clone(&self.tree);
        let path = CgroupPath::new(path)?;
        blocking::run(move || {
            if let Some(cgroup) = tree.open(&path)? {
                cgroup.kill()?;
                tree.remove(&path)?;
            }
            Ok(())
        })
        .await
    }

    /// Removes a parent of ours when nobody is left in it.
    pub async fn remove_if_empty(&self, path: &Path) -> Result<(), Error> {
        let tree = Arc::clone(&self.tree);
        let path = CgroupPath::new(path)?;
        blocking::run(move || Ok(tree.remove_if_empty(&path)?)).await
    }
}

fn place_of(cgroup: &Cgroup, unified: bool) -> Result<Placement, Error> {
    let fds = cgroup.place()?;
    let count = u8::try_from(fds.len()).map_err(|_| {
        Error::system("place process in", "cgroup", std::io::Error::other("more than 255 hierarchies"))
    })?;
    Ok(Placement { place: CgroupPlace { unified, count }, fds, oom_events: None })
}
