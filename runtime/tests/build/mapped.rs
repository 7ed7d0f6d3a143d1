//! Pods with a user namespace of their own.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use cove_path::Proc;
use cove_runtime::build::request::{ImageVolume, Mount, MountKind};
use cove_runtime::build::userns::{self, UserNamespace};
use cove_runtime::protocol::IdMap;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags, XattrFlags, open, setxattr};
use rustix::process::{Signal, pidfd_send_signal};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use crate::image::{self, Image};
use crate::shim::{Job, Outcome, Running, pod_of, start, wait};
use crate::{Case, HOSTNAME, Host};

pub const ALL: &[Case] = &[
    ("a user namespace: ids, namespaces, mounts", whole),
    ("a user namespace: owners of layers and volumes", owners),
    ("a user namespace: images and volumes of the image", images),
    ("a user namespace: setuid and file capabilities", privileges),
    ("a user namespace: devices", devices),
    ("a user namespace: a pod's PID namespace, exec", shared_pid),
    ("a user namespace: small ones, wrong ones", small_and_wrong),
    ("a user namespace: what it may not", confined),
];

/// Not what others on this machine use.
const IDS: IdMap = IdMap { host: 1_000_000, size: 65_536 };

/// The namespaces that this program is in, which it comes back to.
struct Home(Vec<(OwnedFd, LinkNameSpaceType)>);

