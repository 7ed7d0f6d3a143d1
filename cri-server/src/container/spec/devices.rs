//! Device nodes of the host in a container: those asked for, and all of them where it is privileged. They are looked up when
//! the container is made; what is plugged in later is a matter of its next attempt.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};
use serde_json::{Value, json};

use crate::container::config::{ContainerConfig, DeviceMapping};
use crate::error::Error;

/// How deep a directory of devices is followed: the deepest of a usual /dev is /dev/bus/usb/001.
const MAX_DEPTH: usize = 8;
/// More nodes than any host has: a container with more is a mistake.
const MAX_DEVICES: usize = 16_384;
/// What a privileged container may do with a device.
const ALL: &str = "rwm";
/// What of the host's /dev is no device of the host: terminals of others, and what every container has of its own.
const NOT_SHARED: [&str; 8] = [
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/dev/fd",
    "/dev/console",
    "/dev/ptmx",
    "/dev/.lxc",
    "/dev/.lxd-mounts",
];

/// A node as the container will have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    path: PathBuf,
    block: bool,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    access: String,
}

/// The nodes of a container; the first of those with one path stands. Blocking.
pub(super) fn nodes(config: &ContainerConfig) -> Result<Vec<Node>, Error> {
    let mut nodes = Vec::new();
    for (index, device) in config.devices.iter().enumerate() {
        asked(&format!("config.devices[{index}].host_path"), device, &mut nodes)?;
    }
    if config.privileged {
        let all = |error| Error::system("list the devices below", "/dev", error);
        below(Path::new("/dev"), Path::new("/dev"), ALL, MAX_DEPTH, &mut nodes).map_err(all)?;
    }
    if nodes.len() > MAX_DEVICES {
        return Err(Error::invalid(
            "config.devices",
            format!("are {} nodes, more than {MAX_DEVICES}", nodes.len()),
        ));
    }
    let mut seen = std::collections::BTreeSet::new();
    nodes.retain(|node| seen.insert(node.path.clone()));
    Ok(nodes)
}

/// One entry of the request: a node, or every node below a directory. Symlinks on the host are followed.
fn asked(field: &str, device: &DeviceMapping, nodes: &mut Vec<Node>) -> Result<(), Error> {
    let host = Path::new(&device.host_path);
    let refused = |reason: String| Error::invalid(field, format!("{:?} {reason}", device.host_path));
    let found = fs::metadata(host).map_err(|error| refused(format!("cannot be used: {error}")))?;
    let inside = Path::new(&device.container_path);
    if let Some(node) = node(inside, &found, &device.permissions) {
        nodes.push(node);
        return Ok(());
    }
    if !found.is_dir() {
        return Err(refused("is neither a device nor a directory".to_owned()));
    }
    let before = nodes.len();
    below(host, inside, &device.permissions, MAX_DEPTH, nodes)
        .map_err(|error| refused(format!("cannot be listed: {error}")))?;
    if nodes.len() == before {
        return Err(refused("has no device in it".to_owned()));
    }
    Ok(())
}

/// Every node below a directory of the host. Symlinks there are not followed: they name nodes that are met anyway, or lead
/// elsewhere.
fn below(
    host: &Path,
    inside: &Path,
    access: &str,
    depth: usize,
    nodes: &mut Vec<Node>,
) -> std::io::Result<()> {
    let mut entries = fs::read_dir(host)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if NOT_SHARED.iter().any(|other| path == Path::new(other)) || nodes.len() > MAX_DEVICES {
            continue;
        }
        // What is unplugged meanwhile is not there.
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        let inside = inside.join(entry.file_name());
        if let Some(node) = node(&inside, &found, access) {
            nodes.push(node);
        } else if found.is_dir() && depth > 0 {
            below(&path, &inside, access, depth - 1, nodes)?;
        }
    }
    Ok(())
}

fn node(path: &Path, found: &Metadata, access: &str) -> Option<Node> {
    let kind = found.file_type();
    (kind.is_block_device() || kind.is_char_device()).then(|| Node {
        path: path.to_owned(),
        block: kind.is_block_device(),
        major: major(found.rdev()),
        minor: minor(found.rdev()),
        mode: found.mode() & 0o777,
        uid: found.uid(),
        gid: found.gid(),
        access: access.to_owned(),
    })
}

impl Node {
    fn kind(&self) -> &'static str {
        if self.block { "b" } else { "c" }
    }

    /// An entry of `linux.devices`.
    pub(super) fn device(&self) -> Value {
        json!({ "path": self.path, "type": self.kind(), "major": self.major, "minor": self.minor,
                "fileMode": self.mode, "uid": self.uid, "gid": self.gid })
    }

    /// An entry of `linux.resources.devices`.
    pub(super) fn rule(&self) -> Value {
        json!({ "allow": true, "type": self.kind(), "major": self.major, "minor": self.minor,
                "access": self.access })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(container_path: &str, host_path: &str) -> Result<Vec<Node>, Error> {
        let mut config = super::super::tests::config();
        config.devices.push(DeviceMapping {
            container_path: container_path.into(),
            host_path: host_path.into(),
            permissions: "rw".into(),
        });
        nodes(&config)
    }

    #[test]
    fn nodes_are_found_through_symlinks_and_below_directories() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/dev/full", &link).unwrap();
        let one = found("/dev/mine", link.to_str().unwrap()).unwrap();
        assert_eq!((one.len(), one[0].path.as_path()), (1, Path::new("/dev/mine")));
        assert_eq!(
            one[0].rule(),
            json!({ "allow": true, "type": "c", "major": 1, "minor": 7, "access": "rw" })
        );
        assert_eq!(one[0].device()["fileMode"], 0o666);
        let all = found("/dev/all", "/dev").unwrap();
        assert!(all.iter().any(|node| node.path == Path::new("/dev/all/null")));
        assert!(!all.iter().any(|node| node.path.starts_with("/dev/all/pts")), "terminals are not shared");
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let empty = tempfile::tempdir().unwrap();
        for bad in ["/etc/passwd", "/nowhere", empty.path().to_str().unwrap()] {
            assert!(matches!(found("/dev/x", bad), Err(Error::InvalidArgument { .. })), "{bad}");
        }
    }

    #[test]
    fn a_privileged_container_has_every_device_once() {
        let mut config = super::super::tests::config();
        config.privileged = true;
        let all = nodes(&config).unwrap();
        assert_eq!(all.iter().filter(|node| node.path == Path::new("/dev/null")).count(), 1);
        assert!(all.iter().all(|node| node.access == ALL));
    }
}
