//! Out-of-memory kills: the file that counts them.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;

use super::group::Cgroup;
use super::hierarchy::Version;
use super::{CgroupError, group::Group};

/// The line of both files that counts processes killed for want of memory in this group.
const OOM_KILL: &str = "oom_kill";

impl Cgroup {
    /// Opens the file whose `oom_kill N` line counts kills: v1 `memory.oom_control`, v2 `memory.events`. `None` where
    /// the host counts none (a v1 kernel before 4.13 has no such line; we do not look for one here).
    ///
    /// # Errors
    /// The group is gone, or descriptors are used up.
    pub fn oom_events(&self) -> Result<Option<OwnedFd>, CgroupError> {
        match self.group("memory") {
            Ok(group) => group.open_file(file(group), OFlags::RDONLY).map(Some),
            Err(CgroupError::NoController(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// How many processes of this group (v2: and below it) the kernel has killed for want of memory.
    ///
    /// # Errors
    /// As [`Self::oom_events`]; or the file has no such line.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let group = self.group("memory")?;
        let path = group.file(file(group));
        let mut text = String::new();
        File::from(group.open_file(file(group), OFlags::RDONLY)?)
            .read_to_string(&mut text)
            .map_err(|e| CgroupError::system("read", &path, e))?;
        count(&text).ok_or(CgroupError::Content { path, field: OOM_KILL })
    }
}

fn file(group: &Group) -> &'static str {
    match group.hierarchy.version {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    }
}

/// The number of the `oom_kill` line, not of `oom_kill_disable` or `oom_group_kill`.
fn count(text: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(key, _)| *key == OOM_KILL)?
        .1
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod test {
    use std::process::Command;

    use super::super::Limits;
    use super::super::testing::Scratch;
    use super::*;

    #[test]
    fn reads_the_one_line() {
        for (text, expected) in [
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", Some(3)),
            ("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 9\n", Some(1)),
            ("oom_kill_disable 5\n", None),
            ("oom_kill x\n", None),
            ("", None),
        ] {
            assert_eq!(count(text), expected, "{text:?}");
        }
    }

    #[test]
    fn counts_a_real_kill() {
        let scratch = Scratch::new("oom");
        let cgroup = scratch.create("pod");
        let limit = Some(8 << 20);
        cgroup.set_limits(&Limits { memory: limit, memory_swap: limit, ..Default::default() }).unwrap();
        assert_eq!(cgroup.oom_kills().unwrap(), 0);
        // The shell moves itself first, so that what it runs is charged here.
        let files: Vec<String> =
            cgroup.groups.iter().map(|group| group.file("cgroup.procs").display().to_string()).collect();
        let script = format!(
            "for f in {}; do echo $$ > $f; done; exec dd if=/dev/zero of=/dev/null bs=32M count=1",
            files.join(" ")
        );
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(!output.status.success());
        assert!(cgroup.oom_kills().unwrap() >= 1);
        assert!(cgroup.oom_events().unwrap().is_some());
    }
}
