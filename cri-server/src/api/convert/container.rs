//! `ContainerConfig` becomes the domain's one of the same name.

use std::path::PathBuf;

use super::super::wire;
use super::field::{absolute, known, name, no_control, no_nul, not_built, relative, required, within};
use super::process::{environment, strings};
use super::{security, signal};
use crate::container::config::{ContainerConfig, ContainerName, Mount, MountPropagation, Resources};
use crate::error::Error;
use crate::sandbox::config::{NamespaceMode, SandboxConfig};

const SECURITY: &str = "config.linux.security_context";
const RESOURCES: &str = "config.linux.resources";

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
    security::profiles(&context)?;
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
        mounts: mounts(config.mounts)?,
        labels: config.labels,
        annotations: config.annotations,
        log_path: log_path(&config.log_path)?,
        resources: resources(linux.resources.unwrap_or_default())?,
        pid: pid(context.namespace_options.as_ref(), sandbox.pid)?,
        run_as: security::run_as(&context)?,
        capabilities: security::capabilities(context.capabilities.unwrap_or_default())?,
        privileged: context.privileged,
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        masked_paths: paths("masked_paths", &context.masked_paths)?,
        readonly_paths: paths("readonly_paths", &context.readonly_paths)?,
        stop_signal: signal::number(config.stop_signal)?,
    })
}

fn refuse_not_built(config: &wire::ContainerConfig) -> Result<(), Error> {
    not_built("config.tty", config.tty)?;
    not_built("config.stdin", config.stdin)?;
    not_built("config.stdin_once", config.stdin_once)?;
    not_built("config.devices", !config.devices.is_empty())?;
    not_built("config.CDI_devices", !config.cdi_devices.is_empty())?;
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

fn mounts(mounts: Vec<wire::Mount>) -> Result<Vec<Mount>, Error> {
    mounts
        .into_iter()
        .enumerate()
        .map(|(index, value)| mount(&format!("config.mounts[{index}]"), value))
        .collect()
}

fn mount(field: &str, mount: wire::Mount) -> Result<Mount, Error> {
    let at = |name: &str| format!("{field}.{name}");
    not_built(&at("image"), mount.image.is_some())?;
    not_built(&at("image_sub_path"), !mount.image_sub_path.is_empty())?;
    not_built(&at("uidMappings"), !mount.uid_mappings.is_empty())?;
    not_built(&at("gidMappings"), !mount.gid_mappings.is_empty())?;
    not_built(&at("mount_options"), !mount.mount_options.is_empty())?;
    not_built(&at("recursive_read_only"), mount.recursive_read_only)?;
    absolute(&at("container_path"), &mount.container_path)?;
    if mount.container_path.trim_matches('/').is_empty() {
        return Err(Error::invalid(
            at("container_path"),
            "the root file system itself cannot be mounted over",
        ));
    }
    absolute(&at("host_path"), &mount.host_path)?;
    Ok(Mount {
        propagation: match known(&at("propagation"), mount.propagation)? {
            wire::MountPropagation::PropagationPrivate => MountPropagation::Private,
            wire::MountPropagation::PropagationHostToContainer => MountPropagation::HostToContainer,
            wire::MountPropagation::PropagationBidirectional => MountPropagation::Bidirectional,
        },
        container_path: mount.container_path,
        host_path: mount.host_path,
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
    })
}

/// Bounds are the kernel's: cpu.cfs_* and cpu.shares of cgroup v1, oom_score_adj of proc(5). 0 is "not given".
fn resources(linux: wire::LinuxContainerResources) -> Result<Resources, Error> {
    let at = |field: &str| format!("{RESOURCES}.{field}");
    // A kubelet sends a limit of 0 for each page size that the host has, whether a pod asks for huge pages or not.
    not_built(&at("hugepage_limits"), linux.hugepage_limits.iter().any(|limit| limit.limit > 0))?;
    not_built(&at("unified"), !linux.unified.is_empty())?;
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
    })
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
fn pid(options: Option<&wire::NamespaceOption>, sandbox: NamespaceMode) -> Result<NamespaceMode, Error> {
    let field = format!("{SECURITY}.namespace_options.pid");
    let Some(options) = options else { return Ok(sandbox) };
    security::user_namespace(
        &format!("{SECURITY}.namespace_options.userns_options"),
        options.userns_options.as_ref(),
    )?;
    let asked: wire::NamespaceMode = known(&field, options.pid)?;
    match asked {
        // The sandbox's: shared if it shares one, else what it gives its containers. Zero, so also "not given".
        wire::NamespaceMode::Pod => Ok(sandbox),
        wire::NamespaceMode::Container => Ok(NamespaceMode::Container),
        wire::NamespaceMode::Node => Ok(NamespaceMode::Node),
        wire::NamespaceMode::Target => not_built(&field, true).map(|()| sandbox),
    }
}
