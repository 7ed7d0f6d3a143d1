//! Undoes everything of a sandbox that is in the kernel, from its record alone: the one function that a failed Run,
//! Stop, Remove and recovery call. What is gone is done; it goes on after a failure and can be repeated.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cove_runtime::namespace;
use cove_runtime::protocol::Request;

use super::live::Sandbox;
use super::state::SandboxFact;
use crate::blocking;
use crate::container::end;
use crate::error::{Error, Kind};
use crate::network::Attachment;
use crate::node::Node;
use crate::sandbox::applier::children;
use crate::shim::{self, Shim};
use crate::step::{Operation, pass};

/// What Stop, a failed Run and recovery share, for fail points.
pub const TEARDOWN: Operation = Operation {
    name: "teardown",
    point: "sandbox.teardown",
    kind: Kind::Sandbox,
    steps: &["containers", "shim", "cgroup", "network", "pin", "files", "down"],
};
/// How long a shim may take to end by itself; then it is killed. Its containers have ended before: what it has left to
/// end is its init, which takes milliseconds.
const SHUTDOWN: Duration = Duration::from_secs(2);
/// How long the kernel may take to end a shim that was killed.
const KILL: Duration = Duration::from_secs(10);

/// Collects failures, so that one of them does not keep the rest from being undone.
#[derive(Debug, Default)]
struct Failures(Option<Error>);

impl Failures {
    /// Takes a step, and keeps what goes wrong in it.
    async fn note(&mut self, step: &'static str, work: impl Future<Output = Result<(), Error>>) {
        let result = match pass(&TEARDOWN, step).await {
            Ok(()) => work.await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            let error = error.at(step, "teardown");
            self.0 = Some(match self.0.take() {
                None => error,
                Some(first) => first.then(error),
            });
        }
    }
}

/// Takes a sandbox down. Its record stays, and says so.
pub async fn teardown(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    if sandbox.state().down {
        return Ok(());
    }
    let mut failures = Failures::default();
    let containers = children(node, sandbox);
    for container in &containers {
        failures.note("containers", end::kill(node, container)).await;
    }
    failures.note("shim", end_shim(node, sandbox)).await;
    for container in &containers {
        failures.note("cgroup", node.cgroups.remove(&container.identity.cgroup)).await;
    }
    failures.note("cgroup", node.cgroups.remove(&sandbox.identity.init_cgroup())).await;
    if sandbox.identity.own_cgroup {
        failures.note("cgroup", node.cgroups.remove_if_empty(&sandbox.identity.cgroup)).await;
    }
    if let Some(attachment) = given(node, sandbox).await {
        failures.note("network", detach(node, sandbox, &attachment)).await;
    }
    if let Some(netns) = sandbox.identity.netns.clone() {
        failures.note("pin", blocking::run(move || unpin(&netns))).await;
    }
    let run = sandbox.places.run.clone();
    failures.note("files", blocking::run(move || remove_directory(&run))).await;
    match failures.0 {
        None => {
            pass(&TEARDOWN, "down").await?;
            sandbox.apply_anyway(SandboxFact::Down).await;
            Ok(())
        }
        Some(error) => Err(error),
    }
}

