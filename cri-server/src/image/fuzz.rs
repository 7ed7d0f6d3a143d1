//! What reads text from outside, for the fuzz targets (`fuzz/`): bytes in; what must hold of the outcome is asserted here.
//! The committed inputs are read by each test run too.

use std::path::Path;

use super::auth::challenge;
use super::bounds::Bounds;
use super::manifest::{self, Parsed};
use super::reference::{Reference, Selector};
use super::transport::Transport;
use super::{Options, config, hosts};

/// One target: what `cargo fuzz` calls it, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 6] = [
    ("manifest", manifest),
    ("index", index),
    ("config", config),
    ("reference", reference),
    ("auth_header", auth_header),
    ("hosts", hosts),
];

/// A manifest as a registry sends it, with and without a media type beside it.
pub fn manifest(bytes: &[u8]) {
    let bounds = Bounds { layers: 5, ..Bounds::default() };
    for expected in [None, Some("application/vnd.oci.image.manifest.v1+json")] {
        if let Ok(Parsed::Manifest(read)) = manifest::parse(bytes, expected, &bounds) {
            assert!((1..=bounds.layers).contains(&read.layers.len()), "{read:?}");
            assert!(read.layers.iter().all(|layer| layer.blob.size <= bounds.blob_bytes), "{read:?}");
        }
    }
}

/// An index: what is looked at of it is some of its entries, and for this machine if any is.
pub fn index(bytes: &[u8]) {
    let bounds = Bounds { index_entries: 5, ..Bounds::default() };
    if let Ok(Parsed::Index(entries)) = manifest::parse(bytes, None, &bounds) {
        assert!(entries.len() <= bounds.index_entries, "{entries:?}");
        let candidates = manifest::candidates(&entries);
        assert!(candidates.iter().all(|candidate| entries.contains(candidate)), "{candidates:?}");
        assert!(
            candidates.len() <= 1 || candidates.iter().all(|candidate| candidate.platform.is_none()),
            "{candidates:?}"
        );
    }
}

/// A config: it names as many layers as its manifest does.
pub fn config(bytes: &[u8]) {
    for layers in [1, 2] {
        if let Ok(read) = config::parse(bytes, layers) {
            assert_eq!(read.diff_ids.len(), layers);
        }
    }
}

/// A reference: its own text means the same again, and none of its parts leads a path or a request elsewhere.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(read) = Reference::parse(text) else { return };
    assert_eq!(Reference::parse(&read.to_string()).ok().as_ref(), Some(&read));
    let plain =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/:[]".contains(&byte));
    assert!(plain(&read.name()) && plain(&read.selector_text()), "{read}");
    assert!(
        read.path().split('/').all(|part| !matches!(part, "" | "." | "..")),
        "{read} holds a part that is no name"
    );
    if let Selector::Tag(tag) = &read.selector {
        assert!(!tag.contains('/'), "{read}");
    }
}

/// A `WWW-Authenticate` header.
pub fn auth_header(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let longest = challenge::parse(text).iter().map(|challenge| format!("{challenge:?}").len()).max();
    // Each byte is shown as ten at most: what is kept cannot be more than what was sent.
    assert!(longest.unwrap_or(0) <= 200 + 16 * text.len().max(8), "{text:?}");
}

/// A `hosts.toml`: the registry itself is asked at the end, or the one that the file names for it.
pub fn hosts(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let transport = Transport::new(Options::default().transport());
    let Ok(asked) = Reference::parse("registry.example/name") else { return };
    let Ok(upstream) = hosts::upstream(&asked, &transport) else { return };
    if let Ok(read) = hosts::file::parse(text, Path::new("/nonexistent"), &asked, upstream, &transport) {
        assert!(!read.is_empty(), "nobody is asked: {text:?}");
        assert!(read.iter().all(|host| !host.base.ends_with('/')), "{read:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Inputs that were found once are read for ever: each target has some, and no directory is without a target.
    #[test]
    fn the_corpus_is_read() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        let mut left: BTreeSet<_> = std::fs::read_dir(&corpus)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        // Of cove-layer, whose tests read it.
        assert!(left.remove("tar"));
        for (name, run) in TARGETS {
            assert!(left.remove(name), "{name} has no corpus");
            let mut files = 0;
            for entry in std::fs::read_dir(corpus.join(name)).unwrap() {
                run(&std::fs::read(entry.unwrap().path()).unwrap());
                files += 1;
            }
            assert!(files > 3, "{name} has {files} inputs");
        }
        assert_eq!(left, BTreeSet::new(), "directories without a target");
    }
}
