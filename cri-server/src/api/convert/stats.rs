//! What containers and pods use becomes replies. A figure that is not known is left out, never told as 0.

use std::path::Path;

use cove_runtime::cgroup::{Pressure, Stall};

use super::super::wire;
use super::status;
use crate::container::list::ContainerFilter;
use crate::sandbox::list::SandboxFilter;
use crate::stats::{ContainerUsage, Interface, Reading, SandboxUsage};

/// The filter of ListContainerStats.
pub(in crate::api) fn container_filter(filter: Option<wire::ContainerStatsFilter>) -> ContainerFilter {
    let filter = filter.unwrap_or_default();
    ContainerFilter {
        id: (!filter.id.is_empty()).then_some(filter.id),
        sandbox: (!filter.pod_sandbox_id.is_empty()).then_some(filter.pod_sandbox_id),
        phase: None,
        labels: filter.label_selector,
    }
}

/// The filter of ListPodSandboxStats.
pub(in crate::api) fn sandbox_filter(filter: Option<wire::PodSandboxStatsFilter>) -> SandboxFilter {
    let filter = filter.unwrap_or_default();
    SandboxFilter {
        id: (!filter.id.is_empty()).then_some(filter.id),
        ready: None,
        labels: filter.label_selector,
    }
}

/// What a container uses. `disk` is where ImageFsInfo says that writable layers lie.
pub(in crate::api) fn container(usage: &ContainerUsage, disk: &Path) -> wire::ContainerStats {
    let view = &usage.view;
    wire::ContainerStats {
        attributes: Some(wire::ContainerAttributes {
            id: view.id.clone(),
            metadata: Some(status::container_name(view)),
            labels: view.config.labels.clone(),
            annotations: view.config.annotations.clone(),
        }),
        cpu: usage.reading.as_ref().map(cpu),
        memory: usage.reading.as_ref().map(memory),
        writable_layer: usage.layer.map(|layer| wire::FilesystemUsage {
            timestamp: layer.at,
            fs_id: Some(wire::FilesystemIdentifier { mountpoint: disk.display().to_string() }),
            used_bytes: value(layer.bytes),
            inodes_used: value(layer.inodes),
        }),
        swap: usage.reading.as_ref().and_then(swap),
        io: usage.reading.as_ref().map(io),
    }
}

/// What a pod uses.
pub(in crate::api) fn sandbox(usage: &SandboxUsage, disk: &Path) -> wire::PodSandboxStats {
    let view = &usage.view;
    let reading = usage.reading.as_ref();
    let links = reading.filter(|_| !usage.links.is_empty());
    wire::PodSandboxStats {
        attributes: Some(wire::PodSandboxAttributes {
            id: view.id.clone(),
            metadata: Some(status::sandbox_name(&view.config.name)),
            labels: view.config.labels.clone(),
            annotations: view.config.annotations.clone(),
        }),
        linux: Some(wire::LinuxPodSandboxStats {
            cpu: reading.map(cpu),
            memory: reading.map(memory),
            network: links.map(|reading| network(reading.at, &usage.links)),
            process: reading.map(|reading| wire::ProcessUsage {
                timestamp: reading.at,
                process_count: value(reading.stats.pids),
            }),
            containers: usage.containers.iter().map(|usage| container(usage, disk)).collect(),
            io: reading.map(io),
        }),
        windows: None,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "every figure of the CRI is a message that may be missing")]
fn value(value: u64) -> Option<wire::UInt64Value> {
    Some(wire::UInt64Value { value })
}

fn cpu(reading: &Reading) -> wire::CpuUsage {
    wire::CpuUsage {
        timestamp: reading.at,
        usage_core_nano_seconds: value(reading.stats.cpu_usage_ns),
        usage_nano_cores: reading.nano_cores.and_then(value),
        psi: reading.stats.cpu_pressure.map(psi),
    }
}

fn memory(reading: &Reading) -> wire::MemoryUsage {
    let memory = &reading.stats.memory;
    // 0 without a limit, as cAdvisor has it.
    let available = memory.limit.map_or(0, |limit| limit.saturating_sub(memory.working_set));
    wire::MemoryUsage {
        timestamp: reading.at,
        working_set_bytes: value(memory.working_set),
        available_bytes: value(available),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: reading.stats.memory_pressure.map(psi),
    }
}

fn swap(reading: &Reading) -> Option<wire::SwapUsage> {
    let swap = reading.stats.swap?;
    Some(wire::SwapUsage {
        timestamp: reading.at,
        swap_available_bytes: swap.limit.and_then(|limit| value(limit.saturating_sub(swap.usage))),
        swap_usage_bytes: value(swap.usage),
    })
}

fn io(reading: &Reading) -> wire::IoUsage {
    wire::IoUsage { timestamp: reading.at, psi: reading.stats.io_pressure.map(psi) }
}

fn psi(pressure: Pressure) -> wire::PsiStats {
    let data = |stall: Stall| wire::PsiData {
        total: stall.total_ns,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    wire::PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) }
}

fn network(timestamp: i64, links: &[Interface]) -> wire::NetworkUsage {
    let usage = |link: &Interface| wire::NetworkInterfaceUsage {
        name: link.name.clone(),
        rx_bytes: value(link.received[0]),
        rx_errors: value(link.received[2]),
        tx_bytes: value(link.sent[0]),
        tx_errors: value(link.sent[2]),
    };
    wire::NetworkUsage {
        timestamp,
        default_interface: links.iter().find(|link| link.is_default()).map(usage),
        // The others: the CRI excludes the default one here.
        interfaces: links.iter().filter(|link| !link.is_default()).map(usage).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cove_runtime::cgroup::{MemoryStats, Stats, SwapStats};

    fn reading(stats: Stats) -> Reading {
        Reading { at: 9, stats, nano_cores: None }
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let none = reading(Stats::default());
        assert!(cpu(&none).usage_nano_cores.is_none() && cpu(&none).psi.is_none());
        assert!(swap(&none).is_none() && io(&none).psi.is_none());
        assert_eq!(memory(&none).available_bytes.unwrap().value, 0);
    }

    #[test]
    fn what_is_left_of_a_limit_is_told() {
        let stats = Stats {
            memory: MemoryStats { usage: 80, working_set: 60, limit: Some(100), ..Default::default() },
            swap: Some(SwapStats { usage: 7, limit: Some(10) }),
            cpu_pressure: Some(Pressure {
                some: Stall { total_ns: 5, avg10: 1.5, ..Stall::default() },
                full: Stall::default(),
            }),
            ..Stats::default()
        };
        let reading = reading(stats);
        assert_eq!(memory(&reading).available_bytes.unwrap().value, 40);
        assert_eq!(swap(&reading).unwrap().swap_available_bytes.unwrap().value, 3);
        let psi = cpu(&reading).psi.unwrap();
        assert_eq!((psi.some.unwrap().total, psi.some.unwrap().avg10, psi.full.unwrap().total), (5, 1.5, 0));
    }

    #[test]
    fn the_default_link_stands_alone() {
        let link = |name: &str, bytes| Interface {
            name: name.into(),
            received: [bytes, 1, 2, 3],
            sent: [bytes + 1, 4, 5, 6],
        };
        let usage = network(9, &[link("eth0", 10), link("net1", 20)]);
        let default = usage.default_interface.unwrap();
        assert_eq!((default.rx_bytes.unwrap().value, default.tx_errors.unwrap().value), (10, 5));
        assert_eq!(usage.interfaces.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["net1"]);
    }
}
