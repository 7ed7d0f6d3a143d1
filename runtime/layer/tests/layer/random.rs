//! Whatever comes in: no panic, and nothing outside the target.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::archive::Archive;
use crate::place::Place;

/// Parts that names and targets are put together from.
const PARTS: [&str; 12] =
    ["a", "b", "canary", "file", "..", ".", "", "/", ".wh.a", ".wh..wh..opq", ".wh..", "target"];

fn name() -> impl Strategy<Value = String> {
    vec(proptest::sample::select(&PARTS[..]), 1..4).prop_map(|parts| parts.join("/"))
}

#[derive(Debug, Clone)]
struct Step {
    kind: u8,
    name: String,
    target: String,
    content: Vec<u8>,
    flips: Vec<(usize, u8)>,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        8 => proptest::sample::select(&b"0123456x"[..]),
        1 => any::<u8>(),
    ];
    let flips = prop_oneof![4 => Just(Vec::new()), 1 => vec((0..512_usize, any::<u8>()), 1..4)];
    let content = prop_oneof![2 => Just(Vec::new()), 1 => vec(any::<u8>(), 0..700)];
    (kind, name(), name(), content, flips).prop_map(|(kind, name, target, content, flips)| Step {
        kind,
        name,
        target,
        content,
        flips,
    })
}

fn archive(steps: &[Step]) -> Vec<u8> {
    let mut archive = Archive::new();
    for step in steps {
        // Content where it is an error ends most archives early.
        let content: &[u8] = if matches!(step.kind, b'1'..=b'6') { b"" } else { &step.content };
        archive = archive.entry(step.kind, &step.name, content, |block| {
            crate::archive::put(block, 157, step.target.as_bytes());
            crate::archive::put(block, 329, b"0000001\0");
            for (at, value) in &step.flips {
                block[*at] = *value;
            }
        });
    }
    archive.end()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes(content in vec(any::<u8>(), 0..3000)) {
        let place = Place::new();
        let _any_outcome = place.unpack(&content);
        place.assert_canary("bytes");
    }

    #[test]
    fn archives(steps in vec(step(), 1..12)) {
        let place = Place::new();
        let _any_outcome = place.unpack(&archive(&steps));
        place.assert_canary("archives");
    }

    #[test]
    fn changed_archives(steps in vec(step(), 1..6), flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut content = archive(&steps);
        for (at, value) in flips {
            let at = at.index(content.len());
            content[at] = value;
        }
        let place = Place::new();
        let _any_outcome = place.unpack(&content);
        place.assert_canary("changed archives");
    }
}
