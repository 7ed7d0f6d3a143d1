//! From a builder to the user's program: working directory, stdio, limits, identity, rights, and the last steps,
//! which `create` and `join` share.
//!
//! The order matters. Everything that needs the node's rights comes first; then they are given up; and only then is
//! the final process cloned into the container's PID namespace, where a sibling with CAP_SYS_PTRACE may look at it:
//! it holds its stdio, its gate and its report, and nothing that the container does not have.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use cove_guard::Guard;
use cove_path::{Proc, Root};
use cove_sys::{CloneFlags, Forked, SingleThreaded};
use nix::sys::signal::SigSet;
use rustix::fs::{FileType, Mode, OFlags, Uid, fchown, fstat, major};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Signal, chdir, fchdir, getcwd, ioctl_tiocsctty, set_dumpable_behavior,
    set_parent_process_death_signal, setsid, umask,
};
use rustix::thread::{
    Gid, set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::capabilities::{self, Wanted};
use super::identity::Identity;
use super::line::{self, Line};
use super::program::Program;
use super::report::{Cloned, Report};
use super::request::ProcessSpec;
use super::step::{At, refuse};
use super::{apparmor, namespaces, rlimits};
use crate::protocol::{Failure, ResolvedUser};

const IDENTITY: &str = "identity";
/// The slave side of Unix 98 terminals (Documentation/admin-guide/devices.txt).
const TERMINALS: std::ops::RangeInclusive<u32> = 136..=143;

/// What a process is made of, when its namespaces and root are entered.
#[derive(Debug)]
pub(super) struct Process<'a> {
    /// What was asked.
    pub spec: &'a ProcessSpec,
    /// As whom it runs.
    pub who: &'a Identity,
    /// stdin, stdout, stderr.
    pub stdio: [OwnedFd; 3],
    /// stdio is a terminal.
    pub terminal: bool,
    /// A procfs that shows this process: for labels.
    pub proc: Option<Proc>,
    /// The final process is a clone, since this one is not in the container's PID namespace.
    pub clone: Option<SingleThreaded>,
}

/// Never reached by others: not by ptrace(2), nor through /proc/PID/fd, cwd, root.
pub(super) fn hide() -> Result<(), Failure> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at("start", || "become non-dumpable".to_owned())
}

/// The shim's death ends this process. Lost at each change of credentials.
pub(super) fn die_with_shim() -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL)).at("start", || "follow the shim's death".to_owned())
}

impl Process<'_> {
    /// Does all the rest. Returns only a failure.
    pub(super) fn run(self, root: Root, line: &Line) -> Result<Infallible, Failure> {
        let Self { spec, who, stdio, terminal, proc, clone } = self;
        if let (Some(profile), Some(proc)) = (&spec.apparmor, &proc) {
            apparmor::set(proc, profile)?;
        }
        drop(proc);
        let entered = enter_cwd(&root, spec)?;
        drop(root);
        take_stdio(stdio, &who.user)?;
        close_the_rest(line)?;
        rlimits::apply(&spec.rlimits)?;
        umask(Mode::from_raw_mode(spec.umask & 0o777));
        give_up_rights(spec, &who.user)?;
        if !entered {
            enter_cwd_as_user(spec)?;
        }
        verify_cwd(spec)?;
        let last = Last { spec, home: &who.home, terminal };
        match clone {
            None => last_steps(&last, line),
            Some(single) => clone_final(single, &last, line),
        }
    }
}

/// Enters the working directory as root. `false`: that was not permitted, and the user is to try (a directory of a
/// file server that does not trust root).
fn enter_cwd(root: &Root, spec: &ProcessSpec) -> Result<bool, Failure> {
    if !Guard::WorkingDirectory.holds() {
        return chdir(&spec.cwd).at("cwd", || "enter the working directory".to_owned()).map(|()| true);
    }
    let refused = |errno| matches!(errno, Errno::ACCESS | Errno::PERM);
    let fd = match root.resolve(&spec.cwd, OFlags::PATH | OFlags::DIRECTORY) {
        Err(error) if error.errno().is_some_and(refused) => return Ok(false),
        found => found.at("cwd", || "find the working directory".to_owned())?,
    };
    match fchdir(&fd) {
        Err(errno) if refused(errno) => Ok(false),
        entered => entered.at("cwd", || format!("enter {}", spec.cwd.display())).map(|()| true),
    }
}

