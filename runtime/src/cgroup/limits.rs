//! Limits in the words of the OCI runtime spec, written as each version of cgroups wants them.

use std::sync::Once;

use rustix::io::Errno;

use super::CgroupError;
use super::group::{Cgroup, Group};
use super::hierarchy::Version;

/// Every file that a limit is written to, of both versions.
const FILES: [&str; 12] = [
    "cpu.shares",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpu.weight",
    "cpu.max",
    "cpuset.cpus",
    "cpuset.mems",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.swap.max",
    "memory.max",
    "pids.max",
];

/// Limits in the words of the OCI runtime spec; none is unset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// cpu.shares scale, 2 to 262144 (v2: converted to cpu.weight as runc 1.3 and crun do, quadratic).
    pub cpu_shares: Option<u64>,
    /// Microseconds in a period; negative: none.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// List form.
    pub cpuset_cpus: Option<String>,
    /// List form.
    pub cpuset_mems: Option<String>,
    /// Bytes; -1: none.
    pub memory: Option<i64>,
    /// Bytes of memory and swap together, v1 scale; -1: none.
    pub memory_swap: Option<i64>,
    /// Processes; -1: none.
    pub pids: Option<i64>,
    /// Bytes of huge pages by page size, as the kernel writes it ("2MB").
    pub hugepages: Vec<(String, String)>,
    /// Files of cgroup v2 and what is written to them, after all else.
    pub unified: Vec<(String, String)>,
}

impl Cgroup {
    /// Sets limits. A value that the kernel refuses is an error that names file and value. Those set before it stay.
    ///
    /// # Errors
    /// [`CgroupError::Value`]; [`CgroupError::Limit`] for two limits that contradict each other;
    /// [`CgroupError::NoController`] for one that the host cannot keep.
    pub fn set_limits(&self, limits: &Limits) -> Result<(), CgroupError> {
        self.set_cpu(limits)?;
        self.set_cpuset(limits)?;
        self.set_memory(limits)?;
        if let Some(pids) = limits.pids {
            self.group("pids")?.write("pids.max", &or_max(pids))?;
        }
        self.set_hugepages(&limits.hugepages)?;
        limits.unified.iter().try_for_each(|(file, value)| self.set_unified(file, value))
    }

    /// Huge pages of a host that does not count them, or has none of a size, cannot be limited: a kubelet sends a limit
    /// for every size all the same, and no runtime fails for it.
    fn set_hugepages(&self, limits: &[(String, String)]) -> Result<(), CgroupError> {
        static WARNED: Once = Once::new();
        // Beside the hierarchies of version 1, the tree of version 2 carries no controller of ours.
        let counted = self.group("hugetlb").ok().filter(|group| self.unified || group.is(Version::V1));
        let Some(group) = counted else {
            if limits.iter().any(|(_, limit)| limit != "0") {
                WARNED.call_once(|| tracing::warn!("huge pages are not limited on this host: said once"));
            }
            return Ok(());
        };
        let file = if group.is(Version::V1) { "limit_in_bytes" } else { "max" };
        for (size, limit) in limits {
            let there = group.write_if_there(&format!("hugetlb.{size}.{file}"), limit)?;
            if !there && limit != "0" {
                let reason = "this host has no huge pages of this size";
                return Err(CgroupError::Limit { limit: "hugetlb", reason });
            }
        }
        Ok(())
    }

    /// A key of the runtime spec's `unified`: a file of the group itself that sets a limit, nothing that steers it.
    fn set_unified(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_');
        if !file.bytes().all(plain)
            || file.starts_with("cgroup.")
            || !file.contains('.')
            || file.starts_with('.')
        {
            return Err(CgroupError::Limit { limit: "unified", reason: "is not a limit file of cgroup v2" });
        }
        match self.groups.first().filter(|_| self.unified) {
            Some(group) => group.write(file, value),
            None => Err(CgroupError::Limit { limit: "unified", reason: "needs cgroup v2" }),
        }
    }

    /// As [`Self::set_limits`] for a group that is in use: when one is refused, what was there before is put back.
    ///
    /// # Errors
    /// As [`Self::set_limits`].
    pub fn change_limits(&self, limits: &Limits) -> Result<(), CgroupError> {
        let before = self.limit_files();
        self.set_limits(limits).inspect_err(|_| self.put_back(&before))
    }

