//! Attackers inside a pod, at work while containers are made and entered.

use std::fs;

use cove_sys::{CloneFlags, Forked};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::{Pid, Signal, pidfd_send_signal};

use crate::cases::renew;
use crate::image::{self, DEFAULT_CAPABILITIES, Image};
use crate::shim::{Job, Running, pod, run, start, wait};
use crate::{Case, Host};

pub const ALL: &[Case] = &[
    ("a sibling with SYS_PTRACE", sibling),
    ("a sibling that swaps destinations", swapper),
    ("a sibling that swaps a read-only path", readonly_swapper),
    ("a sibling that swaps the null device", null_swapper),
    ("a sibling that swaps the working directory", cwd_swapper),
];

/// CAP_SYS_PTRACE.
const PTRACE: u64 = 1 << 19;

/// Looks through every process that it sees for the way to the canary.
fn looker(image: &Image) -> cove_runtime::build::request::ContainerSpec {
    let canary = image.path("canary/file");
    let canary = canary.display();
    let mut spec = image.spec(&format!(
        "echo up; while :; do for p in /proc/[0-9]*; do \
         [ -e $p/root{canary} ] && echo \"$p/root leads out\"; [ -e $p/cwd{canary} ] && echo \"$p/cwd leads out\"; \
         for f in $p/fd/*; do [ -e $f{canary} ] && echo \"$f leads out\"; done; done; done"
    ));
    let capabilities = &mut spec.process.capabilities;
    for set in [&mut capabilities.bounding, &mut capabilities.effective, &mut capabilities.permitted] {
        *set = DEFAULT_CAPABILITIES | PTRACE;
    }
    spec
}

/// A01 and design.md section 2: nothing with more rights than a container is in a PID namespace with it.
fn sibling(host: &Host, image: &Image) {
    // The attack works where there is something to find: this very program, seen from the host's PID namespace.
    let control = start(host, &Job::Shared(&looker(image), None)).unwrap_or_else(|f| panic!("{f:?}"));
    assert_eq!(control.line(), "up");
    assert!(control.line().ends_with("leads out"));
    control.kill();

    renew(image);
    let pod = pod(host, true, 1 << 20);
    let attacker = start(host, &Job::Shared(&looker(image), Some(&pod))).unwrap_or_else(|f| panic!("{f:?}"));
    assert_eq!(attacker.line(), "up");
    let victim = Image::new();
    for round in 0..60 {
        if round % 3 == 0 {
            renew(&victim);
            let spec = victim.spec("true");
            let running = start(host, &Job::Shared(&spec, Some(&pod))).unwrap_or_else(|f| panic!("{f:?}"));
            assert_eq!(running.finish().code, 0);
        } else {
            let process = image::process("true");
            let running =
                start(host, &Job::Exec(&process, &attacker.pidfd)).unwrap_or_else(|f| panic!("{f:?}"));
            assert_eq!(running.finish().code, 0);
        }
    }
    pidfd_send_signal(&attacker.pidfd, Signal::KILL).unwrap();
    assert_eq!(attacker.finish().output, "");
    pidfd_send_signal(pod.init.as_ref().unwrap(), Signal::KILL).unwrap();
    wait(pod.pid);
}

/// A process of its own that swaps two names for ever; killed when dropped.
struct Swapping(Pid, std::os::fd::OwnedFd);

impl Swapping {
    fn new(host: &Host, one: std::path::PathBuf, other: std::path::PathBuf) -> Self {
        match cove_sys::fork(host.single, CloneFlags::none(), None).unwrap() {
            Forked::Child(_) => loop {
                if renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).is_err() {
                    cove_sys::exit_now(1);
                }
            },
            Forked::Parent { pid, pidfd } => Self(Pid::from_raw(pid).unwrap(), pidfd),
        }
    }
}

impl Drop for Swapping {
    fn drop(&mut self) {
        let _ended = pidfd_send_signal(&self.1, Signal::KILL);
        wait(self.0);
    }
}

