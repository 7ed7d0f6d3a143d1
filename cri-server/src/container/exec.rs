//! A command in a running container: what ExecSync and Exec share. Takes no lock.
//!
//! Whoever asked owns the other ends of its stdio. Dropping what stands for the command kills it, its session and its
//! descendants.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cove_runtime::build::request::{GroupsPolicy, User};
use cove_runtime::memfd;
use cove_runtime::protocol::{self, ExecId, Failure, Request};
use cove_runtime::wire::Wire;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::live::Container;
use super::start::{read_spec, sandbox_of};
use super::state::Stage;
use crate::blocking;
use crate::error::{Error, Kind};
use crate::node::Node;
use crate::shim::{ExecFact, Shim};

/// How long a shim may take to accept a request.
const ACCEPT_LIMIT: Duration = Duration::from_secs(10);
/// How long a command may take from accepted to running: a join of namespaces, some milliseconds.
const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// How long a shim may take to kill a command.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// What to run.
#[derive(Debug)]
pub struct Command {
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// stdin, stdout, stderr.
    pub stdio: [OwnedFd; 3],
    /// They are the end of a terminal.
    pub terminal: bool,
}

/// A command whose program runs. Killed when dropped, unless it has ended.
#[derive(Debug)]
pub struct Running {
    container: String,
    facts: mpsc::Receiver<ExecFact>,
    guard: Guard,
}

/// Refuses a container that does not run.
pub fn running(container: &Container) -> Result<(), Error> {
    let state = container.state();
    if matches!(state.stage, Stage::Running { .. }) {
        return Ok(());
    }
    Err(Error::WrongState {
        kind: Kind::Container,
        id: container.id().to_owned(),
        state: state.stage.word(),
        needed: "it must be running",
    })
}

/// Runs a command; returns once its program runs.
pub async fn begin(node: &Arc<Node>, container: &Arc<Container>, command: Command) -> Result<Running, Error> {
    running(container)?;
    let shim = sandbox_of(node, container)?.adopted_shim().await?;
    let Command { cmd, stdio, terminal } = command;
    let spec = seal(container, cmd, terminal).await?;
    let placement = node.cgroups.place(&container.identity.cgroup).await?;

    let (exec, facts) = shim.listen_exec();
    let guard = Guard { shim: Arc::clone(&shim), exec, ended: false };
    let request = protocol::Exec {
        exec,
        container: container.id().to_owned(),
        bound: true,
        terminal,
        oom_score_adj: i32::try_from(container.identity.config.resources.oom_score_adj).ok(),
        cgroup: placement.place,
    };
    let fds: Vec<OwnedFd> = [spec].into_iter().chain(stdio).chain(placement.fds).collect();
    shim.ask("run a command in", Request::Exec(request), &fds, ACCEPT_LIMIT).await?;
    // Ours are closed: the pipes end with the command and its children.
    drop(fds);
    let mut running = Running { container: container.id().to_owned(), facts, guard };
    running.started().await?;
    Ok(running)
}

impl Running {
    async fn started(&mut self) -> Result<(), Error> {
        match timeout(JOIN_LIMIT, self.facts.recv()).await {
            Ok(Some(ExecFact::Started)) => Ok(()),
            Ok(Some(ExecFact::Failed(Failure { step, errno, detail }))) => {
                self.guard.ended = true;
                Err(Error::Failure { step, detail, errno })
            }
            Ok(Some(ExecFact::Exited(_)) | None) => Err(self.lost()),
            Err(_) => {
                let object = format!("container {}", self.container);
                Err(Error::TimedOut { operation: "the start of a command", object, limit: JOIN_LIMIT })
            }
        }
    }

    /// Waits for its end: the exit code, or 128 + signal.
    pub async fn ended(&mut self) -> Result<i32, Error> {
        match self.facts.recv().await {
            Some(ExecFact::Exited(status)) => {
                self.guard.ended = true;
                Ok(status.code)
            }
            Some(ExecFact::Started | ExecFact::Failed(_)) | None => Err(self.lost()),
        }
    }

    fn lost(&self) -> Error {
        let object = format!("container {}", self.container);
        Error::Interrupted { operation: "a command", object }
    }
}

/// The command, with the rights and the environment of the container's own program, as the user that it runs as.
async fn seal(container: &Arc<Container>, cmd: Vec<String>, terminal: bool) -> Result<OwnedFd, Error> {
    let spec = read_spec(container).await?;
    let container = Arc::clone(container);
    blocking::run(move || {
        let mut process = spec.process().clone().unwrap_or_default();
        process.set_args(Some(cmd));
        let mut wire = cove_runtime::spec::exec(&spec, &process, user(&container))?;
        if let Some(env) = &container.identity.raw_env {
            use std::os::unix::ffi::OsStringExt;
            wire.env = env.iter().cloned().map(std::ffi::OsString::from_vec).collect();
        }
        if terminal && !wire.env.iter().any(|entry| entry.as_encoded_bytes().starts_with(b"TERM=")) {
            // What other runtimes give (containerd's WithTTY).
            wire.env.push("TERM=xterm".into());
        }
        memfd::sealed("command", &wire.to_bytes()).map_err(|error| {
            Error::system("seal a command for", format!("container {}", container.id()), error)
        })
    })
    .await
}

/// As resolved when the container was started: the image's own files may have been changed by the container since.
fn user(container: &Container) -> User {
    match &container.state().user {
        Some(user) => User {
            user: user.uid.to_string(),
            gid: Some(user.gid),
            supplemental: user.groups.clone(),
            policy: GroupsPolicy::Strict,
        },
        None => User {
            user: container.identity.user.clone(),
            gid: container.identity.config.run_as.group,
            supplemental: container.identity.config.run_as.supplemental_groups.clone(),
            policy: GroupsPolicy::Strict,
        },
    }
}

/// Kills the command unless it has ended: also when the caller hangs up and the future is dropped.
#[derive(Debug)]
struct Guard {
    shim: Arc<Shim>,
    exec: u64,
    ended: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shim.forget_exec(self.exec);
        if self.ended {
            return;
        }
        let (shim, exec) = (Arc::clone(&self.shim), self.exec);
        tokio::spawn(async move {
            let request = Request::KillExec(ExecId { exec });
            if let Err(error) = shim.ask("kill a command in", request, &[], KILL_LIMIT).await {
                // The shim kills it with the connection.
                tracing::debug!(sandbox = shim.sandbox, %error, "command was not killed");
            }
        });
    }
}
