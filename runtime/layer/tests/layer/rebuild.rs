//! An archive that was unpacked comes back byte for byte, and damage is found.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::os::unix::fs::symlink;
use std::path::Path;

use cove_layer::{RebuildError, Rebuilt, Unpacked, rebuild};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::archive::Archive;
use crate::benign::{gnu_tar, plant};
use crate::place::Place;

/// A layer that was unpacked, with what was kept of its archive.
struct Kept {
    place: Place,
    headers: File,
    unpacked: Unpacked,
}

impl Kept {
    fn new(archive: &[u8]) -> Self {
        let (place, headers) = (Place::new(), tempfile::tempfile().unwrap());
        let unpacked = place.unpack_keeping(archive, headers.try_clone().unwrap()).unwrap();
        assert_eq!(unpacked.headers, Some(headers.metadata().unwrap().len()));
        Self { place, headers, unpacked }
    }

    fn headers(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.headers.rewind().unwrap();
        self.headers.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn rebuild(&mut self) -> Result<(Vec<u8>, Rebuilt), RebuildError> {
        let (mut archive, headers) = (Vec::new(), self.headers());
        let rebuilt = rebuild(&headers[..], &self.place.target(), &mut archive)?;
        Ok((archive, rebuilt))
    }

    fn assert_comes_back(&mut self, archive: &[u8], case: &str) {
        let (found, rebuilt) = self.rebuild().unwrap();
        assert!(found == archive, "{case}: {} bytes come back, {} went in", found.len(), archive.len());
        assert_eq!(rebuilt.diff_id, self.unpacked.diff_id, "{case}");
        assert_eq!((rebuilt.size, self.unpacked.archive), (archive.len() as u64, rebuilt.size), "{case}");
    }
}

#[test]
fn archives_of_gnu_tar() {
    let tree = tempfile::tempdir().unwrap();
    plant(tree.path());
    for options in [
        &["--format=gnu"][..],
        &["--format=oldgnu"],
        &["--format=posix", "--xattrs"],
        &["--format=gnu", "--sort=name"],
        &["--format=posix", "-b1"],
    ] {
        let archive = gnu_tar(tree.path(), options);
        Kept::new(&archive).assert_comes_back(&archive, &format!("{options:?}"));
    }
}

#[test]
fn what_is_kept_is_small() {
    let mut archive = Archive::new();
    for number in 0..2000 {
        archive = archive.file(&format!("usr/share/doc/package-{number}/copyright"), "some text of its own");
    }
    let kept = Kept::new(&archive.end());
    let bytes = kept.unpacked.headers.unwrap();
    assert!(bytes < 2000 * 40, "{bytes} bytes for 2000 files");
}

/// Content that becomes no file is kept as it is.
#[test]
fn content_of_what_is_no_file() {
    let archive = Archive::new()
        .entry(b'0', "dir/.wh.gone", b"a whiteout with content", |_| {})
        .entry(b'0', ".wh..wh.plnk/1.2", &[7; 5000], |_| {})
        .file("dir/file", "x")
        .end();
    Kept::new(&archive).assert_comes_back(&archive, "content");
}

/// Files that lie elsewhere than their names say.
#[test]
fn files_behind_links() {
    let archive = Archive::new()
        .dir("usr/lib", 0o755)
        .symlink("lib", "usr/lib")
        .file("lib/a", "through a link")
        .symlink("lost", "made/later")
        .file("lost/b", "makes what the link leads to")
        .symlink("out", "../../../../canary")
        .file("out/c", "stays inside")
        .file("usr/lib/d", "plain")
        .hardlink("e", "lib/a")
        .end();
    let mut kept = Kept::new(&archive);
    assert!(kept.place.target().join("usr/lib/a").is_file());
    kept.assert_comes_back(&archive, "links");
    kept.place.assert_canary("links");
}

#[test]
fn what_was_replaced_is_told() {
    for archive in [
        Archive::new().file("a", "one").file("a", "two"),
        Archive::new().file("d/a", "one").file("d", "two"),
        Archive::new().file("a", "one").dir("a", 0o755),
        Archive::new().symlink("l", "x").file("l/a", "one").symlink("l", "y").file("l/a", "two"),
    ] {
        assert!(Kept::new(&archive.end()).unpacked.replaced);
    }
}

#[test]
fn damage_is_found() {
    let archive =
        Archive::new().dir("etc", 0o755).file("etc/passwd", "root:x:0:0").file("etc/empty", "").end();
    let fresh = || Kept::new(&archive);
    let file = |kept: &Kept| kept.place.target().join("etc/passwd");

    let mut kept = fresh();
    fs::write(file(&kept), "root:y:0:0").unwrap();
    let (_, rebuilt) = kept.rebuild().unwrap();
    assert_ne!(rebuilt.diff_id, kept.unpacked.diff_id, "one byte");
    assert_eq!(rebuilt.size, kept.unpacked.archive);

    type Damage = fn(&Path);
    let kinds: [(Damage, &str); 6] = [
        (|at| fs::write(at, "root").unwrap(), "has 4 bytes, and 10 were unpacked"),
        (|at| fs::write(at, "root:x:0:0:more").unwrap(), "has 15 bytes, and 10 were unpacked"),
        (|at| fs::remove_file(at).unwrap(), "stat: No such file"),
        (|at| fs::remove_dir_all(at.parent().unwrap()).unwrap(), "etc"),
        (
            |at| {
                fs::remove_file(at).unwrap();
                symlink("empty", at).unwrap();
            },
            "is no regular file any more",
        ),
        (
            |at| {
                fs::remove_file(at).unwrap();
                nix::unistd::mkfifo(at, nix::sys::stat::Mode::S_IRWXU).unwrap();
            },
            "is no regular file any more",
        ),
    ];
    for (damage, expected) in kinds {
        let mut kept = fresh();
        damage(&file(&kept));
        let error = kept.rebuild().unwrap_err().to_string();
        assert!(error.contains("etc/passwd") && error.contains(expected), "{error}");
    }
}

#[test]
fn whoever_takes_no_more_ends_it() {
    let mut kept = Kept::new(&Archive::new().file("a", "some content").end());
    let (headers, mut room) = (kept.headers(), [0; 700]);
    let ended = rebuild(&headers[..], &kept.place.target(), &mut room[..]);
    assert!(matches!(ended, Err(RebuildError::Sink(_))), "{ended:?}");
}

/// One entry with its extensions.
#[derive(Debug, Clone)]
enum Step {
    File(Vec<u8>),
    Directory,
    Symlink,
    Hardlink,
    Whiteout(Vec<u8>),
    Opaque,
    LongName(Vec<u8>),
    Pax(Vec<u8>),
    Comment,
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(Vec::new()), vec(any::<u8>(), 1..1500), Just(vec![9; 512]), Just(vec![9; 300_000])]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => content().prop_map(Step::File),
        1 => Just(Step::Directory),
        1 => Just(Step::Symlink),
        2 => Just(Step::Hardlink),
        1 => content().prop_map(Step::Whiteout),
        1 => Just(Step::Opaque),
        1 => content().prop_map(Step::LongName),
        2 => content().prop_map(Step::Pax),
        1 => Just(Step::Comment),
    ]
}

