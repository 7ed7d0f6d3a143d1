//! `ContainerConfig` becomes the domain's one of the same name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::code::IMAGE_VOLUME;
use super::super::wire;
use super::field::{
    absolute, id, known, name, no_control, no_nul, not_built, relative, required, within, word,
};
use super::process::{environment, strings};
use super::{security, signal};
use crate::cdi;
use crate::container::config::{
    ContainerConfig, ContainerName, DeviceMapping, ImageMount, Mount, MountOption, MountPropagation,
    PidNamespace, Resources,
};
use crate::error::Error;
use crate::sandbox::config::{NamespaceMode, SandboxConfig, UserNamespace};

const SECURITY: &str = "config.linux.security_context";
const RESOURCES: &str = "config.linux.resources";
/// What the keys of annotations that name CDI devices begin with (CDI specification, "Kubernetes").
const CDI_ANNOTATION: &str = "cdi.k8s.io/";
/// More than any node has.
const MAX_CDI_DEVICES: usize = 1024;
/// The longest name of a file: NAME_MAX (limits.h).
const MAX_KEY: usize = 255;

/// Checks the configuration of CreateContainer whole, against the sandbox that it is for.
pub(in crate::api) fn config(
    config: Option<wire::ContainerConfig>,
    sandbox: &SandboxConfig,
) -> Result<ContainerConfig, Error> {
    let config = required("config", config)?;
    refuse_not_built(&config)?;
    let linux = config.linux.unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    if context.privileged && !sandbox.privileged {
        return Err(Error::invalid(format!("{SECURITY}.privileged"), "the sandbox is not privileged"));
    }
    let apparmor = security::apparmor(&context)?;
    let seccomp = security::seccomp(&context)?;
    security::selinux(&format!("{SECURITY}.selinux_options"), context.selinux_options.as_ref())?;
    let image = required("config.image", config.image)?;
    strings("config.command", &config.command)?;
    strings("config.args", &config.args)?;
    Ok(ContainerConfig {
        name: container_name(required("config.metadata", config.metadata)?)?,
        image: image_name(image.image)?,
        user_specified_image: image.user_specified_image,
        command: config.command,
        args: config.args,
        working_dir: working_dir(config.working_dir)?,
        envs: environment(config.envs)?,
        mounts: mounts(config.mounts, sandbox.user_namespace)?,
        devices: devices(config.devices)?,
        cdi_devices: cdi_devices(config.cdi_devices, &config.annotations)?,
        labels: config.labels,
        annotations: config.annotations,
        log_path: log_path(&config.log_path)?,
        resources: resources(RESOURCES, linux.resources.unwrap_or_default())?,
        pid: pid(context.namespace_options.as_ref(), sandbox)?,
        run_as: security::run_as(&context, sandbox.user_namespace)?,
        capabilities: security::capabilities(context.capabilities.unwrap_or_default())?,
        privileged: context.privileged,
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        seccomp,
        apparmor,
        masked_paths: paths("masked_paths", &context.masked_paths)?,
        readonly_paths: paths("readonly_paths", &context.readonly_paths)?,
        stop_signal: signal::number(config.stop_signal)?,
        terminal: config.tty,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
    })
}

fn refuse_not_built(config: &wire::ContainerConfig) -> Result<(), Error> {
    not_built("config.windows", config.windows.is_some())
}

fn container_name(metadata: wire::ContainerMetadata) -> Result<ContainerName, Error> {
    Ok(ContainerName { name: name("config.metadata.name", metadata.name)?, attempt: metadata.attempt })
}

fn image_name(value: String) -> Result<String, Error> {
    if value.is_empty() {
        return Err(Error::invalid("config.image.image", "must not be empty"));
    }
    no_control("config.image.image", &value)?;
    Ok(value)
}

fn working_dir(value: String) -> Result<String, Error> {
    no_nul("config.working_dir", value.as_bytes())?;
    if value.is_empty() || value.starts_with('/') {
        Ok(value)
    } else {
        Err(Error::invalid("config.working_dir", format!("{value:?} is not an absolute path")))
    }
}

fn log_path(value: &str) -> Result<Option<PathBuf>, Error> {
    if value.is_empty() { Ok(None) } else { relative("config.log_path", value).map(Some) }
}

