//! Ordinary archives: what we make of them is what GNU tar and the `tar` crate make.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::place::{Picture, Place, picture};

/// A tree with all that an image has in it.
pub(crate) fn plant(at: &Path) {
    let long = "a-directory-with-a-name-of-some-length/".repeat(4);
    fs::create_dir_all(at.join("etc/deep/er")).unwrap();
    fs::create_dir_all(at.join(&long)).unwrap();
    fs::write(at.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    fs::write(at.join("etc/empty"), "").unwrap();
    fs::write(at.join("etc/deep/er/block"), vec![7; 512]).unwrap();
    fs::write(at.join("big"), (0..300_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
    fs::write(at.join(&long).join("f".repeat(80)), "long").unwrap();
    fs::write(at.join("na\u{ef}ve name\twith = signs\n"), "odd").unwrap();
    fs::hard_link(at.join("etc/passwd"), at.join("etc/passwd-")).unwrap();
    symlink("/etc/passwd", at.join("absolute")).unwrap();
    symlink("t".repeat(150), at.join("long-target")).unwrap();
    symlink("../big", at.join("etc/up")).unwrap();
    for (path, mode) in [("etc/passwd", 0o4755), ("etc/deep", 0o1777), ("etc/empty", 0), ("big", 0o600)] {
        fs::set_permissions(at.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    std::os::unix::fs::lchown(at.join("big"), Some(1000), Some(3_000_000)).unwrap();
    std::os::unix::fs::lchown(at.join("absolute"), Some(12), Some(34)).unwrap();
    // A time of its own for each, so that none is right by chance.
    for (number, path) in (0..).zip(picture(at).keys()) {
        let time = Timespec { tv_sec: 1_000_000_000 + number, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, at.join(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Formats keep times to different precision.
fn seconds(mut picture: Picture) -> Picture {
    for facts in picture.values_mut() {
        facts.mtime.1 = 0;
    }
    picture
}

pub(crate) fn gnu_tar(tree: &Path, options: &[&str]) -> Vec<u8> {
    let tar = Command::new("tar")
        .args(["-c", "--numeric-owner", "-C"])
        .arg(tree)
        .args(options)
        .arg(".")
        .output()
        .unwrap();
    assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
    tar.stdout
}

#[test]
fn gnu_tar_in_all_its_formats() {
    let tree = tempfile::tempdir().unwrap();
    plant(tree.path());
    for options in [
        &["--format=gnu"][..],
        &["--format=oldgnu"],
        &["--format=posix"],
        &["--format=posix", "--xattrs"],
        &["--format=gnu", "--sort=name"],
        &["--format=gnu", "-z"],
        &["--format=posix", "-b1"],
    ] {
        let place = Place::new();
        let unpacked = place.unpack(&gnu_tar(tree.path(), options)).unwrap();
        assert_eq!(seconds(picture(&place.target())), seconds(picture(tree.path())), "{options:?}");
        assert!(unpacked.implicit.is_empty());
        let mut inodes = picture(tree.path()).len() - 1;
        inodes -= 1; // one name is a hard link
        assert_eq!(unpacked.inodes, u64::try_from(inodes).unwrap());
        assert_eq!(unpacked.size, 1_200_000 + 512 + 22 + 4 + 3);
    }
}

#[test]
fn posix_times_to_the_nanosecond() {
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir(tree.path().join("d")).unwrap();
    fs::write(tree.path().join("d/f"), "x").unwrap();
    let place = Place::new();
    place.unpack(&gnu_tar(tree.path(), &["--format=posix"])).unwrap();
    assert_eq!(picture(&place.target()), picture(tree.path()));
}

#[test]
fn ustar_prefixes() {
    let tree = tempfile::tempdir().unwrap();
    let long = "some-directory/".repeat(9);
    fs::create_dir_all(tree.path().join(&long)).unwrap();
    fs::write(tree.path().join(&long).join("leaf"), "x").unwrap();
    let place = Place::new();
    place.unpack(&gnu_tar(tree.path(), &["--format=ustar"])).unwrap();
    assert_eq!(seconds(picture(&place.target())), seconds(picture(tree.path())));
}

#[test]
fn the_same_as_the_tar_crate() {
    let tree = tempfile::tempdir().unwrap();
    plant(tree.path());
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all("", tree.path()).unwrap();
    let archive = builder.into_inner().unwrap();

    let theirs = tempfile::tempdir().unwrap();
    let mut reader = tar::Archive::new(&archive[..]);
    reader.set_preserve_permissions(true);
    reader.set_preserve_ownerships(true);
    reader.set_preserve_mtime(true);
    reader.unpack(theirs.path()).unwrap();

    let ours = Place::new();
    ours.unpack(&archive).unwrap();
    // The crate gives symlinks no owner, neither them nor directories a time, and writes no entry for the root.
    let comparable = |root: &Path| {
        let mut found = seconds(picture(root));
        found.remove(Path::new(""));
        for facts in found.values_mut() {
            match facts.mode & 0o170_000 {
                0o120_000 => (facts.owner, facts.mtime) = ((0, 0), (0, 0)),
                0o040_000 => facts.mtime = (0, 0),
                _ => {}
            }
        }
        found
    };
    assert_eq!(comparable(&ours.target()), comparable(theirs.path()));
}
