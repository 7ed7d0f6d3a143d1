//! Attach: a client at the streams of a running container. What the container writes comes through pipes that its shim
//! fills without waiting, so a client that does not read holds nobody up; what the client types goes straight to the
//! container's stdin or terminal.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cove_runtime::protocol::{self, ContainerId, Request};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::copy::{from_program, to_program};
use super::remote_command::{Ended, Session, Sizes, Wanted};
use super::terminal::Terminal;
use super::token::Attach;
use super::transport::{Input, Output};
use crate::container::live::Container;
use crate::container::start::sandbox_of;
use crate::container::state::Stage;
use crate::error::Error;
use crate::node::Node;
use crate::shim::Shim;

/// How long a shim may take to answer.
const ACCEPT_LIMIT: Duration = Duration::from_secs(10);
/// What a client may be behind before it misses output (security-bar.md R34); the kernel's default limit of a pipe.
const PIPE: usize = 1024 * 1024;

/// Attaches the client until it hangs up or the container ends, and tells it so.
pub async fn serve(node: &Arc<Node>, attach: Attach, mut session: Session) {
    let ended = match run(node, attach, &mut session).await {
        Ok(()) => Ended::Code(0),
        Err(error) => Ended::Failed(error.to_string()),
    };
    session.finish(&ended).await;
}

async fn run(node: &Arc<Node>, attach: Attach, session: &mut Session) -> Result<(), Error> {
    let Attach { container, streams: Wanted { stdin, stdout, stderr, .. } } = attach;
    let container = node.containers.find(&container, |container| container.view().is_some())?;
    let failed =
        |error: io::Error| Error::system("attach to", format!("container {}", container.id()), error);
    let ((out, to_out), (err, to_err)) = (pipe(stdout).map_err(failed)?, pipe(stderr).map_err(failed)?);
    let shim = sandbox_of(node, &container)?.adopted_shim().await?;
    let config = &container.identity.config;
    // The way to a terminal is also that of its size.
    let input = stdin || config.terminal;
    let request = protocol::Attach { container: container.id().to_owned(), stdin: input, stdout, stderr };
    let fds: Vec<OwnedFd> = [to_out, to_err].into_iter().flatten().collect();
    let asked = shim.ask("attach to a container of", Request::Attach(request), &fds, ACCEPT_LIMIT).await;
    let (_, mut given) = asked?;
    drop(fds);
    let once = stdin && config.stdin_once && !config.terminal;
    let once = once.then(|| Once { shim, container: container.id().to_owned() });

    let inputs = type_in(given.pop(), config.terminal, session.stdin.take(), session.sizes.take(), once);
    let over = CancellationToken::new();
    let outputs = async {
        let pass = async |from: Option<AsyncFd<OwnedFd>>, to: Option<&Output>| match (from, to) {
            (Some(from), Some(to)) => from_program(&from, to, &over).await,
            _ => Ok(()),
        };
        tokio::try_join!(pass(out, session.stdout.as_ref()), pass(err, session.stderr.as_ref()))?;
        ended(&container).await;
        Ok(())
    };
    tokio::select! {
        result = outputs => result.map_err(failed),
        broken = inputs => broken.map_err(failed),
    }
}

/// A stream of the container, passed on by its shim: our end, and the shim's.
fn pipe(wanted: bool) -> io::Result<(Option<AsyncFd<OwnedFd>>, Option<OwnedFd>)> {
    if !wanted {
        return Ok((None, None));
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    match rustix::pipe::fcntl_setpipe_size(&write, PIPE) {
        // Above the limit of all pipes of a user (pipe(7)) it keeps its size.
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    Ok((Some(crate::readiness::watch(read)?), Some(write)))
}

/// Types what the client sends. Returns only what is broken: the end of what is typed is not the container's.
async fn type_in(
    input: Option<OwnedFd>,
    terminal: bool,
    keys: Option<Input>,
    sizes: Option<Sizes>,
    once: Option<Once>,
) -> io::Result<()> {
    match (input, keys) {
        (Some(input), keys) if terminal => {
            let terminal = Terminal::new(input)?;
            let typing = async {
                match keys {
                    Some(mut keys) => to_program(&mut keys, &terminal.master).await,
                    None => Ok(()),
                }
            };
            tokio::try_join!(typing, terminal.follow(sizes))?;
        }
        (Some(input), Some(mut keys)) => {
            to_program(&mut keys, &crate::readiness::watch(input)?).await?;
        }
        _ => {}
    }
    drop(once);
    std::future::pending().await
}

/// For a client that only types: there is no output whose end would tell.
async fn ended(container: &Container) {
    container.wait_until(|state| !matches!(state.stage, Stage::Running { .. })).await;
}

/// Ends a stdin that was for one client, however that client goes.
#[derive(Debug)]
struct Once {
    shim: Arc<Shim>,
    container: String,
}

impl Drop for Once {
    fn drop(&mut self) {
        let (shim, container) = (Arc::clone(&self.shim), std::mem::take(&mut self.container));
        tokio::spawn(async move {
            let request = Request::CloseStdin(ContainerId { container });
            if let Err(error) =
                shim.ask("close the stdin of a container of", request, &[], ACCEPT_LIMIT).await
            {
                tracing::warn!(sandbox = shim.sandbox, %error, "a container's stdin is still open");
            }
        });
    }
}
