//! Control groups, versions 1 and 2: the tree, limits, out-of-memory counts, kill, statistics, device rules. See
//! cgroups(7) and the kernel's admin-guide/cgroup-v2 and admin-guide/cgroup-v1.
//!
//! A [`Cgroup`] is one directory descriptor a hierarchy; every file is opened below that descriptor, so no name is
//! ever resolved twice. A host has either the version 2 tree with its controllers (*unified*), or version 1
//! hierarchies, beside which an almost empty version 2 tree may be mounted (*hybrid*): a group then exists in that
//! one too, because `cgroup.kill` works there. Nothing here removes, renames or kills a group that it was not
//! asked for by path.

mod detail;
mod devices;
mod error;
mod events;
mod group;
mod hierarchy;
mod inventory;
mod kill;
mod limits;
mod path;
mod stats;
mod tree;

pub use detail::{CpuDetail, Detail, DeviceIo, HugePages, MemoryDetail, Throttling};
pub use devices::DeviceRule;
pub use error::CgroupError;
pub use group::Cgroup;
pub use inventory::Present;
pub use limits::Limits;
pub use path::CgroupPath;
pub use stats::{MemoryStats, Pressure, Stall, Stats, StatsReader, SwapStats};
pub use tree::Hierarchies;

#[cfg(test)]
mod testing;
