//! The mounts of a `ContainerConfig`: paths of the host and images.

use super::super::code::IMAGE_VOLUME;
use super::super::wire;
use super::field::{absolute, known, no_control, relative};
use super::security;
use crate::container::config::{ImageMount, Mount, MountOption, MountPropagation};
use crate::error::Error;
use crate::sandbox::config::UserNamespace;

pub(super) fn mounts(mounts: Vec<wire::Mount>, pod: Option<UserNamespace>) -> Result<Vec<Mount>, Error> {
    mounts
        .into_iter()
        .enumerate()
        .map(|(index, value)| mount(&format!("config.mounts[{index}]"), value, pod))
        .collect()
}

fn mount(field: &str, mount: wire::Mount, pod: Option<UserNamespace>) -> Result<Mount, Error> {
    let at = |name: &str| format!("{field}.{name}");
    let fields = [&at("uidMappings")[..], &at("gidMappings")];
    let mapping = security::volume_mapping(fields, &mount.uid_mappings, &mount.gid_mappings, pod)?;
    recursive(&at("recursive_read_only"), &mount)?;
    absolute(&at("container_path"), &mount.container_path)?;
    if mount.container_path.trim_matches('/').is_empty() {
        return Err(Error::invalid(
            at("container_path"),
            "the root file system itself cannot be mounted over",
        ));
    }
    let image = match &mount.image {
        Some(image) => Some(image_mount(field, &mount, image)?),
        None if !mount.image_sub_path.is_empty() => {
            return Err(Error::invalid(at("image_sub_path"), "needs an image"));
        }
        None => absolute(&at("host_path"), &mount.host_path).map(|_| None)?,
    };
    Ok(Mount {
        image,
        propagation: match known(&at("propagation"), mount.propagation)? {
            wire::MountPropagation::PropagationPrivate => MountPropagation::Private,
            wire::MountPropagation::PropagationHostToContainer => MountPropagation::HostToContainer,
            wire::MountPropagation::PropagationBidirectional => MountPropagation::Bidirectional,
        },
        container_path: mount.container_path,
        host_path: mount.host_path,
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        recursive_readonly: mount.recursive_read_only,
        mapping,
        options: mount
            .mount_options
            .iter()
            .enumerate()
            .map(|(index, option)| mount_option(&at(&format!("mount_options[{index}]")), option))
            .collect::<Result<_, _>>()?,
    })
}

/// What an image volume is (KEP-4639): an image in the place of a path of the host, never written to.
fn image_mount(field: &str, mount: &wire::Mount, image: &wire::ImageSpec) -> Result<ImageMount, Error> {
    // A kubelet knows the refusal by how it begins.
    let at = |name: &str| format!("{IMAGE_VOLUME}{field}.{name}");
    if image.image.is_empty() {
        return Err(Error::invalid(at("image.image"), "must not be empty"));
    }
    no_control(&at("image.image"), &image.image)?;
    if !mount.host_path.is_empty() {
        return Err(Error::invalid(at("host_path"), "must be empty where an image is mounted"));
    }
    if !mount.readonly {
        return Err(Error::invalid(at("readonly"), "must be true where an image is mounted"));
    }
    if mount.propagation == i32::from(wire::MountPropagation::PropagationBidirectional) {
        return Err(Error::invalid(at("propagation"), "an image has no mounts to pass on"));
    }
    if !mount.image_sub_path.is_empty() {
        relative(&at("image_sub_path"), &mount.image_sub_path)?;
    }
    Ok(ImageMount {
        image: image.image.clone(),
        user_specified_image: image.user_specified_image.clone(),
        runtime_handler: image.runtime_handler.clone(),
        annotations: image.annotations.clone(),
        sub_path: mount.image_sub_path.clone(),
    })
}

/// What a recursive read-only mount needs: KEP-3857. A kubelet knows the refusal of a kernel by how it begins.
fn recursive(field: &str, mount: &wire::Mount) -> Result<(), Error> {
    if !mount.recursive_read_only {
        return Ok(());
    }
    if !mount.readonly {
        return Err(Error::invalid(field, "needs a mount that is read-only"));
    }
    if mount.propagation != i32::from(wire::MountPropagation::PropagationPrivate) {
        return Err(Error::invalid(field, "needs a mount without propagation"));
    }
    if !cove_runtime::namespace::has_recursive_mount_flags() {
        return Err(Error::invalid(
            format!("RROUnsupported: {field}"),
            "this kernel has no mount_setattr(2)",
        ));
    }
    Ok(())
}

fn mount_option(field: &str, option: &str) -> Result<MountOption, Error> {
    MountOption::ALL
        .into_iter()
        .find(|known| known.as_str() == option)
        .ok_or_else(|| Error::invalid(field, format!("{option:?} is none of noexec, nosuid and nodev")))
}
