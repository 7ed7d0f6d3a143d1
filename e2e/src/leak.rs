//! What is on the machine that a runtime may leave behind, before and after.
//!
//! Processes (by name, executable and namespace), the host's mount table, network namespaces by name, links,
//! nftables, cgroups of every hierarchy, sysctls, and files under the roots under test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{Outcome, cgroup, wait};

/// How long things may take to go after the call that removed them was answered.
const SETTLE: Duration = Duration::from_secs(5);

/// Sysctls that change by themselves.
const VOLATILE: &[&str] = &[
    "fs/dentry-state",
    "fs/file-nr",
    "fs/inode-nr",
    "fs/inode-state",
    "fs/aio-nr",
    "fs/quota",
    "kernel/random",
    "kernel/ns_last_pid",
    "kernel/pty/nr",
    "kernel/perf_",
    "kernel/sched_",
    "kernel/tainted",
    "net/netfilter/nf_conntrack_count",
    "net/ipv4/conf/",
    "net/ipv6/conf/",
    "net/ipv4/neigh/",
    "net/ipv6/neigh/",
    "net/mptcp",
    "vm/stat_refresh",
];
/// Links whose settings are looked at all the same.
const EVERY_LINK: &[&str] = &["/conf/all/", "/conf/default/", "/conf/lo/"];

/// One line for each thing found.
pub type Found = BTreeSet<String>;

/// Looks at the whole machine, and at the files below `roots` but those below a directory called `images`.
pub fn snapshot(roots: &[PathBuf]) -> Outcome<Found> {
    let mut found = Found::new();
    processes(&mut found)?;
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        // Without the ids, which are given anew to mounts that come and go.
        let fields: Vec<_> = line.split(' ').collect();
        found.insert(format!("mount {} {}", fields[4], fields[3]));
    }
    names("/run/netns", "netns", &mut found);
    names("/sys/class/net", "link", &mut found);
    if let Ok(rules) = Command::new("nft").args(["--stateless", "list", "ruleset"]).output() {
        found.extend(
            String::from_utf8_lossy(&rules.stdout)
                .lines()
                .map(|line| format!("nft {}", uncounted(line.trim()))),
        );
    }
    for root in cgroup::roots()? {
        directories(&root, "cgroup", &mut found);
    }
    sysctls(Path::new("/proc/sys"), &mut found);
    for root in roots {
        // The rooms of a root are made once and stay; what is in them comes and goes.
        for room in fs::read_dir(root).into_iter().flatten().flatten() {
            files(&room.path(), &mut found);
        }
    }
    Ok(found)
}

/// Waits until nothing is there that was not there before; says what is.
pub fn check(before: &Found, roots: &[PathBuf]) -> Outcome {
    check_where(before, roots, |_| true)
}

/// The same for the lines that count.
pub fn check_where(before: &Found, roots: &[PathBuf], counts: impl Fn(&str) -> bool) -> Outcome {
    let mut left = Vec::new();
    wait::until("everything to be gone", SETTLE, || {
        let now: Found = snapshot(roots)?.into_iter().filter(|line| counts(line)).collect();
        left = now.difference(before).map(|line| format!("+ {line}")).collect();
        left.extend(
            before
                .difference(&now)
                .filter(|line| !line.starts_with("process"))
                .map(|line| format!("- {line}")),
        );
        Ok(left.is_empty().then_some(()))
    })
    .map_err(|error| format!("{error}; different from before:\n  {}", left.join("\n  ")).into())
}

/// A rule without what its counter stands at, which goes on whoever's rule it is.
fn uncounted(rule: &str) -> String {
    let mut words: Vec<&str> = rule.split(' ').collect();
    if let Some(at) = words.windows(4).position(|four| four[0] == "packets" && four[2] == "bytes") {
        (words[at + 1], words[at + 3]) = ("N", "N");
    }
    words.join(" ")
}

fn processes(found: &mut Found) -> Outcome {
    let host = fs::read_link("/proc/self/ns/mnt")?;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        if !path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit)) {
            continue;
        }
        // A process may end between any two of these looks.
        let comm = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let exe = fs::read_link(path.join("exe")).unwrap_or_default();
        let exe = exe.to_string_lossy();
        let named = |name: &str| name.trim_start_matches("memfd:").starts_with("cove");
        let ours = named(comm.trim()) && !comm.starts_with("cove_") || exe.contains("memfd:cove");
        let elsewhere = fs::read_link(path.join("ns/mnt")).is_ok_and(|ns| ns != host);
        if ours || elsewhere {
            let pid = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.insert(format!("process {pid} {} {exe}", comm.trim()));
        }
    }
    Ok(())
}

fn names(directory: &str, what: &str, found: &mut Found) {
    // Missing is empty.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        found.insert(format!("{what} {}", entry.file_name().to_string_lossy()));
    }
}

fn directories(root: &Path, what: &str, found: &mut Found) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.insert(format!("{what} {}", entry.path().display()));
            directories(&entry.path(), what, found);
        }
    }
}

fn sysctls(directory: &Path, found: &mut Found) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.strip_prefix("/proc/sys").unwrap_or(&path).to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sysctls(&path, found);
        } else if !VOLATILE.iter().any(|prefix| name.starts_with(prefix))
            || EVERY_LINK.iter().any(|part| name.contains(part))
        {
            // Some are write-only or need a capability.
            if let Ok(value) = fs::read(&path) {
                found.insert(format!("sysctl {name}={}", String::from_utf8_lossy(&value).trim()));
            }
        }
    }
}

fn files(root: &Path, found: &mut Found) {
    if root.file_name().is_some_and(|name| name == "images") {
        return;
    }
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        found.insert(format!("file {}", path.display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path, found);
        }
    }
}
