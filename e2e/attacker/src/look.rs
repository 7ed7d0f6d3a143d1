//! Looks through every process that is in sight for a way to a file of the host, for ever.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

/// From any directory of the host to its root.
const UP: &str = "/../../../../../../../../../../../..";

/// `canary`: the path of the file on the host.
pub fn run(canary: &str) -> io::Result<()> {
    let mut reached = BTreeSet::new();
    let own = rights("self").ok_or_else(|| io::Error::other("own rights cannot be read"))?;
    println!("looking");
    loop {
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
            else {
                continue;
            };
            let mut note = |what: String| {
                if reached.insert(what.clone()) {
                    println!("reached {what}");
                }
            };
            for way in ["root", "cwd"] {
                if is_file(&format!("/proc/{pid}/{way}{canary}"))
                    || is_file(&format!("/proc/{pid}/{way}{UP}{canary}"))
                {
                    note(format!("the host by {way} of a process"));
                }
            }
            // A process ends between any two of these looks.
            for fd in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                let fd = fd.path();
                let shown = fd.display();
                if is_file(&format!("{shown}{canary}")) || is_file(&format!("{shown}{UP}{canary}")) {
                    note("the host by a descriptor of a process".to_owned());
                }
            }
            if rights(pid).is_some_and(|rights| rights & !own != 0) {
                note("a process with more rights".to_owned());
                if fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).is_ok() {
                    note("the memory of a process with more rights".to_owned());
                }
            }
        }
    }
}

fn is_file(path: &str) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.size() > 0)
}

/// The permitted capabilities of a process; none once it has ended.
fn rights(pid: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}
