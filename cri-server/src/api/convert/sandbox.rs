//! `PodSandboxConfig` becomes a `SandboxConfig`.
//!
//! There is no process of the sandbox's own with rights, so what a CRI asks of a "pause" container (its user, its groups,
//! its read-only rootfs, seccomp, AppArmor) has nothing to apply to and is not looked at.

use std::net::IpAddr;

use cove_runtime::cgroup::CgroupPath;

use super::super::wire;
use super::field::{absolute, known, name, no_control, not_built, part, required, word};
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::sandbox::config::{Dns, NamespaceMode, PortMapping, Protocol, SandboxConfig, SandboxName};

/// HOST_NAME_MAX (gethostname(2)).
const MAX_HOSTNAME: usize = 64;
/// More lines of one kind than any resolver reads (a kubelet allows 32 search domains).
const MAX_DNS: usize = 64;
/// The longest domain name is 253 letters; an address or an option is shorter.
const MAX_DNS_WORD: usize = 255;

/// Checks a request of RunPodSandbox whole.
pub(in crate::api) fn config(
    request: wire::RunPodSandboxRequest,
    settings: &Config,
) -> Result<SandboxConfig, Error> {
    let config = required("config", request.config)?;
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    not_built("config.windows", config.windows.is_some())?;
    not_built("config.linux.sysctls", !linux.sysctls.is_empty())?;
    super::security::selinux(
        "config.linux.security_context.selinux_options",
        security.selinux_options.as_ref(),
    )?;
    let [network, pid, ipc] = namespaces(security.namespace_options.unwrap_or_default())?;
    if settings.handler(&request.runtime_handler).is_none() {
        return Err(Error::NotFound { kind: Kind::RuntimeHandler, id: request.runtime_handler });
    }
    Ok(SandboxConfig {
        name: sandbox_name(required("config.metadata", config.metadata)?)?,
        hostname: hostname(config.hostname)?,
        log_directory: optional(&config.log_directory, |path| absolute("config.log_directory", path))?,
        dns: config.dns_config.map(dns).transpose()?,
        ports: ports(&config.port_mappings)?,
        labels: config.labels,
        annotations: config.annotations,
        cgroup_parent: optional(&linux.cgroup_parent, |path| {
            let path = absolute("config.linux.cgroup_parent", path)?;
            CgroupPath::new(&path)
                .map_err(|error| Error::invalid("config.linux.cgroup_parent", error.to_string()))?;
            Ok(path)
        })?,
        network,
        pid,
        ipc,
        privileged: security.privileged,
        runtime_handler: request.runtime_handler,
    })
}

fn optional<T>(value: &str, check: impl Fn(&str) -> Result<T, Error>) -> Result<Option<T>, Error> {
    if value.is_empty() { Ok(None) } else { check(value).map(Some) }
}

fn sandbox_name(metadata: wire::PodSandboxMetadata) -> Result<SandboxName, Error> {
    Ok(SandboxName {
        name: name("config.metadata.name", metadata.name)?,
        namespace: name("config.metadata.namespace", metadata.namespace)?,
        uid: part("config.metadata.uid", metadata.uid)?,
        attempt: metadata.attempt,
    })
}

/// It becomes the line of /etc/hostname and a word of /etc/hosts.
fn hostname(value: String) -> Result<String, Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if value.len() <= MAX_HOSTNAME && value.bytes().all(allowed) {
        Ok(value)
    } else {
        Err(Error::invalid(
            "config.hostname",
            format!(
                "{value:?} is not a host name of at most {MAX_HOSTNAME} letters, digits, '-', '.' and '_'"
            ),
        ))
    }
}

fn dns(config: wire::DnsConfig) -> Result<Dns, Error> {
    let lines = |kind: &str, values: Vec<String>| {
        let field = format!("config.dns_config.{kind}");
        if values.len() > MAX_DNS {
            return Err(Error::invalid(field, format!("has {} entries, more than {MAX_DNS}", values.len())));
        }
        for (index, value) in values.iter().enumerate() {
            word(&format!("{field}[{index}]"), value, MAX_DNS_WORD)?;
        }
        Ok(values)
    };
    Ok(Dns {
        servers: lines("servers", config.servers)?,
        searches: lines("searches", config.searches)?,
        options: lines("options", config.options)?,
    })
}

fn ports(mappings: &[wire::PortMapping]) -> Result<Vec<PortMapping>, Error> {
    let mut ports = Vec::new();
    for (index, mapping) in mappings.iter().enumerate() {
        let at = |field: &str| format!("config.port_mappings[{index}].{field}");
        let protocol = match known(&at("protocol"), mapping.protocol)? {
            wire::Protocol::Tcp => Protocol::Tcp,
            wire::Protocol::Udp => Protocol::Udp,
            wire::Protocol::Sctp => Protocol::Sctp,
        };
        // 0 is how the CRI says that no port of the host is asked for.
        if mapping.host_port == 0 {
            continue;
        }
        ports.push(PortMapping {
            protocol,
            container_port: port(&at("container_port"), mapping.container_port)?,
            host_port: port(&at("host_port"), mapping.host_port)?,
            host_ip: optional(&mapping.host_ip, |address| {
                address
                    .parse::<IpAddr>()
                    .map_err(|_| Error::invalid(at("host_ip"), format!("{address:?} is not an IP address")))
            })?,
        });
    }
    Ok(ports)
}

fn port(field: &str, value: i32) -> Result<u16, Error> {
    u16::try_from(value)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Error::invalid(field, format!("{value} is not a port: 1 to 65535")))
}

/// Network, PID and IPC, in this order.
fn namespaces(options: wire::NamespaceOption) -> Result<[NamespaceMode; 3], Error> {
    const FIELD: &str = "config.linux.security_context.namespace_options";
    super::security::user_namespace(&format!("{FIELD}.userns_options"), options.userns_options.as_ref())?;
    let pod_or_node = |kind: &str, value| {
        let field = format!("{FIELD}.{kind}");
        match known(&field, value)? {
            wire::NamespaceMode::Pod => Ok(NamespaceMode::Pod),
            wire::NamespaceMode::Node => Ok(NamespaceMode::Node),
            wire::NamespaceMode::Container | wire::NamespaceMode::Target => {
                Err(Error::invalid(field, "must be POD or NODE"))
            }
        }
    };
    let pid = match known(&format!("{FIELD}.pid"), options.pid)? {
        wire::NamespaceMode::Pod => NamespaceMode::Pod,
        wire::NamespaceMode::Container => NamespaceMode::Container,
        wire::NamespaceMode::Node => NamespaceMode::Node,
        wire::NamespaceMode::Target => {
            return Err(Error::invalid(format!("{FIELD}.pid"), "TARGET is for containers only"));
        }
    };
    no_control(&format!("{FIELD}.target_id"), &options.target_id)?;
    Ok([pod_or_node("network", options.network)?, pid, pod_or_node("ipc", options.ipc)?])
}
