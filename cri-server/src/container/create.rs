//! CreateContainer: refuses all that can be refused, and writes down the rest. Nothing of it is in the kernel yet.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::Instrument;

use super::config::ContainerConfig;
use super::live::{Container, ContainerKey};
use super::record::{ContainerIdentity, Places};
use super::spec::{self, Prepared, Sources};
use super::state::{ContainerFact, ContainerState};
use super::{image_volume, log, remove, target};
use crate::blocking;
use crate::detach::ANSWER_LIMIT;
use crate::error::{Error, Kind};
use crate::name::{Claim, Owner};
use crate::node::Node;
use crate::sandbox::children::Making;
use crate::sandbox::live::Sandbox;
use crate::step::{Operation, Progress, Steps};
use crate::store::{self, Durability};

/// The operation, for people and fail points.
pub const CREATE: Operation = Operation {
    name: "CreateContainer",
    point: "container.create",
    kind: Kind::Container,
    steps: &["resolve", "record", "commit"],
};
/// How long a container that nobody waited for is kept for the retry (decision 6).
const KEEP_UNCLAIMED: Duration = Duration::from_secs(120);

/// Makes a container in a sandbox, or joins the call that already does, and returns its id.
pub async fn create(node: &Arc<Node>, sandbox: &str, config: ContainerConfig) -> Result<String, Error> {
    let sandbox = node.sandboxes.find(sandbox, |sandbox| sandbox.view().is_some())?;
    let ready = sandbox.view().is_some_and(|view| view.ready) && !sandbox.state().closing;
    if !ready {
        return Err(not_ready(&sandbox));
    }
    check(&sandbox, &config)?;
    let config = Arc::new(ContainerConfig { pid: target::find(node, &sandbox, &config.pid)?, ..config });
    let key: ContainerKey = (sandbox.id().to_owned(), config.name.clone());
    loop {
        let lives = |id: &str| node.containers.get(id).is_some_and(|container| container.state().lives());
        let waiter = match node.container_names.claim(&key, &config, store::new_id, lives)? {
            Claim::Begin(owner, waiter) => {
                begin(node, &sandbox, owner, Arc::clone(&config));
                waiter
            }
            Claim::Join(waiter) => waiter,
            Claim::Retry(waiter) => {
                // Its failure was told to those who waited for it; this call begins anew.
                let _ = node.wait_for_name(CREATE, ANSWER_LIMIT, waiter).await;
                continue;
            }
            Claim::Finished(id) => match take(node, &id).await {
                Ok(()) => return Ok(id),
                // It is being removed, since nobody came for it in time: this call begins anew.
                Err(Error::NotFound { .. }) => continue,
                // It is there and stays: beginning anew would come here again, for as long as the disk is full.
                Err(error) => return Err(error),
            },
            Claim::Taken(id) => {
                let name = format!("{} (attempt {}) of sandbox {}", key.1.name, key.1.attempt, key.0);
                return Err(Error::NameTaken { kind: Kind::Container, name, id });
            }
        };
        let id = node.wait_for_name(CREATE, ANSWER_LIMIT, waiter).await?;
        return take(node, &id).await.map(|()| id);
    }
}

fn not_ready(sandbox: &Sandbox) -> Error {
    Error::WrongState {
        kind: Kind::Sandbox,
        id: sandbox.id().to_owned(),
        state: "not ready",
        needed: "a container can only be created in a ready sandbox",
    }
}

fn check(sandbox: &Sandbox, config: &ContainerConfig) -> Result<(), Error> {
    if config.privileged && !sandbox.identity.config.privileged {
        let reason = "its sandbox is not privileged, so the container cannot be";
        return Err(Error::invalid("config.linux.security_context.privileged", reason));
    }
    config.log_path.as_deref().map_or(Ok(()), log::check)
}

