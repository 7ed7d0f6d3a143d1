//! A process that is being made: from the fork of its builder to the exec of its program, or to the end of all that
//! was forked for it. A state machine that never waits: the shim calls it when the builder said something or ended.
//!
//! ```text
//! Begun ─User─▶ Resolved ─Cloned─▶ Cloned ─Ready─▶ Ready ─gate 1─▶ Open ─end of reports─▶ runs
//!   └─ anything else, an end too early, a kill ─▶ failing: both processes killed, failed once all of it is gone
//! ```
//! A builder is a stranger: what it says is taken in order, each message once, and sizes are bounded by `socket`.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};

use super::failure;
use super::watch::Watched;
use crate::build::report::Report;
use crate::protocol::{ExitStatus, Failure, ResolvedUser};
use crate::socket;
use crate::wire::Wire;

/// The most groups of a process: what is said of it must fit one frame.
const MAX_GROUPS: usize = 3000;

/// A child of the shim.
#[derive(Debug)]
pub struct Child {
    /// In the host's PID namespace; its own until it has been reaped.
    pub pid: i32,
    /// Its own for ever.
    pub pidfd: OwnedFd,
}

impl Child {
    /// ESRCH is no error: it has ended, which is what a kill is for.
    pub fn kill(&self) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            super::say(&format!("kill of {}: {error}", self.pid));
        }
    }
}

/// How far a builder has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begun,
    Resolved,
    Cloned,
    Ready,
    Open,
}

impl Stage {
    /// The next stage, or `None` if the message may not come now. `clones`: the builder is not itself the process.
    fn after(self, report: &Report, clones: bool) -> Option<Self> {
        match (self, report) {
            (Self::Begun, Report::User(_)) => Some(Self::Resolved),
            (Self::Begun | Self::Resolved, Report::Cloned(_)) if clones => Some(Self::Cloned),
            (Self::Begun | Self::Resolved, Report::Ready) if !clones => Some(Self::Ready),
            (Self::Cloned, Report::Ready) => Some(Self::Ready),
            _ => None,
        }
    }
}

/// What the shim has to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing.
    Waiting,
    /// Learn that this pid belongs to the spawn too.
    Cloned(i32),
    /// Do what must be done before the program runs, then call [`Spawn::open`].
    Ready,
    /// The program runs, or has run: take it with [`Spawn::into_program`].
    Runs,
    /// It could not be made, and nothing of it is left.
    Failed(Failure),
}

/// See the module's header.
#[derive(Debug)]
pub struct Spawn {
    builder: Child,
    builder_ended: Option<ExitStatus>,
    program: Option<Child>,
    program_ended: Option<ExitStatus>,
    clones: bool,
    /// `None` after its end: nobody is left who could run the program, or the program runs.
    report: Option<Watched>,
    gate1: Option<OwnedFd>,
    stage: Stage,
    user: Option<ResolvedUser>,
    failure: Option<Failure>,
}

/// A process whose program runs.
#[derive(Debug)]
pub struct Program {
    /// The process.
    pub child: Child,
    /// As whom, if the builder said so.
    pub user: Option<ResolvedUser>,
    /// It has been reaped already.
    pub ended: Option<ExitStatus>,
}

impl Spawn {
    /// Watches over a builder whose gate 0 has been opened. `report` is non-blocking.
    pub fn new(builder: Child, clones: bool, report: OwnedFd, gate1: OwnedFd) -> Self {
        Self {
            builder,
            builder_ended: None,
            program: None,
            program_ended: None,
            clones,
            report: Some(report.into()),
            gate1: Some(gate1),
            stage: Stage::Begun,
            user: None,
            failure: None,
        }
    }

    /// The pid of the builder.
    pub fn builder_pid(&self) -> i32 {
        self.builder.pid
    }

    /// What to watch for the builder's messages.
    pub fn report(&mut self) -> Option<&mut Watched> {
        self.report.as_mut()
    }

    /// The process that will run the program, once there is one.
    pub fn process(&self) -> Option<&Child> {
        if self.clones { self.program.as_ref() } else { Some(&self.builder) }
    }

    /// Gate 1 was opened: the program may have begun.
    pub fn is_open(&self) -> bool {
        self.stage == Stage::Open && self.failure.is_none()
    }

    /// The builder resolved a user.
    pub fn has_user(&self) -> bool {
        self.user.is_some()
    }

