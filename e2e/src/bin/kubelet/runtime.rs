//! The runtime that the kubelet drives: Cove, or another to compare with.

use std::path::{Path, PathBuf};
use std::process::Command;

use cove_e2e::cache::cached;
use cove_e2e::daemon::{self, Daemon, Place};
use cove_e2e::image;
use cove_e2e::kubelet::Kubelet as Cri;
use cove_e2e::peer::Peer;
use cove_e2e::registry::Registry;
use cove_e2e::{Outcome, client, residue};
use serde_json::json;
use tokio::runtime::Handle;

/// A running runtime.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of them")]
pub(crate) enum Runtime {
    Cove { place: Place, daemon: Option<Daemon> },
    Containerd(Peer),
}

impl Runtime {
    /// Starts the runtime of this name below `directory`.
    pub(crate) fn start(name: &str, directory: &Path, registry: &Registry, handle: &Handle) -> Outcome<Self> {
        match name {
            "cove" => {
                let mut runtime = Self::Cove { place: place(directory), daemon: None };
                runtime.start_again(handle)?;
                Ok(runtime)
            }
            "containerd" => {
                let config = json!({"Env": ["PATH=/bin"], "Entrypoint": ["sleep", "1000000"]});
                let pause = image::build(vec![image::busybox()?], config)?;
                let pause = registry.push("node/pause", "1", &pause)?;
                let peer = Peer::start(&directory.join("containerd"), &cached("bin"), &pause, &range())?;
                handle.block_on(peer.connect())?;
                Ok(Self::Containerd(peer))
            }
            other => Err(format!("no runtime is called {other:?}: cove or containerd").into()),
        }
    }

    /// Starts Cove again.
    pub(crate) fn start_again(&mut self, handle: &Handle) -> Outcome {
        let Self::Cove { place, daemon } = self else { return Err("only Cove is restarted".into()) };
        let mut started = place.start()?;
        handle.block_on(started.connect())?;
        *daemon = Some(started);
        Ok(())
    }

    /// Ends Cove.
    pub(crate) fn end(&mut self, kill: bool) -> Outcome {
        let Self::Cove { daemon, .. } = self else { return Err("only Cove is restarted".into()) };
        let daemon = daemon.take().ok_or("it runs no more")?;
        if kill { daemon.kill() } else { daemon.stop() }
    }

    /// The CRI socket.
    pub(crate) fn socket(&self) -> PathBuf {
        match self {
            Self::Cove { place, .. } => place.socket(),
            Self::Containerd(peer) => peer.socket.clone(),
        }
    }

    /// The daemon's pid.
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Self::Cove { daemon, .. } => daemon.as_ref().map_or(0, Daemon::pid),
            Self::Containerd(peer) => peer.pid(),
        }
    }

    /// The last lines of the daemon's log that tell of trouble.
    pub(crate) fn trouble(&self) -> String {
        let Self::Cove { place, .. } = self else { return String::new() };
        let text = std::fs::read_to_string(place.log()).unwrap_or_default();
        let telling = |line: &&str| [" WARN ", " ERROR ", "panic"].iter().any(|word| line.contains(word));
        let lines: Vec<_> = text.lines().filter(telling).collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Removes what the kubelet has not collected yet, ends the runtime, and looks for what it left.
    pub(crate) fn take_down(self, handle: &Handle) -> Outcome {
        let socket = self.socket();
        handle.block_on(async {
            let mut cri = Cri(client::connect(&socket).await?);
            for pod in cri.pods().await? {
                cri.stop_pod(&pod).await?;
                cri.remove_pod(&pod).await?;
            }
            Outcome::Ok(())
        })?;
        match self {
            Self::Cove { place, daemon } => {
                residue::check(&place, daemon.as_ref().map(Daemon::pid))?;
                daemon.ok_or("the daemon does not run")?.stop()?;
                residue::check(&place, None)?;
                // It stays where a daemon was killed, so that live pods keep their network.
                let name = ["inet", &place.instance];
                if Command::new("nft").args(["list", "table"]).args(name).output()?.status.success() {
                    Command::new("nft").args(["delete", "table"]).args(name).status()?;
                }
                Ok(())
            }
            Self::Containerd(peer) => peer.end(),
        }
    }
}

/// Where Cove lives below `directory`.
pub(crate) fn place(directory: &Path) -> Place {
    Place {
        instance: instance(),
        root: directory.join("root"),
        state: directory.join("state"),
        range: range(),
        programs: daemon::programs(),
        hosts: None,
        images: String::new(),
        cni: None,
    }
}

fn range() -> String {
    std::env::var("COVE_E2E_RANGE").unwrap_or_else(|_| "10.219.0.0/24".into())
}

/// The prefix of all names in the kernel.
pub(crate) fn instance() -> String {
    std::env::var("COVE_E2E_INSTANCE").unwrap_or_else(|_| "kubelet".into())
}