impl Home {
    fn now() -> Self {
        let types = [
            ("net", LinkNameSpaceType::Network),
            ("ipc", LinkNameSpaceType::InterProcessCommunication),
            ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
        ];
        let at = |name: &str| {
            open(format!("/proc/self/ns/{name}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        };
        Self(types.into_iter().map(|(name, kind)| (at(name).unwrap(), kind)).collect())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for (fd, kind) in &self.0 {
            move_into_link_name_space(fd.as_fd(), Some(*kind)).unwrap();
        }
    }
}

/// What a shim does for such a pod: namespaces that its user namespace owns, which this program is in until `Home` goes.
fn enter(host: &Host, ids: &IdMap) -> (UserNamespace, Home) {
    let home = Home::now();
    let proc = Proc::open().unwrap();
    let inside = || {
        let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        unshare(flags).unwrap();
        rustix::system::sethostname(HOSTNAME.as_bytes()).unwrap();
        Ok(())
    };
    let look = |pidfd: BorrowedFd<'_>| {
        let types = ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
        move_into_thread_name_spaces(pidfd, types).unwrap();
        Ok(())
    };
    let user = userns::make(host.single, &proc, ids, &[], inside, look).unwrap_or_else(|f| panic!("{f:?}"));
    (user, home)
}

/// A fresh writable layer, as the daemon makes it for such a pod.
fn renew(image: &Image, ids: &IdMap) {
    crate::cases::renew(image);
    chown(image.path("upper"), Some(ids.host), Some(ids.host)).unwrap();
}

fn run(host: &Host, user: &UserNamespace, job: &Job<'_>) -> Outcome {
    start(host, &Job::Mapped(user, job)).map(Running::finish).unwrap_or_else(|failure| panic!("{failure:?}"))
}

fn mapped(destination: &str, source: &Path) -> Mount {
    let mount = image::bind(destination, source);
    match mount.kind {
        MountKind::Bind(bind) => Mount { kind: MountKind::MappedBind(bind), ..mount },
        other => panic!("{other:?}"),
    }
}

/// What is not the host's is the pod's: its layers, another image, and what the image declares as volumes.
fn images(host: &Host, image: &Image) {
    let (user, _home) = enter(host, &IDS);
    renew(image, &IDS);
    let (layers, volumes) = (image.path("layers"), image.path("volumes"));
    for path in ["of-volume/dir", "of-volume/sub/below", "root/data"] {
        fs::create_dir_all(layers.join(path)).unwrap();
    }
    fs::write(layers.join("root/data/file"), "x").unwrap();
    chown(layers.join("root/data/file"), Some(1000), Some(1001)).unwrap();
    for volume in ["0", "1"] {
        fs::create_dir_all(volumes.join(volume)).unwrap();
    }
    let mut spec = image.spec(
        "stat -c '%n %u %g' /i /i/dir /s/below /data /data/file /new; touch /data/x /new/x && stat -c %u /new/x; \
         touch /i/x; true",
    );
    // One directory for all layers, as the daemon has it.
    let base = layers.join("base");
    fs::rename(image.base(), &base).unwrap();
    spec.rootfs.lower = vec![layers.join("root"), base];
    let of = |destination: &str, kind| Mount { noexec: false, ..image::mount(destination, kind) };
    let volume = |sub_path: &str| {
        MountKind::Image(ImageVolume { lower: vec![layers.join("of-volume")], sub_path: sub_path.into() })
    };
    spec.mounts.extend([
        of("/i", volume("")),
        of("/s", volume("sub")),
        of("/data", MountKind::Volume(volumes.join("0"))),
        of("/new", MountKind::Volume(volumes.join("1"))),
    ]);
    let outcome = run(host, &user, &Job::Private(&spec));
    let expected = "/i 0 0\n/i/dir 0 0\n/s/below 0 0\n/data 0 0\n/data/file 1000 1001\n/new 0 0\n0\n\
                    touch: /i/x: Read-only file system\n";
    assert_eq!(outcome.output, expected);
    assert_eq!(fs::metadata(volumes.join("0/file")).unwrap().uid(), IDS.host + 1000);
}

fn whole(host: &Host, image: &Image) {
    let (user, _home) = enter(host, &IDS);
    renew(image, &IDS);
    let spec = image.spec(
        "cat /proc/self/uid_map /proc/self/gid_map; echo $$; id -u; id -G; hostname; cat /proc/self/setgroups; \
         stat -c '%n %u %g' / /bin /etc/passwd /dev /dev/null /dev/pts/ptmx /dev/mqueue /proc/1 /sys/class/net/lo; \
         touch /made /dev/made && stat -c '%u' /made /dev/made; ls /sys/class/net; echo again >/dev/stdout; \
         cat /proc/keys | wc -c; ls -A /sys/firmware | wc -l; touch /sys/x 2>&1; echo 1 2>&1 >/proc/sys/kernel/panic",
    );
    let outcome = run(host, &user, &Job::Private(&spec));
    let map = format!("{:>10} {:>10} {:>10}\n", 0, IDS.host, IDS.size);
    let expected = format!(
        "{map}{map}1\n0\n0\n{HOSTNAME}\nallow\n/ 0 0\n/bin 0 0\n/etc/passwd 0 0\n/dev 0 0\n/dev/null 65534 65534\n\
         /dev/pts/ptmx 0 0\n/dev/mqueue 0 0\n/proc/1 0 0\n/sys/class/net/lo 0 0\n0\n0\nlo\nagain\n0\n0\n"
    );
    assert!(outcome.output.starts_with(&expected), "{}\nnot\n{expected}", outcome.output);
    let rest = &outcome.output[expected.len()..];
    assert_eq!(rest.matches("Read-only file system").count(), 2, "{rest}");
    assert_eq!(fs::metadata(image.path("upper/made")).unwrap().uid(), IDS.host);
}

/// Owners are shown, and nothing that is shared is changed.
fn owners(host: &Host, image: &Image) {
    let (user, _home) = enter(host, &IDS);
    renew(image, &IDS);
    image.put("etc/of-app", "x");
    chown(image.base().join("etc/of-app"), Some(1000), Some(1001)).unwrap();
    image.put("etc/of-nobody-inside", "x");
    chown(image.base().join("etc/of-nobody-inside"), Some(70_000), Some(70_000)).unwrap();
    let volume = image.path("volume");
    fs::write(volume.join("of-app"), "x").unwrap();
    chown(volume.join("of-app"), Some(1000), Some(1000)).unwrap();
    let mut spec = image.spec(
        "stat -c '%n %u %g' /etc/of-app /etc/of-nobody-inside /v/of-app /plain/of-app; echo y >>/etc/passwd; \
         echo z >/v/made; chmod 600 /etc/of-app; echo no 2>&1 >/etc/of-nobody-inside; mkdir -p /a/b; stat -c %u /v/made /a/b",
    );
    spec.mounts.push(mapped("/v", &volume));
    spec.mounts.push(image::bind("/plain", &volume));
    let outcome = run(host, &user, &Job::Private(&spec));
    let expected = "/etc/of-app 1000 1001\n/etc/of-nobody-inside 65534 65534\n/v/of-app 1000 1000\n\
                    /plain/of-app 65534 65534\n";
    assert!(outcome.output.starts_with(expected), "{}", outcome.output);
    assert!(
        outcome.output.contains("of-nobody-inside: ") && outcome.output.ends_with("0\n0\n"),
        "{}",
        outcome.output
    );
    let owner = |path: &Path| {
        let found = fs::metadata(path).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    // The layer is as it was; what was written is in the writable layer, owned by the pod's ids.
    assert_eq!(owner(&image.base().join("etc/of-app")), (1000, 1001, 0o644));
    assert_eq!(owner(&image.path("upper/etc/of-app")), (IDS.host + 1000, IDS.host + 1001, 0o600));
    assert_eq!(owner(&image.path("upper/etc/passwd")).0, IDS.host);
    assert!(!fs::read_to_string(image.base().join("etc/passwd")).unwrap().contains('y'));
    // A volume keeps the ids that the pod wrote, so that another pod with other ids sees them, too.
    assert_eq!(owner(&volume.join("made")).0, 0);
    assert_eq!(owner(&volume.join("of-app")), (1000, 1000, 0o644));
}

/// Version 2 of `struct vfs_cap_data` (linux/capability.h): CAP_NET_RAW, permitted and effective.
fn net_raw() -> Vec<u8> {
    [0x0200_0001_u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn privileges(host: &Host, image: &Image) {
    let (user, _home) = enter(host, &IDS);
    image.put("etc/passwd", "root::0:0::/:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n");
    let with = |name: &str| {
        let at = image.base().join("bin").join(name);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::copy("/bin/busybox", &at).unwrap();
        at
    };
    let suid = with("su");
    fs::set_permissions(&suid, fs::Permissions::from_mode(0o4755)).unwrap();
    setxattr(with("capable/cat"), "security.capability", &net_raw(), XattrFlags::empty()).unwrap();
    let script = "/bin/capable/cat /proc/self/status | grep CapEff; /bin/su root -c 'id -u; grep ^Uid /proc/self/status'";
    for (no_new_privs, expected) in [
        (false, "CapEff:\t0000000000002000\n0\nUid:\t0\t0\t0\t0\n"),
        (true, "CapEff:\t0000000000000000\nsu: must be suid to work properly\n"),
    ] {
        renew(image, &IDS);
        let mut spec = image.spec(&format!("exec 2>&1; {script}"));
        spec.process.user.user = "app".to_owned();
        spec.process.no_new_privs = no_new_privs;
        assert_eq!(run(host, &user, &Job::Private(&spec)).output, expected, "{no_new_privs}");
    }
    // Also after they were copied up, and with the pod's root as the one whose capabilities they are.
    renew(image, &IDS);
    let mut spec =
        image.spec(&format!("exec 2>&1; touch /bin/capable/cat /bin/su; /bin/su app -c {script:?}"));
    spec.process.no_new_privs = false;
    let outcome = run(host, &user, &Job::Private(&spec));
    assert_eq!(outcome.output, "CapEff:\t0000000000002000\n0\nUid:\t0\t0\t0\t0\n");
    let mut value = [0; 64];
    let length =
        rustix::fs::getxattr(image.path("upper/bin/capable/cat"), "security.capability", &mut value[..]);
    // Version 3 ends with the owner of the user namespace for which they count.
    assert_eq!(value[..length.unwrap()].last_chunk::<4>(), Some(&IDS.host.to_le_bytes()));
}

fn devices(host: &Host, image: &Image) {
    let (user, _home) = enter(host, &IDS);
    renew(image, &IDS);
    let mut spec = image.spec(
        "exec 2>&1; echo x >/dev/null && echo written; head -c 3 /dev/zero | wc -c; mknod /dev/x c 1 3; mknod /y c 1 3; \
         cat /dev/sub/secret; ls -l /dev/fd; cat /proc/self/mountinfo | grep ' /dev '",
    );
    let mut secret = image::device("sub/secret", 1, 5);
    secret.mode = 0o600;
    spec.devices.push(secret);
    let out = run(host, &user, &Job::Private(&spec)).output;
    assert!(out.starts_with("written\n"), "{out}");
    assert_eq!(out.matches("Operation not permitted").count(), 2, "{out}");
    // What only the host's root may open is not the pod's.
    assert!(out.contains("/dev/sub/secret': Permission denied"), "{out}");
    assert!(out.contains("/proc/self/fd") && out.contains(" /dev rw,nosuid"), "{out}");
}

fn shared_pid(host: &Host, image: &Image) {
    let (user, _home) = enter(host, &IDS);
    renew(image, &IDS);
    let pod = pod_of(host, true, 1 << 20, Some(&user));
    let mut spec = image.spec(
        "cat /proc/1/comm; stat -c '%u %a' /dev/shm; echo kept >/dev/shm/kept; ls /proc/1/root 2>&1; \
         kill -9 1; echo $?; exec sleep 1000",
    );
    spec.process.capabilities.bounding |= 1 << 19;
    spec.process.capabilities.permitted |= 1 << 19;
    spec.process.capabilities.effective |= 1 << 19;
    spec.mounts.push(image::mount("/dev/shm", MountKind::Shm));
    let first =
        start(host, &Job::Mapped(&user, &Job::Shared(&spec, Some(&pod)))).unwrap_or_else(|f| panic!("{f:?}"));
    assert_eq!(first.line(), "cove-init");
    assert_eq!(first.line(), "0 1777");
    // With SYS_PTRACE in the pod's user namespace nobody looks into the init.
    assert_eq!(first.line(), "ls: /proc/1/root: Permission denied");
    assert_eq!(first.line(), "0");
    let status = fs::read_to_string(format!("/proc/{}/status", pod.pid.as_raw_nonzero())).unwrap();
    let nobody = IDS.host + 65_534;
    assert!(
        status.contains(&format!("Uid:\t{nobody}\t")) && status.contains("CapBnd:\t0000000000000000"),
        "{status}"
    );
    let exec = |script: &str, user_of: &str| {
        let mut spec = image::process(script);
        spec.user.user = user_of.to_owned();
        run(host, &user, &Job::Exec(&spec, &first.pidfd)).output
    };
    let script = "cat /dev/shm/kept; id -u; cat /proc/self/uid_map; echo out >/dev/stdout; readlink /proc/self/ns/user";
    let inside = fs::read_link(format!("/proc/{}/ns/user", first.pid.as_raw_nonzero())).unwrap();
    assert_ne!(inside, fs::read_link("/proc/self/ns/user").unwrap());
    for (who, uid) in [("", 0), ("1000:7", 1000)] {
        let map = format!("{:>10} {:>10} {:>10}", 0, IDS.host, IDS.size);
        assert_eq!(exec(script, who), format!("kept\n{uid}\n{map}\nout\n{}\n", inside.display()), "{who}");
    }
    first.kill();
    // A container of its own PID namespace in the same pod.
    renew(image, &IDS);
    // Counted by the shell itself: of a pipeline not all may be there yet.
    let mut spec = image.spec("echo $$; cat /dev/shm/kept; set -- /proc/[0-9]*; echo $#");
    spec.mounts.push(image::mount("/dev/shm", MountKind::Shm));
    assert_eq!(run(host, &user, &Job::Held(&spec, &pod.holder)).output, "1\nkept\n1\n");
    pidfd_send_signal(pod.init.as_ref().unwrap(), Signal::KILL).unwrap();
    assert_eq!(wait(pod.pid), 137);
    let held = pod_of(host, false, 1 << 20, Some(&user));
    assert!(held.init.is_none());
}

fn small_and_wrong(host: &Host, image: &Image) {
    let proc = Proc::open().unwrap();
    for (base, size) in [(0, 0), (u32::MAX - 1, 2), (u32::MAX, 1)] {
        let ids = IdMap { host: base, size };
        let refused = userns::make(host.single, &proc, &ids, &[], || Ok(()), |_| Ok(())).unwrap_err();
        assert!(refused.step == "userns" && refused.errno == 0, "{refused:?}");
    }
    // What fails inside is told, and nothing of it is left.
    let failing = || Err(cove_runtime::protocol::Failure { step: "x".into(), errno: 5, detail: "y".into() });
    let refused = userns::make(host.single, &proc, &IDS, &[], failing, |_| Ok(())).unwrap_err();
    assert_eq!((refused.step.as_str(), refused.errno), ("x", 5));
    let one = IdMap { host: 1_000_000, size: 1 };
    let (user, _home) = enter(host, &one);
    renew(image, &one);
    let spec = image.spec("id -u; cat /proc/self/uid_map");
    let out = run(host, &user, &Job::Private(&spec)).output;
    assert_eq!(out, format!("0\n{:>10} {:>10} {:>10}\n", 0, one.host, one.size));
    let pod = pod_of(host, true, 0, Some(&user));
    pidfd_send_signal(pod.init.as_ref().unwrap(), Signal::KILL).unwrap();
    wait(pod.pid);
    renew(image, &one);
    let mut spec = image.spec("true");
    spec.process.user.user = "app".to_owned();
    let refused = start(host, &Job::Mapped(&user, &Job::Private(&spec))).map(drop).unwrap_err();
    assert!(refused.step == "user" && refused.detail.contains("1000"), "{refused:?}");
    renew(image, &one);
    let refused =
        start(host, &Job::Mapped(&user, &Job::Shared(&image.spec("true"), None))).map(drop).unwrap_err();
    assert_eq!(refused.step, "userns", "{refused:?}");
    // A file system that cannot be mapped is an error, never a volume with wrong owners.
    renew(image, &one);
    let mut spec = image.spec("true");
    spec.mounts.push(mapped("/v", Path::new("/proc/sys")));
    let refused = start(host, &Job::Mapped(&user, &Job::Private(&spec))).map(drop).unwrap_err();
    assert!(refused.step == "volumes" && refused.detail.contains("map the owners"), "{refused:?}");
    image.check_canary();
}

/// Every right inside is none outside.
fn confined(host: &Host, image: &Image) {
    let (user, _home) = enter(host, &IDS);
    renew(image, &IDS);
    let everything = ((1_u64 << 41) - 1) & !(1 << 24);
    let mut spec = image.spec(
        "exec 2>&1; hostname changed && hostname; mount -t tmpfs x /tmp && echo mounted; cat /v/secret; \
         echo 1 >/proc/sys/kernel/panic; echo x >/proc/sys/vm/drop_caches; mount -t cgroup -o pids x /tmp; \
         mount -t ext4 /dev/vda /tmp",
    );
    let caps = &mut spec.process.capabilities;
    (caps.bounding, caps.effective, caps.permitted) = (everything, everything, everything);
    spec.readonly_paths.clear();
    spec.masked_paths.clear();
    fs::write(image.path("volume/secret"), "of the host's root\n").unwrap();
    fs::set_permissions(image.path("volume/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    spec.mounts.push(image::bind("/v", &image.path("volume")));
    let out = run(host, &user, &Job::Private(&spec)).output;
    assert!(out.starts_with("changed\nmounted\n"), "{out}");
    assert!(!out.contains("of the host's root"), "{out}");
    assert_eq!(out.matches("ermission denied").count() + out.matches("not permitted").count(), 5, "{out}");
    assert_eq!(rustix::system::uname().nodename().to_str(), Ok("changed"), "the pod's own");
}
