//! The inputs that fuzzing kept (`hack/fuzz`), read by each test run.

use std::path::Path;

use crate::place::Place;

#[test]
fn inputs_of_the_corpus_change_nothing_outside() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/tar");
    let mut files = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let place = Place::new();
        let _any_outcome = place.unpack(&std::fs::read(&path).unwrap());
        place.assert_canary(&path.display().to_string());
        files += 1;
    }
    assert!(files > 3, "the corpus has {files} files");
}
