//! Exec: a command in a running container with a client at its streams. The command dies with its client, and with
//! the daemon; its streams never pass through the shim.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::copy::{from_program, to_program};
use super::remote_command::{Ended, Session, Sizes, Wanted};
use super::terminal::Terminal;
use super::token::Exec;
use super::transport::{Input, Output};
use crate::blocking;
use crate::container::exec::{Command, Running, begin};
use crate::error::Error;
use crate::node::Node;

/// Our ends of a command's streams.
#[derive(Debug, Default)]
struct Ends {
    stdin: Option<AsyncFd<OwnedFd>>,
    stdout: Option<AsyncFd<OwnedFd>>,
    stderr: Option<AsyncFd<OwnedFd>>,
    /// In the place of all three.
    terminal: Option<Terminal>,
}

/// Runs the command, and tells the client how it ended.
pub async fn serve(node: &Arc<Node>, exec: Exec, mut session: Session) {
    let ended = match run(node, exec, &mut session).await {
        Ok(code) => Ended::Code(code),
        Err(error) => Ended::Failed(error.to_string()),
    };
    session.finish(&ended).await;
}

async fn run(node: &Arc<Node>, exec: Exec, session: &mut Session) -> Result<i32, Error> {
    let Exec { container, cmd, streams } = exec;
    let container = node.containers.find(&container, |container| container.view().is_some())?;
    let pid = container.view().and_then(|view| view.pid);
    let failed = |error: io::Error| {
        Error::system("serve the streams of a command in", format!("container {}", container.id()), error)
    };
    let (ends, stdio) = if streams.tty {
        let (master, stdio) = blocking::run(move || Terminal::open(pid)).await.map_err(failed)?;
        let terminal = Some(Terminal::new(master).map_err(failed)?);
        (Ends { terminal, ..Ends::default() }, stdio)
    } else {
        pipes(streams).map_err(failed)?
    };
    let command = begin(node, &container, Command { cmd, stdio, terminal: streams.tty }).await?;
    follow(command, ends, session, failed).await
}

/// Pipes for what the client asked for; the rest is /dev/null.
fn pipes(wanted: Wanted) -> io::Result<(Ends, [OwnedFd; 3])> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let pipe = |wanted: bool, ours_reads: bool| -> io::Result<(Option<AsyncFd<OwnedFd>>, OwnedFd)> {
        if !wanted {
            return Ok((None, null.try_clone()?));
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (ours, theirs) = if ours_reads { (read, write) } else { (write, read) };
        // Our end alone: programs expect stdio that waits.
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Some(crate::readiness::watch(ours)?), theirs))
    };
    let (stdin, to) = pipe(wanted.stdin, false)?;
    let (stdout, out) = pipe(wanted.stdout, true)?;
    let (stderr, err) = pipe(wanted.stderr, true)?;
    Ok((Ends { stdin, stdout, stderr, terminal: None }, [to, out, err]))
}

async fn follow(
    mut command: Running,
    ends: Ends,
    session: &mut Session,
    failed: impl Fn(io::Error) -> Error,
) -> Result<i32, Error> {
    let Ends { stdin, stdout, stderr, terminal } = ends;
    let over = CancellationToken::new();
    let terminal = terminal.as_ref();
    let (keys, sizes) = (session.stdin.take(), session.sizes.take());
    let inputs = async {
        tokio::try_join!(type_in(keys, stdin, terminal), resize(sizes, terminal))?;
        // Their end is not the command's.
        std::future::pending::<io::Result<i32>>().await
    };
    let stdout = stdout.as_ref().or(terminal.map(|terminal| &terminal.master));
    let outputs = async {
        let out = read_out(stdout, session.stdout.as_ref(), &over);
        tokio::try_join!(out, read_out(stderr.as_ref(), session.stderr.as_ref(), &over)).map(drop)
    };
    let ended = async {
        let code = command.ended().await?;
        over.cancel();
        Ok(code)
    };
    tokio::pin!(inputs);
    let both = async { tokio::join!(ended, outputs) };
    let (code, read) = tokio::select! {
        both = both => both,
        // Never well: what a client types ends long before.
        broken = &mut inputs => return broken.map_err(failed),
    };
    read.map_err(failed)?;
    code
}

async fn type_in(
    keys: Option<Input>,
    pipe: Option<AsyncFd<OwnedFd>>,
    terminal: Option<&Terminal>,
) -> io::Result<()> {
    let Some(mut keys) = keys else { return Ok(()) };
    match (pipe, terminal) {
        // Its end closes the pipe, which is the end of the command's input.
        (Some(pipe), _) => to_program(&mut keys, &pipe).await,
        (None, Some(terminal)) => terminal.type_in(&mut keys).await,
        (None, None) => Ok(()),
    }
}

async fn resize(sizes: Option<Sizes>, terminal: Option<&Terminal>) -> io::Result<()> {
    match terminal {
        Some(terminal) => terminal.follow(sizes).await,
        None => Ok(()),
    }
}

async fn read_out(
    fd: Option<&AsyncFd<OwnedFd>>,
    to: Option<&Output>,
    over: &CancellationToken,
) -> io::Result<()> {
    match (fd, to) {
        (Some(fd), Some(to)) => from_program(fd, to, over).await,
        _ => Ok(()),
    }
}
