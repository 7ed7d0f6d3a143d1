//! What a container is given: exactly what was asked for.

use std::fs;

use cove_runtime::build::request::{Capabilities, MountKind, Rlimit, Tmpfs, User};

use crate::image::{self, DEFAULT_CAPABILITIES, Image};
use crate::shim::{output, run};
use crate::{Case, HOSTNAME, Host};

pub const ALL: &[Case] = &[
    ("environment, arguments, layers", environment),
    ("file descriptors", file_descriptors),
    ("users and groups", users),
    ("working directory", working_directory),
    ("capabilities", capabilities),
    ("no_new_privs, seccomp", filters),
    ("signals, limits, umask", small_things),
    ("devices", devices),
    ("masks and read-only paths", masks),
    ("read-only rootfs", readonly_rootfs),
    ("volumes", volumes),
    ("read-only volumes", readonly_volumes),
    ("mount namespace", mount_namespace),
    ("layers with long names", long_names),
    ("failures", failures),
];

fn environment(host: &Host, image: &Image) {
    let mut spec = image.spec("echo $GREETING $0 $1; env; ls -d /from-the-upper-layer; hostname; echo $$");
    spec.process.args.extend(["zero", "one two"].map(Into::into));
    let expected = format!(
        "hello zero one two\nGREETING=hello\nHOME=/\nPATH=/sbin:/bin\nPWD=/\nSHLVL=1\n/from-the-upper-layer\n{HOSTNAME}\n1\n"
    );
    let mut lines: Vec<_> = output(host, &spec).lines().map(str::to_owned).collect();
    let mut expected: Vec<_> = expected.lines().map(str::to_owned).collect();
    lines.sort();
    expected.sort();
    assert_eq!(lines, expected);
}

fn file_descriptors(host: &Host, image: &Image) {
    // The fourth is the directory that ls itself has open.
    let spec = image.spec("ls /proc/self/fd; readlink /proc/self/fd/0; exec ls -l /proc/1/fd");
    let out = output(host, &spec);
    assert!(out.starts_with("0\n1\n2\n3\n/dev/null\n"), "{out}");
    assert_eq!(out.matches("pipe:").count(), 2, "{out}");
}

fn users(host: &Host, image: &Image) {
    let script = "id -u; id -g; id -G; touch /dev/stdout && echo mine >/dev/stdout";
    for (user, expected) in [
        ("", "0\n0\n0\nmine\n"),
        ("app", "1000\n1001\n1001 50\nmine\n"),
        ("1000:7", "1000\n7\n7 50 1001\nmine\n"),
        ("4321", "4321\n0\n0\nmine\n"),
    ] {
        let mut spec = image.spec(script);
        spec.process.user.user = user.to_owned();
        if user == "1000:7" {
            spec.process.user.supplemental = vec![1001];
        }
        assert_eq!(output(host, &spec), expected, "{user}");
        renew(image);
    }
    for (user, named) in
        [("nobody-of-this-name", "no user"), ("app:x", "no group"), ("4294967295", "highest")]
    {
        let mut spec = image.spec(script);
        spec.process.user = User { user: user.to_owned(), ..spec.process.user };
        renew(image);
        let failure = run(host, &spec).unwrap_err();
        assert!(failure.step == "user" && failure.detail.contains(named), "{failure:?}");
    }
}

/// An upper directory is mounted once in its life: this makes new ones.
pub fn renew(image: &Image) {
    for name in ["upper", "work"] {
        fs::remove_dir_all(image.path(name)).unwrap();
        fs::create_dir(image.path(name)).unwrap();
    }
}

fn working_directory(host: &Host, image: &Image) {
    let mut spec = image.spec("pwd; stat -c '%a %u' .");
    spec.process.cwd = "/made/on/the/way".into();
    spec.process.user.user = "app".to_owned();
    spec.rootfs.readonly = true;
    assert_eq!(output(host, &spec), "/made/on/the/way\n755 0\n");
    image.link("out", "../../../../canary");
    image.link("escape", "/proc/self/fd/5");
    for (cwd, expected) in [
        ("/out", Ok("/canary")),
        ("/escape", Err("cwd")),
        ("/proc/1/cwd/../..", Err("cwd")),
        ("/bin/sh", Err("cwd")),
    ] {
        renew(image);
        let mut spec = image.spec("pwd");
        spec.process.cwd = cwd.into();
        match (run(host, &spec), expected) {
            (Ok(outcome), Ok(pwd)) => assert_eq!(outcome.output.trim(), pwd, "{cwd}"),
            (Err(failure), Err(step)) => assert_eq!(failure.step, step, "{cwd}: {failure:?}"),
            // Lexically `/proc`.
            (Ok(outcome), Err(_)) => assert!(outcome.output.trim().starts_with('/'), "{cwd}: {outcome:?}"),
            (got, _) => panic!("{cwd}: {got:?}"),
        }
    }
    image.check_canary();
}