/// Somebody is given the id: from now on it is listed.
async fn take(node: &Arc<Node>, id: &str) -> Result<(), Error> {
    let gone = || Error::NotFound { kind: Kind::Container, id: id.to_owned() };
    let container = node.containers.get(id).ok_or_else(gone)?;
    container.taken.store(true, Ordering::SeqCst);
    if container.state().claimed {
        return Ok(());
    }
    let gone = gone();
    container
        .change(move |state| {
            if state.removing {
                return Err(gone);
            }
            state.claimed = true;
            Ok(())
        })
        .await
}

/// Makes the container in a task that no caller can cancel.
fn begin(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    owner: Owner<ContainerKey, ContainerConfig>,
    config: Arc<ContainerConfig>,
) {
    let progress = node.operations.begin(CREATE, owner.id());
    let span = tracing::info_span!("create", sandbox = sandbox.id(), container = owner.id());
    let (node, sandbox) = (Arc::clone(node), Arc::clone(sandbox));
    let tasks = node.tasks.clone();
    let work = async move {
        let result = make(&node, &sandbox, &owner, config, &progress).await;
        drop(progress);
        match result {
            Ok(container) => {
                let unclaimed = owner.finish(Ok(()));
                if unclaimed.nobody_took_it().await {
                    keep_for_retry(&node, &container).await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "container was not made");
                owner.finish(Err(error));
            }
        }
    };
    tasks.spawn(work.instrument(span));
}

/// Nobody waited for its id: it stays unlisted, else a kubelet would take it for a restart, is given to the retry, and
/// goes when there is none.
async fn keep_for_retry(node: &Arc<Node>, container: &Arc<Container>) {
    let unlisted = Arc::clone(container);
    container.want(move |state| state.claimed = unlisted.taken.load(Ordering::SeqCst)).await;
    tokio::select! {
        () = tokio::time::sleep(KEEP_UNCLAIMED) => {}
        () = container.closing.cancelled() => return,
        () = node.draining.cancelled() => return,
    }
    // Taken between this look and the removal's intent: whoever took it then is told that it is gone, and retries.
    if !container.state().claimed
        && let Err(error) = remove::join(node, container).await
    {
        tracing::warn!(container = container.id(), %error, "container that nobody came for was not removed");
    }
}

async fn make(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    owner: &Owner<ContainerKey, ContainerConfig>,
    config: Arc<ContainerConfig>,
    progress: &Arc<Progress>,
) -> Result<Arc<Container>, Error> {
    let mut making = sandbox.children.join(owner.id()).map_err(|_| not_ready(sandbox))?;
    let mut steps = Steps::new(Arc::clone(progress), sandbox.closing.child_token());
    let (identity, prepared, leases) =
        steps.step("resolve", resolve(node, sandbox, owner.id(), config)).await?;
    let root = node.config.load().root.clone();
    let container = Container::new(
        &root,
        identity,
        ContainerState::default(),
        &sandbox.closing,
        Arc::clone(&node.events),
    );
    let _lock = container.lock.lock().await;
    image_volume::hold(&node.images, &container.identity);
    drop(leases);
    node.containers.insert(container.id().to_owned(), Arc::clone(&container));
    let made = match steps.whole("record", record(sandbox, &container, prepared)).await {
        Ok(()) => commit(&container, &mut making, &mut steps, owner).await,
        Err(error) => Err(error),
    };
    match made {
        Ok(()) => Ok(Arc::clone(&container)),
        Err(error) => {
            owner.undoing();
            match remove::erase(node, &container, progress).await {
                Ok(()) => Err(error),
                Err(failure) => {
                    making.keep();
                    Err(error.then(failure))
                }
            }
        }
    }
}

