//! Packages of a Debian root, downloaded and verified by debootstrap, which installs nothing of them.

use std::fs;
use std::path::{Path, PathBuf};

use cove_e2e::{Outcome, cni};

/// Where they come from.
const MIRROR: &str = "http://deb.debian.org/debian";

/// The packages of `suite`, by name.
pub(crate) fn packages(cache: &Path, suite: &str, variant: &str) -> Outcome<Vec<PathBuf>> {
    let directory = cache.join(format!("{suite}-{variant}"));
    let archives = directory.join("var/cache/apt/archives");
    let whole = directory.join("whole");
    if !whole.exists() {
        let target = directory.display().to_string();
        let variant = format!("--variant={variant}");
        cni::run("debootstrap", &["--download-only", &variant, suite, &target, MIRROR])?;
        fs::write(&whole, "")?;
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