/// Puts steps together: directories and links are used by those after them, and `padding` stands where zeros are usual.
fn archive(steps: &[Step], padding: u8, tail: &[u8]) -> Vec<u8> {
    let mut archive = Archive::new().file("first", "a target for links");
    let (mut at, mut last) = (String::new(), "first".to_owned());
    let long = "a-part-of-a-long-name".repeat(8);
    for (number, step) in steps.iter().enumerate() {
        let name = format!("{at}n{number}");
        let edit = |block: &mut crate::archive::Block| crate::archive::put(block, 329, b"0000001\0");
        match step {
            Step::File(content) => {
                archive = archive.entry(b'0', &name, content, |_| {});
                last = name;
            }
            Step::Directory => {
                archive = archive.dir(&name, 0o750);
                at = format!("{name}/");
            }
            Step::Symlink => {
                archive = archive.symlink(&name, &format!("elsewhere{number}"));
                at = format!("{name}/");
            }
            Step::Hardlink => archive = archive.hardlink(&name, &last),
            Step::Whiteout(content) => {
                archive = archive.entry(b'0', &format!("{at}.wh.x{number}"), content, edit);
            }
            Step::Opaque => archive = archive.file(&format!("{at}.wh..wh..opq"), ""),
            Step::LongName(content) => {
                let long = format!("{name}-{long}");
                let text = [long.as_bytes(), b"\0"].concat();
                archive = archive.entry(b'L', "././@LongLink", &text, |_| {});
                archive = archive.entry(b'0', &long[..90], content, |_| {});
            }
            Step::Pax(content) => {
                let long = format!("{name}-{long}");
                archive = archive.pax(&[
                    ("path", long.as_bytes()),
                    ("mtime", b"1.5"),
                    ("SCHILY.xattr.user.a", b"b"),
                ]);
                archive = archive.entry(b'0', "short", content, |_| {});
            }
            Step::Comment => archive = archive.entry(b'g', "global", b"13 comment=a\n", |_| {}),
        }
        let end = archive.0.len();
        if let Step::File(content) | Step::Whiteout(content) | Step::LongName(content) | Step::Pax(content) =
            step
        {
            let odd = content.len().next_multiple_of(512) - content.len();
            archive.0[end - odd..].fill(padding);
        }
    }
    [archive.0, tail.to_vec()].concat()
}

/// What archives end with: nothing, or zeros, and whatever was left in a buffer.
fn tail() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        Just(vec![0; 512]),
        Just(vec![0; 1024]),
        Just(vec![0; 10_240]),
        vec(any::<u8>(), 0..2000).prop_map(|rest| [vec![0; 1024], rest].concat()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_archive_comes_back(steps in vec(step(), 0..12), padding in any::<u8>(), tail in tail()) {
        let archive = archive(&steps, padding, &tail);
        let mut kept = Kept::new(&archive);
        prop_assert!(!kept.unpacked.replaced);
        kept.assert_comes_back(&archive, "random");
    }

    /// Kept headers are on a disk: whatever they became, nothing but an error or another archive comes of them.
    #[test]
    fn damaged_headers_do_no_harm(flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let archive = Archive::new().dir("d", 0o755).file("d/a", "one").symlink("out", "/canary").end();
        let mut kept = Kept::new(&archive);
        let mut headers = kept.headers();
        for (at, value) in flips {
            let at = at.index(headers.len());
            headers[at] = value;
        }
        let found = rebuild(&headers[..], &kept.place.target(), std::io::sink());
        prop_assert!(found.is_err() || found.unwrap().diff_id == kept.unpacked.diff_id);
        kept.place.assert_canary("damaged headers");
    }
}
