//! Archives that are wrong, lie, or cost too much (A56, A62, E32, E33). All end in a named error, with the canary as it was.

use std::io::Write;

use cove_layer::{Compression, LayerError, Limits, unpack};

use crate::archive::{Archive, Block, put};
use crate::place::Place;

fn fails(case: &str, archive: &[u8], part: &str) {
    fails_within(case, archive, part, &Limits::default());
}

fn fails_within(case: &str, archive: &[u8], part: &str, limits: &Limits) {
    let place = Place::new();
    let message = match place.unpack_within(archive, limits) {
        Err(error) => error.to_string(),
        Ok(unpacked) => panic!("{case}: unpacked as {unpacked:?}"),
    };
    assert!(message.contains(part), "{case}: {message}");
    assert!(message.len() < 2000, "{case}: a message of {} bytes", message.len());
    place.assert_canary(case);
}

#[test]
fn numbers() {
    let two_to_63 = b"\x80\0\0\0\x80\0\0\0\0\0\0\0";
    let minus_one = [0xff; 12];
    let edits: [(&str, usize, &[u8], &str); 11] = [
        ("size -1", 124, &minus_one, "size is out of range"),
        ("size in letters", 124, b"1234567890x\0", "size is not a number"),
        ("size 2^63", 124, two_to_63, "limit size"),
        ("uid 2^32", 108, b"\x80\0\0\x01\0\0\0\0", "uid is out of range"),
        ("uid -1", 108, &minus_one[..8], "uid is out of range"),
        ("uid 2^32-1", 108, b"\x80\0\0\0\xff\xff\xff\xff", "uid is out of range"),
        ("gid 2^32-1", 116, b"\x80\0\0\0\xff\xff\xff\xff", "gid is out of range"),
        ("mtime 2^63", 136, two_to_63, "mtime is out of range"),
        ("mtime in decimal", 136, b"18888888888\0", "mtime is not a number"),
        ("mode -1", 100, &minus_one[..8], "mode is out of range"),
        ("mode in letters", 100, b"rwxr-xr\0", "mode is not a number"),
    ];
    for (case, at, value, part) in edits {
        let archive = Archive::new().entry(b'0', "f", b"", |block| put(block, at, value)).end();
        fails(case, &archive, part);
        let place = Place::new();
        assert!(place.unpack(&archive).is_err());
        assert!(!place.target().join("f").exists(), "{case}: made before it was checked");
    }
    for (key, value, part) in [
        ("size", "18446744073709551616", "size is out of range"),
        ("size", "-1", "size is not a number"),
        ("uid", "4294967295", "uid is out of range"),
        ("gid", "4294967296", "gid is out of range"),
        ("mtime", "9223372036854775808", "mtime is out of range"),
        ("mtime", "nan", "mtime is not a number"),
    ] {
        let archive = Archive::new().pax(&[(key, value.as_bytes())]).file("f", "").end();
        fails(&format!("PAX {key}={value}"), &archive, part);
    }
}

#[test]
fn numbers_at_the_edge() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let archive = Archive::new()
        .pax(&[("uid", b"4294967294"), ("gid", b"4294967294"), ("mtime", b"-62135596800.5")])
        .file("f", "x")
        .end();
    place.unpack(&archive).unwrap();
    let metadata = std::fs::metadata(place.target().join("f")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (4_294_967_294, 4_294_967_294));
}

#[test]
fn devices() {
    for (case, major, minor, part) in [
        ("0:0", "0", "0", "would hide files"),
        ("empty", "", "", "would hide files"),
        ("major 2^12", "10000", "0", "devmajor is out of range"),
        ("minor 2^20", "1", "4000000", "devminor is out of range"),
        ("no number", "x", "1", "devmajor is not a number"),
    ] {
        fails(case, &Archive::new().device(b'3', "n", major, minor).end(), part);
    }
    let minus_one = |block: &mut Block| put(block, 329, &[0xff; 8]);
    fails("major -1", &Archive::new().entry(b'4', "n", b"", minus_one).end(), "devmajor is out of range");
}

#[test]
fn cut_off_anywhere() {
    let whole = Archive::new().pax(&[("path", b"long")]).file("f", "content").dir("d", 0o755).0;
    // Every block boundary is a multiple of 32, and so are its neighbours one off.
    for cut in (0..whole.len()).filter(|cut| matches!(cut % 32, 0 | 1 | 31)) {
        let place = Place::new();
        let outcome = place.unpack(&whole[..cut]);
        // Only between entries an end is an end.
        assert_eq!(outcome.is_ok(), [0, 2048].contains(&cut), "cut at {cut}: {outcome:?}");
    }
}

