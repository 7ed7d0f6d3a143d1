//! A layer is unpacked below a directory of its own; whatever it says, nothing beside that directory changes.
#![no_main]

use std::io::Read;

use cove_layer::{Compression, Limits};

#[path = "../../runtime/layer/tests/layer/place.rs"]
#[allow(dead_code, reason = "the tests of the layer use more of it")]
mod place;

/// Far below what a production image may have: an input that takes long is not what is looked for.
const LIMITS: Limits = Limits {
    size: 1 << 20,
    expansion: 100,
    expansion_free: 1 << 20,
    entries: 200,
    path: 4095,
    component: 255,
    headers: 64 << 10,
    pax_record: 64 << 10,
    xattr_value: 64 << 10,
    implicit: 64 << 10,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let place = place::Place::new();
    let _any_outcome = place.unpack_from(bytes.take(1 << 20), Compression::Detect, &LIMITS);
    place.assert_canary("fuzz");
});
