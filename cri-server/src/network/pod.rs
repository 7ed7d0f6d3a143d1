//! What CNI plugins are told of a pod.

use std::collections::{BTreeSet, HashMap};

use cove_netplugin::{CniError, Conflist, capability};
use serde_json::{Map, Value, json};

use crate::sandbox::config::{Protocol, SandboxConfig};
use crate::sandbox::record::SandboxIdentity;

/// `CNI_ARGS` as other runtimes send them (features.md 1.4).
pub(super) fn arguments(config: &SandboxConfig, id: &str) -> Vec<(String, String)> {
    let pairs = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &config.name.namespace),
        ("K8S_POD_NAME", &config.name.name),
        ("K8S_POD_INFRA_CONTAINER_ID", id),
        ("K8S_POD_UID", &config.name.uid),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// What there is to tell of what some plugin of the chain asks for. Nothing else is recorded.
pub(super) fn capabilities(
    identity: &SandboxIdentity,
    list: &Conflist,
) -> Result<Map<String, Value>, CniError> {
    let config = &identity.config;
    let asked: BTreeSet<&str> =
        list.plugins.iter().flat_map(|plugin| &plugin.capabilities).map(String::as_str).collect();
    let mut told: HashMap<&str, Value> = HashMap::new();
    if !config.ports.is_empty() {
        let ports = config.ports.iter().map(|port| {
            let protocol = match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            capability::port_mapping(protocol, port.host_port, port.container_port, port.host_ip)
        });
        told.insert(capability::PORT_MAPPINGS, ports.collect());
    }
    if asked.contains(capability::BANDWIDTH)
        && let Some(bandwidth) = capability::bandwidth(&config.annotations)?
    {
        told.insert(capability::BANDWIDTH, bandwidth);
    }
    if let Some(dns) = &config.dns {
        let dns = json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
        told.insert(capability::DNS, dns);
    }
    told.insert(capability::CGROUP_PATH, json!(identity.cgroup));
    told.insert(capability::POD_ANNOTATIONS, json!(config.annotations));
    Ok(told
        .into_iter()
        .filter(|(name, _)| asked.contains(name))
        .map(|(name, v)| (name.to_owned(), v))
        .collect())
}