fn paths(field: &str, values: &[String]) -> Result<Vec<PathBuf>, Error> {
    let check = |(index, path): (usize, &String)| absolute(&format!("{SECURITY}.{field}[{index}]"), path);
    values.iter().enumerate().map(check).collect()
}

fn devices(devices: Vec<wire::Device>) -> Result<Vec<DeviceMapping>, Error> {
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
fn cdi_devices(
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

fn mounts(mounts: Vec<wire::Mount>, pod: Option<UserNamespace>) -> Result<Vec<Mount>, Error> {
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

/// Bounds are the kernel's: cpu.cfs_* and cpu.shares of cgroup v1, oom_score_adj of proc(5). 0 is "not given".
fn resources(under: &str, linux: wire::LinuxContainerResources) -> Result<Resources, Error> {
    let at = |field: &str| format!("{under}.{field}");
    for (file, value) in &linux.unified {
        word(&at("unified"), file, MAX_KEY)?;
        no_control(&at("unified"), value)?;
    }
    let or_unset = |field: &str, value: i64, bounds| {
        if value == 0 { Ok(0) } else { within(&at(field), value, bounds) }
    };
    Ok(Resources {
        cpu_period: or_unset("cpu_period", linux.cpu_period, 1_000..=1_000_000)?,
        cpu_quota: or_unset("cpu_quota", linux.cpu_quota, -1..=i64::MAX)?,
        cpu_shares: or_unset("cpu_shares", linux.cpu_shares, 2..=262_144)?,
        memory_limit: or_unset("memory_limit_in_bytes", linux.memory_limit_in_bytes, -1..=i64::MAX)?,
        memory_swap_limit: or_unset(
            "memory_swap_limit_in_bytes",
            linux.memory_swap_limit_in_bytes,
            -1..=i64::MAX,
        )?,
        oom_score_adj: within(&at("oom_score_adj"), linux.oom_score_adj, -1000..=1000)?,
        cpuset_cpus: set(&at("cpuset_cpus"), linux.cpuset_cpus)?,
        cpuset_mems: set(&at("cpuset_mems"), linux.cpuset_mems)?,
        hugepages: linux
            .hugepage_limits
            .into_iter()
            .enumerate()
            .map(|(index, limit)| hugepage(&at(&format!("hugepage_limits[{index}].page_size")), limit))
            .collect::<Result<_, _>>()?,
        unified: linux.unified,
    })
}

/// The page size is part of a file's name: `2MB`, `1GB`, as the kernel writes it.
fn hugepage(field: &str, limit: wire::HugepageLimit) -> Result<(String, u64), Error> {
    let size = &limit.page_size;
    let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit)).unwrap_or_default();
    if digits.is_empty() || digits.len() > 5 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::invalid(field, format!("{size:?} is not a page size such as 2MB")));
    }
    Ok((limit.page_size, limit.limit))
}

/// The limits of UpdateContainerResources.
pub(in crate::api) fn update(linux: Option<wire::LinuxContainerResources>) -> Result<Resources, Error> {
    resources("linux", linux.unwrap_or_default())
}

/// The limits of UpdatePodSandboxResources, checked like a container's.
pub(in crate::api) fn pod_resources(
    field: &str,
    linux: Option<wire::LinuxContainerResources>,
) -> Result<Option<Resources>, Error> {
    linux.map(|linux| resources(field, linux)).transpose()
}

/// The list form of cpuset(7): `0-3,7`.
fn set(field: &str, value: String) -> Result<String, Error> {
    let number = |text: &str| !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => number(first) && number(last),
        None => number(part),
    };
    if value.is_empty() || value.split(',').all(range) {
        Ok(value)
    } else {
        Err(Error::invalid(field, format!("{value:?} is not a list such as 0-3,7")))
    }
}

