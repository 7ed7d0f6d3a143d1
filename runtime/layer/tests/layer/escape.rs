//! Archives that try to leave the target (A26, A52, A61, E12). Each case says what must come of it; for all of them the
//! canary is the same afterwards.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::archive::Archive;
use crate::place::{CANARY, Place};

/// `Ok`: it is unpacked, and these paths exist. `Err`: a part of the message.
type Outcome = Result<&'static [&'static str], &'static str>;

/// Adds one entry named `x`.
type Step = fn(Archive) -> Archive;

fn check(case: &str, make: impl FnOnce(&str) -> Archive, outcome: Outcome) -> Place {
    let place = Place::new();
    let archive = make(CANARY).end();
    let found = place.unpack(&archive);
    place.assert_canary(case);
    match (&found, outcome) {
        (Ok(_), Ok(paths)) => {
            for path in paths {
                assert!(place.target().join(path).symlink_metadata().is_ok(), "{case}: {path} is missing");
            }
        }
        (Err(error), Err(part)) => {
            let message = error.to_string();
            assert!(message.contains(part), "{case}: {message}");
        }
        _ => panic!("{case}: expected {outcome:?}, found {found:?}"),
    }
    place
}

#[test]
fn symlinks_as_parents() {
    check("absolute", |canary| Archive::new().symlink("d", canary).file("d/new", "x"), Ok(&["d"]));
    check(
        "relative",
        |_| Archive::new().symlink("d", "../canary").file("d/new", "x"),
        Ok(&["d", "canary/new"]),
    );
    check(
        "the published proof of A52",
        |_| Archive::new().symlink("etc", "../../../../../../../../canary").file("etc/mtab", "x"),
        Ok(&["canary/mtab"]),
    );
    check(
        "link to a link",
        |_| Archive::new().symlink("a", "b").symlink("b", "/").file("a/canary/file", "x"),
        Ok(&["canary/file"]),
    );
    check(
        "loop",
        |_| Archive::new().symlink("a", "b").symlink("b", "a").file("a/x", "x"),
        Err("symbolic links"),
    );
    check(
        "file through a link to a file",
        |canary| Archive::new().symlink("f", &format!("{canary}/file")).file("f", "overwritten"),
        Ok(&["f"]),
    );
    check(
        "parent replaced by a link",
        |canary| Archive::new().dir("d", 0o755).file("d/a", "x").symlink("d", canary).file("d/file", "x"),
        Ok(&["d"]),
    );
    check(
        "magic link",
        |_| Archive::new().symlink("p", "/proc/self/cwd").file("p/x", "x"),
        Ok(&["proc/self/cwd/x"]),
    );
}