fn capabilities(host: &Host, image: &Image) {
    let net = 1 << 12 | 1 << 13;
    for (user, bounding, ambient, held) in [
        ("0", DEFAULT_CAPABILITIES, 0, DEFAULT_CAPABILITIES),
        ("0", 0, 0, 0),
        ("0", net, 0, net),
        ("1000", DEFAULT_CAPABILITIES, 0, 0),
        ("1000", net, net, net),
    ] {
        for no_new_privs in [true, false] {
            renew(image);
            let mut spec = image.spec("exec cat /proc/self/status");
            spec.process.user.user = user.to_owned();
            spec.process.no_new_privs = no_new_privs;
            spec.process.capabilities =
                Capabilities { bounding, effective: bounding, permitted: bounding, inheritable: 0, ambient };
            let status = output(host, &spec);
            let of = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name)).expect(name);
                u64::from_str_radix(line[name.len()..].trim(), 16).expect("a mask")
            };
            let expected = [ambient, held, held, bounding, ambient, u64::from(no_new_privs)];
            let names = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "NoNewPrivs:"];
            assert_eq!(names.map(of), expected, "{user} {bounding:x} {ambient:x}");
        }
    }
    renew(image);
    let mut spec = image.spec("true");
    spec.process.capabilities.bounding |= 1 << 50;
    spec.process.capabilities.effective = spec.process.capabilities.bounding;
    spec.process.capabilities.permitted = spec.process.capabilities.bounding;
    let failure = run(host, &spec).unwrap_err();
    assert!(failure.step == "capabilities" && failure.detail.contains("#50"), "{failure:?}");
}

/// Allows all, but answers `errno` to the call `nr`.
pub fn filter(nr: u32, errno: u32) -> Vec<u8> {
    // ld [0] (the call's number); jeq nr; ret errno; ret allow: linux/filter.h, linux/seccomp.h.
    [
        (0x20_u16, 0_u8, 0_u8, 0_u32),
        (0x15, 0, 1, nr),
        (0x06, 0, 0, 0x0005_0000 | errno),
        (0x06, 0, 0, 0x7fff_0000),
    ]
    .iter()
    .flat_map(|(code, jt, jf, k)| {
        let mut raw = code.to_ne_bytes().to_vec();
        raw.extend([*jt, *jf]);
        raw.extend(k.to_ne_bytes());
        raw
    })
    .collect()
}

/// mkdir(2) of x86_64.
pub const MKDIR: u32 = 83;

fn filters(host: &Host, image: &Image) {
    for user in ["0", "1000"] {
        for no_new_privs in [true, false] {
            renew(image);
            let mut spec = image.spec("mkdir /tmp/x 2>&1; cat /proc/self/status");
            spec.process.user.user = user.to_owned();
            spec.process.no_new_privs = no_new_privs;
            spec.process.seccomp = Some(filter(MKDIR, 95));
            let out = output(host, &spec);
            assert!(out.contains("not supported") && out.contains("Seccomp:\t2"), "{out}");
        }
    }
    renew(image);
    let mut spec = image.spec("true");
    spec.process.seccomp = Some(vec![0; 8]);
    let failure = run(host, &spec).unwrap_err();
    assert_eq!((failure.step.as_str(), failure.errno), ("seccomp", 22), "{failure:?}");
    renew(image);
    let mut spec = image.spec("true");
    spec.process.apparmor = Some("cri-containerd.apparmor.d".to_owned());
    let failure = run(host, &spec).unwrap_err();
    assert_eq!(failure.step, "apparmor", "{failure:?}");
}

