//! `ContainerConfig` becomes the domain's one of the same name.

use std::path::PathBuf;

use super::super::wire;
use super::device::{cdi_devices, devices};
use super::field::{absolute, id, known, name, no_control, no_nul, not_built, relative, required};
use super::mount::mounts;
use super::process::{environment, strings};
use super::resources::resources;
use super::{security, signal};
use crate::container::config::{ContainerConfig, ContainerName, PidNamespace};
use crate::error::Error;
use crate::sandbox::config::{NamespaceMode, SandboxConfig, UserNamespace};

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
mod tests;
