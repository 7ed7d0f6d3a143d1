//! Why a run of CNI plugins failed.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::plugin::Verb;

/// Why a run of CNI plugins failed.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// A network configuration that cannot be used.
    #[error("{}: {reason}", file.display())]
    Conflist {
        /// The file.
        file: PathBuf,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A plugin that is not installed.
    #[error("CNI plugin {kind:?} is in none of {directories}: install it there")]
    Missing {
        /// Its type, which is its file's name.
        kind: String,
        /// Where it was looked for.
        directories: String,
    },
    /// A plugin refused, in its own words.
    #[error("CNI plugin {kind} {verb}: {message} (code {code})")]
    Refused {
        /// The plugin's type.
        kind: String,
        /// What it was to do.
        verb: Verb,
        /// Its code (spec 1.1.0, "Error").
        code: u64,
        /// Its message and details.
        message: String,
    },
    /// A plugin failed without the error that the specification asks for.
    #[error("CNI plugin {kind} {verb} ended with {status} and no CNI error; it said: {said:?}")]
    Failed {
        /// The plugin's type.
        kind: String,
        /// What it was to do.
        verb: Verb,
        /// How it ended.
        status: ExitStatus,
        /// The beginning of its standard error, or else output.
        said: String,
    },
    /// A plugin that ended well and did not say what it must.
    #[error("CNI plugin {kind} {verb}: its answer cannot be used: {reason}")]
    Answer {
        /// The plugin's type.
        kind: String,
        /// What it was to do.
        verb: Verb,
        /// What is wrong with it.
        reason: String,
    },
    /// A plugin that wrote more than it may; it was killed.
    #[error("CNI plugin {kind} {verb} wrote more than {limit} bytes to {stream} and was killed")]
    Flood {
        /// The plugin's type.
        kind: String,
        /// What it was to do.
        verb: Verb,
        /// `standard output` or `standard error`.
        stream: &'static str,
        /// How much it may write.
        limit: usize,
    },
    /// A plugin that did not end in time; it was killed.
    #[error(
        "CNI plugin {kind} {verb} did not end within {limit:?} and was killed with all that it had started"
    )]
    TimedOut {
        /// The plugin's type.
        kind: String,
        /// What it was to do.
        verb: Verb,
        /// The time that the whole chain has.
        limit: Duration,
    },
    /// A plugin that was killed since its pod is to go.
    #[error("CNI plugin {kind} {verb} was ended: its pod is being stopped or removed")]
    Cancelled {
        /// The plugin's type.
        kind: String,
        /// What it was to do.
        verb: Verb,
    },
    /// A system call failed.
    #[error("{doing} {object}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// On what.
        object: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Something that was asked of the network cannot be handed on.
    #[error("{what} {value:?}: {reason}")]
    Asked {
        /// Which annotation or name.
        what: String,
        /// As given.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// Several plugins failed, each in its own way.
    #[error("{first}; then {then}")]
    Both {
        /// The first.
        first: Box<CniError>,
        /// The next, or several.
        then: Box<CniError>,
    },
}

impl CniError {
    pub(crate) fn system(
        doing: &'static str,
        object: impl Into<String>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::System { doing, object: object.into(), source: source.into() }
    }

    /// Keeps the first error and those after it.
    pub(crate) fn collect(all: &mut Option<Self>, error: Self) {
        *all = Some(match all.take() {
            None => error,
            Some(first) => Self::Both { first: Box::new(first), then: Box::new(error) },
        });
    }

    /// The first of several.
    pub fn first(&self) -> &Self {
        match self {
            Self::Both { first, .. } => first.first(),
            other => other,
        }
    }
}