#[test]
fn bodies_and_ends() {
    let long = Archive::new().entry(b'0', "f", b"short", |block| put(block, 124, b"00000002000\0")).0;
    fails("body shorter than its header", &long, "cut off");
    let short =
        Archive::new().entry(b'0', "f", &[b'x'; 1024], |block| put(block, 124, b"00000000100\0")).end();
    fails("body longer than its header", &short, "checksum");
    fails("no archive", b"<html>404</html>", "cut off");
    fails("text of a block", &[b'x'; 1024], "checksum");
    let mut lone = Archive::new().file("a", "x").0;
    lone.resize(lone.len() + 512, 0);
    lone.extend(Archive::new().file("b", "x").end());
    fails("lone zero block", &lone, "zero block");
    let mut trailing = Archive::new().file("a", "x").end();
    trailing.extend(Archive::new().file("../canary/x", "x").0);
    let place = Place::new();
    let unpacked = place.unpack(&trailing).unwrap();
    assert_eq!(unpacked.entries, 1, "what follows the end means nothing");
    assert_eq!(unpacked.diff_id, cove_layer::Digest::of(cove_layer::Algorithm::Sha256, &trailing));
    place.assert_canary("trailing");
}

#[test]
fn extension_headers() {
    let claim = |kind, size: &[u8]| {
        Archive::new().entry(kind, "h", b"", |block| put(block, 124, size)).file("f", "").end()
    };
    for kind in [b'x', b'g', b'L', b'K'] {
        fails("1 GiB", &claim(kind, b"10000000000\0"), "limit headers");
        fails("2^63", &claim(kind, b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), "limit headers");
    }
    let chain = (0..3000).fold(Archive::new(), |archive, _| archive.entry(b'g', "g", b"", |_| {}));
    fails("endless global headers", &chain.file("f", "").end(), "limit headers");
    let twice = |kind| Archive::new().entry(kind, "h", b"a\0", |_| {}).entry(kind, "h", b"b\0", |_| {});
    fails("two long names", &twice(b'L').file("f", "").end(), "more than once");
    fails("two long links", &twice(b'K').symlink("f", "x").end(), "more than once");
    let pax = Archive::new().pax(&[("path", b"a")]);
    fails("two PAX headers", &pax.clone().pax(&[("path", b"b")]).file("f", "").end(), "more than once");
    fails("header without entry", &pax.clone().end(), "without an entry");
    let both = pax.entry(b'L', "h", b"b\0", |_| {}).file("f", "").end();
    fails("GNU and PAX names differ", &both, "path differs");
    let size = Archive::new().pax(&[("size", b"0")]).file("f", "smuggled").end();
    fails("PAX and ustar sizes differ", &size, "size differs");
    for (key, what) in [("path", "path"), ("size", "size"), ("SCHILY.xattr.user.a", "xattr"), ("uid", "uid")]
    {
        let content = format!("{} {key}=1\n", key.len() + 6);
        let global = Archive::new().entry(b'g', "g", content.as_bytes(), |_| {}).file("f", "");
        let message = if content.len() == key.len() + 6 { what } else { "malformed" };
        fails("global", &global.end(), message);
    }
}

#[test]
fn what_is_not_supported() {
    fails("GNU sparse", &Archive::new().entry(b'S', "s", b"", |_| {}).end(), "sparse");
    for key in ["GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.numblocks", "SCHILY.realsize"] {
        fails(key, &Archive::new().pax(&[(key, b"1")]).file("f", "").end(), "sparse");
    }
    for kind in [b'M', b'D', b'V', b'A', b'8', 0xff] {
        fails("type", &Archive::new().entry(kind, "n", b"", |_| {}).end(), "not supported");
    }
    for kind in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let archive = Archive::new().entry(kind, "n", b"body", |block| {
            put(block, 157, b"x");
            put(block, 329, b"0000001\0");
        });
        fails("size on what has none", &archive.end(), "has a size");
    }
    fails("file with a slash", &Archive::new().file("f/", "x").end(), "ends in a slash");
}

