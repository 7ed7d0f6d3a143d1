//! ExecSync: runs a command in a running container and returns what it wrote. Takes no lock: a probe never queues
//! behind a stop.
//!
//! The daemon makes the pipes and hands their ends to the shim. Whoever hangs up, or whose time is over, takes the
//! command, its session and its descendants along.

mod output;

use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::time::timeout;

use super::exec::{Command, Running, begin, running};
use super::live::Container;
use crate::error::Error;
use crate::node::Node;
pub(crate) use output::Budget;
use output::{Broken, Collector, Pipes};

/// How long output is read after the command has ended: its children may hold the pipe for ever.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

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
    running(container)?;
    let (pipes, [stdout, stderr]) =
        Pipes::new().map_err(|error| failed(container, "make pipes for a command in", error))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed(container, "open /dev/null for a command in", error.into()))?;
    let command = Command { cmd, stdio: [null, stdout, stderr], terminal: false };
    let collector = Collector::new(&node.exec_output);
    follow(container, begin(node, container, command).await?, pipes, collector).await
}

async fn follow(
    container: &Container,
    mut command: Running,
    pipes: Pipes,
    mut collector: Collector,
) -> Result<ExecOutput, Error> {
    let broken = |why| match why {
        Broken::Io(error) => failed(container, "read the output of a command in", error),
        Broken::Full => Error::Exhausted(
            "commands that run at the same time have written more than 64 MiB together: try again, or write less",
        ),
    };
    let code = {
        let reading = collector.read(&pipes);
        let ended = command.ended();
        tokio::pin!(reading, ended);
        tokio::select! {
            code = &mut ended => code?,
            result = &mut reading => {
                result.map_err(broken)?;
                ended.await?
            }
        }
    };
    // Over: what children of the command still write is nobody's.
    if let Ok(result) = timeout(DRAIN_LIMIT, collector.read(&pipes)).await {
        result.map_err(broken)?;
    }
    let (stdout, stderr) = collector.into_parts();
    Ok(ExecOutput { stdout, stderr, code })
}

fn failed(container: &Container, doing: &'static str, error: std::io::Error) -> Error {
    Error::system(doing, format!("container {}", container.id()), error)
}
