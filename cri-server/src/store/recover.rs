//! From records, /proc and shims back to the world that an earlier daemon left.
//!
//! No shim is contacted before the gate opens, but one whose sandbox's state cannot be read. A record that is unknown
//! or corrupt never stops start-up, and nothing is guessed: what cannot be told is said to be so.

mod finish;
mod read;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use cove_runtime::namespace;

use crate::blocking;
use crate::error::Error;
use crate::network::Network;
use crate::node::Node;
use crate::sandbox::live::Sandbox;
use crate::shim::{Launcher, Probe};
use crate::store;

/// Name of the marker in the state directory: where it is missing, the host was restarted (a boot id does not change
/// when a node that is a container is restarted).
const MARKER: &str = "alive";
/// How the name of a record ends that cannot be read and was put by.
pub const UNREADABLE: &str = "unreadable";
/// Name of the file that counts daemons of this host's life.
const GENERATION: &str = "generation";

/// Reads every record and opens the gate; shims are adopted in the background.
pub async fn recover(node: &Arc<Node>) -> Result<(), Error> {
    let reader = Arc::clone(node);
    let found = blocking::run(move || prepare(&reader)).await?;
    // Taken before the gate opens: what is made after that is this daemon's, and recovery must not take it for a rest.
    let left = finish::left(node);
    node.gate.open();
    tracing::info!(
        sandboxes = node.sandboxes.all().len(),
        containers = node.containers.all().len(),
        quarantined = found.quarantined.len(),
        restarted = found.restarted,
        "records are read"
    );
    finish::finish(node, left, found);
    Ok(())
}

/// Everything that must be known before the gate opens. Blocking.
fn prepare(node: &Arc<Node>) -> Result<read::Found, Error> {
    let config = node.config.load_full();
    for room in ["sandboxes", "containers"] {
        store::make_room(&config.root.join(room))?;
    }
    let restarted = mark(&config.state)?;
    let generation = next_generation(&config.state)?;
    let program =
        config.shim_program().map_err(|error| Error::system("find", "the shim's program", error))?;
    namespace::make_pin_directory(&config.netns_dir)
        .map_err(|error| Error::system("prepare", config.netns_dir.display().to_string(), error))?;
    node.cgroups.make_shims()?;
    let launcher = Launcher::open(&program, node.cgroups.clone(), generation)?;
    // It runs beside the reading of records. From the sealed copy: root of a container in the host's PID namespace may look
    // at whoever is in a user namespace that root made, and could write to the file that runs there.
    let probe = Probe::start(&launcher.program(), &node.images.layers(), &config.state);
    let found = read::read(node, restarted)?;
    // After a restart of the host nothing of any is there: their addresses and ports are free, also for the same pods.
    let set_aside = found.quarantined.iter().filter_map(|object| object.attachment.clone()).map(Arc::new);
    let attachments: Vec<_> = if restarted {
        Vec::new()
    } else {
        let sandboxes = node.sandboxes.all();
        sandboxes.values().filter_map(|sandbox| sandbox.attachment()).chain(set_aside).collect()
    };
    let used: Vec<IpAddr> = attachments.iter().flat_map(|attachment| attachment.addresses()).collect();
    let settings = crate::pod_cidr::complete(&config.network, &config.root);
    let network = Network::start(&config.instance, &settings, &used)?;
    network.adopt(attachments.iter().filter_map(|attachment| attachment.builtin()))?;
    // Where one is not known any more, nothing may be taken for nobody's.
    let is_known = |sandbox: &Arc<Sandbox>| {
        let places = &sandbox.places;
        sandbox.attachment().is_some() || !places.attachment().exists() && !places.lost_attachment().exists()
    };
    if found.quarantined.is_empty() && node.sandboxes.all().values().all(is_known) {
        network.collect(&config.network, &attachments);
    }
    node.equip(network, launcher);
    let found_out = probe.finish();
    if let Err(reason) = &found_out {
        tracing::warn!(reason, "pods cannot have user namespaces on this node");
    }
    node.learn_of_user_namespaces(found_out);
    if found.unreadable_containers == 0 {
        node.images.recovered();
    } else {
        tracing::warn!(
            count = found.unreadable_containers,
            "container records cannot be read: no image is deleted while they are there"
        );
    }
    Ok(found)
}

