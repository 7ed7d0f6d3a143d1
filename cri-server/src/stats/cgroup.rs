//! Readers of cgroups by the id of whose they are: their files stay open from the first reading to the end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cove_runtime::cgroup::StatsReader;

use super::Reading;
use crate::error::Error;
use crate::node::Node;

/// The least time between two readings that a rate is told from: the kernel counts CPU time in ticks of up to 10 ms.
const RATE_AFTER: Duration = Duration::from_secs(1);

/// See the module's header.
#[derive(Debug, Default)]
pub(super) struct Readers(Mutex<BTreeMap<String, Arc<Entry>>>);

#[derive(Debug)]
struct Entry {
    reader: StatsReader,
    last: Mutex<Option<Sample>>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    cpu_ns: u64,
    nano_cores: Option<u64>,
}

impl Readers {
    /// Reads the cgroup at `path`; none if it is gone. Blocking.
    pub(super) fn read(&self, node: &Node, id: &str, path: &Path) -> Result<Option<Reading>, Error> {
        let Some(entry) = self.entry(node, id, path)? else { return Ok(None) };
        let read = entry
            .reader
            .read()
            .map_err(|error| Error::system("read cgroup", path.display().to_string(), error))?;
        let Some(stats) = read else {
            self.locked().remove(id);
            return Ok(None);
        };
        let nano_cores = entry.rate(Instant::now(), stats.cpu_usage_ns);
        Ok(Some(Reading { at: node.clock.now(), stats, nano_cores }))
    }

    fn entry(&self, node: &Node, id: &str, path: &Path) -> Result<Option<Arc<Entry>>, Error> {
        if let Some(entry) = self.locked().get(id) {
            return Ok(Some(Arc::clone(entry)));
        }
        let Some(reader) = node.cgroups.reader(path)? else { return Ok(None) };
        let entry = Arc::new(Entry { reader, last: Mutex::default() });
        self.locked().insert(id.to_owned(), Arc::clone(&entry));
        Ok(Some(entry))
    }

    /// Closes the files of those that are not `wanted`.
    pub(super) fn retain(&self, wanted: impl Fn(&str) -> bool) {
        self.locked().retain(|id, _| wanted(id));
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Billionths of a CPU since the last reading that is old enough to tell; until the next, the last answer stands.
    fn rate(&self, now: Instant, cpu_ns: u64) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let next = match *last {
            None => Sample { at: now, cpu_ns, nano_cores: None },
            Some(sample) if now.duration_since(sample.at) < RATE_AFTER => return sample.nano_cores,
            Some(sample) => Sample { at: now, cpu_ns, nano_cores: Some(rate(sample, now, cpu_ns)) },
        };
        *last = Some(next);
        next.nano_cores
    }
}

fn rate(since: Sample, now: Instant, cpu_ns: u64) -> u64 {
    let used = u128::from(cpu_ns.saturating_sub(since.cpu_ns));
    let elapsed = now.duration_since(since.at).as_nanos().max(1);
    u64::try_from(used.saturating_mul(1_000_000_000) / elapsed).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_in_billionths_of_a_cpu() {
        let at = Instant::now();
        let since = Sample { at, cpu_ns: 1_000, nano_cores: None };
        let after = |seconds| at + Duration::from_secs(seconds);
        assert_eq!(rate(since, after(10), 5_000_001_000), 500_000_000);
        assert_eq!(rate(since, after(1), 1_000), 0);
        assert_eq!(rate(since, after(1), 0), 0, "a counter never goes back");
        assert!(rate(since, at, u64::MAX) > 0);
    }
}
