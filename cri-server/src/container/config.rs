//! What a container was asked to be: right by type, kept in its record, returned byte for byte.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::sandbox::config::{Annotations, UserNamespace};

/// The CRI's name of a container attempt within its sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerName {
    /// Container name.
    pub name: String,
    /// Attempt, counted by the kubelet.
    pub attempt: u32,
}

/// How mounts propagate (CRI `MountPropagation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    /// Neither way.
    Private,
    /// From the host to the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A volume: a path of the host, or an image, in the container. Status echoes it unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// As the container sees it.
    pub container_path: String,
    /// On the host, as sent; empty for an image. Never touched by the daemon.
    pub host_path: String,
    /// Read-only.
    pub readonly: bool,
    /// As sent.
    pub selinux_relabel: bool,
    /// See [`MountPropagation`].
    pub propagation: MountPropagation,
    /// Read-only all the way down.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recursive_readonly: bool,
    /// Its owners are ids of the pod's user namespace, with this mapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<UserNamespace>,
    /// Further flags, as sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<MountOption>,
    /// An image instead of a path of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageMount>,
}

/// The image of a volume, as sent (KEP-4639).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMount {
    /// A name, a digest or an id.
    pub image: String,
    /// What the pod's author wrote, for status only.
    pub user_specified_image: String,
    /// For status only.
    pub runtime_handler: String,
    /// For status only.
    pub annotations: Annotations,
    /// The directory of the image that is mounted; empty: its root.
    pub sub_path: String,
}

/// A flag of a volume's mount (cri-api v0.37 `mount_options`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::enum_variant_names, reason = "as mount(8) calls them")]
pub enum MountOption {
    /// No program of it can be run.
    NoExec,
    /// Set-user-id bits and file capabilities of it do not count.
    NoSuid,
    /// Device nodes of it cannot be used.
    NoDev,
}

impl MountOption {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::NoExec, Self::NoSuid, Self::NoDev];

    /// As mount(8) and the CRI spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoExec => "noexec",
            Self::NoSuid => "nosuid",
            Self::NoDev => "nodev",
        }
    }
}

/// Limits of cpu, memory and pids; 0 or none is unset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Microseconds of a period.
    pub cpu_period: i64,
    /// Microseconds of cpu time in a period.
    pub cpu_quota: i64,
    /// Relative weight, v1 scale (2 to 262144).
    pub cpu_shares: i64,
    /// Bytes.
    pub memory_limit: i64,
    /// Bytes of memory and swap together.
    pub memory_swap_limit: i64,
    /// For the first process: -1000 to 1000.
    pub oom_score_adj: i64,
    /// CPUs, in list form.
    pub cpuset_cpus: String,
    /// Memory nodes, in list form.
    pub cpuset_mems: String,
    /// Bytes of huge pages by page size, as the kernel writes it ("2MB"). 0 is a limit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hugepages: BTreeMap<String, u64>,
    /// Files of cgroup v2 and what is written to them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    /// Takes over what `asked` sets. The score by which the kernel chooses whom to kill is a process's from its start.
    pub fn take(&mut self, asked: Self) {
        let numbers = [
            (&mut self.cpu_period, asked.cpu_period),
            (&mut self.cpu_quota, asked.cpu_quota),
            (&mut self.cpu_shares, asked.cpu_shares),
            (&mut self.memory_limit, asked.memory_limit),
            (&mut self.memory_swap_limit, asked.memory_swap_limit),
        ];
        for (now, asked) in numbers {
            if asked != 0 {
                *now = asked;
            }
        }
        for (now, asked) in
            [(&mut self.cpuset_cpus, asked.cpuset_cpus), (&mut self.cpuset_mems, asked.cpuset_mems)]
        {
            if !asked.is_empty() {
                *now = asked;
            }
        }
        self.hugepages.extend(asked.hugepages);
        self.unified.extend(asked.unified);
    }
}

