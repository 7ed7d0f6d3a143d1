//! Where an archive goes: to standard output, or to a file that has its name once it is whole, and leaves nothing before.

use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use rustix::io::Errno;

/// See the module's header.
#[derive(Debug)]
pub(super) enum Output {
    /// Standard output.
    Standard,
    /// A device or a pipe: nothing of its kind is replaced.
    Special(File, PathBuf),
    /// A file.
    File(Beside),
}

/// A file that is being written beside the one that it becomes.
#[derive(Debug)]
pub(super) struct Beside {
    file: File,
    target: PathBuf,
    /// Its own name for now.
    temporary: PathBuf,
    /// It has that name.
    is_named: bool,
}

/// Why it could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {doing}: {source}", path.display())]
pub(super) struct Unwritten {
    path: PathBuf,
    doing: &'static str,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(path: &Path, doing: &'static str) -> impl FnOnce(E) -> Unwritten {
    let path = path.to_owned();
    move |source| Unwritten { path, doing, source: source.into() }
}

impl Output {
    /// Opens what `path` names, or standard output.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, Unwritten> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            if io::stdout().is_terminal() {
                let error = io::Error::other("is a terminal: name a file with -o, or send it on");
                return Err(failed(Path::new("standard output"), "write the archive")(error));
            }
            return Ok(Self::Standard);
        };
        match fs::canonicalize(path) {
            Ok(path) if path.is_file() => Beside::open(path).map(Self::File),
            Ok(path) => {
                let file = File::options().write(true).open(&path).map_err(failed(&path, "open"))?;
                Ok(Self::Special(file, path))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Beside::open(path.to_owned()).map(Self::File)
            }
            Err(error) => Err(failed(path, "look up")(error)),
        }
    }

    /// Goes on with these bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Unwritten> {
        match self {
            Self::Standard => io::stdout()
                .lock()
                .write_all(bytes)
                .map_err(failed(Path::new("standard output"), "write the archive")),
            Self::Special(file, path) => file.write_all(bytes).map_err(failed(path, "write the archive")),
            Self::File(beside) => {
                beside.file.write_all(bytes).map_err(failed(&beside.target, "write the archive"))
            }
        }
    }

    /// The archive is whole. Whether standard output is free.
    pub(super) fn finish(self) -> Result<bool, Unwritten> {
        match self {
            Self::Standard => {
                io::stdout().flush().map_err(failed(Path::new("standard output"), "write the archive"))?;
                Ok(false)
            }
            Self::Special(..) => Ok(true),
            Self::File(beside) => beside.finish().map(|()| true),
        }
    }
}

impl Beside {
    fn open(target: PathBuf) -> Result<Self, Unwritten> {
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let parent =
            target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = parent.join(format!(".{name}.{}", std::process::id()));
        let (flags, mode) = (OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o666));
        // A file without a name goes with this process, however that ends. Not every file system has such files (open(2)).
        let (fd, is_named) = match openat(CWD, parent, flags | OFlags::TMPFILE, mode) {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let flags = flags | OFlags::CREATE | OFlags::EXCL;
                (openat(CWD, &temporary, flags, mode).map_err(failed(&temporary, "create"))?, true)
            }
            opened => (opened.map_err(failed(&target, "create"))?, false),
        };
        Ok(Self { file: fd.into(), target, temporary, is_named })
    }

    fn finish(mut self) -> Result<(), Unwritten> {
        self.file.sync_all().map_err(failed(&self.target, "sync"))?;
        if !self.is_named {
            let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(CWD, unnamed, CWD, &self.temporary, AtFlags::SYMLINK_FOLLOW)
                .map_err(failed(&self.temporary, "create"))?;
            self.is_named = true;
        }
        fs::rename(&self.temporary, &self.target).map_err(failed(&self.target, "replace"))?;
        self.is_named = false;
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if self.is_named
            && let Err(error) = fs::remove_file(&self.temporary)
        {
            eprintln!("cove: {}: remove what is half written: {error}", self.temporary.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_once_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("image.tar");
        let names = || {
            let entries = fs::read_dir(directory.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        fs::write(&target, "before").unwrap();
        let mut output = Output::open(Some(&target)).unwrap();
        output.write(b"half").unwrap();
        drop(output);
        assert_eq!((fs::read_to_string(&target).unwrap().as_str(), names().len()), ("before", 1));

        let mut output = Output::open(Some(&target)).unwrap();
        output.write(b"who").unwrap();
        output.write(b"le").unwrap();
        assert!(output.finish().unwrap());
        assert_eq!((fs::read_to_string(&target).unwrap().as_str(), names().len()), ("whole", 1));
    }

    #[test]
    fn a_file_system_without_nameless_files_is_left_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let temporary = directory.path().join(".x");
        let beside = |file| Beside {
            file,
            target: directory.path().join("x"),
            temporary: temporary.clone(),
            is_named: true,
        };
        drop(beside(File::create(&temporary).unwrap()));
        assert!(!temporary.exists());
        beside(File::create(&temporary).unwrap()).finish().unwrap();
        assert!(!temporary.exists() && directory.path().join("x").exists());
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let mut output = Output::open(Some(Path::new("/dev/null"))).unwrap();
        output.write(b"gone").unwrap();
        assert!(output.finish().unwrap());
        assert!(!Path::new("/dev/null").is_file());
        let error = Output::open(Some(Path::new("/"))).unwrap_err().to_string();
        assert!(error.contains("open: Is a directory"), "{error}");
        let error = Output::open(Some(Path::new("/nothing/here.tar"))).unwrap_err().to_string();
        assert!(error.contains("/nothing/here.tar: create: No such file"), "{error}");
    }
}
