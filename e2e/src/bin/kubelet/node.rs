//! A kubelet of its own on this machine: its directories, cgroups and ports, and how it starts and ends.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cove_e2e::cache::cached;
use cove_e2e::{Outcome, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// How long a kubelet may take to serve for the first time, and to end.
const LIMIT: Duration = Duration::from_secs(60);

/// The name of the node, with which names of static pods end.
pub(crate) const NAME: &str = "node";

/// Where kubelets put links to all logs, wherever these are.
const LINKS: &str = "/var/log/containers";

/// Where they listen for device plugins, wherever their root is.
const PLUGINS: &str = "/var/lib/kubelet/device-plugins";

/// What a kubelet is started with.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Everything of it but its cgroups lies below.
    pub(crate) directory: PathBuf,
    /// The CRI socket of its runtime.
    pub(crate) socket: PathBuf,
    /// Its cgroup in each hierarchy.
    pub(crate) cgroup: String,
    /// Of the API without certificates.
    pub(crate) read_only_port: u16,
    /// Of the API with them.
    pub(crate) port: u16,
    /// Keys of the configuration that differ from `Node::configuration`.
    pub(crate) changes: Value,
    /// What it is called.
    pub(crate) name: String,
    /// How it finds an API server, if there is one.
    pub(crate) kubeconfig: Option<PathBuf>,
}

impl Node {
    /// A node below `directory`, whose cgroup is made.
    pub(crate) fn new(directory: &Path, socket: &Path, instance: &str) -> Outcome<Self> {
        let node = Self::of(directory, socket, instance)?;
        fs::create_dir_all(node.manifests())?;
        node.make_cgroups()?;
        Ok(node)
    }

    /// The same of one that is there.
    pub(crate) fn of(directory: &Path, socket: &Path, instance: &str) -> Outcome<Self> {
        Ok(Self {
            directory: directory.to_owned(),
            socket: socket.to_owned(),
            cgroup: format!("{instance}-kubelet"),
            read_only_port: free_port()?,
            port: free_port()?,
            changes: json!({}),
            name: NAME.to_owned(),
            kubeconfig: None,
        })
    }

