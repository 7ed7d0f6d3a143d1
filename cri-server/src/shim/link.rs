//! A live shim as the daemon holds it: its process, its connection (made again when lost), and who hears its facts.
//!
//! A shim lives while its pidfd does; a connection that fails says nothing about it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cove_runtime::process;
use cove_runtime::protocol::{
    self, Event, ExitStatus, Fact, Failure, Hello, HelloReply, Message, Reply, Request,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::ProcessId;
use super::connection::{Answered, Connection};
use crate::error::Error;

/// Between two tries to reach a shim whose connection was lost: it lives, so it will listen again.
const RECONNECT: Duration = Duration::from_millis(200);
/// The longest between two tries to reach one that refuses this daemon.
const RECONNECT_REFUSED: Duration = Duration::from_secs(10);
/// How long a process may take from closing its socket to being gone.
const EXIT_GRACE: Duration = Duration::from_secs(1);

/// What comes up from a shim, in order.
#[derive(Debug)]
pub enum ShimEvent {
    /// Something happened in the pod.
    Fact(Event, Vec<OwnedFd>),
    /// Every fact that the shim held when the connection was made has been told.
    SnapshotEnd,
    /// It does not work for this daemon, and tells nothing. Said again at each try.
    Refused,
    /// The shim's process is gone. The last event.
    Gone,
}

/// What becomes of an exec.
#[derive(Debug)]
pub enum ExecFact {
    /// Its program runs.
    Started,
    /// Its program could not be run.
    Failed(Failure),
    /// Its process has ended.
    Exited(ExitStatus),
}

/// Facts of one exec: it starts or fails, and it ends.
const EXEC_FACTS: usize = 4;

/// A shim.
#[derive(Debug)]
pub struct Shim {
    /// Its sandbox.
    pub sandbox: String,
    pidfd: AsyncFd<OwnedFd>,
    directory: PathBuf,
    generation: u64,
    link: watch::Sender<Option<Arc<Connection>>>,
    execs: Mutex<HashMap<u64, mpsc::Sender<ExecFact>>>,
    next_exec: AtomicU64,
}

impl Shim {
    /// Takes hold of a process that is a shim's. None if it is gone.
    pub fn hold(
        sandbox: String,
        process: ProcessId,
        directory: PathBuf,
        generation: u64,
    ) -> io::Result<Option<Arc<Self>>> {
        let Some(pid) = Pid::from_raw(process.pid) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // Looked at after the pidfd was opened: from now on it cannot become another process.
        if !process.is_alive()? {
            return Ok(None);
        }
        Ok(Some(Arc::new(Self {
            sandbox,
            pidfd: crate::readiness::watch(pidfd)?,
            directory,
            generation,
            link: watch::Sender::new(None),
            execs: Mutex::default(),
            next_exec: AtomicU64::new(1),
        })))
    }

    /// Keeps the connection up while the shim lives, and hands its facts to `facts` in order. Ends with the shim.
    pub async fn attend(self: Arc<Self>, facts: mpsc::Sender<ShimEvent>) {
        let mut pause = RECONNECT;
        loop {
            let over = self.session(&facts).await;
            self.link.send_replace(None);
            self.execs.lock().unwrap_or_else(PoisonError::into_inner).clear();
            if self.wait_gone(EXIT_GRACE).await {
                break;
            }
            match over {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    // It will say the same the next time; what it holds is left to a daemon that it obeys.
                    if pause == RECONNECT {
                        tracing::error!(sandbox = self.sandbox, %error, "the shim does not work for this daemon: its containers go on and can be stopped and removed, and no more");
                    }
                    pause = (pause * 2).min(RECONNECT_REFUSED);
                    // A receiver that is gone does not want to know.
                    let _ = facts.send(ShimEvent::Refused).await;
                }
                Err(error) => {
                    tracing::debug!(sandbox = self.sandbox, %error, "connection to the shim was lost");
                    pause = RECONNECT;
                }
                Ok(()) => pause = RECONNECT,
            }
            if self.wait_gone(pause).await {
                break;
            }
        }
        // A receiver that is gone does not want to know.
        let _ = facts.send(ShimEvent::Gone).await;
    }

    async fn session(&self, facts: &mpsc::Sender<ShimEvent>) -> io::Result<()> {
        let connection = Arc::new(Connection::open(&self.directory)?);
        let hello = Request::Hello(Hello { protocol: protocol::PROTOCOL, generation: self.generation });
        let sent = connection.send(hello, &[]).await?;
        let ready = async {
            match sent.reply().await {
                Some((Reply::Hello(HelloReply { protocol, build, .. }), _))
                    if protocol == 0 || protocol > protocol::PROTOCOL =>
                {
                    let known = protocol::PROTOCOL;
                    let reason =
                        format!("build {build} speaks protocol {protocol}; this daemon knows {known}");
                    Err(io::Error::new(io::ErrorKind::Unsupported, reason))
                }
                Some((Reply::Hello(hello), _)) => {
                    tracing::debug!(sandbox = self.sandbox, build = hello.build, "shim answers");
                    self.link.send_replace(Some(Arc::clone(&connection)));
                    Ok(())
                }
                Some((Reply::Failed(failure), _)) => {
                    Err(io::Error::new(io::ErrorKind::Unsupported, failure.detail))
                }
                Some(_) => Err(io::Error::other("the shim answered Hello with something else")),
                None => Err(io::Error::from(io::ErrorKind::ConnectionReset)),
            }
        };
        let messages = async {
            while let Some((message, fds)) = connection.receive().await? {
                self.hear(message, fds, facts).await?;
            }
            Ok(())
        };
        tokio::pin!(ready, messages);
        let result = tokio::select! {
            result = &mut messages => result,
            refused = &mut ready => match refused {
                Ok(()) => messages.await,
                Err(error) => Err(error),
            },
        };
        connection.close();
        result
    }

    async fn hear(
        &self,
        message: Message,
        fds: Vec<OwnedFd>,
        facts: &mpsc::Sender<ShimEvent>,
    ) -> io::Result<()> {
        let event = match message {
            Message::SnapshotEnd => ShimEvent::SnapshotEnd,
            Message::Fact(Event { fact: Fact::ExecStarted(started), .. }) => {
                self.tell_exec(started.exec, ExecFact::Started);
                return Ok(());
            }
            Message::Fact(Event { fact: Fact::ExecFailed(failed), .. }) => {
                self.tell_exec(failed.exec, ExecFact::Failed(failed.failure));
                return Ok(());
            }
            Message::Fact(Event { fact: Fact::ExecExited(exited), .. }) => {
                self.tell_exec(exited.exec, ExecFact::Exited(exited.status));
                return Ok(());
            }
            Message::Fact(event) => ShimEvent::Fact(event, fds),
            Message::Reply(_) => return Err(io::Error::other("a reply came where none can be")),
        };
        // The applier ends only after Gone, or with the daemon.
        facts.send(event).await.map_err(|_| io::Error::other("nobody listens to facts any more"))
    }

    fn tell_exec(&self, exec: u64, fact: ExecFact) {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = execs.get(&exec) {
            // Full: the shim says more of an exec than there is to say. Closed: nobody wants to know.
            let _ = listener.try_send(fact);
        }
    }

    /// A number for an exec, and where its facts come.
    pub fn listen_exec(&self) -> (u64, mpsc::Receiver<ExecFact>) {
        // Unique in the shim's life, which sees many daemons: their generations differ.
        let number = (self.generation << 32) | self.next_exec.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel(EXEC_FACTS);
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).insert(number, sender);
        (number, receiver)
    }

    /// Nobody listens to an exec any more.
    pub fn forget_exec(&self, exec: u64) {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(&exec);
    }

    /// Asks the shim something and waits for its answer at most `limit`, connection included. A refusal is an error.
    pub async fn ask(
        &self,
        doing: &'static str,
        request: Request,
        fds: &[OwnedFd],
        limit: Duration,
    ) -> Result<Answered, Error> {
        let object = || format!("sandbox {}", self.sandbox);
        let asked = timeout(limit, async {
            let connection = self.connection().await?;
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            let sent = connection.send(request, &fds).await?;
            sent.reply().await.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset))
        });
        match asked.await {
            Ok(Ok((Reply::Failed(Failure { step, errno, detail }), _))) => {
                Err(Error::Failure { step, detail, errno })
            }
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => Err(Error::System { doing, object: object(), source }),
            Err(_) => Err(Error::TimedOut { operation: doing, object: object(), limit }),
        }
    }

    /// Tells the shim that facts are recorded, if it can be told; else it tells them again.
    pub async fn acknowledge(&self, serial: u64) {
        let connection = self.link.borrow().clone();
        if let Some(connection) = connection {
            let request = Request::Acknowledge(protocol::Acknowledge { serial });
            // A connection that is gone says so to its reader; the facts come again with the next one.
            let _ = connection.send(request, &[]).await;
        }
    }

    async fn connection(&self) -> io::Result<Arc<Connection>> {
        let mut link = self.link.subscribe();
        let connected = async {
            match link.wait_for(Option::is_some).await {
                Ok(connection) => connection.clone(),
                Err(_) => None,
            }
        };
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "its shim is gone");
        tokio::select! {
            biased;
            connection = connected => connection.ok_or_else(gone),
            _ = self.pidfd.readable() => Err(gone()),
        }
    }

    /// Waits for the end of the process, at most `limit`: true if it is gone.
    pub async fn wait_gone(&self, limit: Duration) -> bool {
        // pidfd_open(2): a pidfd is readable once its process has ended.
        matches!(timeout(limit, self.pidfd.readable()).await, Ok(Ok(_)))
    }

    /// Kills the process. Gone is done.
    pub fn kill(&self) -> io::Result<()> {
        match process::signal(self.pidfd.as_fd(), 9) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(()),
            other => other,
        }
    }
}