/// What the network gave it, by the record; else, where that was lost, what takes it back all the same.
async fn given(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Option<Arc<Attachment>> {
    let known = sandbox.attachment();
    let lost = sandbox.places.lost_attachment();
    if known.is_some() || !blocking::run(move || lost.exists()).await {
        return known;
    }
    let settings = node.config.load_full();
    node.network().ok()?.lost(&sandbox.identity, &settings.network).await.map(Arc::new)
}

async fn detach(node: &Arc<Node>, sandbox: &Arc<Sandbox>, attachment: &Attachment) -> Result<(), Error> {
    let config = node.config.load_full();
    node.network()?.detach(attachment, &config.network).await?;
    sandbox.detached().await
}

/// Ends the shim: by asking it, else by SIGKILL. With it goes everything that it is the parent of.
async fn end_shim(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    let Some(shim) = shim_of(node, sandbox).await? else { return Ok(()) };
    if sandbox.shim.load().is_some() {
        // Refused, or too slow: it is killed below all the same.
        let asked = shim.ask("end the shim of", Request::Shutdown, &[], SHUTDOWN).await;
        if let Err(error) = asked {
            tracing::debug!(sandbox = sandbox.id(), %error, "shim did not shut down by itself");
        } else if shim.wait_gone(SHUTDOWN).await {
            return Ok(());
        }
    }
    let object = || format!("sandbox {}", sandbox.id());
    shim.kill().map_err(|error| Error::system("kill the shim of", object(), error))?;
    if shim.wait_gone(KILL).await {
        Ok(())
    } else {
        Err(Error::TimedOut { operation: "the end of the shim", object: object(), limit: KILL })
    }
}

/// The shim as this daemon holds it, else by the record, else by its name: the daemon before may have died between
/// its start and the record of it.
async fn shim_of(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<Option<Arc<Shim>>, Error> {
    if let Some(shim) = sandbox.shim.load_full() {
        return Ok(Some(shim));
    }
    let (cgroups, id) = (node.cgroups.clone(), sandbox.id().to_owned());
    let process = match sandbox.state().shim {
        Some(process) => Some(process),
        None => blocking::run(move || shim::find(&cgroups, &id)).await?,
    };
    let Some(process) = process else { return Ok(None) };
    Shim::hold(sandbox.id().to_owned(), process, sandbox.places.run.clone(), node.launcher()?.generation)
        .map_err(|error| Error::system("take hold of the shim of", sandbox.id(), error))
}

fn unpin(netns: &Path) -> Result<(), Error> {
    namespace::unpin(netns).map_err(|error| Error::system("unpin", netns.display().to_string(), error))
}

/// Removes a directory of ours with all below it; gone is done.
pub fn remove_directory(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::system("remove", path.display().to_string(), error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::config::Config;
    use crate::network::Network;
    use crate::sandbox::files::tests::config;
    use crate::sandbox::record::SandboxIdentity;
    use crate::sandbox::state::SandboxState;
    use crate::shim::Launcher;

    /// A node of its own in a directory, with nothing in the kernel but the shims' cgroup. `name` tells it from those of
    /// other tests.
    pub fn node(directory: &Path, name: &str) -> Arc<Node> {
        let instance = format!("{name}{}", std::process::id());
        let text = format!(
            "instance = \"{instance}\"\nroot = \"{0}/root\"\nstate = \"{0}/state\"",
            directory.display()
        );
        let config = Config::parse(&text, Path::new("test")).unwrap();
        let node = Node::open(config).unwrap();
        let launcher = Launcher::open(Path::new("/bin/true"), node.cgroups.clone(), 1).unwrap();
        node.equip(Network::None, launcher);
        node
    }

    /// A sandbox that has nothing yet.
    pub fn identity(node: &Node, directory: &Path) -> SandboxIdentity {
        let id = "e".repeat(64);
        SandboxIdentity {
            config: Arc::new(config()),
            created_at: 1,
            netns: Some(directory.join("netns/none")),
            cgroup: node.config.load().cgroup_parent.join(&id),
            own_cgroup: true,
            shm_size: 0,
            volatile: true,
            id,
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_not_there_is_done_and_done_twice_is_done() {
        let directory = tempfile::tempdir().unwrap();
        let node = node(directory.path(), "t");
        let identity = identity(&node, directory.path());
        let settings = node.config.load();
        let events = Arc::clone(&node.events);
        let state = SandboxState::default();
        let sandbox = Sandbox::new(&settings.root, &settings.state, identity, state, None, events);
        crate::store::make_private_directory(&sandbox.places.record).unwrap();
        crate::store::make_private_directory(&sandbox.places.run).unwrap();
        node.cgroups.make_parent(&sandbox.identity.init_cgroup()).await.unwrap();
        for _ in 0..3 {
            teardown(&node, &sandbox).await.unwrap();
            assert!(sandbox.state().down && !sandbox.places.run.exists());
            assert!(node.cgroups.is_empty(&sandbox.identity.init_cgroup()).await.unwrap());
        }
        node.drain().await;
        assert!(!Path::new("/sys/fs/cgroup/memory").join(settings.instance.as_str()).exists());
    }
}