/// True if the host was restarted since the last daemon. Leaves the mark.
fn mark(state: &Path) -> Result<bool, Error> {
    let path = state.join(MARKER);
    match std::fs::File::options().write(true).create_new(true).open(&path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::system("create", path.display().to_string(), error)),
    }
}

/// Makes room for a record in place of one that cannot be read. The old one stays beside it for people to look at, and goes
/// with its object.
fn put_by(path: &Path) {
    let target = path.with_extension(UNREADABLE);
    let moved = store::remove_tree(&target).and_then(|()| {
        std::fs::rename(path, &target)
            .map_err(|error| Error::system("put by record", path.display().to_string(), error))
    });
    if let Err(error) = moved {
        tracing::warn!(%error, "what is found out instead of it may not be kept");
    }
}

/// The number of this daemon's life. A record that cannot be read is replaced: the time is higher than any count.
fn next_generation(state: &Path) -> Result<u64, Error> {
    let path = state.join(GENERATION);
    let last: u64 = match store::read(&path) {
        Ok(number) => number.unwrap_or(0),
        Err(error) => {
            tracing::warn!(%error, "the count of daemons is lost and begins at the time");
            put_by(&path);
            std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
        }
    };
    store::write(&path, &(last + 1), store::Durability::Renamed)?;
    Ok(last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_of_the_host_is_seen_once_and_daemons_are_counted() {
        let state = tempfile::tempdir().unwrap();
        assert!(mark(state.path()).unwrap());
        assert!(!mark(state.path()).unwrap());
        assert_eq!(next_generation(state.path()).unwrap(), 1);
        assert_eq!(next_generation(state.path()).unwrap(), 2);
        std::fs::write(state.path().join(GENERATION), "nonsense").unwrap();
        assert!(next_generation(state.path()).unwrap() > 1_000_000);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_sandbox_that_was_being_made_is_undone_and_its_name_is_free_at_once() {
        use crate::name::Claim;
        use crate::sandbox::live::Sandbox;
        use crate::sandbox::record::Places;
        use crate::sandbox::state::SandboxState;
        use crate::sandbox::teardown::tests::{identity, node};

        let directory = tempfile::tempdir().unwrap();
        let node = node(directory.path(), "r");
        let settings = node.config.load_full();
        let old = identity(&node, directory.path());
        let places = Places::new(&settings.root, &settings.state, &old.id);
        store::make_private_directory(&places.record).unwrap();
        store::write(&places.identity(), &old, store::Durability::Renamed).unwrap();

        let found = read::read(&node, false).unwrap();
        let left = finish::left(&node);
        // A call that waited for the gate makes the same pod before recovery gets to work.
        let again = node.sandbox_names.claim(&old.config.name, &old.config, store::new_id, |_| true).unwrap();
        let Claim::Begin(owner, _waiter) = again else { panic!("{again:?}") };
        let mut made = old.clone();
        made.id = owner.id().to_owned();
        let (events, state) = (Arc::clone(&node.events), SandboxState::default());
        let made = Sandbox::new(&settings.root, &settings.state, made, state, None, events);
        node.sandboxes.insert(owner.id().to_owned(), Arc::clone(&made));

        finish::finish(&node, left, found);
        node.drain().await;
        assert!(node.sandboxes.get(&old.id).is_none() && !places.record.exists());
        assert!(node.sandboxes.get(owner.id()).is_some() && !made.closing.is_cancelled());
        node.sandboxes.remove(owner.id());
        node.drain().await;
    }
}
