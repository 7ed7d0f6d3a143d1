//! How an exec is killed with the processes of its session and all their descendants, which may be thousands and fork
//! meanwhile: a bounded part a turn of the shim's loop. The container's other processes stay; they are frozen for a moment
//! only where the exec forks as fast as it is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::cgroup::Cgroup;
use super::reap::as_pid;
use super::spawn::Child;

/// Processes that are looked at or killed in a turn: some 15 microseconds each.
const BATCH: usize = 256;
/// Listing a process takes so much less than looking at it.
const LISTED: usize = 32;
/// How often is looked for what was forked meanwhile: before the leader is killed, and once more after that.
const ROUNDS: usize = 8;
/// Rounds without a freezer. Where somebody is found after them, somebody forks as fast as he is killed.
const PLAIN_ROUNDS: usize = 4;

/// See the module's header.
#[derive(Debug)]
pub struct Hunt {
    /// Slot of its container.
    pub container: u32,
    /// Number of the exec, for who reads what is said of it.
    pub exec: u64,
    leader: Child,
    leader_is_killed: bool,
    rounds: usize,
    found: bool,
    frozen: bool,
    /// The leader, and all that were chosen.
    killed: BTreeSet<i32>,
    unread: Vec<i32>,
    read: BTreeMap<i32, Kin>,
    chosen: Vec<(i32, Kin)>,
}

impl Hunt {
    /// Nobody is killed yet.
    pub fn new(container: u32, exec: u64, leader: &Child) -> io::Result<Self> {
        let leader = Child { pid: leader.pid, pidfd: leader.pidfd.try_clone()? };
        Ok(Self {
            container,
            exec,
            killed: BTreeSet::from([leader.pid]),
            leader,
            leader_is_killed: false,
            rounds: 0,
            found: false,
            frozen: false,
            unread: Vec::new(),
            read: BTreeMap::new(),
            chosen: Vec::new(),
        })
    }

    /// Takes a turn among the members of `group`; `spare` (the container's first process) stays. True: it is done.
    ///
    /// The descendants first: once the leader is dead they are somebody else's children. What it forked while they were
    /// looked for is still of its session.
    pub fn turn(&mut self, group: &Cgroup, spare: i32) -> io::Result<bool> {
        let mut work = 0;
        while work < BATCH {
            work += 1;
            if let Some((pid, kin)) = self.chosen.pop() {
                kill_if(pid, || Kin::of(pid).is_some_and(|now| now.started == kin.started));
            } else if let Some(pid) = self.unread.pop() {
                self.read.extend(Kin::of(pid).map(|kin| (pid, kin)));
            } else if !self.read.is_empty() {
                self.choose();
            } else if self.rounds < ROUNDS && (self.rounds == 0 || self.found) {
                self.rounds += 1;
                self.found = false;
                if self.rounds > PLAIN_ROUNDS {
                    self.freeze(group);
                }
                self.unread = group.members()?;
                self.unread.retain(|pid| *pid != spare && !self.killed.contains(pid));
                work += self.unread.len() / LISTED;
            } else if self.leader_is_killed {
                self.end(group);
                return Ok(true);
            } else {
                self.leader.kill();
                (self.leader_is_killed, self.rounds) = (true, 0);
            }
        }
        Ok(false)
    }

    /// Kills the leader without a further search, and leaves nobody frozen.
    pub fn end(&mut self, group: &Cgroup) {
        self.leader.kill();
        if std::mem::take(&mut self.frozen)
            && let Err(error) = group.freeze(false)
        {
            super::say(&format!("thaw of the container of exec {}: {error}", self.exec));
        }
    }

    fn freeze(&mut self, group: &Cgroup) {
        if !std::mem::replace(&mut self.frozen, true)
            && let Err(error) = group.freeze(true)
        {
            super::say(&format!("freeze of the container of exec {}: {error}", self.exec));
        }
    }

    /// Of those that were read: who is of the session, or a child of one that is killed, and so on down. The list
    /// is killed from its end, where the eldest are: who forks is killed before whom it forked.
    fn choose(&mut self) {
        let read = std::mem::take(&mut self.read);
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for (pid, kin) in &read {
            children.entry(kin.parent).or_default().push(*pid);
        }
        let mut next: Vec<i32> = read
            .iter()
            .filter(|(_, kin)| kin.belongs_to(self.leader.pid, &self.killed))
            .map(|(pid, _)| *pid)
            .collect();
        let mut chosen = Vec::new();
        while let Some(pid) = next.pop() {
            if let Some(kin) = read.get(&pid).filter(|_| self.killed.insert(pid)) {
                chosen.push((pid, *kin));
                next.extend(children.get(&pid).into_iter().flatten());
            }
        }
        chosen.reverse();
        self.found |= !chosen.is_empty();
        self.chosen = chosen;
    }
}

/// Kills a process that still fits once its pid cannot be anybody else's any more.
fn kill_if(pid: i32, fits: impl FnOnce() -> bool) {
    let Some(Ok(pidfd)) = as_pid(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
        return; // It has ended: nothing is left to kill.
    };
    if fits()
        && let Err(error) = pidfd_send_signal(&pidfd, Signal::KILL)
        && error != Errno::SRCH
    {
        super::say(&format!("kill of {pid}: {error}"));
    }
}

/// Fields of /proc/PID/stat (proc_pid_stat(5)): 4, 6 and 22.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kin {
    parent: i32,
    session: i32,
    /// With its pid it is who it is, whosever child it has become.
    started: u64,
}

impl Kin {
    /// `None`: it has ended.
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        let started = fields.nth(15)?.parse().ok()?;
        Some(Self { parent, session, started })
    }

    fn belongs_to(self, leader: i32, killed: &BTreeSet<i32>) -> bool {
        self.session == leader || killed.contains(&self.parent)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn me() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn reads_who_is_who() {
        let kin = Kin::of(me()).unwrap();
        assert_eq!(kin.parent, i32::try_from(std::os::unix::process::parent_id()).unwrap());
        assert_eq!(Some(kin.started), crate::process::start_time(me()).unwrap());
        let nobody = BTreeSet::new();
        assert!(kin.belongs_to(kin.session, &nobody) && kin.belongs_to(-1, &BTreeSet::from([kin.parent])));
        assert!(!kin.belongs_to(-1, &BTreeSet::from([me()])));
    }

    #[test]
    fn finds_a_long_line_of_descendants_in_one_look_and_kills_it_from_above() {
        let pidfd: OwnedFd = fs::File::open("/dev/null").unwrap().into();
        let mut hunt = Hunt::new(1, 1, &Child { pid: 10_000, pidfd }).unwrap();
        // Each the child of the one after it; the last is the leader's. One is of its session, one is a stranger.
        let kin = |parent, session| Kin { parent, session, started: 1 };
        hunt.read.extend((1..3000).map(|pid| (pid, kin(if pid == 2999 { 10_000 } else { pid + 1 }, 7))));
        hunt.read.extend([(4000, kin(1, 10_000)), (4001, kin(7000, 7)), (4002, kin(4001, 8))]);
        hunt.choose();
        assert!(hunt.found && hunt.read.is_empty());
        assert_eq!(hunt.chosen.len(), 3000);
        assert!(!hunt.killed.contains(&4001) && !hunt.killed.contains(&4002));
        let line: Vec<i32> =
            hunt.chosen.iter().rev().map(|(pid, _)| *pid).filter(|pid| *pid < 4000).collect();
        assert!(line.is_sorted_by(|a, b| a > b), "from above");
    }
}