fn enter_cwd_as_user(spec: &ProcessSpec) -> Result<(), Failure> {
    let root = Root::of_process().at("cwd", || "open /".to_owned())?;
    let fd = root
        .resolve(&spec.cwd, OFlags::PATH | OFlags::DIRECTORY)
        .at("cwd", || "enter the working directory as the user".to_owned())?;
    fchdir(&fd).at("cwd", || format!("enter {} as the user", spec.cwd.display()))
}

/// getcwd(2) puts `(unreachable)` in front of a directory outside of the root (CVE-2024-21626).
fn verify_cwd(spec: &ProcessSpec) -> Result<(), Failure> {
    let cwd = getcwd(Vec::new()).at("cwd", || format!("look where {} is", spec.cwd.display()))?;
    if cwd.as_bytes().first() == Some(&b'/') || !Guard::WorkingDirectory.holds() {
        return Ok(());
    }
    refuse("cwd", format!("{} is outside of the container's root", spec.cwd.display()))
}

/// Puts stdio on 0 to 2. Pipes and terminals are given to the user, who else could not open /dev/stdout again; a
/// file or device that somebody else shares keeps its owner (CVE-2026-88265).
fn take_stdio(stdio: [OwnedFd; 3], user: &ResolvedUser) -> Result<(), Failure> {
    let doing = || "take stdio".to_owned();
    for fd in &stdio {
        let owner = fstat(fd).at("stdio", doing)?.st_uid;
        if owner != user.uid && is_given_away(fd)? {
            fchown(fd, Some(Uid::from_raw(user.uid)), None)
                .at("stdio", || "give stdio to the user".to_owned())?;
        }
    }
    // Away from 0 to 2 first, so that none overwrites another.
    let mut high = Vec::with_capacity(3);
    for fd in &stdio {
        high.push(fcntl_dupfd_cloexec(fd, 3).at("stdio", doing)?);
    }
    drop(stdio);
    rustix::stdio::dup2_stdin(&high[0]).at("stdio", doing)?;
    rustix::stdio::dup2_stdout(&high[1]).at("stdio", doing)?;
    rustix::stdio::dup2_stderr(&high[2]).at("stdio", doing)
}

/// A pipe or a terminal, which becomes the user's.
pub(super) fn is_given_away(fd: &OwnedFd) -> Result<bool, Failure> {
    let stat = fstat(fd).at("stdio", || "look at stdio".to_owned())?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => true,
        FileType::CharacterDevice => TERMINALS.contains(&major(stat.st_rdev)),
        _ => false,
    })
}

/// Leaves stdio, report and gate. Nothing that this process still owns as a value is among what is closed: they were
/// dropped before.
fn close_the_rest(line: &Line) -> Result<(), Failure> {
    if !Guard::CloseRange.holds() {
        return Ok(());
    }
    let [report, gate] = line.fds().map(|fd| fd.as_raw_fd());
    cove_sys::close_all_except(&[0, 1, 2, report, gate]).at("stdio", || "close all but stdio".to_owned())
}

/// Becomes the user, with exactly the rights that were asked for.
fn give_up_rights(spec: &ProcessSpec, user: &ResolvedUser) -> Result<(), Failure> {
    let wanted = Wanted::new(&spec.capabilities, user.uid)?;
    wanted.limit_bounding()?;
    if spec.no_new_privs && Guard::NoNewPrivs.holds() {
        set_no_new_privs(true).at(IDENTITY, || "set no_new_privs".to_owned())?;
    }
    set_keep_capabilities(true).at(IDENTITY, || "keep capabilities for the last steps".to_owned())?;
    become_user(user)?;
    if let (Some(filter), false) = (&spec.seccomp, spec.no_new_privs) {
        // Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes before that goes.
        capabilities::raise()?;
        set_filter(filter)?;
    }
    wanted.apply()?;
    hide()
}

