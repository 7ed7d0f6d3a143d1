//! What is mounted in a container: what every one has, the pod's own files, and the volumes asked for.

use std::path::Path;

use serde_json::{Value, json};

use super::Sources;
use super::volumes::declared;
use crate::container::config::{ContainerConfig, ImageMount, Mount, MountPropagation};
use crate::container::image_volume::VolumeImage;
use crate::error::Error;
use crate::sandbox::config::UserNamespace;
use crate::sandbox::files::{HOSTNAME, HOSTS, RESOLV_CONF};
use crate::sandbox::record::Places;

/// `mounts` of the spec, parents first, and how many of them are VOLUMEs of the image.
pub(super) fn mounts(
    places: &Places,
    config: &ContainerConfig,
    sources: &Sources<'_>,
    user_namespace: Option<UserNamespace>,
) -> Result<(Vec<Value>, usize), Error> {
    let volumes = config
        .mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| match &mount.image {
            None => volume(mount),
            Some(asked) => image_volume(index, mount, asked, sources.volume_images),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut all: Vec<Value> = base(config)
        .into_iter()
        .chain(files(places, config).into_iter().map(|file| mapped(file, user_namespace)))
        .filter(|mount| !is_replaced(&mount["destination"], &config.mounts))
        .collect();
    let declared = declared(&sources.image.config, config, &all)?;
    all.extend(declared.iter().enumerate().map(|(n, path)| {
        // Its content is copied by the builder.
        json!({ "destination": path.to_string_lossy(), "type": "cove-volume",
                "source": sources.volumes.join(n.to_string()).to_string_lossy(), "options": ["rw"] })
    }));
    all.extend(volumes);
    // Stable: of two at one path, the later one stands.
    all.sort_by_key(|mount| depth(&mount["destination"]));
    Ok((all, declared.len()))
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
    let flags = flags(mount);
    let options: Vec<&str> = ["rbind", propagation, access].into_iter().chain(flags).collect();
    let bind = json!({ "destination": mount.container_path, "type": "bind", "source": mount.host_path,
                       "options": options });
    Ok(mapped(bind, mount.mapping))
}

fn flags(mount: &Mount) -> impl Iterator<Item = &'static str> {
    mount.options.iter().map(|option| option.as_str())
}

/// An overlay of the image's layers. Files of an image that nobody runs as a container give no rights.
fn image_volume(
    index: usize,
    mount: &Mount,
    asked: &ImageMount,
    images: &[VolumeImage],
) -> Result<Value, Error> {
    let image = images
        .iter()
        .find(|image| image.mount == index)
        .ok_or_else(|| Error::invalid(format!("config.mounts[{index}].image"), "was not looked for"))?;
    let mut options: Vec<String> =
        ["ro", "nosuid", "nodev"].into_iter().chain(flags(mount)).map(str::to_owned).collect();
    options.extend(image.layers.iter().map(|layer| format!("lowerdir+={}", layer.display())));
    if !asked.sub_path.is_empty() {
        options.push(format!("X-mount.subdir={}", asked.sub_path));
    }
    Ok(
        json!({ "destination": mount.container_path, "type": "overlay", "source": "overlay", "options": options }),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::container::config::MountOption;
    use crate::container::spec::tests::{config, sources};
    use crate::image::{Image, ImageConfig};

    fn destinations(volumes: &[(&str, &str)]) -> Result<Vec<String>, Error> {
        let mut config = config();
        config.mounts =
            volumes.iter().map(|(container_path, host_path)| of_host(container_path, host_path)).collect();
        Ok(all(&config, &ImageConfig::default(), &[])?.iter().map(destination).collect())
    }

    pub(in crate::container::spec) fn of_host(container_path: &str, host_path: &str) -> Mount {
        Mount {
            container_path: container_path.into(),
            host_path: host_path.into(),
            readonly: true,
            selinux_relabel: false,
            propagation: MountPropagation::HostToContainer,
            recursive_readonly: false,
            mapping: None,
            options: Vec::new(),
            image: None,
        }
    }

    fn destination(mount: &Value) -> String {
        mount["destination"].as_str().unwrap().to_owned()
    }

    fn all(
        config: &ContainerConfig,
        image: &ImageConfig,
        volume_images: &[VolumeImage],
    ) -> Result<Vec<Value>, Error> {
        let image = Image {
            id: "sha256:1".into(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size: 1,
            pinned: false,
            config: image.clone(),
            layers: Vec::new(),
        };
        let places = Places::new(Path::new("/r"), Path::new("/s"), "x");
        let sources = Sources { volume_images, ..sources(&image) };
        mounts(&places, config, &sources, None).map(|(all, _)| all)
    }

    #[test]
    fn an_image_as_a_volume() {
        let mut config = config();
        let image = ImageMount {
            image: "r/i:1".into(),
            user_specified_image: String::new(),
            runtime_handler: String::new(),
            annotations: Default::default(),
            sub_path: "etc".into(),
        };
        let mount = Mount { host_path: String::new(), image: Some(image), ..of_host("/image", "") };
        config.mounts = vec![of_host("/x", "/y"), Mount { options: vec![MountOption::NoExec], ..mount }];
        let layers = vec!["/l/2".into(), "/l/1".into()];
        let images = [VolumeImage { mount: 1, image_id: "sha256:2".into(), layers }];
        let all = all(&config, &ImageConfig::default(), &images).unwrap();
        let found = all.iter().find(|mount| destination(mount) == "/image").unwrap();
        assert_eq!(found["type"], "overlay");
        assert_eq!(
            found["options"],
            json!([
                "ro",
                "nosuid",
                "nodev",
                "noexec",
                "lowerdir+=/l/2",
                "lowerdir+=/l/1",
                "X-mount.subdir=etc"
            ])
        );
    }

    #[test]
    fn volumes_of_the_image() {
        let mut config = config();
        config.mounts = vec![of_host("/b", "/x")];
        let image =
            ImageConfig { volumes: vec!["/c/d".into(), "/a".into(), "/b/e".into()], ..Default::default() };
        let all = all(&config, &image, &[]).unwrap();
        let found: Vec<_> = all
            .iter()
            .filter(|mount| mount["type"] == "cove-volume")
            .map(|mount| (destination(mount), mount["source"].as_str().unwrap()))
            .collect();
        let expected = [("/a".to_owned(), "/bundle/volumes/0"), ("/c/d".to_owned(), "/bundle/volumes/1")];
        assert_eq!(found, expected);
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
            propagation: MountPropagation::Private,
            recursive_readonly: true,
            mapping: None,
            options: vec![MountOption::NoExec, MountOption::NoDev],
            ..of_host("/a", "/x")
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