#[test]
fn long_names_and_attributes() {
    for (length, part) in
        [(255, None), (256, Some("limit component")), (4096, Some("limit")), (65_536, Some("limit"))]
    {
        let name = "x".repeat(length);
        for archive in [
            Archive::new().pax(&[("path", name.as_bytes())]).file("f", "x").end(),
            Archive::new().entry(b'L', "h", format!("{name}\0").as_bytes(), |_| {}).file("f", "x").end(),
        ] {
            match part {
                Some(part) => fails("long name", &archive, part),
                None => assert!(Place::new().unpack(&archive).is_ok()),
            }
        }
    }
    let deep = format!("{}/", "d".repeat(203)).repeat(20) + "fffffffffffffff";
    assert_eq!(deep.len(), 4095);
    let unpacked =
        Place::new().unpack(&Archive::new().pax(&[("path", deep.as_bytes())]).file("f", "x").end());
    assert_eq!(unpacked.unwrap().implicit.len(), 20, "the longest path that the kernel takes");
    let target = "t".repeat(4096);
    fails(
        "long link",
        &Archive::new().pax(&[("linkpath", target.as_bytes())]).symlink("l", "x").end(),
        "limit path",
    );
    let key = |name: &str| format!("SCHILY.xattr.{name}");
    let large = vec![b'v'; 65 << 10];
    fails(
        "attribute of 65 KiB",
        &Archive::new().pax(&[(&key("user.a"), &large)]).file("f", "").end(),
        "limit xattr",
    );
    for name in
        ["", "user.", &format!("user.{}", "n".repeat(252)), "user.overlay.opaque", "trusted.overlay.redirect"]
    {
        let unpacked = Place::new().unpack(&Archive::new().pax(&[(&key(name), b"v")]).file("f", "").end());
        assert_eq!(unpacked.unwrap().skipped_xattrs, 1, "{name}");
    }
}

#[test]
fn limits_by_name() {
    let three = Archive::new().file("a", "x").file("b", "x").file("c/d", "x").end();
    let limit = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        limits
    };
    fails_within("entries", &three, "limit entries = 2", &limit(|limits| limits.entries = 2));
    fails_within("size", &three, "limit size = 600", &limit(|limits| limits.size = 600));
    fails_within("path", &three, "limit path = 2", &limit(|limits| limits.path = 2));
    fails_within("implicit", &three, "limit implicit = 0", &limit(|limits| limits.implicit = 0));
    let many = Archive::new().file("a/b/c/d/e/f", "x").end();
    fails_within("parents", &many, "limit entries = 3", &limit(|limits| limits.entries = 3));
}

#[test]
fn compressed_forms() {
    let plain = Archive::new().file("f", &"content ".repeat(1000)).end();
    let gzip = |content: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = zstd::encode_all(&plain[..], 3).unwrap();
    let members = [gzip(&plain[..700]), gzip(&plain[700..])].concat();
    let diff_id = Place::new().unpack(&plain).unwrap().diff_id;
    for form in [&members, &zstd] {
        assert_eq!(Place::new().unpack(form).unwrap().diff_id, diff_id);
        fails("cut off", &form[..form.len() - 5], "decompress");
    }
    // The checksum of a gzip member covers all of it; a zstd frame need not have one, and the diff ID speaks then.
    for (form, at) in [(gzip(&plain), 60), (gzip(&plain), 40), (zstd, 30)] {
        let mut broken = form;
        broken[at] ^= 0x55;
        let outcome = Place::new().unpack(&broken);
        assert_ne!(outcome.as_ref().ok().map(|unpacked| &unpacked.diff_id), Some(&diff_id), "{outcome:?}");
    }
    let garbage = [&members[..], b"trailing garbage"].concat();
    fails("garbage after gzip", &garbage, "decompress");
    let place = Place::new();
    let wrong = place.unpack_from(&plain[..], Compression::Gzip, &Limits::default());
    assert!(matches!(wrong, Err(LayerError::Decompress(_))), "{wrong:?}");
}

#[test]
fn bombs() {
    let zeros = std::io::Read::take(std::io::repeat(0), 8 << 20);
    let mut encoder = flate2::read::GzEncoder::new(zeros, flate2::Compression::best());
    let mut bomb = Vec::new();
    std::io::Read::read_to_end(&mut encoder, &mut bomb).unwrap();
    let limits = Limits { expansion_free: 1 << 20, ..Limits::default() };
    fails_within("expansion", &bomb, "limit expansion = 1000", &limits);

    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(28).unwrap();
    encoder.write_all(&Archive::new().file("f", "x").end()).unwrap();
    let wide = encoder.finish().unwrap();
    fails("a window of 256 MiB", &wide, "decompress");
}

#[test]
fn a_source_that_fails() {
    struct Failing(usize);
    impl std::io::Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::Error::new(std::io::ErrorKind::ConnectionReset, "gone"));
            }
            self.0 -= 1;
            buffer[0] = 0x1f;
            Ok(1)
        }
    }
    for reads in [0, 3] {
        let place = Place::new();
        let outcome = place.unpack_from(Failing(reads), Compression::None, &Limits::default());
        assert!(matches!(outcome, Err(LayerError::Source(_))), "{outcome:?}");
    }
}

#[test]
fn a_target_in_use() {
    let place = Place::new();
    std::fs::write(place.target().join("x"), "").unwrap();
    assert!(matches!(place.unpack(&Archive::new().end()), Err(LayerError::TargetNotEmpty)));
    let missing = unpack(&b""[..], Compression::None, &place.target().join("none"), None, &Limits::default());
    assert!(matches!(missing, Err(LayerError::Target(_))));
}
