//! What containers and pods use, as a kubelet and crictl read it.

use std::time::Duration;

use cove_e2e::crictl::Crictl;
use cove_e2e::{Outcome, pod, wait};
use k8s_cri::v1::*;

use crate::ensure::Refused;
use crate::world::{SOON, World};

cases!(
    tells_what_a_container_uses,
    tells_what_a_pod_uses,
    lists_what_runs_and_nothing_else,
    measures_the_writable_layer,
    tells_metrics_as_cadvisor_does,
    lists_the_pods_that_a_filter_names,
    is_read_by_crictl,
);

async fn usage(world: &mut World, id: &str) -> Result<ContainerStats, tonic::Status> {
    let request = ContainerStatsRequest { container_id: id.into() };
    let response = world.cri.runtime.container_stats(request).await?.into_inner();
    response.stats.ok_or_else(|| tonic::Status::internal("no stats"))
}

async fn list(world: &mut World, filter: Option<ContainerStatsFilter>) -> Outcome<Vec<String>> {
    let request = ListContainerStatsRequest { filter };
    let stats = world.cri.runtime.list_container_stats(request).await?.into_inner().stats;
    Ok(stats.into_iter().filter_map(|stats| Some(stats.attributes?.id)).collect())
}

fn value(value: Option<UInt64Value>) -> Outcome<u64> {
    Ok(value.ok_or("a figure is missing")?.value)
}

async fn tells_what_a_container_uses(world: &mut World) -> Outcome {
    let config = world.pod("usage");
    let id = world.run_pod(&config).await?;
    // 30 MiB in memory that is charged to it, and a CPU that is busy.
    let script =
        "dd if=/dev/zero of=/dev/shm/fill bs=1M count=30 2>/dev/null; echo filled; while :; do :; done";
    let mut container = world.script("busy", script);
    pod::resources(&mut container).memory_limit_in_bytes = 100 << 20;
    container.labels.insert("a".into(), "b".into());
    let container = world.launch(&id, &config, &container).await?;
    world.wrote(&container, "filled").await?;
    let first = usage(world, &container).await?;
    let attributes = first.attributes.ok_or("no attributes")?;
    ensure_eq!((attributes.id.as_str(), attributes.labels["a"].as_str()), (container.as_str(), "b"));
    ensure_eq!(attributes.metadata.ok_or("no name")?.name, "busy");
    let memory = first.memory.ok_or("no memory")?;
    let (set, used) = (value(memory.working_set_bytes)?, value(memory.usage_bytes)?);
    ensure!(set >= 30 << 20 && set <= used && used <= 100 << 20, "{set} {used}");
    ensure_eq!(value(memory.available_bytes)?, (100 << 20) - set);
    ensure!(value(memory.page_faults)? > 0, "it ran, so it faulted");
    let before = first.cpu.ok_or("no cpu")?;
    let runtime = world.cri.clone();
    // Until more CPU time was used, and the time between two readings is long enough to tell a rate.
    let after = wait::until_async("CPU time to pass", SOON, || {
        let mut runtime = runtime.clone();
        let request = ContainerStatsRequest { container_id: container.clone() };
        async move {
            let stats = runtime.runtime.container_stats(request).await?.into_inner().stats;
            Ok(stats.and_then(|stats| stats.cpu).filter(|cpu| cpu.usage_nano_cores.is_some()))
        }
    })
    .await?;
    ensure!(after.timestamp > before.timestamp, "a later reading has a later time");
    let ran = value(after.usage_core_nano_seconds)? - value(before.usage_core_nano_seconds)?;
    let cores = value(after.usage_nano_cores)?;
    ensure!(ran > 0 && cores > 0 && cores < 64_000_000_000, "{ran} ns, {cores}");
    let unknown = usage(world, &"f".repeat(64)).await.refused()?;
    ensure_eq!(unknown.code(), tonic::Code::NotFound);
    Ok(())
}

