//! A containerd that has images and runs no pods, with roots of its own: where images are brought over from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::client::{self, Cri};
use crate::{Outcome, wait};

/// How long it may take to answer for the first time.
const LIMIT: Duration = Duration::from_secs(60);

/// A running containerd, which ends with this value.
#[derive(Debug)]
pub struct Containerd {
    /// Its socket: its own API and the CRI.
    pub socket: PathBuf,
    directory: PathBuf,
    programs: PathBuf,
    child: Child,
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Containerd {
    /// Starts it below `directory`; `pinned` is the reference of an image that its CRI pins.
    pub fn start(directory: &Path, pinned: &str) -> Outcome<Self> {
        let programs = programs();
        fs::create_dir_all(directory)?;
        let socket = directory.join("containerd.sock");
        let config = directory.join("config.toml");
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
        fs::write(&config, text)?;
        let log = fs::File::create(directory.join("log"))?;
        let child = Command::new(programs.join("containerd"))
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| {
                format!("{}: {error} (hack/deps builds it)", programs.join("containerd").display())
            })?;
        Ok(Self { socket, directory: directory.to_owned(), programs, child })
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
        let output = Command::new(self.programs.join("ctr"))
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

/// Where hack/deps puts programs.
fn programs() -> PathBuf {
    let cache = std::env::var_os("COVE_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/cove"),
        PathBuf::from,
    );
    cache.join("bin")
}
