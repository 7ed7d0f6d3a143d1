//! A program for the cases of escapes: it runs inside of a container and tries to reach what is outside.
//!
//! `attacker status` · `attacker descriptors` · `attacker swap A B` · `attacker look CANARY` · `attacker overwrite OUT DIRECTORY`. What it reached goes to
//! its output, a line each; every line that begins with `reached` is an escape.
#![forbid(unsafe_code)]

mod look;
mod overwrite;

use std::process::ExitCode;

use rustix::fs::{CWD, RenameFlags, renameat_with};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["status"] => status(),
        ["descriptors"] => descriptors(),
        ["swap", one, other] => swap(one, other),
        ["look", canary] => look::run(canary),
        ["overwrite", out, programs] => overwrite::run(out, programs),
        _ => Err(std::io::Error::other(
            "attacker status | descriptors | swap A B | look CANARY | overwrite OUT DIRECTORY",
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attacker: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Who this process is and what it may do: the lines of proc_pid_status(5) that say so.
fn status() -> std::io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let told =
        ["Uid:", "Gid:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:"];
    for line in status.lines().filter(|line| told.iter().any(|name| line.starts_with(name))) {
        println!("{}", line.replace(['\t', ' '], ""));
    }
    Ok(())
}

/// Swaps two names for ever, each time in one step (renameat2(2), RENAME_EXCHANGE).
fn swap(one: &str, other: &str) -> std::io::Result<()> {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?;
    println!("swapping");
    loop {
        // A name that is missing for a moment is somebody else's doing.
        let _ = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
    }
}

/// The open descriptors of this process and where they lead, but the one that lists them.
fn descriptors() -> std::io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        if !target.ends_with("fd") {
            println!("fd {} {}", entry.file_name().display(), target.display());
        }
    }
    Ok(())
}