/// A04, A09, A16: the destination of a mount, made and missing, and a read-only path, are swapped for symlinks.
fn swapper(host: &Host, image: &Image) {
    let volume = image.path("volume");
    fs::create_dir_all(volume.join("a/b")).unwrap();
    std::os::unix::fs::symlink("../../../../../../../../..", volume.join("link")).unwrap();
    let _swapping = Swapping::new(host, volume.join("a"), volume.join("link"));
    let mut started = 0;
    for _ in 0..40 {
        renew(image);
        let mut spec = image.spec("touch /vol/a/b/written 2>/dev/null; cat /proc/self/mountinfo");
        spec.mounts.push(image::bind("/vol", &volume));
        spec.mounts.push(image::bind("/vol/a/b", &image.path("canary")));
        spec.mounts.last_mut().unwrap().readonly = true;
        spec.mounts.push(image::bind("/vol/a/new/file", &image.path("canary/file")));
        spec.readonly_paths.push("/vol/a".into());
        match run(host, &spec) {
            Ok(outcome) => {
                started += 1;
                assert!(outcome.output.contains(" / / "), "{outcome:?}");
            }
            Err(failure) => assert!(["mounts", "masks"].contains(&failure.step.as_str()), "{failure:?}"),
        }
    }
    assert!(started > 0, "a race that is always lost shows nothing");
    image.check_canary();
    assert!(!image.path("new").exists() && !std::path::Path::new("/new").exists());
}

/// A16: a read-only path below a volume changes what it leads to. What was covered is read-only, or nothing starts.
fn readonly_swapper(host: &Host, image: &Image) {
    let volume = image.path("volume");
    for name in ["a", "other"] {
        fs::create_dir_all(volume.join(name).join("b")).unwrap();
    }
    let _swapping = Swapping::new(host, volume.join("a"), volume.join("other"));
    let mut started = 0;
    for _ in 0..100 {
        renew(image);
        let mut spec = image.spec("grep -e ' /vol/[a-z]*/b ' /proc/self/mountinfo");
        spec.mounts.push(image::bind("/vol", &volume));
        spec.readonly_paths = vec!["/vol/a/b".into()];
        match run(host, &spec) {
            Ok(outcome) => {
                started += 1;
                let fields: Vec<_> = outcome.output.split(' ').collect();
                assert_eq!(outcome.output.lines().count(), 1, "{outcome:?}");
                assert!(fields[5].starts_with("ro,"), "{outcome:?}");
            }
            Err(failure) => assert_eq!(failure.step, "masks", "{failure:?}"),
        }
    }
    assert!(started > 0, "a race that is always lost shows nothing");
}

/// A10: on a /dev that is a volume the null device is swapped for a symlink to a file of procfs while masks are made
/// of it.
fn null_swapper(host: &Host, image: &Image) {
    let pattern = fs::read("/proc/sys/kernel/core_pattern").unwrap();
    let volume = image.path("volume");
    let null = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(CWD, volume.join("null"), null, 0o666.into(), rustix::fs::makedev(1, 3)).unwrap();
    std::os::unix::fs::symlink("/proc/sys/kernel/core_pattern", volume.join("link")).unwrap();
    let _swapping = Swapping::new(host, volume.join("null"), volume.join("link"));
    let mut started = 0;
    for _ in 0..100 {
        renew(image);
        let mut spec =
            image.spec("stat -c '%t:%T' /proc/keys /proc/timer_list; cat /proc/keys; echo x >/proc/keys");
        spec.mounts.retain(|mount| !mount.destination.starts_with("/dev"));
        spec.mounts.push(image::bind("/dev", &volume));
        spec.devices.clear();
        match run(host, &spec) {
            Ok(outcome) => {
                started += 1;
                assert!(outcome.output.starts_with("1:3\n1:3\n"), "{outcome:?}");
            }
            Err(failure) => assert_eq!(failure.step, "devices", "{failure:?}"),
        }
        assert_eq!(fs::read("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    }
    assert!(started > 0, "a race that is always lost shows nothing");
}

/// A08: the working directory of an exec is swapped for a magic link.
fn cwd_swapper(host: &Host, image: &Image) {
    let running: Running = start(host, &Job::Private(&image.spec("mkdir /here; echo up; exec sleep 1000")))
        .unwrap_or_else(|f| panic!("{f:?}"));
    assert_eq!(running.line(), "up");
    let upper = image.path("upper");
    let inside = std::path::PathBuf::from(format!("/proc/{}/root", running.pid.as_raw_nonzero()));
    assert!(upper.join("here").exists());
    std::os::unix::fs::symlink("/proc/self/fd/4", inside.join("link")).unwrap();
    let swapping = Swapping::new(host, inside.join("here"), inside.join("link"));
    let canary = image.path("canary/file");
    for _ in 0..100 {
        let mut process =
            image::process(&format!("pwd; ls .{0} ../../../..{0} 2>/dev/null; true", canary.display()));
        process.cwd = "/here".into();
        match start(host, &Job::Exec(&process, &running.pidfd)) {
            // Whatever the directory is called by now, it is inside, and the canary is not above it.
            Ok(exec) => assert!(["/here\n", "/link\n"].contains(&exec.finish().output.as_str())),
            Err(failure) => assert_eq!(failure.step, "cwd", "{failure:?}"),
        }
    }
    drop(swapping);
    running.kill();
}
