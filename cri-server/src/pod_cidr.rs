//! UpdateRuntimeConfig: the pod CIDR that a kubelet was told of becomes the range of the built-in network where the
//! configuration names none. It is written down, so that a daemon that is started again has it before the kubelet speaks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::blocking;
use crate::config::{Network, NetworkMode};
use crate::error::Error;
use crate::node::Node;
use crate::store::{self, Durability};

/// Name of the record in the root directory.
const RECORD: &str = "pod-cidr.json";

/// What a kubelet said last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PodCidr {
    /// At most one of IPv4 and one of IPv6.
    ranges: Vec<String>,
}

fn record(root: &Path) -> PathBuf {
    root.join(RECORD)
}

/// The ranges are the kubelet's to say: the built-in network is asked for, and no range of it.
fn is_open(network: &Network) -> bool {
    network.mode == NetworkMode::Builtin && network.ranges.is_empty()
}

/// The network of the configuration, with the ranges that a kubelet said, if it is for the kubelet to say them. A record
/// that cannot be read is none: the kubelet says it again. Blocking.
pub fn complete(network: &Network, root: &Path) -> Network {
    let mut network = network.clone();
    if is_open(&network) {
        match store::read::<PodCidr>(&record(root)) {
            Ok(said) => network.ranges = said.unwrap_or_default().ranges,
            Err(error) => {
                tracing::warn!(%error, "the node's pod CIDR is not known until a kubelet says it again")
            }
        }
    }
    network
}

/// Takes the pod CIDR of the node. Where the configuration has its own say nothing happens, since a kubelet tells every
/// runtime, whoever makes the network; none says nothing.
pub async fn update(node: &Arc<Node>, ranges: Vec<String>) -> Result<(), Error> {
    let config = node.config.load_full();
    if ranges.is_empty() || !is_open(&config.network) {
        return Ok(());
    }
    // Before it is written down: what the network refuses is not kept.
    node.network()?.take_ranges(ranges.clone()).await?;
    tracing::info!(?ranges, "pod CIDR of the node");
    let path = record(&config.root);
    blocking::run(move || Ok(store::write(&path, &PodCidr { ranges }, Durability::Synced)?)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_known_again_unless_the_configuration_says_otherwise() {
        let root = tempfile::tempdir().unwrap();
        let open = Network { mode: NetworkMode::Builtin, ..Network::default() };
        assert!(complete(&open, root.path()).ranges.is_empty());
        let said = PodCidr { ranges: vec!["10.244.1.0/24".into()] };
        store::write(&record(root.path()), &said, Durability::Renamed).unwrap();
        assert_eq!(complete(&open, root.path()).ranges, said.ranges);
        let own = Network { ranges: vec!["10.88.0.0/16".into()], ..open.clone() };
        assert_eq!(complete(&own, root.path()), own);
        assert_eq!(complete(&Network::default(), root.path()), Network::default());
        std::fs::write(record(root.path()), "nonsense").unwrap();
        assert!(complete(&open, root.path()).ranges.is_empty());
    }
}
