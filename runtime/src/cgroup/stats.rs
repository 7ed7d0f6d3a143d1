//! What a cgroup has used, read through files that stay open: a listing of a hundred containers opens nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;

use super::CgroupError;
use super::group::{Cgroup, is_gone};
use super::hierarchy::Version;

/// First size of the buffer for one file: memory.stat, the longest, has about 2 KiB.
const FILE_SIZE: usize = 4096;

/// What a cgroup and those below it have used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// CPU time since the group was made, in nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory.
    pub memory: MemoryStats,
    /// Swap; `None` where the kernel does not count it.
    pub swap: Option<SwapStats>,
    /// Processes and threads now.
    pub pids: u64,
    /// Waiting for CPU; `None` where the kernel does not measure it (cgroup v1, or PSI turned off).
    pub cpu_pressure: Option<Pressure>,
    /// Waiting for memory.
    pub memory_pressure: Option<Pressure>,
    /// Waiting for disks.
    pub io_pressure: Option<Pressure>,
}

/// Swap that a cgroup uses, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SwapStats {
    /// In use.
    pub usage: u64,
    /// The most that may be; `None` without a limit.
    pub limit: Option<u64>,
}

/// Pressure stall information: the kernel's accounting/psi.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Some process waited.
    pub some: Stall,
    /// Every process waited.
    pub full: Stall,
}

/// How long processes waited.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last 60 seconds.
    pub avg60: f64,
    /// Percent of the last 300 seconds.
    pub avg300: f64,
    /// In all, in nanoseconds.
    pub total_ns: u64,
}

/// Memory that a cgroup uses, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// All that is charged, page cache included.
    pub usage: u64,
    /// `usage` without the page cache that was not used lately: what the kubelet evicts by.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page faults since the group was made.
    pub page_faults: u64,
    /// Those that waited for a disk.
    pub major_page_faults: u64,
    /// The limit; `None` without one.
    pub limit: Option<u64>,
}

/// The open files of one group.
#[derive(Debug)]
pub struct StatsReader {
    version: Version,
    cpu: File,
    memory_usage: File,
    memory_limit: File,
    memory_stat: File,
    pids: File,
    /// v2 where swap is counted: what is used, and the limit.
    swap: Option<(File, File)>,
    /// v2 where pressure is measured: of cpu, memory and io.
    pressure: [Option<File>; 3],
}

impl Cgroup {
    /// Opens the files that statistics come from.
    ///
    /// # Errors
    /// The group is gone, a controller is missing, or descriptors are used up.
    pub fn stats(&self) -> Result<StatsReader, CgroupError> {
        let version = if self.unified { Version::V2 } else { Version::V1 };
        let open = |controller, v1, v2| -> Result<File, CgroupError> {
            let name = if version == Version::V1 { v1 } else { v2 };
            Ok(File::from(self.group(controller)?.open_file(name, OFlags::RDONLY)?))
        };
        let cpu = if self.unified { "cpu" } else { "cpuacct" };
        Ok(StatsReader {
            version,
            cpu: open(cpu, "cpuacct.usage", "cpu.stat")?,
            memory_usage: open("memory", "memory.usage_in_bytes", "memory.current")?,
            memory_limit: open("memory", "memory.limit_in_bytes", "memory.max")?,
            memory_stat: open("memory", "memory.stat", "memory.stat")?,
            pids: open("pids", "pids.current", "pids.current")?,
            swap: self.open_if_there("memory.swap.current")?.zip(self.open_if_there("memory.swap.max")?),
            pressure: [
                self.open_if_there("cpu.pressure")?,
                self.open_if_there("memory.pressure")?,
                self.open_if_there("io.pressure")?,
            ],
        })
    }

