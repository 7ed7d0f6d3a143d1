//! What a run that was killed has left: sysctls, cgroups, mounts, pods. The next one takes it away.

use std::fs;
use std::path::{Path, PathBuf};

use cove_e2e::Outcome;
use cove_e2e::sysctl::Saved;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::node::{self, Node};
use crate::runtime::{self, Runtime};

/// What a run must put back and take away.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Left {
    /// Everything of the run.
    directory: PathBuf,
    /// Settings of the machine before it.
    settings: Saved,
    /// Directories that were there before it, of those that a kubelet makes.
    had: Vec<PathBuf>,
}

/// Where it is written down.
fn file() -> PathBuf {
    PathBuf::from(format!("/run/cove-{}.left", runtime::instance()))
}

impl Left {
    /// Writes down how the machine is before a run in `directory`.
    pub(crate) fn before(directory: &Path) -> Outcome<Self> {
        let left = Self {
            directory: directory.to_owned(),
            settings: Saved::before_a_kubelet()?,
            had: node::fixed_places(),
        };
        fs::write(file(), serde_json::to_vec(&left)?)?;
        Ok(left)
    }

    /// Takes the node's part away.
    pub(crate) fn clear(&self, node: &Node) -> Outcome {
        node.clear(&self.had)
    }

    /// Puts the settings back; there is nothing left then.
    pub(crate) fn restore(&self) -> Outcome {
        self.settings.restore()?;
        Ok(fs::remove_file(file())?)
    }
}

/// Takes away what a run has left that could not do so itself.
pub(crate) fn take_away(handle: &Handle) -> Outcome {
    let Ok(text) = fs::read(file()) else { return Ok(()) };
    let left: Left = serde_json::from_slice(&text)?;
    println!("a run was killed: taking away what it left in {}", left.directory.display());
    let place = runtime::place(&left.directory);
    let node = Node::of(&left.directory.join("node"), &place.socket(), &runtime::instance())?;
    if place.config_file().exists() {
        let mut runtime = Runtime::Cove { place, daemon: None };
        runtime.start_again(handle)?;
        runtime.take_down(handle)?;
    }
    left.clear(&node)?;
    if left.directory.exists() {
        fs::remove_dir_all(&left.directory)?;
    }
    left.restore()
}
