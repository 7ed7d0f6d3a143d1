//! What a builder is asked to build: the small, versioned form of an OCI spec that a shim passes on in a sealed
//! memfd without reading it. `spec` makes it from `oci_spec::runtime::Spec`; `create` and `join` execute it.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::wire::{Malformed, Reader, Wire};
use crate::{wire_enum, wire_struct};

wire_struct! {
    /// A container: its root file system, what is mounted over it, and its first process.
    pub struct ContainerSpec {
        /// The container's id.
        pub container: String,
        /// Its root file system.
        pub rootfs: Rootfs,
        /// A cgroup namespace of its own (cgroup v2, not privileged).
        pub new_cgroup_namespace: bool,
        /// In the order in which they are made.
        pub mounts: Vec<Mount>,
        /// Device nodes below /dev.
        pub devices: Vec<Device>,
        /// Hidden: a file behind the null device, a directory behind an empty read-only tmpfs. Missing: skipped.
        pub masked_paths: Vec<PathBuf>,
        /// Made read-only. Missing: skipped.
        pub readonly_paths: Vec<PathBuf>,
        /// The first process.
        pub process: ProcessSpec,
    }
}

/// What a builder reads: a container, and behind it what only some have. An older builder refuses what it does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerOrder {
    /// The container.
    pub spec: ContainerSpec,
    /// Programs that finish its root file system.
    pub hooks: Option<Hooks>,
}

impl Wire for ContainerOrder {
    fn put(&self, out: &mut Vec<u8>) {
        self.spec.put(out);
        if let Some(hooks) = &self.hooks {
            hooks.put(out);
        }
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let spec = ContainerSpec::take(input)?;
        let hooks = if input.is_empty() { None } else { Some(Hooks::take(input)?) };
        Ok(Self { spec, hooks })
    }
}

wire_struct! {
    /// Programs of the host that are run while a container is made.
    pub struct Hooks {
        /// The container's state (runtime spec, "State") as JSON, but for the pid and the brace at its end.
        pub state: String,
        /// Those that are run when its mounts and nodes are made, before the host is out of sight.
        pub create_container: Vec<Hook>,
    }
}

wire_struct! {
    /// A program of the host. Gets the container's state on its standard input.
    pub struct Hook {
        /// On the host.
        pub path: PathBuf,
        /// Its own name and arguments; none: the path.
        pub args: Vec<OsString>,
        /// `NAME=value` entries; no others.
        pub env: Vec<OsString>,
        /// Seconds it may take; 0: as long as others.
        pub timeout: u32,
    }
}

wire_struct! {
    /// An overlay in the container's own mount namespace.
    pub struct Rootfs {
        /// Layer directories on the host, the uppermost first.
        pub lower: Vec<PathBuf>,
        /// The writable layer.
        pub upper: PathBuf,
        /// overlayfs's own directory, beside `upper`.
        pub work: PathBuf,
        /// An empty directory on the host onto which the overlay is mounted before pivot_root.
        pub target: PathBuf,
        /// Everything but the mounts over it is read-only.
        pub readonly: bool,
        /// Overlay without syncs (mount option `volatile`).
        pub volatile: bool,
    }
}

wire_enum! {
    /// How mounts made on one side are seen on the other. See mount_namespaces(7).
    pub enum Propagation {
        /// Neither side.
        1 => Private,
        /// From the host into the container.
        2 => HostToContainer,
        /// Both ways.
        3 => Bidirectional,
    }
}

wire_struct! {
    /// A bind mount of a path of the host.
    pub struct Bind {
        /// On the host; a symlink there is followed. Touched by the builder alone.
        pub source: PathBuf,
        /// With everything mounted below it.
        pub recursive: bool,
        /// See [`Propagation`].
        pub propagation: Propagation,
        /// Read-only all the way down (mount_setattr AT_RECURSIVE).
        pub recursive_readonly: bool,
    }
}

wire_struct! {
    /// An image as a volume.
    pub struct ImageVolume {
        /// Layer directories on the host, the uppermost first.
        pub lower: Vec<PathBuf>,
        /// The directory of the image that is mounted, resolved inside the image; empty: its root.
        pub sub_path: PathBuf,
    }
}

wire_struct! {
    /// A tmpfs.
    pub struct Tmpfs {
        /// Bytes; 0: the kernel's default.
        pub size: u64,
        /// Mode bits of its root.
        pub mode: u32,
        /// See mount(2) MS_STRICTATIME.
        pub strict_atime: bool,
    }
}

