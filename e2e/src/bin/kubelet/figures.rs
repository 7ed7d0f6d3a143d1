//! What the kubelet tells of pods and of its runtime: its metrics and its statistics.

use std::collections::BTreeMap;

use cove_e2e::Outcome;
use serde_json::Value;

use crate::ground::Ground;
use crate::node::NAME;

/// A sample in Prometheus' text format: name, labels, value.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// All samples that the kubelet serves at a path.
pub(crate) fn samples(ground: &Ground, path: &str) -> Outcome<Vec<Sample>> {
    let text = ground.node.get(path)?;
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(sample).collect()
}

fn sample(line: &str) -> Outcome<Sample> {
    let bad = || format!("not a sample: {line}");
    let (head, rest) = match line.split_once('{') {
        Some((name, rest)) => {
            let (labels, value) = rest.rsplit_once("} ").ok_or_else(bad)?;
            ((name, labels), value)
        }
        None => {
            let (name, value) = line.split_once(' ').ok_or_else(bad)?;
            ((name, ""), value)
        }
    };
    let mut labels = BTreeMap::new();
    for pair in head.1.split("\",") {
        if let Some((key, value)) = pair.split_once("=\"") {
            labels.insert(key.to_owned(), value.trim_end_matches('"').to_owned());
        }
    }
    // A time may follow.
    let value = rest.split(' ').next().and_then(|value| value.parse().ok()).ok_or_else(bad)?;
    Ok(Sample { name: head.0.to_owned(), labels, value })
}

/// The sum of a metric over all its labels; 0 if it is not there.
pub(crate) fn sum(ground: &Ground, name: &str) -> Outcome<f64> {
    let found = samples(ground, "/metrics")?;
    Ok(found.iter().filter(|sample| sample.name == name).map(|sample| sample.value).sum())
}

/// How often the kubelet called an operation of its runtime.
pub(crate) fn calls(ground: &Ground, operation: &str) -> Outcome<f64> {
    let found = samples(ground, "/metrics")?;
    let of = found.iter().filter(|sample| {
        sample.name == "kubelet_runtime_operations_total"
            && sample.labels.get("operation_type").is_some_and(|found| found == operation)
    });
    Ok(of.map(|sample| sample.value).sum())
}

/// No call of the kubelet to its runtime failed `but` what should. A command of a probe or a hook that says no counts as a
/// failed `exec_sync` there, and a call that the kubelet itself gave up, when a pod changed, as a failed one, too.
pub(crate) fn no_call_failed(ground: &Ground, but: &[&str]) -> Outcome {
    let found = samples(ground, "/metrics")?;
    let of = |name: &str| {
        let found = found.iter().filter(|sample| sample.name == name);
        found
            .map(|sample| (sample.labels["operation_type"].clone(), sample.value))
            .collect::<BTreeMap<_, _>>()
    };
    let calls = of("kubelet_runtime_operations_total");
    for operation in ["run_podsandbox", "create_container", "start_container", "stop_container"] {
        ensure!(calls.get(operation).is_some_and(|count| *count > 0.0), "no call of {operation}: {calls:?}");
    }
    let mut errors = of("kubelet_runtime_operations_errors_total");
    errors.retain(|operation, count| *count > 0.0 && !but.contains(&operation.as_str()));
    let log = std::fs::read_to_string(ground.node.log())?;
    let told = |line: &&str| line.contains(" from runtime service failed\" err=");
    let given_up: f64 =
        log.lines().filter(told).filter(|line| line.contains("code = Canceled")).map(|_| 1.0).sum();
    let failed: f64 = errors.values().sum();
    let by_itself = failed.total_cmp(&given_up).is_gt();
    ensure!(!by_itself, "calls failed: {errors:?} of {calls:?}\n{}", ground.node.trouble());
    Ok(())
}

/// Series of a container that dashboards are made of, by the kubernetes-mixin and the metrics reference of Kubernetes.
const OF_CONTAINERS: &[&str] = &[
    "container_cpu_usage_seconds_total",
    "container_cpu_user_seconds_total",
    "container_cpu_system_seconds_total",
    "container_memory_working_set_bytes",
    "container_memory_usage_bytes",
    "container_memory_rss",
    "container_memory_cache",
    "container_memory_swap",
    "container_fs_usage_bytes",
    "container_fs_limit_bytes",
    "container_start_time_seconds",
    "container_last_seen",
    "container_oom_events_total",
    "container_spec_memory_limit_bytes",
    "container_spec_cpu_shares",
    "container_processes",
    "container_threads",
    "container_file_descriptors",
];

/// Series of a pod's network.
const OF_NETWORKS: &[&str] = &[
    "container_network_receive_bytes_total",
    "container_network_transmit_bytes_total",
    "container_network_receive_packets_total",
    "container_network_transmit_packets_total",
    "container_network_receive_packets_dropped_total",
    "container_network_transmit_packets_dropped_total",
    "container_network_receive_errors_total",
    "container_network_transmit_errors_total",
];

/// With `PodAndContainerStatsFromCRI` the kubelet tells of pods what it tells of those of other runtimes.
pub(crate) fn has_the_series_of_dashboards(ground: &Ground, pod: &str) -> Outcome {
    let found = samples(ground, "/metrics/cadvisor")?;
    let pod_name = format!("{pod}-{NAME}");
    let of_pod = |name: &str| {
        found.iter().find(|sample| sample.name == name && sample.labels.get("pod") == Some(&pod_name))
    };
    for name in OF_CONTAINERS {
        let of_container = found.iter().find(|sample| {
            sample.name == *name
                && sample.labels.get("pod") == Some(&pod_name)
                && sample.labels.get("container").is_some_and(|container| container == "main")
        });
        let sample = of_container.ok_or_else(|| format!("no {name} of {pod_name}"))?;
        ensure_eq!(sample.labels.get("namespace").map(String::as_str), Some("default"));
        for label in ["id", "image"] {
            ensure!(
                sample.labels.get(label).is_some_and(|value| !value.is_empty()),
                "{sample:?} has no {label}"
            );
        }
    }
    for name in OF_NETWORKS {
        let sample = of_pod(name).ok_or_else(|| format!("no {name} of {pod_name}"))?;
        ensure_eq!(sample.labels.get("interface").map(String::as_str), Some("eth0"));
    }
    ensure!(
        of_pod("container_network_receive_bytes_total").is_some_and(|sample| sample.value > 0.0),
        "it was asked"
    );
    let summary = summary(ground, &pod_name)?;
    ensure!(summary["network"]["rxBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{summary}");
    ensure!(summary["cpu"]["usageCoreNanoSeconds"].as_u64().is_some_and(|time| time > 0), "{summary}");
    let container = &summary["containers"][0];
    ensure!(container["memory"]["workingSetBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{container}");
    ensure!(container["rootfs"]["usedBytes"].as_u64().is_some(), "{container}");
    Ok(())
}

/// A pod of /stats/summary.
pub(crate) fn summary(ground: &Ground, pod: &str) -> Outcome<Value> {
    let summary: Value = serde_json::from_str(&ground.node.get("/stats/summary")?)?;
    let pods = summary["pods"].as_array().cloned().unwrap_or_default();
    Ok(pods
        .into_iter()
        .find(|found| found["podRef"]["name"] == pod)
        .ok_or_else(|| format!("no {pod} in {summary}"))?)
}
