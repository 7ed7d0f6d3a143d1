//! Clients that are attached to a container: pipes that are filled without waiting. The log comes first. A client that
//! does not read may hold the container up for a moment, and no more: then the end of a pipe is cut off, and a terminal
//! misses output and is told so.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, fchmod};
use rustix::io::{Errno, retry_on_intr, write};

use super::failure;
use super::log::Stream;
use super::request::{Answered, Given};
use super::serve::Shim;
use crate::protocol::{self, CUT, Failure, Reply};

/// The most clients of a container at a time.
const MAX_CLIENTS: usize = 64;
/// How long a terminal's client may miss output until it is cut off (design.md section 2).
const OVERFLOW: Duration = Duration::from_secs(30);
/// How long a client may hold the container's output up: a daemon on a busy host is not scheduled at once.
const PATIENCE: Duration = Duration::from_millis(100);
/// What was used up of it comes back with the time that passes, divided by this: no client takes more than a twentieth of
/// a container's time.
const RECOVERY: u32 = 20;

#[derive(Debug)]
struct Client {
    stream: Stream,
    pipe: OwnedFd,
    /// What did not fit of what was passed last, and since when.
    late: Vec<u8>,
    since: Instant,
    /// What is left of its patience, as of `since`.
    patience: Duration,
    /// Bytes that a terminal's client has missed and not been told of.
    missed: u64,
}

/// What a client can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// All that comes.
    Open,
    /// Nothing now; soon.
    Late,
    /// Nothing any more.
    Cut,
}

/// See the module's header.
#[derive(Debug, Default)]
pub struct Clients {
    all: Vec<Client>,
    terminal: bool,
}

impl Clients {
    /// Of a terminal: what is missed is missed on a screen.
    pub fn of_terminal() -> Self {
        Self { all: Vec::new(), terminal: true }
    }

    /// One more, from now on. Those that have gone make room.
    pub fn add(&mut self, stream: Stream, pipe: OwnedFd) -> std::io::Result<()> {
        self.all.retain(|client| !is_gone(&client.pipe));
        if self.all.len() >= MAX_CLIENTS {
            return Err(Errno::USERS.into());
        }
        // The writing end is ours alone.
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let (late, since) = (Vec::new(), Instant::now());
        self.all.push(Client { stream, pipe, late, since, patience: PATIENCE, missed: 0 });
        Ok(())
    }

    /// Passes bytes to those who read this stream.
    pub fn pass(&mut self, stream: Stream, bytes: &[u8]) {
        if !self.all.is_empty() {
            let now = Instant::now();
            self.all.retain_mut(|client| client.stream != stream || client.pass(bytes, now));
        }
    }

    /// Nothing may be passed on this stream yet: somebody is late, and has patience left.
    pub fn hold(&mut self, stream: Stream) -> bool {
        if self.all.is_empty() {
            return false;
        }
        let (now, terminal, mut held) = (Instant::now(), self.terminal, false);
        self.all.retain_mut(|client| {
            let room = if client.stream == stream { client.room(now, terminal) } else { Room::Open };
            held |= room == Room::Late;
            room != Room::Cut
        });
        held
    }

    /// Nobody is waited for on this stream any more.
    pub fn give_up(&mut self, stream: Stream) {
        self.all.iter_mut().filter(|client| client.stream == stream).for_each(|client| {
            client.patience = Duration::ZERO;
        });
        self.hold(stream);
    }

    /// A stream has ended.
    pub fn end(&mut self, stream: Stream) {
        self.all.retain_mut(|client| {
            if client.stream == stream && client.missed > 0 && !client.tell_missed() {
                client.cut();
            }
            client.stream != stream
        });
    }
}

impl Client {
    /// False when it is gone. What does not fit is late.
    fn pass(&mut self, bytes: &[u8], now: Instant) -> bool {
        if self.missed > 0 && !self.tell_missed() {
            self.missed += bytes.len() as u64;
            if now.duration_since(self.since) < OVERFLOW {
                return true;
            }
            self.cut();
            return false;
        }
        match self.write(bytes) {
            Ok([]) => true,
            Ok(rest) => {
                self.late = rest.to_vec();
                let rested = now.duration_since(self.since) / RECOVERY;
                self.patience = (self.patience + rested).min(PATIENCE);
                self.since = now;
                true
            }
            Err(_gone) => false,
        }
    }

    /// Tries to get rid of what is late.
    fn room(&mut self, now: Instant, terminal: bool) -> Room {
        if self.late.is_empty() {
            return Room::Open;
        }
        let late = std::mem::take(&mut self.late);
        let waited = now.duration_since(self.since);
        match self.write(&late) {
            Ok([]) => {
                self.patience = self.patience.saturating_sub(waited);
                self.since = now;
                Room::Open
            }
            Ok(rest) if waited < self.patience => {
                self.late = rest.to_vec();
                Room::Late
            }
            Ok(rest) if terminal => {
                self.missed = rest.len() as u64;
                self.since = now;
                Room::Open
            }
            Ok(_) => {
                self.cut();
                Room::Cut
            }
            Err(_gone) => Room::Cut,
        }
    }

