//! Every metric that is told has a descriptor that fits it, and every descriptor a metric.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use cove_runtime::cgroup::{
    CpuDetail, DeviceIo, HugePages, MemoryDetail, Stall, Stats, SwapStats, Throttling,
};

use super::*;
use crate::container::spec::tests::config;
use crate::sandbox::SandboxView;
use crate::stats::{ContainerUsage, LayerUsage, SandboxUsage};

/// A pod of which everything is known.
fn whole() -> SandboxDetail {
    let pressure =
        Some(Pressure { some: Stall { total_ns: 3 * SECOND, ..Stall::default() }, full: Stall::default() });
    let stats = Stats {
        cpu_usage_ns: 5 * SECOND + 1,
        swap: Some(SwapStats { usage: 7, limit: None }),
        cpu_pressure: pressure,
        memory_pressure: pressure,
        io_pressure: pressure,
        ..Stats::default()
    };
    let detail = Detail {
        cpu: CpuDetail { user_ns: Some(1), system_ns: Some(1), throttling: Some(Throttling::default()) },
        memory: MemoryDetail {
            cache: Some(1),
            mapped_file: Some(2),
            kernel: Some(3),
            peak: Some(4),
            failures: Some(5),
        },
        oom_kills: Some(1),
        pids_limit: None,
        processes: vec![10, 11],
        io: vec![DeviceIo { major: 8, minor: 1, read_bytes: 9, ..DeviceIo::default() }],
        huge_pages: vec![HugePages { size: "2MB".into(), usage: 1, peak: Some(2) }],
    };
    let reading = Reading { at: 99, stats, nano_cores: None };
    let mut asked = config();
    (asked.resources.cpu_quota, asked.resources.memory_limit) = (20_000, 64);
    let view = ContainerView {
        id: "c".repeat(64),
        sandbox: "5".repeat(64),
        resources: asked.resources.clone(),
        config: Arc::new(asked),
        image_id: "sha256:1".into(),
        image_ref: "r/i@sha256:2".into(),
        image_name: "r/i:1".into(),
        volume_images: Vec::new(),
        created_at: 1,
        phase: ContainerPhase::Running { started_at: i64::try_from(7 * SECOND).unwrap() },
        user: None,
        log_path: None,
        pid: Some(10),
        stop_signal: 15,
        steps: Vec::new(),
        bundle: "/b".into(),
    };
    let layer = Some(LayerUsage { at: 1, bytes: 2, inodes: 3 });
    let usage = ContainerUsage { view: Arc::new(view), reading: Some(reading), layer };
    let container = ContainerDetail {
        usage,
        cgroup: "/pods/p/c".into(),
        detail: detail.clone(),
        descriptors: (4, 1),
        open_files: Some(1024),
    };
    let view = SandboxView {
        id: "5".repeat(64),
        config: Arc::new(crate::sandbox::files::tests::config()),
        created_at: 1,
        ready: true,
        addresses: Vec::new(),
        pid: Some(1),
        netns: None,
        steps: Vec::new(),
        attachment: None,
        reason: String::new(),
    };
    let links = vec![Interface { name: "eth0".into(), received: [1, 2, 3, 4], sent: [5, 6, 7, 8] }];
    let usage = SandboxUsage { view: Arc::new(view), reading: Some(reading), links, containers: Vec::new() };
    SandboxDetail {
        usage,
        cgroup: Path::new("/pods/p").into(),
        detail: Some(detail),
        containers: vec![container],
    }
}

fn told() -> wire::PodSandboxMetrics {
    let mut disk = Disk::default();
    (disk.device, disk.size) = ("/dev/vda".into(), [100, 10, 5]);
    sandbox(&whole(), &disk)
}

#[test]
fn metrics_and_descriptors_agree() {
    let descriptors = descriptors();
    let keys: BTreeMap<&str, &Vec<String>> =
        descriptors.iter().map(|found| (found.name.as_str(), &found.label_keys)).collect();
    assert_eq!(keys.len(), descriptors.len(), "each name once");
    assert!(descriptors.iter().all(|found| !found.help.is_empty()));
    let pod = told();
    let mut names = BTreeSet::new();
    let mut series = BTreeSet::new();
    for metric in pod.metrics.iter().chain(&pod.container_metrics[0].metrics) {
        let keys =
            keys.get(metric.name.as_str()).unwrap_or_else(|| panic!("{} has no descriptor", metric.name));
        assert_eq!(metric.label_values.len(), keys.len(), "{}", metric.name);
        assert!(series.insert((&metric.name, &metric.label_values)), "{metric:?} twice");
        assert!(metric.value.is_some() && metric.timestamp == 99);
        // By the names that Prometheus gives counters, but for two that are older.
        let counts = metric.name.ends_with("_total") && metric.name != "container_fs_inodes_total";
        assert_eq!(
            counts || metric.name == "container_memory_failcnt",
            metric.metric_type == 0,
            "{}",
            metric.name
        );
        names.insert(metric.name.as_str());
    }
    assert_eq!(
        names,
        keys.keys().copied().collect(),
        "every descriptor has a metric of a pod of which all is known"
    );
}

#[test]
fn labels_say_what_it_is_about() {
    let pod = told();
    let find = |metrics: &[wire::Metric], name: &str| {
        metrics.iter().find(|metric| metric.name == name).cloned().unwrap()
    };
    let name = &whole().usage.view.config.name.clone();
    let usage = find(&pod.container_metrics[0].metrics, "container_cpu_usage_seconds_total");
    assert_eq!(usage.label_values, [name.name.as_str(), &name.namespace, "c", "/pods/p/c", "r/i:1"]);
    assert_eq!(usage.value.unwrap().value, 5);
    let sent = find(&pod.metrics, "container_network_transmit_packets_total");
    assert_eq!(sent.label_values, [name.name.as_str(), &name.namespace, "", "/pods/p", "", "eth0"]);
    assert_eq!(sent.value.unwrap().value, 6);
    let read = find(&pod.container_metrics[0].metrics, "container_blkio_device_usage_total");
    assert_eq!(read.label_values[5..], ["8:1", "8", "1", "Read"]);
    let started = find(&pod.container_metrics[0].metrics, "container_start_time_seconds");
    assert_eq!(started.value.unwrap().value, 7);
}

#[test]
fn what_is_not_known_is_left_out() {
    let mut pod = whole();
    pod.detail = Some(Detail::default());
    pod.usage.links.clear();
    let metrics = sandbox(&pod, &Disk::default()).metrics;
    assert!(
        metrics.iter().all(|metric| !metric.name.contains("network") && !metric.name.contains("cpu_user"))
    );
}
