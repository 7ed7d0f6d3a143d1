//! What a sandbox was asked to be: right by type, kept in its record, returned byte for byte.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cove_runtime::protocol::IdMap;
use serde::{Deserialize, Serialize};

/// Labels or annotations: opaque to Cove, returned as they came.
pub type Annotations = BTreeMap<String, String>;

/// The CRI's name of a pod attempt; with it a retry finds the sandbox of its first try.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SandboxName {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod uid.
    pub uid: String,
    /// Attempt, counted by the kubelet.
    pub attempt: u32,
}

/// Whose namespace of a kind is used (CRI `NamespaceMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// The pod's, shared by its containers.
    Pod,
    /// The container's own.
    Container,
    /// The host's.
    Node,
}

/// The ids of a user namespace, the same for users and groups: 0 and so on inside, `host_id` and so on outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// What 0 is on the host.
    pub host_id: u32,
    /// How many there are.
    pub length: u32,
}

impl UserNamespace {
    /// As the runtime takes it.
    pub const fn ids(self) -> IdMap {
        IdMap { host: self.host_id, size: self.length }
    }

    /// As the OCI spec has it (`uidMappings` and `gidMappings`).
    pub fn mappings(self) -> serde_json::Value {
        serde_json::json!([{ "containerID": 0, "hostID": self.host_id, "size": self.length }])
    }
}

/// Lines of /etc/resolv.conf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// `nameserver`.
    pub servers: Vec<String>,
    /// `search`.
    pub searches: Vec<String>,
    /// `options`.
    pub options: Vec<String>,
}

/// Transport of a host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the host that leads to the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport.
    pub protocol: Protocol,
    /// In the pod.
    pub container_port: u16,
    /// On the host; never 0 (0 means none, and is dropped at the door).
    pub host_port: u16,
    /// Address of the host, or any.
    pub host_ip: Option<std::net::IpAddr>,
}

/// `PodSandboxConfig` after the door: every value checked, nothing in it that is not built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// Name, namespace, uid, attempt.
    pub name: SandboxName,
    /// At most 64 bytes; empty only with the host's network.
    pub hostname: String,
    /// Absolute directory for container logs, or none.
    pub log_directory: Option<PathBuf>,
    /// None: a copy of the host's resolv.conf.
    pub dns: Option<Dns>,
    /// Host ports.
    pub ports: Vec<PortMapping>,
    /// As sent.
    pub labels: Annotations,
    /// As sent.
    pub annotations: Annotations,
    /// cgroupfs form, absolute; none: the default parent of this instance.
    pub cgroup_parent: Option<PathBuf>,
    /// Network: `Pod` or `Node`.
    pub network: NamespaceMode,
    /// PID: what the containers get unless they ask otherwise.
    pub pid: NamespaceMode,
    /// IPC: `Pod` or `Node`.
    pub ipc: NamespaceMode,
    /// A user namespace of the pod's own; none: the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<UserNamespace>,
    /// Kernel parameters of the pod's own namespaces, as sent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Containers of this sandbox may be privileged.
    pub privileged: bool,
    /// Runtime handler as asked for; "" is the default one.
    pub runtime_handler: String,
}