/// Everything that can be refused is refused here: image, command, user, mounts, capabilities, limits.
async fn resolve(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    id: &str,
    config: Arc<ContainerConfig>,
) -> Result<(ContainerIdentity, Prepared, Vec<crate::image::Lease>), Error> {
    target::check(node, &config.pid)?;
    let lease = node.images.lease(&config.image)?;
    let (volume_images, mut leases): (Vec<_>, Vec<_>) =
        image_volume::find(&node.images, &config)?.into_iter().unzip();
    let unified = node.cgroups.unified();
    let places = Places::new(&node.config.load().root, id);
    let (of, asked, from) = (Arc::clone(sandbox), Arc::clone(&config), Arc::clone(&lease.image));
    let cdi = node.config.load().cdi_dirs.clone();
    let (prepared, volume_images) = blocking::run(move || {
        image_volume::check(&asked, &volume_images)?;
        let sources = Sources { image: &from, volume_images: &volume_images, volumes: &places.volumes() };
        spec::prepare(&of, &asked, &sources, unified, &cdi).map(|prepared| (prepared, volume_images))
    })
    .await?;
    let image = &lease.image;
    let log_path = match (&sandbox.identity.config.log_directory, &config.log_path) {
        (Some(directory), Some(path)) => Some(directory.join(path)),
        (None, _) | (_, None) => None,
    };
    let identity = ContainerIdentity {
        id: id.to_owned(),
        sandbox: sandbox.id().to_owned(),
        created_at: node.clock.now(),
        image_id: image.id.clone(),
        image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
        image_name: image.repo_tags.first().unwrap_or(&config.image).clone(),
        layers: image.layers.clone(),
        cgroup: sandbox.identity.cgroup.join(id),
        log_path,
        stop_signal: spec::stop_signal(&config, &image.config)?,
        user: prepared.user.clone(),
        raw_env: prepared.raw_env.clone(),
        volatile: sandbox.identity.volatile,
        volume_images,
        config,
    };
    leases.push(lease);
    Ok((identity, prepared, leases))
}

async fn record(sandbox: &Sandbox, container: &Arc<Container>, prepared: Prepared) -> Result<(), Error> {
    let root = sandbox.identity.config.user_namespace.map(|own| own.host_id);
    let container = Arc::clone(container);
    blocking::run(move || write(&container.places, &container.identity, &prepared, root)).await
}

/// `root`: who is root in the container, on the host.
fn write(
    places: &Places,
    identity: &ContainerIdentity,
    prepared: &Prepared,
    root: Option<u32>,
) -> Result<(), Error> {
    store::make_private_directory(&places.bundle)?;
    store::write(&places.identity(), identity, Durability::Renamed)?;
    for directory in [places.work(), places.rootfs()] {
        store::make_private_directory(&directory)?;
    }
    make_visible_directory(&places.upper())?;
    if root.is_some() {
        let upper = places.upper();
        std::os::unix::fs::chown(&upper, root, root)
            .map_err(|error| Error::system("give to the pod", upper.display().to_string(), error))?;
    }
    if prepared.volumes > 0 {
        store::make_private_directory(&places.volumes())?;
    }
    for volume in 0..prepared.volumes {
        make_visible_directory(&places.volumes().join(volume.to_string()))?;
    }
    let path = places.spec();
    let system = |error: std::io::Error| Error::system("write", path.display().to_string(), error);
    let json = serde_json::to_vec_pretty(&prepared.spec).map_err(|error| system(error.into()))?;
    std::fs::write(&path, json).map_err(system)
}

/// A directory whose mode is seen inside the container: its root, or what it has at a path that its image lacks.
fn make_visible_directory(path: &Path) -> Result<(), Error> {
    std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o755)
        .create(path)
        .map_err(|error| Error::system("create directory", path.display().to_string(), error))
}

/// The container is there, unless the sandbox was closed meanwhile.
async fn commit(
    container: &Arc<Container>,
    making: &mut Making,
    steps: &mut Steps,
    owner: &Owner<ContainerKey, ContainerConfig>,
) -> Result<(), Error> {
    let times = steps.times().to_vec();
    steps
        .whole("commit", async {
            making.commit().map_err(|_| Error::Closing {
                operation: CREATE.name,
                kind: Kind::Container,
                id: container.id().to_owned(),
                step: "commit",
            })?;
            // Looked at last: who has left by now is not there to be given it, and it must not be listed.
            let claimed = owner.is_wanted();
            container.record(ContainerFact::Created { claimed, steps: times }, "it can be created once").await
        })
        .await
}
