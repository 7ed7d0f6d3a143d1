//! GetContainerEvents: a kubelet that listens instead of asking.

use std::time::Duration;

use cove_e2e::Outcome;
use k8s_cri::v1::*;

use crate::world::World;

cases!(tells_each_step_of_a_pod_in_order);

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
