//! What dashboards ask of a cgroup beyond `stats`: read once or twice a minute, so the files are opened for each reading
//! and none stays open. A figure that this kernel does not count is left out.

use super::CgroupError;
use super::group::{Cgroup, Group, is_gone};
use super::stats::{field, limit};

/// What a cgroup and those below it have used, in detail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detail {
    /// CPU time.
    pub cpu: CpuDetail,
    /// Memory.
    pub memory: MemoryDetail,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
    /// The most processes and threads that may be; `None` without a limit.
    pub pids_limit: Option<u64>,
    /// The processes now.
    pub processes: Vec<i32>,
    /// What went to and from each disk.
    pub io: Vec<DeviceIo>,
    /// Huge pages of each size that is in use.
    pub huge_pages: Vec<HugePages>,
}

/// CPU time in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuDetail {
    /// In user mode.
    pub user_ns: Option<u64>,
    /// In the kernel.
    pub system_ns: Option<u64>,
    /// What its quota held back.
    pub throttling: Option<Throttling>,
}

/// What a CPU quota held back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods in which something wanted to run.
    pub periods: u64,
    /// Those in which the quota was used up.
    pub throttled: u64,
    /// How long it was held back in all, in nanoseconds.
    pub throttled_ns: u64,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryDetail {
    /// Page cache.
    pub cache: Option<u64>,
    /// Mapped files.
    pub mapped_file: Option<u64>,
    /// Memory of the kernel's own.
    pub kernel: Option<u64>,
    /// The most that was ever in use.
    pub peak: Option<u64>,
    /// How often the limit was hit.
    pub failures: Option<u64>,
}

/// What went to and from a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Its number.
    pub major: u32,
    /// Its number.
    pub minor: u32,
    /// Bytes.
    pub read_bytes: u64,
    /// Bytes.
    pub written_bytes: u64,
    /// Requests.
    pub reads: u64,
    /// Requests.
    pub writes: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugePages {
    /// As the kernel writes it: `2MB`.
    pub size: String,
    /// In use.
    pub usage: u64,
    /// The most that was ever in use; v1 alone counts it.
    pub peak: Option<u64>,
}

impl Cgroup {
    /// Reads now. `None` when the group has been removed.
    ///
    /// # Errors
    /// A read fails, or descriptors are used up.
    pub fn detail(&self) -> Result<Option<Detail>, CgroupError> {
        let memory = match self.group("memory") {
            // The one file that every version has always had.
            Ok(memory) if memory.read_if_there("memory.stat")?.is_none() => return Ok(None),
            memory => memory?,
        };
        let pids_limit = self.group("pids")?.read_if_there("pids.max")?;
        Ok(Some(Detail {
            cpu: if self.unified { cpu_v2(self.group("cpu")?)? } else { self.cpu_v1()? },
            memory: if self.unified { memory_v2(memory)? } else { memory_v1(memory)? },
            oom_kills: memory
                .read_if_there(if self.unified { "memory.events" } else { "memory.oom_control" })?
                .and_then(|text| field(&text, "oom_kill")),
            pids_limit: pids_limit.and_then(|text| limit(&text).ok().flatten()),
            processes: self.pids()?,
            io: self.io()?,
            huge_pages: self.huge_pages()?,
        }))
    }

    fn cpu_v1(&self) -> Result<CpuDetail, CgroupError> {
        let time = self.group("cpuacct")?;
        let stat = self.group("cpu")?.read_if_there("cpu.stat")?;
        Ok(CpuDetail {
            user_ns: time.number("cpuacct.usage_user")?,
            system_ns: time.number("cpuacct.usage_sys")?,
            throttling: stat.and_then(|stat| throttling(&stat, "throttled_time", 1)),
        })
    }

    /// v1 has two files, v2 one. Where the controller is not there, nothing is counted.
    fn io(&self) -> Result<Vec<DeviceIo>, CgroupError> {
        if self.unified {
            let Ok(group) = self.group("io") else { return Ok(Vec::new()) };
            return Ok(io_v2(&group.read_if_there("io.stat")?.unwrap_or_default()));
        }
        let Ok(group) = self.group("blkio") else { return Ok(Vec::new()) };
        let read = |name| group.read_if_there(name).map(Option::unwrap_or_default);
        Ok(io_v1(
            &read("blkio.throttle.io_service_bytes_recursive")?,
            &read("blkio.throttle.io_serviced_recursive")?,
        ))
    }

