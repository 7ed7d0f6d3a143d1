//! Starts shims: all from one sealed copy of the program, made once in a daemon's life, so that a package upgrade
//! under a live daemon mixes nothing and no container can write to what runs on the host (CVE-2019-5736).

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use cove_guard::Guard;
use cove_runtime::build::void;
use cove_runtime::memfd;

use super::connection::listen;
use super::{LOG, ProcessId};
use crate::blocking;
use crate::cgroup::Cgroups;
use crate::error::Error;

/// Starts shims: all from one thread that lives in their cgroup, so that they are born there.
#[derive(Debug)]
pub struct Launcher {
    cgroups: Cgroups,
    orders: Mutex<Option<Starter>>,
    program: Arc<OwnedFd>,
    /// What the mount namespaces of pods are made copies of.
    pub void: OwnedFd,
    /// Number of this daemon life; a shim obeys the highest it has seen.
    pub generation: u64,
}

impl Launcher {
    /// Copies `program`, and starts the thread. Blocking; within the runtime, which reaps the shims.
    pub fn open(program: &Path, cgroups: Cgroups, generation: u64) -> Result<Self, Error> {
        let name = program.display().to_string();
        let mut file =
            File::open(program).map_err(|error| Error::system("open shim", name.clone(), error))?;
        let program = match Guard::SealedProgram.holds() {
            true => memfd::sealed_program("cove-shim", &mut file)
                .map_err(|error| Error::system("copy shim", name, error))?,
            false => file.into(),
        };
        let program = Arc::new(program);
        let orders = Mutex::new(Some(Starter::new(Arc::clone(&program), &cgroups)?));
        let void = void::make().map_err(|failure| Error::Failure {
            step: failure.step,
            detail: failure.detail,
            errno: failure.errno,
        })?;
        Ok(Self { cgroups, orders, program, void, generation })
    }

    /// The sealed copy, for children of this process to execute.
    pub fn program(&self) -> PathBuf {
        executable(&self.program)
    }

    /// Starts no more shims, and leaves their cgroup. Blocking.
    pub fn end(&self) {
        let starter = self.orders.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Starter { orders, thread }) = starter {
            drop(orders);
            if thread.join().is_err() {
                tracing::error!("the thread that starts shims panicked");
            }
        }
    }

    fn orders(&self) -> Result<mpsc::Sender<Order>, Error> {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let starter = orders.as_ref().ok_or(Error::Unavailable("the daemon is about to end"))?;
        Ok(starter.orders.clone())
    }

    /// Starts the shim of `sandbox`, which listens in `directory`. It does nothing until it is asked to.
    ///
    /// Runs to its end once begun.
    pub async fn launch(&self, sandbox: &str, directory: &Path) -> Result<ProcessId, Error> {
        let (orders, cgroups) = (self.orders()?, self.cgroups.clone());
        let (sandbox, directory) = (sandbox.to_owned(), directory.to_owned());
        blocking::run(move || {
            let system = |doing| {
                let sandbox = sandbox.clone();
                move |source| Error::System { doing, object: format!("sandbox {sandbox}"), source }
            };
            let socket = listen(&directory).map_err(system("make the shim's socket of"))?;
            let log = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(directory.join(LOG))
                .map_err(system("open the shim's log of"))?;
            let errors = log.try_clone().map_err(system("open the shim's log of"))?;
            let (started, result) = mpsc::channel();
            let stdio = [socket.into(), log.into(), errors.into()];
            let gone = || std::io::Error::other("the thread that starts shims is gone");
            let pid = orders
                .send(Order { sandbox: sandbox.clone(), stdio, started })
                .map_err(|_| gone())
                .and_then(|()| result.recv().map_err(|_| gone())?)
                .map_err(system("start the shim of"))?;
            cgroups.place_shim(pid)?;
            ProcessId::of(pid)
                .map_err(system("look at the shim of"))?
                .ok_or_else(|| system("look at the shim of")(std::io::Error::other("it has ended at once")))
        })
        .await
    }
}

/// A shim to be started.
#[derive(Debug)]
struct Order {
    sandbox: String,
    stdio: [Stdio; 3],
    started: mpsc::Sender<std::io::Result<i32>>,
}

/// The thread that starts shims.
#[derive(Debug)]
struct Starter {
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<()>,
}

impl Starter {
    fn new(program: Arc<OwnedFd>, cgroups: &Cgroups) -> Result<Self, Error> {
        let (orders, received) = mpsc::channel::<Order>();
        let (entered, result) = mpsc::channel();
        let (cgroups, runtime) = (cgroups.clone(), tokio::runtime::Handle::current());
        let work = move || {
            let _runtime = runtime.enter();
            // Nobody waits any more: the daemon is not starting after all.
            let _ = entered.send(cgroups.enter_shims());
            for Order { sandbox, stdio, started } in received {
                let _ = started.send(start(&program, &sandbox, stdio));
            }
        };
        let system = |error| Error::system("start thread", "shims", error);
        let thread = std::thread::Builder::new().name("shims".to_owned()).spawn(work).map_err(system)?;
        result.recv().map_err(|_| system(std::io::Error::other("it ended at once")))??;
        Ok(Self { orders, thread })
    }
}

fn start(program: &OwnedFd, sandbox: &str, stdio: [Stdio; 3]) -> std::io::Result<i32> {
    // Reaped by tokio whenever it ends; a zombie still has its start time.
    let child = spawn(program, sandbox, stdio)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    pid.ok_or_else(|| std::io::Error::other("it has no pid"))
}

/// The path of a program that is open in this process; a child's are the same until it executes one.
fn executable(program: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", program.as_raw_fd()))
}

fn spawn(program: &OwnedFd, sandbox: &str, stdio: [Stdio; 3]) -> std::io::Result<tokio::process::Child> {
    let [stdin, stdout, stderr] = stdio;
    tokio::process::Command::new(executable(program))
        .arg0("cove-shim")
        .arg(sandbox)
        .env_clear()
        .envs(cove_guard::environment())
        .current_dir("/")
        // A terminal that interrupts the daemon does not interrupt the pods.
        .process_group(0)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
}

/// The shim of a sandbox whose record does not know its pid: the daemon died between start and record. Found by its
/// argument in the shims' own cgroup. Blocking.
pub fn find(cgroups: &Cgroups, sandbox: &str) -> Result<Option<ProcessId>, Error> {
    for pid in cgroups.shims()? {
        // A process that has ended meanwhile is not the one.
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        if line.split(|byte| *byte == 0).nth(1) == Some(sandbox.as_bytes()) {
            return ProcessId::of(pid)
                .map_err(|error| Error::system("look at", format!("process {pid}"), error));
        }
    }
    Ok(None)
}
