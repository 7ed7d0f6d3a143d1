//! What pods use becomes the series of cAdvisor, by which dashboards and alerts know them: a metric's name, its labels in
//! the order of its descriptor, a whole number. A figure that is not known is left out, never told as 0.

mod family;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cove_runtime::cgroup::{Detail, Pressure};

use self::family::Family;
use super::super::wire;
use crate::container::{ContainerPhase, ContainerView};
use crate::sandbox::config::SandboxName;
use crate::stats::{ContainerDetail, Disk, Interface, Reading, SandboxDetail};

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;
/// Period of a CPU quota, and shares, where none are asked for: the kernel's own.
const CPU_DEFAULTS: (u64, u64) = (100_000, 1024);

/// What the metrics are, and in which order their labels stand.
pub(in crate::api) fn descriptors() -> Vec<wire::MetricDescriptor> {
    let descriptor = |family: &&Family| wire::MetricDescriptor {
        name: family.name.to_owned(),
        help: family.help.to_owned(),
        label_keys: family.labels().map(str::to_owned).collect(),
    };
    family::ALL.iter().map(descriptor).collect()
}

/// The metrics of a pod and its running containers.
pub(in crate::api) fn sandbox(pod: &SandboxDetail, disk: &Disk) -> wire::PodSandboxMetrics {
    let name = &pod.usage.view.config.name;
    let id = pod.cgroup.to_string_lossy();
    // As cAdvisor has it, the cgroup of a pod is no container, and has no image.
    let mut series = Series::new(name, ["", &id, ""], pod.usage.reading.as_ref());
    if let (Some(reading), Some(detail)) = (&pod.usage.reading, &pod.detail) {
        group(&mut series, reading, detail, disk);
    }
    pod.usage.links.iter().for_each(|link| network(&mut series, link));
    wire::PodSandboxMetrics {
        pod_sandbox_id: pod.usage.view.id.clone(),
        metrics: series.all,
        container_metrics: pod
            .containers
            .iter()
            .map(|container| of_container(name, container, disk))
            .collect(),
    }
}

fn of_container(pod: &SandboxName, container: &ContainerDetail, disk: &Disk) -> wire::ContainerMetrics {
    let view = &container.usage.view;
    let id = container.cgroup.to_string_lossy();
    let labels = [view.config.name.name.as_str(), &id, &view.image_name];
    let mut series = Series::new(pod, labels, container.usage.reading.as_ref());
    if let Some(reading) = &container.usage.reading {
        group(&mut series, reading, &container.detail, disk);
    }
    let (descriptors, sockets) = container.descriptors;
    series.put(&family::FILE_DESCRIPTORS, &[], descriptors);
    series.put(&family::SOCKETS, &[], sockets);
    series.put(&family::ULIMITS_SOFT, &["max_open_files"], container.open_files);
    let [bytes, inodes, free] = disk.size;
    let device = [disk.device.as_str()];
    series.put(&family::FS_LIMIT, &device, bytes);
    series.put(&family::FS_INODES, &device, inodes);
    series.put(&family::FS_INODES_FREE, &device, free);
    series.put(&family::FS_USAGE, &device, container.usage.layer.map(|layer| layer.bytes));
    specification(&mut series, view);
    wire::ContainerMetrics { container_id: view.id.clone(), metrics: series.all }
}

/// Metrics of one cgroup, all with the same first labels.
struct Series {
    labels: Vec<String>,
    at: i64,
    all: Vec<wire::Metric>,
}

impl Series {
    /// `of`: container, id, image.
    fn new(pod: &SandboxName, of: [&str; 3], reading: Option<&Reading>) -> Self {
        let labels = [pod.name.as_str(), &pod.namespace].into_iter().chain(of).map(str::to_owned).collect();
        // 0 says "measured now" (cri-api, Metric).
        Self { labels, at: reading.map_or(0, |reading| reading.at), all: Vec::new() }
    }

    /// Adds a value, if there is one. `more`: the values of the family's own labels.
    fn put(&mut self, family: &Family, more: &[&str], value: impl Into<Option<u64>>) {
        let Some(value) = value.into() else { return };
        debug_assert_eq!(family.labels().count(), self.labels.len() + more.len(), "{}", family.name);
        self.all.push(wire::Metric {
            name: family.name.to_owned(),
            timestamp: self.at,
            metric_type: family.kind.into(),
            label_values: self
                .labels
                .iter()
                .map(String::as_str)
                .chain(more.iter().copied())
                .map(str::to_owned)
                .collect(),
            value: Some(wire::UInt64Value { value }),
        });
    }
}