    fn huge_pages(&self) -> Result<Vec<HugePages>, CgroupError> {
        let Ok(group) = self.group("hugetlb") else { return Ok(Vec::new()) };
        let (now, peak) =
            if self.unified { ("current", None) } else { ("usage_in_bytes", Some("max_usage_in_bytes")) };
        let mut all = Vec::new();
        for size in sizes() {
            let Some(usage) = group.number(&format!("hugetlb.{size}.{now}"))? else { continue };
            let peak = match peak {
                Some(peak) => group.number(&format!("hugetlb.{size}.{peak}"))?,
                None => None,
            };
            all.push(HugePages { size, usage, peak });
        }
        Ok(all)
    }
}

impl Group {
    /// A control file whole; `None` where the kernel or the group has none.
    fn read_if_there(&self, name: &str) -> Result<Option<String>, CgroupError> {
        match self.read(name) {
            Ok(text) => Ok(Some(text)),
            Err(CgroupError::System { source, .. }) if is_gone(&source) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A control file that holds one number.
    fn number(&self, name: &str) -> Result<Option<u64>, CgroupError> {
        Ok(self.read_if_there(name)?.and_then(|text| text.trim().parse().ok()))
    }
}

/// Page sizes of this host, as cgroup files write them: Documentation/admin-guide/mm/hugetlbpage.rst.
fn sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let kilobytes = |name: &str| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok();
    let mut all: Vec<u64> =
        entries.flatten().filter_map(|entry| kilobytes(entry.file_name().to_str()?)).collect();
    all.sort_unstable();
    all.into_iter().map(size).collect()
}

fn size(kilobytes: u64) -> String {
    match kilobytes {
        kilobytes if kilobytes >= 1 << 20 => format!("{}GB", kilobytes >> 20),
        kilobytes if kilobytes >= 1 << 10 => format!("{}MB", kilobytes >> 10),
        kilobytes => format!("{kilobytes}KB"),
    }
}

fn cpu_v2(group: &Group) -> Result<CpuDetail, CgroupError> {
    let stat = group.read_if_there("cpu.stat")?.unwrap_or_default();
    let nanoseconds = |key| field(&stat, key).map(|microseconds| microseconds.saturating_mul(1000));
    Ok(CpuDetail {
        user_ns: nanoseconds("user_usec"),
        system_ns: nanoseconds("system_usec"),
        throttling: throttling(&stat, "throttled_usec", 1000),
    })
}

fn throttling(stat: &str, time: &str, unit_ns: u64) -> Option<Throttling> {
    Some(Throttling {
        periods: field(stat, "nr_periods")?,
        throttled: field(stat, "nr_throttled")?,
        throttled_ns: field(stat, time)?.saturating_mul(unit_ns),
    })
}

fn memory_v1(group: &Group) -> Result<MemoryDetail, CgroupError> {
    let stat = group.read_if_there("memory.stat")?.unwrap_or_default();
    Ok(MemoryDetail {
        cache: field(&stat, "total_cache"),
        mapped_file: field(&stat, "total_mapped_file"),
        kernel: group.number("memory.kmem.usage_in_bytes")?,
        peak: group.number("memory.max_usage_in_bytes")?,
        failures: group.number("memory.failcnt")?,
    })
}

fn memory_v2(group: &Group) -> Result<MemoryDetail, CgroupError> {
    let stat = group.read_if_there("memory.stat")?.unwrap_or_default();
    let events = group.read_if_there("memory.events")?.unwrap_or_default();
    Ok(MemoryDetail {
        cache: field(&stat, "file"),
        mapped_file: field(&stat, "file_mapped"),
        // Since 5.18.
        kernel: field(&stat, "kernel"),
        // Since 5.19.
        peak: group.number("memory.peak")?,
        failures: field(&events, "max"),
    })
}

/// The entry of a disk, made if it is new.
fn disk<'a>(all: &'a mut Vec<DeviceIo>, number: &str) -> Option<&'a mut DeviceIo> {
    let (major, minor) = number.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let at = all.iter().position(|disk| (disk.major, disk.minor) == (major, minor)).unwrap_or_else(|| {
        all.push(DeviceIo { major, minor, ..DeviceIo::default() });
        all.len() - 1
    });
    all.get_mut(at)
}

