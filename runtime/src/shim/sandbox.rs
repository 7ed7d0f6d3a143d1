//! The pod's environment: its user namespace, if it has one; network, IPC and UTS namespaces, which the shim joins itself; the holder of the mount
//! namespace in which the pod's /dev/shm lies; and the init of a shared PID namespace.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags, openat};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::failure;
use super::fork;
use super::loopback;
use super::request::{Answered, Given};
use super::serve::Shim;
use super::spawn::{Child, Program, Spawn};
use super::sysctl;
use super::watch::Owner;
use crate::build::userns::{self, UserNamespace};
use crate::protocol::{ExitStatus, Fact, Failure, IdMap, InitReply, Reply, SandboxSpec, StartInit};

/// The holder being made, and who waits for it.
#[derive(Debug)]
struct Making {
    spawn: Option<Spawn>,
    init: bool,
    peer: u32,
    seq: u32,
}

/// See the module's header.
#[derive(Debug, Default)]
pub struct Sandbox {
    /// Empty before it was made.
    pub(super) id: String,
    making: Option<Making>,
    /// The pod's user namespace.
    user: Option<UserNamespace>,
    /// The void, if the daemon gave one.
    void: Option<OwnedFd>,
    /// The holder's mount namespace.
    holder: Option<OwnedFd>,
    init: Option<Child>,
}

impl Sandbox {
    /// The pod's init, while it lives.
    pub fn init(&self) -> Option<&Child> {
        self.init.as_ref()
    }

    /// The holder's mount namespace.
    pub fn holder(&self) -> Option<&OwnedFd> {
        self.holder.as_ref()
    }

    /// The holder that is being made.
    pub fn spawn_mut(&mut self) -> Option<&mut Spawn> {
        self.making.as_mut()?.spawn.as_mut()
    }

    /// Takes it, once it is made.
    pub fn take_spawn(&mut self) -> Option<Spawn> {
        self.making.as_mut()?.spawn.take()
    }

    /// SIGKILL to what there is.
    pub fn kill(&mut self) {
        if let Some(spawn) = self.spawn_mut() {
            spawn.fail(failure::new("init", 0, "the shim was shut down"));
        }
        if let Some(init) = &self.init {
            init.kill();
        }
    }
}

impl Shim {
    pub(super) fn make_sandbox(
        &mut self,
        spec: &SandboxSpec,
        ids: Option<&IdMap>,
        void: Option<OwnedFd>,
    ) -> Result<Answered, Failure> {
        if !self.sandbox.id.is_empty() {
            return Err(failure::new("sandbox", 0, "the sandbox has been made before"));
        }
        if spec.sandbox.is_empty() {
            return Err(failure::new("sandbox", 0, "the sandbox has no id"));
        }
        sysctl::check(spec)?;
        let mut flags = CloneFlags::empty();
        flags.set(CloneFlags::CLONE_NEWNET, spec.new_net);
        flags.set(CloneFlags::CLONE_NEWIPC, spec.new_ipc);
        flags.set(CloneFlags::CLONE_NEWUTS, spec.new_uts);
        // Should a later step fail, the shim is left alone in namespaces that the next try replaces.
        self.sandbox.user = match ids {
            None => unshare(flags).map(|()| None)?,
            Some(ids) => Some(self.make_owned(flags, spec, ids)?),
        };
        if spec.new_uts && !spec.hostname.is_empty() {
            rustix::system::sethostname(spec.hostname.as_bytes()).map_err(|errno| {
                failure::io("hostname", &format!("set {:?}", spec.hostname), &errno.into())
            })?;
        }
        let network = spec.new_net.then(own_network).transpose()?;
        // Those of a user namespace were written inside, but for what only the host's root may write.
        sysctl::write(&self.proc, spec, |key| ids.is_none() || sysctl::is_of_uts(key))?;
        self.sandbox.void = void;
        self.sandbox.id.clone_from(&spec.sandbox);
        Ok(Answered::Now(Reply::Sandbox, network))
    }