    /// Takes what the builder has said since.
    pub fn advance(&mut self) -> Progress {
        while let Some(report) = &self.report {
            let message = match socket::receive(report.as_fd()) {
                Ok(Some((bytes, fds))) if fds.is_empty() => Report::from_bytes(&bytes).ok(),
                Ok(Some(_)) => None,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return self.verdict(),
                // The end; an error other than EAGAIN cannot be told from it, and means the same.
                Ok(None) | Err(_) => {
                    self.report = None;
                    break;
                }
            };
            match self.take(message) {
                Progress::Waiting => {}
                progress => return progress,
            }
        }
        self.verdict()
    }

    /// Opens gate 1. Its end is the last that the shim has of it.
    pub fn open(&mut self) {
        if let Some(gate) = self.gate1.take()
            && self.stage == Stage::Ready
        {
            // Refused only when the process has gone, which the reaper tells.
            let _gone = rustix::io::write(gate, b"1");
            self.stage = Stage::Open;
        }
    }

    /// Gives up: kills what there is. The first reason is the one that is told.
    pub fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
        self.gate1 = None;
        if self.builder_ended.is_none() {
            self.builder.kill();
        }
        if let Some(program) = &self.program
            && self.program_ended.is_none()
        {
            program.kill();
        }
    }

    /// One of its processes has been reaped.
    pub fn reaped(&mut self, pid: i32, status: ExitStatus) {
        if pid == self.builder.pid && self.builder_ended.is_none() {
            self.builder_ended = Some(status);
        } else {
            self.program_ended = Some(status);
        }
    }

    /// After [`Progress::Runs`].
    pub fn into_program(self) -> Option<Program> {
        let (child, ended) = match (self.clones, self.program) {
            (true, program) => (program?, self.program_ended),
            (false, _) => (self.builder, self.builder_ended),
        };
        Some(Program { child, user: self.user, ended })
    }

    fn take(&mut self, message: Option<Report>) -> Progress {
        if self.failure.is_some() {
            return Progress::Waiting;
        }
        match message {
            Some(Report::Failed(failure)) => {
                self.fail(failure::cut(failure));
                return Progress::Waiting;
            }
            Some(report) => {
                if let Some(stage) = self.stage.after(&report, self.clones) {
                    self.stage = stage;
                    return self.note(report);
                }
            }
            None => {}
        }
        self.fail(failure::new("report", 0, "the builder said something that it may not say now"));
        Progress::Waiting
    }

    /// A message that came in its order.
    fn note(&mut self, report: Report) -> Progress {
        match report {
            Report::User(user) if user.groups.len() > MAX_GROUPS => {
                let detail =
                    format!("the user has {} groups, above the limit of {MAX_GROUPS}", user.groups.len());
                self.fail(failure::new("user", 0, &detail));
                Progress::Waiting
            }
            Report::User(user) => {
                self.user = Some(user);
                Progress::Waiting
            }
            Report::Cloned(cloned) => match own_child(cloned.pid) {
                Ok(child) => {
                    self.program = Some(child);
                    Progress::Cloned(cloned.pid)
                }
                Err(error) => {
                    let detail = format!("find process {}, which the builder cloned", cloned.pid);
                    self.fail(failure::new("clone", error.raw_os_error(), &detail));
                    Progress::Waiting
                }
            },
            Report::Ready => Progress::Ready,
            Report::Failed(_) => Progress::Waiting,
        }
    }

    /// Where things stand when the builder has nothing more to say for now.
    fn verdict(&mut self) -> Progress {
        if self.report.is_none() && self.failure.is_none() {
            if self.stage == Stage::Open {
                return Progress::Runs;
            }
            self.fail(failure::new("builder", 0, &self.early_end()));
        }
        let gone = self.builder_ended.is_some() && (self.program.is_none() || self.program_ended.is_some());
        match &self.failure {
            Some(failure) if gone && self.report.is_none() => Progress::Failed(failure.clone()),
            _ => Progress::Waiting,
        }
    }

    fn early_end(&self) -> String {
        match self.builder_ended.as_ref().or(self.program_ended.as_ref()) {
            Some(status) if status.signal != 0 => {
                format!("killed by signal {} before the program ran", status.signal)
            }
            Some(status) => format!("ended with code {} before the program ran", status.code),
            None => "ended before the program ran".to_owned(),
        }
    }
}

