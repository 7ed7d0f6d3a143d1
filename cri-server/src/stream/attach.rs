//! Attach: a client at the streams of a running container. What the container writes comes through pipes that its shim
//! fills without waiting, so a client that does not read holds nobody up: it is cut off, and told so. What the client types
//! goes straight to the container's stdin or terminal.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cove_runtime::protocol::{self, ContainerId, Request};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::copy::{read, to_program};
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
/// What a client may be behind before it is cut off (security-bar.md R34); the kernel's default limit of a pipe.
const PIPE: usize = 1024 * 1024;
/// How long a client that was cut off may take nothing, before and after it is told so.
const LAST: Duration = Duration::from_secs(5);
/// How often a client that takes nothing is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Attaches the client until it hangs up, is too far behind, or the container ends, and tells it so. `lost` is set when it
/// does not even take that.
pub async fn serve(node: &Arc<Node>, attach: Attach, mut session: Session, lost: &CancellationToken) {
    let id = attach.container.clone();
    match run(node, attach, &mut session).await {
        Ok(()) => session.finish(&Ended::Code(0)).await,
        Err(Over::Failed(error)) => session.finish(&Ended::Failed(error.to_string())).await,
        Err(Over::Behind) => {
            tracing::info!(
                container = id,
                "an attached client was cut off: it did not take the output in time"
            );
            let ended = Ended::Failed(BEHIND.to_owned());
            if timeout(LAST, session.finish(&ended)).await.is_err() {
                lost.cancel();
            }
        }
    }
}

/// What a client that was cut off is told.
const BEHIND: &str = "this client was more than 1 MiB behind the container's output and was cut off: the container's log has all of it";

/// Why an attached client is sent away.
enum Over {
    Failed(Error),
    /// The shim had more for it than it took.
    Behind,
}

impl From<Error> for Over {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

async fn run(node: &Arc<Node>, attach: Attach, session: &mut Session) -> Result<(), Over> {
    let Attach { container, streams: Wanted { stdin, stdout, stderr, .. } } = attach;
    let container = node.containers.find(&container, |container| container.view().is_some())?;
    let failed =
        |error: io::Error| Error::system("attach to", format!("container {}", container.id()), error);
    let broken = |error: io::Error| Over::Failed(failed(error));
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
    let outputs = async {
        let pass = async |from: Option<AsyncFd<OwnedFd>>, to: Option<&Output>| match (from, to) {
            (Some(from), Some(to)) => match pass_on(&from, to).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(Over::Behind),
                Err(error) => Err(broken(error)),
            },
            _ => Ok(()),
        };
        tokio::try_join!(pass(out, session.stdout.as_ref()), pass(err, session.stderr.as_ref()))?;
        ended(&container).await;
        Ok(())
    };
    tokio::select! {
        result = outputs => result,
        error = inputs => error.map_err(broken),
    }
}

/// Passes on what the container writes on one stream, to its end, or until nobody is there. False when the shim has cut
/// this client off.
async fn pass_on(from: &AsyncFd<OwnedFd>, to: &Output) -> io::Result<bool> {
    let over = CancellationToken::new();
    while let Some(bytes) = read(from, &over).await? {
        let write = to.write(bytes);
        tokio::pin!(write);
        let began = Instant::now();
        loop {
            match timeout(LOOK, &mut write).await {
                Ok(Ok(())) => break,
                Ok(Err(_gone)) => return Ok(true),
                Err(_) if began.elapsed() >= LAST && is_cut(from)? => return Ok(false),
                Err(_) => {}
            }
        }
    }
    Ok(!is_cut(from)?)
}

fn is_cut(pipe: &AsyncFd<OwnedFd>) -> io::Result<bool> {
    Ok(rustix::fs::fstat(pipe)?.st_mode & 0o777 == protocol::CUT)
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