/// A device of the host, or all below a directory of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMapping {
    /// As the container sees it: below /dev.
    pub container_path: String,
    /// On the host.
    pub host_path: String,
    /// Letters of `rwm`.
    pub permissions: String,
}

/// Capabilities asked for, upper case without `CAP_`; `ALL` stands for every one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityChange {
    /// Added after `drop` was taken away.
    pub add: Vec<String>,
    /// Taken from the default set.
    pub drop: Vec<String>,
    /// Ambient.
    pub add_ambient: Vec<String>,
}

/// Whom the container runs as; none of the first two: as the image says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    /// User id.
    pub user: Option<u32>,
    /// User name of the image, when no id was given.
    pub username: Option<String>,
    /// Primary group id; only with one of the above.
    pub group: Option<u32>,
    /// Further groups.
    pub supplemental_groups: Vec<u32>,
    /// Only the groups asked for (KEP-3619 `Strict`).
    pub strict_groups: bool,
}

/// Whose PID namespace a container's processes are in (CRI `NamespaceMode`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// The pod's, shared by its containers.
    Pod,
    /// The container's own.
    Container,
    /// The host's.
    Node,
    /// That of the container with this id, of the same pod.
    Target(String),
}

/// Which system calls a container's processes may make (CRI `SecurityProfile`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// All.
    #[default]
    Unconfined,
    /// Those of the default profile.
    RuntimeDefault,
    /// Those of a profile on this node: an absolute path.
    Localhost(PathBuf),
}

/// The AppArmor profile of a container's processes (CRI `SecurityProfile`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmor {
    /// None.
    #[default]
    Unconfined,
    /// The runtime's own.
    RuntimeDefault,
    /// One that is loaded on this node, by its name.
    Localhost(String),
}

impl AppArmor {
    /// Nothing is asked for.
    pub fn is_unconfined(&self) -> bool {
        *self == Self::Unconfined
    }
}

/// `ContainerConfig` after the door: every value checked, nothing in it that is not built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Name and attempt.
    pub name: ContainerName,
    /// Image as asked for: a name, a digest or an id.
    pub image: String,
    /// What the pod's author wrote, for status only.
    pub user_specified_image: String,
    /// As sent; empty: the image's entrypoint.
    pub command: Vec<String>,
    /// As sent.
    pub args: Vec<String>,
    /// Empty: the image's.
    pub working_dir: String,
    /// Name and value; values are bytes (cri-api v0.37).
    pub envs: Vec<(String, Vec<u8>)>,
    /// Volumes.
    pub mounts: Vec<Mount>,
    /// Devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceMapping>,
    /// Qualified names of CDI devices, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cdi_devices: Vec<String>,
    /// As sent.
    pub labels: Annotations,
    /// As sent.
    pub annotations: Annotations,
    /// Relative to the sandbox's log directory; none: output is dropped.
    pub log_path: Option<PathBuf>,
    /// Limits.
    pub resources: Resources,
    /// Capabilities.
    pub capabilities: CapabilityChange,
    /// PID namespace.
    pub pid: PidNamespace,
    /// Identity.
    pub run_as: RunAs,
    /// Everything allowed.
    pub privileged: bool,
    /// The root file system is read-only.
    pub readonly_rootfs: bool,
    /// See prctl(2) PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// Which system calls are let through. Records before it was built have none.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// By which profile it is confined. Records before it was built have none.
    #[serde(default, skip_serializing_if = "AppArmor::is_unconfined")]
    pub apparmor: AppArmor,
    /// Exactly these.
    pub masked_paths: Vec<PathBuf>,
    /// Exactly these.
    pub readonly_paths: Vec<PathBuf>,
    /// Signal number, when asked for; else the image's, else SIGTERM.
    pub stop_signal: Option<i32>,
    /// Its streams are a terminal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub terminal: bool,
    /// Clients can type.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// Its stdin ends with the first client that types.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin_once: bool,
}
