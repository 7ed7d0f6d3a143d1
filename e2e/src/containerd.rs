//! A containerd that has images and runs no pods, with roots of its own: where images are brought over from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cache::cached;
use crate::client::{self, Cri};
use crate::{Outcome, wait};

/// How long it may take to answer for the first time.
const LIMIT: Duration = Duration::from_secs(60);

/// A containerd that ends with this value.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Starts it from `programs` with this configuration. That and its log are written below `directory`.
    pub(crate) fn start(programs: &Path, directory: &Path, configuration: &str) -> Outcome<Self> {
        let config = directory.join("config.toml");
        fs::write(&config, configuration)?;
        let log = fs::File::create(directory.join("log"))?;
        let path = std::env::join_paths(
            std::iter::once(programs.to_owned())
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        )?;
        let child = Command::new(programs.join("containerd"))
            .arg("--config")
            .arg(&config)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| {
                format!("{}: {error} (hack/deps builds it)", programs.join("containerd").display())
            })?;
        Ok(Self(child))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

/// A running containerd, which ends with this value.
#[derive(Debug)]
pub struct Containerd {
    /// Its socket: its own API and the CRI.
    pub socket: PathBuf,
    directory: PathBuf,
    _process: Process,
}

impl Containerd {
    /// Starts it below `directory`; `pinned` is the reference of an image that its CRI pins.
    pub fn start(directory: &Path, pinned: &str) -> Outcome<Self> {
        fs::create_dir_all(directory)?;
        let socket = directory.join("containerd.sock");
        // Without NRI, whose socket has one place on a machine.
        let text = format!(
            "version = 3\nroot = {root:?}\nstate = {state:?}\n\
             disabled_plugins = [\"io.containerd.nri.v1.nri\"]\n[grpc]\naddress = {socket:?}\n\
             [plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = {pinned:?}\n\
             [plugins.\"io.containerd.cri.v1.runtime\".cni]\nbin_dirs = [{none:?}]\nconf_dir = {none:?}\n",
            root = directory.join("root"),
            state = directory.join("state"),
            none = directory.join("none"),
        );
        let process = Process::start(&cached("bin"), directory, &text)?;
        Ok(Self { socket, directory: directory.to_owned(), _process: process })
    }

    /// Waits until its CRI answers, and connects.
    pub async fn connect(&self) -> Outcome<Cri> {
        let connected = wait::until_async("containerd to answer", LIMIT, || async {
            let Ok(mut cri) = client::connect(&self.socket).await else { return Ok(None) };
            let request = k8s_cri::v1::ListImagesRequest { filter: None };
            Ok(cri.images.list_images(request).await.ok().map(|_| cri))
        });
        let log = || fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        connected.await.map_err(|error| format!("{error}:\n{}", log()).into())
    }

    /// What its own client says of a command in a namespace.
    pub fn ctr(&self, namespace: &str, words: &[&str]) -> Outcome<String> {
        let output = Command::new(cached("bin/ctr"))
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", namespace])
            .args(words)
            .output()?;
        if !output.status.success() {
            return Err(format!("ctr {words:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}
