//! From an OCI runtime spec to what a builder is asked to do. A field of the spec that is not built is refused by
//! name, never dropped.
//!
//! Two things of the pod have no word in the runtime spec and are said by a mount's type: `cove-shm` is the pod's
//! /dev/shm (or the host's, for a pod in the host's IPC namespace), and `proc` is that of the PID namespace which the
//! container is given, be it the pod's.

mod honoured;
mod mappings;
mod mounts;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities as Names, LinuxCapabilities, LinuxDevice, LinuxDeviceType, LinuxNamespaceType,
    LinuxResources, Process, Spec,
};

use crate::build::capabilities;
use crate::build::request::{
    Capabilities, ContainerSpec, Device, Hook, Hooks, MountKind, ProcessSpec, Rlimit, Rootfs, User,
};
use crate::build::rlimits;
use crate::cgroup::{DeviceRule, Limits};
use crate::seccomp::{Profile, compile};

/// Why a spec cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} of the OCI spec: {reason}")]
pub struct SpecError {
    /// JSON path of the field.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl SpecError {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// What every process has where nothing else is asked (runtime spec, `process.user.umask`).
const UMASK: u32 = 0o022;
/// Permission bits of a device that names none.
const DEVICE_MODE: u32 = 0o666;

/// The nodes that the runtime spec promises every container ("Default Devices"): name, major, minor.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// A container from its spec. `rootfs` and `user` say what the spec cannot: layers, and names resolved later.
///
/// # Errors
/// The first field that is wrong or not built.
pub fn container(id: &str, spec: &Spec, rootfs: Rootfs, user: User) -> Result<ContainerSpec, SpecError> {
    honoured::check(spec, "")?;
    let process = spec.process().as_ref().ok_or_else(|| SpecError::new("process", "is missing"))?;
    if process.terminal() == Some(true) {
        return Err(SpecError::new(
            "process.terminal",
            "a terminal for a container's first process is not built",
        ));
    }
    let readonly = spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly) == Some(true);
    let mut devices = Vec::new();
    let mut masked_paths = Vec::new();
    let mut readonly_paths = Vec::new();
    let mut new_cgroup_namespace = false;
    if let Some(linux) = spec.linux() {
        new_cgroup_namespace = namespaces(linux.namespaces().as_deref().unwrap_or_default())?;
        propagation(linux.rootfs_propagation().as_deref())?;
        masked_paths = paths("linux.maskedPaths", linux.masked_paths().as_deref())?;
        readonly_paths = paths("linux.readonlyPaths", linux.readonly_paths().as_deref())?;
        devices = all_devices(linux.devices().as_deref().unwrap_or_default())?;
    }
    let ids = mappings::of_namespace(spec)?;
    let mounts = mounts::all(spec.mounts().as_deref().unwrap_or_default(), ids.as_ref())?;
    if mounts.iter().any(|m| matches!(m.kind, MountKind::Tmpfs(_)) && m.destination == Path::new("/dev")) {
        add_default_devices(&mut devices);
    }
    let mut process = convert(process, user)?;
    process.seccomp = seccomp(spec)?;
    Ok(ContainerSpec {
        container: id.to_owned(),
        rootfs: Rootfs { readonly: rootfs.readonly || readonly, ..rootfs },
        new_cgroup_namespace,
        mounts,
        devices,
        masked_paths,
        readonly_paths,
        process,
    })
}

/// The hooks of a spec, if it has any: what stands behind a [`ContainerSpec`]. `bundle`: where its config.json lies.
///
/// # Errors
/// The first field that is wrong or not built.
pub fn hooks(id: &str, spec: &Spec, bundle: &Path) -> Result<Option<Hooks>, SpecError> {
    let asked =
        spec.hooks().as_ref().and_then(|hooks| hooks.create_container().as_deref()).unwrap_or_default();
    if asked.is_empty() {
        return Ok(None);
    }
    let text = |all: &Option<Vec<String>>| all.iter().flatten().map(Into::into).collect();
    let mut all = Vec::new();
    for (i, hook) in asked.iter().enumerate() {
        if !hook.path().is_absolute() {
            let reason = format!("{} is not absolute", hook.path().display());
            return Err(SpecError::new(format!("hooks.createContainer[{i}].path"), reason));
        }
        let timeout = hook.timeout().map_or(Ok(0), u32::try_from).map_err(|_| {
            SpecError::new(format!("hooks.createContainer[{i}].timeout"), "is no number of seconds")
        })?;
        all.push(Hook { path: hook.path().clone(), args: text(hook.args()), env: text(hook.env()), timeout });
    }
    // Only the builder knows its pid: it adds it, and the brace.
    let state =
        serde_json::json!({ "ociVersion": spec.version(), "id": id, "status": "creating", "bundle": bundle });
    let state = state.to_string().trim_end_matches('}').to_owned();
    Ok(Some(Hooks { state, create_container: all }))
}

