//! One run of one plugin (spec 1.1.0, section 2): found anew each time, run without a shell, with an environment of its
//! own, its configuration on standard input.

use std::fmt;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::Value;

use crate::attachment::Attachment;
use crate::error::CniError;
use crate::process::{self, Ended, Limit};

/// Where plugins look for the programs that they use (iptables, nft).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of what a plugin said is told, in bytes.
const TOLD: usize = 1024;
/// The largest environment of a process that is looked at, in bytes: that of a plugin has some 500.
const MAX_ENVIRONMENT: u64 = 64 * 1024;

/// What a plugin is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach a pod.
    Add,
    /// Detach it.
    Del,
    /// Look whether it is attached.
    Check,
    /// Say whether it could attach one.
    Status,
    /// Release what belongs to no pod.
    Gc,
    /// Say which versions it speaks.
    Version,
}

impl Verb {
    /// `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The directories of plugins.
#[derive(Debug, Clone)]
pub struct Plugins(Vec<PathBuf>);

impl Plugins {
    /// Looked through in this order, at each run: plugins are installed while nodes run.
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self(directories)
    }

    /// The program of a type.
    ///
    /// # Errors
    /// [`CniError::Missing`].
    pub fn find(&self, kind: &str) -> Result<PathBuf, CniError> {
        let runs = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        };
        let missing = || CniError::Missing { kind: kind.to_owned(), directories: self.text(", ") };
        // Checked where it was read; a second time costs nothing.
        if !crate::conflist::is_name(kind) {
            return Err(missing());
        }
        self.0.iter().map(|directory| directory.join(kind)).find(runs).ok_or_else(missing)
    }

    fn text(&self, between: &str) -> String {
        self.0.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(between)
    }

    /// Runs a plugin; what it wrote to standard output. `netns` is empty where there is none any more.
    pub(crate) fn run(
        &self,
        verb: Verb,
        kind: &str,
        pod: Option<(&Attachment, &str)>,
        config: &Value,
        limit: &Limit,
    ) -> Result<Vec<u8>, CniError> {
        let program = self.find(kind)?;
        let mut command = Command::new(&program);
        command.env_clear().current_dir("/");
        command.env("PATH", PATH).env("CNI_COMMAND", verb.as_str()).env("CNI_PATH", self.text(":"));
        if let Some((attachment, netns)) = pod {
            command
                .env("CNI_CONTAINERID", &attachment.container)
                .env("CNI_NETNS", netns)
                .env("CNI_IFNAME", &attachment.interface)
                .env("CNI_ARGS", attachment.arguments());
        }
        let ended = process::run(&mut command, config.to_string().as_bytes(), limit)
            .map_err(|error| CniError::system("run CNI plugin", program.display().to_string(), error))?;
        let kind = kind.to_owned();
        match ended {
            Ended::Late => Err(CniError::TimedOut { kind, verb, limit: limit.time }),
            Ended::Cancelled => Err(CniError::Cancelled { kind, verb }),
            Ended::Flood(stream, limit) => Err(CniError::Flood { kind, verb, stream, limit }),
            Ended::Itself { status, output, errors } if status.success() => {
                if !errors.is_empty() {
                    tracing::debug!(plugin = kind, %verb, said = said(&errors), "a plugin has something to say");
                }
                Ok(output)
            }
            Ended::Itself { status, output, errors } => {
                Err(match refusal(&output).or_else(|| refusal(&errors)) {
                    Some((code, message)) => CniError::Refused { kind, verb, code, message },
                    None => {
                        let said = said(if errors.is_empty() { &output } else { &errors });
                        CniError::Failed { kind, verb, status, said }
                    }
                })
            }
        }
    }
}

/// The error of spec 1.1.0, section 5, "Error".
fn refusal(output: &[u8]) -> Option<(u64, String)> {
    let value: Value = serde_json::from_slice(output).ok()?;
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").trim().to_owned();
    let (message, details) = (text("msg"), text("details"));
    let code = value.get("code").and_then(Value::as_u64).unwrap_or(0);
    let words = match (message.is_empty(), details.is_empty()) {
        (true, true) => return None,
        (false, true) => message,
        (true, false) => details,
        (false, false) => format!("{message}: {details}"),
    };
    Some((code, said(words.as_bytes())))
}

/// The beginning of what a plugin wrote, as text.
fn said(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(TOLD)]);
    let plain = |letter: char| if letter.is_control() && letter != '\n' { '\u{fffd}' } else { letter };
    text.trim().chars().map(plain).collect()
}

/// Ends what runs for a pod though nobody waits for it: plugins of a daemon that died, and what left its group.
pub(crate) fn end_strays(container: &str) {
    let marks = [format!("CNI_CONTAINERID={container}"), "CNI_COMMAND=".to_owned()];
    let is_stray = |pid: i32| {
        let mut environment = Vec::new();
        let read = fs::File::open(format!("/proc/{pid}/environ"))
            .and_then(|file| file.take(MAX_ENVIRONMENT).read_to_end(&mut environment));
        let has = |mark: &String| {
            environment.split(|byte| *byte == 0).any(|entry| {
                if mark.ends_with('=') {
                    entry.starts_with(mark.as_bytes())
                } else {
                    entry == mark.as_bytes()
                }
            })
        };
        read.is_ok() && marks.iter().all(has)
    };
    let own = rustix::process::getpid().as_raw_pid();
    // A process that is gone, or that one may not look at, is none of ours.
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if pid == own || !is_stray(pid) {
            continue;
        }
        let Some(found) = Pid::from_raw(pid) else { continue };
        let Ok(pidfd) = rustix::process::pidfd_open(found, PidfdFlags::empty()) else { continue };
        // The number may have been given to another between the look and the descriptor.
        if is_stray(pid) {
            tracing::warn!(pid, container, "a CNI plugin that nobody waits for is ended");
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            let _ = rustix::event::poll(
                &mut [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)],
                Some(&rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 }),
            );
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn errors_are_read_from_either_stream_and_never_dirty() {
        assert_eq!(
            refusal(br#"{"code": 7, "msg": "bad", "details": "too small"}"#),
            Some((7, "bad: too small".into()))
        );
        assert_eq!(refusal(br#"{"code": 11, "msg": "later"}"#), Some((11, "later".into())));
        assert_eq!(refusal(br#"{"msg": "a\u001b[31mb"}"#), Some((0, "a\u{fffd}[31mb".into())));
        for none in [&b""[..], b"no", b"{}", b"[]", br#"{"code": 1}"#] {
            assert_eq!(refusal(none), None);
        }
        assert!(said(&vec![b'x'; 1 << 20]).len() <= TOLD);
    }

    #[test]
    fn only_programs_in_the_directories_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let plugins = Plugins::new(vec!["/no/such".into(), directory.path().join("bin")]);
        let file = directory.path().join("bin/a");
        fs::create_dir(directory.path().join("bin")).unwrap();
        fs::write(directory.path().join("outside"), "").unwrap();
        fs::set_permissions(directory.path().join("outside"), fs::Permissions::from_mode(0o755)).unwrap();
        let error = plugins.find("a").unwrap_err().to_string();
        assert!(error.contains("\"a\"") && error.contains("/no/such"), "{error}");
        fs::write(&file, "").unwrap();
        assert!(plugins.find("a").is_err(), "it cannot be run");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(plugins.find("a").unwrap(), file);
        for path in ["../outside", "", ".", "..", "bin/a"] {
            assert!(plugins.find(path).is_err(), "{path}");
        }
    }
}
