//! `PodSandboxConfig` becomes a `SandboxConfig`.
//!
//! There is no process of the sandbox's own with rights, so what a CRI asks of a "pause" container (its user, its groups,
//! its read-only rootfs, seccomp, AppArmor) has nothing to apply to and is not looked at.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cove_guard::Guard;
use cove_runtime::cgroup::CgroupPath;
use cove_runtime::sysctl::{Own, fault};

use super::super::wire;
use super::field::{absolute, known, name, no_control, not_built, part, required, word};
use crate::config::Config;
use crate::error::{Error, Kind};
use crate::sandbox::config::{
    Dns, NamespaceMode, PortMapping, Protocol, SandboxConfig, SandboxName, UserNamespace,
};

/// HOST_NAME_MAX (gethostname(2)).
const MAX_HOSTNAME: usize = 64;
const NAMESPACES: &str = "config.linux.security_context.namespace_options";
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
    super::security::selinux(
        "config.linux.security_context.selinux_options",
        security.selinux_options.as_ref(),
    )?;
    let options = security.namespace_options.unwrap_or_default();
    let user_namespace = user_namespace(&options)?;
    let [network, pid, ipc] = namespaces(options)?;
    sysctls(&linux.sysctls, network, ipc)?;
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
        user_namespace,
        sysctls: linux.sysctls,
        privileged: security.privileged,
        runtime_handler: request.runtime_handler,
    })
}

