//! Runs `nft` on a script, which the kernel takes whole or not at all. No shell, no environment.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags};

use super::NetworkError;

/// Where `nft` is looked for, in this order: never in the daemon's own PATH.
const DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/bin"];
/// How long one transaction may take. It takes 5 ms; another tool that holds the kernel's table lock while it loads a
/// large rule set may take seconds.
const DEADLINE: Duration = Duration::from_secs(20);
/// How much of a complaint is kept, in bytes: its first lines name the rule.
const COMPLAINT: u64 = 2048;
/// How much of a table is read, in bytes: ours has 2 KiB, a pod's host port takes some 150, and a host has 65,535 ports.
const ANSWER: u64 = 64 << 20;

/// One transaction.
pub(super) fn run(script: &str) -> Result<(), NetworkError> {
    let Said { status, complaint, .. } = say(&["-f", "-"], script)?;
    if status.success() { Ok(()) } else { Err(refused(status, &complaint)) }
}

/// The table of an instance as text, without elements of its sets; none where there is none.
pub(super) fn list_table(instance: &str) -> Result<Option<String>, NetworkError> {
    list(&["--terse", "list", "table", "inet", instance])
}

/// The same as JSON (libnftables-json(5)), with all elements, and protocols by number.
pub(super) fn table(instance: &str) -> Result<Option<String>, NetworkError> {
    list(&["-j", "-n", "list", "table", "inet", instance])
}

/// Names of the tables of the family inet, whosever they are.
pub(super) fn tables() -> Result<Vec<String>, NetworkError> {
    let listing = list(&["list", "tables", "inet"])?.unwrap_or_default();
    Ok(listing.lines().filter_map(|line| line.strip_prefix("table inet ")).map(str::to_owned).collect())
}

fn list(arguments: &[&str]) -> Result<Option<String>, NetworkError> {
    let Said { status, answer, complaint } = say(arguments, "")?;
    match status.success() {
        true => Ok(Some(answer)),
        // strerror(ENOENT), of the kernel's answer.
        false if complaint.contains("No such file or directory") => Ok(None),
        false => Err(refused(status, &complaint)),
    }
}

fn refused(status: ExitStatus, complaint: &str) -> NetworkError {
    NetworkError::Nft(format!("{status}: {}", complaint.trim()))
}

/// What came of one execution.
struct Said {
    status: ExitStatus,
    answer: String,
    complaint: String,
}

fn say(arguments: &[&str], script: &str) -> Result<Said, NetworkError> {
    let failed = |doing: &str, e: io::Error| NetworkError::Nft(format!("{doing}: {e}"));
    let program = program().ok_or_else(|| {
        NetworkError::Nft(format!("not found in {}; install nftables", DIRECTORIES.join(", ")))
    })?;
    // Files in memory in place of pipes: neither side ever waits for the other to read.
    let mut input = memory(script).map_err(|e| failed("keep the script", e))?;
    input.rewind().map_err(|e| failed("keep the script", e))?;
    let output = || -> io::Result<(File, File)> {
        let file = memory("")?;
        Ok((file.try_clone()?, file))
    };
    let (answers, answer) = output().map_err(|e| failed("keep the answer", e))?;
    let (complaints, complaint) = output().map_err(|e| failed("keep the answer", e))?;
    let mut child = Command::new(&program)
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(answers))
        .stderr(Stdio::from(complaints))
        .spawn()
        .map_err(|e| failed(&program.display().to_string(), e))?;
    let status = wait(&mut child).map_err(|e| failed("wait", e))?;
    let read = |file, most| read(file, most).map_err(|e| failed("read the answer", e));
    Ok(Said { status, answer: read(answer, ANSWER)?, complaint: read(complaint, COMPLAINT)? })
}

fn read(mut file: File, most: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn program() -> Option<PathBuf> {
    DIRECTORIES.iter().map(|directory| Path::new(directory).join("nft")).find(|path| path.is_file())
}

fn memory(content: &str) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("nft", MemfdFlags::CLOEXEC)?);
    file.write_all(content.as_bytes())?;
    Ok(file)
}

/// Waits for the end of the process, which is killed at the deadline.
fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    let ended = rustix::process::pidfd_open(pid, PidfdFlags::empty()).and_then(|pidfd| {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
                tv_nsec: left.subsec_nanos().into(),
            };
            match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                result => return result.map(|ready| ready > 0),
            }
        }
    });
    if !matches!(ended, Ok(true)) {
        child.kill()?;
    }
    // After its end or its kill this does not wait.
    let status = child.wait()?;
    match ended {
        Ok(true) => Ok(status),
        Ok(false) => Err(io::ErrorKind::TimedOut.into()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn tells_what_nft_says() {
        let error = run("add rule inet cove-no-such-table x accept\n").unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
        let error = run("this is no rule\n").unwrap_err().to_string();
        assert!(error.contains("syntax error"), "{error}");
        run("").unwrap();
    }
}
