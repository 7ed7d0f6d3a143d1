//! What one instance of Cove has in the kernel and on disk, by its names alone: unlike `leak`, this does not mind what
//! others do on the machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::daemon::Place;
use crate::{Outcome, audit, cgroup, wait};

/// How long things may take to go after the call that removed them was answered.
const SETTLE: Duration = Duration::from_secs(10);

/// Everything that belongs to a pod of the instance, one line each. `daemon` is the daemon's pid.
pub fn look(place: &Place, daemon: Option<u32>) -> Outcome<BTreeSet<String>> {
    let instance = &place.instance;
    let mut found = BTreeSet::new();
    for root in cgroup::roots()? {
        cgroups(&root.join(instance), daemon, &mut found)?;
    }
    for (directory, what, begin) in
        [("/run/netns", "netns", format!("{instance}-")), ("/sys/class/net", "link", instance.clone())]
    {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&begin) {
                found.insert(format!("{what} {name}"));
            }
        }
    }
    let roots = [place.root.display().to_string(), place.state.display().to_string()];
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        if roots.iter().any(|root| line.contains(root)) || line.contains(&format!("/run/netns/{instance}-")) {
            found.insert(format!("mount {line}"));
        }
    }
    let table = Command::new("nft").args(["list", "table", "inet", instance]).output()?;
    for line in String::from_utf8_lossy(&table.stdout).lines().map(str::trim) {
        // The elements of the maps of host ports; the types of their keys look alike.
        if line.contains(" : ") && !line.starts_with("type ") {
            found.insert(format!("nft {line}"));
        }
    }
    for (root, rooms) in [
        (&place.root, &["sandboxes", "containers", "trash", "quarantine"][..]),
        (&place.state, &["sandboxes"][..]),
    ] {
        for room in rooms {
            for entry in fs::read_dir(root.join(room)).into_iter().flatten().flatten() {
                found.insert(format!("file {}", entry.path().display()));
            }
        }
    }
    Ok(found)
}

fn cgroups(group: &Path, daemon: Option<u32>, found: &mut BTreeSet<String>) -> Outcome {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if path.file_name().is_none_or(|name| name != "shims") {
            found.insert(format!("cgroup {}", path.display()));
            cgroups(&path, daemon, found)?;
            continue;
        }
        // The daemon's own thread that starts shims lives there.
        for pid in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
            if daemon.map(|pid| pid.to_string()).as_deref() != Some(pid) {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                found.insert(format!("shim {pid} {}", String::from_utf8_lossy(&line).replace('\0', " ")));
            }
        }
    }
    Ok(())
}

/// Waits until nothing of a pod is left, and `cove audit` finds nothing either; says what is.
pub fn check(place: &Place, daemon: Option<u32>) -> Outcome {
    let mut left = BTreeSet::new();
    wait::until("everything to be gone", SETTLE, || {
        left = look(place, daemon)?;
        Ok(left.is_empty().then_some(()))
    })
    .map_err(|error| {
        let lines: Vec<_> = left.iter().map(String::as_str).collect();
        format!("{error}; left:\n  {}", lines.join("\n  "))
    })?;
    audit::check(place)
}