async fn tells_what_a_pod_uses(world: &mut World) -> Outcome {
    let config = world.pod("pod-usage");
    let id = world.run_pod(&config).await?;
    let container = world.launch(&id, &config, &world.script("idle", "sleep 1000")).await?;
    let request = PodSandboxStatsRequest { pod_sandbox_id: id.clone() };
    let stats = world.cri.runtime.pod_sandbox_stats(request.clone()).await?.into_inner().stats;
    let stats = stats.ok_or("no stats")?;
    ensure_eq!(stats.attributes.clone().ok_or("no attributes")?.metadata, config.metadata);
    let linux = stats.linux.ok_or("no linux")?;
    let ids: Vec<_> = linux.containers.iter().filter_map(|one| Some(one.attributes.clone()?.id)).collect();
    ensure_eq!(ids, [container.clone()]);
    ensure!(value(linux.cpu.ok_or("no cpu")?.usage_core_nano_seconds)? > 0, "its container ran");
    ensure!(value(linux.process.ok_or("no processes")?.process_count)? >= 2, "its init and its container");
    let link = linux.network.ok_or("no network")?.default_interface.ok_or("no default interface")?;
    ensure_eq!(link.name, "eth0");
    let sent = value(link.tx_bytes)?;
    // What the pod sends is counted.
    world.exec(&container, &["sh", "-c", "ping -c 3 -W 1 10.214.0.254; true"]).await?;
    let again = world.cri.runtime.pod_sandbox_stats(request.clone()).await?.into_inner().stats;
    let network = again.and_then(|stats| stats.linux).and_then(|linux| linux.network).ok_or("no network")?;
    let now = value(network.default_interface.ok_or("no default interface")?.tx_bytes)?;
    ensure!(now > sent, "{sent}, then {now} bytes sent");
    // A pod on the host's network has no link of its own.
    let mut host = world.pod("host-usage");
    pod::namespaces(&mut host).network = NamespaceMode::Node.into();
    let host = world.run_pod(&host).await?;
    let all = world.cri.runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await?;
    let all = all.into_inner().stats;
    ensure_eq!(all.len(), 2);
    for stats in all {
        let is_host = stats.attributes.is_some_and(|attributes| attributes.id == host);
        ensure_eq!(stats.linux.and_then(|linux| linux.network).is_none(), is_host);
    }
    // Stopped: still known by its id, not in the list.
    world.stop_pod(&id).await?;
    let stopped = world.cri.runtime.pod_sandbox_stats(request).await?.into_inner().stats;
    ensure!(stopped.is_some_and(|stats| stats.attributes.is_some()), "it is still there");
    let all = world.cri.runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await?;
    ensure_eq!(all.into_inner().stats.len(), 1);
    Ok(())
}

async fn lists_what_runs_and_nothing_else(world: &mut World) -> Outcome {
    let config = world.pod("list-usage");
    let id = world.run_pod(&config).await?;
    let running = world.launch(&id, &config, &world.script("running", "sleep 1000")).await?;
    world.create(&id, &config, &world.script("created", "sleep 1000")).await?;
    let (ended, _) = world.output(&id, &config, &world.script("ended", "exit 0")).await?;
    ensure_eq!(list(world, None).await?, [running.clone()]);
    let of = |id: &str| Some(ContainerStatsFilter { id: id.into(), ..Default::default() });
    ensure_eq!(list(world, of(&running[..13])).await?, [running.clone()]);
    ensure!(list(world, of(&ended.id)).await?.is_empty(), "it does not run");
    ensure!(list(world, of(&"0".repeat(64))).await?.is_empty(), "an unknown id is an empty list");
    let of_pod = ContainerStatsFilter { pod_sandbox_id: id.clone(), ..Default::default() };
    ensure_eq!(list(world, Some(of_pod)).await?, [running.clone()]);
    let label = [("no".to_owned(), "such".to_owned())].into_iter().collect();
    let labelled = ContainerStatsFilter { label_selector: label, ..Default::default() };
    ensure!(list(world, Some(labelled)).await?.is_empty(), "labels must be there");
    // By its id, what has ended is still told of: without figures.
    let stats = usage(world, &ended.id).await?;
    ensure!(stats.cpu.is_none() && stats.memory.is_none(), "{stats:?}");
    world.stop(&running, 0).await?;
    ensure!(list(world, None).await?.is_empty(), "nothing runs");
    Ok(())
}

