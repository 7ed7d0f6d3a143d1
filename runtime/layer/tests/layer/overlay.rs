//! The form that overlayfs reads, and what becomes of directories that no entry names.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Instant;

use crate::archive::Archive;
use crate::place::Place;

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_char_device() && found.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 8];
    rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value[..])
        .is_ok_and(|count| &value[..count] == b"y")
}

#[test]
fn whiteouts_and_opaque_directories() {
    let place = Place::new();
    let archive = Archive::new()
        .file(".wh.gone", "")
        .dir("d", 0o755)
        .file("d/.wh..wh..opq", "")
        .file("d/kept", "x")
        .hardlink("d/.wh.linked", "d/.wh..wh.aufs")
        .file(".wh..wh.aufs", "")
        .dir(".wh..wh.plnk", 0o700)
        .file(".wh..wh.plnk/1.2", "x")
        .end();
    let unpacked = place.unpack(&archive).unwrap();
    let target = place.target();
    assert!(is_whiteout(&target.join("gone")));
    assert!(is_whiteout(&target.join("d/linked")));
    assert!(is_opaque(&target.join("d")) && !is_opaque(&target));
    assert!(!unpacked.opaque_root);
    assert_eq!(unpacked.inodes, 4);
    let mut names: Vec<_> = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["d", "gone"]);
    assert_eq!(fs::metadata(target.join("d")).unwrap().mtime(), 0o14_000_000_000);
}

#[test]
fn a_whiteout_and_the_same_name() {
    let place = Place::new();
    let archive = Archive::new()
        .file(".wh.before", "")
        .dir("before", 0o755)
        .dir("after", 0o755)
        .file(".wh.after", "")
        .file("file", "this layer's")
        .file(".wh.file", "")
        .file(".wh.way", "")
        .file("way/through", "x")
        .file(".wh.late", "")
        .file("late", "x")
        .end();
    let unpacked = place.unpack(&archive).unwrap();
    let target = place.target();
    for name in ["before", "after", "way"] {
        assert!(target.join(name).is_dir() && is_opaque(&target.join(name)), "{name}");
    }
    assert_eq!(fs::read(target.join("file")).unwrap(), b"this layer's");
    assert_eq!(fs::read(target.join("late")).unwrap(), b"x");
    assert_eq!(unpacked.implicit, [Path::new("way")]);
}

#[test]
fn an_opaque_root_is_told() {
    let place = Place::new();
    assert!(place.unpack(&Archive::new().file("./.wh..wh..opq", "").end()).unwrap().opaque_root);
}

#[test]
fn markers_cost_no_more_than_files() {
    let fill = |prefix: &str, markers: bool| {
        let mut archive = Archive::new().dir("d", 0o755);
        for number in 0..3000 {
            archive = archive.file(&format!("d/{prefix}{number}"), "");
            if markers {
                archive = archive.file("d/.wh..wh..opq", "");
            }
        }
        let archive = archive.end();
        let place = Place::new();
        let start = Instant::now();
        place.unpack(&archive).unwrap();
        start.elapsed()
    };
    // The best of three, since others use the machine. A walk of the directory at each marker costs 100 times more.
    let best = |prefix, markers| (0..3).map(|_| fill(prefix, markers)).min().unwrap();
    let (plain, marked, whiteouts) = (best("", false), best("", true), best(".wh.", false));
    assert!(marked < plain * 5, "{marked:?} with markers, {plain:?} without");
    assert!(whiteouts < plain * 3, "{whiteouts:?} for whiteouts, {plain:?} for files");
}

#[test]
fn directories_that_no_entry_names() {
    let place = Place::new();
    let archive = Archive::new()
        .file("a/b/c/file", "x")
        .dir("a/b", 0o700)
        .symlink("link", "a/b")
        .file("link/d/file", "x")
        .file("gone/e/file", "x")
        .file("gone", "a file now")
        .dir("link/d", 0o711)
        .end();
    let unpacked = place.unpack(&archive).unwrap();
    let paths: Vec<_> = unpacked.implicit.iter().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(paths, ["a", "a/b/c"]);
    let mode = |path: &str| fs::metadata(place.target().join(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("a"), mode("a/b"), mode("a/b/d")), (0o755, 0o700, 0o711));
}

#[test]
fn directories_keep_their_times() {
    let place = Place::new();
    let archive = Archive::new()
        .dir("a", 0o755)
        .dir("a/b", 0o755)
        .file("a/b/one", "x")
        .file("a/c/implicit", "x")
        .file("a/.wh.d", "")
        .file("a/d/e/through", "x")
        .file("a/b/one", "again")
        .symlink("a/b/one", "x")
        .end();
    place.unpack(&archive).unwrap();
    for path in ["a", "a/b"] {
        assert_eq!(fs::metadata(place.target().join(path)).unwrap().mtime(), 0o14_000_000_000, "{path}");
    }
}

#[test]
fn attributes_that_are_kept() {
    let place = Place::new();
    // A version 2 capability set with cap_net_raw permitted (linux/capability.h, vfs_cap_data).
    let mut capability = [0_u8; 20];
    capability[3] = 2;
    capability[5] = 0x20;
    let archive = Archive::new()
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.note", b"kept")])
        .entry(b'0', "ping", b"x", |block| {
            crate::archive::put(block, 100, b"0004755\0");
            crate::archive::put(block, 108, b"0001750\0");
        })
        .end();
    let unpacked = place.unpack(&archive).unwrap();
    let path = place.target().join("ping");
    let mut value = [0; 64];
    let count = rustix::fs::lgetxattr(&path, "security.capability", &mut value[..]).unwrap();
    assert_eq!(&value[..count], capability, "set after the owner, which would have taken it away");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o4755, 0o1750));
    let count = rustix::fs::lgetxattr(&path, "user.note", &mut value[..]).unwrap_or(0);
    assert_eq!(unpacked.skipped_xattrs, u64::from(count == 0));
}

#[test]
fn devices_and_pipes() {
    let place = Place::new();
    let archive = Archive::new()
        .device(b'3', "dev/null", "0000001\0", "0000003\0")
        .device(b'4', "dev/largest", "0007777\0", "3777777\0")
        .entry(b'6', "dev/pipe", b"", |_| {})
        .end();
    place.unpack(&archive).unwrap();
    let found = |name: &str| fs::symlink_metadata(place.target().join("dev").join(name)).unwrap();
    assert_eq!(found("null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(found("largest").rdev(), rustix::fs::makedev(0xfff, 0xf_ffff));
    assert!(found("pipe").file_type().is_fifo());
    assert_eq!(found("null").mode() & 0o7777, 0o644);
}
