//! `cove audit`.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use crate::audit::{self, Outcome};
use crate::config::Config;

/// Exit code when something is left over or missing: neither that of a failure (1) nor that of a wrong command line (2).
const FOUND: u8 = 3;

/// What to look for, and what to do about it.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Options {
    /// Remove what is left over of this instance; also while its daemon runs
    #[arg(long)]
    repair: bool,
    /// One JSON document instead of a line each
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options, file: Option<&Path>) -> Result<ExitCode, Box<dyn Error>> {
    let config = Config::load(file)?;
    let results = audit::audit(&config, options.repair)?;
    let mut out = std::io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &results)?;
        writeln!(out)?;
    } else {
        for result in &results {
            writeln!(out, "{result}")?;
        }
    }
    let clean = results.iter().all(|result| matches!(result.outcome, Some(Outcome::Removed)));
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}
