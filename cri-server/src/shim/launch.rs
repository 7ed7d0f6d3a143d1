//! Starts shims: all from one sealed copy of the program, made once in a daemon's life, so that a package upgrade
//! under a live daemon mixes nothing and no container can write to what runs on the host (CVE-2019-5736).

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use cove_runtime::memfd;

use super::connection::listen;
use super::{LOG, ProcessId};
use crate::blocking;
use crate::cgroup::Cgroups;
use crate::error::Error;

/// Starts shims.
#[derive(Debug)]
pub struct Launcher {
    program: Arc<OwnedFd>,
    cgroups: Cgroups,
    /// Number of this daemon life; a shim obeys the highest it has seen.
    pub generation: u64,
}

impl Launcher {
    /// Copies `program`. Blocking.
    pub fn open(program: &Path, cgroups: Cgroups, generation: u64) -> Result<Self, Error> {
        let name = program.display().to_string();
        let mut file =
            File::open(program).map_err(|error| Error::system("open shim", name.clone(), error))?;
        let program = memfd::sealed_program("cove-shim", &mut file)
            .map_err(|error| Error::system("copy shim", name, error))?;
        Ok(Self { program: Arc::new(program), cgroups, generation })
    }

    /// Starts the shim of `sandbox`, which listens in `directory`. It does nothing until it is asked to.
    ///
    /// Runs to its end once begun.
    pub async fn launch(&self, sandbox: &str, directory: &Path) -> Result<ProcessId, Error> {
        let (program, cgroups) = (Arc::clone(&self.program), self.cgroups.clone());
        let (sandbox, directory) = (sandbox.to_owned(), directory.to_owned());
        blocking::run(move || {
            let system = |doing| {
                let sandbox = sandbox.clone();
                move |source| Error::System { doing, object: format!("sandbox {sandbox}"), source }
            };
            let socket = listen(&directory).map_err(system("make the shim's socket of"))?;
            let log = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(directory.join(LOG))
                .map_err(system("open the shim's log of"))?;
            let errors = log.try_clone().map_err(system("open the shim's log of"))?;
            let child = spawn(&program, &sandbox, [Stdio::from(socket), log.into(), errors.into()])
                .map_err(system("start the shim of"))?;
            let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
            cgroups.place_shim(pid)?;
            // Reaped by tokio whenever it ends; a zombie would still have its start time.
            drop(child);
            ProcessId::of(pid)
                .map_err(system("look at the shim of"))?
                .ok_or_else(|| system("look at the shim of")(std::io::Error::other("it has ended at once")))
        })
        .await
    }
}

fn spawn(program: &OwnedFd, sandbox: &str, stdio: [Stdio; 3]) -> std::io::Result<tokio::process::Child> {
    let [stdin, stdout, stderr] = stdio;
    tokio::process::Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0("cove-shim")
        .arg(sandbox)
        .env_clear()
        .current_dir("/")
        // A terminal that interrupts the daemon does not interrupt the pods.
        .process_group(0)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
}

/// The shim of a sandbox whose record does not know its pid: the daemon died between start and record. Found by its
/// argument in the shims' own cgroup. Blocking.
pub fn find(cgroups: &Cgroups, sandbox: &str) -> Result<Option<ProcessId>, Error> {
    for pid in cgroups.shims()? {
        // A process that has ended meanwhile is not the one.
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        if line.split(|byte| *byte == 0).nth(1) == Some(sandbox.as_bytes()) {
            return ProcessId::of(pid)
                .map_err(|error| Error::system("look at", format!("process {pid}"), error));
        }
    }
    Ok(None)
}
