//! User namespaces of pods: made before any other namespace of the pod, with their one mapping written, and entered
//! by builders when all that needs the host's rights is done. See user_namespaces(7).
//!
//! Nobody lives in a new one: a short-lived child makes it, and descriptors keep it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use cove_path::Proc;
use cove_sys::{CloneFlags, Forked, SingleThreaded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, Uid, fchown, openat};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::process::{become_user, die_with_shim, hide, is_given_away};
use super::report::Report;
use super::step::{At, refuse};
use crate::protocol::{Failure, IdMap, ResolvedUser};
use crate::socket;
use crate::wire::Wire;

const STEP: &str = "userns";
/// How long making namespaces may take: about a millisecond, and much more on a loaded host.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };
/// The highest id: the next one, (uid_t)-1, means "no change" to chown(2) and setresuid(2).
const MAX_ID: u32 = u32::MAX - 1;

impl IdMap {
    /// Why the kernel could not take it, or would do something else with it than was meant; none: it can be used.
    pub fn fault(&self) -> Option<&'static str> {
        match self.size.checked_sub(1).map(|last| self.host.checked_add(last)) {
            None => Some("it maps no id"),
            Some(Some(last)) if last <= MAX_ID => None,
            Some(_) => Some("its last id on the host is above 4294967294"),
        }
    }

    /// What an id inside is on the host; none: it does not exist inside.
    pub fn on_host(&self, id: u32) -> Option<u32> {
        if id < self.size { self.host.checked_add(id) } else { None }
    }

    /// A line of uid_map and gid_map.
    fn line(&self) -> String {
        format!("0 {} {}", self.host, self.size)
    }
}

/// A pod's user namespace, as its builders are given it.
#[derive(Debug)]
pub struct UserNamespace {
    /// The namespace.
    pub namespace: OwnedFd,
    /// Its ids.
    pub ids: IdMap,
}

impl UserNamespace {
    /// Another descriptor of the same.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { namespace: self.namespace.try_clone()?, ids: self.ids.clone() })
    }

    /// Refuses a user or group that does not exist inside, which the kernel would only call invalid.
    pub(super) fn check(&self, user: &ResolvedUser) -> Result<(), Failure> {
        match [user.uid, user.gid].iter().chain(&user.groups).find(|id| self.ids.on_host(**id).is_none()) {
            None => Ok(()),
            Some(id) => refuse(
                "user",
                format!("id {id} is not one of the {} of the pod's user namespace", self.ids.size),
            ),
        }
    }

    /// Gives pipes and terminals to the user while that is still permitted: they are the host's.
    pub(super) fn give_stdio(&self, stdio: &[OwnedFd; 3], user: &ResolvedUser) -> Result<(), Failure> {
        let owner = self.ids.on_host(user.uid).map(Uid::from_raw);
        for fd in stdio {
            if is_given_away(fd)? {
                fchown(fd, owner, None).at("stdio", || "give stdio to the user".to_owned())?;
            }
        }
        Ok(())
    }

    /// Enters, for good, as its root: with every right inside and none outside.
    pub(super) fn enter(&self) -> Result<(), Failure> {
        move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::User))
            .at(STEP, || "enter the pod's user namespace".to_owned())?;
        become_root()?;
        // The one from before belongs to a user that does not exist in here.
        cove_sys::join_session_keyring().at("keyring", || "make a session keyring".to_owned())
    }
}

/// Root of the user namespace that the process is in, with nothing left of who it was.
fn become_root() -> Result<(), Failure> {
    become_user(&ResolvedUser { uid: 0, gid: 0, groups: Vec::new() })?;
    // Both were lost with the change of user.
    hide()?;
    die_with_shim()
}