fn small_things(host: &Host, image: &Image) {
    let mut spec = image.spec("umask; ulimit -n; ps -o pid,pgid,sid,comm; true");
    spec.process.umask = 0o077;
    spec.process.rlimits = vec![Rlimit { resource: 7, soft: 100, hard: 200 }];
    let out = output(host, &spec);
    assert!(out.starts_with("0077\n100\n"), "{out}");
    assert!(out.lines().any(|line| line.split_whitespace().eq(["1", "1", "1", "sh"])), "{out}");
    renew(image);
    let mut direct = image.spec("");
    // A shell changes signals itself.
    direct.process.args = ["cat", "/proc/self/status"].map(Into::into).into();
    let out = output(host, &direct);
    for expected in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"] {
        assert!(out.contains(expected), "{out}");
    }
    spec.process.rlimits[0].hard = u64::MAX;
    renew(image);
    let failure = run(host, &spec).unwrap_err();
    assert!(failure.step == "rlimits" && failure.detail.contains("RLIMIT_NOFILE"), "{failure:?}");
}

fn devices(host: &Host, image: &Image) {
    let mut spec = image.spec(
        "cd /dev && stat -c '%n %F %t:%T %a %u' null tty deep/er/fuse && for l in fd stdin stdout stderr ptmx; do readlink $l; done; \
         echo x >null && ls pts mqueue && mknod /dev/mine c 1 3 && echo y >mine && stat -c %a /dev",
    );
    let mut fuse = image::device("deep/er/fuse", 10, 229);
    (fuse.mode, fuse.uid) = (0o600, 7);
    spec.devices.push(fuse);
    let expected = "null character special file 1:3 666 0\n\
                    tty character special file 5:0 666 0\n\
                    deep/er/fuse character special file a:e5 600 7\n\
                    /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n\
                    mqueue:\n\npts:\nptmx\n755\n";
    assert_eq!(output(host, &spec), expected);
    renew(image);
    spec.mounts[1].readonly = true;
    spec.process.args[2] = "touch /dev/x; touch /dev/mqueue/y && rm /dev/mqueue/y && echo below".into();
    let outcome = run(host, &spec).unwrap();
    assert!(
        outcome.output.contains("Read-only file system") && outcome.output.contains("below"),
        "{outcome:?}"
    );
}

fn masks(host: &Host, image: &Image) {
    let mut spec = image.spec(
        "cat /proc/keys /proc/timer_list; ls -A /sys/firmware; stat -c '%F %t:%T' /proc/keys; \
         echo 1 >/proc/sys/vm/overcommit_memory; touch /sys/firmware/x; chmod 777 /proc/keys; \
         stat -c %a /dev/null; echo 1 >/sys/kernel/uevent_seqnum",
    );
    spec.masked_paths
        .extend(["/proc/keys/", "/sys/firmware", "/sys/kernel/debug", "/proc/self/../fs"].map(Into::into));
    let out = run(host, &spec).unwrap().output;
    let expected = "character special file 1:3\n\
        sh: can't create /proc/sys/vm/overcommit_memory: Read-only file system\n\
        touch: /sys/firmware/x: Read-only file system\n\
        chmod: /proc/keys: Read-only file system\n\
        666\n\
        sh: can't create /sys/kernel/uevent_seqnum: Read-only file system\n";
    assert_eq!(out, expected);
}

fn readonly_rootfs(host: &Host, image: &Image) {
    let mut spec = image.spec("touch /x; touch /vol/y && ls /vol; mkdir /dev/z && echo made");
    spec.rootfs.readonly = true;
    spec.mounts.push(image::bind("/not/there/yet", &image.path("volume")));
    spec.mounts.push(image::bind("/vol", &image.path("volume")));
    assert_eq!(output(host, &spec), "touch: /x: Read-only file system\ny\nmade\n");
    assert!(image.path("volume/y").exists());
}