    /// Where it looks for static pods.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    /// Where the logs of pods are.
    pub(crate) fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// Its own log.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("kubelet.log")
    }

    fn configuration(&self) -> Value {
        let mut configuration = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "staticPodPath": self.manifests(),
            "containerRuntimeEndpoint": format!("unix://{}", self.socket.display()),
            // Since 1.35 a kubelet refuses hosts with cgroup v1 unless told so.
            "failCgroupV1": false,
            "cgroupRoot": format!("/{}", self.cgroup),
            "address": "127.0.0.1",
            "port": self.port,
            "readOnlyPort": self.read_only_port,
            "healthzPort": 0,
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
                             "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "serializeImagePulls": false,
            "registryPullQPS": 0,
            "podLogsDir": self.logs(),
            "containerLogMaxSize": "128Ki",
            "containerLogMaxFiles": 4,
            "containerLogMonitorInterval": "3s",
            "volumePluginDir": self.directory.join("volume-plugins"),
            "resolvConf": "",
            // Its chains in the firewall of the machine serve none of the cases.
            "makeIPTablesUtilChains": false,
            "featureGates": {"PodAndContainerStatsFromCRI": true},
        });
        if let (Some(all), Some(changes)) = (configuration.as_object_mut(), self.changes.as_object()) {
            all.extend(changes.clone());
        }
        configuration
    }

    /// Starts the kubelet and waits until it serves.
    pub(crate) fn start(&self) -> Outcome<Kubelet> {
        let file = self.directory.join("config.json");
        fs::write(&file, self.configuration().to_string())?;
        let log = fs::OpenOptions::new().append(true).create(true).open(self.log())?;
        let program = cached("bin/kubelet");
        let mut command = Command::new(&program);
        command
            .arg("--config")
            .arg(&file)
            .arg("--root-dir")
            .arg(self.directory.join("kubelet"))
            .arg("--cert-dir")
            .arg(self.directory.join("certificates"))
            .args(["--hostname-override", &self.name, "-v=2"]);
        if let Some(kubeconfig) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{}: {error} (hack/kube/build builds it)", program.display()))?;
        let mut kubelet = Kubelet { child };
        wait::until("the kubelet to serve", LIMIT, || {
            if let Some(status) = kubelet.child.try_wait()? {
                return Err(format!("the kubelet ended with {status}:\n{}", self.trouble()).into());
            }
            Ok(self.get("/pods").ok())
        })?;
        Ok(kubelet)
    }

    /// What its API without certificates answers.
    pub(crate) fn get(&self, path: &str) -> Outcome<String> {
        let url = format!("http://127.0.0.1:{}{path}", self.read_only_port);
        Ok(ureq::get(&url).call()?.body_mut().with_config().limit(64 << 20).read_to_string()?)
    }

    /// The pod of a manifest, as the kubelet sees it; none while it has not read it or once it has forgotten it.
    pub(crate) fn pod(&self, name: &str) -> Outcome<Option<Value>> {
        let pods: Value = serde_json::from_str(&self.get("/pods")?)?;
        let wanted = format!("{name}-{NAME}");
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        Ok(pods.into_iter().find(|pod| pod["metadata"]["name"] == wanted.as_str()))
    }

    /// Writes a manifest and renames it into place: a half-written one is an error of the kubelet's.
    pub(crate) fn place(&self, manifest: &Value) -> Outcome {
        let name = manifest["metadata"]["name"].as_str().ok_or("a manifest without a name")?;
        let aside = self.directory.join(format!("{name}.new"));
        fs::write(&aside, manifest.to_string())?;
        Ok(fs::rename(aside, self.manifest(name))?)
    }

    /// Takes a manifest away, which deletes its pod.
    pub(crate) fn take_away(&self, name: &str) -> Outcome {
        Ok(fs::remove_file(self.manifest(name))?)
    }

    /// There is a manifest of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.manifest(name).exists()
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.manifests().join(format!("{name}.json"))
    }

    /// The last lines of its log that tell of trouble.
    pub(crate) fn trouble(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with(['E', 'F', 'p'])).collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn hierarchies() -> Outcome<Vec<PathBuf>> {
        if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            return Ok(vec!["/sys/fs/cgroup".into()]);
        }
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/sys/fs/cgroup")? {
            // Some are links to the hierarchy of two controllers.
            found.insert(entry?.path().canonicalize()?);
        }
        Ok(found.into_iter().collect())
    }

    /// A kubelet wants its root in every hierarchy, and CPUs in it.
    fn make_cgroups(&self) -> Outcome {
        for hierarchy in Self::hierarchies()? {
            let group = hierarchy.join(&self.cgroup);
            if group.exists() {
                remove_tree(&group)?;
            }
            fs::create_dir(&group)?;
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if hierarchy.join("cpuset.mem_exclusive").exists() {
                    fs::write(group.join(file), fs::read(hierarchy.join(file))?)?;
                }
            }
        }
        Ok(())
    }

    /// Takes away what a kubelet leaves: its cgroups, and what it mounted for pods whose end it did not see. `had` as
    /// from [`fixed_places`].
    pub(crate) fn clear(&self, had: &[PathBuf]) -> Outcome {
        let mut mounts: Vec<PathBuf> = fs::read_to_string("/proc/self/mounts")?
            .lines()
            .filter_map(|line| Some(PathBuf::from(line.split(' ').nth(1)?)))
            .filter(|target| target.starts_with(&self.directory))
            .collect();
        while let Some(mount) = mounts.pop() {
            rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH)
                .map_err(|error| format!("unmount {}: {error}", mount.display()))?;
        }
        for hierarchy in Self::hierarchies()? {
            remove_tree(&hierarchy.join(&self.cgroup))?;
        }
        for entry in fs::read_dir(LINKS).into_iter().flatten().flatten() {
            if fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&self.directory)) {
                fs::remove_file(entry.path())?;
            }
        }
        for place in fixed_places().iter().filter(|place| !had.contains(place)) {
            if place == Path::new(PLUGINS) {
                fs::remove_file(place.join("kubelet.sock"))?;
            }
            // Not with what is in it: that would be somebody else's.
            fs::remove_dir(place).map_err(|error| format!("{}: {error}", place.display()))?;
        }
        Ok(())
    }
}

/// Directories outside of its own that a kubelet makes and leaves, the inner ones first: those that are there.
pub(crate) fn fixed_places() -> Vec<PathBuf> {
    let all = [LINKS, PLUGINS, "/var/lib/kubelet"].map(PathBuf::from);
    all.into_iter().filter(|place| place.exists()).collect()
}

/// A port that nobody has. Another process could take it in between; then the start fails and says so.
pub(crate) fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn remove_tree(group: &Path) -> Outcome {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    wait::until(&format!("{} to be empty", group.display()), LIMIT, || match fs::remove_dir(group) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Some(())),
        // Processes that are being killed are in it for a while.
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Ok(None),
        Err(error) => Err(error.into()),
    })
}

/// A running kubelet, which ends with this value.
#[derive(Debug)]
pub(crate) struct Kubelet {
    child: Child,
}

impl Kubelet {
    /// Its pid.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, and waits for its end.
    pub(crate) fn stop(mut self) -> Outcome {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        wait::until("the kubelet to end", LIMIT, || Ok(self.child.try_wait()?))?;
        Ok(())
    }

    /// SIGKILL, and waits for its end.
    pub(crate) fn kill(mut self) -> Outcome {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