#[test]
fn metadata_never_follows() {
    let place = check(
        "directory through a symlink, then chmod",
        |canary| Archive::new().symlink("d", canary).dir("d", 0o777),
        Ok(&["d"]),
    );
    let mode = fs::symlink_metadata(place.target().join("d")).unwrap().mode();
    assert_eq!(mode, 0o40777, "the link is replaced by a directory");

    let place = check(
        "hard link to a symlink, then chmod",
        |canary| Archive::new().symlink("s", &format!("{canary}/file")).hardlink("h", "s").file("h", "x"),
        Ok(&["s", "h"]),
    );
    assert!(fs::symlink_metadata(place.target().join("s")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(place.target().join("h")).unwrap().is_file());

    check(
        "hard link to a symlink that carries a mode and an attribute",
        |canary| {
            Archive::new().symlink("s", &format!("{canary}/dir")).pax(&[("SCHILY.xattr.user.x", b"1")]).entry(
                b'1',
                "h",
                b"",
                |block| {
                    crate::archive::put(block, 100, b"0007777\0");
                    crate::archive::put(block, 157, b"s");
                },
            )
        },
        Ok(&["h"]),
    );
}

#[test]
fn hard_links() {
    let cases: [(&str, &str, Outcome); 9] = [
        ("absolute, outside", "/canary/file", Err("target is missing")),
        ("dots", "../canary/file", Err("\"..\"")),
        ("directory", "d", Err("target is missing or a directory")),
        ("root", "/", Err("target is missing or a directory")),
        ("empty", "", Err("no usable target")),
        ("missing", "nothing", Err("target is missing")),
        ("through a file", "f/x", Err("target is missing")),
        ("itself", "h", Err("target is missing")),
        ("whiteout", "gone", Err("target is missing")),
    ];
    for (case, target, outcome) in cases {
        let base = Archive::new().dir("d", 0o755).file("f", "x").file(".wh.gone", "");
        check(case, |_| base.hardlink("h", target), outcome);
    }
    check(
        "through a symlink, outside",
        |canary| Archive::new().symlink("d", canary).hardlink("h", "d/file"),
        Err("target is missing"),
    );
    let place = check(
        "through a symlink, inside",
        |_| Archive::new().dir("r", 0o755).file("r/f", "same").symlink("d", "/r").hardlink("x/h", "d/f"),
        Ok(&["x/h"]),
    );
    assert_eq!(fs::symlink_metadata(place.target().join("r/f")).unwrap().nlink(), 2);
    check(
        "a second time",
        |_| Archive::new().file("f", "x").hardlink("h", "f").hardlink("h", "f"),
        Ok(&["h"]),
    );
    check("to itself", |_| Archive::new().file("f", "x").hardlink("f", "./f"), Ok(&["f"]));
}

#[test]
fn names() {
    check("absolute", |canary| Archive::new().file(&format!("{canary}/new"), "x"), Ok(&[]));
    for name in ["..", "../canary/file", "a/../../canary/file", "/..", "./..", "a/..", "../target/x"] {
        check(name, |_| Archive::new().file(name, "x"), Err("\"..\""));
        check(name, |_| Archive::new().dir(name, 0o777), Err("\"..\""));
        check(name, |_| Archive::new().symlink(name, "x"), Err("\"..\""));
        check(
            name,
            |_| Archive::new().pax(&[("path", name.as_bytes())]).file("innocent", "x"),
            Err("\"..\""),
        );
    }
}

#[test]
fn the_root_is_special() {
    for name in ["", ".", "./", "/", "//", "./."] {
        check(name, |_| Archive::new().dir(name, 0o750), Ok(&[""]));
        check(name, |canary| Archive::new().symlink(name, canary), Err("only be a directory"));
        check(name, |_| Archive::new().file("f", "x").hardlink(name, "f"), Err("only be a directory"));
        check(name, |_| Archive::new().device(b'3', name, "1", "3"), Err("only be a directory"));
        check(name, |_| Archive::new().entry(b'6', name, b"", |_| {}), Err("only be a directory"));
        check(name, |_| Archive::new().entry(b'7', name, b"x", |_| {}), {
            if name.ends_with('/') { Err("ends in a slash") } else { Err("only be a directory") }
        });
    }
    let place = check("mode", |_| Archive::new().dir("./", 0o1750).file("f", "x"), Ok(&["f"]));
    let root = fs::metadata(place.target()).unwrap();
    assert_eq!(root.mode() & 0o7777, 0o1750);
    assert_eq!(root.mtime(), 0o14_000_000_000, "entries made later do not change a directory's time");
}

#[test]
fn whiteouts_of_nothing() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh...", "./.wh..", ".wh.d/x"] {
        check(
            name,
            |_| Archive::new().dir("d", 0o755).file(name, ""),
            Err("names nothing that can be hidden"),
        );
    }
    check(
        "through a symlink",
        |canary| Archive::new().symlink("d", canary).file("d/.wh.file", ""),
        Ok(&["d"]),
    );
    check(
        "opaque through a symlink",
        |_| Archive::new().symlink("d", "../canary").file("d/.wh..wh..opq", ""),
        Ok(&["d"]),
    );
}

#[test]
fn one_thing_in_place_of_another() {
    let kinds: [(&str, Step); 5] = [
        ("file", |archive| archive.file("x", "new")),
        ("directory", |archive| archive.dir("x", 0o755)),
        ("symlink", |archive| archive.symlink("x", "../canary")),
        ("hard link", |archive| archive.hardlink("x", "other")),
        ("device", |archive| archive.device(b'3', "x", "1", "3")),
    ];
    for (first_name, first) in kinds {
        for (second_name, second) in kinds {
            let case = format!("{first_name}, then {second_name}");
            let made = |archive: Archive| first(archive.file("other", "same"));
            check(&case, |_| second(made(Archive::new())), Ok(&["x", "other"]));
        }
    }
    let place = check(
        "a whole tree by a file",
        |canary| Archive::new().file("t/a/b/c", "x").symlink("t/a/out", canary).file("t", "file"),
        Ok(&["t"]),
    );
    assert_eq!(fs::read(place.target().join("t")).unwrap(), b"file");
    check("a file as parent", |_| Archive::new().file("f", "x").file("f/y", "x"), Err("Not a directory"));
}
