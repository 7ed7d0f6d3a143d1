//! The real `crictl`, as a person at a terminal uses it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;
use crate::cache::cached;

/// crictl against one endpoint.
#[derive(Debug, Clone)]
pub struct Crictl {
    program: PathBuf,
    endpoint: String,
}

impl Crictl {
    /// crictl as `hack/deps` built it, for the socket at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { program: cached("bin/crictl"), endpoint: format!("unix://{}", socket.display()) }
    }

    /// The command line as a person would type it.
    pub fn line(&self, args: &[&str]) -> String {
        format!("{} -r {} {}", self.program.display(), self.endpoint, args.join(" "))
    }

    /// It, to be run.
    pub fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(["--config", "/dev/null", "-r", &self.endpoint, "-i", &self.endpoint]).args(args);
        command.kill_on_drop(true);
        command
    }

    /// Runs it; its standard output without the last newline. Fails with what it said on standard error.
    pub fn run(&self, args: &[&str]) -> Outcome<String> {
        let output = Command::new(&self.program)
            .args(["--config", "/dev/null", "-r", &self.endpoint, "-i", &self.endpoint])
            .args(args)
            .output()
            .map_err(|error| format!("{}: {error} (hack/deps builds it)", self.program.display()))?;
        if !output.status.success() {
            return Err(
                format!("crictl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)).into()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }
}
