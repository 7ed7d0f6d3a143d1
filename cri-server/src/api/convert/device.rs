//! The devices of a `ContainerConfig`: nodes of the host, and those of vendors by CDI.

use std::collections::BTreeMap;

use super::super::wire;
use super::field::absolute;
use crate::cdi;
use crate::container::config::DeviceMapping;
use crate::error::Error;

/// What the keys of annotations that name CDI devices begin with (CDI specification, "Kubernetes").
const CDI_ANNOTATION: &str = "cdi.k8s.io/";
/// More than any node has.
const MAX_CDI_DEVICES: usize = 1024;

pub(super) fn devices(devices: Vec<wire::Device>) -> Result<Vec<DeviceMapping>, Error> {
    devices
        .into_iter()
        .enumerate()
        .map(|(index, value)| device(&format!("config.devices[{index}]"), value))
        .collect()
}

/// Nodes are made below /dev alone: elsewhere an image or a volume could stand in the way.
fn device(field: &str, device: wire::Device) -> Result<DeviceMapping, Error> {
    let at = |name: &str| format!("{field}.{name}");
    absolute(&at("host_path"), &device.host_path)?;
    let container_path =
        if device.container_path.is_empty() { device.host_path.clone() } else { device.container_path };
    let inside = absolute(&at("container_path"), &container_path)?;
    if inside.components().count() < 3 || !inside.starts_with("/dev") {
        return Err(Error::invalid(at("container_path"), format!("{container_path:?} is not below /dev")));
    }
    let permissions = device.permissions;
    let twice = |letter: char| permissions.matches(letter).count() > 1;
    if permissions.is_empty() || permissions.contains(|letter| !"rwm".contains(letter) || twice(letter)) {
        let reason = format!("{permissions:?} is not made of the letters r, w and m");
        return Err(Error::invalid(at("permissions"), reason));
    }
    Ok(DeviceMapping { container_path, host_path: device.host_path, permissions })
}

/// Devices by CDI, each once: those of the field, and those of annotations as device plugins of older kubelets name them,
/// of which each has a list with commas.
pub(super) fn cdi_devices(
    devices: Vec<wire::CdiDevice>,
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<String>, Error> {
    let by_field = devices
        .into_iter()
        .enumerate()
        .map(|(index, device)| (format!("config.CDI_devices[{index}].name"), device.name));
    let by_annotation =
        annotations.iter().filter(|(key, _)| key.starts_with(CDI_ANNOTATION)).flat_map(|(key, names)| {
            names.split(',').map(move |name| (format!("config.annotations[{key:?}]"), name.to_owned()))
        });
    let mut all = Vec::new();
    for (field, name) in by_field.chain(by_annotation) {
        cdi::Name::parse(&name).map_err(|reason| Error::invalid(field, reason))?;
        if !all.contains(&name) {
            all.push(name);
        }
    }
    if all.len() > MAX_CDI_DEVICES {
        let reason = format!("are {} devices, more than {MAX_CDI_DEVICES}", all.len());
        return Err(Error::invalid("config.CDI_devices", reason));
    }
    Ok(all)
}