    /// Writes what fits; the rest is returned.
    fn write<'a>(&self, mut bytes: &'a [u8]) -> Result<&'a [u8], Errno> {
        while !bytes.is_empty() {
            match retry_on_intr(|| write(&self.pipe, bytes)) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::AGAIN) => break,
                Err(gone) => return Err(gone),
            }
        }
        Ok(bytes)
    }

    /// Says on its screen what it has missed. So few bytes fit whole or not at all (pipe(7)).
    fn tell_missed(&mut self) -> bool {
        let text =
            format!("\r\n[{} bytes of output were left out: this client reads too slowly]\r\n", self.missed);
        let told = write(&self.pipe, text.as_bytes()).is_ok();
        if told {
            self.missed = 0;
            self.since = Instant::now();
            self.patience = Duration::ZERO;
        }
        told
    }

    /// Marks its pipe: what ends is not the stream.
    fn cut(&self) {
        if let Err(error) = fchmod(&self.pipe, Mode::from_raw_mode(CUT)) {
            super::say(&format!("mark of a client that is cut off: {error}"));
        }
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

    /// What a shim does with output: nothing is passed while it is held.
    fn pump(clients: &mut Clients, bytes: &[u8]) {
        while clients.hold(Stream::Stdout) {
            std::thread::sleep(Duration::from_millis(2));
        }
        clients.pass(Stream::Stdout, bytes);
    }

    fn is_cut(pipe: &OwnedFd) -> bool {
        rustix::fs::fstat(pipe).unwrap().st_mode & 0o777 == CUT
    }

    #[test]
    fn who_does_not_read_is_cut_off_and_holds_nobody_up() {
        let mut clients = Clients::default();
        let (reads, pipe) = rustix::pipe::pipe().unwrap();
        clients.add(Stream::Stdout, pipe).unwrap();
        let (stuck, pipe) = rustix::pipe::pipe().unwrap();
        clients.add(Stream::Stdout, pipe).unwrap();
        let mut chunk = vec![0; 64 * 1024];
        let began = Instant::now();
        for _ in 0..20 {
            pump(&mut clients, &chunk.clone());
            let mut got = 0;
            while got < chunk.len() {
                got += rustix::io::read(&reads, &mut chunk).unwrap();
            }
        }
        assert!(began.elapsed() < PATIENCE * 5, "{:?}", began.elapsed());
        assert_eq!(clients.all.len(), 1);
        assert!(is_cut(&stuck) && !is_cut(&reads));
        drop((reads, stuck));
        clients.pass(Stream::Stderr, b"x");
        assert_eq!(clients.all.len(), 1);
        clients.pass(Stream::Stdout, b"x");
        assert!(clients.all.is_empty());
    }

    #[test]
    fn who_reads_late_gets_everything() {
        let mut clients = Clients::default();
        let (reads, pipe) = rustix::pipe::pipe().unwrap();
        clients.add(Stream::Stderr, pipe).unwrap();
        let sent: Vec<u8> = (0..4_u32 << 20).map(|n| n.to_le_bytes()[1]).collect();
        let reader = std::thread::spawn(move || {
            let (mut got, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
            loop {
                match rustix::io::read(&reads, &mut chunk).unwrap() {
                    0 => return (got, is_cut(&reads)),
                    length => got.extend_from_slice(&chunk[..length]),
                }
            }
        });
        for part in sent.chunks(64 * 1024) {
            while clients.hold(Stream::Stderr) {
                std::thread::sleep(Duration::from_millis(1));
            }
            clients.pass(Stream::Stderr, part);
            // Not what is tested: whether this machine is busy.
            clients.all.iter_mut().for_each(|client| client.patience = Duration::from_secs(60));
        }
        while clients.hold(Stream::Stderr) {
            std::thread::sleep(Duration::from_millis(1));
        }
        clients.end(Stream::Stderr);
        let (got, cut) = reader.join().unwrap();
        assert!(got == sent && !cut);
    }

    #[test]
    fn a_terminal_is_told_what_it_missed_and_cut_off_in_the_end() {
        let mut clients = Clients::of_terminal();
        let (reads, pipe) = rustix::pipe::pipe().unwrap();
        clients.add(Stream::Stdout, pipe).unwrap();
        let chunk = vec![b'x'; 64 * 1024];
        for _ in 0..4 {
            pump(&mut clients, &chunk);
        }
        assert_eq!((clients.all.len(), is_cut(&reads)), (1, false));
        let mut screen = vec![0; 128 * 1024];
        assert_eq!(rustix::io::read(&reads, &mut screen).unwrap(), chunk.len());
        pump(&mut clients, b"after");
        let length = rustix::io::read(&reads, &mut screen).unwrap();
        let text = String::from_utf8_lossy(&screen[..length]).into_owned();
        assert!(text.contains(&format!("[{} bytes of output were left out", 3 * chunk.len())), "{text}");
        assert!(text.ends_with("after"), "{text}");
        for _ in 0..4 {
            pump(&mut clients, &chunk);
        }
        clients.all[0].since -= OVERFLOW;
        clients.pass(Stream::Stdout, b"x");
        assert!(clients.all.is_empty() && is_cut(&reads));
    }

    #[test]
    fn those_who_went_make_room() {
        let mut clients = Clients::default();
        for _ in 0..3 * MAX_CLIENTS {
            let (_, pipe) = rustix::pipe::pipe().unwrap();
            clients.add(Stream::Stderr, pipe).unwrap();
        }
        assert!(clients.all.len() <= 1);
        clients.end(Stream::Stderr);
        assert!(clients.all.is_empty());
    }
}
