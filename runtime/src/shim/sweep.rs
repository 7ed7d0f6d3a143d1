//! How everybody in a control group is killed, who may be thousands and fork meanwhile: a bounded part a turn of the
//! shim's loop, so that a container that forks without end keeps nobody else of its pod waiting.
//!
//! v2 kills a group in one step, also where it stands beside v1. On v1 a few are killed one by one; many, or some that are
//! there again and again, are frozen first: frozen they cannot fork, and leave the CPU to who kills them. They are thawed
//! in any case, or none of them could end.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::cgroup::Cgroup;
use super::reap::as_pid;

/// How many are killed in a turn: some 2 ms of work, and as many descriptors for a moment.
const BATCH: usize = 256;
/// More than so many are frozen at once.
const FEW: usize = 64;
/// Turns in which they are killed without a freezer. Whoever is still there then forks as fast.
const PLAIN_TURNS: u32 = 3;
/// A group that is not done for so long is thawed all the same: those that were killed can end then.
const FROZEN: Duration = Duration::from_millis(500);
/// Pause after all were killed: they end in well under this, unless the kernel holds them.
const LOOK: Duration = Duration::from_millis(5);
/// The longest pause, for those whom the kernel holds; each look costs a list of all.
const LONGEST_LOOK: Duration = Duration::from_millis(80);

/// See the module's header.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Not before then; at once if there is none.
    next: Option<Instant>,
    pause: Duration,
    turns: u32,
    /// Since when it is frozen.
    frozen: Option<Instant>,
    /// Who was killed since the last pause.
    killed: BTreeSet<i32>,
}

impl Sweep {
    /// When the next turn is due.
    pub fn due(&self) -> Instant {
        self.next.unwrap_or_else(Instant::now)
    }

    /// Takes a turn, if one is due. True: somebody is left.
    pub fn turn(&mut self, group: &Cgroup) -> io::Result<bool> {
        if self.next.is_some_and(|next| Instant::now() < next) {
            return Ok(true);
        }
        self.next = None;
        self.turns = self.turns.saturating_add(1);
        let left = self.work(group);
        if !matches!(left, Ok(true)) {
            self.end(group)?;
        }
        left
    }

    /// Leaves nobody frozen.
    pub fn end(&mut self, group: &Cgroup) -> io::Result<()> {
        match self.frozen.take() {
            Some(_) => group.freeze(false),
            None => Ok(()),
        }
    }

    fn work(&mut self, group: &Cgroup) -> io::Result<bool> {
        let by_the_kernel = self.killed.is_empty() && self.frozen.is_none() && group.kill()?;
        let mut members = group.members()?;
        if members.is_empty() {
            return Ok(false);
        }
        if by_the_kernel && (group.is_unified() || self.turns <= PLAIN_TURNS) {
            self.rest();
            return Ok(true);
        }
        if self.frozen.is_none() && (members.len() > FEW || self.turns > PLAIN_TURNS) {
            // What cannot be frozen is killed all the same, until it is gone.
            self.frozen = Some(Instant::now());
            if let Err(error) = group.freeze(true) {
                super::say(&format!("freeze those who are killed: {error}"));
            }
            members = group.members()?;
        }
        let new: Vec<i32> =
            members.into_iter().filter(|pid| !self.killed.contains(pid)).take(BATCH).collect();
        let is_late = self.frozen.is_some_and(|since| since.elapsed() >= FROZEN);
        if !self.kill(group, &new)? || is_late {
            self.end(group)?;
            self.rest();
        }
        Ok(true)
    }

    /// Kills some, and says whether any was. Looked at once more when their pidfds are open: who is in the group then,
    /// under a pid that was opened before, is the one that the pidfd stands for, or that one has ended. So nobody is
    /// killed who was given the pid of one that had ended.
    fn kill(&mut self, group: &Cgroup, pids: &[i32]) -> io::Result<bool> {
        let open = |pid: &i32| Some((*pid, pidfd_open(as_pid(*pid)?, PidfdFlags::empty()).ok()?));
        let opened: Vec<_> = pids.iter().filter_map(open).collect();
        if opened.is_empty() {
            return Ok(false);
        }
        let still: BTreeSet<i32> = group.members()?.into_iter().collect();
        for (pid, pidfd) in opened {
            if still.contains(&pid)
                && let Err(error) = pidfd_send_signal(&pidfd, Signal::KILL)
                && error != Errno::SRCH
            {
                super::say(&format!("kill of {pid}: {error}"));
            }
            self.killed.insert(pid);
        }
        Ok(true)
    }

