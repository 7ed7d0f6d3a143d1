//! Asks the shim's program whether this node can run pods with user namespaces. The daemon has threads, so it cannot
//! look itself.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cove_runtime::protocol::PROBE;

/// Some milliseconds, unless a file system hangs: then the node has no user namespaces until the next start.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// A probe that runs.
#[derive(Debug)]
pub struct Probe(Result<Child, String>);

impl Probe {
    /// Starts it. `layers` and `state`: the directories whose owners have to be mapped.
    pub fn start(program: &Path, layers: &Path, state: &Path) -> Self {
        let child = Command::new(program)
            .arg(PROBE)
            .args([layers, state])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        Self(child.map_err(|error| format!("start {}: {error}", program.display())))
    }

    /// Waits for what it found. Blocking.
    pub fn finish(self) -> Result<(), String> {
        let mut child = self.0?;
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                Ok(None) => {
                    abandon(child);
                    return Err(format!("the probe did not end within {LIMIT:?}"));
                }
                Err(error) => return Err(format!("wait for the probe: {error}")),
            }
        };
        let mut said = String::new();
        match child.stdout.take().map(|mut out| out.read_to_string(&mut said)) {
            _ if status.success() => Ok(()),
            Some(Ok(1..)) => Err(said.trim().replace('\n', "; ")),
            _ => Err(format!("the probe ended with {status}")),
        }
    }
}

/// It hangs in the kernel: whoever waits for it hangs, too.
fn abandon(mut child: Child) {
    let ended = child.kill();
    std::thread::spawn(move || child.wait());
    if let Err(error) = ended {
        tracing::warn!(%error, "the probe for user namespaces cannot be killed");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_it_says_is_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("probe");
        let script = format!(
            "#!/bin/sh\ntest $1 = {PROBE} || exit 9\ncase $2$3 in /l/s) ;; /say/s) echo one; echo two; exit 1 ;; *) exit 3 ;; esac\n"
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        // Another test's fork may hold the script open for writing for a moment.
        let probe = |layers: &str| loop {
            let found = Probe::start(&program, Path::new(layers), Path::new("/s")).finish();
            if !matches!(&found, Err(reason) if reason.contains("Text file busy")) {
                break found;
            }
        };
        assert_eq!(probe("/l"), Ok(()));
        assert_eq!(probe("/say"), Err("one; two".to_owned()));
        assert!(probe("/x").unwrap_err().contains('3'));
        assert!(Probe::start(Path::new("/nowhere"), Path::new("/"), Path::new("/")).finish().is_err());
    }
}