/// Only what is the pod's own: the host's parameters are no pod's to set.
fn sysctls(
    asked: &BTreeMap<String, String>,
    network: NamespaceMode,
    ipc: NamespaceMode,
) -> Result<(), Error> {
    let pods = |mode| mode != NamespaceMode::Node;
    let own = Own { net: pods(network), ipc: pods(ipc), uts: pods(network) };
    for (key, value) in asked {
        if let Some(reason) = fault(key, value, own) {
            return Err(Error::invalid("config.linux.sysctls", format!("{key:?} = {value:?}: {reason}")));
        }
    }
    Ok(())
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
    if value.len() <= MAX_HOSTNAME && (value.bytes().all(allowed) || !Guard::OneLine.holds()) {
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

/// The pod's user namespace. It owns the pod's other namespaces: one of the host's would take its rights from the pod's
/// root again, and Kubernetes does not let a pod ask for both.
fn user_namespace(options: &wire::NamespaceOption) -> Result<Option<UserNamespace>, Error> {
    let own = super::security::user_namespace(
        &format!("{NAMESPACES}.userns_options"),
        options.userns_options.as_ref(),
    )?;
    let modes = [("network", options.network), ("pid", options.pid), ("ipc", options.ipc)];
    let node = i32::from(wire::NamespaceMode::Node);
    match modes.into_iter().find(|(_, mode)| own.is_some() && *mode == node) {
        None => Ok(own),
        Some((kind, _)) => {
            let reason = "NODE cannot be combined with a user namespace of the pod's own";
            Err(Error::invalid(format!("{NAMESPACES}.{kind}"), reason))
        }
    }
}

/// Network, PID and IPC, in this order.
fn namespaces(options: wire::NamespaceOption) -> Result<[NamespaceMode; 3], Error> {
    const FIELD: &str = NAMESPACES;
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

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn request() -> wire::RunPodSandboxRequest {
        let metadata = wire::PodSandboxMetadata {
            name: "web".into(),
            uid: "u-1".into(),
            namespace: "default".into(),
            attempt: 2,
        };
        let config = wire::PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
        wire::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() }
    }

    fn changed(change: impl FnOnce(&mut wire::PodSandboxConfig)) -> wire::RunPodSandboxRequest {
        let mut request = request();
        change(request.config.as_mut().unwrap());
        request
    }

    fn with_security(
        change: impl FnOnce(&mut wire::LinuxSandboxSecurityContext),
    ) -> wire::RunPodSandboxRequest {
        changed(|config| {
            let linux = config.linux.get_or_insert_default();
            change(linux.security_context.get_or_insert_default());
        })
    }

    fn with_namespaces(change: impl FnOnce(&mut wire::NamespaceOption)) -> wire::RunPodSandboxRequest {
        with_security(|security| change(security.namespace_options.get_or_insert_default()))
    }

    fn with_metadata(change: impl FnOnce(&mut wire::PodSandboxMetadata)) -> wire::RunPodSandboxRequest {
        changed(|config| change(config.metadata.as_mut().unwrap()))
    }

    fn with_port(port: wire::PortMapping) -> wire::RunPodSandboxRequest {
        changed(|config| config.port_mappings.push(port))
    }

    fn with_dns(dns: wire::DnsConfig) -> wire::RunPodSandboxRequest {
        changed(|config| config.dns_config = Some(dns))
    }

    #[test]
    fn the_smallest_request_is_taken() {
        let sandbox = config(request(), &Config::default()).unwrap();
        assert_eq!((sandbox.name.name.as_str(), sandbox.name.attempt), ("web", 2));
        assert_eq!([sandbox.network, sandbox.pid, sandbox.ipc], [NamespaceMode::Pod; 3]);
        assert!(sandbox.log_directory.is_none() && sandbox.dns.is_none() && sandbox.cgroup_parent.is_none());
    }

    #[test]
    fn what_a_kubelet_sends_is_taken_as_it_is() {
        let port =
            wire::PortMapping { container_port: 80, host_port: 8080, protocol: 1, host_ip: "::1".into() };
        let label = ("a\n\u{7f}".to_owned(), "b\u{0}\r".to_owned());
        let request = changed(|config| {
            config.hostname = "web-0.x".into();
            config.log_directory = "/var/log/pods/default_web_u-1".into();
            config.labels.extend([label.clone()]);
            config.annotations.extend([label.clone()]);
            config.port_mappings.push(port);
            config.port_mappings.push(wire::PortMapping { container_port: 90, ..Default::default() });
            config.dns_config = Some(wire::DnsConfig {
                servers: vec!["10.96.0.10".into()],
                searches: vec!["svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            });
            config.linux = Some(wire::LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/burstable/pod1".into(),
                security_context: Some(wire::LinuxSandboxSecurityContext {
                    // A kubelet sends this for each pod; there is no process that it could apply to.
                    seccomp: Some(wire::SecurityProfile::default()),
                    run_as_user: Some(wire::Int64Value { value: 1000 }),
                    readonly_rootfs: true,
                    privileged: true,
                    namespace_options: Some(wire::NamespaceOption {
                        pid: 1,
                        network: 2,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            });
        });
        let sandbox = config(request, &Config::default()).unwrap();
        assert_eq!(sandbox.labels.get(&label.0), Some(&label.1), "labels are not touched");
        assert_eq!(sandbox.annotations.get(&label.0), Some(&label.1));
        assert_eq!(sandbox.ports.len(), 1, "host port 0 is none");
        assert_eq!((sandbox.ports[0].host_port, sandbox.ports[0].protocol), (8080, Protocol::Udp));
        assert_eq!(sandbox.cgroup_parent, Some(PathBuf::from("/kubepods/burstable/pod1")));
        assert_eq!([sandbox.network, sandbox.pid], [NamespaceMode::Node, NamespaceMode::Container]);
        assert!(sandbox.privileged);
    }

    #[test]
    fn names_and_paths_are_refused_by_field() {
        let metadata = "config.metadata";
        let cases = [
            (wire::RunPodSandboxRequest::default(), "config".to_owned()),
            (changed(|config| config.metadata = None), metadata.to_owned()),
            (with_metadata(|name| name.name.clear()), format!("{metadata}.name")),
            (with_metadata(|name| name.name = "../x".into()), format!("{metadata}.name")),
            (with_metadata(|name| name.namespace.clear()), format!("{metadata}.namespace")),
            (with_metadata(|name| name.namespace = "a\nb".into()), format!("{metadata}.namespace")),
            (with_metadata(|name| name.uid = "..".into()), format!("{metadata}.uid")),
            (changed(|config| config.hostname = "a\nb".into()), "config.hostname".into()),
            (changed(|config| config.hostname = "a b".into()), "config.hostname".into()),
            (changed(|config| config.hostname = "a".repeat(65)), "config.hostname".into()),
            (changed(|config| config.log_directory = "logs".into()), "config.log_directory".into()),
            (changed(|config| config.log_directory = "/a/../b".into()), "config.log_directory".into()),
        ];
        for (request, field) in cases {
            refused(request, &field);
        }
    }

    #[test]
    fn network_settings_are_refused_by_field() {
        let dns = |field: &str| format!("config.dns_config.{field}");
        let port = |field: &str| format!("config.port_mappings[0].{field}");
        let mapping = wire::PortMapping { container_port: 80, host_port: 80, ..Default::default() };
        let cases = [
            (
                with_dns(wire::DnsConfig { servers: vec!["a b".into()], ..Default::default() }),
                dns("servers[0]"),
            ),
            (
                with_dns(wire::DnsConfig { searches: vec!["a\n".into()], ..Default::default() }),
                dns("searches[0]"),
            ),
            (
                with_dns(wire::DnsConfig { options: vec![String::new()], ..Default::default() }),
                dns("options[0]"),
            ),
            (
                with_dns(wire::DnsConfig { options: vec!["a".into(); 65], ..Default::default() }),
                dns("options"),
            ),
            (with_port(wire::PortMapping { protocol: 9, ..mapping.clone() }), port("protocol")),
            (with_port(wire::PortMapping { container_port: 0, ..mapping.clone() }), port("container_port")),
            (with_port(wire::PortMapping { host_port: 65_536, ..mapping.clone() }), port("host_port")),
            (with_port(wire::PortMapping { host_port: -1, ..mapping.clone() }), port("host_port")),
            (with_port(wire::PortMapping { host_ip: "x".into(), ..mapping }), port("host_ip")),
        ];
        for (request, field) in cases {
            refused(request, &field);
        }
    }

    #[test]
    fn linux_settings_are_refused_by_field() {
        let security = "config.linux.security_context";
        let namespaces = format!("{security}.namespace_options");
        let userns = |mode| Some(wire::UserNamespace { mode, ..Default::default() });
        let label = Some(wire::SeLinuxOption { level: "s0\n".into(), ..Default::default() });
        let linux = wire::LinuxPodSandboxConfig::default();
        let sysctl = wire::LinuxPodSandboxConfig {
            sysctls: [("kernel.core_pattern".to_owned(), "|x".to_owned())].into(),
            ..linux.clone()
        };
        let parent = |path: &str| wire::LinuxPodSandboxConfig { cgroup_parent: path.into(), ..linux.clone() };
        let cases = [
            (
                changed(|config| config.windows = Some(wire::WindowsPodSandboxConfig::default())),
                "config.windows".into(),
            ),
            (changed(|config| config.linux = Some(sysctl)), "config.linux.sysctls".into()),
            (changed(|config| config.linux = Some(parent("pods"))), "config.linux.cgroup_parent".into()),
            (changed(|config| config.linux = Some(parent("/a/../.."))), "config.linux.cgroup_parent".into()),
            (with_namespaces(|options| options.network = 1), format!("{namespaces}.network")),
            (with_namespaces(|options| options.network = 9), format!("{namespaces}.network")),
            (with_namespaces(|options| options.ipc = 3), format!("{namespaces}.ipc")),
            (with_namespaces(|options| options.pid = 3), format!("{namespaces}.pid")),
            (
                with_namespaces(|options| options.userns_options = userns(0)),
                format!("{namespaces}.userns_options.uids"),
            ),
            (
                with_namespaces(|options| options.userns_options = userns(1)),
                format!("{namespaces}.userns_options.mode"),
            ),
            (
                with_security(|context| context.selinux_options = label),
                format!("{security}.selinux_options.level"),
            ),
        ];
        for (request, field) in cases {
            refused(request, &field);
        }
        assert!(
            config(with_namespaces(|options| options.userns_options = userns(2)), &Config::default()).is_ok()
        );
    }

    fn line(container_id: u32, host_id: u32, length: u32) -> wire::IdMapping {
        wire::IdMapping { container_id, host_id, length }
    }

    #[test]
    fn one_mapping_from_zero_the_same_for_users_and_groups() {
        let mapped = |uids: &[wire::IdMapping], gids: &[wire::IdMapping]| {
            let userns = wire::UserNamespace { mode: 0, uids: uids.to_vec(), gids: gids.to_vec() };
            with_namespaces(|options| options.userns_options = Some(userns))
        };
        let whole = [line(0, 1000, 100_000)];
        let sandbox = config(mapped(&whole, &whole), &Config::default()).unwrap();
        assert_eq!(sandbox.user_namespace, Some(UserNamespace { host_id: 1000, length: 100_000 }));
        let last = [line(0, u32::MAX - 1, 1)];
        assert!(config(mapped(&last, &last), &Config::default()).is_ok());
        let (none, two) = ([], [line(0, 1000, 10), line(10, 2000, 10)]);
        let overlapping = [line(0, 1000, 10), line(5, 1005, 10)];
        let at = "config.linux.security_context.namespace_options.userns_options";
        let table: [(&[wire::IdMapping], &[wire::IdMapping], &str); 13] = [
            (&none, &none, "uids"),
            (&whole, &none, "gids"),
            (&none, &whole, "uids"),
            (&two, &two, "uids"),
            (&whole, &two, "gids"),
            (&overlapping, &overlapping, "uids"),
            (&[line(1, 1000, 10)], &[line(1, 1000, 10)], "uids[0].container_id"),
            (&[line(0, 1000, 0)], &[line(0, 1000, 0)], "uids[0]"),
            (&[line(0, u32::MAX, 1)], &[line(0, u32::MAX, 1)], "uids[0]"),
            (&[line(0, u32::MAX - 1, 2)], &[line(0, u32::MAX - 1, 2)], "uids[0]"),
            (&[line(0, 1000, u32::MAX)], &[line(0, 1000, u32::MAX)], "uids[0]"),
            (&whole, &[line(0, 2000, 100_000)], "gids"),
            (&whole, &[line(0, 1000, 99_999)], "gids"),
        ];
        for (uids, gids, field) in table {
            refused(mapped(uids, gids), &format!("{at}.{field}"));
        }
        let with_node = |change: fn(&mut wire::NamespaceOption)| {
            let userns = wire::UserNamespace { mode: 0, uids: whole.to_vec(), gids: whole.to_vec() };
            with_namespaces(|options| {
                options.userns_options = Some(userns);
                change(options);
            })
        };
        let of = |kind: &str| format!("config.linux.security_context.namespace_options.{kind}");
        refused(with_node(|options| options.network = 2), &of("network"));
        refused(with_node(|options| options.pid = 2), &of("pid"));
        refused(with_node(|options| options.ipc = 2), &of("ipc"));
        let userns = wire::UserNamespace { mode: 2, uids: whole.to_vec(), gids: Vec::new() };
        refused(with_namespaces(|options| options.userns_options = Some(userns)), at);
    }

    #[test]
    fn only_configured_handlers_are_taken() {
        let settings = Config::parse("[handlers.big]\n", Path::new("test")).unwrap();
        let asks = |name: &str| wire::RunPodSandboxRequest { runtime_handler: name.into(), ..request() };
        assert_eq!(config(asks("big"), &settings).unwrap().runtime_handler, "big");
        let error = config(asks("kata"), &settings).unwrap_err();
        assert!(matches!(error, Error::NotFound { kind: Kind::RuntimeHandler, .. }), "{error}");
    }

    fn refused(request: wire::RunPodSandboxRequest, field: &str) {
        match config(request, &Config::default()) {
            Err(Error::InvalidArgument { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        }
    }
}
