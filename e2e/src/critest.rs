//! critest, the test suite of the CRI's own project: the images it asks for, a run, and what its report says.

mod expected;
mod images;
mod report;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use expected::{Skips, objections};
pub use images::{MIRRORED, push};
pub use report::{Counts, Spec, State};

use crate::Outcome;
use crate::cache::cached;

/// One run.
#[derive(Debug)]
pub struct Run<'a> {
    /// The CRI socket.
    pub socket: &'a Path,
    /// For the report and critest's own words.
    pub directory: &'a Path,
    /// How many processes share the specs. With more than one, specs run beside each other and in another order.
    pub workers: u32,
    /// Only specs whose names match one of these.
    pub focus: &'a [String],
    /// Further arguments, as critest takes them.
    pub further: &'a [String],
}

impl Run<'_> {
    /// critest's own words.
    pub fn log(&self) -> PathBuf {
        self.directory.join(format!("critest-{}.log", self.workers))
    }

    /// How each spec ended, as Ginkgo writes it.
    pub fn report(&self) -> PathBuf {
        self.directory.join(self.report_name())
    }

    fn report_name(&self) -> String {
        format!("report-{}.json", self.workers)
    }

    /// Runs critest to its end and reads its report. That specs fail is no error of the run.
    pub fn go(&self) -> Outcome<Counts> {
        // Ginkgo knows a suite that is built already by this ending, and works in its directory.
        let suite = self.directory.join("critest.test");
        match std::os::unix::fs::symlink(cached("bin/critest"), &suite) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        let log = std::fs::File::create(self.log())?;
        let endpoint = format!("unix://{}", self.socket.display());
        let status = Command::new(cached("bin/ginkgo"))
            .args([format!("--procs={}", self.workers), format!("--json-report={}", self.report_name())])
            .args(["--no-color", "--timeout=30m"])
            .args(self.focus.iter().map(|focus| format!("--focus={focus}")))
            .arg(suite)
            .args([
                "--",
                "-config",
                "/dev/null",
                "-runtime-endpoint",
                &endpoint,
                "-image-endpoint",
                &endpoint,
            ])
            .args(self.further)
            .current_dir(self.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()?;
        if !self.report().exists() {
            return Err(format!("critest ended with {status} and no report: {}", self.log().display()).into());
        }
        report::read(&self.report())
    }
}
