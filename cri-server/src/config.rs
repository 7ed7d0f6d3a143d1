//! The configuration: one TOML file, every key with a default, right without any file.
//!
//! Read once, before a socket is opened. A key that nobody knows is refused with its line and the nearest key that
//! exists (`check`). Nothing here touches the kernel; whether a path can be used is found out by who uses it.

mod check;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cove_layer::Limits;
use serde::{Deserialize, Serialize};

use crate::image::Bounds;

pub(crate) use check::ConfigError;

/// Where the daemon looks when no `--config` is given; the file may be missing.
pub(crate) const DEFAULT_FILE: &str = "/etc/cove/config.toml";

/// Everything that an administrator can choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default = "Config::underived", deny_unknown_fields)]
pub(crate) struct Config {
    /// Prefixes the names of everything that this daemon makes in the kernel.
    pub instance: String,
    /// Records and images. Empty in the file: `/var/lib/INSTANCE`.
    pub root: PathBuf,
    /// What dies with the host. Empty in the file: `/run/INSTANCE`.
    pub state: PathBuf,
    /// Unix sockets to serve the CRI on. Empty in the file: `unix://STATE/cove.sock`.
    pub listen: Vec<String>,
    /// Who may use these sockets.
    pub socket: Socket,
    /// The shim's program. Empty: `cove-shim` beside the running binary.
    pub shim: PathBuf,
    /// Where network namespaces are pinned.
    pub netns_dir: PathBuf,
    /// Parent of pods that name none. Empty in the file: `/INSTANCE`.
    pub cgroup_parent: PathBuf,
    /// Who makes cgroups.
    pub cgroup_driver: CgroupDriver,
    /// Where CDI files lie; a later directory wins over an earlier one.
    pub cdi_dirs: Vec<PathBuf>,
    /// Start although the mount namespace is not that of pid 1.
    pub private_mounts: bool,
    /// The image that status names for tools that ask which one is the sandbox's. Never pulled, never run.
    pub sandbox_image: String,
    /// The daemon's own log.
    pub log: Log,
    /// Pod network.
    pub network: Network,
    /// Exec, attach and port-forward.
    pub stream: Stream,
    /// Images.
    pub images: ImageOptions,
    /// What one image may cost.
    pub image_limits: ImageLimits,
    /// Runtime handlers by name; the one without a name is always there.
    pub handlers: BTreeMap<String, Handler>,
}

/// Owner and mode of the CRI sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Socket {
    /// Group that owns the sockets.
    pub gid: u32,
    /// Permission bits, in octal.
    pub mode: String,
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CgroupDriver {
    /// The one that fits the host.
    Auto,
    /// This daemon writes to the cgroup file system.
    Cgroupfs,
    /// systemd makes a scope for each container.
    Systemd,
}

/// The daemon's own log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// A level, or directives of the form `target=level`, comma-separated.
    pub level: String,
    /// Form of a line.
    pub format: LogFormat,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Pod network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Network {
    /// Which one.
    pub mode: NetworkMode,
    /// Pod ranges of the built-in network in CIDR form, at most one a family.
    pub ranges: Vec<String>,
    /// Where CNI configurations are looked for.
    pub conf_dirs: Vec<PathBuf>,
    /// Where CNI plugins are looked for.
    pub plugin_dirs: Vec<PathBuf>,
    /// How long the plugins of a pod may take together.
    pub plugin_seconds: u64,
    /// Every user of a pod with a network of its own may use ports below 1024.
    pub unprivileged_ports: bool,
    /// Every user of a pod with a network of its own may send ICMP echo requests.
    pub unprivileged_ping: bool,
}

/// Which network pods are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkMode {
    /// None: only pods on the host's network can run, and the node says that its network is not ready.
    None,
    /// The built-in one: a veth pair a pod.
    Builtin,
    /// CNI plugins.
    Cni,
}

/// The server of exec, attach and port-forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Stream {
    /// Where it listens: an address of this node alone, since a URL is all that a client needs.
    pub address: IpAddr,
    /// Its port; 0: one that is free.
    pub port: u16,
    /// Seconds after which a session is ended on which nothing came or went.
    pub idle_seconds: u64,
    /// The certificate by which it speaks TLS, with its chain, in PEM form. Empty: it does not.
    pub tls_certificate: PathBuf,
    /// The certificate's key.
    pub tls_key: PathBuf,
    /// Authorities, one of which must have signed a client's certificate. Empty: clients need none.
    pub tls_client_ca: PathBuf,
}

