//! A Cove daemon under test or for the demo: its own instance, roots and socket, on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::client::{self, Cri};
use crate::cni::Cni;
use crate::{Outcome, wait};

/// How long the daemon may take to answer after its start. Far above the 2 s of its budget: a busy machine is not
/// what is tested here.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to end after SIGTERM: its own limit of 2 s around the drain, and some.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Where a daemon lives and how it is set up.
#[derive(Debug, Clone)]
pub struct Place {
    /// Prefix of all its names in the kernel.
    pub instance: String,
    /// Records and images.
    pub root: PathBuf,
    /// What dies with the host.
    pub state: PathBuf,
    /// Pod range of the built-in network, or one a family after a comma; empty: the one that a kubelet says.
    pub range: String,
    /// Directory of `cove` and `cove-shim`.
    pub programs: PathBuf,
    /// Directory of hosts.toml files, if there is one.
    pub hosts: Option<PathBuf>,
    /// Further lines of the configuration's table of images.
    pub images: String,
    /// CNI in place of the built-in network.
    pub cni: Option<Cni>,
}

impl Place {
    /// The configuration file's text.
    pub fn config(&self) -> String {
        let hosts = self.hosts.as_ref().map(|hosts| format!("hosts_dirs = [{hosts:?}]\n"));
        format!(
            "instance = {:?}\nroot = {:?}\nstate = {:?}\ncdi_dirs = {:?}\n\n[log]\nlevel = \"info,cove=debug\"\n\n\
             [network]\n{}\n\n[images]\n{}{}",
            self.instance,
            self.root,
            self.state,
            self.cdi(),
            self.network(),
            hosts.unwrap_or_default(),
            self.images
        )
    }

    fn network(&self) -> String {
        // None: what a kubelet says.
        let ranges: Vec<&str> = self.range.split(',').filter(|range| !range.is_empty()).collect();
        match &self.cni {
            None => format!("mode = \"builtin\"\nranges = {ranges:?}"),
            Some(Cni { configurations, plugins, seconds }) => format!(
                "mode = \"cni\"\nconf_dirs = [{configurations:?}]\nplugin_dirs = {plugins:?}\nplugin_seconds = {seconds}"
            ),
        }
    }

    /// The CRI socket.
    pub fn socket(&self) -> PathBuf {
        self.state.join("cove.sock")
    }

    /// Where it looks for CDI files: the later one wins.
    pub fn cdi(&self) -> [PathBuf; 2] {
        ["cdi-etc", "cdi-run"].map(|name| self.root.with_file_name(name))
    }

    /// The daemon's log.
    pub fn log(&self) -> PathBuf {
        self.root.join("cove.log")
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// Starts the daemon. It ends with the value unless it is left.
    pub fn start(&self) -> Outcome<Daemon> {
        self.start_with(&[])
    }

    /// Starts the daemon with further environment.
    pub fn start_with(&self, env: &[(&str, &str)]) -> Outcome<Daemon> {
        fs::create_dir_all(&self.root)?;
        fs::write(self.config_file(), self.config())?;
        let log = fs::OpenOptions::new().append(true).create(true).open(self.log())?;
        let child = Command::new(self.programs.join("cove"))
            .arg("--config")
            .arg(self.config_file())
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("start {}: {error}", self.programs.join("cove").display()))?;
        Ok(Daemon { place: self.clone(), child, left: false })
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    /// Where it lives.
    pub place: Place,
    child: Child,
    left: bool,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.left {
            // Both fail only when the process has ended already.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Daemon {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it answers, and connects.
    pub async fn connect(&mut self) -> Outcome<Cri> {
        let socket = self.place.socket();
        let end = std::time::Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the daemon ended with {status}:\n{}", self.place.tail()).into());
            }
            if let Ok(mut cri) = client::connect(&socket).await {
                let version = k8s_cri::v1::VersionRequest { version: String::new() };
                if cri.runtime.version(version).await.is_ok() {
                    return Ok(cri);
                }
            }
            if std::time::Instant::now() > end {
                return Err(format!("the daemon does not answer:\n{}", self.place.tail()).into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The same for one that should end by itself: the error says how it ended.
    pub async fn connect_or_end(&mut self) -> Outcome {
        let end = std::time::Instant::now() + START_LIMIT;
        while std::time::Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the daemon ended with {status}:\n{}", self.place.tail()).into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// It has ended by itself.
    pub fn has_ended(&mut self) -> Outcome<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Lets it run on after this value.
    pub fn leave(mut self) -> u32 {
        self.left = true;
        self.child.id()
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(mut self) -> Outcome {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)?;
        wait::until("the daemon to end", STOP_LIMIT, || Ok(self.child.try_wait()?))?;
        Ok(())
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(mut self) -> Outcome {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Place {
    /// The end of the daemon's log, for messages of failed cases.
    pub fn tail(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// The directory of the programs under test: `COVE_PROGRAMS`, else `target/cove` of this workspace (hack/build).
pub fn programs() -> PathBuf {
    std::env::var_os("COVE_PROGRAMS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cove"), PathBuf::from)
}
