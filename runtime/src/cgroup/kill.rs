//! Kills everything in a group and below it, without a fork and without waiting for the end of anybody.
//!
//! Version 2 has `cgroup.kill`, which no fork bomb outruns. Version 1 has none: there the group is frozen, each process
//! is killed through a pidfd, and the group is thawed *whatever happened*, since a frozen process does not die and
//! a group that was left frozen cannot be stopped, joined or removed. On a hybrid host the version 2 group is
//! killed first, and only processes that are not in it are looked for by the second way.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::CgroupError;
use super::group::{Cgroup, Group};
use super::hierarchy::Version;

const KILL: &str = "cgroup.kill";
const STATE: &str = "freezer.state";
/// How long a group is waited for to freeze. A process in an uninterruptible wait keeps it FREEZING for as long as that
/// lasts; the others are frozen within a millisecond, and killing goes on then.
const FREEZE_DEADLINE: Duration = Duration::from_millis(500);
/// Pause between two looks at the freezer, whose state moves on when it is read.
const FREEZE_PAUSE: Duration = Duration::from_micros(200);
/// How often the processes of a group are listed and killed where it could not be frozen, so that a child born
/// between list and signal is caught. What outruns this is caught by the caller, who kills again until all are gone.
const SWEEPS: usize = 10;
/// Pidfds that are open at a time: a group may have more processes than anybody may have descriptors.
const BATCH: usize = 512;