async fn tells_metrics_as_cadvisor_does(world: &mut World) -> Outcome {
    let config = world.pod("metrics");
    let id = world.run_pod(&config).await?;
    let script =
        "dd if=/dev/zero of=/fill bs=1M count=3 2>/dev/null; sleep 1000 & sleep 1000 & echo ready; wait";
    let mut container = world.script("measured", script);
    let limits = pod::resources(&mut container);
    (limits.cpu_period, limits.cpu_quota, limits.cpu_shares) = (100_000, 20_000, 512);
    (limits.memory_limit_in_bytes, limits.memory_swap_limit_in_bytes) = (64 << 20, 64 << 20);
    let container = world.launch(&id, &config, &container).await?;
    world.wrote(&container, "ready").await?;
    let descriptors =
        world.cri.runtime.list_metric_descriptors(ListMetricDescriptorsRequest {}).await?.into_inner();
    let keys: std::collections::BTreeMap<_, _> =
        descriptors.descriptors.into_iter().map(|found| (found.name, found.label_keys)).collect();
    let pods = world.cri.runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await?;
    let pods = pods.into_inner().pod_metrics;
    ensure_eq!(pods.len(), 1);
    let pod = pods.iter().find(|pod| pod.pod_sandbox_id == id).ok_or("the pod is missing")?;
    let of_container = &pod.container_metrics.first().ok_or("no container")?;
    ensure_eq!((of_container.container_id.as_str(), pod.container_metrics.len()), (container.as_str(), 1));
    for metric in pod.metrics.iter().chain(&of_container.metrics) {
        let keys = keys.get(&metric.name).ok_or(format!("{} has no descriptor", metric.name))?;
        ensure_eq!((&metric.name, metric.label_values.len()), (&metric.name, keys.len()));
    }
    let labels: Vec<_> = ["pod", "namespace", "container", "id", "image"].map(str::to_owned).into();
    ensure_eq!(keys["container_cpu_usage_seconds_total"], labels);
    let find = |metrics: &[Metric], name: &str| -> Outcome<Metric> {
        Ok(metrics.iter().find(|metric| metric.name == name).ok_or(format!("no {name}"))?.clone())
    };
    for (name, expected) in [
        ("container_processes", 3),
        ("container_threads", 3),
        ("container_spec_cpu_quota", 20_000),
        ("container_spec_cpu_shares", 512),
        ("container_spec_memory_limit_bytes", 64 << 20),
        ("container_spec_memory_swap_limit_bytes", 64 << 20),
        ("container_oom_events_total", 0),
        ("container_ulimits_soft", 1024),
    ] {
        let metric = find(&of_container.metrics, name)?;
        ensure_eq!((name, value(metric.value)?), (name, expected));
        ensure_eq!(&metric.label_values[..3], ["metrics", "e2e", "measured"]);
        ensure!(metric.label_values[3].ends_with(&container), "id is the cgroup: {metric:?}");
    }
    for (name, least) in [
        ("container_fs_usage_bytes", 3 << 20),
        ("container_fs_limit_bytes", 1 << 20),
        ("container_memory_usage_bytes", 1 << 12),
        ("container_memory_max_usage_bytes", 1 << 20),
        ("container_file_descriptors", 6),
        ("container_start_time_seconds", 1_600_000_000),
        ("container_last_seen", 1_600_000_000),
        ("container_cpu_cfs_periods_total", 0),
        ("container_cpu_user_seconds_total", 0),
    ] {
        let found = value(find(&of_container.metrics, name)?.value)?;
        ensure!(found >= least, "{name} is {found}");
    }
    // The pod: its network, and its cgroup with all below it.
    let sent = find(&pod.metrics, "container_network_transmit_bytes_total")?;
    ensure_eq!(sent.label_values.last().map(String::as_str), Some("eth0"));
    let threads = find(&pod.metrics, "container_threads")?;
    ensure!(value(threads.value)? >= 3 && threads.label_values[2].is_empty(), "{:?}", threads.label_values);
    if let Some(place) = &world.place {
        let crictl = Crictl::new(&place.socket());
        let descriptors = crictl.run(&["metricdescs"])?;
        ensure!(descriptors.contains("container_memory_working_set_bytes"), "{descriptors}");
        let metrics = crictl.run(&["metricsp"])?;
        ensure!(
            metrics.contains("container_cpu_usage_seconds_total") && metrics.contains("measured"),
            "{metrics}"
        );
    }
    Ok(())
}

