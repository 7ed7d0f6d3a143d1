//! GetContainerEvents: what happens to pods and containers, as it happens, to each client at its own pace.
//!
//! Nothing waits for a client: one that falls too far behind is told so and its stream ends, after which a kubelet lists
//! everything anew.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tonic::Status;

use super::convert::status;
use super::wire::{ContainerEventResponse, ContainerEventType as Kind};
use crate::container::list::{ContainerFilter, PhaseFilter};
use crate::container::{self, ContainerView};
use crate::events::Event;
use crate::node::Node;
use crate::sandbox::{self, SandboxView};

/// What a client reads.
pub(super) type EventStream = Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

/// Everything from now on.
pub(super) fn stream(node: &Arc<Node>) -> EventStream {
    // Subscribed before the look at what is there: what happens between is either seen as there, or told.
    let receiver = node.events.subscribe();
    let mut told = Told::default();
    for view in container::list::list(node, &ContainerFilter::default()) {
        told.container(&view);
    }
    for view in sandbox::list::list(node, &sandbox::list::SandboxFilter::default()) {
        told.sandbox(&view);
    }
    let client = Client { node: Arc::clone(node), receiver, told, waiting: VecDeque::new() };
    Box::pin(stream::unfold(Some(client), |client| async move {
        let mut client = client?;
        match client.next().await {
            Ok(Some(event)) => Some((Ok(event), Some(client))),
            Ok(None) => None,
            // The stream's last word.
            Err(status) => Some((Err(status), None)),
        }
    }))
}

struct Client {
    node: Arc<Node>,
    receiver: Receiver<Event>,
    told: Told,
    waiting: VecDeque<ContainerEventResponse>,
}

impl Client {
    /// The next event; none once the daemon ends.
    async fn next(&mut self) -> Result<Option<ContainerEventResponse>, Status> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(Some(event));
            }
            let event = tokio::select! {
                event = self.receiver.recv() => event,
                () = self.node.draining.cancelled() => return Ok(None),
            };
            match event {
                Ok(event) => self.take(&event),
                Err(RecvError::Closed) => return Ok(None),
                Err(RecvError::Lagged(lost)) => return Err(overflow(lost)),
            }
        }
    }

    fn take(&mut self, event: &Event) {
        let (sandbox, id, kinds) = match event {
            Event::Container(view) => (view.sandbox.as_str(), view.id.as_str(), self.told.container(view)),
            Event::Sandbox(view) => (view.id.as_str(), view.id.as_str(), self.told.sandbox(view)),
            Event::ContainerRemoved(view) => {
                (view.sandbox.as_str(), view.id.as_str(), self.told.removed(&view.id))
            }
            Event::SandboxRemoved(view) => (view.id.as_str(), view.id.as_str(), self.told.removed(&view.id)),
        };
        for kind in kinds {
            let message = self.message(sandbox, id, kind, event);
            self.waiting.push_back(message);
        }
    }

    /// With the pod and its containers as they are now: what a kubelet would ask for next.
    fn message(&self, sandbox: &str, id: &str, kind: Kind, event: &Event) -> ContainerEventResponse {
        let pod = match event {
            Event::SandboxRemoved(view) => Some(Arc::clone(view)),
            Event::Sandbox(view) => Some(Arc::clone(view)),
            Event::Container(_) | Event::ContainerRemoved(_) => {
                self.node.sandboxes.get(sandbox).and_then(|sandbox| sandbox.view())
            }
        };
        let of_pod = ContainerFilter { sandbox: Some(sandbox.to_owned()), ..ContainerFilter::default() };
        let containers = container::list::list(&self.node, &of_pod);
        ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: self.node.clock.now(),
            pod_sandbox_status: pod.map(|view| status::sandbox(&view)),
            containers_statuses: containers.iter().map(|view| status::container(view)).collect(),
        }
    }
}

fn overflow(lost: u64) -> Status {
    Status::resource_exhausted(format!("{lost} events were lost, since they were not read: list anew"))
}

/// How far each object is told of: published state repeats itself, events do not.
#[derive(Debug, Default)]
struct Told(BTreeMap<String, Kind>);

impl Told {
    /// What is new of a container.
    fn container(&mut self, view: &ContainerView) -> Vec<Kind> {
        let now = match PhaseFilter::of(&view.phase) {
            PhaseFilter::Created => Kind::ContainerCreatedEvent,
            PhaseFilter::Running => Kind::ContainerStartedEvent,
            PhaseFilter::Exited => Kind::ContainerStoppedEvent,
            // Its record could not be read: nothing has happened to it.
            PhaseFilter::Unknown => return Vec::new(),
        };
        self.up_to(&view.id, now)
    }

    /// What is new of a sandbox: it is created and started at once.
    fn sandbox(&mut self, view: &SandboxView) -> Vec<Kind> {
        self.up_to(
            &view.id,
            if view.ready { Kind::ContainerStartedEvent } else { Kind::ContainerStoppedEvent },
        )
    }

    fn removed(&mut self, id: &str) -> Vec<Kind> {
        self.0.remove(id);
        vec![Kind::ContainerDeletedEvent]
    }

    /// Every kind after the last that was told: none is left out, none is told twice. What never started stops without
    /// having started.
    fn up_to(&mut self, id: &str, now: Kind) -> Vec<Kind> {
        let last = self.0.insert(id.to_owned(), now);
        let after = |kind: Kind| last.is_none_or(|last| i32::from(last) < i32::from(kind));
        let mut kinds: Vec<Kind> = Vec::new();
        if last.is_none() {
            kinds.push(Kind::ContainerCreatedEvent);
        }
        if after(now) && !kinds.contains(&now) {
            kinds.push(now);
        } else if let Some(last) = last.filter(|last| i32::from(*last) > i32::from(now)) {
            // What was published late is older than what was told.
            self.0.insert(id.to_owned(), last);
        }
        kinds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{BACKLOG, Events};

    use Kind::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
        ContainerStoppedEvent as Stopped,
    };

    #[test]
    fn each_step_is_told_once() {
        let mut told = Told::default();
        let steps: [(Kind, &[Kind]); 6] = [
            (Created, &[Created]),
            (Created, &[]),
            (Started, &[Started]),
            (Created, &[]),
            (Stopped, &[Stopped]),
            (Started, &[]),
        ];
        for (now, new) in steps {
            assert_eq!(told.up_to("a", now), new, "{now:?}");
        }
        assert_eq!(told.up_to("sandbox", Started), [Created, Started]);
        assert_eq!(told.removed("a"), [Deleted]);
        assert!(!told.0.contains_key("a"));
    }

    #[tokio::test]
    async fn one_who_does_not_read_is_told_so_and_harms_nobody() {
        let events = Events::default();
        let (mut slow, mut quick) = (events.subscribe(), events.subscribe());
        let view = Arc::new(crate::api::convert::status::tests::container_view(
            crate::container::ContainerPhase::Created,
        ));
        for _ in 0..=BACKLOG {
            events.publish(Event::Container(Arc::clone(&view)));
            assert!(quick.recv().await.is_ok(), "who reads loses nothing");
        }
        assert!(matches!(slow.recv().await, Err(RecvError::Lagged(1))));
        assert_eq!(overflow(1).code(), tonic::Code::ResourceExhausted);
    }
}
