//! The VOLUMEs that an image declares: each is a directory of the container's own, and begins with what the image has
//! at its path.

use std::os::fd::AsFd;

use cove_path::{Root, Tree};
use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, openat};
use rustix::io::Errno;

use super::mounts::clean;
use super::request::MountKind;
use super::sources::Detached;
use super::step::At;
use crate::protocol::Failure;

const STEP: &str = "image-defined-volumes";

/// Copies the image's content into each; one that the image has nothing for belongs to `owner`. `root` is the image as
/// no container has seen it yet: nothing is mounted on it, and what a symlink of it says stays inside (CVE-2022-23648).
pub(super) fn fill(root: &Root, all: &[Detached<'_>], owner: u32) -> Result<(), Failure> {
    for volume in all.iter().filter(|detached| matches!(detached.mount.kind, MountKind::Volume(_))) {
        let path = clean(&volume.destination);
        let shown = path.display();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let to = openat(volume.tree.as_fd(), ".", flags, Mode::empty())
            .at(STEP, || format!("open the volume for {shown}"))?;
        let from = match root.resolve(&path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(error) if error.errno() == Some(Errno::NOENT) => {
                fchown(&to, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))
                    .at(STEP, || format!("give the volume for {shown} its owner"))?;
                continue;
            }
            found => Tree::from_fd(found.at(STEP, || format!("open the image's {shown}"))?),
        };
        from.copy_to(&Tree::from_fd(to)).at(STEP, || format!("copy the image's {shown} to its volume"))?;
    }
    Ok(())
}
