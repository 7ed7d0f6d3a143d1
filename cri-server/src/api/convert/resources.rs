//! `LinuxContainerResources`: of a container, of its update, and of a pod.

use super::super::wire;
use super::field::{no_control, within, word};
use crate::container::config::Resources;
use crate::error::Error;

/// The longest name of a file: NAME_MAX (limits.h).
const MAX_KEY: usize = 255;

/// Bounds are the kernel's: cpu.cfs_* and cpu.shares of cgroup v1, oom_score_adj of proc(5). 0 is "not given".
pub(super) fn resources(under: &str, linux: wire::LinuxContainerResources) -> Result<Resources, Error> {
    let at = |field: &str| format!("{under}.{field}");
    for (file, value) in &linux.unified {
        word(&at("unified"), file, MAX_KEY)?;
        no_control(&at("unified"), value)?;
    }
    let or_unset = |field: &str, value: i64, bounds| {
        if value == 0 { Ok(0) } else { within(&at(field), value, bounds) }
    };
    Ok(Resources {
        cpu_period: or_unset("cpu_period", linux.cpu_period, 1_000..=1_000_000)?,
        cpu_quota: or_unset("cpu_quota", linux.cpu_quota, -1..=i64::MAX)?,
        cpu_shares: or_unset("cpu_shares", linux.cpu_shares, 2..=262_144)?,
        memory_limit: or_unset("memory_limit_in_bytes", linux.memory_limit_in_bytes, -1..=i64::MAX)?,
        memory_swap_limit: or_unset(
            "memory_swap_limit_in_bytes",
            linux.memory_swap_limit_in_bytes,
            -1..=i64::MAX,
        )?,
        oom_score_adj: within(&at("oom_score_adj"), linux.oom_score_adj, -1000..=1000)?,
        cpuset_cpus: set(&at("cpuset_cpus"), linux.cpuset_cpus)?,
        cpuset_mems: set(&at("cpuset_mems"), linux.cpuset_mems)?,
        hugepages: linux
            .hugepage_limits
            .into_iter()
            .enumerate()
            .map(|(index, limit)| hugepage(&at(&format!("hugepage_limits[{index}].page_size")), limit))
            .collect::<Result<_, _>>()?,
        unified: linux.unified,
    })
}

/// The page size is part of a file's name: `2MB`, `1GB`, as the kernel writes it.
fn hugepage(field: &str, limit: wire::HugepageLimit) -> Result<(String, u64), Error> {
    let size = &limit.page_size;
    let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit)).unwrap_or_default();
    if digits.is_empty() || digits.len() > 5 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::invalid(field, format!("{size:?} is not a page size such as 2MB")));
    }
    Ok((limit.page_size, limit.limit))
}

/// The limits of UpdateContainerResources.
pub(in crate::api) fn update(linux: Option<wire::LinuxContainerResources>) -> Result<Resources, Error> {
    resources("linux", linux.unwrap_or_default())
}

/// The limits of UpdatePodSandboxResources, checked like a container's.
pub(in crate::api) fn of_pod(
    field: &str,
    linux: Option<wire::LinuxContainerResources>,
) -> Result<Option<Resources>, Error> {
    linux.map(|linux| resources(field, linux)).transpose()
}

/// The list form of cpuset(7): `0-3,7`.
fn set(field: &str, value: String) -> Result<String, Error> {
    let number = |text: &str| !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => number(first) && number(last),
        None => number(part),
    };
    if value.is_empty() || value.split(',').all(range) {
        Ok(value)
    } else {
        Err(Error::invalid(field, format!("{value:?} is not a list such as 0-3,7")))
    }
}
