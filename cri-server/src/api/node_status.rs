//! What the node is and whether it can run pods: Version, Status, RuntimeConfig. From what is known, without running
//! or asking anything: a kubelet calls Status every five seconds and takes silence for a dead node.

use std::collections::BTreeMap;

use serde_json::json;

use super::wire;
use crate::config::Config;
use crate::network::Network;
use crate::node::Node;
use crate::step::Operations;

/// Answers Version. A kubelet makes the prefix of every container id from the name: it never changes.
pub(super) fn version() -> wire::VersionResponse {
    wire::VersionResponse {
        // The version of the kubelet's side of this call, the same since Kubernetes 1.5.
        version: "0.1.0".to_owned(),
        runtime_name: "cove".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

/// Answers Status.
pub(super) fn status(node: &Node, verbose: bool) -> wire::StatusResponse {
    let config = node.config.load();
    wire::StatusResponse {
        status: Some(wire::RuntimeStatus {
            conditions: vec![runtime_ready(node.gate.is_open()), network_ready(node.network().ok())],
        }),
        info: if verbose { info(&config, &node.operations) } else { BTreeMap::new() },
        runtime_handlers: config
            .handlers
            .keys()
            .map(|name| wire::RuntimeHandler {
                name: name.clone(),
                features: Some(wire::RuntimeHandlerFeatures {
                    recursive_read_only_mounts: cove_runtime::namespace::has_recursive_mount_flags(),
                    user_namespaces: node.user_namespaces().is_ok(),
                }),
            })
            .collect(),
        features: Some(wire::RuntimeFeatures {
            supplemental_groups_policy: true,
            mount_options: true,
            ..Default::default()
        }),
    }
}

/// Answers RuntimeConfig.
pub(super) fn runtime_config() -> wire::RuntimeConfigResponse {
    wire::RuntimeConfigResponse {
        // The only driver that the configuration accepts; zero would say systemd.
        linux: Some(wire::LinuxRuntimeConfiguration { cgroup_driver: wire::CgroupDriver::Cgroupfs.into() }),
    }
}

fn condition(kind: &str, wrong: Option<(&str, String)>) -> wire::RuntimeCondition {
    let status = wrong.is_none();
    let (reason, message) = wrong.unwrap_or_default();
    wire::RuntimeCondition { r#type: kind.to_owned(), status, reason: reason.to_owned(), message }
}

fn runtime_ready(recovered: bool) -> wire::RuntimeCondition {
    let wrong = (!recovered).then(|| ("Recovering", "the daemon is still reading its records".to_owned()));
    condition("RuntimeReady", wrong)
}

fn network_ready(network: Option<&Network>) -> wire::RuntimeCondition {
    let fault = match network {
        Some(network) => network.fault(),
        None => Some("the daemon is still setting up its pod network".to_owned()),
    };
    condition("NetworkReady", fault.map(|fault| ("NetworkPluginNotReady", fault)))
}

/// `stateDir` is read by critest, `sandboxImage` by kubeadm. Beside the configuration: what is under way, at which step,
/// and how long it has been there.
fn info(config: &Config, operations: &Operations) -> BTreeMap<String, String> {
    let under_way: Vec<_> = operations
        .in_flight()
        .iter()
        .map(|progress| {
            let (step, age) = progress.at();
            json!({
                "operation": progress.operation.name,
                "id": progress.id,
                "milliseconds": progress.begun.elapsed().as_secs_f64() * 1000.0,
                "step": step,
                "stepMilliseconds": age.as_secs_f64() * 1000.0,
            })
        })
        .collect();
    let document = json!({
        "instance": config.instance,
        "rootDir": config.root,
        "stateDir": config.state,
        "listen": config.listen,
        "sandboxImage": config.sandbox_image,
        "cgroupParent": config.cgroup_parent,
        "cgroupDriver": "cgroupfs",
        "network": config.network,
        "handlers": config.handlers,
    });
    BTreeMap::from([
        ("config".to_owned(), document.to_string()),
        ("operations".to_owned(), json!(under_way).to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn each_handler_is_told_and_one_has_no_name() {
        let config = Config::parse("[handlers.big]\n", Path::new("test")).unwrap();
        assert_eq!(config.handlers.keys().collect::<Vec<_>>(), ["", "big"]);
    }

    #[test]
    fn a_missing_network_says_what_to_set() {
        let condition = network_ready(Some(&Network::None));
        assert_eq!((condition.status, condition.reason.as_str()), (false, "NetworkPluginNotReady"));
        assert!(condition.message.contains("network.mode"));
        assert!(!network_ready(None).status, "not before recovery has started it");
        assert!(!runtime_ready(false).status && runtime_ready(true).status);
    }

    #[test]
    fn every_part_of_the_version_is_filled() {
        let version = version();
        assert_eq!((version.version.as_str(), version.runtime_name.as_str()), ("0.1.0", "cove"));
        assert_eq!(version.runtime_api_version, "v1");
        assert_eq!(version.runtime_version.split('.').count(), 3);
    }

    #[test]
    fn the_driver_is_said_in_so_many_words() {
        let driver = runtime_config().linux.unwrap().cgroup_driver;
        assert_eq!(driver, i32::from(wire::CgroupDriver::Cgroupfs));
    }

    #[test]
    fn verbose_names_what_tools_read() {
        let info = info(&Config::default(), &Operations::default());
        let document: serde_json::Value = serde_json::from_str(&info["config"]).unwrap();
        assert_eq!(document["stateDir"], "/run/cove");
        assert!(document["sandboxImage"].as_str().unwrap().contains("pause"));
    }
}