    fn rest(&mut self) {
        self.killed.clear();
        self.pause = (self.pause * 2).clamp(LOOK, LONGEST_LOOK);
        self.next = Some(Instant::now() + self.pause);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::process::CommandExt;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    /// A group of v1 that lets so many processes be, gone when it is dropped.
    struct Group {
        directories: Vec<PathBuf>,
        cgroup: Cgroup,
    }

    impl Group {
        fn make(name: &str, limit: u32) -> Option<Self> {
            let directories: Vec<PathBuf> = ["pids", "freezer"]
                .map(|hierarchy| {
                    PathBuf::from(format!(
                        "/sys/fs/cgroup/{hierarchy}/cove-sweep-{name}-{}",
                        std::process::id()
                    ))
                })
                .to_vec();
            if !directories[0].parent()?.exists() {
                return None; // v2 kills a group in one step.
            }
            let open = |directory: &PathBuf| {
                fs::create_dir(directory).unwrap();
                fs::OpenOptions::new().write(true).open(directory.join("cgroup.procs")).unwrap().into()
            };
            let cgroup = Cgroup::Split(directories.iter().map(open).collect());
            fs::write(directories[0].join("pids.max"), limit.to_string()).unwrap();
            Some(Self { directories, cgroup })
        }

        fn run(&self, script: &str) -> std::process::Child {
            let files: Vec<String> = self
                .directories
                .iter()
                .map(|directory| directory.join("cgroup.procs").display().to_string())
                .collect();
            let enter = format!("for f in {}; do echo $$ > $f; done; {script}", files.join(" "));
            Command::new("/bin/sh").arg0("sh").args(["-c", &enter]).spawn().unwrap()
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            for directory in &self.directories {
                let end = Instant::now() + Duration::from_secs(10);
                while fs::remove_dir(directory).is_err() && Instant::now() < end {
                    std::thread::sleep(LOOK);
                }
            }
        }
    }

    #[test]
    fn many_are_killed_in_turns_of_bounded_length_and_none_stays_frozen() {
        let Some(group) = Group::make("many", 700) else { return };
        let mut first = group.run("n=0; while [ $n -lt 600 ]; do sleep 1000 & n=$((n+1)); done; wait");
        let end = Instant::now() + Duration::from_secs(60);
        while group.cgroup.members().unwrap().len() < 600 {
            assert!(Instant::now() < end, "they are not there yet");
            std::thread::sleep(LOOK);
        }
        let mut sweep = Sweep::default();
        assert!(sweep.turn(&group.cgroup).unwrap());
        assert_eq!((sweep.killed.len(), sweep.frozen.is_some()), (BATCH, true));
        while sweep.turn(&group.cgroup).unwrap() {
            assert!(Instant::now() < end, "some are left");
            std::thread::sleep(sweep.due().saturating_duration_since(Instant::now()));
        }
        first.wait().unwrap();
        let state = fs::read_to_string(group.directories[1].join("freezer.state")).unwrap();
        assert_eq!(state.trim(), "THAWED");
        assert!(sweep.turns < 30, "{} turns", sweep.turns);
    }

    #[test]
    fn who_forks_without_end_ends() {
        let Some(group) = Group::make("forks", 200) else { return };
        let mut first = group.run(
            "n=0; while [ $n -lt 90 ]; do sleep 1000 & n=$((n+1)); done; \
             for i in 1 2 3 4 5 6 7 8; do while :; do sleep 0; done & done; wait",
        );
        let end = Instant::now() + Duration::from_secs(60);
        while group.cgroup.members().unwrap().len() < 100 {
            assert!(Instant::now() < end, "they are not there yet");
            std::thread::sleep(LOOK);
        }
        let mut sweep = Sweep::default();
        while sweep.turn(&group.cgroup).unwrap() {
            assert!(Instant::now() < end, "some are left");
            std::thread::sleep(sweep.due().saturating_duration_since(Instant::now()));
        }
        first.wait().unwrap();
    }
}
