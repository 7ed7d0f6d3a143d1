//! GetContainerEvents: a kubelet that listens instead of asking.

use std::collections::BTreeMap;
use std::time::Duration;

use cove_e2e::kubelet::Kubelet;
use cove_e2e::{Outcome, client};
use k8s_cri::v1::*;

use crate::world::World;

cases!(tells_each_step_of_a_pod_in_order, who_does_not_listen_harms_nobody);

/// Containers that are made and removed: two events each, more than a client may be behind (4096) and than lie in
/// buffers between.
const MANY: usize = 2400;
/// Clients that make them.
const CLIENTS: usize = 8;

async fn tells_each_step_of_a_pod_in_order(world: &mut World) -> Outcome {
    // What is there before is not told.
    let old = world.pod("old");
    world.run_pod(&old).await?;
    let mut events = world.cri.runtime.get_container_events(GetEventsRequest {}).await?.into_inner();
    let config = world.pod("told");
    let id = world.run_pod(&config).await?;
    let container = world.launch(&id, &config, &world.script("told", "exit 3")).await?;
    world.exited(&container).await?;
    world.remove(&container).await?;
    world.stop_pod(&id).await?;
    world.remove_pod(&id).await?;
    use ContainerEventType::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
        ContainerStoppedEvent as Stopped,
    };
    let expected = [
        (&id, Created),
        (&id, Started),
        (&container, Created),
        (&container, Started),
        (&container, Stopped),
        (&container, Deleted),
        (&id, Stopped),
        (&id, Deleted),
    ];
    let mut last = 0;
    for (of, kind) in expected {
        let event = tokio::time::timeout(Duration::from_secs(10), events.message())
            .await
            .map_err(|_| format!("{kind:?} of {of} was not told"))??
            .ok_or("the stream ended")?;
        ensure_eq!((&event.container_id, event.container_event_type()), (of, kind));
        ensure!(event.created_at > last, "times increase");
        last = event.created_at;
        let pod = event.pod_sandbox_status.ok_or("no pod in the event")?;
        ensure_eq!((pod.id, pod.metadata), (id.clone(), config.metadata.clone()));
    }
    Ok(())
}

async fn who_does_not_listen_harms_nobody(world: &mut World) -> Outcome {
    let config = world.pod("much-told");
    let id = world.run_pod(&config).await?;
    // Not on the connection of the others, whose window it would not share, but as another process would.
    let mut other = match &world.place {
        Some(place) => client::connect(&place.socket()).await?,
        None => world.cri.clone(),
    };
    let mut slow = other.runtime.get_container_events(GetEventsRequest {}).await?.into_inner();
    let mut quick = world.cri.runtime.get_container_events(GetEventsRequest {}).await?.into_inner();
    let listener = tokio::spawn(async move {
        let mut told: BTreeMap<String, Vec<ContainerEventType>> = BTreeMap::new();
        let mut deleted = 0;
        while deleted < MANY {
            let next = tokio::time::timeout(Duration::from_secs(30), quick.message()).await;
            let event = next.map_err(|_| "an event was not told")??.ok_or("the stream ended")?;
            let kind = event.container_event_type();
            deleted += usize::from(kind == ContainerEventType::ContainerDeletedEvent);
            told.entry(event.container_id).or_default().push(kind);
        }
        Outcome::Ok(told)
    });
    let mut makers = Vec::new();
    for maker in 0..CLIENTS {
        let (mut kubelet, id, config) = (Kubelet(world.cri.clone()), id.clone(), config.clone());
        let container = world.script(&format!("made-{maker}"), "true");
        makers.push(tokio::spawn(async move {
            for _ in 0..MANY / CLIENTS {
                let made = kubelet.create(&id, &config, &container).await?;
                kubelet.remove(&made).await?;
            }
            Outcome::Ok(())
        }));
    }
    for maker in makers {
        maker.await??;
    }
    let told = listener.await??;
    let expected = [ContainerEventType::ContainerCreatedEvent, ContainerEventType::ContainerDeletedEvent];
    let wrong = told.iter().find(|(_, kinds)| **kinds != expected);
    ensure!(told.len() == MANY && wrong.is_none(), "of {} containers {wrong:?}", told.len());
    // Who did not read is told that it missed something, after what it can still be given.
    let mut read = 0;
    let end = loop {
        match tokio::time::timeout(Duration::from_secs(30), slow.message()).await {
            Ok(Ok(Some(_))) => read += 1,
            Ok(Err(status)) => break status,
            other => return Err(format!("after {read} events {other:?}").into()),
        }
    };
    ensure_eq!(end.code(), tonic::Code::ResourceExhausted);
    ensure!(read < 2 * MANY, "it missed nothing");
    // It may listen anew.
    let mut again = other.runtime.get_container_events(GetEventsRequest {}).await?.into_inner();
    world.create(&id, &config, &world.script("last", "true")).await?;
    let next = tokio::time::timeout(Duration::from_secs(30), again.message()).await;
    let event = next.map_err(|_| "an event was not told")??.ok_or("the stream ended")?;
    ensure_eq!(event.container_event_type(), ContainerEventType::ContainerCreatedEvent);
    Ok(())
}
