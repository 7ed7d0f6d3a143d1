//! Processes of this machine, by what /proc says of them.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::Outcome;

/// With the pid, what tells a process from a later one (proc_pid_stat(5), field 22).
pub fn start_time(pid: i32) -> Outcome<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').ok_or("a stat without a name")?.1;
    Ok(fields.split_ascii_whitespace().nth(19).ok_or("a stat without a start time")?.to_owned())
}

/// It is there and no zombie.
pub fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
}

/// CPU seconds of a process and of its children that ended (proc_pid_stat(5), fields 14 to 17).
pub fn cpu_seconds(pid: u32) -> Outcome<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').ok_or("a stat without a name")?.1;
    let ticks: Result<Vec<f64>, _> =
        fields.split_ascii_whitespace().skip(11).take(4).map(str::parse).collect();
    Ok(ticks?.iter().sum::<f64>() / f64::from(u32::try_from(rustix::param::clock_ticks_per_second())?))
}

/// How many descriptors a process has open.
pub fn descriptors(pid: u32) -> Outcome<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// The shim of a sandbox, by its argument.
pub fn shim(sandbox: &str) -> Outcome<i32> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // A process may end between any two of these looks.
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        if words.next() == Some(b"cove-shim") && words.next() == Some(sandbox.as_bytes()) {
            return Ok(pid);
        }
    }
    Err(format!("sandbox {sandbox} has no shim").into())
}

/// Sends a signal.
pub fn signal(pid: i32, signal: Signal) -> Outcome {
    Ok(kill_process(Pid::from_raw(pid).ok_or("pid 0")?, signal)?)
}

/// The peak of a process's memory from some moment on.
#[derive(Debug)]
pub struct Peak {
    pid: u32,
    before: u64,
}

impl Peak {
    /// Forgets the peak so far (proc(5), `clear_refs`).
    pub fn from_now(pid: u32) -> Outcome<Self> {
        fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        Ok(Self { pid, before: kilobytes(pid, "VmRSS:")? })
    }

    /// By how many KiB the process was larger than at the beginning.
    pub fn grown(&self) -> Outcome<u64> {
        Ok(self.highest()?.saturating_sub(self.before))
    }

    /// The most that it had, in KiB.
    pub fn highest(&self) -> Outcome<u64> {
        kilobytes(self.pid, "VmHWM:")
    }
}

/// A line of proc_pid_status(5).
fn kilobytes(pid: u32, name: &str) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such line of /proc/PID/status")?;
    Ok(line.split_whitespace().next().ok_or("no number")?.parse()?)
}
