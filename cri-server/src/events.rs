//! What happened to sandboxes and containers, in order, for whoever listens. A slow listener loses events and is
//! told how many; nothing ever waits for one.

use std::sync::Arc;

use tokio::sync::broadcast;

use crate::container::ContainerView;
use crate::sandbox::SandboxView;

/// Events that a listener may be behind: a kubelet that restarts 1,000 pods is told four things of each.
pub(crate) const BACKLOG: usize = 4096;

/// What happened, with the state that was published just before.
#[derive(Debug, Clone)]
pub enum Event {
    /// A sandbox changed.
    Sandbox(Arc<SandboxView>),
    /// A sandbox is gone.
    SandboxRemoved(Arc<SandboxView>),
    /// A container changed.
    Container(Arc<ContainerView>),
    /// A container is gone.
    ContainerRemoved(Arc<ContainerView>),
}

/// Where events are sent.
#[derive(Debug)]
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Events {
    /// Tells whoever listens.
    pub fn publish(&self, event: Event) {
        match &event {
            Event::Sandbox(view) => {
                tracing::debug!(
                    sandbox = view.id,
                    ready = view.ready,
                    reason = view.reason,
                    "sandbox changed"
                );
            }
            Event::SandboxRemoved(view) => tracing::debug!(sandbox = view.id, "sandbox removed"),
            Event::Container(view) => {
                tracing::debug!(sandbox = view.sandbox, container = view.id, phase = ?view.phase, "container changed");
            }
            Event::ContainerRemoved(view) => {
                tracing::debug!(sandbox = view.sandbox, container = view.id, "container removed");
            }
        }
        // An error says that nobody listens.
        let _ = self.0.send(event);
    }

    /// Everything that happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
