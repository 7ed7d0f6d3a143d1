//! Names, joining and races: a retry finds its first try, and nothing is reserved for ever.

use cove_e2e::Outcome;
use k8s_cri::v1::*;

use crate::ensure::Refused;
use crate::world::World;

cases!(
    gives_the_same_request_the_same_id,
    refuses_a_taken_name_with_its_owner,
    makes_one_pod_of_many_requests,
    frees_a_name_with_its_sandbox,
    stops_a_pod_with_running_containers,
    goes_on_when_the_client_hangs_up,
    runs_ten_pods_at_once,
);

async fn gives_the_same_request_the_same_id(world: &mut World) -> Outcome {
    let config = world.pod("same");
    let id = world.run_pod(&config).await?;
    ensure_eq!(world.run_pod(&config).await?, id);
    let script = world.script("same", "sleep 1000");
    let container = world.create(&id, &config, &script).await?;
    ensure_eq!(world.create(&id, &config, &script).await?, container);
    ensure_eq!((world.pods().await?.len(), world.containers().await?.len()), (1, 1));
    Ok(())
}

async fn refuses_a_taken_name_with_its_owner(world: &mut World) -> Outcome {
    let mut config = world.pod("taken");
    let id = world.run_pod(&config).await?;
    let container = world.create(&id, &config, &world.script("taken", "sleep 1")).await?;
    let error = world.create(&id, &config, &world.script("taken", "sleep 2")).await.refused()?;
    ensure!(error.code() == tonic::Code::AlreadyExists && error.message().contains(&container), "{error:?}");
    config.hostname = "another".into();
    let error = world.try_run_pod(&config).await.refused()?;
    ensure!(error.code() == tonic::Code::AlreadyExists && error.message().contains(&id), "{error:?}");
    Ok(())
}

async fn makes_one_pod_of_many_requests(world: &mut World) -> Outcome {
    let config = world.pod("many");
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let mut cri = world.cri.clone();
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        requests.spawn(async move { cri.runtime.run_pod_sandbox(request).await });
    }
    let mut ids = std::collections::BTreeSet::new();
    while let Some(answer) = requests.join_next().await {
        ids.insert(answer??.into_inner().pod_sandbox_id);
    }
    ensure_eq!((ids.len(), world.pods().await?.len()), (1, 1));
    Ok(())
}

async fn frees_a_name_with_its_sandbox(world: &mut World) -> Outcome {
    let config = world.pod("again");
    let first = world.run_pod(&config).await?;
    world.stop_pod(&first).await?;
    // A sandbox that is not ready owns no name.
    let second = world.run_pod(&config).await?;
    ensure!(first != second, "{first}");
    let states: Vec<_> = world.pods().await?.into_iter().map(|pod| (pod.id.clone(), pod.state())).collect();
    ensure!(states.contains(&(first.clone(), PodSandboxState::SandboxNotready)), "{states:?}");
    ensure!(states.contains(&(second, PodSandboxState::SandboxReady)), "{states:?}");
    world.remove_pod(&first).await?;
    Ok(())
}

async fn stops_a_pod_with_running_containers(world: &mut World) -> Outcome {
    let config = world.pod("stopped");
    let id = world.run_pod(&config).await?;
    let container =
        world.launch(&id, &config, &world.script("deaf", "trap '' TERM; while :; do sleep 1; done")).await?;
    world.stop_pod(&id).await?;
    let status = world.status(&container).await?;
    ensure_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
    let error = world.create(&id, &config, &world.script("late", "true")).await.refused()?;
    ensure_eq!(error.code(), tonic::Code::FailedPrecondition);
    Ok(())
}

async fn goes_on_when_the_client_hangs_up(world: &mut World) -> Outcome {
    let config = world.pod("hung-up");
    let mut cri = world.cri.clone();
    let mut request =
        tonic::Request::new(RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() });
    request.set_timeout(std::time::Duration::from_millis(1));
    // Whether it was in time or not, the retry finds one pod.
    drop(cri.runtime.run_pod_sandbox(request).await);
    let id = world.run_pod(&config).await?;
    ensure_eq!(world.pods().await?.len(), 1);
    ensure_eq!(world.pod_status(&id).await?.state(), PodSandboxState::SandboxReady);
    Ok(())
}

async fn runs_ten_pods_at_once(world: &mut World) -> Outcome {
    let mut running = tokio::task::JoinSet::new();
    for n in 0..10 {
        let mut cri = world.cri.clone();
        let config = world.pod(&format!("ten-{n}"));
        let container = world.script("talk", &format!("echo pod {n}; sleep 1000"));
        running.spawn(async move {
            let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
            let id = cri.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
            let request = CreateContainerRequest {
                pod_sandbox_id: id.clone(),
                config: Some(container),
                sandbox_config: Some(config),
            };
            let container = cri.runtime.create_container(request).await?.into_inner().container_id;
            let request = StartContainerRequest { container_id: container.clone() };
            cri.runtime.start_container(request).await?;
            Ok::<_, tonic::Status>(container)
        });
    }
    while let Some(container) = running.join_next().await {
        let status = world.status(&container??).await?;
        ensure_eq!(status.state(), ContainerState::ContainerRunning);
    }
    Ok(())
}
