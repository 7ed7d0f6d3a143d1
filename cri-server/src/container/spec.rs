//! The OCI runtime spec of a container: what was asked for, what the image says, and what every pod gets. It is built
//! as JSON, since as JSON it is kept and read by people and tools. Pure but for one look at the kernel's capabilities,
//! devices of the node and their CDI files, and
//! the profiles of seccomp and
//! AppArmor of this node that are asked for.

mod apparmor;
mod capabilities;
mod devices;
mod mounts;
mod process;
mod seccomp;
mod signal;
mod volumes;

use std::path::{Path, PathBuf};

use cove_runtime::cgroup::Limits;
use oci_spec::runtime::{LinuxResources, Spec};
use serde_json::{Value, json};

use super::config::{ContainerConfig, PidNamespace, Resources};
use super::image_volume::VolumeImage;
use crate::cdi;
use crate::error::Error;
use crate::image::Image;
use crate::sandbox::config::NamespaceMode;
use crate::sandbox::live::Sandbox;
use crate::sandbox::record::{Places, SandboxIdentity};

pub use signal::stop_signal;

/// The version of the OCI runtime spec that is written.
const OCI_VERSION: &str = "1.2.0";

/// A container's spec, and what JSON or the spec cannot hold.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// As JSON: `config.json`.
    pub spec: Value,
    /// Whom it runs as, as an image's USER is written.
    pub user: String,
    /// Its environment, where one of its values is not UTF-8.
    pub raw_env: Option<Vec<Vec<u8>>>,
    /// How many directories for VOLUMEs of the image there are to be, named 0, 1 and so on.
    pub volumes: usize,
}

/// What a container's files come from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// Its image.
    pub image: &'a Image,
    /// The images of its image volumes.
    pub volume_images: &'a [VolumeImage],
    /// The directory for VOLUMEs of its image.
    pub volumes: &'a Path,
}

/// Builds the spec, and refuses what cannot be run. Blocking.
pub fn prepare(
    sandbox: &Sandbox,
    config: &ContainerConfig,
    sources: &Sources<'_>,
    unified: bool,
    cdi: &[PathBuf],
) -> Result<Prepared, Error> {
    let mut prepared = build(&sandbox.identity, &sandbox.places, config, sources, unified)?;
    add_cdi_devices(&mut prepared, config, cdi)?;
    Ok(prepared)
}

/// Makes the edits that the devices of vendors need.
fn add_cdi_devices(prepared: &mut Prepared, config: &ContainerConfig, from: &[PathBuf]) -> Result<(), Error> {
    if config.cdi_devices.is_empty() {
        return Ok(());
    }
    let refused = |reason: String| Error::invalid("config.CDI_devices", reason);
    let names = config.cdi_devices.iter().map(|name| cdi::Name::parse(name)).collect::<Result<Vec<_>, _>>();
    let edits = cdi::find(from, &names.map_err(refused)?).map_err(refused)?;
    cdi::apply(&mut prepared.spec, prepared.raw_env.as_mut(), &edits, !config.privileged).map_err(refused)?;
    check(&prepared.spec)
}

fn build(
    sandbox: &SandboxIdentity,
    places: &Places,
    config: &ContainerConfig,
    sources: &Sources<'_>,
    unified: bool,
) -> Result<Prepared, Error> {
    let image = sources.image;
    if config.pid == PidNamespace::Pod && sandbox.config.pid != NamespaceMode::Pod {
        let reason = "its sandbox was not made with a shared PID namespace";
        return Err(Error::invalid("config.linux.security_context.namespace_options.pid", reason));
    }
    let seccomp = seccomp::seccomp(config, capabilities::bounding(config)?)?;
    let (mut process, raw_env) = process::process(sandbox, config, &image.config)?;
    if let Some(profile) = apparmor::profile(&config.apparmor, Path::new(apparmor::SYSFS))? {
        process["apparmorProfile"] = json!(profile);
    }
    limits(&config.resources, unified)?;
    let nodes = devices::nodes(config)?;
    let mut resources = resources(&config.resources);
    // A privileged container may use every device: its cgroup has no rule.
    if !nodes.is_empty() && !config.privileged {
        resources["devices"] = nodes.iter().map(devices::Node::rule).collect();
    }
    let (mounts, volumes) = mounts::mounts(places, config, sources, sandbox.config.user_namespace)?;
    let mut spec = json!({
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": { "path": "rootfs", "readonly": config.readonly_rootfs },
        "mounts": mounts,
        "linux": {
            "resources": resources,
            "namespaces": namespaces(config, unified, sandbox.config.user_namespace.is_some()),
            "maskedPaths": paths(config, &config.masked_paths),
            "readonlyPaths": paths(config, &config.readonly_paths),
        },
    });
    if !nodes.is_empty() {
        spec["linux"]["devices"] = nodes.iter().map(devices::Node::device).collect();
    }
    if let Some(own) = sandbox.config.user_namespace {
        spec["linux"]["uidMappings"] = own.mappings();
        spec["linux"]["gidMappings"] = own.mappings();
    }
    if let Some(seccomp) = seccomp {
        spec["linux"]["seccomp"] = seccomp;
    }
    check(&spec)?;
    Ok(Prepared { spec, user: process::user(config, &image.config), raw_env, volumes })
}

