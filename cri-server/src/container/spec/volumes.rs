//! The VOLUMEs that an image declares: paths at which its containers expect a directory of their own. The words are the
//! image's, so they are hostile until they are looked at; where they lead is found out inside the root file system.

use std::path::{Path, PathBuf};

use cove_runtime::build::clean;
use serde_json::Value;

use crate::container::config::ContainerConfig;
use crate::error::Error;
use crate::image::ImageConfig;

/// PATH_MAX less its final NUL (limits.h).
const MAX_PATH: usize = 4095;
/// More than any image has; each is a mount of every container.
const MAX_VOLUMES: usize = 128;
/// What the kernel shows there no image can replace, neither at the path nor, for the first, below.
const KERNELS: [(&str, bool); 3] = [("/proc", true), ("/dev", false), ("/sys", false)];

/// Those that the container gets, sorted. `ours` is what every container has, which stays; and what the request mounts
/// takes the place of every volume at its path and below, so that nothing hides a part of it.
pub(super) fn declared(
    image: &ImageConfig,
    config: &ContainerConfig,
    ours: &[Value],
) -> Result<Vec<PathBuf>, Error> {
    let asked: Vec<PathBuf> =
        config.mounts.iter().map(|mount| clean(Path::new(&mount.container_path))).collect();
    let mut volumes = Vec::new();
    for text in &image.volumes {
        let path = check(text)?;
        let is_ours = ours.iter().any(|mount| mount["destination"].as_str().map(Path::new) == Some(&path));
        if !is_ours && !asked.iter().any(|mount| path.starts_with(mount)) {
            volumes.push(path);
        }
    }
    volumes.sort();
    volumes.dedup();
    if volumes.len() > MAX_VOLUMES {
        return Err(refused(&format!("has {} volumes, more than {MAX_VOLUMES}", volumes.len())));
    }
    Ok(volumes)
}

/// A relative path is meant from the root, as other runtimes have it.
fn check(text: &str) -> Result<PathBuf, Error> {
    if text.len() > MAX_PATH {
        return Err(refused(&format!(
            "declares a volume whose path is {} bytes long, more than {MAX_PATH}",
            text.len()
        )));
    }
    let refuse = |reason: &str| Err(refused(&format!("declares the volume {text:?}, {reason}")));
    if text.contains('\0') {
        return refuse("which holds a NUL byte");
    }
    let path = clean(Path::new(text));
    if path == Path::new("/") {
        return refuse("which would hide the root file system");
    }
    if KERNELS.iter().any(|(root, below)| path == Path::new(root) || (*below && path.starts_with(root))) {
        return refuse("which is the kernel's to fill");
    }
    Ok(path)
}

fn refused(reason: &str) -> Error {
    Error::invalid("config.image", format!("the image {reason}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::container::spec::mounts::tests::of_host;

    fn of(volumes: &[&str], mounts: &[&str]) -> Result<Vec<String>, Error> {
        let mut config = crate::container::spec::tests::config();
        config.mounts = mounts.iter().map(|path| of_host(path, "/x")).collect();
        let image = ImageConfig {
            volumes: volumes.iter().map(ToString::to_string).collect(),
            ..ImageConfig::default()
        };
        let ours = [json!({ "destination": "/dev/shm" }), json!({ "destination": "/sys/fs/cgroup" })];
        let paths = declared(&image, &config, &ours)?;
        Ok(paths.iter().map(|path| path.display().to_string()).collect())
    }

    #[test]
    fn what_is_declared_and_not_mounted_over() {
        type List = &'static [&'static str];
        let table: [(List, List, List); 7] = [
            (&[], &["/a"], &[]),
            (&["/b", "/a/", "a", "/x/../b"], &[], &["/a", "/b"]),
            (&["/data"], &["/data/"], &[]),
            (&["/data/sub", "/database"], &["/data"], &["/database"]),
            (&["/data"], &["/data/sub"], &["/data"]),
            (&["/../../canary"], &[], &["/canary"]),
            (&["/dev/shm", "/sys/fs/cgroup/", "/run"], &[], &["/run"]),
        ];
        for (volumes, mounts, expected) in table {
            assert_eq!(of(volumes, mounts).unwrap(), expected, "{volumes:?} {mounts:?}");
        }
    }

    #[test]
    fn what_no_volume_can_be() {
        let long = "/a".repeat(2048);
        for bad in [
            "",
            "/",
            "//",
            "/a/..",
            "..",
            "/proc",
            "/proc/sys",
            "/x/../proc/",
            "/dev",
            "/sys",
            "/a\0b",
            &long,
        ] {
            let refused = of(&[bad], &[]).unwrap_err();
            assert!(matches!(refused, Error::InvalidArgument { .. }), "{bad:?}: {refused}");
        }
        let many: Vec<String> = (0..=MAX_VOLUMES).map(|n| format!("/{n}")).collect();
        assert!(of(&many.iter().map(String::as_str).collect::<Vec<_>>(), &[]).is_err());
    }
}