/// The PID namespace. Network and IPC are the sandbox's, whatever is asked: they exist once a pod.
fn pid(options: Option<&wire::NamespaceOption>, config: &SandboxConfig) -> Result<PidNamespace, Error> {
    let field = format!("{SECURITY}.namespace_options.pid");
    let sandbox = match config.pid {
        NamespaceMode::Pod => PidNamespace::Pod,
        NamespaceMode::Container => PidNamespace::Container,
        NamespaceMode::Node => PidNamespace::Node,
    };
    let Some(options) = options else { return Ok(sandbox) };
    same_user_namespace(options.userns_options.as_ref(), config.user_namespace)?;
    let asked: wire::NamespaceMode = known(&field, options.pid)?;
    match asked {
        // The sandbox's: shared if it shares one, else what it gives its containers. Zero, so also "not given".
        wire::NamespaceMode::Pod => Ok(sandbox),
        wire::NamespaceMode::Container => Ok(PidNamespace::Container),
        wire::NamespaceMode::Node if config.user_namespace.is_some() => {
            Err(Error::invalid(field, "NODE cannot be combined with the user namespace of its pod"))
        }
        wire::NamespaceMode::Node => Ok(PidNamespace::Node),
        wire::NamespaceMode::Target => {
            id(&format!("{SECURITY}.namespace_options.target_id"), options.target_id.clone())
                .map(PidNamespace::Target)
        }
    }
}

/// It exists once a pod: a container that says which one must say the pod's.
fn same_user_namespace(
    options: Option<&wire::UserNamespace>,
    sandbox: Option<UserNamespace>,
) -> Result<(), Error> {
    let field = format!("{SECURITY}.namespace_options.userns_options");
    let asked = security::user_namespace(&field, options)?;
    if options.is_none() || asked == sandbox {
        return Ok(());
    }
    Err(Error::invalid(field, "is not that of its sandbox"))
}

#[cfg(test)]
mod tests {
    use super::super::sandbox as convert_sandbox;
    use super::*;
    use crate::config::Config;
    use crate::container::config::{AppArmor, Seccomp};

    fn sandbox(privileged: bool, pid: i32) -> SandboxConfig {
        let security = wire::LinuxSandboxSecurityContext {
            privileged,
            namespace_options: Some(wire::NamespaceOption { pid, ..Default::default() }),
            ..Default::default()
        };
        let linux = wire::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
        let metadata =
            wire::PodSandboxMetadata { name: "p".into(), namespace: "n".into(), ..Default::default() };
        let config =
            wire::PodSandboxConfig { metadata: Some(metadata), linux: Some(linux), ..Default::default() };
        let request = wire::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        convert_sandbox::config(request, &Config::default()).unwrap()
    }

