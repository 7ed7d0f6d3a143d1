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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time since the group was made, in nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes and threads now.
    pub pids: u64,
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
        })
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
        let memory = memory(self.version, usage, limit, &text(&self.memory_stat)?);
        Ok(Stats { cpu_usage_ns, memory, pids: number(&text(&self.pids)?)? })
    }
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
fn field(text: &str, key: &str) -> Option<u64> {
    let (_, value) = text.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == key)?;
    value.trim().parse().ok()
}

fn number(text: &str) -> io::Result<u64> {
    text.trim().parse().map_err(|_| unexpected(text))
}

/// v2 says `max`; v1 shows the largest multiple of a page in an i64.
fn limit(text: &str) -> io::Result<Option<u64>> {
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
