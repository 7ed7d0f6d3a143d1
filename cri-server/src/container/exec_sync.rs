//! ExecSync: runs a command in a running container and returns what it wrote. Takes no lock: a probe never queues
//! behind a stop.
//!
//! The daemon makes the pipes and hands their ends to the shim. Whoever hangs up, or whose time is over, takes the
//! command, its session and its descendants along.

mod output;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cove_runtime::build::request::{GroupsPolicy, User};
use cove_runtime::memfd;
use cove_runtime::protocol::{Exec, ExecId, Failure, Request};
use cove_runtime::wire::Wire;
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::live::Container;
use super::start::{read_spec, sandbox_of};
use super::state::Stage;
use crate::blocking;
use crate::error::{Error, Kind};
use crate::node::Node;
use crate::shim::{ExecFact, Shim};
use output::{Collector, Pipes};

/// How long a shim may take to accept a request.
const ACCEPT_LIMIT: Duration = Duration::from_secs(10);
/// How long a command may take from accepted to running: a join of namespaces, some milliseconds.
const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// How long output is read after the command has ended: its children may hold the pipe for ever.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
/// How long a shim may take to kill a command.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// What a command said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// What it wrote; together with `stderr` below a kubelet's message limit.
    pub stdout: Vec<u8>,
    /// See `stdout`.
    pub stderr: Vec<u8>,
    /// Exit code, or 128 + signal.
    pub code: i32,
}

/// Runs a command in a running container. Dropping the future kills it; so does `timeout`.
pub async fn exec_sync(
    node: &Arc<Node>,
    id: &str,
    cmd: Vec<String>,
    limit: Option<Duration>,
) -> Result<ExecOutput, Error> {
    if cmd.is_empty() {
        return Err(Error::invalid("cmd", "no command was given"));
    }
    if cmd.iter().any(|arg| arg.contains('\0')) {
        return Err(Error::invalid("cmd", "an argument holds a NUL byte, which no program can be given"));
    }
    let container = node.containers.find(id, |container| container.view().is_some())?;
    let work = run(node, &container, cmd);
    match limit {
        None => work.await,
        // Dropping the work kills the command.
        Some(limit) => timeout(limit, work).await.unwrap_or_else(|_| {
            let object = format!("container {}", container.id());
            Err(Error::TimedOut { operation: "ExecSync", object, limit })
        }),
    }
}

async fn run(node: &Arc<Node>, container: &Arc<Container>, cmd: Vec<String>) -> Result<ExecOutput, Error> {
    let state = container.state();
    if !matches!(state.stage, Stage::Running { .. }) {
        return Err(Error::WrongState {
            kind: Kind::Container,
            id: container.id().to_owned(),
            state: state.stage.word(),
            needed: "a command can only be run in a running container",
        });
    }
    let shim = sandbox_of(node, container)?.shim()?;
    let spec = seal(container, cmd).await?;
    let (pipes, ends) =
        Pipes::new().map_err(|error| failed(container, "make pipes for a command in", error))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed(container, "open /dev/null for a command in", error.into()))?;
    let placement = node.cgroups.place(&container.identity.cgroup).await?;

    let (exec, facts) = shim.listen_exec();
    let guard = Guard { shim: Arc::clone(&shim), exec, ended: false };
    let request = Exec {
        exec,
        container: container.id().to_owned(),
        bound: true,
        terminal: false,
        oom_score_adj: i32::try_from(container.identity.config.resources.oom_score_adj).ok(),
        cgroup: placement.place,
    };
    let fds: Vec<OwnedFd> = [spec, null].into_iter().chain(ends).chain(placement.fds).collect();
    shim.ask("run a command in", Request::Exec(request), &fds, ACCEPT_LIMIT).await?;
    // Ours are closed: the pipes end with the command and its children.
    drop(fds);
    follow(container, guard, facts, pipes).await
}

async fn follow(
    container: &Container,
    mut guard: Guard,
    mut facts: mpsc::Receiver<ExecFact>,
    pipes: Pipes,
) -> Result<ExecOutput, Error> {
    match timeout(JOIN_LIMIT, facts.recv()).await {
        Ok(Some(ExecFact::Started)) => {}
        Ok(Some(ExecFact::Failed(Failure { step, errno, detail }))) => {
            guard.ended = true;
            return Err(Error::Failure { step, detail, errno });
        }
        Ok(Some(ExecFact::Exited(_)) | None) => return Err(lost(container)),
        Err(_) => {
            let object = format!("container {}", container.id());
            return Err(Error::TimedOut { operation: "the start of a command", object, limit: JOIN_LIMIT });
        }
    }
    let mut collector = Collector::default();
    let code = {
        let reading = collector.read(&pipes);
        tokio::pin!(reading);
        let mut read = false;
        loop {
            tokio::select! {
                fact = facts.recv() => match fact {
                    Some(ExecFact::Exited(status)) => break status.code,
                    Some(ExecFact::Started | ExecFact::Failed(_)) | None => return Err(lost(container)),
                },
                result = &mut reading, if !read => {
                    result.map_err(|error| failed(container, "read the output of a command in", error))?;
                    read = true;
                }
            }
        }
    };
    guard.ended = true;
    // Over: what children of the command still write is nobody's.
    if let Ok(result) = timeout(DRAIN_LIMIT, collector.read(&pipes)).await {
        result.map_err(|error| failed(container, "read the output of a command in", error))?;
    }
    let (stdout, stderr) = collector.into_parts();
    Ok(ExecOutput { stdout, stderr, code })
}

fn failed(container: &Container, doing: &'static str, error: std::io::Error) -> Error {
    Error::system(doing, format!("container {}", container.id()), error)
}

fn lost(container: &Container) -> Error {
    let object = format!("container {}", container.id());
    Error::Interrupted { operation: "ExecSync", object }
}

/// The command, with the rights and the environment of the container's own program, as the user that it runs as.
async fn seal(container: &Arc<Container>, cmd: Vec<String>) -> Result<OwnedFd, Error> {
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
        memfd::sealed("command", &wire.to_bytes())
            .map_err(|error| failed(&container, "seal a command for", error))
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
