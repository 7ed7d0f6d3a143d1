//! Opens a container's log: a path of the kubelet's below its pod's log directory, in which a container could have
//! put a symlink by way of a volume.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use cove_path::Root;
use rustix::fs::{Mode, OFlags, fstat, openat};

use crate::error::Error;

/// Permissions of a log directory that we have to make, as kubelets make it.
const DIRECTORY_MODE: u32 = 0o755;
/// Permissions of a log.
const LOG_MODE: u32 = 0o640;

/// Opens `relative` below `directory` for appending; what is missing is made. Anything but a regular file is refused.
/// Blocking.
pub fn open(directory: &Path, relative: &Path) -> Result<OwnedFd, Error> {
    let name = directory.join(relative).display().to_string();
    let system = |doing| {
        let name = name.clone();
        move |source: io::Error| Error::System { doing, object: name, source }
    };
    check(relative)?;
    std::fs::create_dir_all(directory).map_err(system("create the directory of log"))?;
    let root =
        Root::open(directory).map_err(io::Error::other).map_err(system("open the directory of log"))?;
    if let Some(parent) = relative.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        root.make_dirs(parent, Mode::from_raw_mode(DIRECTORY_MODE))
            .map_err(io::Error::other)
            .map_err(system("create the directory of log"))?;
    }
    let (parent, leaf) =
        root.resolve_parent(relative).map_err(io::Error::other).map_err(system("open log"))?;
    // NONBLOCK and NOCTTY: a pipe or a terminal of this name neither hangs us nor becomes ours.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::CLOEXEC
        | OFlags::NOCTTY
        | OFlags::NONBLOCK;
    let log = openat(&parent, leaf, flags, Mode::from_raw_mode(LOG_MODE))
        .map_err(io::Error::from)
        .map_err(system("open log"))?;
    let stat = fstat(&log).map_err(io::Error::from).map_err(system("open log"))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(system("open log")(io::Error::other("it is not a regular file")));
    }
    // Whoever may link files into this directory must not choose what we append to.
    if stat.st_nlink > 1 {
        return Err(system("open log")(io::Error::other("the file has another name elsewhere")));
    }
    Ok(log)
}

/// A log path stays below its directory by its very text.
pub fn check(relative: &Path) -> Result<(), Error> {
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if plain && relative.file_name().is_some() {
        return Ok(());
    }
    let reason =
        format!("{:?} is not a relative path below the pod's log directory", relative.display().to_string());
    Err(Error::invalid("config.log_path", reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn makes_what_is_missing_and_appends() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("pods/p");
        for text in ["a", "b"] {
            let mut log = fs::File::from(open(&directory, Path::new("c/0.log")).unwrap());
            log.write_all(text.as_bytes()).unwrap();
        }
        let path = directory.join("c/0.log");
        assert_eq!(fs::read_to_string(&path).unwrap(), "ab");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn refuses_what_is_not_a_log_of_this_pod() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("target");
        fs::write(&target, "kept").unwrap();
        let logs = root.path().join("logs");
        fs::create_dir(&logs).unwrap();
        symlink(&target, logs.join("link.log")).unwrap();
        fs::create_dir(logs.join("dir.log")).unwrap();
        fs::hard_link(&target, logs.join("hard.log")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, logs.join("pipe.log"), Mode::RUSR).unwrap();
        for bad in
            ["link.log", "dir.log", "hard.log", "pipe.log", "../target", "/etc/passwd", "", "a/..", ".."]
        {
            assert!(open(&logs, Path::new(bad)).is_err(), "{bad}");
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
    }
}