/// Groups, group and user, for this thread, which is the only one.
pub(super) fn become_user(user: &ResolvedUser) -> Result<(), Failure> {
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    set_thread_groups(&groups).at(IDENTITY, || format!("set {} groups", groups.len()))?;
    let gid = Gid::from_raw(user.gid);
    set_thread_res_gid(gid, gid, gid).at(IDENTITY, || format!("become group {}", user.gid))?;
    let uid = Uid::from_raw(user.uid);
    set_thread_res_uid(uid, uid, uid).at(IDENTITY, || format!("become user {}", user.uid))
}

fn set_filter(filter: &[u8]) -> Result<(), Failure> {
    if !Guard::Seccomp.holds() {
        return Ok(());
    }
    cove_sys::set_filter(filter).at("seccomp", || "load the filter".to_owned())
}

/// What the last steps need.
#[derive(Debug, Clone, Copy)]
struct Last<'a> {
    spec: &'a ProcessSpec,
    home: &'a str,
    terminal: bool,
}

/// Clones the final process as a child of the shim, tells its pid, and ends.
fn clone_final(single: SingleThreaded, last: &Last<'_>, line: &Line) -> Result<Infallible, Failure> {
    let doing = "clone into the container's PID namespace";
    go_on_as_clone(single, CloneFlags::PARENT, doing, line)?;
    last_steps(last, line)
}

/// Goes on as the first process of a new PID namespace, which the user namespace that this process is in owns.
pub(super) fn clone_first(single: SingleThreaded, line: &Line) -> Result<(), Failure> {
    let flags = CloneFlags::PARENT.and(CloneFlags::NEW_PID);
    go_on_as_clone(single, flags, "clone the first process of a PID namespace", line)?;
    die_with_shim()
}

/// At the wrong time, when the process still has all of the host: without [`Guard::BuilderOutside`].
pub(super) fn clone_at_once(
    single: SingleThreaded,
    target: BorrowedFd<'_>,
    line: &Line,
) -> Result<(), Failure> {
    namespaces::children_into(target)?;
    go_on_as_clone(single, CloneFlags::PARENT, "clone at once", line)
}

/// Returns in the clone, a child of the shim, once its pid was told. This process ends.
fn go_on_as_clone(
    single: SingleThreaded,
    flags: CloneFlags,
    doing: &str,
    line: &Line,
) -> Result<(), Failure> {
    // The clone may only speak once its pid is known to the shim.
    let (told, tell) = pipe_with(PipeFlags::CLOEXEC).at("clone", || "make a pipe".to_owned())?;
    let forked = cove_sys::fork(single, flags, None).at("clone", || doing.to_owned())?;
    match forked {
        Forked::Parent { pid, .. } => {
            line.say(&Report::Cloned(Cloned { pid }));
            // A clone that has died already is the shim's to notice.
            let _ = rustix::io::write(&tell, &[1]);
            cove_sys::exit_now(0)
        }
        Forked::Child(_) => {
            drop(tell);
            line::wait_byte(told.as_fd()).at("clone", || "wait for the builder".to_owned())
        }
    }
}

/// What the final process does: nothing here needs a right that the container does not have.
fn last_steps(last: &Last<'_>, line: &Line) -> Result<Infallible, Failure> {
    die_with_shim()?;
    setsid().at("stdio", || "make a session".to_owned())?;
    if last.terminal {
        ioctl_tiocsctty(rustix::stdio::stdin()).at("stdio", || "take the terminal".to_owned())?;
    }
    cove_sys::default_signals();
    SigSet::empty().thread_set_mask().at("exec", || "unblock signals".to_owned())?;
    let program = Program::find(last.spec, last.home)?;
    line.say(&Report::Ready);
    line.pass_gate1();
    if let (Some(filter), true) = (&last.spec.seccomp, last.spec.no_new_privs) {
        set_filter(filter)?;
    }
    program.exec()
}
