//! What dashboards ask of pods beyond their statistics: every figure that a kubelet's cAdvisor tells. Asked for once or
//! twice a minute; reads the same cgroups, and /proc of the containers' processes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cove_runtime::cgroup::Detail;
use rustix::fs::{major, minor, stat, statvfs};

use super::{ContainerUsage, SandboxUsage, of_sandbox};
use crate::blocking;
use crate::error::Error;
use crate::node::Node;
use crate::sandbox;
use crate::sandbox::list::SandboxFilter;

/// How long a call waits in all for layers that were never measured.
const FIRST_MEASUREMENT: Duration = Duration::from_millis(200);

/// What a pod uses.
#[derive(Debug)]
pub struct SandboxDetail {
    /// Its statistics; those of its containers stand in `containers`.
    pub usage: SandboxUsage,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Of its cgroup; none once it is gone.
    pub detail: Option<Detail>,
    /// Its running containers.
    pub containers: Vec<ContainerDetail>,
}

/// What a container uses.
#[derive(Debug)]
pub struct ContainerDetail {
    /// Its statistics.
    pub usage: ContainerUsage,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Of its cgroup.
    pub detail: Detail,
    /// Open files of its processes, and how many of them are sockets.
    pub descriptors: (u64, u64),
    /// The soft limit on open files of its first process; none without one.
    pub open_files: Option<u64>,
}

/// The disk on which writable layers lie, and the names of all others that are told of.
#[derive(Debug, Default)]
pub struct Disk {
    /// As mount(8) shows it.
    pub device: String,
    /// Bytes, inodes, free inodes.
    pub size: [u64; 3],
    /// Names of disks by their numbers, as /dev has them.
    names: BTreeMap<(u32, u32), String>,
}

impl Disk {
    /// The name of a disk.
    pub fn name(&self, number: (u32, u32)) -> String {
        self.names.get(&number).cloned().unwrap_or_else(|| format!("{}:{}", number.0, number.1))
    }
}

/// ListPodSandboxMetrics: ready pods, in the order of their making.
pub async fn details(node: &Arc<Node>) -> Result<(Vec<SandboxDetail>, Disk), Error> {
    let node = Arc::clone(node);
    blocking::run(move || {
        node.usage.forget_all_but(&node);
        let end = Instant::now() + FIRST_MEASUREMENT;
        let filter = SandboxFilter { ready: Some(true), ..SandboxFilter::default() };
        let mut all = Vec::new();
        for view in sandbox::list::list(&node, &filter) {
            match of_pod(&node, of_sandbox(&node, view), end) {
                Ok(pod) => all.extend(pod),
                // One that is removed meanwhile never fails the list.
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let io = all.iter().flat_map(|pod: &SandboxDetail| {
            let containers = pod.containers.iter().flat_map(|container| &container.detail.io);
            pod.detail.iter().flat_map(|detail| &detail.io).chain(containers)
        });
        let names =
            io.map(|io| (io.major, io.minor)).filter_map(|number| Some((number, name(number)?))).collect();
        let root = node.config.load().root.clone();
        let disk = disk(&root)
            .map_err(|error| Error::system("look at the disk of", root.display().to_string(), error))?;
        Ok((all, Disk { names, ..disk }))
    })
    .await
}

/// None of a pod that was stopped since it was listed.
fn of_pod(
    node: &Node,
    usage: Result<SandboxUsage, Error>,
    end: Instant,
) -> Result<Option<SandboxDetail>, Error> {
    let mut usage = usage?;
    let Some(sandbox) = node.sandboxes.get(&usage.view.id).filter(|_| usage.reading.is_some()) else {
        return Ok(None);
    };
    let cgroup = sandbox.identity.cgroup.clone();
    let detail = node.cgroups.detail(&cgroup)?;
    let mut containers = Vec::new();
    for container in std::mem::take(&mut usage.containers) {
        containers.extend(of_container(node, container, end)?);
    }
    Ok(Some(SandboxDetail { usage, cgroup, detail, containers }))
}

fn of_container(
    node: &Node,
    mut usage: ContainerUsage,
    end: Instant,
) -> Result<Option<ContainerDetail>, Error> {
    let Some(container) = node.containers.get(&usage.view.id) else { return Ok(None) };
    let cgroup = container.identity.cgroup.clone();
    let Some(detail) = node.cgroups.detail(&cgroup)? else { return Ok(None) };
    if usage.layer.is_none() {
        usage.layer = node.usage.layers.first_of(container.id(), &container.places.upper(), end);
    }
    let descriptors = descriptors(&detail.processes);
    let open_files = usage.view.pid.and_then(|pid| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        open_files(&limits)
    });
    Ok(Some(ContainerDetail { usage, cgroup, detail, descriptors, open_files }))
}

/// Open files of processes, and how many of them are sockets. Looks at names only, which touches no file system but
/// /proc. A process that ends meanwhile has none.
fn descriptors(processes: &[i32]) -> (u64, u64) {
    let open = processes.iter().filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).ok());
    let links = open.flatten().flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.fold((0, 0), |(all, sockets), link| {
        let is_socket = link.as_os_str().as_encoded_bytes().starts_with(b"socket:");
        (all + 1, sockets + u64::from(is_socket))
    })
}

/// `Max open files   1024   524288   files`: proc_pid_limits(5).
fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn disk(root: &Path) -> std::io::Result<Disk> {
    let size = statvfs(root)?;
    let device = stat(root)?.st_dev;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let number = format!("{}:{}", major(device), minor(device));
    Ok(Disk {
        device: source(&mounts, &number).unwrap_or(&number).to_owned(),
        size: [size.f_blocks.saturating_mul(size.f_frsize), size.f_files, size.f_ffree],
        names: BTreeMap::new(),
    })
}

/// The source of a mount of the device: proc_pid_mountinfo(5).
fn source<'a>(mounts: &'a str, number: &str) -> Option<&'a str> {
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(number))?;
    line.split_once(" - ")?.1.split(' ').nth(1)
}

/// The name of a disk in /dev.
fn name((major, minor): (u32, u32)) -> Option<String> {
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_sockets_of_a_process() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = descriptors(&[own]);
        let _file = std::fs::File::open("/dev/null").unwrap();
        let _pair = std::os::unix::net::UnixStream::pair().unwrap();
        let after = descriptors(&[own, i32::MAX]);
        assert!(after.0 >= before.0 + 3 && after.1 >= before.1 + 2, "{before:?} {after:?}");
    }

    #[test]
    fn limits_and_sources_are_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             1                    2                    processes \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(open_files(limits), Some(1024));
        assert_eq!(
            open_files("Max open files            unlimited            unlimited            files\n"),
            None
        );
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:5 / /run rw shared:1 - tmpfs tmpfs rw\n";
        assert_eq!((source(mounts, "8:1"), source(mounts, "0:5")), (Some("/dev/sda1"), Some("tmpfs")));
        assert_eq!(source(mounts, "9:9"), None);
        let disk = disk(Path::new("/")).unwrap();
        assert!(disk.size[0] > 0 && !disk.device.is_empty());
        assert_eq!(disk.name((8, 77)), "8:77");
    }
}
