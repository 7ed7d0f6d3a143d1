//! The user's program: found in the container's PATH, as the container's user, and executed.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::execve;
use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
use rustix::io::Errno;

use super::request::ProcessSpec;
use super::step::At;
use crate::protocol::Failure;

const STEP: &str = "exec";

/// A program that is ready to be executed.
#[derive(Debug)]
pub(super) struct Program {
    name: OsString,
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Finds it. Relative names are looked up from the working directory, so that must be entered before.
    /// `home` is its HOME unless it was given one.
    pub(super) fn find(process: &ProcessSpec, home: &str) -> Result<Self, Failure> {
        let Some(name) = process.args.first() else {
            return Err(not_run(OsStr::new(""), Errno::INVAL, "no command was given"));
        };
        let path = if name.as_bytes().contains(&b'/') {
            match executable(Path::new(name)) {
                Ok(()) => PathBuf::from(name),
                Err(errno) => return Err(not_run(name, errno, &words(name, errno))),
            }
        } else {
            in_path(name, &process.env)
                .ok_or_else(|| not_run(name, Errno::NOENT, "executable file not found in $PATH"))?
        };
        Ok(Self {
            name: name.clone(),
            path: text(path.as_os_str(), "the program's path")?,
            args: process.args.iter().map(|arg| text(arg, "an argument")).collect::<Result<_, _>>()?,
            env: with_home(&process.env, home)
                .iter()
                .map(|entry| text(entry, "an environment entry"))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Becomes it; returns only if that fails.
    pub(super) fn exec(self) -> Result<Infallible, Failure> {
        execve(&self.path, &self.args, &self.env).map_err(|errno| {
            let errno = Errno::from_raw_os_error(errno as i32);
            not_run(&self.name, errno, &words(&self.name, errno))
        })
    }
}

fn text(part: &OsStr, what: &str) -> Result<CString, Failure> {
    CString::new(part.as_bytes()).at(STEP, || format!("pass {what}"))
}

/// In the words that people search the web for.
fn not_run(name: &OsStr, errno: Errno, why: &str) -> Failure {
    Failure {
        step: STEP.to_owned(),
        errno: errno.raw_os_error(),
        detail: format!("exec: {:?}: {why}", name.to_string_lossy()),
    }
}

fn words(name: &OsStr, errno: Errno) -> String {
    match errno {
        Errno::NOENT => format!("stat {}: no such file or directory", name.to_string_lossy()),
        Errno::ACCESS => "permission denied".to_owned(),
        Errno::ISDIR => "is a directory".to_owned(),
        Errno::NOEXEC => "exec format error".to_owned(),
        Errno::TOOBIG => "argument list too long".to_owned(),
        other => std::io::Error::from_raw_os_error(other.raw_os_error()).to_string(),
    }
}

/// The environment with a HOME, which programs expect and images rarely set.
fn with_home(env: &[OsString], home: &str) -> Vec<OsString> {
    let mut all = env.to_vec();
    if !all.iter().any(|entry| entry.as_bytes().starts_with(b"HOME=")) {
        all.push(OsString::from(format!("HOME={home}")));
    }
    all
}

/// The first match in the PATH of `env`; of several PATH entries the last counts, which was asked for last. Empty
/// parts, which mean the working directory to a shell, are skipped.
fn in_path(name: &OsStr, env: &[OsString]) -> Option<PathBuf> {
    let path = env.iter().rev().find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="))?;
    path.split(|byte| *byte == b':')
        .filter(|part| !part.is_empty())
        .map(|part| Path::new(OsStr::from_bytes(part)).join(name))
        .find(|candidate| !name.is_empty() && executable(candidate).is_ok())
}

fn executable(path: &Path) -> Result<(), Errno> {
    let stat = stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn everybody_has_a_home() {
        let env = |entries: &[&str]| entries.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(with_home(&env(&["A=1"]), "/h"), env(&["A=1", "HOME=/h"]));
        assert_eq!(with_home(&env(&["HOME=", "A=1"]), "/h"), env(&["HOME=", "A=1"]));
    }

    #[test]
    fn looks_in_the_path() {
        let temp = tempfile::tempdir().unwrap();
        for (directory, mode) in [("a", 0o644), ("b", 0o755)] {
            std::fs::create_dir(temp.path().join(directory)).unwrap();
            let file = temp.path().join(directory).join("tool");
            std::fs::write(&file, "").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::create_dir(temp.path().join("a/dir")).unwrap();
        let at = |directory: &str| temp.path().join(directory).to_string_lossy().into_owned();
        let env =
            vec![OsString::from("PATH=/nowhere"), OsString::from(format!("PATH=:{}:{}:", at("a"), at("b")))];
        assert_eq!(in_path(OsStr::new("tool"), &env), Some(temp.path().join("b/tool")));
        assert_eq!(in_path(OsStr::new("dir"), &env), None);
        assert_eq!(in_path(OsStr::new(""), &env), None);
        assert_eq!(in_path(OsStr::new("tool"), &[]), None);
        assert_eq!(executable(&temp.path().join("a/dir")), Err(Errno::ISDIR));
        assert_eq!(executable(&temp.path().join("a/tool")), Err(Errno::ACCESS));
    }
}
