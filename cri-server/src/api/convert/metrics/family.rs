//! The metrics that there are: names and labels are cAdvisor's, of what a kubelet tells on /metrics/cadvisor.

use super::super::super::wire::MetricType;

/// Labels of every metric, in their order: what of which pod it is about. `id` is the cgroup.
pub(super) const BASE: [&str; 5] = ["pod", "namespace", "container", "id", "image"];

/// A metric, whatever it is told of.
#[derive(Debug)]
pub(super) struct Family {
    /// As dashboards know it.
    pub name: &'static str,
    /// For people.
    pub help: &'static str,
    /// Grows only, or goes up and down.
    pub kind: MetricType,
    own: &'static [&'static str],
}

impl Family {
    /// The names of its labels, in the order of its values.
    pub fn labels(&self) -> impl Iterator<Item = &'static str> {
        BASE.into_iter().chain(self.own.iter().copied())
    }
}

macro_rules! families {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) const $constant: Family = Family {
            name: concat!("container_", $name),
            help: $help,
            kind: MetricType::$kind,
            own: &[$($label),*],
        };)*
        /// Every one.
        pub(super) const ALL: &[&Family] = &[$(&$constant),*];
    };
}

families! {
    CPU_USAGE: Counter "cpu_usage_seconds_total" [] "CPU time in seconds.";
    CPU_USER: Counter "cpu_user_seconds_total" [] "CPU time in user mode in seconds.";
    CPU_SYSTEM: Counter "cpu_system_seconds_total" [] "CPU time in the kernel in seconds.";
    CPU_PERIODS: Counter "cpu_cfs_periods_total" [] "Periods of the CPU quota in which something wanted to run.";
    CPU_THROTTLED_PERIODS: Counter "cpu_cfs_throttled_periods_total" [] "Periods in which the CPU quota was used up.";
    CPU_THROTTLED: Counter "cpu_cfs_throttled_seconds_total" [] "Time that the CPU quota held the container back in seconds.";
    MEMORY_USAGE: Gauge "memory_usage_bytes" [] "Memory in use in bytes, page cache included.";
    MEMORY_WORKING_SET: Gauge "memory_working_set_bytes" [] "Memory in use without page cache that was not used lately in bytes.";
    MEMORY_RSS: Gauge "memory_rss" [] "Anonymous memory in bytes.";
    MEMORY_SWAP: Gauge "memory_swap" [] "Swap in use in bytes.";
    MEMORY_CACHE: Gauge "memory_cache" [] "Page cache in bytes.";
    MEMORY_MAPPED_FILE: Gauge "memory_mapped_file" [] "Mapped files in bytes.";
    MEMORY_KERNEL_USAGE: Gauge "memory_kernel_usage" [] "Memory of the kernel's own in bytes.";
    MEMORY_MAX_USAGE: Gauge "memory_max_usage_bytes" [] "The most memory that was ever in use in bytes.";
    MEMORY_FAILCNT: Counter "memory_failcnt" [] "How often the limit of memory was hit.";
    MEMORY_FAILURES: Counter "memory_failures_total" ["failure_type", "scope"] "Page faults by kind.";
    OOM_EVENTS: Counter "oom_events_total" [] "Processes that the kernel killed for want of memory.";
    PRESSURE_CPU_WAITING: Counter "pressure_cpu_waiting_seconds_total" [] "Time that some process waited for a CPU in seconds.";
    PRESSURE_CPU_STALLED: Counter "pressure_cpu_stalled_seconds_total" [] "Time that every process waited for a CPU in seconds.";
    PRESSURE_MEMORY_WAITING: Counter "pressure_memory_waiting_seconds_total" [] "Time that some process waited for memory in seconds.";
    PRESSURE_MEMORY_STALLED: Counter "pressure_memory_stalled_seconds_total" [] "Time that every process waited for memory in seconds.";
    PRESSURE_IO_WAITING: Counter "pressure_io_waiting_seconds_total" [] "Time that some process waited for a disk in seconds.";
    PRESSURE_IO_STALLED: Counter "pressure_io_stalled_seconds_total" [] "Time that every process waited for a disk in seconds.";
    FS_USAGE: Gauge "fs_usage_bytes" ["device"] "The writable layer in bytes.";
    FS_LIMIT: Gauge "fs_limit_bytes" ["device"] "Size of the disk that the writable layer is on in bytes.";
    FS_INODES: Gauge "fs_inodes_total" ["device"] "Inodes of the disk that the writable layer is on.";
    FS_INODES_FREE: Gauge "fs_inodes_free" ["device"] "Free inodes of the disk that the writable layer is on.";
    FS_READS_BYTES: Counter "fs_reads_bytes_total" ["device"] "Bytes read from a disk.";
    FS_READS: Counter "fs_reads_total" ["device"] "Reads from a disk.";
    FS_WRITES_BYTES: Counter "fs_writes_bytes_total" ["device"] "Bytes written to a disk.";
    FS_WRITES: Counter "fs_writes_total" ["device"] "Writes to a disk.";
    BLKIO_DEVICE_USAGE: Counter "blkio_device_usage_total" ["device", "major", "minor", "operation"] "Bytes that went to or from a disk.";
    HUGETLB_USAGE: Gauge "hugetlb_usage_bytes" ["pagesize"] "Huge pages in use in bytes.";
    HUGETLB_MAX_USAGE: Gauge "hugetlb_max_usage_bytes" ["pagesize"] "The most huge pages that were ever in use in bytes.";
    NETWORK_RECEIVE_BYTES: Counter "network_receive_bytes_total" ["interface"] "Bytes received.";
    NETWORK_RECEIVE_PACKETS: Counter "network_receive_packets_total" ["interface"] "Packets received.";
    NETWORK_RECEIVE_ERRORS: Counter "network_receive_errors_total" ["interface"] "Errors while receiving.";
    NETWORK_RECEIVE_DROPPED: Counter "network_receive_packets_dropped_total" ["interface"] "Packets dropped while receiving.";
    NETWORK_TRANSMIT_BYTES: Counter "network_transmit_bytes_total" ["interface"] "Bytes sent.";
    NETWORK_TRANSMIT_PACKETS: Counter "network_transmit_packets_total" ["interface"] "Packets sent.";
    NETWORK_TRANSMIT_ERRORS: Counter "network_transmit_errors_total" ["interface"] "Errors while sending.";
    NETWORK_TRANSMIT_DROPPED: Counter "network_transmit_packets_dropped_total" ["interface"] "Packets dropped while sending.";
    PROCESSES: Gauge "processes" [] "Processes.";
    THREADS: Gauge "threads" [] "Threads.";
    THREADS_MAX: Gauge "threads_max" [] "The most threads that may be; 0 without a limit.";
    FILE_DESCRIPTORS: Gauge "file_descriptors" [] "Open files.";
    SOCKETS: Gauge "sockets" [] "Open sockets.";
    ULIMITS_SOFT: Gauge "ulimits_soft" ["ulimit"] "Soft limits of the first process.";
    LAST_SEEN: Gauge "last_seen" [] "When it was last looked at, in seconds since the epoch.";
    START_TIME: Gauge "start_time_seconds" [] "When it was started, in seconds since the epoch.";
    SPEC_CPU_PERIOD: Gauge "spec_cpu_period" [] "Period of the CPU quota in microseconds.";
    SPEC_CPU_QUOTA: Gauge "spec_cpu_quota" [] "CPU quota in microseconds of a period.";
    SPEC_CPU_SHARES: Gauge "spec_cpu_shares" [] "Share of the CPU.";
    SPEC_MEMORY_LIMIT: Gauge "spec_memory_limit_bytes" [] "Limit of memory in bytes; 0 without one.";
    SPEC_MEMORY_SWAP_LIMIT: Gauge "spec_memory_swap_limit_bytes" [] "Limit of memory and swap together in bytes; 0 without one.";
    SPEC_MEMORY_RESERVATION: Gauge "spec_memory_reservation_limit_bytes" [] "Memory that is kept for it in bytes.";
}