/// Images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ImageOptions {
    /// Registries, as `host` or `host:port`, that are spoken to without TLS.
    pub plain_http: Vec<String>,
    /// Where `REGISTRY/hosts.toml` files lie, which say where a registry is asked, or its certificates.
    pub hosts_dirs: Vec<PathBuf>,
    /// Names of images that are never collected: whole, `PREFIX*` or `*INFIX*`.
    pub pinned: Vec<String>,
    /// Layers of one pull that are fetched and unpacked at the same time.
    pub max_parallel_layers: usize,
    /// Ranges of one large layer that are fetched at the same time; 1: none is fetched in ranges.
    pub max_parallel_ranges: usize,
    /// Bytes of a layer from which on it is fetched in ranges.
    pub range_threshold: u64,
    /// Seconds that a registry may send nothing.
    pub progress_seconds: u64,
    /// Seconds that a registry which is busy may make a pull wait before one try.
    pub max_wait_seconds: u64,
}

/// What one image may cost. Each error names the key that was exceeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ImageLimits {
    /// Bytes of a manifest, an index or a config.
    pub document_bytes: usize,
    /// How deep indexes may lie in each other.
    pub index_depth: usize,
    /// Entries of one index.
    pub index_entries: usize,
    /// Documents that an index may lead to.
    pub documents: usize,
    /// Layers of an image.
    pub layers: usize,
    /// Bytes of a layer as it is sent.
    pub blob_bytes: u64,
    /// Redirects of one request.
    pub redirects: usize,
    /// Members of an archive that is imported.
    pub archive_entries: usize,
    /// Bytes of members of an archive that are put by until it is known what they are.
    pub archive_spool_bytes: u64,
    /// Bytes of a layer's archive, uncompressed.
    pub layer_size: u64,
    /// Uncompressed bytes for each byte that is sent.
    pub layer_expansion: u64,
    /// Uncompressed bytes at any ratio.
    pub layer_expansion_free: u64,
    /// Entries of a layer.
    pub layer_entries: u64,
    /// Bytes of all headers of one entry.
    pub layer_headers: u64,
    /// Bytes of one PAX record.
    pub layer_pax_record: usize,
    /// Bytes of one extended attribute.
    pub layer_xattr_value: usize,
    /// Bytes of the paths of directories that no entry of a layer names.
    pub layer_implicit: usize,
}

/// What a runtime handler (RuntimeClass) sets for its pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Handler {
    /// Bytes of a pod's /dev/shm.
    pub shm_size: u64,
    /// The writable layer is never synced to disk (overlay mount option `volatile`).
    pub volatile: bool,
}

impl Default for Config {
    fn default() -> Self {
        let mut config = Self::underived();
        config.derive();
        config
    }
}

impl Default for Socket {
    fn default() -> Self {
        Self { gid: 0, mode: "0660".to_owned() }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            mode: NetworkMode::None,
            ranges: Vec::new(),
            // Where network add-ons write, and where they and distributions install (ecosystem.md section 7).
            conf_dirs: vec!["/etc/cni/net.d".into()],
            plugin_dirs: ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"].map(PathBuf::from).to_vec(),
            // Below the 4 minutes that a kubelet waits for a pod, with time left to undo it (features.md 5.5).
            plugin_seconds: 210,
            unprivileged_ports: true,
            unprivileged_ping: true,
        }
    }
}

impl Default for Stream {
    fn default() -> Self {
        // 4 hours is what containerd and a kubelet give (streamingConnectionIdleTimeout).
        Self {
            address: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            port: 0,
            idle_seconds: 4 * 3600,
            tls_certificate: PathBuf::new(),
            tls_key: PathBuf::new(),
            tls_client_ca: PathBuf::new(),
        }
    }
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            plain_http: Vec::new(),
            hosts_dirs: ["/etc/cove/hosts.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"]
                .map(PathBuf::from)
                .into(),
            pinned: Vec::new(),
            max_parallel_layers: 3,
            max_parallel_ranges: 4,
            range_threshold: 64 * 1024 * 1024,
            progress_seconds: 300,
            max_wait_seconds: 60,
        }
    }
}

impl Default for ImageLimits {
    fn default() -> Self {
        let (bounds, layer) = (Bounds::default(), Limits::default());
        Self {
            document_bytes: bounds.document_bytes,
            index_depth: bounds.index_depth,
            index_entries: bounds.index_entries,
            documents: bounds.documents,
            layers: bounds.layers,
            blob_bytes: bounds.blob_bytes,
            redirects: bounds.redirects,
            archive_entries: bounds.archive_entries,
            archive_spool_bytes: bounds.archive_spool_bytes,
            layer_size: layer.size,
            layer_expansion: layer.expansion,
            layer_expansion_free: layer.expansion_free,
            layer_entries: layer.entries,
            layer_headers: layer.headers,
            layer_pax_record: layer.pax_record,
            layer_xattr_value: layer.xattr_value,
            layer_implicit: layer.implicit,
        }
    }
}

