//! The command line. Without a command `cove` is the daemon.

mod audit;
mod check;
mod config;
mod connect;
mod image;
mod net;
mod table;

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A Kubernetes container runtime. Without a command: the daemon, which serves the CRI.
#[derive(Debug, Parser)]
#[command(name = "cove", version)]
pub(crate) struct Arguments {
    /// Configuration file; without it /etc/cove/config.toml, if that exists, else the defaults
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// What to do instead of serving.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What `cove` does beside serving.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the default configuration, or check a file
    #[command(subcommand)]
    Config(config::Action),
    /// Look for damage in the image store, and mend it by pulling again
    Check(check::Check),
    /// List, pull, import, export and remove images
    #[command(subcommand)]
    Image(image::Action),
    /// Show how pods are attached to the network
    #[command(subcommand)]
    Net(net::Action),
    /// Compare what is in the kernel and on disk with the records: exit code 3 if something is left over or missing
    Audit(audit::Options),
    /// For the tests of Cove
    #[command(subcommand, hide = true)]
    Debug(Debug),
}

/// What the tests ask of the program itself.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum Debug {
    /// Every fail point, one a line
    Steps,
}

/// Reads the command line; wrong ones, `--help` and `--version` end the process.
pub(crate) fn arguments() -> Arguments {
    Arguments::parse()
}

/// Runs a command. `file` is the one of `--config`.
pub(crate) fn run(command: &Command, file: Option<&Path>) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Config(action) => config::run(action, file)?,
        Command::Check(check) => check::run(check, file)?,
        Command::Image(action) => image::run(action, file)?,
        Command::Net(action) => net::run(action, file)?,
        Command::Audit(options) => return audit::run(options, file),
        Command::Debug(Debug::Steps) => {
            let points: Vec<String> = crate::step::points().collect();
            writeln!(std::io::stdout(), "{}", points.join("\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn no_command_is_the_daemon() {
        let arguments = Arguments::try_parse_from(["cove", "--config", "/x.toml"]).unwrap();
        assert!(arguments.command.is_none());
        assert_eq!(arguments.config.as_deref(), Some(Path::new("/x.toml")));
        assert!(Arguments::try_parse_from(["cove", "confg"]).is_err());
        assert!(Arguments::try_parse_from(["cove", "config", "check", "/x.toml"]).is_ok());
    }
}