    fn smallest() -> wire::ContainerConfig {
        wire::ContainerConfig {
            metadata: Some(wire::ContainerMetadata { name: "c".into(), attempt: 1 }),
            image: Some(wire::ImageSpec { image: "sha256:aa".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn changed(change: impl FnOnce(&mut wire::ContainerConfig)) -> wire::ContainerConfig {
        let mut config = smallest();
        change(&mut config);
        config
    }

    fn with_security(change: impl FnOnce(&mut wire::LinuxContainerSecurityContext)) -> wire::ContainerConfig {
        changed(|config| {
            change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
        })
    }

    fn with_resources(change: impl FnOnce(&mut wire::LinuxContainerResources)) -> wire::ContainerConfig {
        changed(|config| change(config.linux.get_or_insert_default().resources.get_or_insert_default()))
    }

    fn with_device(host: &str, inside: &str, permissions: &str) -> wire::ContainerConfig {
        changed(|config| {
            config.devices.push(wire::Device {
                container_path: inside.into(),
                host_path: host.into(),
                permissions: permissions.into(),
            });
        })
    }

    fn with_mount(change: impl FnOnce(&mut wire::Mount)) -> wire::ContainerConfig {
        changed(|config| {
            let mut mount = wire::Mount {
                container_path: "/data".into(),
                host_path: "/srv/x".into(),
                ..Default::default()
            };
            change(&mut mount);
            config.mounts.push(mount);
        })
    }

    fn take(wire: wire::ContainerConfig) -> ContainerConfig {
        config(Some(wire), &sandbox(false, 0)).unwrap()
    }

    fn refused(wire: wire::ContainerConfig, field: &str) {
        refused_in(&sandbox(false, 0), wire, field);
    }

    fn refused_in(sandbox: &SandboxConfig, wire: wire::ContainerConfig, field: &str) {
        match config(Some(wire), sandbox) {
            Err(Error::InvalidArgument { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        }
    }

    #[test]
    fn the_smallest_request_is_taken() {
        let container = take(smallest());
        assert_eq!((container.name.name.as_str(), container.name.attempt), ("c", 1));
        assert_eq!((container.pid, container.resources), (PidNamespace::Pod, Resources::default()));
        assert!(container.log_path.is_none() && container.stop_signal.is_none() && !container.privileged);
    }

    #[test]
    fn values_are_carried_as_they_were_sent() {
        let bytes = wire::KeyValue { key: "HOME".into(), value: b"/a\n\xff".to_vec() };
        let container = take(changed(|config| {
            config.envs.push(bytes);
            config.log_path = "c/0.log".into();
            config.stop_signal = wire::Signal::Sigusr1.into();
            config.labels.insert("k\n".into(), "v\u{0}".into());
        }));
        assert_eq!(container.envs, [("HOME".to_owned(), b"/a\n\xff".to_vec())]);
        assert_eq!((container.log_path, container.stop_signal), (Some(PathBuf::from("c/0.log")), Some(10)));
        assert_eq!(container.labels["k\n"], "v\u{0}");
        let mount = take(with_mount(|mount| {
            mount.host_path = "/srv//x/".into();
            mount.propagation = 2;
            mount.selinux_relabel = true;
        }));
        assert_eq!(mount.mounts[0].host_path, "/srv//x/", "a kubelet finds its mounts by these strings");
        assert_eq!(mount.mounts[0].propagation, MountPropagation::Bidirectional);
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let profile = |kind| Some(wire::SecurityProfile { profile_type: kind, ..Default::default() });
        let target = wire::NamespaceOption { pid: 3, ..Default::default() };
        let userns = wire::NamespaceOption {
            userns_options: Some(wire::UserNamespace::default()),
            ..Default::default()
        };
        let page = wire::HugepageLimit { page_size: "2MB/../x".into(), limit: 1 };
        let cases = [
            (changed(|config| config.devices.push(wire::Device::default())), "config.devices[0].host_path"),
            (with_device("/dev/null", "/etc/x", "rw"), "config.devices[0].container_path"),
            (with_device("/dev/null", "/dev", "rw"), "config.devices[0].container_path"),
            (with_device("/dev/null", "/dev/../etc", "rw"), "config.devices[0].container_path"),
            (with_device("/dev/null", "", ""), "config.devices[0].permissions"),
            (with_device("/dev/null", "", "rx"), "config.devices[0].permissions"),
            (with_device("/dev/null", "", "rr"), "config.devices[0].permissions"),
            (
                changed(|config| config.cdi_devices.push(wire::CdiDevice::default())),
                "config.CDI_devices[0].name",
            ),
            (
                changed(|config| drop(config.annotations.insert("cdi.k8s.io/x".into(), "v/c=d,gpu".into()))),
                "config.annotations[\"cdi.k8s.io/x\"]",
            ),
            (
                changed(|config| config.windows = Some(wire::WindowsContainerConfig::default())),
                "config.windows",
            ),
            (with_mount(|mount| mount.image_sub_path = "a".into()), "config.mounts[0].image_sub_path"),
            (with_mount(|mount| mount.recursive_read_only = true), "config.mounts[0].recursive_read_only"),
            (
                with_mount(|mount| mount.mount_options.push("noexec,suid".into())),
                "config.mounts[0].mount_options[0]",
            ),
            (with_mount(|mount| mount.mount_options.push("ro".into())), "config.mounts[0].mount_options[0]"),
            (
                with_mount(|mount| {
                    (mount.recursive_read_only, mount.readonly, mount.propagation) = (true, true, 1);
                }),
                "config.mounts[0].recursive_read_only",
            ),
            (
                with_mount(|mount| mount.uid_mappings.push(wire::IdMapping::default())),
                "config.mounts[0].uidMappings[0]",
            ),
            // Those of users are what is missing.
            (
                with_mount(|mount| mount.gid_mappings.push(wire::IdMapping::default())),
                "config.mounts[0].uidMappings",
            ),
            (
                with_resources(|limits| limits.hugepage_limits.push(page)),
                "config.linux.resources.hugepage_limits[0].page_size",
            ),
            (
                with_resources(|limits| drop(limits.unified.insert("a b".into(), "c".into()))),
                "config.linux.resources.unified",
            ),
            (
                with_security(|context| context.seccomp = profile(2)),
                "config.linux.security_context.seccomp.localhost_ref",
            ),
            (
                with_security(|context| context.apparmor = profile(2)),
                "config.linux.security_context.apparmor.localhost_ref",
            ),
            (
                with_security(|context| context.namespace_options = Some(target)),
                "config.linux.security_context.namespace_options.target_id",
            ),
            (
                with_security(|context| context.namespace_options = Some(userns)),
                "config.linux.security_context.namespace_options.userns_options.uids",
            ),
        ];
        for (wire, field) in cases {
            refused(wire, field);
        }
    }

    #[test]
    fn the_user_namespace_is_the_pods() {
        let line = |length| vec![wire::IdMapping { container_id: 0, host_id: 1000, length }];
        let userns = |mode, length| {
            let lines = if mode == 0 { line(length) } else { Vec::new() };
            let userns_options = Some(wire::UserNamespace { mode, uids: lines.clone(), gids: lines });
            Some(wire::NamespaceOption { userns_options, ..Default::default() })
        };
        let pod = UserNamespace { host_id: 1000, length: 10 };
        let mapped = SandboxConfig { user_namespace: Some(pod), ..sandbox(false, 0) };
        let asks = |options| with_security(|context| context.namespace_options = options);
        let volume = |length| {
            with_mount(|mount| (mount.uid_mappings, mount.gid_mappings) = (line(length), line(length)))
        };
        for wire in [smallest(), asks(Some(wire::NamespaceOption::default())), asks(userns(0, 10))] {
            assert!(config(Some(wire), &mapped).is_ok());
        }
        assert!(config(Some(asks(userns(2, 0))), &sandbox(false, 0)).is_ok());
        let container = config(Some(volume(10)), &mapped).unwrap();
        assert_eq!(container.mounts[0].mapping, Some(pod));
        let id = |value| Some(wire::Int64Value { value });
        let context = "config.linux.security_context";
        let refusals = [
            (asks(userns(0, 11)), "namespace_options.userns_options"),
            (asks(userns(2, 0)), "namespace_options.userns_options"),
            (asks(Some(wire::NamespaceOption { pid: 2, ..Default::default() })), "namespace_options.pid"),
            (with_security(|context| context.run_as_user = id(10)), "run_as_user"),
            (with_security(|context| context.supplemental_groups = vec![9, 10]), "supplemental_groups[1]"),
        ];
        for (wire, field) in refusals {
            refused_in(&mapped, wire, &format!("{context}.{field}"));
        }
        refused_in(&mapped, volume(9), "config.mounts[0].uidMappings");
        refused(volume(10), "config.mounts[0].uidMappings");
        refused(asks(userns(0, 10)), &format!("{context}.namespace_options.userns_options"));
    }

    #[test]
    fn an_image_in_the_place_of_a_host_path() {
        let with = |change: &dyn Fn(&mut wire::Mount)| {
            with_mount(|mount| {
                mount.host_path.clear();
                mount.readonly = true;
                mount.image = Some(wire::ImageSpec { image: "i".into(), ..Default::default() });
                mount.image_sub_path = "a/b".into();
                change(mount);
            })
        };
        let taken = take(with(&|_| {})).mounts.remove(0);
        assert_eq!(taken.image.map(|image| (image.image, image.sub_path)), Some(("i".into(), "a/b".into())));
        type Change<'a> = &'a dyn Fn(&mut wire::Mount);
        let cases: [(Change<'_>, &str); 7] = [
            (&|mount| mount.image = Some(wire::ImageSpec::default()), "image.image"),
            (&|mount| mount.image.as_mut().unwrap().image.push('\n'), "image.image"),
            (&|mount| mount.host_path = "/x".into(), "host_path"),
            (&|mount| mount.readonly = false, "readonly"),
            (&|mount| mount.propagation = 2, "propagation"),
            (&|mount| mount.image_sub_path = "../x".into(), "image_sub_path"),
            (&|mount| mount.image_sub_path = "/x".into(), "image_sub_path"),
        ];
        for (change, field) in cases {
            refused(with(change), &format!("ImageVolumeMountFailed: config.mounts[0].{field}"));
        }
    }

    #[test]
    #[expect(deprecated, reason = "what an older client sends must be refused, not dropped")]
    fn older_profile_fields_are_refused_too() {
        let field = |name: &str| format!("config.linux.security_context.{name}");
        let seccomp = |path: &str| with_security(|context| context.seccomp_profile_path = path.into());
        let apparmor = |name: &str| with_security(|context| context.apparmor_profile = name.into());
        refused(seccomp("localhost/relative.json"), &field("seccomp_profile_path"));
        refused(seccomp("default"), &field("seccomp_profile_path"));
        assert_eq!(take(seccomp("runtime/default")).seccomp, Seccomp::RuntimeDefault);
        assert_eq!(take(seccomp("localhost//p.json")).seccomp, Seccomp::Localhost("/p.json".into()));
        refused(apparmor("x"), &field("apparmor_profile"));
        assert_eq!(take(apparmor("localhost/x")).apparmor, AppArmor::Localhost("x".into()));
        take(seccomp("unconfined"));
        take(apparmor("unconfined"));
    }

    #[test]
    fn unconfined_and_empty_limits_are_nothing_to_refuse() {
        let unconfined = Some(wire::SecurityProfile { profile_type: 1, ..Default::default() });
        take(with_security(|context| {
            context.seccomp = unconfined.clone();
            context.apparmor = unconfined;
        }));
        // A kubelet sends one of these for each page size of the host.
        let none = wire::HugepageLimit { page_size: "2MB".into(), limit: 0 };
        take(with_resources(|limits| limits.hugepage_limits.push(none)));
    }

    #[test]
    fn values_that_cannot_be_honoured_are_refused_by_field() {
        let security = |field: &str| format!("config.linux.security_context.{field}");
        let resources = |field: &str| format!("config.linux.resources.{field}");
        let mounts = |field: &str| format!("config.mounts[0].{field}");
        let id = |value| Some(wire::Int64Value { value });
        let env = |key: &str, value: &[u8]| wire::KeyValue { key: key.into(), value: value.into() };
        let cases = [
            (changed(|config| config.metadata = None), "config.metadata".into()),
            (
                changed(|config| config.metadata = Some(wire::ContainerMetadata::default())),
                "config.metadata.name".into(),
            ),
            (changed(|config| config.image = None), "config.image".into()),
            (changed(|config| config.image = Some(wire::ImageSpec::default())), "config.image.image".into()),
            (changed(|config| config.command = vec!["a\0".into()]), "config.command[0]".into()),
            (changed(|config| config.args = vec!["a".into(), "\0".into()]), "config.args[1]".into()),
            (changed(|config| config.working_dir = "tmp".into()), "config.working_dir".into()),
            (changed(|config| config.envs.push(env("", b""))), "config.envs[0].key".into()),
            (changed(|config| config.envs.push(env("a=b", b""))), "config.envs[0].key".into()),
            (changed(|config| config.envs.push(env("a", b"\0"))), "config.envs[0].value".into()),
            (changed(|config| config.log_path = "/var/log/x".into()), "config.log_path".into()),
            (changed(|config| config.log_path = "../x".into()), "config.log_path".into()),
            (changed(|config| config.stop_signal = 99), "config.stop_signal".into()),
            (with_mount(|mount| mount.container_path = "data".into()), mounts("container_path")),
            (with_mount(|mount| mount.container_path = "//".into()), mounts("container_path")),
            (with_mount(|mount| mount.container_path = "/a/../b".into()), mounts("container_path")),
            (with_mount(|mount| mount.host_path.clear()), mounts("host_path")),
            (with_mount(|mount| mount.host_path = "/a\n".into()), mounts("host_path")),
            (with_mount(|mount| mount.propagation = 7), mounts("propagation")),
            (with_resources(|limits| limits.cpu_period = 10), resources("cpu_period")),
            (with_resources(|limits| limits.cpu_quota = -2), resources("cpu_quota")),
            (with_resources(|limits| limits.cpu_shares = 1), resources("cpu_shares")),
            (with_resources(|limits| limits.memory_limit_in_bytes = -2), resources("memory_limit_in_bytes")),
            (with_resources(|limits| limits.oom_score_adj = 1001), resources("oom_score_adj")),
            (with_resources(|limits| limits.cpuset_cpus = "0-".into()), resources("cpuset_cpus")),
            (with_resources(|limits| limits.cpuset_mems = "0 1".into()), resources("cpuset_mems")),
            (with_security(|context| context.privileged = true), security("privileged")),
            (with_security(|context| context.run_as_user = id(-1)), security("run_as_user")),
            (with_security(|context| context.run_as_user = id(4_294_967_295)), security("run_as_user")),
            (with_security(|context| context.run_as_group = id(1)), security("run_as_group")),
            (with_security(|context| context.run_as_username = "a:b".into()), security("run_as_username")),
            (with_security(|context| context.run_as_username = "a\n".into()), security("run_as_username")),
            (
                with_security(|context| context.run_as_username = "4294967296".into()),
                security("run_as_username"),
            ),
            (
                with_security(|context| context.supplemental_groups = vec![0, -1]),
                security("supplemental_groups[1]"),
            ),
            (
                with_security(|context| context.supplemental_groups_policy = 5),
                security("supplemental_groups_policy"),
            ),
            (
                with_security(|context| context.masked_paths = vec!["proc".into()]),
                security("masked_paths[0]"),
            ),
            (
                with_security(|context| context.readonly_paths = vec!["/..".into()]),
                security("readonly_paths[0]"),
            ),
        ];
        for (wire, field) in cases {
            let field: String = field;
            refused(wire, &field);
        }
    }

    #[test]
    fn devices_of_vendors_are_named_once() {
        let container = take(changed(|config| {
            let device = |name: &str| wire::CdiDevice { name: name.into() };
            config.cdi_devices = vec![device("v.com/c=2"), device("v.com/c=1"), device("v.com/c=2")];
            config.annotations.insert("cdi.k8s.io/plugin_1".into(), "v.com/c=3,v.com/c=1".into());
            config.annotations.insert("cdi.example.com/x".into(), "none of ours".into());
        }));
        assert_eq!(container.cdi_devices, ["v.com/c=2", "v.com/c=1", "v.com/c=3"]);
        assert_eq!(container.annotations.len(), 2, "given back as sent");
    }

    #[test]
    fn capabilities_have_one_form() {
        let with = |add: &str| {
            with_security(|context| {
                let add_capabilities = vec![add.into()];
                context.capabilities = Some(wire::Capability { add_capabilities, ..Default::default() });
            })
        };
        for (text, name) in [("NET_ADMIN", "NET_ADMIN"), ("cap_sys_ptrace", "SYS_PTRACE"), ("all", "ALL")] {
            assert_eq!(take(with(text)).capabilities.add, [name]);
        }
        for bad in ["", "CAP_", "FLY", "CAP_CAP_CHOWN"] {
            refused(with(bad), "config.linux.security_context.capabilities.add_capabilities[0]");
        }
    }

    #[test]
    fn identity_is_exact() {
        let run_as = take(with_security(|context| {
            context.run_as_user = Some(wire::Int64Value { value: 4_294_967_294 });
            context.run_as_username = "web".into();
            context.supplemental_groups_policy = 1;
        }))
        .run_as;
        assert_eq!((run_as.user, run_as.username), (Some(4_294_967_294), None), "the id wins over the name");
        assert!(run_as.strict_groups);
    }

    #[test]
    fn pid_follows_the_sandbox_unless_asked_otherwise() {
        use PidNamespace::{Container, Node, Pod};
        // POD, CONTAINER, NODE of the container, in a sandbox of each kind.
        let expected =
            [(0, [Pod, Container, Node]), (1, [Container, Container, Node]), (2, [Node, Container, Node])];
        for (of_sandbox, modes) in expected {
            for (asked, mode) in (0..).zip(modes.clone()) {
                let wire = with_security(|context| {
                    context.namespace_options =
                        Some(wire::NamespaceOption { pid: asked, ..Default::default() });
                });
                let container = config(Some(wire), &sandbox(false, of_sandbox)).unwrap();
                assert_eq!(container.pid, mode, "{asked} in {of_sandbox}");
            }
            let silent = config(Some(smallest()), &sandbox(false, of_sandbox)).unwrap();
            assert_eq!(silent.pid, modes[0]);
        }
        let target = wire::NamespaceOption { pid: 3, target_id: "t".into(), ..Default::default() };
        let beside = take(with_security(|context| context.namespace_options = Some(target)));
        assert_eq!(beside.pid, PidNamespace::Target("t".into()));
    }

    #[test]
    fn a_privileged_sandbox_may_have_privileged_containers() {
        let wire = with_security(|context| {
            context.privileged = true;
            context.seccomp = Some(wire::SecurityProfile::default());
        });
        assert!(config(Some(wire), &sandbox(true, 0)).unwrap().privileged, "and no profile applies to them");
    }
}
