//! Requests: who may ask, what each needs, and what is answered. What a request does stands in `sandbox`, `container`,
//! `exec` and `shutdown`.

use std::os::fd::OwnedFd;

use super::cgroup::Cgroup;
use super::failure;
use super::serve::Shim;
use crate::protocol::{
    CgroupPlace, Failure, Frame, Hello, HelloReply, MAX_FDS, Message, PROTOCOL, Reply, Request, StartOpen,
};
use crate::wire::Wire;

/// The descriptors of a request, taken in the order in which the protocol names them.
#[derive(Debug)]
pub struct Given(std::collections::VecDeque<OwnedFd>);

impl Given {
    /// The next one.
    pub fn take(&mut self) -> Result<OwnedFd, Failure> {
        self.0.pop_front().ok_or_else(wrong_descriptors)
    }

    /// The next one, if there is to be one.
    pub fn take_if(&mut self, wanted: bool) -> Result<Option<OwnedFd>, Failure> {
        wanted.then(|| self.take()).transpose()
    }

    /// All others are those of the cgroups.
    pub fn cgroup(self, place: &CgroupPlace) -> Result<Cgroup, Failure> {
        Cgroup::new(place, self.0.into()).ok_or_else(wrong_descriptors)
    }

    /// The last one, if there is another.
    pub fn last(mut self) -> Result<Option<OwnedFd>, Failure> {
        let last = self.0.pop_front();
        self.end().map(|()| last)
    }

    /// There are no others.
    pub fn end(self) -> Result<(), Failure> {
        if self.0.is_empty() { Ok(()) } else { Err(wrong_descriptors()) }
    }
}

fn wrong_descriptors() -> Failure {
    failure::new("request", 0, "the request came with descriptors that it does not take, or without some")
}

impl Shim {
    /// Takes one request of a connection.
    pub(super) fn obey(&mut self, slot: u32, bytes: &[u8], fds: Vec<OwnedFd>) {
        debug_assert!(fds.len() <= MAX_FDS, "socket::receive refuses more");
        let frame = match Frame::from_bytes(bytes) {
            Ok(frame) => frame,
            Err(error) => {
                super::say(&format!("a connection ends: {error}"));
                return self.part(slot);
            }
        };
        let known = self.peers.get(&slot).is_some_and(|peer| peer.generation.is_some());
        let Frame { seq, request } = frame;
        match (known, request) {
            (_, Request::Hello(hello)) => self.hello(slot, seq, &hello),
            (true, request) => {
                let done = self.act(slot, seq, request, Given(fds.into()));
                match done {
                    Ok(Answered::Later) => {}
                    Ok(Answered::Now(reply, fd)) => {
                        use std::os::fd::AsFd;
                        self.answer(slot, seq, reply, fd.as_ref().map(AsFd::as_fd));
                    }
                    Err(failure) => self.answer(slot, seq, Reply::Failed(failure), None),
                }
            }
            (false, _) => {
                super::say("a connection ends: it asks before it has said who it is");
                self.part(slot);
            }
        }
    }

    /// A daemon says who it is. A newer one takes the place of an older, an older one is sent away.
    fn hello(&mut self, slot: u32, seq: u32, hello: &Hello) {
        if hello.generation < self.generation || hello.protocol == 0 {
            let detail = format!(
                "generation {} with protocol {}: the shim obeys generation {} and speaks protocol {PROTOCOL}",
                hello.generation, hello.protocol, self.generation
            );
            self.answer(slot, seq, Reply::Failed(failure::new("hello", 0, &detail)), None);
            if let Some(peer) = self.peers.get_mut(&slot) {
                peer.leaving = true;
            }
            return;
        }
        self.generation = hello.generation;
        let older: Vec<u32> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.generation.is_some_and(|generation| generation < hello.generation))
            .map(|(slot, _)| *slot)
            .collect();
        older.into_iter().for_each(|slot| self.part(slot));
        if let Some(peer) = self.peers.get_mut(&slot) {
            peer.generation = Some(hello.generation);
        }
        let reply = HelloReply {
            protocol: PROTOCOL.min(hello.protocol),
            build: crate::protocol::BUILD.to_owned(),
            sandbox: self.sandbox.id.clone(),
        };
        self.answer(slot, seq, Reply::Hello(reply), None);
        self.send_snapshot(slot);
    }

    /// Everything held, then the mark of its end.
    fn send_snapshot(&mut self, slot: u32) {
        let Some(peer) = self.peers.get_mut(&slot) else { return };
        let sent = self
            .facts
            .held()
            .try_for_each(|held| peer.send(&Message::Fact(held.event.clone()), held.fd()))
            .and_then(|()| peer.send(&Message::SnapshotEnd, None));
        if sent.is_err() {
            self.part(slot);
        }
    }

    fn act(&mut self, slot: u32, seq: u32, request: Request, given: Given) -> Result<Answered, Failure> {
        if self.shutdown.is_some() {
            return Err(failure::new("request", 0, "the shim is shutting down"));
        }
        match request {
            Request::StartInit(start) => return self.start_init(slot, seq, &start, given),
            Request::Start(start) => {
                self.start(StartOpen { start, stdin: false, terminal: false }, given)?;
            }
            Request::StartOpen(start) => self.start(start, given)?,
            Request::Attach(attach) => return self.attach(&attach, given),
            Request::Exec(exec) => self.exec(slot, exec, given)?,
            Request::MakeSandbox(spec) => {
                let void = given.last()?;
                return self.make_sandbox(&spec, None, void);
            }
            Request::MakeUserSandbox(spec) => {
                given.end()?;
                return self.make_sandbox(&spec.sandbox, Some(&spec.ids), None);
            }
            Request::ReopenLog(container) => self.reopen_log(&container.container, given)?,
            plain => {
                given.end()?;
                match plain {
                    Request::Signal(signal) => self.signal(&signal)?,
                    Request::CloseStdin(container) => self.close_stdin(&container.container),
                    Request::KillExec(exec) => self.kill_exec(exec.exec),
                    Request::Forget(container) => self.forget(&container.container)?,
                    Request::Acknowledge(acknowledge) => {
                        self.facts.acknowledge(acknowledge.serial);
                        return Ok(Answered::Later);
                    }
                    Request::Shutdown => {
                        self.shut_down(slot, seq);
                        return Ok(Answered::Later);
                    }
                    Request::Hello(_)
                    | Request::MakeSandbox(_)
                    | Request::MakeUserSandbox(_)
                    | Request::StartInit(_)
                    | Request::Start(_)
                    | Request::StartOpen(_)
                    | Request::Attach(_)
                    | Request::Exec(_)
                    | Request::ReopenLog(_) => {}
                }
            }
        }
        Ok(Answered::Now(Reply::Done, None))
    }
}

/// When a request is answered.
#[derive(Debug)]
pub enum Answered {
    /// At once, with a descriptor for some.
    Now(Reply, Option<OwnedFd>),
    /// Once it is done, or never.
    Later,
}
