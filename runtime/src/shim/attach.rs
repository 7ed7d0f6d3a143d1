//! Clients that are attached to a container: pipes that are filled without waiting. The log comes first; a client that
//! does not read misses output, and is cut off when that goes on.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr, write};

use super::failure;
use super::log::Stream;
use super::request::{Answered, Given};
use super::serve::Shim;
use crate::protocol::{self, Failure, Reply};

/// The most clients of a container at a time.
const MAX_CLIENTS: usize = 64;
/// How long a client may miss output until it is cut off (design.md section 2).
const OVERFLOW: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Client {
    stream: Stream,
    pipe: OwnedFd,
    /// Since when all that was passed to it did not fit.
    full: Option<Instant>,
}

/// See the module's header.
#[derive(Debug, Default)]
pub struct Clients(Vec<Client>);

impl Clients {
    /// One more, from now on. Those that have gone make room.
    pub fn add(&mut self, stream: Stream, pipe: OwnedFd) -> std::io::Result<()> {
        self.0.retain(|client| !is_gone(&client.pipe));
        if self.0.len() >= MAX_CLIENTS {
            return Err(Errno::USERS.into());
        }
        // The writing end is ours alone.
        rustix::io::ioctl_fionbio(&pipe, true)?;
        self.0.push(Client { stream, pipe, full: None });
        Ok(())
    }

    /// Passes bytes to those who read this stream.
    pub fn pass(&mut self, stream: Stream, bytes: &[u8]) {
        if !self.0.is_empty() {
            let now = Instant::now();
            self.0.retain_mut(|client| client.stream != stream || client.pass(bytes, now));
        }
    }

    /// A stream has ended.
    pub fn end(&mut self, stream: Stream) {
        self.0.retain(|client| client.stream != stream);
    }
}

impl Client {
    /// False when it is to be cut off.
    fn pass(&mut self, mut bytes: &[u8], now: Instant) -> bool {
        while !bytes.is_empty() {
            match retry_on_intr(|| write(&self.pipe, bytes)) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::AGAIN) => return now.duration_since(*self.full.get_or_insert(now)) < OVERFLOW,
                Err(_gone) => return false,
            }
        }
        self.full = None;
        true
    }
}

fn is_gone(pipe: &OwnedFd) -> bool {
    const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(pipe, PollFlags::empty())];
    poll(&mut fds, Some(&NOW)).is_ok_and(|ready| ready > 0)
}

impl Shim {
    pub(super) fn attach(
        &mut self,
        attach: &protocol::Attach,
        mut given: Given,
    ) -> Result<Answered, Failure> {
        let stdout = given.take_if(attach.stdout)?;
        let stderr = given.take_if(attach.stderr)?;
        given.end()?;
        let refused = || failure::new("attach", 0, "the container does not run");
        let slot = self.find(&attach.container).ok_or_else(refused)?;
        let container = self.containers.get_mut(&slot).ok_or_else(refused)?;
        container.process().ok_or_else(refused)?;
        let failed = |error| failure::io("attach", "add a client", &error);
        for (stream, pipe) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            if let (Some(pipe), Some(output)) = (pipe, &mut container.output) {
                output.attach(stream, pipe).map_err(failed)?;
            }
        }
        let input = container.input.as_ref().filter(|_| attach.stdin).map(OwnedFd::try_clone);
        Ok(Answered::Now(Reply::Done, input.transpose().map_err(failed)?))
    }

    pub(super) fn close_stdin(&mut self, id: &str) {
        let slot = self.find(id);
        if let Some(container) = slot.and_then(|slot| self.containers.get_mut(&slot))
            && !container.terminal
        {
            container.input = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_read_is_cut_off_in_time_and_holds_nobody_up() {
        let mut clients = Clients::default();
        let (reads, pipe) = rustix::pipe::pipe().unwrap();
        clients.add(Stream::Stdout, pipe).unwrap();
        let (stuck, pipe) = rustix::pipe::pipe().unwrap();
        clients.add(Stream::Stdout, pipe).unwrap();
        let mut chunk = vec![0; 64 * 1024];
        for _ in 0..10 {
            clients.pass(Stream::Stdout, &chunk.clone());
            let mut got = 0;
            while got < chunk.len() {
                got += rustix::io::read(&reads, &mut chunk).unwrap();
            }
        }
        assert_eq!(clients.0.len(), 2);
        assert!(clients.0[0].full.is_none() && clients.0[1].full.is_some());
        clients.0[1].full = Instant::now().checked_sub(OVERFLOW);
        clients.pass(Stream::Stdout, b"x");
        assert_eq!(clients.0.len(), 1);
        drop((reads, stuck));
        clients.pass(Stream::Stderr, b"x");
        assert_eq!(clients.0.len(), 1);
        clients.pass(Stream::Stdout, b"x");
        assert!(clients.0.is_empty());
    }

    #[test]
    fn those_who_went_make_room() {
        let mut clients = Clients::default();
        for _ in 0..3 * MAX_CLIENTS {
            let (_, pipe) = rustix::pipe::pipe().unwrap();
            clients.add(Stream::Stderr, pipe).unwrap();
        }
        assert!(clients.0.len() <= 1);
        clients.end(Stream::Stderr);
        assert!(clients.0.is_empty());
    }
}
