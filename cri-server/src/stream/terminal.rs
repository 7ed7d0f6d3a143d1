//! A pseudo-terminal for a command: its master stays here, its other end goes to the command.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use hyper::body::Bytes;
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::copy::to_program;
use super::remote_command::{Size, Sizes};
use super::transport::Input;

/// DEVPTS_SUPER_MAGIC (linux/magic.h).
const DEVPTS_MAGIC: u64 = 0x1cd1;

/// A new terminal of the host's: its non-blocking master, and the other end three times over. May wait for a disk.
pub fn open() -> io::Result<(OwnedFd, [OwnedFd; 3])> {
    Terminal::open(None)
}

/// A terminal's master.
#[derive(Debug)]
pub struct Terminal {
    /// Read and written without waiting.
    pub master: AsyncFd<OwnedFd>,
}

impl Terminal {
    /// A new terminal, and the other end three times over. It is one of the devpts that the process `pid` sees, so
    /// that the command finds itself there (ttyname(3)); where there is none, one of the host's. May wait for a disk.
    pub fn open(pid: Option<i32>) -> io::Result<(OwnedFd, [OwnedFd; 3])> {
        let own = pid.and_then(|pid| in_container(pid).ok());
        let master = match own {
            Some(master) => master,
            None => rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?,
        };
        rustix::pty::unlockpt(&master)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        // By descriptor: no path of the container is followed.
        let user = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok((master, [user.try_clone()?, user.try_clone()?, user]))
    }

    /// Takes a non-blocking master.
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        Ok(Self { master: crate::readiness::watch(master)? })
    }

    /// Tells the programs on it that it has another size.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.master, size)?)
    }

    /// Takes each size that a client's terminal takes.
    pub async fn follow(&self, sizes: Option<Sizes>) -> io::Result<()> {
        let Some(mut sizes) = sizes else { return Ok(()) };
        while let Some(size) = sizes.next().await {
            self.resize(size)?;
        }
        Ok(())
    }

    /// Types what a client sends, and at its end what a person would type then.
    pub async fn type_in(&self, keys: &mut Input) -> io::Result<()> {
        to_program(keys, &self.master).await?;
        if let Some(key) = self.end_of_file() {
            let (sender, mut last) = mpsc::channel(1);
            // There is room for one.
            let _ = sender.try_send(Bytes::copy_from_slice(&[key]));
            drop(sender);
            to_program(&mut last, &self.master).await?;
        }
        Ok(())
    }

    /// The key that ends the input; none where the program reads every key itself.
    fn end_of_file(&self) -> Option<u8> {
        let modes = tcgetattr(&self.master).ok()?;
        modes.local_modes.contains(LocalModes::ICANON).then(|| modes.special_codes[SpecialCodeIndex::VEOF])
    }
}

/// Opens a master in the devpts of a container. Its /dev/pts is no volume: that it is a devpts is looked at before
/// anything in it is opened.
fn in_container(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH)?;
    let root = format!("/proc/{}/root", pid.as_raw_nonzero());
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, directory, Mode::empty())?;
    let resolve = rustix::fs::ResolveFlags::IN_ROOT
        | rustix::fs::ResolveFlags::NO_SYMLINKS
        | rustix::fs::ResolveFlags::NO_MAGICLINKS;
    let pts = rustix::fs::openat2(root.as_fd(), "dev/pts", directory, Mode::empty(), resolve)?;
    if !u64::try_from(rustix::fs::fstatfs(&pts)?.f_type).is_ok_and(|kind| kind == DEVPTS_MAGIC) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat(&pts, "ptmx", flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_terminal_has_a_size_and_an_end_of_file() {
        for pid in [None, i32::try_from(std::process::id()).ok(), Some(i32::MAX)] {
            let (master, [user, ..]) = Terminal::open(pid).unwrap();
            let terminal = Terminal::new(master).unwrap();
            terminal.resize(Size { width: 132, height: 50 }).unwrap();
            let size = rustix::termios::tcgetwinsize(&user).unwrap();
            assert_eq!((size.ws_col, size.ws_row), (132, 50));
            assert_eq!(terminal.end_of_file(), Some(4));
            assert!(rustix::termios::isatty(&user));
        }
    }
}
