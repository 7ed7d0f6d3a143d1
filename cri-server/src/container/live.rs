//! A container as the daemon holds it: its record, its published view, its locks and its process.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use cove_runtime::protocol::Failure;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::config::Resources;
use super::record::{ContainerIdentity, Places};
use super::state::{ContainerFact, ContainerState, Stage};
use super::view::ContainerView;
use crate::blocking;
use crate::detach::Flight;
use crate::error::{Error, Kind};
use crate::events::{Event, Events};
use crate::shim::ProcessId;
use crate::step::StepTime;
use crate::store::{Durability, Stored};

/// The name of a container: that of its sandbox's id, and its own.
pub type ContainerKey = (String, super::config::ContainerName);

/// What StartContainer waits for.
type StartResult = oneshot::Sender<Result<(), Failure>>;

/// A container.
#[derive(Debug)]
pub struct Container {
    /// What it is.
    pub identity: ContainerIdentity,
    /// Where its files are.
    pub places: Places,
    state: Stored<ContainerState>,
    view: ArcSwapOption<ContainerView>,
    changed: watch::Sender<()>,
    events: Arc<Events>,
    /// Create, Start and Remove hold it; Stop does not.
    pub lock: tokio::sync::Mutex<()>,
    /// UpdateContainerResources holds it, and Start while it sets limits.
    pub update: tokio::sync::Mutex<()>,
    /// StartContainer under way.
    pub starting: Flight<()>,
    /// RemoveContainer under way.
    pub removing: Flight<()>,
    /// The one task that ends it while somebody wants it to end.
    pub ending: Flight<()>,
    /// Set by whoever wants it to end: an unfinished Create or Start gives up at its current wait.
    pub closing: CancellationToken,
    /// Somebody was given its id by this daemon.
    pub taken: AtomicBool,
    pidfd: ArcSwapOption<OwnedFd>,
    start_result: Mutex<Option<StartResult>>,
    in_start: AtomicBool,
}

impl Container {
    /// A container that is not on disk yet, or was found there. `closing` is the sandbox's, of which its own is a
    /// child.
    pub fn new(
        root: &Path,
        identity: ContainerIdentity,
        state: ContainerState,
        closing: &CancellationToken,
        events: Arc<Events>,
    ) -> Arc<Self> {
        let places = Places::new(root, &identity.id);
        let container = Self {
            state: Stored::new(places.state(), state),
            view: ArcSwapOption::empty(),
            changed: watch::Sender::new(()),
            events,
            lock: tokio::sync::Mutex::new(()),
            update: tokio::sync::Mutex::new(()),
            starting: Flight::default(),
            removing: Flight::default(),
            ending: Flight::default(),
            closing: closing.child_token(),
            taken: AtomicBool::new(false),
            pidfd: ArcSwapOption::empty(),
            start_result: Mutex::default(),
            in_start: AtomicBool::new(false),
            places,
            identity,
        };
        container.publish(&container.state.get());
        Arc::new(container)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.identity.id
    }

    /// Its name.
    pub fn key(&self) -> ContainerKey {
        (self.identity.sandbox.clone(), self.identity.config.name.clone())
    }

    /// Its state as of now. Takes no lock.
    pub fn state(&self) -> Arc<ContainerState> {
        self.state.get()
    }

    /// Its limits: as it was made with, or as they were changed to. Takes no lock.
    pub fn resources(&self) -> Resources {
        self.state.get().resources.clone().unwrap_or_else(|| self.identity.config.resources.clone())
    }

    /// As List and Status see it; none while it is being made or nobody has its id. Takes no lock.
    pub fn view(&self) -> Option<Arc<ContainerView>> {
        self.view.load_full()
    }