/// Reads it as what it is to be, before anyone stands on it.
fn check(spec: &Value) -> Result<(), Error> {
    let text = |error: serde_json::Error| Error::invalid("config", error.to_string());
    serde_json::from_value::<Spec>(spec.clone()).map(drop).map_err(text)
}

/// Exactly those asked for; a privileged container has none.
fn paths(config: &ContainerConfig, paths: &[std::path::PathBuf]) -> Vec<String> {
    if config.privileged {
        return Vec::new();
    }
    paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

/// Those that are the container's own, and the pod's user namespace, if it has one. It is born in its pod's net, ipc and
/// uts namespaces, and in the PID namespace of its pod, its target or the host unless it asked for its own.
fn namespaces(config: &ContainerConfig, unified: bool, user: bool) -> Vec<Value> {
    let mut namespaces = vec![json!({ "type": "mount" })];
    if user {
        namespaces.push(json!({ "type": "user" }));
    }
    if config.pid == PidNamespace::Container {
        namespaces.push(json!({ "type": "pid" }));
    }
    if unified && !config.privileged {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    namespaces
}

/// Limits; what is 0 or empty is unset.
fn resources(resources: &Resources) -> Value {
    let number = |value: i64| if value == 0 { Value::Null } else { json!(value) };
    let text = |value: &str| if value.is_empty() { Value::Null } else { json!(value) };
    // A limit of memory without one of swap means no swap, as every runtime has it (features.md 1.3).
    let swap =
        if resources.memory_swap_limit == 0 { resources.memory_limit } else { resources.memory_swap_limit };
    let mut value = json!({
        "cpu": {
            "shares": number(resources.cpu_shares),
            "quota": number(resources.cpu_quota),
            "period": number(resources.cpu_period),
            "cpus": text(&resources.cpuset_cpus),
            "mems": text(&resources.cpuset_mems),
        },
        "memory": { "limit": number(resources.memory_limit), "swap": number(swap) },
    });
    drop_nulls(&mut value);
    if !resources.hugepages.is_empty() {
        let limit = |(size, limit): (&String, &u64)| json!({ "pageSize": size, "limit": limit });
        value["hugepageLimits"] = resources.hugepages.iter().map(limit).collect();
    }
    if !resources.unified.is_empty() {
        value["unified"] = json!(resources.unified);
    }
    value
}

/// Limits in the words of cgroups. `unified`: cgroup v2 carries the controllers.
pub fn limits(asked: &Resources, unified: bool) -> Result<Limits, Error> {
    if !asked.unified.is_empty() && !unified {
        let reason = "is for cgroup v2, and this host's controllers are on version 1";
        return Err(Error::invalid("config.linux.resources.unified", reason));
    }
    let text = |error: serde_json::Error| Error::invalid("config.linux.resources", error.to_string());
    let resources: LinuxResources = serde_json::from_value(resources(asked)).map_err(text)?;
    Ok(cove_runtime::spec::limits(&resources))
}

fn drop_nulls(value: &mut Value) {
    if let Value::Object(map) = value {
        map.values_mut().for_each(drop_nulls);
        map.retain(|_, value| !value.is_null());
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::container::config::{CapabilityChange, ContainerName, RunAs};
    use crate::image::ImageConfig;
    use crate::sandbox::config::SandboxConfig;
    use std::sync::Arc;

    pub(crate) fn config() -> ContainerConfig {
        ContainerConfig {
            name: ContainerName { name: "c".into(), attempt: 0 },
            image: "busybox".into(),
            user_specified_image: String::new(),
            command: vec!["sh".into()],
            args: Vec::new(),
            working_dir: String::new(),
            envs: Vec::new(),
            mounts: Vec::new(),
            devices: Vec::new(),
            cdi_devices: Vec::new(),
            labels: Default::default(),
            annotations: Default::default(),
            log_path: None,
            resources: Resources::default(),
            capabilities: CapabilityChange::default(),
            pid: PidNamespace::Pod,
            run_as: RunAs::default(),
            privileged: false,
            readonly_rootfs: false,
            no_new_privs: false,
            seccomp: Default::default(),
            apparmor: Default::default(),
            masked_paths: vec!["/proc/kcore".into()],
            readonly_paths: vec!["/proc/sys".into()],
            stop_signal: None,
            terminal: false,
            stdin: false,
            stdin_once: false,
        }
    }

    pub(super) fn sandbox(config: SandboxConfig) -> (SandboxIdentity, Places) {
        let identity = SandboxIdentity {
            id: "0".repeat(64),
            config: Arc::new(config),
            created_at: 1,
            netns: None,
            cgroup: "/cove/x".into(),
            own_cgroup: true,
            shm_size: 1,
            volatile: true,
        };
        (identity, Places::new(Path::new("/root"), Path::new("/run"), "x"))
    }

    pub(super) fn sources(image: &Image) -> Sources<'_> {
        Sources { image, volume_images: &[], volumes: Path::new("/bundle/volumes") }
    }

    fn built(config: &ContainerConfig, unified: bool) -> Result<Value, Error> {
        let (sandbox, places) = sandbox(crate::sandbox::files::tests::config());
        let image = Image {
            id: "sha256:1".into(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size: 1,
            pinned: false,
            config: ImageConfig::default(),
            layers: Vec::new(),
        };
        build(&sandbox, &places, config, &sources(&image), unified).map(|prepared| prepared.spec)
    }

    #[test]
    fn an_ordinary_container() {
        let spec = built(&config(), false).unwrap();
        assert_eq!(spec["linux"]["namespaces"], json!([{ "type": "mount" }]));
        assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/kcore"]));
        assert_eq!(spec["linux"]["resources"], json!({ "cpu": {}, "memory": {} }));
        assert_eq!(spec["root"]["readonly"], json!(false));
    }

    #[test]
    fn namespaces_follow_the_request() {
        let table = [
            (PidNamespace::Container, false, false, vec!["mount", "pid"]),
            (PidNamespace::Pod, true, false, vec!["mount", "cgroup"]),
            (PidNamespace::Pod, true, true, vec!["mount"]),
            (PidNamespace::Node, false, false, vec!["mount"]),
            (PidNamespace::Target("t".into()), false, false, vec!["mount"]),
        ];
        for (pid, unified, privileged, wanted) in table {
            let mut config = config();
            (config.pid, config.privileged) = (pid, privileged);
            let spec = built(&config, unified).unwrap();
            let types: Vec<_> = spec["linux"]["namespaces"]
                .as_array()
                .unwrap()
                .iter()
                .map(|namespace| namespace["type"].as_str().unwrap())
                .collect();
            assert_eq!(types, wanted);
            if privileged {
                assert_eq!(spec["linux"]["readonlyPaths"], json!([]));
            }
        }
    }

    #[test]
    fn limits_are_those_that_were_set() {
        let mut config = config();
        config.resources = Resources { memory_limit: 64, cpu_shares: 2, ..Resources::default() };
        let resources = &built(&config, false).unwrap()["linux"]["resources"];
        assert_eq!(resources["memory"], json!({ "limit": 64, "swap": 64 }));
        assert_eq!(resources["cpu"], json!({ "shares": 2 }));
        config.resources.memory_swap_limit = 128;
        assert_eq!(built(&config, false).unwrap()["linux"]["resources"]["memory"]["swap"], json!(128));
    }

    #[test]
    fn a_pod_without_a_shared_pid_namespace_has_none_to_share() {
        let mut pod = crate::sandbox::files::tests::config();
        pod.pid = NamespaceMode::Container;
        let (sandbox, places) = sandbox(pod);
        let image = Image {
            id: String::new(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size: 0,
            pinned: false,
            config: ImageConfig::default(),
            layers: Vec::new(),
        };
        let refused = build(&sandbox, &places, &config(), &sources(&image), false).unwrap_err();
        assert!(matches!(refused, Error::InvalidArgument { .. }));
    }
}
