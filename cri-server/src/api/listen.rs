//! The CRI's unix sockets. Never visible with other rights than the configured ones: each is made in a private
//! directory, given its owner and mode, and renamed into place. A stale socket is replaced by that rename; the locks
//! on both roots (`Node::open`) make sure that no other daemon of this instance is behind it.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::config::Config;
use crate::error::Error;

/// A socket that is served. Its file goes with it.
#[derive(Debug)]
pub(crate) struct Listening {
    listener: UnixListener,
    file: SocketFile,
}

impl Listening {
    /// What accepts, and what removes the file when it is dropped.
    pub(super) fn split(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// The file of a socket, removed when the daemon ends in order.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A file that stays is replaced by the next daemon.
        let _ = fs::remove_file(&self.0);
    }
}

/// Opens every configured socket.
pub(crate) fn bind(config: &Config) -> Result<Vec<Listening>, Error> {
    let mode = config.socket.bits().expect("checked when the configuration was read");
    config.sockets().map(|path| bind_one(path, mode, config.socket.gid)).collect()
}

fn bind_one(path: &Path, mode: u32, gid: u32) -> Result<Listening, Error> {
    let failed = |doing| move |source: io::Error| Error::system(doing, path.display().to_string(), source);
    let parent = path.parent().unwrap_or(Path::new("/"));
    // 0711: clients need to pass, nobody needs to list.
    fs::DirBuilder::new().recursive(true).mode(0o711).create(parent).map_err(failed("make directory of"))?;
    refuse_shared(parent).map_err(failed("trust the directory of"))?;
    refuse_occupied(path).map_err(failed("take over"))?;

    let private = parent.join(format!(".sock-{}", std::process::id()));
    remove_private(&private).map_err(failed("clear private directory of"))?;
    fs::DirBuilder::new().mode(0o700).create(&private).map_err(failed("make private directory of"))?;
    let made = make(&private.join("s"), path, mode, gid).map_err(failed("listen on"));
    let cleared = remove_private(&private).map_err(failed("clear private directory of"));
    let listening = made?;
    cleared?;
    Ok(listening)
}

fn make(private: &Path, path: &Path, mode: u32, gid: u32) -> io::Result<Listening> {
    let listener = UnixListener::bind(private)?;
    chown(private, Some(0), Some(gid))?;
    fs::set_permissions(private, fs::Permissions::from_mode(mode))?;
    fs::rename(private, path)?;
    Ok(Listening { listener, file: SocketFile(path.to_owned()) })
}

/// Where others can write they can put a socket of theirs in place of ours.
fn refuse_shared(directory: &Path) -> io::Result<()> {
    let found = fs::metadata(directory)?;
    if found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    let reason = "it must belong to the daemon's user, and nobody else may write to it";
    Err(io::Error::new(ErrorKind::PermissionDenied, reason))
}

/// Another kind of file, or a socket behind which someone answers, is not ours to replace.
fn refuse_occupied(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            Err(io::Error::new(ErrorKind::AlreadyExists, "a file that is not a socket is in the way"))
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another program answers on this socket")),
            Err(_) => Ok(()),
        },
    }
}

/// What an earlier daemon of the same pid left.
fn remove_private(private: &Path) -> io::Result<()> {
    match fs::remove_dir_all(private) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &Path) -> Config {
        let text = format!("listen = [\"unix://{}\"]\n[socket]\nmode = \"0600\"\ngid = 7", path.display());
        Config::parse(&text, Path::new("test")).unwrap()
    }

    #[tokio::test]
    async fn has_its_rights_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/cove.sock");
        let listening = bind(&config(&path)).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.mode() & 0o777, found.gid()), (0o600, 7));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
        UnixStream::connect(&path).unwrap();
        drop(listening);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn replaces_a_stale_socket_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cove.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = bind(&config(&path)).unwrap();
        let error = bind(&config(&path)).unwrap_err().to_string();
        assert!(error.contains("another program answers"), "{error}");
        drop(first);
        fs::write(&path, "kept").unwrap();
        let error = bind(&config(&path)).unwrap_err().to_string();
        assert!(error.contains("not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    }

    #[tokio::test]
    async fn a_directory_that_others_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        let path = directory.path().join("cove.sock");
        let error = bind(&config(&path)).unwrap_err().to_string();
        assert!(error.contains("nobody else may write"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