    /// A file of v2 that depends on the kernel's configuration.
    fn open_if_there(&self, name: &str) -> Result<Option<File>, CgroupError> {
        let Some(group) = self.groups.first().filter(|_| self.unified) else { return Ok(None) };
        match group.open_file(name, OFlags::RDONLY) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(CgroupError::System { source, .. }) if is_gone(&source) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl StatsReader {
    /// Reads now. `None` when the group has been removed.
    ///
    /// # Errors
    /// A read fails, or a file holds something unexpected.
    pub fn read(&self) -> io::Result<Option<Stats>> {
        match self.try_read() {
            Ok(stats) => Ok(Some(stats)),
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn try_read(&self) -> io::Result<Stats> {
        let cpu = text(&self.cpu)?;
        let cpu_usage_ns = match self.version {
            Version::V1 => number(&cpu)?,
            Version::V2 => field(&cpu, "usage_usec").ok_or_else(|| unexpected(&cpu))?.saturating_mul(1000),
        };
        let usage = number(&text(&self.memory_usage)?)?;
        let limit = limit(&text(&self.memory_limit)?)?;
        let stat = text(&self.memory_stat)?;
        let memory = memory(self.version, usage, limit, &stat);
        let swap = match (&self.version, &self.swap) {
            (Version::V1, _) => swap_v1(&stat),
            (Version::V2, None) => None,
            (Version::V2, Some((usage, max))) => {
                Some(SwapStats { usage: number(&text(usage)?)?, limit: self::limit(&text(max)?)? })
            }
        };
        let [cpu_pressure, memory_pressure, io_pressure] =
            self.pressure.each_ref().map(|file| file.as_ref().map_or(Ok(None), pressure));
        Ok(Stats {
            cpu_usage_ns,
            memory,
            swap,
            pids: number(&text(&self.pids)?)?,
            cpu_pressure: cpu_pressure?,
            memory_pressure: memory_pressure?,
            io_pressure: io_pressure?,
        })
    }
}

/// v1 counts memory and swap together, and tells both limits in memory.stat; none of it where swap is not counted.
fn swap_v1(stat: &str) -> Option<SwapStats> {
    const NONE: u64 = 1 << 62;
    let usage = field(stat, "total_swap")?;
    let (memory, both) =
        (field(stat, "hierarchical_memory_limit")?, field(stat, "hierarchical_memsw_limit")?);
    Some(SwapStats { usage, limit: (both < NONE).then(|| both.saturating_sub(memory)) })
}

/// Not measured is no error: PSI can be turned off at boot, and then these files refuse to be read.
fn pressure(file: &File) -> io::Result<Option<Pressure>> {
    match text(file) {
        Ok(text) => Ok(parse_pressure(&text)),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and a line for `full`, which cpu had not before 5.13.
fn parse_pressure(text: &str) -> Option<Pressure> {
    let stall = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let value = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let average = |key: &str| value(key)?.parse().ok();
        Some(Stall {
            avg10: average("avg10")?,
            avg60: average("avg60")?,
            avg300: average("avg300")?,
            total_ns: value("total")?.parse::<u64>().ok()?.saturating_mul(1000),
        })
    };
    Some(Pressure { some: stall("some")?, full: stall("full").unwrap_or_default() })
}

fn memory(version: Version, usage: u64, limit: Option<u64>, stat: &str) -> MemoryStats {
    // v1 has each key twice: for the group alone, and as `total_` with those below it.
    let [inactive, rss, faults, major] = match version {
        Version::V1 => ["total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault"],
        Version::V2 => ["inactive_file", "anon", "pgfault", "pgmajfault"],
    };
    let value = |key| field(stat, key).unwrap_or_default();
    MemoryStats {
        usage,
        working_set: usage.saturating_sub(value(inactive)),
        rss: value(rss),
        page_faults: value(faults),
        major_page_faults: value(major),
        limit,
    }
}

/// The number of a `key number` line.
pub(super) fn field(text: &str, key: &str) -> Option<u64> {
    let (_, value) = text.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == key)?;
    value.trim().parse().ok()
}

fn number(text: &str) -> io::Result<u64> {
    text.trim().parse().map_err(|_| unexpected(text))
}

/// v2 says `max`; v1 shows the largest multiple of a page in an i64.
pub(super) fn limit(text: &str) -> io::Result<Option<u64>> {
    const V1_NONE: u64 = 1 << 62;
    if text.trim() == "max" {
        return Ok(None);
    }
    number(text).map(|limit| (limit < V1_NONE).then_some(limit))
}

fn unexpected(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected cgroup statistics: {text:?}"))
}

/// The whole file from its start, whatever was read before.
fn text(file: &File) -> io::Result<String> {
    let mut buffer = vec![0; FILE_SIZE];
    let mut length = 0;
    loop {
        let offset = u64::try_from(length).map_err(io::Error::other)?;
        match file.read_at(&mut buffer[length..], offset)? {
            0 => break,
            read => length += read,
        }
        if length == buffer.len() {
            buffer.resize(length * 2, 0);
        }
    }
    buffer.truncate(length);
    String::from_utf8(buffer).map_err(io::Error::other)
}

#[cfg(test)]
mod test {
    use super::super::Limits;
    use super::super::testing::{Scratch, Sleeper, wait_until};
    use super::*;

    #[test]
    fn reads_a_real_group_until_it_is_gone() {
        let scratch = Scratch::new("stats");
        let cgroup = scratch.create("pod");
        cgroup.set_limits(&Limits { memory: Some(64 << 20), ..Default::default() }).unwrap();
        let reader = cgroup.stats().unwrap();
        let sleeper = Sleeper::start();
        cgroup.add(sleeper.pid()).unwrap();

        wait_until("a process that has run", || {
            let stats = reader.read().unwrap().unwrap();
            assert_eq!(stats.memory.limit, Some(64 << 20));
            assert!(stats.memory.working_set <= stats.memory.usage);
            stats.pids == 1
        });
        drop(sleeper);
        scratch.hierarchies.remove(&scratch.path("pod")).unwrap();
        assert_eq!(reader.read().unwrap(), None);
    }

    #[test]
    fn tells_the_versions_apart() {
        let v1 = "inactive_file 1\nrss 2\ntotal_inactive_file 10\ntotal_rss 20\ntotal_pgfault 3\ntotal_pgmajfault 4\n";
        let v2 = "anon 20\ninactive_file 10\npgfault 3\npgmajfault 4\n";
        let expected = MemoryStats {
            usage: 100,
            working_set: 90,
            rss: 20,
            page_faults: 3,
            major_page_faults: 4,
            limit: Some(200),
        };
        assert_eq!(memory(Version::V1, 100, Some(200), v1), expected);
        assert_eq!(memory(Version::V2, 100, Some(200), v2), expected);
        assert_eq!(memory(Version::V2, 5, None, v2).working_set, 0);
    }

    #[test]
    fn reads_swap_and_pressure() {
        let stat = "hierarchical_memory_limit 100\nhierarchical_memsw_limit 150\ntotal_swap 7\n";
        assert_eq!(swap_v1(stat), Some(SwapStats { usage: 7, limit: Some(50) }));
        assert_eq!(swap_v1(&stat.replace("150", "9223372036854771712")).unwrap().limit, None);
        assert_eq!(swap_v1("total_rss 5\n"), None);
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=12\n";
        let read = parse_pressure(text).unwrap();
        assert_eq!((read.some.avg10, read.some.total_ns, read.full), (1.5, 12_000, Stall::default()));
        let both = format!("{text}full avg10=0.00 avg60=0.00 avg300=0.10 total=3\n");
        assert_eq!(parse_pressure(&both).unwrap().full.total_ns, 3000);
        for bad in
            ["", "some", "some avg10=x avg60=0 avg300=0 total=0", "full avg10=0 avg60=0 avg300=0 total=0"]
        {
            assert_eq!(parse_pressure(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn no_limit_has_two_spellings() {
        for (text, expected) in
            [("max\n", None), ("9223372036854771712\n", None), ("0", Some(0)), ("4096\n", Some(4096))]
        {
            assert_eq!(limit(text).unwrap(), expected, "{text:?}");
        }
        assert!(limit("").is_err());
        assert!(limit("-1").is_err());
    }
}