    /// Makes a user namespace, in it the pod's other namespaces, and joins these: the shim itself stays the host's.
    fn make_owned(
        &self,
        flags: CloneFlags,
        spec: &SandboxSpec,
        ids: &IdMap,
    ) -> Result<UserNamespace, Failure> {
        let inside = || {
            unshare(flags)?;
            // By their root: only it may write those of IPC, and ids in values are the pod's.
            sysctl::write(&self.proc, spec, |key| !sysctl::is_of_uts(key))
        };
        let join = |pidfd: BorrowedFd<'_>| {
            let types = [
                (spec.new_net, ThreadNameSpaceType::NETWORK),
                (spec.new_ipc, ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
                (spec.new_uts, ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
            ];
            let types = types.into_iter().filter(|(made, _)| *made).map(|(_, kind)| kind);
            let types = types.fold(ThreadNameSpaceType::empty(), |all, kind| all | kind);
            if types.is_empty() {
                return Ok(());
            }
            move_into_thread_name_spaces(pidfd, types)
                .map_err(|errno| failure::io("namespaces", "join the pod's namespaces", &errno.into()))
        };
        userns::make(self.single, &self.proc, ids, &[self.proc.as_fd()], inside, join)
    }

    /// The pod's user namespace, for a builder.
    pub(super) fn user(&self) -> Result<Option<UserNamespace>, Failure> {
        let copy = self.sandbox.user.as_ref().map(UserNamespace::try_clone).transpose();
        copy.map_err(|error| failure::io("start", "duplicate a descriptor", &error))
    }

    /// What mount namespaces of the pod are copies of, for a builder. Not in a pod with a user namespace, whose root may
    /// not enter it.
    pub(super) fn void(&self) -> Result<Option<OwnedFd>, Failure> {
        let copy = self.sandbox.void.as_ref().map(OwnedFd::try_clone).transpose();
        copy.map_err(|error| failure::io("start", "duplicate a descriptor", &error))
    }

    pub(super) fn start_init(
        &mut self,
        peer: u32,
        seq: u32,
        start: &StartInit,
        given: Given,
    ) -> Result<Answered, Failure> {
        if self.sandbox.id.is_empty() || self.sandbox.making.is_some() || self.sandbox.holder.is_some() {
            return Err(failure::new("init", 0, "the sandbox has not been made, or has its holder already"));
        }
        let cgroup = given.cgroup(&start.cgroup)?;
        let from = (self.user()?, self.void()?);
        let mut spawn = fork::holder(self.single, (start.shm_size, start.shared_pid), from, &cgroup)?;
        self.began(Owner::Holder, &mut spawn);
        self.sandbox.making = Some(Making { spawn: Some(spawn), init: start.shared_pid, peer, seq });
        Ok(Answered::Later)
    }

    /// The mounts of the holder are made: they live on in a descriptor.
    pub(super) fn holder_ready(&mut self) -> Result<(), Failure> {
        let Some(pid) = self.sandbox.spawn_mut().and_then(|spawn| Some(spawn.process()?.pid)) else {
            return Ok(());
        };
        // A magic link, which `Proc` follows for nobody; this one is of our own unreaped child.
        let path = format!("{pid}/ns/mnt");
        let holder = openat(self.proc.as_fd(), &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| failure::io("init", "open the holder's mount namespace", &errno.into()))?;
        self.sandbox.holder = Some(holder);
        Ok(())
    }

    pub(super) fn holder_runs(&mut self, program: Program) {
        let Some(making) = self.sandbox.making.take() else { return };
        let init = making.init.then_some(program.child);
        let pid = init.as_ref().map_or(0, |init| init.pid);
        let pidfd = init.as_ref().and_then(|init| init.pidfd.try_clone().ok());
        self.sandbox.init = init;
        let reply = Reply::Init(InitReply { pid });
        self.answer(making.peer, making.seq, reply, pidfd.as_ref().map(AsFd::as_fd));
    }

    pub(super) fn holder_failed(&mut self, failure: Failure) {
        self.sandbox.holder = None;
        if let Some(making) = self.sandbox.making.take() {
            self.answer(making.peer, making.seq, Reply::Failed(failure), None);
        }
    }

    /// The init has ended (a holder without init ends when it is done, and is nobody's loss).
    pub(super) fn init_ended(&mut self, status: ExitStatus) {
        if self.sandbox.init.take().is_some() {
            self.tell(Fact::InitExited(status), None);
        }
    }
}

fn unshare(flags: CloneFlags) -> Result<(), Failure> {
    nix::sched::unshare(flags).map_err(|errno| failure::io("namespaces", "unshare", &errno.into()))
}

/// The network namespace that the shim has just made, with its loopback up.
fn own_network() -> Result<OwnedFd, Failure> {
    loopback::up().map_err(|errno| failure::io("network", "set lo up", &errno.into()))?;
    rustix::fs::open("/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failure::io("network", "open the new network namespace", &errno.into()))
}
