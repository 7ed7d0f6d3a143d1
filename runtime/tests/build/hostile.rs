//! Images that want out.

use std::fs;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::cases::renew;
use crate::image::{self, Image};
use crate::shim::{output, run};
use crate::{Case, Host};

pub const ALL: &[Case] = &[
    ("proc and sys as symlinks", kernel_file_systems),
    ("mounts over proc", over_proc),
    ("dev and what is in it as symlinks", dev),
    ("a null device that is none", null),
    ("etc as a symlink", etc),
    ("passwd that is no file", passwd),
    ("destinations through symlinks", destinations),
];

/// A03.
fn kernel_file_systems(host: &Host, image: &Image) {
    for (path, target) in [("proc", "/fake"), ("proc", "../../../../canary"), ("sys", "/fake")] {
        let image_of_its_own = Image::new();
        fs::create_dir(image_of_its_own.base().join("fake")).unwrap();
        image_of_its_own.link(path, target);
        let failure = run(host, &image_of_its_own.spec("true")).unwrap_err();
        assert_eq!(failure.step, "mounts", "{failure:?}");
        assert!(failure.detail.contains("must be mounted on an ordinary directory"), "{failure:?}");
        image_of_its_own.check_canary();
    }
    image.check_canary();
}

fn over_proc(host: &Host, image: &Image) {
    image.link("way", "/proc");
    for (destination, text) in [
        ("/proc", "only procfs"),
        ("/proc/sys", "inside procfs"),
        ("/x/../proc/sys/", "inside procfs"),
        ("/way/sys", "inside procfs"),
        ("/proc/self/attr", "inside procfs"),
        ("/", "cannot be mounted over"),
        ("/a/..", "cannot be mounted over"),
    ] {
        renew(image);
        let mut spec = image.spec("true");
        spec.mounts.push(image::bind(destination, &image.path("volume")));
        let failure = run(host, &spec).unwrap_err();
        assert!(failure.step == "mounts" && failure.detail.contains(text), "{destination}: {failure:?}");
    }
    renew(image);
    let mut spec = image.spec("cat /proc/uptime");
    spec.mounts.push(image::bind("/proc/uptime", &image.path("canary/file")));
    assert_eq!(output(host, &spec), "untouched");
    image.check_canary();
}

/// A10, A13, A14.
fn dev(host: &Host, _image: &Image) {
    for target in ["../../../../canary", "/bin"] {
        let image = Image::new();
        image.link("dev", target);
        let failure = run(host, &image.spec("true")).unwrap_err();
        assert!(failure.step == "mounts" && failure.detail.contains("ordinary directory"), "{failure:?}");
        image.check_canary();
    }
    // What the image has below /dev is hidden by our own.
    let image = Image::new();
    for (name, target) in [
        ("dev/null", "/proc/sys/kernel/core_pattern"),
        ("dev/console", "../../../../canary/new"),
        ("dev/pts", "../../../../canary"),
        ("dev/shm", "../../../../canary"),
        ("dev/mqueue", "../../../../canary"),
    ] {
        image.link(name, target);
    }
    let out =
        output(host, &image.spec("stat -c %F /dev/null /dev/pts /proc/keys; ls /dev/console 2>&1; true"));
    let expected = "character special file\ndirectory\ncharacter special file\n\
                    ls: /dev/console: No such file or directory\n";
    assert_eq!(out, expected);
    image.check_canary();
}

/// A10: the volume on /dev says what the null device is.
fn null(host: &Host, image: &Image) {
    let volume = image.path("volume");
    let null = volume.join("null");
    let with_volume = || {
        renew(image);
        let mut spec = image.spec("stat -c '%t:%T' /dev/null; cat /proc/keys");
        spec.mounts.retain(|mount| !mount.destination.starts_with("/dev"));
        spec.mounts.push(image::bind("/dev", &volume));
        spec.devices.clear();
        spec
    };
    std::os::unix::fs::symlink("/proc/sys/kernel/core_pattern", &null).unwrap();
    let failure = run(host, &with_volume()).unwrap_err();
    assert!(failure.step == "devices" && failure.detail.contains("not the null device"), "{failure:?}");
    let mut spec = with_volume();
    spec.devices = vec![image::device("null", 1, 3)];
    assert_eq!(run(host, &spec).unwrap_err().step, "devices");
    fs::remove_file(&null).unwrap();
    mknodat(CWD, &null, FileType::CharacterDevice, Mode::from(0o666), makedev(1, 5)).unwrap();
    assert_eq!(run(host, &with_volume()).unwrap_err().step, "devices");
    fs::remove_file(&null).unwrap();
    mknodat(CWD, &null, FileType::CharacterDevice, Mode::from(0o666), makedev(1, 3)).unwrap();
    assert_eq!(output(host, &with_volume()), "1:3\n");
}

/// A52.
fn etc(host: &Host, image: &Image) {
    image.link("etc", "../../../../../../../../../../canary");
    fs::create_dir(image.base().join("canary")).unwrap();
    image.put("canary/passwd", "app:x:33:44::/:/bin/sh\n");
    let mut spec = image.spec("id -u; cat /etc/hosts /canary/resolv.conf");
    spec.process.user.user = "app".to_owned();
    for file in ["/etc/hosts", "/etc/resolv.conf", "/etc/new/hostname"] {
        spec.mounts.push(image::bind(file, &image.path("canary/file")));
    }
    assert_eq!(output(host, &spec), "33\nuntoucheduntouched");
    image.check_canary();
}

/// A20, A37.
fn passwd(host: &Host, image: &Image) {
    let path = image.base().join("etc/passwd");
    let node = |kind, number| mknodat(CWD, &path, kind, Mode::from(0o644), number).unwrap();
    let fifo = || node(FileType::Fifo, 0);
    let zero = || node(FileType::CharacterDevice, makedev(1, 5));
    let huge = || fs::File::create(&path).unwrap().set_len(2 << 30).unwrap();
    let magic = || std::os::unix::fs::symlink("/proc/kmsg", &path).unwrap();
    let make: [(&str, &dyn Fn()); 4] = [("fifo", &fifo), ("zero", &zero), ("huge", &huge), ("magic", &magic)];
    for (name, make) in make {
        fs::remove_file(&path).unwrap();
        make();
        renew(image);
        let mut spec = image.spec("true");
        spec.process.user.user = "app".to_owned();
        let started = Instant::now();
        let failure = run(host, &spec).unwrap_err();
        assert_eq!(failure.step, "user", "{name}: {failure:?}");
        assert!(started.elapsed() < Duration::from_secs(1), "{name}");
    }
}

/// A04, A09: through symlinks a mount lands inside the root, never beside it.
fn destinations(host: &Host, image: &Image) {
    image.link("esc", "../../../../canary");
    image.link("abs", image.path("canary"));
    let mut spec = image.spec("cat /canary/a/b/file; ls /esc/a");
    spec.mounts.push(image::bind("/esc/a/b", &image.path("canary")));
    spec.mounts.push(image::bind("/abs/new", &image.path("canary/file")));
    assert_eq!(output(host, &spec), "untouchedb\n");
    image.check_canary();
}
