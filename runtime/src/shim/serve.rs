//! The loop: exits and signals, then what builders say, then control, then a bounded amount of output, then what a
//! limit has run out for. Between events it sleeps without end.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cove_path::Proc;
use cove_sys::SingleThreaded;
use nix::sys::signalfd::SignalFd;

use super::container::Container;
use super::exec::Exec;
use super::facts::Facts;
use super::hunt::Hunt;
use super::log::Stream;
use super::peer::Peer;
use super::sandbox::Sandbox;
use super::shutdown::Shutdown;
use super::stdio::{HELD, Output, Pumped};
use super::watch::{EventFlags, Owner, Token, Watch, Watched};
use crate::protocol::{Answer, Event, Message, Reply};

/// Output that one stream of a container may have moved in a round, so that none keeps the others or a request waiting.
const BUDGET: usize = 256 * 1024;
/// Quiet for as long after a burst of output, its memory is given back: one wake-up a burst.
const REST: Duration = Duration::from_secs(1);
/// Connections accepted, and requests read from one connection, in a round.
const BURST: usize = 16;
/// Connections at a time: a daemon has one, and its successor another.
const MAX_PEERS: usize = 16;

/// All that the shim knows.
#[derive(Debug)]
pub struct Shim {
    pub(super) single: SingleThreaded,
    pub(super) proc: Proc,
    /// The host's /dev/null, for programs that get no pipe.
    pub(super) null: OwnedFd,
    pub(super) watch: Watch,
    pub(super) listener: OwnedFd,
    pub(super) signals: SignalFd,
    /// The highest generation of a daemon that has said Hello.
    pub(super) generation: u64,
    pub(super) peers: BTreeMap<u32, Peer>,
    pub(super) facts: Facts,
    /// Whom each child belongs to that has not been reaped.
    pub(super) pids: BTreeMap<i32, Owner>,
    pub(super) sandbox: Sandbox,
    pub(super) containers: BTreeMap<u32, Container>,
    pub(super) execs: BTreeMap<u32, Exec>,
    /// Execs that are being killed.
    pub(super) hunts: VecDeque<Hunt>,
    /// Children may have ended that a round did not come to.
    pub(super) unreaped: bool,
    pub(super) shutdown: Option<Shutdown>,
    /// Of an `oom_score_adj` that could not be had: said once.
    pub(super) clamped: bool,
    pub(super) next_slot: u32,
    /// Read buffer of all containers' output.
    pub(super) input: Vec<u8>,
    /// When the memory of a burst of output is given back.
    pub(super) rest_at: Option<Instant>,
    /// Output that is not watched meanwhile, since a client of it is late; and when it is looked at again.
    pub(super) held: BTreeMap<(u32, Stream), Instant>,
}

impl Shim {
    /// Serves until it is shut down.
    pub fn serve(mut self) -> rustix::io::Result<()> {
        self.watch.add_forever(&self.signals, Token::Signals, EventFlags::IN)?;
        self.watch.add_forever(&self.listener, Token::Listener, EventFlags::IN)?;
        loop {
            for (token, flags) in self.watch.wait(self.limit())? {
                self.take(token, flags);
            }
            if self.unreaped {
                self.reap();
            }
            self.go_on();
            self.settle_all();
            self.hunt();
            self.watch_peers();
            self.rest();
            if self.shutdown_is_done() {
                return Ok(());
            }
        }
    }

    fn take(&mut self, token: Token, flags: EventFlags) {
        match token {
            Token::Signals => self.reap(),
            Token::Oom(slot) => self.oom(slot),
            Token::Report(owner) => self.drive(owner),
            Token::Listener => self.accept(),
            Token::Peer(slot) => self.hear(slot, flags),
            Token::Output(slot, stream) => self.pump(slot, stream),
        }
    }

    /// How long the loop may sleep.
    fn limit(&self) -> Option<Duration> {
        if self.unreaped || !self.hunts.is_empty() {
            return Some(Duration::ZERO);
        }
        let now = Instant::now();
        let containers = self.containers.values().filter_map(Container::due);
        let shutdown = self.shutdown.iter().map(Shutdown::due);
        let held = self.held.values().copied();
        containers
            .chain(shutdown)
            .chain(self.rest_at)
            .chain(held)
            .min()
            .map(|due| due.saturating_duration_since(now))
    }

    /// Gives the memory of a burst back, or each pod would keep it for ever.
    fn rest(&mut self) {
        if self.rest_at.take_if(|at| Instant::now() >= *at).is_some() {
            self.containers
                .values_mut()
                .filter_map(|container| container.output.as_mut())
                .for_each(Output::rest);
            self.input = Vec::new();
            cove_sys::trim();
        }
    }

    /// A number that no container, exec or connection has.
    pub(super) fn slot(&mut self) -> u32 {
        self.next_slot = self.next_slot.wrapping_add(1);
        self.next_slot
    }

    /// Watches the messages of a builder.
    pub(super) fn watch_report(&self, owner: Owner, report: Option<&mut Watched>) {
        if let Some(report) = report {
            self.must_watch(report, Token::Report(owner), EventFlags::IN);
        }
    }

    /// epoll_ctl(2) refuses what we give it only for lack of memory or watches. Going on would lose events silently;
    /// the end is seen by the daemon, which cleans up.
    pub(super) fn must_watch(&self, fd: &mut Watched, token: Token, flags: EventFlags) {
        if let Err(error) = self.watch.add(fd, token, flags) {
            super::say(&format!("watch {token:?}: {error}"));
            std::process::abort();
        }
    }

