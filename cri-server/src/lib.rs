//! Cove, a Kubernetes container runtime: its daemon and command line. Read this first, then `sandbox/run.rs`.
//!
//! The daemon can die at any moment: nothing that runs depends on it, and the next one finds its world again from the
//! records and from the shims.
#![forbid(unsafe_code)]

mod api;
mod audit;
mod blocking;
mod cdi;
mod cgroup;
mod cli;
mod config;
mod container;
mod detach;
mod error;
mod events;
mod gate;
mod host;
mod image;
mod logging;
mod name;
mod network;
mod node;
mod pod_cidr;
mod readiness;
mod sandbox;
mod shim;
mod stats;
mod step;
mod store;
mod stream;

use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use config::Config;
use node::Node;

#[cfg(feature = "fuzzing")]
pub use image::fuzz;

/// Threads that run the daemon's tasks. More do not help: a kubelet's calls are short, and what takes long blocks
/// elsewhere (docs: rust.md section 2, "2 workers").
const WORKERS: usize = 2;

/// The program `cove`: the daemon, or the command that its arguments name.
pub fn main() -> ExitCode {
    let arguments = cli::arguments();
    let result = match &arguments.command {
        None => serve(arguments.config.as_deref()).map(|()| ExitCode::SUCCESS),
        Some(command) => cli::run(command, arguments.config.as_deref()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // Not by eprintln, which panics where nobody reads.
            let _unwritten = writeln!(std::io::stderr(), "cove: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(file: Option<&Path>) -> Result<(), Box<dyn Error>> {
    let config = Config::load(file)?;
    logging::start(&config.log)?;
    // Modes are asked for as they are meant, and whoever started the daemon is not to widen those of files without one.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // A lock or a pipe of whoever started the daemon would else be held by every pod.
    cove_runtime::process::keep_descriptors()
        .map_err(|error| format!("keep descriptors from children: {error}"))?;
    host::check(&config)?;
    if !cove_runtime::allocator::keep_small() {
        tracing::warn!("the allocator takes no limit of its arenas: the daemon will use more memory");
    }
    let taken_away = cove_guard::taken_away()?;
    if !taken_away.is_empty() {
        tracing::warn!(?taken_away, "guards are taken away: containers can escape, this is for tests only");
    }
    cove_runtime::descriptors::allow_all();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    runtime.block_on(run(config))
}

async fn run(config: Config) -> Result<(), Box<dyn Error>> {
    let end = asked_to_end()?;
    let node = Node::open(config)?;
    let sockets = api::bind(&node.config.load())?;
    stream::start(&node)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = ?node.config.load().listen, "listening");

    // The gate is shut until recovery is done: a kubelet must not see half of its pods.
    let recovered = async { store::recover::recover(&node).await.map_err(Box::<dyn Error>::from) };
    let served = async { api::serve(&node, sockets, end).await.map_err(Box::<dyn Error>::from) };
    tokio::try_join!(recovered, served)?;

    node.drain().await;
    tracing::info!("ended; containers go on");
    Ok(())
}

/// From here on SIGTERM and SIGINT are a request and not an end.
fn asked_to_end() -> std::io::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to end");
    })
}