impl Cgroup {
    /// Kills all in it and below: cgroup.kill, else freeze, SIGKILL, and always thaw. Does not wait for their end.
    ///
    /// # Errors
    /// The first refusal, after everything else was tried. Nobody there is success.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let unified = self.groups.iter().find(|group| group.is(Version::V2));
        let strays = self.strays(unified)?;
        let killed = match unified {
            Some(group) => group.write_if_there(KILL, "1"),
            None => Ok(false),
        };
        match killed {
            Ok(true) if strays.is_empty() => self.thaw(),
            Ok(_) => self.freeze_and_kill(),
            Err(e) => {
                // Both ways are tried before the first one's failure is told.
                self.freeze_and_kill()?;
                Err(e)
            }
        }
    }

    /// Processes that `cgroup.kill` would not reach: in a v1 group of ours, and not in the v2 one.
    fn strays(&self, unified: Option<&Group>) -> Result<BTreeSet<i32>, CgroupError> {
        let (mut strays, mut reached) = (BTreeSet::new(), BTreeSet::new());
        for group in self.groups.iter().filter(|group| group.is(Version::V1)) {
            group.pids(&mut strays)?;
        }
        // Read last: a process that is born in between is in this list only.
        if let Some(group) = unified {
            group.pids(&mut reached)?;
        }
        Ok(&strays - &reached)
    }

    fn freeze_and_kill(&self) -> Result<(), CgroupError> {
        let frozen = self.freeze();
        let killed = self.sweep(matches!(frozen, Ok(true)));
        let thawed = self.thaw();
        killed.and(thawed).and(frozen.map(drop))
    }

    /// True when every process is frozen; false where that took too long or the host has no freezer.
    fn freeze(&self) -> Result<bool, CgroupError> {
        let Some(group) = self.freezer() else { return Ok(false) };
        let deadline = Instant::now() + FREEZE_DEADLINE;
        loop {
            // Written anew each time: a process that joined meanwhile is running (the kernel's freezer guide).
            if !group.write_if_there(STATE, "FROZEN")? {
                return Ok(false);
            }
            if group.read(STATE)?.trim() == "FROZEN" {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(FREEZE_PAUSE);
        }
    }

    fn thaw(&self) -> Result<(), CgroupError> {
        match self.freezer() {
            Some(group) => group.write_if_there(STATE, "THAWED").map(drop),
            None => Ok(()),
        }
    }

    /// The v1 freezer; v2's `cgroup.kill` needs none.
    fn freezer(&self) -> Option<&Group> {
        self.group("freezer").ok().filter(|group| group.is(Version::V1))
    }

    fn sweep(&self, frozen: bool) -> Result<(), CgroupError> {
        for _ in 0..if frozen { 1 } else { SWEEPS } {
            if self.signal_all()? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// How many processes were sent SIGKILL.
    fn signal_all(&self) -> Result<usize, CgroupError> {
        let pids: Vec<i32> = self.pids()?.into_iter().collect();
        let mut sent = 0;
        for batch in pids.chunks(BATCH) {
            sent += self.signal(batch)?;
        }
        Ok(sent)
    }

    /// The list is read again once the pidfds are open: a process that is in the group then, under a pid that was
    /// opened before, is the one that the pidfd stands for, or that pidfd's process has ended. So no pid that was
    /// used again outside of the group is ever signalled.
    fn signal(&self, pids: &[i32]) -> Result<usize, CgroupError> {
        let opened: Vec<(i32, OwnedFd)> = pids
            .iter()
            .filter_map(|pid| {
                Some((*pid, rustix::process::pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok()?))
            })
            .collect();
        let still: BTreeSet<i32> = self.pids()?.into_iter().collect();
        let mut sent = 0;
        for (pid, pidfd) in opened.iter().filter(|(pid, _)| still.contains(pid)) {
            match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
                Ok(()) => sent += 1,
                Err(Errno::SRCH) => {}
                Err(e) => return Err(CgroupError::system("kill", format!("/proc/{pid}"), e)),
            }
        }
        Ok(sent)
    }
}

#[cfg(test)]
mod test {
    use std::process::Command;

    use super::super::testing::{Scratch, Sleeper, wait_until};
    use super::*;

    fn wait_for_end(sleepers: &mut [Sleeper]) {
        for sleeper in sleepers {
            wait_until("end of a killed process", || sleeper.ended());
        }
    }

    #[test]
    fn kills_all_and_below_and_nobody_else() {
        let scratch = Scratch::new("kill");
        let (cgroup, child) = (scratch.create("pod"), scratch.create("pod/child"));
        let mut inside: Vec<Sleeper> = (0..6).map(|_| Sleeper::start()).collect();
        let mut outside = Sleeper::start();
        for (index, sleeper) in inside.iter().enumerate() {
            if index % 2 == 0 { &cgroup } else { &child }.add(sleeper.pid()).unwrap();
        }
        cgroup.kill().unwrap();
        wait_for_end(&mut inside);
        assert!(!outside.ended());
        cgroup.kill().unwrap();
    }

    #[test]
    fn kills_what_left_the_v2_group_and_thaws_what_was_frozen() {
        let scratch = Scratch::new("stray");
        let cgroup = scratch.create("pod");
        let mut inside: Vec<Sleeper> = (0..3).map(|_| Sleeper::start()).collect();
        for sleeper in &inside {
            for group in cgroup.groups.iter().filter(|group| group.is(Version::V1) || cgroup.unified) {
                group.write("cgroup.procs", &sleeper.pid().to_string()).unwrap();
            }
        }
        if let Some(freezer) = cgroup.freezer() {
            freezer.write(STATE, "FROZEN").unwrap();
        }
        cgroup.kill().unwrap();
        wait_for_end(&mut inside);
        if let Some(freezer) = cgroup.freezer() {
            assert_eq!(freezer.read(STATE).unwrap().trim(), "THAWED");
        }
    }

    #[test]
    fn kills_a_frozen_group_through_cgroup_kill_too() {
        let scratch = Scratch::new("frozen");
        let cgroup = scratch.create("pod");
        let mut inside = [Sleeper::start()];
        cgroup.add(inside[0].pid()).unwrap();
        if let Some(freezer) = cgroup.freezer() {
            freezer.write(STATE, "FROZEN").unwrap();
        }
        cgroup.kill().unwrap();
        wait_for_end(&mut inside);
    }

    #[test]
    fn nobody_who_forks_all_the_time_outruns_it_on_either_way() {
        let scratch = Scratch::new("forks");
        for in_v2 in [true, false] {
            let cgroup = scratch.create("pod");
            let files: Vec<String> = cgroup
                .groups
                .iter()
                .filter(|group| in_v2 || cgroup.unified || group.is(Version::V1))
                .map(|group| group.file("cgroup.procs").display().to_string())
                .collect();
            let script = format!(
                "for f in {}; do echo $$ > $f; done; \
                 for i in 1 2 3 4; do (while :; do (:); done) & done; wait",
                files.join(" ")
            );
            let mut forks = Command::new("sh").args(["-c", &script]).spawn().unwrap();
            wait_until("children", || cgroup.pids().unwrap().len() > 4);
            cgroup.kill().unwrap();
            wait_until("an empty group", || cgroup.pids().unwrap().is_empty());
            forks.wait().unwrap();
            scratch.hierarchies.remove(&scratch.path("pod")).unwrap();
        }
    }

    #[test]
    fn an_empty_or_removed_group_is_killed_already() {
        let scratch = Scratch::new("nobody");
        let cgroup = scratch.create("pod");
        cgroup.kill().unwrap();
        scratch.hierarchies.remove(&scratch.path("pod")).unwrap();
        cgroup.kill().unwrap();
    }
}