    fn pump(&mut self, slot: u32, stream: Stream) {
        if let Some(output) = self.containers.get_mut(&slot).and_then(|container| container.output.as_mut()) {
            let pumped = output.pump(stream, BUDGET, &mut self.input);
            if pumped == Pumped::Held
                && !self.held.contains_key(&(slot, stream))
                && let Some(fd) = output.fd(stream)
            {
                // Once more at most: what has hung up is told of for ever otherwise.
                match self.watch.change(fd, Token::Output(slot, stream), EventFlags::ONESHOT) {
                    Ok(()) => drop(self.held.insert((slot, stream), Instant::now() + HELD)),
                    Err(error) => super::say(&format!("hold of output: {error}")),
                }
            }
            if output.is_large() {
                self.rest_at = Some(Instant::now() + REST);
            } else {
                self.input = Vec::new();
            }
            self.settle(slot);
        }
    }

    /// Looks at output that was held, and watches it again once it is not.
    fn go_on(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self.held.iter().filter(|(_, at)| **at <= now).map(|(output, _)| *output).collect();
        for (slot, stream) in due {
            self.held.remove(&(slot, stream));
            self.pump(slot, stream);
            if self.held.contains_key(&(slot, stream)) {
                continue;
            }
            let output = self.containers.get_mut(&slot).and_then(|container| container.output.as_mut());
            if let Some(fd) = output.and_then(|output| output.fd(stream))
                && let Err(error) = self.watch.change(fd, Token::Output(slot, stream), EventFlags::IN)
            {
                super::say(&format!("watch of output: {error}"));
                std::process::abort();
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..BURST {
            let mut peer = match Peer::accept(&self.listener) {
                Ok(None) => return,
                Ok(Some(_)) if self.peers.len() >= MAX_PEERS => {
                    super::say("refused a connection: there are too many");
                    continue;
                }
                Ok(Some(peer)) => peer,
                Err(error) => {
                    super::say(&format!("accept: {error}"));
                    return;
                }
            };
            let slot = self.slot();
            let wanted = peer.watched;
            self.must_watch(&mut peer.socket, Token::Peer(slot), wanted);
            self.peers.insert(slot, peer);
        }
    }

    fn hear(&mut self, slot: u32, flags: EventFlags) {
        if flags.contains(EventFlags::OUT)
            && self.peers.get_mut(&slot).is_some_and(|peer| peer.flush().is_err())
        {
            return self.part(slot);
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            return;
        }
        for _ in 0..BURST {
            let Some(peer) = self.peers.get(&slot).filter(|peer| peer.listens()) else {
                return;
            };
            match peer.receive() {
                Ok(Some((frame, fds))) => self.obey(slot, &frame, fds),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Ok(None) => return self.part(slot),
                Err(error) => {
                    super::say(&format!("a connection ends: {error}"));
                    return self.part(slot);
                }
            }
        }
    }

    /// Answers a request. A connection that has gone needs no answer.
    pub(super) fn answer(&mut self, slot: u32, seq: u32, reply: Reply, fd: Option<BorrowedFd<'_>>) {
        self.send(slot, &Message::Reply(Answer { seq, reply }), fd);
    }

    /// Sends a message on one connection, and ends it if nobody is there.
    pub(super) fn send(&mut self, slot: u32, message: &Message, fd: Option<BorrowedFd<'_>>) {
        if self.peers.get_mut(&slot).is_some_and(|peer| peer.send(message, fd).is_err()) {
            self.part(slot);
        }
    }

    /// Keeps a fact and tells it to every daemon that has said Hello.
    pub(super) fn tell(&mut self, fact: crate::protocol::Fact, fd: Option<OwnedFd>) {
        let held = self.facts.keep(fact, fd);
        let message = Message::Fact(held.event.clone());
        let mut gone = Vec::new();
        for (slot, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.generation.is_some()) {
            if !peer.leaving && peer.send(&message, held.fd()).is_err() {
                gone.push(*slot);
            }
        }
        gone.into_iter().for_each(|slot| self.part(slot));
    }

    /// Tells what is of use to nobody but the one who asked.
    pub(super) fn tell_one(&mut self, slot: u32, fact: crate::protocol::Fact, fd: Option<BorrowedFd<'_>>) {
        let event: Event = self.facts.pass(fact);
        self.send(slot, &Message::Fact(event), fd);
    }

    /// Ends a connection, and with it the execs that were bound to it.
    pub(super) fn part(&mut self, slot: u32) {
        if self.peers.remove(&slot).is_some() {
            self.kill_bound(slot);
        }
    }

    /// After each round: listens to those who read, waits for those who do not, ends those who have been told to go.
    fn watch_peers(&mut self) {
        let mut gone = Vec::new();
        for (slot, peer) in &mut self.peers {
            let wanted = peer.wants();
            if peer.leaving && peer.is_flushed() {
                gone.push(*slot);
            } else if wanted != peer.watched {
                match self.watch.change(&peer.socket, Token::Peer(*slot), wanted) {
                    Ok(()) => peer.watched = wanted,
                    Err(error) => {
                        super::say(&format!("a connection ends: {error}"));
                        gone.push(*slot);
                    }
                }
            }
        }
        gone.into_iter().for_each(|slot| self.part(slot));
    }
}
