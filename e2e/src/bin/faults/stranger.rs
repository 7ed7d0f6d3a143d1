//! Somebody at a shim's socket who is no shim that the daemon knows: as one of another version would be. The shim itself lives
//! on behind it, and is the parent of its containers as before.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use cove_e2e::Outcome;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen,
    recv, send, socket_with,
};

/// How often it looks whether somebody has come, or it is to end.
const INTERVAL: Duration = Duration::from_millis(5);
/// Name of the socket in the directory of its sandbox, and where it is kept meanwhile.
const SOCKET: &str = "shim.sock";
const KEPT: &str = "shim.kept";

/// What is said to a daemon's Hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It does not obey daemons of this version.
    Refuses,
    /// It speaks a version that no daemon knows yet.
    Later,
    /// Bytes that are no message.
    Noise,
    /// Nothing.
    Silent,
    /// It hangs up.
    HangsUp,
}

impl Answer {
    pub const ALL: [Self; 5] = [Self::Refuses, Self::Later, Self::Noise, Self::Silent, Self::HangsUp];

    /// To the request of this number, in the form that every version has kept so far: a reply's tag, the number, its kind.
    fn bytes(self, number: [u8; 4]) -> Option<Vec<u8>> {
        let text =
            |text: &str| [&u32::try_from(text.len()).unwrap_or(0).to_le_bytes(), text.as_bytes()].concat();
        match self {
            Self::Refuses => {
                let failure = [text("hello"), 0_i32.to_le_bytes().to_vec(), text("too old for this shim")];
                Some([&[1], &number[..], &[2], &failure.concat()].concat())
            }
            Self::Later => {
                let hello = [9_u16.to_le_bytes().to_vec(), text("9.0.0"), text("")];
                Some([&[1], &number[..], &[3], &hello.concat()].concat())
            }
            Self::Noise => Some(vec![0xee; 100]),
            Self::Silent | Self::HangsUp => None,
        }
    }
}

/// It, until the value goes: then the shim is there again.
#[derive(Debug)]
pub struct Stranger {
    directory: PathBuf,
    asked: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Outcome>>,
}

impl Stranger {
    /// Takes the place of the shim whose socket is in `directory`.
    pub fn in_place_of(directory: &Path, answer: Answer) -> Outcome<Self> {
        fs::rename(directory.join(SOCKET), directory.join(KEPT))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // By descriptor: the whole path may not fit an address (unix(7)).
        let at = File::open(directory)?;
        bind(&listener, &SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", at.as_raw_fd()))?)?;
        listen(&listener, 4)?;
        let (asked, end) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (asked, end) = (Arc::clone(&asked), Arc::clone(&end));
            move || serve(&listener, answer, &asked, &end)
        });
        Ok(Self { directory: directory.to_owned(), asked, end, thread: Some(thread) })
    }

    /// A daemon has said Hello.
    pub fn was_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Ok(()))) | None => {}
            Some(other) => eprintln!("the stranger in {} ended with {other:?}", self.directory.display()),
        }
        // Gone with its sandbox is fine.
        let _ = fs::rename(self.directory.join(KEPT), self.directory.join(SOCKET));
    }
}

fn serve(listener: &OwnedFd, answer: Answer, asked: &AtomicBool, end: &AtomicBool) -> Outcome {
    let mut connections = Vec::new();
    while !end.load(Ordering::SeqCst) {
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(connection) => {
                let mut hello = [0; 1024];
                let (length, _) = recv(&connection, &mut hello, RecvFlags::empty())?;
                if length < 4 {
                    return Err("a Hello without a number".into());
                }
                asked.store(true, Ordering::SeqCst);
                if let Some(bytes) = answer.bytes([hello[0], hello[1], hello[2], hello[3]]) {
                    send(&connection, &bytes, SendFlags::NOSIGNAL)?;
                }
                if answer != Answer::HangsUp {
                    connections.push(connection);
                }
            }
            Err(rustix::io::Errno::AGAIN) => std::thread::sleep(INTERVAL),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
