//! Builders on a real kernel, as root: this program plays the shim's part on a small rootfs made of busybox.
//!
//! Not under libtest, whose threads a process that forks and goes on must not have. An argument selects the cases
//! whose name contains it.

#![expect(clippy::unwrap_used, reason = "a test program: a panic is how a case fails")]

mod cases;
mod filters;
mod hostile;
mod image;
mod images;
mod mapped;
mod races;
mod sharing;
mod shim;

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cove_runtime::build::void;
use cove_sys::SingleThreaded;
use image::Image;
use nix::sched::{CloneFlags, unshare};

/// A case: its name and what it does with a fresh image.
type Case = (&'static str, fn(&Host, &Image));

/// What every case needs.
#[derive(Debug, Clone, Copy)]
pub struct Host {
    /// This program may fork.
    pub single: SingleThreaded,
    /// What mount namespaces are copies of, if not of the host's.
    pub void: Option<&'static OwnedFd>,
}

/// What a pod's shim is in; its name is what the containers must see.
pub const HOSTNAME: &str = "cove-test";

fn main() {
    let filter = std::env::args().nth(1).filter(|arg| !arg.starts_with('-'));
    if !rustix::process::geteuid().is_root() {
        eprintln!("builders are tested as root, as they run");
        std::process::exit(1);
    }
    let void: &OwnedFd = Box::leak(Box::new(void::make().expect("the void")));
    let host = Host { void: Some(void), single: SingleThreaded::check().expect("no thread was started") };
    // As the shim: net, ipc and uts of a pod, everything else the host's.
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS).expect("unshare");
    rustix::system::sethostname(HOSTNAME.as_bytes()).expect("sethostname");
    let before = mounts();
    let mut failed = Vec::new();
    let mut count = 0;
    // As on an old kernel, which has no mounts that are attached nowhere, and where there is no void for any other reason.
    let old = Host { void: None, ..host };
    let over_void =
        [cases::ALL, images::ALL, hostile::ALL, sharing::ALL, races::ALL, filters::ALL, mapped::ALL];
    let over_host = [cases::ALL, images::ALL, hostile::ALL, sharing::ALL];
    let all = over_void.iter().copied().flatten().map(|case| (host, case));
    for (host, (name, case)) in all.chain(over_host.iter().copied().flatten().map(|case| (old, case))) {
        let over = if host.void.is_some() { "the void" } else { "the host" };
        if filter.as_ref().is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        count += 1;
        let image = Image::new();
        let started = std::time::Instant::now();
        match catch_unwind(AssertUnwindSafe(|| case(&host, &image))) {
            Ok(()) => println!("ok      {name} over {over} ({} ms)", started.elapsed().as_millis()),
            Err(_) => {
                println!("FAILED  {name} over {over}");
                failed.push(*name);
            }
        }
        shim::end_children();
    }
    assert_eq!(mounts(), before, "the host's mount table is as it was");
    println!("{count} cases, {} failed {failed:?}", failed.len());
    std::process::exit(i32::from(!failed.is_empty()));
}

fn mounts() -> String {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    // Others on this machine mount things too.
    table.lines().filter(|line| line.contains(image::PREFIX)).collect()
}
