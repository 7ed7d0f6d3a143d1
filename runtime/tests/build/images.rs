//! Other images as volumes, and the VOLUMEs that an image declares.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cove_runtime::build::image_volume;
use cove_runtime::build::request::{ImageVolume, Mount, MountKind};

use crate::cases::renew;
use crate::image::{self, Image};
use crate::shim::{output, run};
use crate::{Case, Host};

pub const ALL: &[Case] = &[
    ("another image as a volume", image_volumes),
    ("a directory of another image", sub_paths),
    ("another image, on an old kernel", long_layers),
    ("volumes of the image", volumes),
    ("hostile volumes of the image", hostile_volumes),
];

/// Two layers of another image beside the one under test, and what is hidden, linked and missing in them.
fn other(image: &Image) -> ImageVolume {
    let (top, base) = (image.path("other-top"), image.path("other,base:x"));
    fs::create_dir_all(base.join("etc/deep")).unwrap();
    fs::create_dir_all(top.join("etc")).unwrap();
    fs::write(base.join("etc/of-base"), "base\n").unwrap();
    fs::write(base.join("etc/hidden"), "hidden\n").unwrap();
    fs::write(top.join("etc/of-top"), "top\n").unwrap();
    fs::write(base.join("program"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(base.join("program"), fs::Permissions::from_mode(0o4755)).unwrap();
    let whiteout = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, top.join("etc/hidden"), whiteout, 0o644.into(), 0).unwrap();
    symlink("/etc/deep", base.join("inside")).unwrap();
    symlink("../../../../../../canary", base.join("climbs")).unwrap();
    symlink(image.path("canary"), base.join("absolute")).unwrap();
    symlink("loop", base.join("loop")).unwrap();
    symlink("/proc/self/root", base.join("magic")).unwrap();
    ImageVolume { lower: vec![top, base], sub_path: PathBuf::new() }
}

fn at(destination: &str, volume: ImageVolume) -> Mount {
    Mount { noexec: false, readonly: true, ..image::mount(destination, MountKind::Image(volume)) }
}

fn image_volumes(host: &Host, image: &Image) {
    let mut spec = image.spec(
        "cat /i/etc/of-base /i/etc/of-top; ls /i/etc; /i/program; touch /i/x; touch /i/etc/of-base; \
         cat /i/etc/deep/file; ls /one; grep -c -e '- overlay' /proc/self/mountinfo; \
         grep -o 'ro,nosuid,nodev,relatime' /proc/self/mountinfo; true",
    );
    let volume = other(image);
    let one = ImageVolume { lower: vec![volume.lower[0].join("etc")], sub_path: PathBuf::new() };
    spec.mounts.extend([
        at("/i", volume),
        // Of one layer, with a whiteout in it.
        at("/one", one),
        // On top of an image volume, whose directory it needs.
        image::bind("/i/etc/deep", &image.path("canary")),
    ]);
    let expected = "base\ntop\ndeep\nof-base\nof-top\nran\ntouch: /i/x: Read-only file system\n\
                    touch: /i/etc/of-base: Read-only file system\nuntouchedof-top\n3\n\
                    ro,nosuid,nodev,relatime\nro,nosuid,nodev,relatime\n";
    assert_eq!(output(host, &spec), expected);
    image.check_canary();
}

fn sub_paths(host: &Host, image: &Image) {
    let volume = other(image);
    let of = |sub_path: &str| ImageVolume { sub_path: sub_path.into(), ..volume.clone() };
    for (sub_path, expected) in [("etc", "deep\nof-base\nof-top\n"), ("inside", ""), ("etc/deep", "")] {
        renew(image);
        let mut spec = image.spec(
            "ls /i; touch /i/x 2>&1 | grep -o Read-only; grep -c -e '- overlay' /proc/self/mountinfo; true",
        );
        spec.mounts.push(at("/i", of(sub_path)));
        assert_eq!(output(host, &spec), format!("{expected}Read-only\n2\n"), "{sub_path}");
        image_volume::check(&of(sub_path)).unwrap();
    }
    // Errno: ENOENT, ENOTDIR, ELOOP.
    for (sub_path, errno) in [
        ("missing", 2),
        ("etc/hidden", 2),
        ("climbs", 2),
        ("absolute", 2),
        ("program", 20),
        ("etc/of-base/x", 20),
        ("loop", 40),
        ("../../../../etc/passwd", 2),
    ] {
        renew(image);
        let mut spec = image.spec("true");
        spec.mounts.push(at("/i", of(sub_path)));
        for failure in [run(host, &spec).unwrap_err(), image_volume::check(&of(sub_path)).unwrap_err()] {
            assert_eq!(
                (failure.step.as_str(), failure.errno),
                (image_volume::STEP, errno),
                "{sub_path}: {failure:?}"
            );
            assert!(failure.detail.contains(sub_path), "{failure:?}");
        }
    }
    for layers in [0, 1] {
        let few = ImageVolume { lower: volume.lower[..layers].to_vec(), sub_path: "missing".into() };
        assert_eq!(image_volume::check(&few).unwrap_err().step, image_volume::STEP);
    }
    image_volume::check(&ImageVolume { lower: vec![volume.lower[1].clone()], ..of("etc") }).unwrap();
    image.check_canary();
}

/// The mount API takes 255 bytes a value: this goes the way of kernels before 6.5.
fn long_layers(host: &Host, image: &Image) {
    let long = format!("{0}/{0}", "x:y,".repeat(50));
    let mut volume = other(image);
    let layer = image.path(&long);
    fs::create_dir_all(layer.join("etc")).unwrap();
    fs::write(layer.join("etc/in-long"), "").unwrap();
    volume.lower.push(layer);
    for (sub_path, expected) in [("", "in-long\nof-base\nof-top\n"), ("etc", "in-long\nof-base\nof-top\n")] {
        renew(image);
        let mut spec = image.spec(&format!(
            "cd /i/{}; ls -d in-long of-*; touch x; true",
            if sub_path.is_empty() { "etc" } else { "" }
        ));
        volume.sub_path = sub_path.into();
        spec.mounts.push(at("/i", volume.clone()));
        assert_eq!(output(host, &spec), format!("{expected}touch: x: Read-only file system\n"), "{sub_path}");
    }
    image.check_canary();
}

fn declared(destination: &str, source: &Path) -> Mount {
    fs::create_dir_all(source).unwrap();
    fs::set_permissions(source, fs::Permissions::from_mode(0o755)).unwrap();
    Mount {
        noexec: false,
        nodev: false,
        nosuid: false,
        ..image::mount(destination, MountKind::Volume(source.to_owned()))
    }
}

fn volumes(host: &Host, image: &Image) {
    let data = image.base().join("srv/data");
    fs::create_dir_all(data.join("sub")).unwrap();
    fs::write(data.join("sub/file"), "of the image\n").unwrap();
    fs::hard_link(data.join("sub/file"), data.join("same")).unwrap();
    symlink("sub/file", data.join("link")).unwrap();
    fs::create_dir_all(image.path("layers/top/srv/data")).unwrap();
    fs::write(image.path("layers/top/srv/data/of-top"), "").unwrap();
    std::os::unix::fs::chown(image.path("layers/top/srv/data"), Some(1000), Some(50)).unwrap();
    fs::set_permissions(image.path("layers/top/srv/data"), fs::Permissions::from_mode(0o2770)).unwrap();
    fs::create_dir(image.base().join("real")).unwrap();
    image.put("real/file", "");
    symlink("real", image.base().join("way")).unwrap();
    let script = "cd /srv/data; cat link same; ls; stat -c '%a %u %g' .; stat -c %h same; echo new >sub/file; touch made; \
                  ls /way /real; ls /empty /srv/data/made; stat -c '%a %u' /empty; touch /x; true";
    let mut spec = image.spec(script);
    spec.rootfs.readonly = true;
    spec.mounts.push(declared("/srv/data", &image.path("volumes/0")));
    spec.mounts.push(declared("/empty", &image.path("volumes/1")));
    spec.mounts.push(declared("/way", &image.path("volumes/2")));
    let expected = "of the image\nof the image\nlink\nof-top\nsame\nsub\n2770 1000 50\n2\n/real:\nfile\n\n/way:\nfile\n\
                    /srv/data/made\n\n/empty:\n755 0\ntouch: /x: Read-only file system\n";
    assert_eq!(output(host, &spec), expected);
    assert_eq!(fs::read_to_string(image.path("volumes/0/same")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(data.join("same")).unwrap(), "of the image\n");
    assert!(image.path("volumes/2/file").exists());
    assert_eq!(fs::metadata(image.path("volumes/0")).unwrap().uid(), 1000);
    assert!(!image.path("upper/srv/data/made").exists());
}

/// A32: whatever the path says, nothing of the host is copied, and nothing is mounted beside the root.
fn hostile_volumes(host: &Host, image: &Image) {
    image.link("climbs", "../../../../../../../canary");
    image.link("absolute", image.path("canary"));
    image.link("loop", "loop");
    image.link("magic", "/proc/self/root");
    fs::create_dir_all(image.base().join("dir")).unwrap();
    image.link("dir/out", image.path("canary"));
    let canary = image.path("canary").display().to_string();
    for (path, refused) in [
        (format!("/../../../../..{canary}"), None),
        (canary.clone(), None),
        ("/climbs".into(), None),
        ("/absolute".into(), None),
        ("/absolute/sub/deeper".into(), None),
        ("/dir".into(), None),
        ("/loop/x".into(), Some("image-defined-volumes")),
        ("/etc/passwd".into(), Some("image-defined-volumes")),
        ("/magic".into(), Some("mounts")),
        ("/".into(), Some("mounts")),
        ("/proc".into(), Some("mounts")),
        ("/proc/sys".into(), Some("mounts")),
        (format!("/{}", "x".repeat(300)), Some("image-defined-volumes")),
    ] {
        renew(image);
        let source = image.path("volume/declared");
        let _ = fs::remove_dir_all(&source);
        let mut spec = image.spec(&format!("cat '{path}'/file '{path}'/out/file 2>/dev/null; echo ran"));
        spec.mounts.push(declared(&path, &source));
        match (run(host, &spec), refused) {
            (Ok(outcome), None) => assert_eq!(outcome.output, "ran\n", "{path}"),
            (Err(failure), Some(step)) => assert_eq!(failure.step, step, "{path}: {failure:?}"),
            (got, _) => panic!("{path}: {got:?}"),
        }
        image.check_canary();
    }
}