async fn lists_the_pods_that_a_filter_names(world: &mut World) -> Outcome {
    let mut config = world.pod("labelled");
    config.labels.insert("app".into(), "web".into());
    let id = world.run_pod(&config).await?;
    let other = world.run_pod(&world.pod("other")).await?;
    let of = |filter| ListPodSandboxStatsRequest { filter: Some(filter) };
    let label = [("app".to_owned(), "web".to_owned())].into_iter().collect();
    for (filter, found) in [
        (PodSandboxStatsFilter { id: other[..13].into(), ..Default::default() }, &other),
        (PodSandboxStatsFilter { label_selector: label, ..Default::default() }, &id),
    ] {
        let stats = world.cri.runtime.list_pod_sandbox_stats(of(filter)).await?.into_inner().stats;
        ensure_eq!(
            stats.into_iter().filter_map(|stats| Some(stats.attributes?.id)).collect::<Vec<_>>(),
            [found.clone()]
        );
    }
    Ok(())
}

async fn measures_the_writable_layer(world: &mut World) -> Outcome {
    let config = world.pod("layer-usage");
    let id = world.run_pod(&config).await?;
    let script =
        "dd if=/dev/zero of=/fill bs=1M count=5 2>/dev/null; ln /fill /again; echo filled; sleep 1000";
    let container = world.launch(&id, &config, &world.script("fill", script)).await?;
    world.wrote(&container, "filled").await?;
    let cri = world.cri.clone();
    let layer = wait::until_async("the layer to be measured", SOON, || {
        let mut cri = cri.clone();
        let request = ContainerStatsRequest { container_id: container.clone() };
        async move {
            let stats = cri.runtime.container_stats(request).await?.into_inner().stats;
            Ok(stats.and_then(|stats| stats.writable_layer).filter(|layer| layer.used_bytes.is_some()))
        }
    })
    .await?;
    let (bytes, inodes) = (value(layer.used_bytes)?, value(layer.inodes_used)?);
    ensure!((5 << 20..6 << 20).contains(&bytes), "a file with two names counts once: {bytes}");
    ensure!((1..20).contains(&inodes), "{inodes}");
    let info = world.cri.images.image_fs_info(ImageFsInfoRequest {}).await?.into_inner();
    let disk = info.image_filesystems.first().and_then(|disk| disk.fs_id.clone());
    ensure_eq!(layer.fs_id, disk);
    Ok(())
}

async fn is_read_by_crictl(world: &mut World) -> Outcome {
    let Some(place) = world.place.clone() else { return Ok(()) };
    let config = world.pod("crictl-usage");
    let id = world.run_pod(&config).await?;
    world.launch(&id, &config, &world.script("idle-crictl", "sleep 1000")).await?;
    let socket = place.socket();
    let (stats, pods) = tokio::task::spawn_blocking(move || {
        let crictl = Crictl::new(&socket);
        let run = |args: &[&str]| crictl.run(args).map_err(|error| error.to_string());
        (run(&["stats"]), run(&["statsp"]))
    })
    .await?;
    let (stats, pods) = (stats?, pods?);
    ensure!(stats.contains("idle-crictl"), "{stats}");
    ensure!(pods.contains("crictl-usage"), "{pods}");
    tokio::time::timeout(Duration::from_secs(10), world.stop_pod(&id)).await??;
    Ok(())
}
