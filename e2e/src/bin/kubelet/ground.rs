//! What the cases stand on: a kubelet, its runtime, images, and words for pods and for what becomes of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cove_e2e::image::{self, Layer};
use cove_e2e::kubelet::Kubelet as Cri;
use cove_e2e::registry::Registry;
use cove_e2e::{Outcome, client, process};
use k8s_cri::v1::ContainerState;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::node::{NAME, Node};

/// How long something may take that a kubelet does by itself: its slowest loop looks once a minute.
pub(crate) const LIMIT: Duration = Duration::from_secs(150);

/// How often the kubelet is asked, however many wait for its answer.
const INTERVAL: Duration = Duration::from_millis(200);

/// What every container that only has to be there runs: ends at once when it is told to.
pub(crate) const IDLE: &str = "trap 'exit 0' TERM; sleep 100000 & wait";

/// References of the images of the cases.
#[derive(Debug)]
pub(crate) struct Images {
    /// busybox with accounts.
    pub(crate) busybox: String,
    /// The same for a user of its own, by number.
    pub(crate) user: String,
    /// Files for an image volume.
    pub(crate) content: String,
    /// One that no pod runs.
    pub(crate) unused: String,
    /// One that is not in the registry.
    pub(crate) missing: String,
}

impl Images {
    pub(crate) fn push(registry: &Registry) -> Outcome<Self> {
        let config = |user: &str| json!({"Env": ["PATH=/bin"], "Cmd": ["sh"], "User": user});
        // For `kubectl cp` and terminals.
        let more = Layer::new().symlink("bin/tar", "busybox").symlink("bin/stty", "busybox");
        let busybox = image::build(vec![image::busybox()?, image::accounts(), more], config(""))?;
        let layer = |name: &str| Layer::new().dir("data", 0o755).file(name, 0o644, "from the image\n");
        Ok(Self {
            busybox: registry.push("node/busybox", "1", &busybox)?,
            user: registry.push("node/user", "1", &image::build_on(&busybox, vec![], config("1000"))?)?,
            content: registry.push(
                "node/content",
                "1",
                &image::build(vec![layer("data/file")], json!({}))?,
            )?,
            unused: registry.push(
                "node/unused",
                "1",
                &image::build(vec![layer("data/unused")], json!({}))?,
            )?,
            missing: format!("{}/node/missing:1", registry.host),
        })
    }
}

/// Where everything happens.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) node: Node,
    pub(crate) images: Images,
    /// Where containers write what they see.
    witness: PathBuf,
    handle: Handle,
    seen: Mutex<Option<(Instant, Vec<Value>)>>,
}

/// A case: pods, and what must become of them.
pub(crate) struct Trial {
    pub(crate) pods: Vec<Value>,
    pub(crate) check: Box<dyn FnOnce(&Ground) -> Outcome + Send>,
}

impl Trial {
    pub(crate) fn new(
        pods: Vec<Value>,
        check: impl FnOnce(&Ground) -> Outcome + Send + 'static,
    ) -> Outcome<Self> {
        Ok(Self { pods, check: Box::new(check) })
    }
}

impl Ground {
    pub(crate) fn new(node: Node, images: Images, directory: &Path, handle: Handle) -> Outcome<Self> {
        let witness = directory.join("witness");
        fs::create_dir_all(&witness)?;
        Ok(Self { node, images, witness, handle, seen: Mutex::new(None) })
    }

