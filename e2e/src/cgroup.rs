//! Control groups of this machine, of version 1 or 2, as a look from outside finds them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Outcome;

const ROOT: &str = "/sys/fs/cgroup";

/// Version 2 carries the controllers.
pub fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// The roots of the hierarchies.
pub fn roots() -> Outcome<Vec<PathBuf>> {
    if unified() {
        return Ok(vec![ROOT.into()]);
    }
    Ok(fs::read_dir(ROOT)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
}

/// The paths of a process in the hierarchies that a runtime places it in, by its /proc/PID/cgroup. Those without a
/// controller (`0::` beside version 1, `name=`) are left out.
pub fn paths(places: &str) -> Vec<&str> {
    let version_2 = unified();
    let path = |line| {
        let (controllers, path) = after_colon(line)?;
        let used = if version_2 { controllers.is_empty() } else { !controllers.is_empty() };
        (used && !controllers.starts_with("name=")).then_some(path)
    };
    places.lines().filter_map(path).collect()
}

/// Controllers and path of a line of /proc/PID/cgroup.
fn after_colon(line: &str) -> Option<(&str, &str)> {
    line.split_once(':')?.1.split_once(':')
}

/// The directory of a process in the hierarchy of `controller`, by its /proc/PID/cgroup as the host reads it.
pub fn directory(places: &str, controller: &str) -> Outcome<PathBuf> {
    let (hierarchy, wanted) = if unified() { ("", "") } else { (controller, controller) };
    let path = places
        .lines()
        .filter_map(after_colon)
        .find(|(names, _)| names.split(',').any(|name| name == wanted))
        .ok_or_else(|| format!("no {controller} in {places}"))?
        .1;
    Ok(Path::new(ROOT).join(hierarchy).join(path.trim_start_matches('/')))
}

/// Removes a group that a kubelet would have made, in every hierarchy where it is, as a kubelet does.
pub fn remove(path: &str) -> Outcome {
    for root in roots()? {
        let group = root.join(path.trim_start_matches('/'));
        if group.exists() {
            fs::remove_dir(&group).map_err(|error| format!("{}: {error}", group.display()))?;
        }
    }
    Ok(())
}