wire_enum! {
    /// What is mounted.
    pub enum MountKind {
        /// A path of the host.
        1 => Bind(Bind),
        /// procfs of the container's PID namespace: from the holder when the pod shares one.
        2 => Proc,
        /// sysfs of the pod's network namespace.
        3 => Sysfs,
        /// POSIX message queues of the pod's IPC namespace.
        4 => Mqueue,
        /// A new instance of devpts.
        5 => Devpts,
        /// A tmpfs.
        6 => Tmpfs(Tmpfs),
        /// The pod's /dev/shm from the holder; the host's when the pod uses the host's IPC namespace.
        7 => Shm,
        /// The container's view of its cgroups, read-only unless asked otherwise.
        8 => Cgroup,
        /// The files of another image, read-only.
        9 => Image(ImageVolume),
        /// A VOLUME of the image: a directory of the host's that belongs to this container alone, and that the image's
        /// content of the destination is copied into first.
        10 => Volume(PathBuf),
        /// A path of the host whose owners are ids of the pod's user namespace (mount_setattr(2), MOUNT_ATTR_IDMAP).
        11 => MappedBind(Bind),
    }
}

wire_struct! {
    /// A mount in the container.
    pub struct Mount {
        /// Absolute, as the container sees it; resolved in-root, made if missing.
        pub destination: PathBuf,
        /// What is mounted there.
        pub kind: MountKind,
        /// Mount flags.
        pub readonly: bool,
        /// See mount(2) MS_NOSUID.
        pub nosuid: bool,
        /// See mount(2) MS_NODEV.
        pub nodev: bool,
        /// See mount(2) MS_NOEXEC.
        pub noexec: bool,
    }
}

wire_struct! {
    /// A device node.
    pub struct Device {
        /// Absolute, below /dev.
        pub path: PathBuf,
        /// Block device; else character device.
        pub block: bool,
        /// Major number.
        pub major: u32,
        /// Minor number.
        pub minor: u32,
        /// Permission bits.
        pub mode: u32,
        /// Owner.
        pub uid: u32,
        /// Group.
        pub gid: u32,
    }
}

wire_struct! {
    /// A process: what runs, as whom, with which rights.
    pub struct ProcessSpec {
        /// Program and arguments; the program is looked up in PATH of `env` inside the container.
        pub args: Vec<OsString>,
        /// `NAME=value` entries.
        pub env: Vec<OsString>,
        /// Working directory; made (0755, root) if missing in `create`, must exist in `join`.
        pub cwd: PathBuf,
        /// As whom.
        pub user: User,
        /// Capability sets.
        pub capabilities: Capabilities,
        /// See prctl(2) PR_SET_NO_NEW_PRIVS.
        pub no_new_privs: bool,
        /// Resource, soft and hard limit.
        pub rlimits: Vec<Rlimit>,
        /// File mode creation mask.
        pub umask: u32,
        /// A classic BPF program (array of `struct sock_filter`) for seccomp(2); none: unconfined.
        pub seccomp: Option<Vec<u8>>,
        /// AppArmor profile for the exec; none: as inherited.
        pub apparmor: Option<String>,
    }
}

wire_struct! {
    /// A resource limit. See setrlimit(2).
    pub struct Rlimit {
        /// RLIMIT_* number.
        pub resource: u32,
        /// Soft limit.
        pub soft: u64,
        /// Hard limit.
        pub hard: u64,
    }
}

wire_struct! {
    /// Five sets as bit masks by capability number. See capabilities(7).
    pub struct Capabilities {
        /// Bounding.
        pub bounding: u64,
        /// Effective.
        pub effective: u64,
        /// Permitted.
        pub permitted: u64,
        /// Inheritable: always 0 (CVE-2022-24769).
        pub inheritable: u64,
        /// Ambient.
        pub ambient: u64,
    }
}

wire_enum! {
    /// Which groups of the image a process gets beside the ones asked for. See KEP-3619.
    pub enum GroupsPolicy {
        /// Those that the image's /etc/group gives the user, too.
        1 => Merge,
        /// None.
        2 => Strict,
    }
}

wire_struct! {
    /// Whom a process runs as, before the rootfs was asked.
    pub struct User {
        /// `""` (root), `uid`, `name`, `uid:gid`, `name:group` and so on, as in an image's USER.
        pub user: String,
        /// Overrides the group part of `user`.
        pub gid: Option<u32>,
        /// Groups asked for beside the primary one.
        pub supplemental: Vec<u32>,
        /// See [`GroupsPolicy`].
        pub policy: GroupsPolicy,
    }
}