/// A process from its spec, for an exec in a container without a seccomp filter; see [`exec`].
///
/// # Errors
/// The first field that is wrong or not built.
pub fn process(process: &Process, user: User) -> Result<ProcessSpec, SpecError> {
    honoured::check(process, "process")?;
    convert(process, user)
}

/// A process from its spec, for an exec in the container of `spec`: behind the same seccomp filter as its first.
///
/// # Errors
/// The first field that is wrong or not built.
pub fn exec(spec: &Spec, process: &Process, user: User) -> Result<ProcessSpec, SpecError> {
    Ok(ProcessSpec { seccomp: seccomp(spec)?, ..self::process(process, user)? })
}

/// The seccomp filter of a container, as [`ProcessSpec::seccomp`] takes it.
fn seccomp(spec: &Spec) -> Result<Option<Vec<u8>>, SpecError> {
    let Some(asked) = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) else {
        return Ok(None);
    };
    let capabilities = spec.process().as_ref().and_then(|process| process.capabilities().as_ref());
    let bounding = sets(capabilities)?.bounding;
    let program = Profile::from_oci(asked)
        .and_then(|profile| compile(&profile, bounding))
        .map_err(|error| SpecError::new("linux.seccomp", error.to_string()))?;
    Ok(Some(program))
}

/// Limits from the `linux.resources` of a spec. 0 pids is how the runtime spec's predecessors wrote "unset".
pub fn limits(resources: &LinuxResources) -> Limits {
    let cpu = resources.cpu().as_ref();
    let memory = resources.memory().as_ref();
    Limits {
        cpu_shares: cpu.and_then(oci_spec::runtime::LinuxCpu::shares),
        cpu_quota: cpu.and_then(oci_spec::runtime::LinuxCpu::quota),
        cpu_period: cpu.and_then(oci_spec::runtime::LinuxCpu::period),
        cpuset_cpus: cpu.and_then(|cpu| cpu.cpus().clone()),
        cpuset_mems: cpu.and_then(|cpu| cpu.mems().clone()),
        memory: memory.and_then(oci_spec::runtime::LinuxMemory::limit),
        memory_swap: memory.and_then(oci_spec::runtime::LinuxMemory::swap),
        hugepages: resources
            .hugepage_limits()
            .iter()
            .flatten()
            .map(|limit| (limit.page_size().clone(), limit.limit().to_string()))
            .collect(),
        unified: resources
            .unified()
            .iter()
            .flatten()
            .map(|(file, value)| (file.clone(), value.clone()))
            .collect(),
        pids: resources.pids().as_ref().map(oci_spec::runtime::LinuxPids::limit).filter(|limit| *limit != 0),
    }
}

/// Which devices may be used beside the usual ones: the `allow` rules of a spec. A rule without a type, or with a number
/// left open, is not one that Cove writes; it is kept all the same, since it is checked when it is written.
pub fn device_rules(resources: &LinuxResources) -> Vec<DeviceRule> {
    let rules = resources.devices().iter().flatten().filter(|rule| rule.allow());
    let open = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
    rules
        .map(|rule| DeviceRule {
            block: rule.typ() == Some(LinuxDeviceType::B),
            major: open(rule.major()),
            minor: open(rule.minor()),
            access: rule.access().clone().unwrap_or_default(),
        })
        .collect()
}

