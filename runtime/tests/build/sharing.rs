//! PID namespaces of every kind, the holder and the init, and execs into each.

use std::fs;
use std::os::fd::OwnedFd;

use cove_runtime::build::request::{Mount, MountKind, Propagation};
use rustix::process::{Pid, Signal, pidfd_send_signal};

use crate::cases::{MKDIR, Unmount, filter};
use crate::image::{self, Image};
use crate::shim::{Job, Running, pod, start, start_in, start_on, wait};
use crate::{Case, HOSTNAME, Host};

pub const ALL: &[Case] = &[
    ("the init of a pod", init),
    ("a holder without init", holder),
    ("a pod's PID namespace", shared_pid),
    ("the host's PID namespace", host_pid),
    ("another container's PID namespace", beside),
    ("a target that hides its proc", hidden_proc),
    ("exec", exec),
    ("exec on a terminal", terminal),
    ("exec failures", exec_failures),
    ("a filter that hides clone3", hidden_clone3),
    ("propagation", propagation),
    ("the shim's death", death),
    ("the view of cgroups", cgroup_view),
];

fn shm() -> Mount {
    image::mount("/dev/shm", MountKind::Shm)
}

fn status(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap()
}

fn listed(pid: Pid, what: &str) -> Vec<String> {
    let path = format!("/proc/{}/{what}", pid.as_raw_nonzero());
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until `done`, for what another process does on its own.
fn eventually(what: &str, done: impl Fn() -> bool) {
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !done() {
        assert!(std::time::Instant::now() < limit, "{what} did not come about");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn init(host: &Host, _image: &Image) {
    let pod = pod(host, true, 1 << 20);
    eventually("confined", || listed(pod.pid, "fd").is_empty());
    let status = status(pod.pid);
    for expected in [
        "Name:\tcove-init",
        "Uid:\t65534\t65534\t65534\t65534",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.contains(expected), "{expected}: {status}");
    }
    let at = format!("/proc/{}", pod.pid.as_raw_nonzero());
    for place in ["root", "cwd"] {
        assert_eq!(listed(pod.pid, place), ["proc", "shm"]);
        assert!(listed(pod.pid, &format!("{place}/proc")).is_empty(), "the pod's are in the holder");
        assert!(listed(pod.pid, &format!("{place}/shm")).is_empty());
    }
    let table = fs::read_to_string(format!("{at}/mountinfo")).unwrap();
    assert_eq!(table.lines().count(), 1, "{table}");
    assert!(table.contains(" / ro,nosuid,nodev,noexec"), "{table}");
    assert!(fs::write(format!("{at}/root/x"), "").is_err());
    // As a first process it has no ear for this.
    pidfd_send_signal(pod.init.as_ref().unwrap(), Signal::TERM).unwrap();
    pidfd_send_signal(pod.init.as_ref().unwrap(), Signal::HUP).unwrap();
    assert!(fs::exists(&at).unwrap());
    pidfd_send_signal(pod.init.as_ref().unwrap(), Signal::KILL).unwrap();
    assert_eq!(wait(pod.pid), 137);
}

fn holder(host: &Host, image: &Image) {
    let pod = pod(host, false, 1 << 20);
    let mut spec =
        image.spec("stat -f -c '%T %b' /dev/shm; stat -c %a /dev/shm; echo x >/dev/shm/kept; ls /dev/shm");
    spec.mounts.push(shm());
    let private = |spec: &_| {
        // A private PID namespace with the pod's shm.
        start(host, &Job::Held(spec, &pod.holder)).unwrap_or_else(|f| panic!("{f:?}")).finish().output
    };
    assert_eq!(private(&spec), "tmpfs 256\n1777\nkept\n");
    crate::cases::renew(image);
    spec.process.args[2] = "cat /dev/shm/kept; cat /proc/self/mountinfo".into();
    let out = private(&spec);
    assert!(out.starts_with("x\n"), "{out}");
    assert!(out.lines().any(|line| line.contains(" /dev/shm rw,nosuid,nodev,noexec")), "{out}");
}

fn shared_pid(host: &Host, image: &Image) {
    let pod = pod(host, true, 1 << 20);
    let mut spec =
        image.spec("echo $$; cat /proc/1/comm; ls /proc/1/root; sleep 1000 & echo $!; exec sleep 1000");
    spec.mounts.push(shm());
    let first = start(host, &Job::Shared(&spec, Some(&pod))).unwrap_or_else(|f| panic!("{f:?}"));
    let pid: i32 = first.line().parse().unwrap();
    assert!(pid > 1);
    assert_eq!(first.line(), "cove-init");
    // Without SYS_PTRACE nobody looks into the init.
    assert_eq!(first.line(), "ls: /proc/1/root: Permission denied");
    let child = first.line();
    // A second container sees the first, with its own file system, and as its own child the shim's.
    let other = Image::new();
    let spec =
        other.spec(&format!("cat /proc/{pid}/comm; ls /proc/{pid}/fd | wc -l; kill -9 {pid}; echo $?"));
    let out = start(host, &Job::Shared(&spec, Some(&pod))).unwrap_or_else(|f| panic!("{f:?}")).finish();
    assert_eq!(out.output, "sleep\n3\n0\n");
    assert_eq!(wait(first.pid), 137);
    // The orphan is the init's, which reaps it unseen when it ends.
    let orphans = || {
        let at = format!("/proc/{0}/task/{0}/children", pod.pid.as_raw_nonzero());
        fs::read_to_string(at).unwrap().split_whitespace().count()
    };
    assert_eq!(orphans(), 1);
    let third = Image::new();
    let kill = third.spec(&format!("kill -9 {child}"));
    let out = start(host, &Job::Shared(&kill, Some(&pod))).unwrap_or_else(|f| panic!("{f:?}")).finish();
    assert_eq!(out.code, 0, "{out:?}");
    eventually("reaped", || orphans() == 0);
    pidfd_send_signal(pod.init.as_ref().unwrap(), Signal::KILL).unwrap();
    wait(pod.pid);
}

fn host_pid(host: &Host, image: &Image) {
    let me = std::process::id();
    let spec = image.spec(&format!("echo $$; cat /proc/{me}/comm; echo $PPID"));
    let running = start(host, &Job::Shared(&spec, None)).unwrap_or_else(|f| panic!("{f:?}"));
    let pid = running.pid.as_raw_nonzero();
    let out = running.finish().output;
    let comm = fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(out, format!("{pid}\n{comm}{me}\n"));
}

fn beside(host: &Host, image: &Image) {
    let target = start(host, &Job::Private(&image.spec("echo up; exec sleep 1000")))
        .unwrap_or_else(|f| panic!("{f:?}"));
    assert_eq!(target.line(), "up");
    let other = Image::new();
    let script = "cat /proc/1/comm; [ $$ -gt 1 ] && [ -d /proc/$$ ] && echo inside; echo $PPID; \
                  grep -c ' /proc/sys ro' /proc/self/mountinfo; sleep 1000 & echo $!; exec sleep 1000";
    let first =
        start(host, &Job::Beside(&other.spec(script), &target.pidfd)).unwrap_or_else(|f| panic!("{f:?}"));
    // Its parent is the shim, which nobody in there can see.
    for expected in ["sleep", "inside", "0", "1"] {
        assert_eq!(first.line(), expected);
    }
    let child = first.line();
    let ns = |pid: Pid| fs::read_link(format!("/proc/{}/ns/pid", pid.as_raw_nonzero())).unwrap();
    assert_eq!(ns(first.pid), ns(target.pid));
    // Into one that is beside another; and an exec into it.
    let third = Image::new();
    let spec = third.spec(&format!("cat /proc/{child}/comm; ls -d /proc/self/task"));
    let out = start(host, &Job::Beside(&spec, &first.pidfd)).unwrap_or_else(|f| panic!("{f:?}")).finish();
    assert_eq!(out.output, "sleep\n/proc/self/task\n");
    let look = image::process("cat /proc/1/comm");
    let out = start(host, &Job::Exec(&look, &first.pidfd)).unwrap_or_else(|f| panic!("{f:?}")).finish();
    assert_eq!(out.output, "sleep\n");
    // The kernel ends all of a PID namespace with its first process, which waits until they are reaped.
    pidfd_send_signal(&target.pidfd, Signal::KILL).unwrap();
    assert_eq!(wait(first.pid), 137);
    assert_eq!(wait(target.pid), 137);
    crate::cases::renew(&third);
    let failure = start(host, &Job::Beside(&spec, &first.pidfd)).unwrap_err();
    assert!(failure.step == "target" && failure.detail.contains("has ended"), "{failure:?}");
}

/// A proc that is another's, or no proc, is not believed.
fn hidden_proc(host: &Host, image: &Image) {
    for (hide, text) in [
        ("mount -t tmpfs none /proc", "not that of its PID namespace"),
        ("mount -o bind /proc/1/task /proc", "not that of its PID namespace"),
        ("mount -o bind /host /proc", "not that of its PID namespace"),
        (
            "umount -l /proc && busybox rmdir /proc && busybox ln -s /host /proc",
            "not that of its PID namespace",
        ),
        ("umount -l /proc && busybox rmdir /proc", "take /proc"),
    ] {
        crate::cases::renew(image);
        let mut spec = image.spec(&format!("{hide} && echo hidden; exec sleep 1000"));
        spec.mounts.push(image::bind("/host", std::path::Path::new("/proc")));
        // Its own masks would keep it from moving its proc.
        (spec.masked_paths, spec.readonly_paths) = (Vec::new(), Vec::new());
        let admin = 1 << 21; // CAP_SYS_ADMIN
        let sets = &mut spec.process.capabilities;
        (sets.bounding, sets.permitted, sets.effective) =
            (sets.bounding | admin, sets.permitted | admin, sets.effective | admin);
        let target = start(host, &Job::Private(&spec)).unwrap_or_else(|f| panic!("{f:?}"));
        assert_eq!(target.line(), "hidden", "{hide}");
        let other = Image::new();
        let failure = start(host, &Job::Beside(&other.spec("true"), &target.pidfd)).unwrap_err();
        assert!(failure.detail.contains(text), "{hide}: {failure:?}");
        target.kill();
    }
}

/// What an exec sees of where it is.
const LOOK: &str =
    "id -u; id -G; hostname; pwd; ls /proc/self/fd | wc -l; cat /marker; exec cat /proc/self/status";

fn look(host: &Host, target: &OwnedFd) {
    let mut process = image::process(LOOK);
    process.user.user = "app".to_owned();
    process.cwd = "/home/app".into();
    let out = start(host, &Job::Exec(&process, target)).unwrap_or_else(|f| panic!("{f:?}")).finish();
    assert_eq!(out.code, 0, "{out:?}");
    let expected = format!("1000\n50 1001\n{HOSTNAME}\n/home/app\n4\nmarked\n");
    let groups_either_way = expected.replace("50 1001", "1001 50");
    assert!(out.output.starts_with(&expected) || out.output.starts_with(&groups_either_way), "{out:?}");
    for expected in ["CapEff:\t0000000000000000", "CapBnd:\t00000000a80425fb", "NoNewPrivs:\t1"] {
        assert!(out.output.contains(expected), "{out:?}");
    }
}

fn exec(host: &Host, image: &Image) {
    let script = "echo marked >/marker; echo up; exec sleep 1000";
    let up = |running: &Running| assert_eq!(running.line(), "up");
    let private = start(host, &Job::Private(&image.spec(script))).unwrap_or_else(|f| panic!("{f:?}"));
    up(&private);
    look(host, &private.pidfd);
    private.kill();

    let pod = pod(host, true, 0);
    let other = Image::new();
    let shared =
        start(host, &Job::Shared(&other.spec(script), Some(&pod))).unwrap_or_else(|f| panic!("{f:?}"));
    up(&shared);
    look(host, &shared.pidfd);
    shared.kill();
    pidfd_send_signal(pod.init.as_ref().unwrap(), Signal::KILL).unwrap();
    wait(pod.pid);

    let third = Image::new();
    let hosts = start(host, &Job::Shared(&third.spec(script), None)).unwrap_or_else(|f| panic!("{f:?}"));
    up(&hosts);
    look(host, &hosts.pidfd);
    hosts.kill();
}

fn terminal(host: &Host, image: &Image) {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let running = start(host, &Job::Private(&image.spec("echo up; exec sleep 1000"))).unwrap();
    assert_eq!(running.line(), "up");
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let theirs = ioctl_tiocgptpeer(&ours, flags).unwrap();
    let mut process =
        image::process("[ -t 0 ] && [ -t 2 ] && echo mine >/dev/tty; stat -L -c %u /proc/self/fd/1");
    process.user.user = "app".to_owned();
    let exec =
        start_on(host, &Job::Exec(&process, &running.pidfd), &theirs).unwrap_or_else(|f| panic!("{f:?}"));
    drop(theirs);
    assert_eq!(exec.finish().code, 0);
    let mut said = Vec::new();
    let mut chunk = [0; 256];
    // EIO once the last of the other end is closed.
    while let Ok(n @ 1..) = rustix::io::read(&ours, &mut chunk) {
        said.extend_from_slice(&chunk[..n]);
    }
    assert_eq!(String::from_utf8_lossy(&said), "mine\r\n1000\r\n");
    running.kill();
}

fn exec_failures(host: &Host, image: &Image) {
    let spec = image.spec("echo up; exec sleep 1000");
    let running = start(host, &Job::Private(&spec)).unwrap_or_else(|f| panic!("{f:?}"));
    assert_eq!(running.line(), "up");
    let mut table = Vec::new();
    let mut process = image::process("true");
    process.cwd = "/missing".into();
    table.push((process, "cwd", "/missing"));
    let mut process = image::process("true");
    process.user.user = "stranger".to_owned();
    table.push((process, "user", "stranger"));
    let mut process = image::process("");
    process.args = vec!["no-such-program".into()];
    table.push((process, "exec", "executable file not found in $PATH"));
    for (process, step, text) in table {
        let failure = start(host, &Job::Exec(&process, &running.pidfd)).unwrap_err();
        assert!(failure.step == step && failure.detail.contains(text), "{failure:?}");
    }
    pidfd_send_signal(&running.pidfd, Signal::KILL).unwrap();
    eventually("ended", || status(running.pid).contains("State:\tZ"));
    let failure = start(host, &Job::Exec(&image::process("true"), &running.pidfd)).unwrap_err();
    assert_eq!(failure.step, "namespaces", "{failure:?}");
    running.kill();
}

/// Profiles answer ENOSYS to clone3, and without no_new_privs the builder is filtered before it clones.
fn hidden_clone3(host: &Host, image: &Image) {
    let mut spec = image.spec("echo up; exec sleep 1000");
    spec.process.no_new_privs = false;
    spec.process.seccomp = Some(filter(435, 38));
    let running = start(host, &Job::Shared(&spec, None)).unwrap_or_else(|f| panic!("{f:?}"));
    assert_eq!(running.line(), "up");
    let mut process = image::process("mkdir /tmp/x; cat /proc/self/status");
    process.no_new_privs = false;
    process.user.user = "app".to_owned();
    process.seccomp = Some(filter(MKDIR, 95));
    let out = start(host, &Job::Exec(&process, &running.pidfd)).unwrap_or_else(|f| panic!("{f:?}")).finish();
    assert!(out.output.contains("not supported") && out.output.contains("Seccomp:\t2"), "{out:?}");
    running.kill();
}

fn propagation(host: &Host, image: &Image) {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
    let volume = image.path("volume");
    let with = |propagation| {
        let mut bind = image::bind("/vol", &volume);
        if let MountKind::Bind(kind) = &mut bind.kind {
            kind.propagation = propagation;
        }
        let mut spec = image.spec("echo up; while ! ls /vol/late/f 2>/dev/null; do sleep 0.01; done");
        spec.mounts.push(bind);
        spec
    };
    mount_bind(&volume, &volume).unwrap();
    let _undo = Unmount(volume.clone());
    mount_change(&volume, MountPropagationFlags::PRIVATE).unwrap();
    for propagation in [Propagation::HostToContainer, Propagation::Bidirectional] {
        let failure = start(host, &Job::Private(&with(propagation))).unwrap_err();
        assert!(failure.step == "volumes" && failure.detail.contains("not shared"), "{failure:?}");
    }
    mount_change(&volume, MountPropagationFlags::SHARED).unwrap();
    fs::create_dir(volume.join("late")).unwrap();
    for propagation in [Propagation::HostToContainer, Propagation::Bidirectional] {
        crate::cases::renew(image);
        let running = start(host, &Job::Private(&with(propagation))).unwrap_or_else(|f| panic!("{f:?}"));
        assert_eq!(running.line(), "up");
        mount("tmpfs", volume.join("late"), "tmpfs", MountFlags::empty(), None).unwrap();
        let _undo = Unmount(volume.join("late"));
        fs::write(volume.join("late/f"), "").unwrap();
        assert_eq!(running.finish().output, "/vol/late/f\n");
    }
}

/// The program ends with the process that forked its builder.
fn death(host: &Host, image: &Image) {
    let spec = image.spec("sleep 1000");
    let (told, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    match cove_sys::fork(host.single, cove_sys::CloneFlags::none(), None).unwrap() {
        cove_sys::Forked::Child(single) => {
            drop(told);
            let running = start(&Host { single, void: None }, &Job::Shared(&spec, None))
                .unwrap_or_else(|f| panic!("{f:?}"));
            rustix::io::write(&tell, &running.pid.as_raw_nonzero().get().to_ne_bytes()).unwrap();
            cove_sys::exit_now(0)
        }
        cove_sys::Forked::Parent { pid, .. } => {
            drop(tell);
            let mut raw = [0; 4];
            assert_eq!(rustix::io::read(&told, &mut raw).unwrap(), 4);
            wait(Pid::from_raw(pid).unwrap());
            let orphan = i32::from_ne_bytes(raw);
            eventually("killed", || {
                fs::read_to_string(format!("/proc/{orphan}/status")).map_or(true, |s| s.contains("State:\tZ"))
            });
        }
    }
}

/// A cgroup of this test's in one v1 hierarchy; removed when dropped.
struct Group(std::path::PathBuf);

impl Group {
    fn new(hierarchy: &str) -> Self {
        let name = format!("{}{}", image::PREFIX, std::process::id());
        let group = Self(std::path::Path::new("/sys/fs/cgroup").join(hierarchy).join(name));
        fs::create_dir(&group.0).unwrap();
        group
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _removed = fs::remove_dir(&self.0);
    }
}

fn cgroup_view(host: &Host, image: &Image) {
    if !fs::exists("/sys/fs/cgroup/memory").unwrap() {
        println!("        the view of v1 needs cgroup v1: not looked at");
        return;
    }
    let groups = [Group::new("memory"), Group::new("pids")];
    fs::write(groups[0].0.join("memory.limit_in_bytes"), "104857600").unwrap();
    for (readonly, expected) in [(true, "Read-only file system"), (false, "written")] {
        crate::cases::renew(image);
        // Counted by the shell itself: of a pipeline not all may be there yet.
        let mut spec = image.spec(
            "cd /sys/fs/cgroup && echo *; cat memory/memory.limit_in_bytes; \
             echo 99 >pids/pids.max && echo written; mkdir x 2>/dev/null; \
             n=0; while read -r pid; do n=$((n + 1)); done <pids/cgroup.procs; echo $n",
        );
        spec.mounts.push(Mount { readonly, ..image::mount("/sys/fs/cgroup", MountKind::Cgroup) });
        let placed = groups.each_ref().map(|group| group.0.clone());
        let running = start_in(host, &Job::Private(&spec), &placed).unwrap_or_else(|f| panic!("{f:?}"));
        let out = running.finish().output;
        let shown: Vec<_> = out.lines().next().unwrap().split(' ').collect();
        assert!(shown.contains(&"memory") && shown.contains(&"pids") && !shown.contains(&"freezer"), "{out}");
        assert!(out.contains("\n104857600\n") && out.contains(expected) && out.ends_with("\n1\n"), "{out}");
    }
}
