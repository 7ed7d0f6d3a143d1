//! An API server for one node, and the real kubectl: no scheduler and no controllers, so pods name their node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cove_e2e::cache::cached;
use cove_e2e::certificate::openssl;
use cove_e2e::{Outcome, wait};
use serde_json::{Value, json};

use crate::node::free_port;

/// How long etcd and the API server may take to be ready.
const LIMIT: Duration = Duration::from_secs(60);

/// What every client shows: everybody may do everything here, on loopback, for a minute.
const TOKEN: &str = "of-the-test";

/// The node's name, by which the API server reaches its kubelet.
pub(crate) const NODE: &str = "127.0.0.1";

/// A control plane that ends with this value.
#[derive(Debug)]
pub(crate) struct Cluster {
    directory: PathBuf,
    kubeconfig: PathBuf,
    processes: Vec<Child>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The API server before its store.
        while let Some(mut process) = self.processes.pop() {
            // Both fail only when it has ended.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Cluster {
    /// Starts etcd and an API server below `directory`, with what controllers would make for pods.
    pub(crate) fn start(directory: &Path) -> Outcome<Self> {
        fs::create_dir_all(directory)?;
        let kubeconfig = directory.join("kubeconfig");
        let mut cluster = Self { directory: directory.to_owned(), kubeconfig, processes: Vec::new() };
        let (client, peer, port) = (free_port()?, free_port()?, free_port()?);
        let etcd = format!("http://127.0.0.1:{client}");
        cluster.spawn(
            "etcd",
            &[
                format!("--data-dir={}", directory.join("etcd").display()),
                format!("--listen-client-urls={etcd}"),
                format!("--advertise-client-urls={etcd}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                "--unsafe-no-fsync".into(),
            ],
        )?;
        let key = directory.join("accounts.key");
        openssl(&["genrsa", "-out", key.to_str().ok_or("a path that is not UTF-8")?, "2048"])?;
        let tokens = directory.join("tokens.csv");
        fs::write(&tokens, format!("{TOKEN},admin,admin,system:masters\n"))?;
        cluster.spawn(
            "kube-apiserver",
            &[
                format!("--etcd-servers={etcd}"),
                format!("--cert-dir={}", directory.join("certificates").display()),
                format!("--secure-port={port}"),
                "--bind-address=127.0.0.1".into(),
                "--service-cluster-ip-range=10.96.0.0/24".into(),
                "--authorization-mode=AlwaysAllow".into(),
                format!("--token-auth-file={}", tokens.display()),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
                format!("--service-account-key-file={}", key.display()),
                format!("--service-account-signing-key-file={}", key.display()),
                "--kubelet-preferred-address-types=Hostname".into(),
                "--allow-privileged=true".into(),
            ],
        )?;
        cluster.write_kubeconfig(port)?;
        wait::until("the API server to be ready", LIMIT, || {
            for process in &mut cluster.processes {
                if let Some(status) = process.try_wait()? {
                    return Err(format!("etcd or the API server ended with {status}").into());
                }
            }
            let ready = Command::new(cached("bin/kubectl"))
                .arg("--kubeconfig")
                .arg(directory.join("kubeconfig"))
                .args(["get", "--raw", "/readyz"])
                .output()?;
            std::thread::sleep(Duration::from_millis(100));
            Ok((ready.status.success()).then_some(()))
        })?;
        wait::until("the default namespace", LIMIT, || {
            Ok(cluster.run(&["create", "serviceaccount", "default"]).ok())
        })?;
        cluster.run(&["create", "configmap", "kube-root-ca.crt", "--from-literal=ca.crt=of the test"])?;
        Ok(cluster)
    }

    /// What clients and the kubelet are given.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone()
    }

    fn write_kubeconfig(&self, port: u16) -> Outcome {
        let server = format!("https://127.0.0.1:{port}");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server, "insecure-skip-tls-verify": true}}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        Ok(fs::write(&self.kubeconfig, config.to_string())?)
    }

    fn spawn(&mut self, name: &str, arguments: &[String]) -> Outcome {
        let log = fs::File::create(self.directory.join(format!("{name}.log")))?;
        let child = Command::new(cached("bin").join(name))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{name}: {error} (hack/kubelet --kubectl builds it)"))?;
        self.processes.push(child);
        Ok(())
    }

    /// kubectl, to be run.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cached("bin/kubectl"));
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        command.env("HOME", &self.directory).stdin(Stdio::null());
        command
    }

    /// Runs it; its standard output. Fails with what it said on standard error.
    pub(crate) fn run(&self, arguments: &[&str]) -> Outcome<String> {
        let output = self.kubectl(arguments).output()?;
        if output.status.success() {
            Ok(String::from_utf8(output.stdout)?)
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("kubectl {}: {said}", arguments.join(" ")).into())
        }
    }

    /// The object that kubectl tells of.
    pub(crate) fn get(&self, object: &str) -> Outcome<Value> {
        Ok(serde_json::from_str(&self.run(&["get", "-o", "json", object])?)?)
    }

    /// Makes objects.
    pub(crate) fn apply(&self, objects: &[Value]) -> Outcome {
        for object in objects {
            let name = object["metadata"]["name"].as_str().ok_or("an object without a name")?;
            let file = self.directory.join(format!("{name}.json"));
            fs::write(&file, object.to_string())?;
            self.run(&["apply", "-f", file.to_str().ok_or("a path that is not UTF-8")?])?;
        }
        Ok(())
    }

    /// Waits until the node takes pods.
    pub(crate) fn wait_for_node(&self) -> Outcome {
        wait::until("the node to register", LIMIT, || {
            std::thread::sleep(Duration::from_millis(100));
            Ok(self.get(&format!("node/{NODE}")).ok())
        })?;
        self.run(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("node/{NODE}")]).map(drop)
    }

    /// Waits for a condition of a pod.
    pub(crate) fn wait(&self, pod: &str, condition: &str) -> Outcome {
        let pod = format!("pod/{pod}");
        let waited = self.run(&["wait", &format!("--for={condition}"), "--timeout=90s", &pod]);
        waited.map(drop).map_err(|error| {
            let described = self.run(&["describe", &pod]).unwrap_or_default();
            format!("{error}\n{described}").into()
        })
    }
}
