//! containerd with runc and CNI plugins beside Cove, with roots of its own: what figures are compared with.
//!
//! Without portmap and masquerade, which would only slow it, and leave chains of rules behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::client::{self, Cri};
use crate::containerd::Process;
use crate::{Outcome, wait};

/// How long containerd may take to answer for the first time, and to end.
const LIMIT: Duration = Duration::from_secs(30);
/// Its bridge, which CNI leaves behind.
const BRIDGE: &str = "covepeer0";

/// A running containerd.
#[derive(Debug)]
pub struct Peer {
    /// Its CRI socket.
    pub socket: PathBuf,
    process: Process,
    directory: PathBuf,
}

impl Peer {
    /// Starts it below `directory`; `pause` is a reference of an image that sleeps.
    pub fn start(directory: &Path, programs: &Path, pause: &str, range: &str) -> Outcome<Self> {
        let networks = directory.join("cni");
        fs::create_dir_all(&networks)?;
        let conflist = serde_json::json!({"cniVersion": "1.0.0", "name": "covepeer", "plugins": [
            {"type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": false,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": range}]], "routes": [{"dst": "0.0.0.0/0"}],
                      "dataDir": directory.join("ipam")}},
        ]});
        fs::write(networks.join("10-peer.conflist"), conflist.to_string())?;
        let socket = directory.join("containerd.sock");
        let text = format!(
            "version = 3\nroot = {root:?}\nstate = {state:?}\n[grpc]\naddress = {socket:?}\n\
             [plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = {pause:?}\n\
             [plugins.\"io.containerd.cri.v1.runtime\"]\nrestrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.cri.v1.runtime\".cni]\nbin_dirs = [{bin:?}]\nconf_dir = {networks:?}\n",
            root = directory.join("root"),
            state = directory.join("state"),
            bin = programs.join("cni"),
        );
        let process = Process::start(programs, directory, &text)?;
        Ok(Self { socket, process, directory: directory.to_owned() })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until it answers, and connects.
    pub async fn connect(&self) -> Outcome<Cri> {
        let socket = self.socket.clone();
        wait::until_async("containerd to answer", LIMIT, || {
            let socket = socket.clone();
            async move {
                let Ok(mut cri) = client::connect(&socket).await else { return Ok(None) };
                let status = cri.runtime.status(k8s_cri::v1::StatusRequest { verbose: false }).await;
                let ready = status.ok().and_then(|status| status.into_inner().status).is_some_and(|status| {
                    let is =
                        |name: &str| status.conditions.iter().any(|one| one.r#type == name && one.status);
                    is("RuntimeReady") && is("NetworkReady")
                });
                Ok(ready.then_some(cri))
            }
        })
        .await
    }

    /// Ends it, and takes away what it leaves: its bridge and its empty cgroups.
    pub fn end(self) -> Outcome {
        drop(self.process);
        if Path::new("/sys/class/net").join(BRIDGE).exists() {
            Command::new("ip").args(["link", "delete", BRIDGE]).status()?;
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
            let path = hierarchy?.path().join("k8s.io");
            if path.exists() {
                fs::remove_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        for mount in fs::read_to_string("/proc/self/mounts")?.lines() {
            let target = mount.split(' ').nth(1).unwrap_or_default();
            if Path::new(target).starts_with(&self.directory) {
                Command::new("umount").arg(target).status()?;
            }
        }
        Ok(())
    }
}
