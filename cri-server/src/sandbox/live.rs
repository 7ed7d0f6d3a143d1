//! A sandbox as the daemon holds it: its record, its published view, its locks and its shim.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::children::Children;
use super::config::SandboxName;
use super::record::{Places, SandboxIdentity};
use super::state::{SandboxFact, SandboxState, Stage};
use super::view::SandboxView;
use crate::blocking;
use crate::detach::Flight;
use crate::error::{Error, Kind};
use crate::events::{Event, Events};
use crate::network::Attachment;
use crate::shim::Shim;
use crate::store::{Durability, Stored};

/// How long a call may wait for a shim that is found again after a restart: with 500 pods on a busy host it takes seconds.
const ADOPTION_LIMIT: Duration = Duration::from_secs(10);

/// A sandbox.
#[derive(Debug)]
pub struct Sandbox {
    /// What it is.
    pub identity: SandboxIdentity,
    /// Where its files are.
    pub places: Places,
    state: Stored<SandboxState>,
    view: ArcSwapOption<SandboxView>,
    changed: watch::Sender<()>,
    attachment: ArcSwapOption<Attachment>,
    events: Arc<Events>,
    /// RunPodSandbox is done with it, well or badly: it may be seen.
    listed: AtomicBool,
    /// Run and Remove hold it; Stop does not.
    pub lock: tokio::sync::Mutex<()>,
    /// StopPodSandbox under way.
    pub stopping: Flight<()>,
    /// RemovePodSandbox under way.
    pub removing: Flight<()>,
    /// Set by whoever wants it gone: what is unfinished gives up at its current wait.
    pub closing: CancellationToken,
    /// Its containers.
    pub children: Arc<Children>,
    /// Its shim, while it lives.
    pub shim: ArcSwapOption<Shim>,
}

impl Sandbox {
    /// A sandbox that is not on disk yet, or was found there.
    pub fn new(
        root: &Path,
        state_root: &Path,
        identity: SandboxIdentity,
        state: SandboxState,
        attachment: Option<Attachment>,
        events: Arc<Events>,
    ) -> Arc<Self> {
        let places = Places::new(root, state_root, &identity.id);
        let stage = state.stage;
        let sandbox = Self {
            state: Stored::new(places.state(), state),
            view: ArcSwapOption::empty(),
            changed: watch::Sender::new(()),
            attachment: ArcSwapOption::from(attachment.map(Arc::new)),
            events,
            listed: AtomicBool::new(stage != Stage::Making),
            lock: tokio::sync::Mutex::new(()),
            stopping: Flight::default(),
            removing: Flight::default(),
            closing: CancellationToken::new(),
            children: Arc::default(),
            shim: ArcSwapOption::empty(),
            places,
            identity,
        };
        sandbox.publish(&sandbox.state.get());
        Arc::new(sandbox)
    }

    /// From now on it may be seen in lists, as it is at each moment.
    pub fn list(&self) {
        self.listed.store(true, Ordering::SeqCst);
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.identity.id
    }

    /// Its name.
    pub fn name(&self) -> &SandboxName {
        &self.identity.config.name
    }

    /// Its state as of now. Takes no lock.
    pub fn state(&self) -> Arc<SandboxState> {
        self.state.get()
    }

    /// As List and Status see it; none while it is being made. Takes no lock.
    pub fn view(&self) -> Option<Arc<SandboxView>> {
        self.view.load_full()
    }

    /// What the network gave it.
    pub fn attachment(&self) -> Option<Arc<Attachment>> {
        self.attachment.load_full()
    }

    /// It owns its name: being made, or ready, and nobody wants it gone.
    pub fn lives(&self) -> bool {
        let state = self.state.get();
        !state.closing && state.stage != Stage::NotReady
    }

    /// Its shim, or why nothing can be asked of it.
    pub fn shim(&self) -> Result<Arc<Shim>, Error> {
        self.shim.load_full().ok_or_else(|| Error::WrongState {
            kind: Kind::Sandbox,
            id: self.id().to_owned(),
            state: "not ready",
            needed: "its shim must live",
        })
    }

    /// Its shim. After a restart of the daemon a call can come before the shim was found again, and waits for that: a
    /// probe that fails then would have a healthy container restarted.
    pub async fn adopted_shim(&self) -> Result<Arc<Shim>, Error> {
        let mut changed = self.changed.subscribe();
        let found = async {
            while self.shim.load().is_none() && self.state.get().stage == Stage::Ready {
                if changed.changed().await.is_err() {
                    break;
                }
            }
        };
        // Not in time: it is told as it is.
        let _ = tokio::time::timeout(ADOPTION_LIMIT, found).await;
        self.shim()
    }