/// A pidfd of a process that is our child and has not been reaped, so that the pid means it and no other.
fn own_child(pid: i32) -> rustix::io::Result<Child> {
    let known = super::reap::as_pid(pid).ok_or(rustix::io::Errno::INVAL)?;
    let pidfd = pidfd_open(known, PidfdFlags::empty())?;
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    // ECHILD for everybody else's.
    waitid(WaitId::PidFd(pidfd.as_fd()), look | super::reap::ALL_CHILDREN)?;
    Ok(Child { pid, pidfd })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::report::Cloned;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn user() -> Report {
        Report::User(ResolvedUser { uid: 1, gid: 1, groups: vec![1] })
    }

    #[test]
    fn messages_come_in_order_each_once() {
        let cloned = || Report::Cloned(Cloned { pid: 1 });
        let table: [(&[Report], bool, bool); 9] = [
            (&[user(), Report::Ready], false, true),
            (&[Report::Ready], false, true),
            (&[user(), cloned(), Report::Ready], true, true),
            (&[cloned(), Report::Ready], true, true),
            (&[user(), Report::Ready], true, false),
            (&[user(), cloned()], false, false),
            (&[user(), user()], true, false),
            (&[user(), Report::Ready, Report::Ready], false, false),
            (&[cloned(), user()], true, false),
        ];
        for (reports, clones, accepted) in table {
            let end = reports.iter().try_fold(Stage::Begun, |stage, report| stage.after(report, clones));
            assert_eq!(end.is_some(), accepted, "{reports:?}");
        }
    }

    struct Fake {
        spawn: Spawn,
        builder: Option<OwnedFd>,
        gate: OwnedFd,
        process: std::process::Child,
    }

    impl Fake {
        /// A spawn whose builder is a sleeping process, and the ends that a builder would have.
        fn new() -> Self {
            let process = std::process::Command::new("sleep").arg("60").spawn().unwrap();
            let builder = own_child(i32::try_from(process.id()).unwrap()).unwrap();
            let (ours, theirs) = socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )
            .unwrap();
            let (gate, gate1) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
            Self { spawn: Spawn::new(builder, false, ours, gate1), builder: Some(theirs), gate, process }
        }

        fn say(&self, bytes: &[u8]) {
            socket::send(self.builder.as_ref().unwrap().as_fd(), bytes, &[]).unwrap();
        }

        fn reap(&mut self) -> Progress {
            let code = self.process.wait().unwrap().code();
            let pid = i32::try_from(self.process.id()).unwrap();
            let signal = if code.is_none() { 9 } else { 0 };
            self.spawn.reaped(pid, ExitStatus { code: code.unwrap_or(137), signal });
            self.spawn.advance()
        }
    }

    #[test]
    fn a_program_runs() {
        let mut fake = Fake::new();
        fake.say(&user().to_bytes());
        assert_eq!(fake.spawn.advance(), Progress::Waiting);
        fake.say(&Report::Ready.to_bytes());
        assert_eq!(fake.spawn.advance(), Progress::Ready);
        assert!(rustix::io::read(&fake.gate, &mut [0; 8]).is_err());
        fake.spawn.open();
        assert_eq!(rustix::io::read(&fake.gate, &mut [0; 8]).unwrap(), 1);
        assert_eq!(fake.spawn.advance(), Progress::Waiting);
        fake.builder = None;
        assert_eq!(fake.spawn.advance(), Progress::Runs);
        fake.process.kill().unwrap();
        fake.process.wait().unwrap();
        assert!(fake.spawn.into_program().unwrap().user.is_some());
    }

    #[test]
    fn every_failure_leaves_nothing() {
        let failed = Report::Failed(failure::new("rootfs", 2, "mount"));
        for (bytes, step) in [
            (failed.to_bytes(), "rootfs"),
            (vec![9, 9], "report"),
            (Report::Cloned(Cloned { pid: 1 }).to_bytes(), "report"),
        ] {
            let mut fake = Fake::new();
            fake.say(&bytes);
            assert_eq!(fake.spawn.advance(), Progress::Waiting);
            fake.builder = None;
            // Not told before the process has been reaped.
            assert_eq!(fake.spawn.advance(), Progress::Waiting);
            match fake.reap() {
                Progress::Failed(failure) => assert_eq!(failure.step, step),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn an_early_end_is_a_failure() {
        let mut fake = Fake::new();
        fake.process.kill().unwrap();
        fake.builder = None;
        match fake.reap() {
            Progress::Failed(failure) => {
                assert_eq!(failure.detail, "killed by signal 9 before the program ran");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_strangers_pid_is_refused() {
        for pid in [0, -1, 1, i32::MAX] {
            assert!(own_child(pid).is_err(), "{pid}");
        }
    }
}