/// Lines of `8:0 Read 4096`, and a total.
fn io_v1(bytes: &str, requests: &str) -> Vec<DeviceIo> {
    let mut all = Vec::new();
    for (text, in_bytes) in [(bytes, true), (requests, false)] {
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(number), Some(operation), Some(value)) = (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let (Some(disk), Ok(value)) = (disk(&mut all, number), value.parse()) else { continue };
            match (operation, in_bytes) {
                ("Read", true) => disk.read_bytes = value,
                ("Write", true) => disk.written_bytes = value,
                ("Read", false) => disk.reads = value,
                ("Write", false) => disk.writes = value,
                _ => {}
            }
        }
    }
    all
}

/// Lines of `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
fn io_v2(text: &str) -> Vec<DeviceIo> {
    let mut all = Vec::new();
    for line in text.lines() {
        let Some((number, rest)) = line.split_once(' ') else { continue };
        let value = |key: &str| {
            let found =
                rest.split(' ').filter_map(|word| word.split_once('=')).find(|(name, _)| *name == key);
            found.and_then(|(_, value)| value.parse().ok()).unwrap_or_default()
        };
        let Some(disk) = disk(&mut all, number) else { continue };
        (disk.read_bytes, disk.written_bytes) = (value("rbytes"), value("wbytes"));
        (disk.reads, disk.writes) = (value("rios"), value("wios"));
    }
    all
}

#[cfg(test)]
mod test {
    use super::super::Limits;
    use super::super::testing::{Scratch, Sleeper};
    use super::*;

    #[test]
    fn reads_a_real_group_until_it_is_gone() {
        let scratch = Scratch::new("detail");
        let cgroup = scratch.create("pod");
        let limits =
            Limits { memory: Some(64 << 20), pids: Some(7), cpu_quota: Some(20_000), ..Default::default() };
        cgroup.set_limits(&limits).unwrap();
        let sleeper = Sleeper::start();
        cgroup.add(sleeper.pid()).unwrap();
        let detail = cgroup.detail().unwrap().unwrap();
        assert_eq!((detail.pids_limit, detail.oom_kills), (Some(7), Some(0)));
        assert_eq!(detail.processes, [sleeper.pid()]);
        assert!(detail.cpu.user_ns.is_some() && detail.cpu.system_ns.is_some());
        assert!(detail.cpu.throttling.is_some() && detail.memory.failures == Some(0));
        assert!(detail.memory.cache.is_some() && detail.memory.mapped_file.is_some());
        drop(sleeper);
        scratch.hierarchies.remove(&scratch.path("pod")).unwrap();
        assert_eq!(cgroup.detail().unwrap(), None);
    }

    #[test]
    fn disks_of_both_versions() {
        let v1 = io_v1(
            "8:0 Read 4096\n8:0 Write 10\n8:0 Sync 1\n8:16 Read 5\nTotal 4111\n",
            "8:0 Read 3\n8:16 Write 2\nx\n8:0 Read x\n",
        );
        let first = DeviceIo { major: 8, minor: 0, read_bytes: 4096, written_bytes: 10, reads: 3, writes: 0 };
        let second = DeviceIo { major: 8, minor: 16, read_bytes: 5, writes: 2, ..DeviceIo::default() };
        assert_eq!(v1, [first, second]);
        let v2 =
            io_v2("8:0 rbytes=4096 wbytes=10 rios=3 wios=0 dbytes=9 dios=9\n8:16 rbytes=5 wios=2\nbad\n");
        assert_eq!(v2, [first, second]);
    }

    #[test]
    fn sizes_are_written_as_the_kernel_does() {
        for (kilobytes, text) in [(64, "64KB"), (2048, "2MB"), (32_768, "32MB"), (1_048_576, "1GB")] {
            assert_eq!(size(kilobytes), text);
        }
    }
}
