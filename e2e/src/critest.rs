//! critest, the test suite of the CRI's own project: the images it asks for, a run, and what its report says.

mod images;
mod report;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use images::{MIRRORED, push};
pub use report::{Counts, State, read};

use crate::Outcome;

/// What is built once into the cache by hack/deps and hack/conformance-programs.
pub fn cached(path: &str) -> PathBuf {
    std::env::var_os("COVE_CACHE")
        .map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/cove"),
            PathBuf::from,
        )
        .join(path)
}

/// One run.
#[derive(Debug)]
pub struct Run<'a> {
    /// The CRI socket.
    pub socket: &'a Path,
    /// For the report and critest's own words.
    pub directory: &'a Path,
    /// Only specs whose names match one of these.
    pub focus: &'a [String],
    /// Further arguments, as critest takes them.
    pub further: &'a [String],
}

impl Run<'_> {
    /// critest's own words.
    pub fn log(&self) -> PathBuf {
        self.directory.join("critest.log")
    }

    /// Runs critest to its end and returns where its report is. That specs fail is no error of the run.
    pub fn go(&self) -> Outcome<PathBuf> {
        let report = self.directory.join("report.json");
        let log = std::fs::File::create(self.log())?;
        let endpoint = format!("unix://{}", self.socket.display());
        let status = Command::new(cached("bin/critest"))
            .args(["-config", "/dev/null", "-runtime-endpoint", &endpoint, "-image-endpoint", &endpoint])
            .args(["-ginkgo.no-color", "-ginkgo.timeout", "30m", "-ginkgo.json-report"])
            .arg(&report)
            .args(self.focus.iter().flat_map(|focus| ["-ginkgo.focus", focus]))
            .args(self.further)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()?;
        if !report.exists() {
            return Err(format!("critest ended with {status} and no report: {}", self.log().display()).into());
        }
        Ok(report)
    }
}
