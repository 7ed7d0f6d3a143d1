//! One thing that is left over or missing, in words and as JSON.

use std::fmt;
use std::path::PathBuf;

use cove_netplugin::builtin::Element;
use serde::Serialize;

use crate::shim::ProcessId;

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// It is there, and no record knows it.
    Orphan,
    /// A record says that it is there.
    Missing,
}

/// What it is; in the order in which orphans are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A process.
    Process,
    /// A control group in one hierarchy.
    Cgroup,
    /// A mount in the host's table.
    Mount,
    /// A name of a network namespace.
    Netns,
    /// A network link.
    Link,
    /// Something of an nft table.
    Nft,
    /// An address that a record holds.
    Lease,
    /// An image's layer.
    Layer,
    /// A record.
    Record,
    /// A directory.
    Directory,
    /// A file.
    File,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::Cgroup => "cgroup",
            Self::Mount => "mount",
            Self::Netns => "netns",
            Self::Link => "link",
            Self::Nft => "nft",
            Self::Lease => "lease",
            Self::Layer => "layer",
            Self::Record => "record",
            Self::Directory => "directory",
            Self::File => "file",
        })
    }
}

/// How it is taken away.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Repair {
    /// Not by this command: the advice says how.
    ByHand,
    /// SIGKILL.
    Kill { pid: i32, started: u64 },
    /// Removed in every hierarchy; `kill`: with the processes in it.
    Cgroup { path: PathBuf, kill: bool },
    /// Out of the mount table.
    Detach(PathBuf),
    /// A pin: its mount and its file.
    Unpin(PathBuf),
    /// A link.
    Link(String),
    /// An element of a map or set.
    Element(Element),
    /// Chains and rules written anew.
    Rules,
    /// The table, of an instance without pods.
    Table,
    /// A file, or a directory with all below it.
    Delete(PathBuf),
}

/// See the module's header.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Finding {
    /// What is wrong with it.
    pub(super) state: State,
    /// What it is.
    pub(super) kind: Kind,
    /// Its name in the kernel or on disk.
    pub(super) name: String,
    /// Id of the sandbox or container that it is of, or was.
    pub(super) pod: Option<String>,
    /// What to do about it.
    pub(super) advice: String,
    #[serde(skip)]
    pub(super) repair: Repair,
}

impl Finding {
    /// Without a record; `repair` takes it away.
    pub(super) fn orphan(kind: Kind, name: impl Into<String>, repair: Repair) -> Self {
        let advice = "remove it: cove audit --repair".to_owned();
        Self { state: State::Orphan, kind, name: name.into(), pod: None, advice, repair }
    }

    /// Said to be there by the record of `pod`.
    pub(super) fn missing(kind: Kind, name: impl Into<String>, pod: &str, advice: &str) -> Self {
        Self {
            state: State::Missing,
            kind,
            name: name.into(),
            pod: Some(pod.to_owned()),
            advice: advice.to_owned(),
            repair: Repair::ByHand,
        }
    }

    /// Whose it was.
    pub(super) fn of(mut self, id: &str) -> Self {
        self.pod = Some(id.to_owned());
        self
    }

    /// What else is to be done than to have it removed.
    pub(super) fn advise(mut self, advice: &str) -> Self {
        advice.clone_into(&mut self.advice);
        self
    }

    pub(super) fn kill(process: ProcessId) -> Repair {
        Repair::Kill { pid: process.pid, started: process.started }
    }
}

/// What became of a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// It was removed.
    Removed,
    /// Why it was not.
    Failed(String),
}

/// A finding, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Result {
    #[serde(flatten)]
    pub(super) finding: Finding,
    /// None: it was only told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<Outcome>,
}

impl Result {
    pub(super) fn told(finding: Finding) -> Self {
        Self { finding, outcome: None }
    }
}

impl fmt::Display for Result {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { state, kind, name, pod, advice, .. } = &self.finding;
        let state = match state {
            State::Orphan => "orphan",
            State::Missing => "missing",
        };
        write!(f, "{state} {kind} {name}")?;
        if let Some(pod) = pod {
            write!(f, " (of {pod})")?;
        }
        match &self.outcome {
            None => write!(f, ": {advice}"),
            Some(Outcome::Removed) => write!(f, ": removed"),
            Some(Outcome::Failed(reason)) => write!(f, ": not removed: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_kind_name_pod_and_what_to_do_in_one_line() {
        let orphan = Finding::orphan(Kind::Link, "cove12", Repair::Link("cove12".into())).of("12ab");
        let mut result = Result::told(orphan);
        assert_eq!(result.to_string(), "orphan link cove12 (of 12ab): remove it: cove audit --repair");
        let json = serde_json::to_value(&result).unwrap();
        assert_eq!(
            (&json["state"], &json["kind"], &json["pod"]),
            (&"orphan".into(), &"link".into(), &"12ab".into())
        );
        assert!(json.get("repair").is_none() && json.get("outcome").is_none());
        result.outcome = Some(Outcome::Failed("busy".into()));
        assert!(result.to_string().ends_with(": not removed: busy"));
    }
}
