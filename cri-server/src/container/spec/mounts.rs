//! What is mounted in a container: what every one has, the pod's own files, and the volumes asked for.

use std::path::Path;

use serde_json::{Value, json};

use crate::container::config::{ContainerConfig, Mount, MountPropagation};
use crate::error::Error;
use crate::sandbox::config::UserNamespace;
use crate::sandbox::files::{HOSTNAME, HOSTS, RESOLV_CONF};
use crate::sandbox::record::Places;

/// `mounts` of the spec, parents first.
pub(super) fn mounts(
    places: &Places,
    config: &ContainerConfig,
    user_namespace: Option<UserNamespace>,
) -> Result<Vec<Value>, Error> {
    let volumes = config.mounts.iter().map(volume).collect::<Result<Vec<_>, _>>()?;
    let mut all: Vec<Value> = base(config)
        .into_iter()
        .chain(files(places, config).into_iter().map(|file| mapped(file, user_namespace)))
        .filter(|mount| !is_replaced(&mount["destination"], &config.mounts))
        .chain(volumes)
        .collect();
    // Stable: of two at one path, the later one stands.
    all.sort_by_key(|mount| depth(&mount["destination"]));
    Ok(all)
}

/// A bind mount whose owners are ids of the pod's user namespace.
fn mapped(mut mount: Value, ids: Option<UserNamespace>) -> Value {
    if let Some(ids) = ids {
        mount["uidMappings"] = ids.mappings();
        mount["gidMappings"] = ids.mappings();
    }
    mount
}

fn depth(destination: &Value) -> usize {
    Path::new(destination.as_str().unwrap_or_default()).components().count()
}

/// A volume at the same path takes the place of ours; a volume on /dev takes the place of all below.
fn is_replaced(ours: &Value, volumes: &[Mount]) -> bool {
    let ours = Path::new(ours.as_str().unwrap_or_default());
    volumes.iter().any(|volume| {
        let path = Path::new(&volume.container_path);
        // By components: a slash at the end names the same path.
        path.components().eq(ours.components())
            || (path.components().eq(Path::new("/dev").components()) && ours.starts_with("/dev"))
    })
}

fn base(config: &ContainerConfig) -> Vec<Value> {
    let access = if config.privileged { "rw" } else { "ro" };
    vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                "options": ["nosuid", "noexec", "nodev"] }),
        // The pod's, from the holder in its shim.
        json!({ "destination": "/dev/shm", "type": "cove-shm", "source": "shm",
                "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", access] }),
        json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", access] }),
    ]
}

/// The pod's files; read-only where the root file system is (features.md 1.3).
fn files(places: &Places, config: &ContainerConfig) -> Vec<Value> {
    let access = if config.readonly_rootfs { "ro" } else { "rw" };
    [("/etc/hosts", HOSTS), ("/etc/hostname", HOSTNAME), ("/etc/resolv.conf", RESOLV_CONF)]
        .map(|(destination, name)| {
            json!({ "destination": destination, "type": "bind", "source": places.run.join(name).to_string_lossy(),
                    "options": ["rbind", "rprivate", access] })
        })
        .into()
}

fn volume(mount: &Mount) -> Result<Value, Error> {
    let refuse = |field: &str, value: &str, reason: &str| {
        Err(Error::invalid(format!("config.mounts.{field}"), format!("{value:?} {reason}")))
    };
    for (field, path) in [("container_path", &mount.container_path), ("host_path", &mount.host_path)] {
        if !path.starts_with('/') {
            return refuse(field, path, "is not an absolute path");
        }
        if path.contains('\0') {
            return refuse(field, path, "holds a NUL byte");
        }
    }
    if Path::new(&mount.container_path).components().count() < 2 {
        return refuse("container_path", &mount.container_path, "would hide the root file system");
    }
    let propagation = match mount.propagation {
        MountPropagation::Private => "rprivate",
        MountPropagation::HostToContainer => "rslave",
        MountPropagation::Bidirectional => "rshared",
    };
    let access = match (mount.recursive_readonly, mount.readonly) {
        (true, _) => "rro",
        (false, true) => "ro",
        (false, false) => "rw",
    };
    let flags = mount.options.iter().map(|option| option.as_str());
    let options: Vec<&str> = ["rbind", propagation, access].into_iter().chain(flags).collect();
    let bind = json!({ "destination": mount.container_path, "type": "bind", "source": mount.host_path,
                       "options": options });
    Ok(mapped(bind, mount.mapping))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::config::MountOption;
    use crate::container::spec::tests::config;

    fn destinations(volumes: &[(&str, &str)]) -> Result<Vec<String>, Error> {
        let mut config = config();
        config.mounts = volumes
            .iter()
            .map(|(container_path, host_path)| Mount {
                container_path: (*container_path).into(),
                host_path: (*host_path).into(),
                readonly: true,
                selinux_relabel: false,
                propagation: MountPropagation::HostToContainer,
                recursive_readonly: false,
                mapping: None,
                options: Vec::new(),
            })
            .collect();
        let places = Places::new(Path::new("/r"), Path::new("/s"), "x");
        Ok(mounts(&places, &config, None)?
            .iter()
            .map(|m| m["destination"].as_str().unwrap().to_owned())
            .collect())
    }

    #[test]
    fn parents_come_first() {
        let all = destinations(&[("/a/b/c", "/x"), ("/a", "/y")]).unwrap();
        let at = |path: &str| all.iter().position(|known| known == path).unwrap();
        assert!(at("/a") < at("/a/b/c") && at("/dev") < at("/dev/shm") && at("/sys") < at("/sys/fs/cgroup"));
        assert_eq!(all.len(), 12);
    }

    #[test]
    fn a_volume_takes_the_place_of_ours() {
        let all = destinations(&[("/etc/hosts/", "/x")]).unwrap();
        assert_eq!(all.iter().filter(|path| path.starts_with("/etc/hosts")).count(), 1);
        let all = destinations(&[("/dev", "/dev")]).unwrap();
        assert_eq!(all.iter().filter(|path| path.starts_with("/dev")).count(), 1);
        assert_eq!(all.len(), 7);
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        for bad in [("a", "/x"), ("/a", "x"), ("/", "/x"), ("//", "/x"), ("/a\0", "/x"), ("/a", "/x\0")] {
            assert!(destinations(&[bad]).is_err(), "{bad:?}");
        }
    }
    #[test]
    fn flags_of_a_volume_reach_the_spec() {
        let mount = Mount {
            container_path: "/a".into(),
            host_path: "/x".into(),
            readonly: true,
            selinux_relabel: false,
            propagation: MountPropagation::Private,
            recursive_readonly: true,
            mapping: None,
            options: vec![MountOption::NoExec, MountOption::NoDev],
        };
        let options = |mount: &Mount| volume(mount).unwrap()["options"].clone();
        assert_eq!(options(&mount), json!(["rbind", "rprivate", "rro", "noexec", "nodev"]));
        let plain = Mount { recursive_readonly: false, options: Vec::new(), ..mount };
        assert_eq!(options(&plain), json!(["rbind", "rprivate", "ro"]));
        assert!(volume(&plain).unwrap().get("uidMappings").is_none());
        let ids = UserNamespace { host_id: 1000, length: 10 };
        let mapped = volume(&Mount { mapping: Some(ids), ..plain }).unwrap();
        let mapping = json!([{ "containerID": 0, "hostID": 1000, "size": 10 }]);
        assert_eq!([&mapped["uidMappings"], &mapped["gidMappings"]], [&mapping, &mapping]);
    }
}
