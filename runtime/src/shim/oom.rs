//! Whether the kernel killed for want of memory in a container's cgroup.

use std::os::fd::AsFd;

use rustix::io::{Errno, pread};

/// Both files are far smaller. See memory.oom_control of cgroup v1 and memory.events of v2.
const MAX_FILE: usize = 4096;

/// Reads the count of kills from the file whose descriptor came with the container.
pub fn killed(events: impl AsFd) -> rustix::io::Result<bool> {
    let mut text = [0; MAX_FILE];
    let mut have = 0;
    // A short read is no end: see containerd's 07b00d182, which lost kills by it.
    while have < text.len() {
        let offset = u64::try_from(have).map_err(|_| Errno::INVAL)?;
        match pread(&events, &mut text[have..], offset)? {
            0 => break,
            n => have += n,
        }
    }
    Ok(count(&text[..have]) > 0)
}

fn count(text: &[u8]) -> u64 {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| line.strip_prefix(b"oom_kill "))
        .find_map(|number| str::from_utf8(number).ok()?.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions() {
        for (text, kills) in [
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", 0),
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 2),
            ("low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n", 3),
            ("oom_kill", 0),
            ("", 0),
        ] {
            assert_eq!(count(text.as_bytes()), kills, "{text}");
        }
    }
}
