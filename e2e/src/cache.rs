//! Where the scripts in `hack/` keep what is built once.

use std::path::PathBuf;

/// A path in the cache: `bin/NAME` is a program of hack/deps.
pub fn cached(path: &str) -> PathBuf {
    std::env::var_os("COVE_CACHE")
        .map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/cove"),
            PathBuf::from,
        )
        .join(path)
}