    /// What the limit files hold now.
    fn limit_files(&self) -> Vec<(&Group, &'static str, String)> {
        let mut files = Vec::new();
        for group in &self.groups {
            for file in FILES {
                // A file that this version or this kernel does not have was not written either.
                if let Ok(value) = group.read(file) {
                    files.push((group, file, value.trim().to_owned()));
                }
            }
        }
        files
    }

    /// Twice: v1 keeps one limit of memory below another, so the first round may be refused where the second is not.
    fn put_back(&self, files: &[(&Group, &'static str, String)]) {
        for _ in 0..2 {
            for (group, file, value) in files {
                if group.read(file).is_ok_and(|now| now.trim() == value) {
                    continue;
                }
                // Whoever asked is told what was refused; what cannot be put back stays as it is.
                let _ = group.write(file, value);
            }
        }
    }

    fn set_cpu(&self, limits: &Limits) -> Result<(), CgroupError> {
        if limits.cpu_shares.is_none() && limits.cpu_quota.is_none() && limits.cpu_period.is_none() {
            return Ok(());
        }
        let group = self.group("cpu")?;
        match group.hierarchy.version {
            Version::V1 => set_cpu_v1(group, limits),
            Version::V2 => set_cpu_v2(group, limits),
        }
    }

    fn set_cpuset(&self, limits: &Limits) -> Result<(), CgroupError> {
        for (file, value) in [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)] {
            if let Some(value) = value {
                self.group("cpuset")?.write(file, value)?;
            }
        }
        Ok(())
    }

    fn set_memory(&self, limits: &Limits) -> Result<(), CgroupError> {
        if limits.memory.is_none() && limits.memory_swap.is_none() {
            return Ok(());
        }
        let group = self.group("memory")?;
        match group.hierarchy.version {
            Version::V1 => set_memory_v1(group, limits),
            Version::V2 => set_memory_v2(group, limits),
        }
    }
}

/// Negative is no limit.
fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn set_cpu_v1(group: &Group, limits: &Limits) -> Result<(), CgroupError> {
    if let Some(shares) = limits.cpu_shares {
        group.write("cpu.shares", &shares.to_string())?;
    }
    let period = limits.cpu_period.map(|period| period.to_string());
    let quota = limits.cpu_quota.map(|quota| quota.max(-1).to_string());
    if let Some(period) = &period
        && let Err(refused) = group.write("cpu.cfs_period_us", period)
    {
        // The old quota over the new period may be more than the parent allows: then the new quota goes first.
        let (Some(quota), true) = (&quota, is_invalid(&refused)) else { return Err(refused) };
        group.write("cpu.cfs_quota_us", quota)?;
        return group.write("cpu.cfs_period_us", period);
    }
    match quota {
        Some(quota) => group.write("cpu.cfs_quota_us", &quota),
        None => Ok(()),
    }
}

fn is_invalid(error: &CgroupError) -> bool {
    matches!(error, CgroupError::Value { source, .. } if Errno::from_io_error(source) == Some(Errno::INVAL))
}

fn set_cpu_v2(group: &Group, limits: &Limits) -> Result<(), CgroupError> {
    if let Some(shares) = limits.cpu_shares {
        group.write("cpu.weight", &weight(shares).to_string())?;
    }
    let value = match (limits.cpu_quota, limits.cpu_period) {
        (None, None) => return Ok(()),
        (Some(quota), None) => or_max(quota),
        (Some(quota), Some(period)) => format!("{} {period}", or_max(quota)),
        (None, Some(period)) => {
            // The file takes no period alone.
            let now = group.read("cpu.max")?;
            format!("{} {period}", now.split_whitespace().next().unwrap_or("max"))
        }
    };
    group.write("cpu.max", &value)
}

/// cpu.shares (2 to 262144, default 1024) to cpu.weight (1 to 10000, default 100): the quadratic curve through these
/// three points in the exponent, `10^((l² + 125 l)/612 - 7/34)` with `l = log2(shares)`, which runc 1.3 and crun 1.23
/// took in place of the straight line that gave 1 CPU of request a weight of 39.
fn weight(shares: u64) -> u64 {
    const FACTOR: f64 = 612.0;
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let shares = f64::from(u32::try_from(shares).unwrap_or(u32::MAX));
    let l = shares.log2();
    let exponent = (l * l + 125.0 * l) / FACTOR - 7.0 / 34.0;
    let exact = 10_f64.powf(exponent).ceil();
    // A float to an integer without a cast: the result lies within 1 to 10000, where a scan is exact and short.
    (1..=10_000_u32).find(|weight| f64::from(*weight) >= exact).map_or(10_000, u64::from)
}

/// v1 keeps `memory.limit_in_bytes <= memory.memsw.limit_in_bytes` at every moment: the order depends on where they are.
fn set_memory_v1(group: &Group, limits: &Limits) -> Result<(), CgroupError> {
    const MEMORY: &str = "memory.limit_in_bytes";
    const BOTH: &str = "memory.memsw.limit_in_bytes";
    let memory = limits.memory.map(|memory| memory.max(-1));
    // No memory limit with the old limit on both together would be refused, and means no limit at all.
    let both = limits.memory_swap.map(|both| both.max(-1));
    let Some(both) = both else {
        let Some(memory) = memory else { return Ok(()) };
        if memory < 0 {
            group.write_if_there(BOTH, "-1")?;
        }
        return group.write(MEMORY, &memory.to_string());
    };
    check_swap(memory, both)?;
    let Some(memory) = memory else { return group.write(BOTH, &both.to_string()) };
    let now = group.read(BOTH)?;
    let now: u64 =
        now.trim().parse().map_err(|_| CgroupError::Content { path: group.file(BOTH), field: "number" })?;
    let grows = u64::try_from(both).map_or(true, |both| both > now);
    if grows {
        group.write(BOTH, &both.to_string())?;
        return group.write(MEMORY, &memory.to_string());
    }
    group.write(MEMORY, &memory.to_string())?;
    group.write(BOTH, &both.to_string())
}

/// v2 limits swap alone, not memory and swap together.
fn set_memory_v2(group: &Group, limits: &Limits) -> Result<(), CgroupError> {
    let memory = limits.memory.map(|memory| memory.max(-1));
    if let Some(both) = limits.memory_swap {
        check_swap(memory, both.max(-1))?;
        let swap = match (both, memory) {
            (..0, _) => "max".to_owned(),
            (both, Some(memory @ 0..)) => (both - memory).to_string(),
            _ => {
                return Err(CgroupError::Limit {
                    limit: "memory.swap",
                    reason: "needs a limit of memory beside it on cgroup v2",
                });
            }
        };
        let there = group.write_if_there("memory.swap.max", &swap)?;
        if !there && swap != "max" {
            let missing = Errno::NOENT;
            return Err(CgroupError::system("open", group.file("memory.swap.max"), missing));
        }
    }
    match memory {
        Some(memory) => group.write("memory.max", &or_max(memory)),
        None => Ok(()),
    }
}

/// Memory and swap together cannot be less than memory alone.
fn check_swap(memory: Option<i64>, both: i64) -> Result<(), CgroupError> {
    let contradiction = match memory {
        _ if both < 0 => false,
        Some(memory) => memory < 0 || both < memory,
        None => false,
    };
    if contradiction {
        let reason = "memory and swap together are limited to less than memory alone";
        return Err(CgroupError::Limit { limit: "memory.swap", reason });
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::super::testing::Scratch;
    use super::*;

    /// What the files hold, v1 or v2.
    fn value(cgroup: &Cgroup, controller: &'static str, v1: &str, v2: &str) -> String {
        let group = cgroup.group(controller).unwrap();
        group.read(if group.is(Version::V1) { v1 } else { v2 }).unwrap().trim().to_owned()
    }

    fn memory(cgroup: &Cgroup) -> String {
        value(cgroup, "memory", "memory.limit_in_bytes", "memory.max")
    }

    #[test]
    fn writes_every_limit() {
        let scratch = Scratch::new("limits");
        let cgroup = scratch.create("pod");
        let limits = Limits {
            cpu_shares: Some(512),
            cpu_quota: Some(20_000),
            cpu_period: Some(50_000),
            cpuset_cpus: Some("0".into()),
            cpuset_mems: Some("0".into()),
            memory: Some(64 << 20),
            memory_swap: Some(64 << 20),
            pids: Some(33),
            ..Limits::default()
        };
        for _ in 0..2 {
            cgroup.set_limits(&limits).unwrap();
        }
        assert_eq!(memory(&cgroup), (64 << 20).to_string());
        assert_eq!(value(&cgroup, "pids", "pids.max", "pids.max"), "33");
        assert_eq!(value(&cgroup, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
        assert!(["512", "59"].contains(&&*value(&cgroup, "cpu", "cpu.shares", "cpu.weight")));
        let quota = value(&cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max");
        assert!(["20000", "20000 50000"].contains(&&*quota), "{quota}");
    }

    #[test]
    fn memory_goes_up_and_down_with_swap() {
        let scratch = Scratch::new("memory");
        let cgroup = scratch.create("pod");
        for (bytes, both) in [(64, 64), (128, 256), (32, 32), (32, 128), (16, 16)] {
            let limits =
                Limits { memory: Some(bytes << 20), memory_swap: Some(both << 20), ..Default::default() };
            cgroup.set_limits(&limits).unwrap();
            assert_eq!(memory(&cgroup), (bytes << 20).to_string(), "{bytes} {both}");
        }
        cgroup.set_limits(&Limits { memory: Some(-1), ..Default::default() }).unwrap();
        assert!(memory(&cgroup) == "max" || memory(&cgroup).parse::<u64>().unwrap() > 1 << 60);
        let lifted = Limits { memory: Some(64 << 20), memory_swap: Some(-1), ..Default::default() };
        cgroup.set_limits(&lifted).unwrap();
        assert_eq!(memory(&cgroup), (64 << 20).to_string());
    }

    #[test]
    fn a_new_period_may_need_the_new_quota_first() {
        let scratch = Scratch::new("period");
        let parent = scratch.create("pod");
        let child = scratch.create("pod/child");
        let limits =
            |quota, period| Limits { cpu_quota: Some(quota), cpu_period: Some(period), ..Default::default() };
        parent.set_limits(&limits(50_000, 100_000)).unwrap();
        child.set_limits(&limits(50_000, 100_000)).unwrap();
        child.set_limits(&limits(5_000, 10_000)).unwrap();
        child.set_limits(&limits(-1, 10_000)).unwrap();
    }

    #[test]
    fn a_refused_value_is_named() {
        let scratch = Scratch::new("refused");
        let cgroup = scratch.create("pod");
        let cases = [
            (Limits { cpuset_cpus: Some("4000".into()), ..Default::default() }, "4000", "cpuset.cpus"),
            (Limits { cpuset_mems: Some("x".into()), ..Default::default() }, "\"x\"", "cpuset.mems"),
            (Limits { cpu_period: Some(1), ..Default::default() }, "\"1\"", "cpu."),
            (Limits { cpu_quota: Some(1), ..Default::default() }, "\"1\"", "cpu."),
            (
                Limits { memory: Some(64 << 20), memory_swap: Some(1 << 20), ..Default::default() },
                "less than",
                "memory.swap",
            ),
            (
                Limits { memory: Some(-1), memory_swap: Some(1 << 20), ..Default::default() },
                "less than",
                "memory.swap",
            ),
        ];
        for (limits, value, file) in cases {
            let error = cgroup.set_limits(&limits).unwrap_err().to_string();
            assert!(error.contains(value) && error.contains(file), "{error}");
        }
    }

    #[test]
    fn a_refused_change_leaves_what_was_there() {
        let scratch = Scratch::new("change");
        let cgroup = scratch.create("pod");
        let first = Limits {
            cpu_shares: Some(512),
            memory: Some(64 << 20),
            memory_swap: Some(96 << 20),
            ..Default::default()
        };
        cgroup.set_limits(&first).unwrap();
        let before: Vec<String> = cgroup.limit_files().into_iter().map(|(_, _, value)| value).collect();
        let refused = Limits {
            cpu_shares: Some(1024),
            cpu_quota: Some(20_000),
            memory: Some(128 << 20),
            memory_swap: Some(128 << 20),
            pids: Some(i64::MIN),
            cpuset_cpus: Some("4000".into()),
            ..Default::default()
        };
        assert!(cgroup.change_limits(&refused).is_err());
        let after: Vec<String> = cgroup.limit_files().into_iter().map(|(_, _, value)| value).collect();
        assert_eq!(before, after);
        let grown = Limits { cpuset_cpus: None, pids: Some(5), ..refused };
        cgroup.change_limits(&grown).unwrap();
        assert_eq!(value(&cgroup, "pids", "pids.max", "pids.max"), "5");
    }

    #[test]
    fn shares_become_weights() {
        for (shares, expected) in [
            (0, 1),
            (1, 1),
            (2, 1),
            (102, 17),
            (512, 59),
            (1024, 100),
            (2048, 174),
            (262_143, 10_000),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn swap_is_checked_against_memory() {
        for (memory, both, fine) in [
            (None, -1, true),
            (None, 5, true),
            (Some(5), 5, true),
            (Some(5), -1, true),
            (Some(6), 5, false),
            (Some(-1), 5, false),
        ] {
            assert_eq!(check_swap(memory, both).is_ok(), fine, "{memory:?} {both}");
        }
    }
}