    /// Its shim is there.
    pub fn has_shim(&self, shim: Arc<Shim>) {
        self.shim.store(Some(shim));
        self.changed.send_replace(());
    }

    /// Writes down what it is, and that it is being made. Blocking.
    pub fn write_first(&self) -> Result<(), Error> {
        crate::store::write(&self.places.identity(), &self.identity, Durability::Renamed)?;
        Ok(self.state.write_again()?)
    }

    /// Records what is about to happen, or is wanted; it is in force once it is on disk. What the state does not
    /// allow is refused.
    pub async fn record(self: &Arc<Self>, fact: SandboxFact, step: &'static str) -> Result<(), Error> {
        let sandbox = Arc::clone(self);
        blocking::run(move || {
            sandbox.state.change(
                Durability::Renamed,
                |state| {
                    *state = state.clone().on(fact).map_err(|_| Error::Closing {
                        operation: "RunPodSandbox",
                        kind: Kind::Sandbox,
                        id: sandbox.identity.id.clone(),
                        step,
                    })?;
                    Ok(())
                },
                |state| sandbox.publish(state),
            )
        })
        .await
    }

    /// Applies what has happened: in force at once. An error says that it is not on disk.
    pub async fn apply(self: &Arc<Self>, fact: SandboxFact) -> Result<(), Error> {
        let sandbox = Arc::clone(self);
        blocking::run(move || {
            sandbox.state.happened(
                |state| {
                    if let Ok(next) = state.clone().on(fact) {
                        *state = next;
                    }
                },
                |state| sandbox.publish(state),
            )
        })
        .await?;
        Ok(())
    }

    /// Writes its state, if the disk could not take it when it changed.
    pub async fn write_again(self: &Arc<Self>) -> Result<(), Error> {
        let sandbox = Arc::clone(self);
        Ok(blocking::run(move || sandbox.state.write_again()).await?)
    }

    /// Applies what must not fail for want of disk space: what is not on disk is found out again by recovery.
    pub async fn apply_anyway(self: &Arc<Self>, fact: SandboxFact) {
        if let Err(error) = self.apply(fact).await {
            tracing::warn!(sandbox = self.id(), %error, "the sandbox's state is not on disk");
        }
    }

    /// It is seen as it is, though nothing has changed: a Run that could not undo itself was not ready before it failed.
    pub async fn show(self: &Arc<Self>) {
        self.list();
        let sandbox = Arc::clone(self);
        blocking::run(move || sandbox.state.publish(|state| sandbox.publish(state))).await;
    }

    /// Keeps what the network is about to give it, or has given it. The former is synced by [`Self::sync_attachment`] if a
    /// power loss must not lose it; the latter takes the place of a synced record, and is synced before it does.
    pub async fn attach(
        self: &Arc<Self>,
        attachment: Attachment,
        durability: Durability,
    ) -> Result<(), Error> {
        let (path, value) = (self.places.attachment(), attachment.clone());
        self.attachment.store(Some(Arc::new(attachment)));
        blocking::run(move || crate::store::write(&path, &value, durability)).await?;
        Ok(())
    }

    /// Syncs the attachment's record, beside the attaching itself.
    pub async fn sync_attachment(&self) -> Result<(), Error> {
        let path = self.places.attachment();
        blocking::run(move || crate::store::sync(&path)).await?;
        Ok(())
    }

    /// The network took back what it gave.
    pub async fn detached(&self) -> Result<(), Error> {
        let path = self.places.attachment();
        blocking::run(move || crate::store::erase(&path)).await?;
        self.attachment.store(None);
        Ok(())
    }

    /// Waits until the state says so.
    pub async fn wait_until(&self, holds: impl Fn(&SandboxState) -> bool) {
        let mut changed = self.changed.subscribe();
        while !holds(&self.state.get()) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn publish(&self, state: &SandboxState) {
        if state.stage != Stage::Making && self.listed.load(Ordering::SeqCst) {
            let attachment = self.attachment.load_full();
            let ready = state.stage == Stage::Ready;
            let view = Arc::new(SandboxView {
                id: self.identity.id.clone(),
                config: Arc::clone(&self.identity.config),
                created_at: self.identity.created_at,
                ready,
                addresses: match &attachment {
                    Some(attachment) if ready => attachment.addresses(),
                    Some(_) | None => Vec::new(),
                },
                pid: state.shim.map(|process| process.pid),
                netns: self.identity.netns.clone().filter(|_| !state.down),
                steps: state.steps.clone(),
                attachment,
                reason: state.reason.clone().into_owned(),
            });
            self.view.store(Some(Arc::clone(&view)));
            self.events.publish(Event::Sandbox(view));
        }
        self.changed.send_replace(());
    }
}