    /// The manifest of a pod with a volume `witness` of the host. `spec` is merged into its spec.
    pub(crate) fn pod(&self, name: &str, containers: &[Value], spec: Value) -> Outcome<Value> {
        use std::os::unix::fs::PermissionsExt;
        let witness = self.witness.join(name);
        fs::create_dir_all(&witness)?;
        // Whatever user its containers run as.
        fs::set_permissions(&witness, fs::Permissions::from_mode(0o777))?;
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
            "spec": {
                "terminationGracePeriodSeconds": 2,
                "automountServiceAccountToken": false,
                "containers": containers,
                "volumes": [{"name": "witness", "hostPath": {"path": witness, "type": "Directory"}}],
            },
        });
        merge(&mut pod["spec"], spec);
        Ok(pod)
    }

    /// A container that runs a script and sees the pod's witness. `more` is merged into it.
    pub(crate) fn container(&self, name: &str, script: &str, more: Value) -> Value {
        let mut container = json!({
            "name": name,
            "image": self.images.busybox,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "witness", "mountPath": "/witness"}],
        });
        merge(&mut container, more);
        container
    }

    /// A pod of one container.
    pub(crate) fn simple(&self, name: &str, script: &str, container: Value, spec: Value) -> Outcome<Value> {
        self.pod(name, &[self.container("main", script, container)], spec)
    }

    /// The file `name` that containers of the pod write.
    pub(crate) fn witness(&self, pod: &str, name: &str) -> PathBuf {
        self.witness.join(pod).join(name)
    }

    /// What a pod wrote to its witness: waits for a last line `end`, which is left out.
    pub(crate) fn told(&self, pod: &str, name: &str) -> Outcome<String> {
        let path = self.witness(pod, name);
        self.until(&format!("{pod} to write {name}"), || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            Ok(text.strip_suffix("end\n").map(str::to_owned))
        })
        .map_err(|error| format!("{error}; it is {}", self.state(pod)).into())
    }

    /// Waits for a condition.
    pub(crate) fn until<T>(&self, what: &str, mut probe: impl FnMut() -> Outcome<Option<T>>) -> Outcome<T> {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(value) = probe()? {
                return Ok(value);
            }
            if Instant::now() > end {
                return Err(format!("waited {LIMIT:?} for {what}").into());
            }
            std::thread::sleep(INTERVAL);
        }
    }

    /// Waits until no container runs.
    pub(crate) fn settled(&self) -> Outcome {
        self.until("every container to have ended", || {
            self.cri(async |mut cri| {
                for id in cri.containers().await? {
                    // One may be collected in between.
                    let status = cri.status(&id).await;
                    if status.is_ok_and(|status| status.state() == ContainerState::ContainerRunning) {
                        return Ok(None);
                    }
                }
                Ok(Some(()))
            })
        })
    }

    /// Waits until the kubelet says of a pod what is looked for.
    pub(crate) fn seen<T>(
        &self,
        pod: &str,
        what: &str,
        mut probe: impl FnMut(&Value) -> Option<T>,
    ) -> Outcome<T> {
        self.until(&format!("{pod}: {what}"), || Ok(self.look(pod)?.and_then(|pod| probe(&pod))))
            .map_err(|error| format!("{error}; it is {}", self.state(pod)).into())
    }

    /// Waits until every container of a pod is ready.
    pub(crate) fn ready(&self, pod: &str) -> Outcome<Value> {
        self.seen(pod, "to be ready", |pod| condition(pod, "Ready").then(|| pod.clone()))
    }

    /// The pod as the kubelet sees it.
    pub(crate) fn look(&self, pod: &str) -> Outcome<Option<Value>> {
        let wanted = format!("{pod}-{NAME}");
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.as_ref().is_none_or(|(when, _)| when.elapsed() > INTERVAL) {
            let pods: Value = serde_json::from_str(&self.node.get("/pods")?)?;
            *seen = Some((Instant::now(), pods["items"].as_array().cloned().unwrap_or_default()));
        }
        let pods = seen.as_ref().map(|(_, pods)| pods.as_slice()).unwrap_or_default();
        Ok(pods.iter().find(|pod| pod["metadata"]["name"] == wanted.as_str()).cloned())
    }

    /// How a pod stands, for messages of failed cases.
    fn state(&self, pod: &str) -> String {
        match self.node.pod(pod) {
            Ok(Some(pod)) => pod["status"].to_string(),
            Ok(None) => "unknown to the kubelet".into(),
            Err(error) => format!("not to be asked for: {error}"),
        }
    }

    /// Asks the runtime itself.
    pub(crate) fn cri<T>(&self, ask: impl AsyncFnOnce(Cri) -> Outcome<T>) -> Outcome<T> {
        self.handle.block_on(async { ask(Cri(client::connect(&self.node.socket).await?)).await })
    }

    /// Runs a command in a container.
    pub(crate) fn exec(&self, pod: &str, container: &str, command: &[&str]) -> Outcome<String> {
        let id = self.id(pod, container)?;
        let (code, out) = self.cri(async |mut cri| Ok(cri.exec(&id, command).await?))?;
        let out = String::from_utf8_lossy(&out).into_owned();
        if code != 0 {
            return Err(format!("{command:?} in {pod} ended with {code}: {out}").into());
        }
        Ok(out)
    }

    /// The id that the runtime gave a container.
    pub(crate) fn id(&self, pod: &str, container: &str) -> Outcome<String> {
        let found = self.node.pod(pod)?.ok_or_else(|| format!("no pod {pod}"))?;
        let status = of(&found, container);
        let id = status["containerID"].as_str().unwrap_or_default();
        Ok(id.rsplit_once("://").ok_or_else(|| format!("{pod}: no id of {container}"))?.1.to_owned())
    }

    /// The pid of the container `main`.
    pub(crate) fn pid(&self, pod: &str) -> Outcome<i32> {
        let id = self.id(pod, "main")?;
        self.cri(async |mut cri| Ok(cri.pid(&id).await?))
    }

    /// The sandboxes of a pod.
    pub(crate) fn sandboxes(&self, uid: &str) -> Outcome<Vec<String>> {
        self.cri(async |mut cri| {
            let mut found = Vec::new();
            for pod in cri.pods().await? {
                // One of another pod may go in between.
                let status = cri.pod_status(&pod).await;
                if status.is_ok_and(|status| status.metadata.is_some_and(|pod| pod.uid == uid)) {
                    found.push(pod);
                }
            }
            Ok(found)
        })
    }

    /// Kills what holds a sandbox: the shim, or whatever else carries its id in its arguments.
    pub(crate) fn end_sandbox(&self, sandbox: &str) -> Outcome {
        for entry in fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
            // A process may end between any two of these looks.
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if line.split(|byte| *byte == 0).any(|word| word == sandbox.as_bytes()) {
                return process::signal(pid, Signal::KILL);
            }
        }
        Err(format!("nothing holds sandbox {sandbox}").into())
    }

    /// The logs of a container, the current one last.
    pub(crate) fn log_files(&self, pod: &str, container: &str) -> Outcome<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.node.logs())?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&format!("default_{pod}-{NAME}_")) {
                let directory = entry.path().join(container);
                found.extend(fs::read_dir(directory).into_iter().flatten().flatten().map(|file| file.path()));
            }
        }
        // `0.log.TIME` is older than `0.log`, and TIME sorts.
        found.sort_by_key(|path| (path.extension().is_some_and(|end| end == "log"), path.clone()));
        Ok(found)
    }
}

/// Objects by their keys, arrays one after the other; anything else takes the place of what was there.
pub(crate) fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(from)) => into.extend(from),
        (into, from) => *into = from,
    }
}

/// A condition of a pod holds.
pub(crate) fn condition(pod: &Value, name: &str) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == name && one["status"] == "True"))
}

/// The status of a container of a pod, of whatever kind.
pub(crate) fn of(pod: &Value, container: &str) -> Value {
    ["containerStatuses", "initContainerStatuses"]
        .iter()
        .filter_map(|list| pod["status"][list].as_array())
        .flatten()
        .find(|status| status["name"] == container)
        .cloned()
        .unwrap_or_default()
}

/// How often a container was started again.
pub(crate) fn restarts(pod: &Value, container: &str) -> u64 {
    of(pod, container)["restartCount"].as_u64().unwrap_or(0)
}