/// What a cgroup tells, be it a pod's or a container's.
fn group(series: &mut Series, reading: &Reading, detail: &Detail, disk: &Disk) {
    cpu(series, reading, detail);
    memory(series, reading, detail);
    let stats = &reading.stats;
    let stalls: [(_, _, Option<Pressure>); 3] = [
        (&family::PRESSURE_CPU_WAITING, &family::PRESSURE_CPU_STALLED, stats.cpu_pressure),
        (&family::PRESSURE_MEMORY_WAITING, &family::PRESSURE_MEMORY_STALLED, stats.memory_pressure),
        (&family::PRESSURE_IO_WAITING, &family::PRESSURE_IO_STALLED, stats.io_pressure),
    ];
    for (waiting, stalled, pressure) in stalls {
        series.put(waiting, &[], pressure.map(|pressure| pressure.some.total_ns / SECOND));
        series.put(stalled, &[], pressure.map(|pressure| pressure.full.total_ns / SECOND));
    }
    for io in &detail.io {
        let name = disk.name((io.major, io.minor));
        series.put(&family::FS_READS_BYTES, &[&name], io.read_bytes);
        series.put(&family::FS_READS, &[&name], io.reads);
        series.put(&family::FS_WRITES_BYTES, &[&name], io.written_bytes);
        series.put(&family::FS_WRITES, &[&name], io.writes);
        let (major, minor) = (io.major.to_string(), io.minor.to_string());
        for (operation, value) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
            series.put(&family::BLKIO_DEVICE_USAGE, &[&name, &major, &minor, operation], value);
        }
    }
    for pages in &detail.huge_pages {
        series.put(&family::HUGETLB_USAGE, &[&pages.size], pages.usage);
        series.put(&family::HUGETLB_MAX_USAGE, &[&pages.size], pages.peak);
    }
    series.put(&family::PROCESSES, &[], u64::try_from(detail.processes.len()).ok());
    series.put(&family::THREADS, &[], stats.pids);
    // 0 says "no limit".
    series.put(&family::THREADS_MAX, &[], detail.pids_limit.unwrap_or(0));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).as_ref().map_or(0, Duration::as_secs);
    series.put(&family::LAST_SEEN, &[], now);
}

fn cpu(series: &mut Series, reading: &Reading, detail: &Detail) {
    series.put(&family::CPU_USAGE, &[], reading.stats.cpu_usage_ns / SECOND);
    series.put(&family::CPU_USER, &[], detail.cpu.user_ns.map(|ns| ns / SECOND));
    series.put(&family::CPU_SYSTEM, &[], detail.cpu.system_ns.map(|ns| ns / SECOND));
    let throttling = detail.cpu.throttling;
    series.put(&family::CPU_PERIODS, &[], throttling.map(|found| found.periods));
    series.put(&family::CPU_THROTTLED_PERIODS, &[], throttling.map(|found| found.throttled));
    series.put(&family::CPU_THROTTLED, &[], throttling.map(|found| found.throttled_ns / SECOND));
}

fn memory(series: &mut Series, reading: &Reading, detail: &Detail) {
    let memory = &reading.stats.memory;
    series.put(&family::MEMORY_USAGE, &[], memory.usage);
    series.put(&family::MEMORY_WORKING_SET, &[], memory.working_set);
    series.put(&family::MEMORY_RSS, &[], memory.rss);
    series.put(&family::MEMORY_SWAP, &[], reading.stats.swap.map(|swap| swap.usage));
    series.put(&family::MEMORY_CACHE, &[], detail.memory.cache);
    series.put(&family::MEMORY_MAPPED_FILE, &[], detail.memory.mapped_file);
    series.put(&family::MEMORY_KERNEL_USAGE, &[], detail.memory.kernel);
    series.put(&family::MEMORY_MAX_USAGE, &[], detail.memory.peak);
    series.put(&family::MEMORY_FAILCNT, &[], detail.memory.failures);
    // Both count what is below the group, too.
    for scope in ["container", "hierarchy"] {
        series.put(&family::MEMORY_FAILURES, &["pgfault", scope], memory.page_faults);
        series.put(&family::MEMORY_FAILURES, &["pgmajfault", scope], memory.major_page_faults);
    }
    series.put(&family::OOM_EVENTS, &[], detail.oom_kills);
}

fn network(series: &mut Series, link: &Interface) {
    let [bytes, packets, errors, dropped] = link.received;
    series.put(&family::NETWORK_RECEIVE_BYTES, &[&link.name], bytes);
    series.put(&family::NETWORK_RECEIVE_PACKETS, &[&link.name], packets);
    series.put(&family::NETWORK_RECEIVE_ERRORS, &[&link.name], errors);
    series.put(&family::NETWORK_RECEIVE_DROPPED, &[&link.name], dropped);
    let [bytes, packets, errors, dropped] = link.sent;
    series.put(&family::NETWORK_TRANSMIT_BYTES, &[&link.name], bytes);
    series.put(&family::NETWORK_TRANSMIT_PACKETS, &[&link.name], packets);
    series.put(&family::NETWORK_TRANSMIT_ERRORS, &[&link.name], errors);
    series.put(&family::NETWORK_TRANSMIT_DROPPED, &[&link.name], dropped);
}

/// What was asked for; 0 is "no limit", as cAdvisor has it.
fn specification(series: &mut Series, view: &ContainerView) {
    let limits = &view.resources;
    let given = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    series.put(&family::SPEC_CPU_PERIOD, &[], given(limits.cpu_period).unwrap_or(CPU_DEFAULTS.0));
    series.put(&family::SPEC_CPU_QUOTA, &[], given(limits.cpu_quota));
    series.put(&family::SPEC_CPU_SHARES, &[], given(limits.cpu_shares).unwrap_or(CPU_DEFAULTS.1));
    let memory = given(limits.memory_limit).unwrap_or(0);
    series.put(&family::SPEC_MEMORY_LIMIT, &[], memory);
    // Without a limit of its own, swap is not to be had: memory and swap together are limited like memory.
    series.put(&family::SPEC_MEMORY_SWAP_LIMIT, &[], given(limits.memory_swap_limit).unwrap_or(memory));
    // Never asked for by the CRI.
    series.put(&family::SPEC_MEMORY_RESERVATION, &[], 0);
    if let ContainerPhase::Running { started_at, .. } = view.phase {
        series.put(&family::START_TIME, &[], u64::try_from(started_at).ok().map(|at| at / SECOND));
    }
}

#[cfg(test)]
mod tests;
