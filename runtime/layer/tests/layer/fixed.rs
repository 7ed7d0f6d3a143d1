//! Directories that no entry names, in a stack of layers.

use std::fs;
use std::os::unix::fs::MetadataExt;

use cove_layer::{Stacked, Unpacked, fix_up};

use crate::archive::{Archive, put};
use crate::place::Place;

/// Unpacks the layers, lowest first, and makes the one for the top.
fn stack(archives: Vec<Archive>) -> (u64, Place, Vec<Place>) {
    let places: Vec<(Place, Unpacked)> = archives
        .into_iter()
        .map(|archive| {
            let place = Place::new();
            let unpacked = place.unpack(&archive.end()).unwrap();
            (place, unpacked)
        })
        .collect();
    let targets: Vec<_> = places.iter().map(|(place, _)| place.target()).collect();
    let layers: Vec<_> = targets
        .iter()
        .zip(&places)
        .map(|(path, (_, unpacked))| Stacked { path, implicit: &unpacked.implicit })
        .collect();
    let top = Place::new();
    let made = fix_up(&layers, &top.target()).unwrap();
    (made, top, places.into_iter().map(|(place, _)| place).collect())
}

fn mode(place: &Place, path: &str) -> Option<u32> {
    fs::symlink_metadata(place.target().join(path)).ok().map(|found| found.mode() & 0o7777)
}

#[test]
fn the_layer_that_names_it_decides() {
    let base = || {
        Archive::new().entry(b'5', "tmp", b"", |block| {
            put(block, 100, b"0001777\0");
            put(block, 108, b"0000007\0");
        })
    };
    let (made, top, _) =
        stack(vec![base(), Archive::new().file("tmp/a", "x"), Archive::new().file("tmp/b/c", "x")]);
    assert_eq!((made, mode(&top, "tmp"), mode(&top, "tmp/b")), (1, Some(0o1777), None));
    let found = fs::metadata(top.target().join("tmp")).unwrap();
    assert_eq!((found.uid(), found.mtime()), (7, 0o14_000_000_000));

    let (made, ..) = stack(vec![Archive::new().file("tmp/a", "x"), base()]);
    assert_eq!(made, 0, "named above");
    let (made, ..) = stack(vec![Archive::new().file("tmp/a", "x"), Archive::new().file("tmp/b", "x")]);
    assert_eq!(made, 0, "named nowhere");
}

#[test]
fn parents_look_as_before() {
    let base = Archive::new().dir("var", 0o711).dir("var/lib", 0o700).dir("var/lib/x", 0o750);
    let above = Archive::new().dir("var", 0o701).file("var/lib/x/f", "x");
    let (made, top, _) = stack(vec![base, above]);
    assert_eq!(made, 3);
    let modes = ["var", "var/lib", "var/lib/x"].map(|path| mode(&top, path));
    assert_eq!(modes, [Some(0o701), Some(0o700), Some(0o750)]);
    let times =
        ["var", "var/lib", "var/lib/x"].map(|path| fs::metadata(top.target().join(path)).unwrap().mtime());
    assert_eq!(times, [0o14_000_000_000; 3]);
}

#[test]
fn what_is_hidden_does_not_count() {
    let base = || Archive::new().dir("d", 0o700).dir("d/e", 0o700);
    let above = || Archive::new().file("d/e/f", "x");
    let hidden = |middle: Archive| {
        let (made, _, _) = stack(vec![base(), middle, above()]);
        made
    };
    assert_eq!(hidden(Archive::new().file("other", "x")), 2);
    assert_eq!(hidden(Archive::new().file(".wh.d", "")), 0, "whiteout");
    assert_eq!(hidden(Archive::new().symlink("d", "/etc")), 0, "symlink");
    assert_eq!(hidden(Archive::new().file("d", "x")), 0, "file");
    let opaque = Archive::new().dir("d", 0o711).file("d/.wh..wh..opq", "");
    let (made, top, _) = stack(vec![base(), opaque, above()]);
    assert_eq!((made, mode(&top, "d"), mode(&top, "d/e")), (1, Some(0o711), None), "opaque");
    let (made, ..) = stack(vec![base(), above(), Archive::new().file(".wh.d", "")]);
    assert_eq!(made, 0, "gone from the image");
    let (made, top, _) = stack(vec![base(), Archive::new().file("d/.wh.e", ""), above()]);
    assert_eq!((made, mode(&top, "d"), mode(&top, "d/e")), (1, Some(0o700), None));
}