impl ImageLimits {
    /// Of a pull before it unpacks.
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            document_bytes: self.document_bytes,
            index_depth: self.index_depth,
            index_entries: self.index_entries,
            documents: self.documents,
            layers: self.layers,
            blob_bytes: self.blob_bytes,
            redirects: self.redirects,
            archive_entries: self.archive_entries,
            archive_spool_bytes: self.archive_spool_bytes,
        }
    }

    /// Of one layer.
    pub(crate) fn layer(&self) -> Limits {
        Limits {
            size: self.layer_size,
            expansion: self.layer_expansion,
            expansion_free: self.layer_expansion_free,
            entries: self.layer_entries,
            headers: self.layer_headers,
            pax_record: self.layer_pax_record,
            xattr_value: self.layer_xattr_value,
            implicit: self.layer_implicit,
            ..Limits::default()
        }
    }
}

impl Default for Handler {
    fn default() -> Self {
        // 64 MiB is what every runtime gives (`shm_size` of the OCI runtimes' defaults).
        Self { shm_size: 64 * 1024 * 1024, volatile: true }
    }
}

impl Config {
    /// Reads `file`, or the default place if none is named and it exists, or takes the defaults.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, required) = match file {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_FILE), false),
        };
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if !required && error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    /// Reads the text of a configuration file; `path` is for messages.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        check::parse(text, path)
    }

    /// The settings of a runtime handler; none if its name is not in the table.
    pub(crate) fn handler(&self, name: &str) -> Option<&Handler> {
        self.handlers.get(name)
    }

    /// The shim's program: as configured, else beside the running binary.
    pub(crate) fn shim_program(&self) -> std::io::Result<PathBuf> {
        if self.shim.as_os_str().is_empty() {
            Ok(std::env::current_exe()?.with_file_name("cove-shim"))
        } else {
            Ok(self.shim.clone())
        }
    }

    /// Paths of the sockets to serve on.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Path> {
        self.listen.iter().map(|address| Path::new(address.strip_prefix("unix://").unwrap_or(address)))
    }

    /// What a missing key means, with what follows from other keys still empty.
    fn underived() -> Self {
        Self {
            instance: "cove".to_owned(),
            root: PathBuf::new(),
            state: PathBuf::new(),
            listen: Vec::new(),
            socket: Socket::default(),
            shim: PathBuf::new(),
            netns_dir: PathBuf::from("/run/netns"),
            cgroup_parent: PathBuf::new(),
            cgroup_driver: CgroupDriver::Auto,
            cdi_dirs: ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from).to_vec(),
            private_mounts: false,
            // kubeadm reads this from verbose Status and warns unless it knows the name.
            sandbox_image: "registry.k8s.io/pause:3.10.1".to_owned(),
            log: Log::default(),
            network: Network::default(),
            stream: Stream::default(),
            images: ImageOptions::default(),
            image_limits: ImageLimits::default(),
            handlers: BTreeMap::new(),
        }
    }

    /// Fills what follows from other keys.
    fn derive(&mut self) {
        let fill = |path: &mut PathBuf, parent: &str, instance: &str| {
            if path.as_os_str().is_empty() {
                *path = Path::new(parent).join(instance);
            }
        };
        fill(&mut self.root, "/var/lib", &self.instance);
        fill(&mut self.state, "/run", &self.instance);
        fill(&mut self.cgroup_parent, "/", &self.instance);
        if self.listen.is_empty() {
            self.listen.push(format!("unix://{}/cove.sock", self.state.display()));
        }
        self.handlers.entry(String::new()).or_default();
    }
}

impl Network {
    /// An address of a range, split into address and prefix length; none if it is not in CIDR form.
    pub(crate) fn cidr(range: &str) -> Option<(IpAddr, u8)> {
        let (address, length) = range.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let length: u8 = length.parse().ok()?;
        (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
    }
}

impl Socket {
    /// The permission bits as a number; none if `mode` is not three or four octal digits.
    pub(crate) fn bits(&self) -> Option<u32> {
        u32::from_str_radix(&self.mode, 8).ok().filter(|bits| self.mode.len() <= 4 && *bits <= 0o777)
    }
}
