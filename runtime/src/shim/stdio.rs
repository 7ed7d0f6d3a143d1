//! The output of one container: the read ends of its pipes, drained into its log without ever waiting for the
//! container.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::{Errno, read, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};

use super::attach::Clients;
use super::clock;
use super::log::{Log, Splitter, Stream};
use super::watch::Watched;

/// The size of a pipe (pipe(7)): one read empties it.
const READ: usize = 64 * 1024;

/// Until output that is held for a client is looked at again.
pub const HELD: Duration = Duration::from_millis(2);

/// What pumping came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pumped {
    /// The budget is used up, and there is more.
    More,
    /// Nothing more for now.
    Dry,
    /// A client of the stream is late: to be looked at again in [`HELD`].
    Held,
    /// The stream has ended.
    End,
}

#[derive(Debug)]
struct Pipe {
    fd: Watched,
    splitter: Splitter,
}

/// See the module's header.
#[derive(Debug)]
pub struct Output {
    pipes: [Option<Pipe>; 2],
    log: Log,
    clients: Clients,
}

impl Output {
    /// Makes the pipes. Also returned: the ends for the container's stdout and stderr.
    pub fn new(log: OwnedFd) -> std::io::Result<(Self, [OwnedFd; 2])> {
        let log = Log::new(log)?;
        let (out, out_writer) = pipe()?;
        let (err, err_writer) = pipe()?;
        let clients = Clients::default();
        Ok((Self { pipes: [Some(out), Some(err)], log, clients }, [out_writer, err_writer]))
    }

    /// Of a terminal, whose non-blocking master this is: one stream, which is its stdout.
    pub fn terminal(log: OwnedFd, master: OwnedFd) -> std::io::Result<Self> {
        let pipe = Pipe { fd: master.into(), splitter: Splitter::default() };
        Ok(Self { pipes: [Some(pipe), None], log: Log::new(log)?, clients: Clients::of_terminal() })
    }

    /// Passes one stream on from now on, to a pipe. What has ended already ends there, too.
    pub fn attach(&mut self, stream: Stream, pipe: OwnedFd) -> std::io::Result<()> {
        if self.pipes[index(stream)].is_some() { self.clients.add(stream, pipe) } else { Ok(()) }
    }

    /// What to watch for one stream.
    pub fn fd(&mut self, stream: Stream) -> Option<&mut Watched> {
        self.pipes[index(stream)].as_mut().map(|pipe| &mut pipe.fd)
    }

    /// Both streams have ended.
    pub fn ended(&self) -> bool {
        self.pipes.iter().all(Option::is_none)
    }

    /// Moves at most about `budget` bytes of one stream into the log.
    pub fn pump(&mut self, stream: Stream, mut budget: usize, input: &mut Vec<u8>) -> Pumped {
        let slot = &mut self.pipes[index(stream)];
        let Some(pipe) = slot else {
            return Pumped::End;
        };
        let log = &mut self.log;
        let result = loop {
            if self.clients.hold(stream) {
                break Pumped::Held;
            }
            input.clear();
            input.reserve(READ);
            match retry_on_intr(|| read(&pipe.fd, spare_capacity(input))) {
                Err(Errno::AGAIN) => break Pumped::Dry,
                // A pipe has no other error; whatever it is, nothing more can come.
                Ok(0) | Err(_) => break Pumped::End,
                Ok(n) => {
                    let at = clock::now();
                    pipe.splitter.feed(input, &mut |tag, text| log.line(at, stream, tag, text));
                    self.clients.pass(stream, input);
                    match budget.checked_sub(n) {
                        Some(rest) if rest > 0 => budget = rest,
                        _ => break Pumped::More,
                    }
                }
            }
        };
        if result == Pumped::End {
            let at = clock::now();
            pipe.splitter.finish(&mut |tag, text| log.line(at, stream, tag, text));
            *slot = None;
            self.clients.end(stream);
        }
        self.log.flush();
        result
    }

    /// It holds the memory of a burst.
    pub fn is_large(&self) -> bool {
        self.log.is_large()
    }

    /// Frees that memory.
    pub fn rest(&mut self) {
        self.log.rest();
    }

    /// Takes what is there now and ends both streams, whoever holds their other ends.
    pub fn close(&mut self, input: &mut Vec<u8>) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.clients.give_up(stream);
            self.pump(stream, READ, input);
            self.clients.give_up(stream);
            if let Some(mut pipe) = self.pipes[index(stream)].take() {
                let (at, log) = (clock::now(), &mut self.log);
                pipe.splitter.finish(&mut |tag, text| log.line(at, stream, tag, text));
            }
            self.clients.end(stream);
        }
        self.log.flush();
    }

    /// Goes on in another file.
    pub fn reopen(&mut self, log: OwnedFd) -> std::io::Result<()> {
        self.log.reopen(log)
    }
}

const fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

/// Only our end is non-blocking: O_NONBLOCK belongs to the open file, and programs expect a stdout that waits.
fn pipe() -> std::io::Result<(Pipe, OwnedFd)> {
    let (fd, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok((Pipe { fd: fd.into(), splitter: Splitter::default() }, writer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    #[test]
    fn drains_within_its_budget_and_ends() {
        let mut file = tempfile::tempfile().unwrap();
        let (mut output, [out, err]) = Output::new(file.try_clone().unwrap().into()).unwrap();
        let mut input = Vec::new();
        assert_eq!(output.pump(Stream::Stdout, READ, &mut input), Pumped::Dry);

        let mut out = std::fs::File::from(out);
        out.write_all(&b"0123456\n".repeat(4096)).unwrap();
        assert_eq!(output.pump(Stream::Stdout, 1, &mut input), Pumped::More);
        assert_eq!(output.pump(Stream::Stdout, READ, &mut input), Pumped::Dry);
        out.write_all(b"tail").unwrap();
        drop(out);
        assert_eq!(output.pump(Stream::Stdout, READ, &mut input), Pumped::End);
        assert!(!output.ended() && output.fd(Stream::Stdout).is_none());

        std::fs::File::from(err.try_clone().unwrap()).write_all(b"held").unwrap();
        output.close(&mut input);
        assert!(output.ended());
        drop(err);

        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text.matches(" stdout F 0123456\n").count(), 4096);
        assert!(text.contains(" stdout P tail\n") && text.ends_with(" stderr P held\n"));
    }
}