fn volumes(host: &Host, image: &Image) {
    fs::write(image.path("volume/file"), "of the host").unwrap();
    fs::set_permissions(image.path("volume"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mut spec = image.spec(
        "cat /etc/hosts /new/file; touch /vol/by-app; stat -c '%a %u' /missing; ls /vol; cat /vol/nested/f; \
         stat -f -c %T /scratch; stat -c %a /scratch",
    );
    spec.process.user.user = "app".to_owned();
    spec.mounts.push(image::bind("/vol", &image.path("volume")));
    spec.mounts.push(image::bind("/etc/hosts", &image.path("volume/file")));
    spec.mounts.push(image::bind("/new/file", &image.path("volume/file")));
    spec.mounts.push(image::bind("/missing", &image.path("made/as/containerd/does")));
    spec.mounts.push(image::bind("/vol/nested/f", &image.path("canary/file")));
    spec.mounts.push(image::mount(
        "/scratch",
        MountKind::Tmpfs(Tmpfs { size: 4096, mode: 0o1700, strict_atime: false }),
    ));
    let expected = "of the hostof the host755 0\nby-app\nfile\nnested\nuntouchedtmpfs\n1700\n";
    assert_eq!(output(host, &spec), expected);
    assert!(image.path("made/as/containerd/does").is_dir());
    image.check_canary();
}

fn readonly_volumes(host: &Host, image: &Image) {
    let source = image.path("volume");
    fs::create_dir(source.join("below")).unwrap();
    let below = source.join("below");
    rustix::mount::mount("tmpfs", &below, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let _undo = Unmount(below);
    let script = "touch /vol/x; touch /vol/below/y; echo";
    for (recursive_readonly, expected) in [
        (false, "touch: /vol/x: Read-only file system\n\n"),
        (true, "touch: /vol/x: Read-only file system\ntouch: /vol/below/y: Read-only file system\n\n"),
    ] {
        renew(image);
        let mut spec = image.spec(script);
        let mut volume = image::bind("/vol", &source);
        volume.readonly = true;
        if let MountKind::Bind(bind) = &mut volume.kind {
            bind.recursive_readonly = recursive_readonly;
        }
        spec.mounts.push(volume);
        assert_eq!(output(host, &spec), expected);
    }
}

/// Detaches a mount of this test's when dropped.
pub struct Unmount(pub std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _undone = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn mount_namespace(host: &Host, image: &Image) {
    let out = output(host, &image.spec("cat /proc/self/mountinfo"));
    for line in out.lines() {
        let at = line.split(' ').nth(4).unwrap();
        let known = ["/", "/proc", "/dev", "/sys"].contains(&at)
            || ["/proc/", "/dev/", "/sys/"].iter().any(|below| at.starts_with(below));
        assert!(known, "{line}");
        assert!(!line.contains("shared:") && !line.contains("master:"), "{line}");
    }
    let root = out.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(
        root.contains("- overlay") && root.contains("volatile") && root.contains("redirect_dir=nofollow"),
        "{root}"
    );
}

/// The mount API takes 255 bytes a value: this goes the way of kernels before 6.5.
fn long_names(host: &Host, image: &Image) {
    let long = format!("{0}/{0}", "x:y,".repeat(50));
    let mut spec =
        image.spec("cat /in-long; ls /from-the-upper-layer; grep -c volatile /proc/self/mountinfo");
    for n in ["1", "2"] {
        let layer = image.path(&format!("{long}/{n}"));
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join("in-long"), n).unwrap();
        spec.rootfs.lower.push(layer);
    }
    assert_eq!(output(host, &spec), "1/from-the-upper-layer\n1\n");
}

fn failures(host: &Host, image: &Image) {
    let table: [(&[&str], i32, &str); 6] = [
        (&["no-such-program"], 2, "exec: \"no-such-program\": executable file not found in $PATH"),
        (&["/no/such"], 2, "exec: \"/no/such\": stat /no/such: no such file or directory"),
        (&["/etc/not-a-program"], 13, "exec: \"/etc/not-a-program\": permission denied"),
        (&["/etc"], 21, "is a directory"),
        (&["/bin/script"], 8, "exec format error"),
        (&["a\0b"], 2, "not found"),
    ];
    image.put("bin/script", "no interpreter line\n");
    let at = image.base().join("bin/script");
    fs::set_permissions(at, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for (args, errno, text) in table {
        renew(image);
        let mut spec = image.spec("");
        spec.process.args = args.iter().map(Into::into).collect();
        let failure = run(host, &spec).unwrap_err();
        assert_eq!(failure.step, "exec", "{failure:?}");
        assert_eq!(failure.errno, errno, "{failure:?}");
        assert!(failure.detail.contains(text), "{failure:?}");
    }
    let mut spec = image.spec("true");
    spec.rootfs.lower.push("/no/such/layer".into());
    let failure = run(host, &spec).unwrap_err();
    assert!(failure.step == "rootfs" && failure.detail.contains("/no/such/layer"), "{failure:?}");
}
