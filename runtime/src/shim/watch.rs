//! What the shim waits for: one epoll, whose tokens say whom an event concerns and in which order events are taken.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::log::Stream;

pub use rustix::event::epoll::EventFlags;

/// Events taken in one round; the rest comes in the next.
const ROUND: usize = 64;

/// Whom a process or message belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The holder of the pod's mount namespace, or its init.
    Holder,
    /// A container, by its slot.
    Container(u32),
    /// An exec, by its slot.
    Exec(u32),
}

/// Whom an event concerns, in the order in which events of one round are taken: exits first, then what builders
/// say, then control, then output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Token {
    /// Children ended.
    Signals,
    /// The kernel killed in a container's cgroup.
    Oom(u32),
    /// A builder said something.
    Report(Owner),
    /// A daemon connects.
    Listener,
    /// A connection can be read or written.
    Peer(u32),
    /// A container wrote.
    Output(u32, Stream),
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, slot) = match self {
            Self::Signals => (0, 0),
            Self::Oom(slot) => (1, slot),
            Self::Report(Owner::Holder) => (2, 0),
            Self::Report(Owner::Container(slot)) => (3, slot),
            Self::Report(Owner::Exec(slot)) => (4, slot),
            Self::Listener => (5, 0),
            Self::Peer(slot) => (6, slot),
            Self::Output(slot, Stream::Stdout) => (7, slot),
            Self::Output(slot, Stream::Stderr) => (8, slot),
        };
        (kind << 32) | u64::from(slot)
    }

    fn decode(data: u64) -> Option<Self> {
        let slot = u32::try_from(data & u64::from(u32::MAX)).ok()?;
        Some(match data >> 32 {
            0 => Self::Signals,
            1 => Self::Oom(slot),
            2 => Self::Report(Owner::Holder),
            3 => Self::Report(Owner::Container(slot)),
            4 => Self::Report(Owner::Exec(slot)),
            5 => Self::Listener,
            6 => Self::Peer(slot),
            7 => Self::Output(slot, Stream::Stdout),
            8 => Self::Output(slot, Stream::Stderr),
            _ => return None,
        })
    }
}

/// A descriptor that may be watched, and no longer is once it is dropped.
///
/// Closing does not do that by itself: an epoll watches the open file, and goes on for as long as anybody has a copy of
/// the descriptor (epoll(7)). A child that the freezer stopped right after its clone has copies of all, and what
/// nobody can read or remove any more would wake the loop for ever.
#[derive(Debug)]
pub struct Watched {
    fd: OwnedFd,
    epoll: Option<Rc<OwnedFd>>,
}

impl From<OwnedFd> for Watched {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, epoll: None }
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(epoll) = &self.epoll
            && let Err(error) = epoll::delete(epoll, &self.fd)
        {
            super::say(&format!("a descriptor is watched although it is closed: {error}"));
        }
    }
}

/// See the module's header.
#[derive(Debug)]
pub struct Watch {
    epoll: Rc<OwnedFd>,
}

impl Watch {
    /// Watches nothing yet.
    pub fn new() -> rustix::io::Result<Self> {
        Ok(Self { epoll: Rc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?) })
    }

    /// Begins to watch what is never closed.
    pub fn add_forever(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.encode()), flags)
    }

    /// Begins to watch.
    pub fn add(&self, fd: &mut Watched, token: Token, flags: EventFlags) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, &fd.fd, epoll::EventData::new_u64(token.encode()), flags)?;
        fd.epoll = Some(Rc::clone(&self.epoll));
        Ok(())
    }

    /// Watches for something else.
    pub fn change(&self, fd: &Watched, token: Token, flags: EventFlags) -> rustix::io::Result<()> {
        epoll::modify(&self.epoll, &fd.fd, epoll::EventData::new_u64(token.encode()), flags)
    }

    /// Waits for events, without end if there is no limit. Sorted.
    pub fn wait(&self, limit: Option<Duration>) -> rustix::io::Result<Vec<(Token, EventFlags)>> {
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let mut events = Vec::with_capacity(ROUND);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let mut found: Vec<_> = events
            .iter()
            .filter_map(|event| {
                let (data, flags) = (event.data, event.flags);
                Some((Token::decode(data.u64())?, flags))
            })
            .collect();
        found.sort_by_key(|(token, _)| *token);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_and_are_ordered() {
        let tokens = [
            Token::Signals,
            Token::Oom(3),
            Token::Report(Owner::Holder),
            Token::Report(Owner::Container(1)),
            Token::Report(Owner::Exec(u32::MAX)),
            Token::Listener,
            Token::Peer(9),
            Token::Output(1, Stream::Stdout),
            Token::Output(1, Stream::Stderr),
        ];
        for token in tokens {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert!(tokens.is_sorted());
        assert_eq!(Token::decode(u64::MAX), None);
    }

    #[test]
    fn a_closed_descriptor_is_no_longer_watched() {
        let watch = Watch::new().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        // As a child has it that was stopped before it could close anything.
        let _copy = reader.try_clone().unwrap();
        let mut reader = Watched::from(reader);
        watch.add(&mut reader, Token::Listener, EventFlags::IN).unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        assert_eq!(watch.wait(None).unwrap().len(), 1);
        drop(reader);
        assert_eq!(watch.wait(Some(Duration::ZERO)).unwrap(), []);
    }
}