/// Makes a user namespace. `inside` runs in a process that is its root, where it can make namespaces which the new one
/// owns; `look` runs here while that process is there, and is given its pidfd. `keep` is what `inside` needs open.
/// `proc` shows the caller's PID namespace.
///
/// Waits for the process, which only makes namespaces: a kernel that does not answer it would not answer the caller.
///
/// # Errors
/// The mapping is wrong, the kernel makes no more user namespaces (`user.max_user_namespaces`), or what the closures say.
pub fn make(
    single: SingleThreaded,
    proc: &Proc,
    ids: &IdMap,
    keep: &[BorrowedFd<'_>],
    inside: impl FnOnce() -> Result<(), Failure>,
    look: impl FnOnce(BorrowedFd<'_>) -> Result<(), Failure>,
) -> Result<UserNamespace, Failure> {
    if let Some(fault) = ids.fault() {
        return refuse(STEP, format!("the mapping {:?} cannot be used: {fault}", ids.line()));
    }
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.at(STEP, || "make a pair of sockets".to_owned())?;
    let forked = cove_sys::fork(single, CloneFlags::NEW_USER, None)
        .at(STEP, || "make a user namespace (see user.max_user_namespaces)".to_owned())?;
    let (pid, pidfd) = match forked {
        Forked::Child(_) => {
            let mut open: Vec<_> = keep.iter().map(AsRawFd::as_raw_fd).collect();
            open.push(theirs.as_raw_fd());
            if cove_sys::close_all_except(&open).is_ok() {
                live(theirs.as_fd(), inside);
            }
            cove_sys::exit_now(1)
        }
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(theirs);
    let made = follow(ours, proc, pid, ids, || look(pidfd.as_fd()));
    // It ends by itself, at the end of its socket.
    let wall = WaitIdOptions::from_bits_retain(WALL);
    retry_on_intr(|| waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | wall))
        .at(STEP, || "wait for the process that made the namespaces".to_owned())?;
    made
}

/// `__WALL` of waitpid(2), for which rustix has no name.
const WALL: u32 = 0x4000_0000;

/// The child: waits for the mapping, does its work, says so, and waits until it has been looked at.
fn live(line: BorrowedFd<'_>, inside: impl FnOnce() -> Result<(), Failure>) {
    let has_word = || matches!(socket::receive(line), Ok(Some(_)));
    // The caller's death before this would go unseen; its end of the socket closes with it.
    let done = die_with_shim()
        .and_then(|()| if has_word() { become_root().and_then(|()| inside()) } else { Ok(()) });
    let word = match done {
        Ok(()) => Report::Ready,
        Err(failure) => Report::Failed(failure),
    };
    // Nobody listening is an end like another.
    let _gone = socket::send(line, &word.to_bytes(), &[]);
    let _end = has_word();
}

fn follow(
    line: OwnedFd,
    proc: &Proc,
    pid: i32,
    ids: &IdMap,
    look: impl FnOnce() -> Result<(), Failure>,
) -> Result<UserNamespace, Failure> {
    for map in ["uid_map", "gid_map"] {
        proc.write(&PathBuf::from(format!("{pid}/{map}")), ids.line().as_bytes())
            .at(STEP, || format!("write {:?} to {map}", ids.line()))?;
    }
    socket::send(line.as_fd(), b"mapped", &[]).at(STEP, || "tell of the mapping".to_owned())?;
    hear(&line)?;
    look()?;
    // A magic link, which `Proc` follows for nobody; this one is of our own unreaped child.
    let namespace =
        openat(proc.as_fd(), format!("{pid}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .at(STEP, || "open the new user namespace".to_owned())?;
    Ok(UserNamespace { namespace, ids: ids.clone() })
}

/// Waits for the child's word.
fn hear(line: &OwnedFd) -> Result<(), Failure> {
    let heard = retry_on_intr(|| poll(&mut [PollFd::new(line, PollFlags::IN)], Some(&PATIENCE)));
    if heard.at(STEP, || "wait for the new namespaces".to_owned())? == 0 {
        return Err(Errno::TIMEDOUT).at(STEP, || "wait for the new namespaces".to_owned());
    }
    let word = socket::receive(line.as_fd()).at(STEP, || "hear of the new namespaces".to_owned())?;
    match word.map(|(bytes, _)| Report::from_bytes(&bytes)) {
        Some(Ok(Report::Ready)) => Ok(()),
        Some(Ok(Report::Failed(failure))) => Err(failure),
        _ => refuse(STEP, "the process that makes the namespaces ended early".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_end_before_the_last_number() {
        for (host, size, fits) in [
            (0, 1, true),
            (1000, 100_000, true),
            (u32::MAX - 1, 1, true),
            (u32::MAX - 1, 2, false),
            (u32::MAX, 1, false),
            (65_536, u32::MAX, false),
            (0, u32::MAX, true),
            (1000, 0, false),
            (u32::MAX, 0, false),
        ] {
            assert_eq!(IdMap { host, size }.fault().is_none(), fits, "{host} {size}");
        }
        let ids = IdMap { host: 1000, size: 10 };
        assert_eq!([0, 9, 10, u32::MAX].map(|id| ids.on_host(id)), [Some(1000), Some(1009), None, None]);
    }
}