fn convert(process: &Process, user: User) -> Result<ProcessSpec, SpecError> {
    let args = process.args().as_deref().unwrap_or_default();
    if args.is_empty() {
        return Err(SpecError::new("process.args", "no command specified"));
    }
    if !process.cwd().is_absolute() {
        return Err(SpecError::new("process.cwd", format!("{} is not absolute", process.cwd().display())));
    }
    let mut limits = Vec::new();
    for limit in process.rlimits().as_deref().unwrap_or_default() {
        let name = limit.typ().to_string();
        let resource = rlimits::number(&name)
            .ok_or_else(|| SpecError::new("process.rlimits", format!("there is no {name}")))?;
        if limit.soft() > limit.hard() {
            return Err(SpecError::new("process.rlimits", format!("{name} is softer than hard")));
        }
        limits.push(Rlimit { resource, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(ProcessSpec {
        args: args.iter().map(Into::into).collect(),
        env: process.env().as_deref().unwrap_or_default().iter().map(Into::into).collect(),
        cwd: process.cwd().clone(),
        user,
        capabilities: sets(process.capabilities().as_ref())?,
        no_new_privs: process.no_new_privileges() == Some(true),
        rlimits: limits,
        umask: process.user().umask().unwrap_or(UMASK),
        seccomp: None,
        apparmor: process.apparmor_profile().clone().filter(|profile| !profile.is_empty()),
    })
}

fn sets(asked: Option<&LinuxCapabilities>) -> Result<Capabilities, SpecError> {
    let set = |name: &str, names: Option<&Names>| {
        let mut bits = 0;
        for one in names.into_iter().flatten() {
            let field = || format!("process.capabilities.{name}");
            bits |= capabilities::bit(&one.to_string())
                .ok_or_else(|| SpecError::new(field(), format!("there is no capability {one}")))?;
        }
        Ok(bits)
    };
    Ok(Capabilities {
        bounding: set("bounding", asked.and_then(|a| a.bounding().as_ref()))?,
        effective: set("effective", asked.and_then(|a| a.effective().as_ref()))?,
        permitted: set("permitted", asked.and_then(|a| a.permitted().as_ref()))?,
        inheritable: set("inheritable", asked.and_then(|a| a.inheritable().as_ref()))?,
        ambient: set("ambient", asked.and_then(|a| a.ambient().as_ref()))?,
    })
}

/// The namespaces are made by shim and builder; only the cgroup namespace is said to the builder by the spec.
fn namespaces(all: &[oci_spec::runtime::LinuxNamespace]) -> Result<bool, SpecError> {
    let mut cgroup = false;
    for (i, namespace) in all.iter().enumerate() {
        let field = format!("linux.namespaces[{i}]");
        let shared = namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty());
        match namespace.typ() {
            LinuxNamespaceType::Time => {
                return Err(SpecError::new(field, format!("a {} namespace is not built", namespace.typ())));
            }
            LinuxNamespaceType::Mount | LinuxNamespaceType::Cgroup | LinuxNamespaceType::User if shared => {
                let reason = format!("a {} namespace is never another's", namespace.typ());
                return Err(SpecError::new(field, reason));
            }
            LinuxNamespaceType::Cgroup => cgroup = true,
            LinuxNamespaceType::Mount
            | LinuxNamespaceType::User
            | LinuxNamespaceType::Uts
            | LinuxNamespaceType::Ipc
            | LinuxNamespaceType::Pid
            | LinuxNamespaceType::Network => {}
        }
    }
    Ok(cgroup)
}

/// The root is private whatever its volumes are: propagation is set on each volume.
fn propagation(asked: Option<&str>) -> Result<(), SpecError> {
    match asked {
        None | Some("" | "private" | "rprivate") => Ok(()),
        Some(other) => Err(SpecError::new("linux.rootfsPropagation", format!("{other} is not built"))),
    }
}

fn paths(field: &str, all: Option<&[String]>) -> Result<Vec<PathBuf>, SpecError> {
    let all = all.unwrap_or_default();
    if let Some((i, path)) = all.iter().enumerate().find(|(_, path)| !path.starts_with('/')) {
        return Err(SpecError::new(format!("{field}[{i}]"), format!("{path:?} is not absolute")));
    }
    Ok(all.iter().map(PathBuf::from).collect())
}

fn all_devices(all: &[LinuxDevice]) -> Result<Vec<Device>, SpecError> {
    all.iter().enumerate().map(|(i, device)| one_device(&format!("linux.devices[{i}]"), device)).collect()
}

fn one_device(field: &str, device: &LinuxDevice) -> Result<Device, SpecError> {
    let block = match device.typ() {
        LinuxDeviceType::B => true,
        LinuxDeviceType::C | LinuxDeviceType::U => false,
        LinuxDeviceType::A | LinuxDeviceType::P => {
            return Err(SpecError::new(format!("{field}.type"), "only c, u and b are built"));
        }
    };
    if !device.path().starts_with("/dev") {
        let reason = format!("{} is not below /dev", device.path().display());
        return Err(SpecError::new(format!("{field}.path"), reason));
    }
    let number = |name: &str, value: i64| {
        u32::try_from(value)
            .map_err(|_| SpecError::new(format!("{field}.{name}"), format!("{value} is out of range")))
    };
    Ok(Device {
        path: device.path().clone(),
        block,
        major: number("major", device.major())?,
        minor: number("minor", device.minor())?,
        mode: device.file_mode().unwrap_or(DEVICE_MODE) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

fn add_default_devices(devices: &mut Vec<Device>) {
    for (name, major, minor) in DEFAULT_DEVICES {
        let path = Path::new("/dev").join(name);
        if devices.iter().all(|device| device.path != path) {
            let device = Device { path, block: false, major, minor, mode: DEVICE_MODE, uid: 0, gid: 0 };
            devices.push(device);
        }
    }
}

#[cfg(test)]
mod tests;