    /// Changes its state; in force once it is on disk.
    pub async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut ContainerState) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let container = Arc::clone(self);
        blocking::run(move || {
            container.state.change(Durability::Renamed, change, |state| container.publish(state))
        })
        .await
    }

    /// Records what is about to happen. What the state does not allow is refused, and `needed` says what it needs.
    pub async fn record(self: &Arc<Self>, fact: ContainerFact, needed: &'static str) -> Result<(), Error> {
        let refused = |state: &ContainerState, id: &str| Error::WrongState {
            kind: Kind::Container,
            id: id.to_owned(),
            state: state.stage.word(),
            needed,
        };
        let id = self.id().to_owned();
        self.change(move |state| {
            *state = state.clone().on(fact).map_err(|_| refused(state, &id))?;
            Ok(())
        })
        .await
    }

    /// Applies what has happened: in force at once. An error says that it is not on disk.
    pub async fn apply(self: &Arc<Self>, fact: ContainerFact) -> Result<(), Error> {
        let container = Arc::clone(self);
        blocking::run(move || {
            container.state.happened(
                |state| match state.clone().on(fact) {
                    Ok(next) => *state = next,
                    Err(refused) => {
                        tracing::debug!(container = container.id(), ?refused, "fact does not fit")
                    }
                },
                |state| container.publish(state),
            )
        })
        .await?;
        Ok(())
    }

    /// Writes its state, if the disk could not take it when it changed.
    pub async fn write_again(self: &Arc<Self>) -> Result<(), Error> {
        let container = Arc::clone(self);
        Ok(blocking::run(move || container.state.write_again()).await?)
    }

    /// Applies what must not fail for want of disk space: what is not on disk is found out again by recovery.
    pub async fn apply_anyway(self: &Arc<Self>, fact: ContainerFact) {
        if let Err(error) = self.apply(fact).await {
            tracing::warn!(container = self.id(), %error, "the container's state is not on disk");
        }
    }

    /// Writes down what is wanted of it. It must not fail for want of disk space: see [`Self::apply_anyway`].
    pub async fn want(self: &Arc<Self>, wish: impl FnOnce(&mut ContainerState) + Send + 'static) {
        let container = Arc::clone(self);
        let written =
            blocking::run(move || container.state.happened(wish, |state| container.publish(state))).await;
        if let Err(error) = written {
            tracing::warn!(container = self.id(), %error, "what is wanted of the container is not on disk");
        }
    }

    /// Keeps how long the steps of its start took, unless it is being removed already.
    pub async fn note_steps(self: &Arc<Self>, times: Vec<StepTime>) {
        let container = Arc::clone(self);
        let noted = blocking::run(move || {
            container.state.happened(|state| state.steps.extend(times), |state| container.publish(state))
        });
        if let Err(error) = noted.await {
            tracing::debug!(container = self.id(), %error, "the durations of a start are not on disk");
        }
    }

    /// Takes hold of its first process: by the descriptor that came with the news of it, else by its pid.
    pub fn hold(&self, process: ProcessId, pidfd: Option<OwnedFd>) {
        let pidfd = pidfd.or_else(|| {
            let pidfd = pidfd_open(Pid::from_raw(process.pid)?, PidfdFlags::empty()).ok()?;
            // Looked at after it was opened: a later process of this pid is not ours.
            process.is_alive().is_ok_and(|alive| alive).then_some(pidfd)
        });
        self.pidfd.store(pidfd.map(Arc::new));
    }

    /// Its first process is gone.
    pub fn release(&self) {
        self.pidfd.store(None);
    }

    /// Signals its first process by pidfd: false if there is none to signal it by, or it is gone.
    pub fn signal(&self, signal: i32) -> std::io::Result<bool> {
        let Some(pidfd) = self.pidfd.load_full() else { return Ok(false) };
        match cove_runtime::process::signal(pidfd.as_fd(), signal) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Where the result of the start that is about to be asked for will come.
    pub fn expect_start(&self) -> oneshot::Receiver<Result<(), Failure>> {
        let (sender, receiver) = oneshot::channel();
        self.in_start.store(true, Ordering::SeqCst);
        *self.start_result.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// This daemon is starting it.
    pub fn is_starting(&self) -> bool {
        self.in_start.load(Ordering::SeqCst)
    }

    /// Nobody waits for a start any more.
    pub fn start_is_over(&self) {
        self.start_result.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.in_start.store(false, Ordering::SeqCst);
        self.changed.send_replace(());
    }

    /// The start that was asked for came to an end.
    pub fn started(&self, result: Result<(), Failure>) {
        if let Some(waiting) = self.start_result.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // StartContainer may have given up meanwhile.
            let _ = waiting.send(result);
        }
    }

    /// Waits until the state says so.
    pub async fn wait_until(&self, holds: impl Fn(&ContainerState) -> bool) {
        let mut changed = self.changed.subscribe();
        while !holds(&self.state.get()) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// A change of its state, or of what is wanted of it.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn publish(&self, state: &ContainerState) {
        if state.stage != Stage::Creating && state.claimed {
            let identity = &self.identity;
            let view = Arc::new(ContainerView {
                id: identity.id.clone(),
                sandbox: identity.sandbox.clone(),
                config: Arc::clone(&identity.config),
                image_id: identity.image_id.clone(),
                image_ref: identity.image_ref.clone(),
                image_name: identity.image_name.clone(),
                volume_images: identity
                    .volume_images
                    .iter()
                    .map(|image| (image.mount, image.image_id.clone()))
                    .collect(),
                created_at: identity.created_at,
                phase: state.phase(),
                user: state.user.clone(),
                log_path: identity.log_path.clone(),
                pid: state.process().map(|process| process.pid),
                stop_signal: identity.stop_signal,
                resources: state.resources.clone().unwrap_or_else(|| identity.config.resources.clone()),
                steps: state.steps.clone(),
                bundle: self.places.bundle.clone(),
            });
            self.view.store(Some(Arc::clone(&view)));
            self.events.publish(Event::Container(view));
        } else {
            self.view.store(None);
        }
        self.changed.send_replace(());
    }
}
