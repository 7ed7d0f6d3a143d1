//! Image volumes (KEP-4639): the files of another image, read-only, or a directory of them. An overlay of that image's
//! layers, made in the container's own mount namespace, so that the host's mount table does not grow.
//!
//! A sub path is a word of the pod's author that symlinks of the image have a say in: it is resolved inside the
//! overlay and nowhere else.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use cove_path::Root;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};
use rustix::process::chdir;

use super::request::{ImageVolume, Mount, MountKind};
use super::rootfs::{PAGE, escape, shared_parent, takes_layers_one_by_one};
use super::sources::{Detached, clone_tree, flags_of};
use super::step::{At, refuse};
use crate::protocol::Failure;

/// Name of the step: a failure of it is one of an image volume.
pub const STEP: &str = "image-volume";
/// As for a container's own overlay: nothing that somebody else wrote into a layer leads elsewhere.
const FIXED: [(&str, &str); 3] = [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")];

/// Whether any of them is an image volume.
pub(super) fn among(mounts: &[Mount]) -> bool {
    mounts.iter().any(|mount| matches!(mount.kind, MountKind::Image(_)))
}

/// Makes every image volume of `mounts` and puts it among the others, in its place. `empty` is an empty directory of
/// the host's that nothing is mounted on yet. To be called in a mount namespace of the builder's own.
pub(super) fn add<'a>(mounts: &'a [Mount], empty: &Path, all: &mut Vec<Detached<'a>>) -> Result<(), Failure> {
    let before = all.len();
    for mount in mounts {
        if let MountKind::Image(volume) = &mount.kind {
            all.push(Detached::new(mount, make(volume, mount, empty)?)?);
        }
    }
    if all.len() > before {
        all.sort_by_key(|detached| mounts.iter().position(|mount| std::ptr::eq(mount, detached.mount)));
    }
    Ok(())
}

/// Whether a sub path leads to a directory of the image. Mounts nothing that anybody sees. A kernel before 6.5 may not
/// be able to tell yet: then it is left to the container's start.
///
/// # Errors
/// Says what is wrong with the sub path, or with the layers.
pub fn check(volume: &ImageVolume) -> Result<(), Failure> {
    let root = match volume.lower.as_slice() {
        [] => return refuse(STEP, format!("the image has no {}", volume.sub_path.display())),
        [layer] => Root::open(layer).at(STEP, || format!("open layer {}", layer.display()))?,
        layers => match overlay(layers, None, MountAttrFlags::MOUNT_ATTR_RDONLY) {
            Err(failure) if failure.errno == Errno::INVAL.raw_os_error() => return Ok(()),
            made => Root::from_fd(made?),
        },
    };
    sub_directory(&root, &volume.sub_path).map(drop)
}

fn make(volume: &ImageVolume, mount: &Mount, empty: &Path) -> Result<OwnedFd, Failure> {
    let flags = flags_of(mount) | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let tree = match overlay(&volume.lower, Some(empty), flags) {
        Ok(tree) if volume.sub_path.as_os_str().is_empty() => return Ok(tree),
        Ok(tree) => {
            // Only what is attached can be cloned on every kernel.
            move_mount(&tree, "", CWD, empty, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .at(STEP, || format!("mount the image on {}", empty.display()))?;
            tree
        }
        // As in `rootfs`: `lowerdir+` came with 6.5, and one value may have 255 bytes.
        Err(failure) if failure.errno == Errno::INVAL.raw_os_error() => by_mount(&volume.lower, empty, mount)
            .map_err(|older| Failure {
                detail: format!("{}; with mount(2): {}", failure.detail, older.detail),
                ..older
            })?,
        Err(failure) => return Err(failure),
    };
    let root = Root::from_fd(tree);
    let found = sub_directory(&root, &volume.sub_path).and_then(|directory| {
        clone_tree(directory.as_fd(), "", OpenTreeFlags::AT_EMPTY_PATH)
            .at(STEP, || format!("clone {}", volume.sub_path.display()))
    });
    // The place is wanted again, and nothing of it is to be seen in the container.
    unmount(empty, UnmountFlags::DETACH).at(STEP, || format!("unmount {}", empty.display()))?;
    found
}

fn sub_directory(root: &Root, path: &Path) -> Result<OwnedFd, Failure> {
    let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
    root.resolve(path, OFlags::PATH | OFlags::DIRECTORY)
        .at(STEP, || format!("find the directory {} of the image", path.display()))
}

/// A read-only overlay. The kernel wants two layers where none is written to: `empty` is the last one.
fn overlay(layers: &[PathBuf], empty: Option<&Path>, flags: MountAttrFlags) -> Result<OwnedFd, Failure> {
    takes_layers_one_by_one().at(STEP, || "add layers one by one".to_owned())?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .at(STEP, || "open the overlay file system".to_owned())?;
    for layer in layers.iter().map(PathBuf::as_path).chain(empty) {
        fsconfig_set_string(&context, "lowerdir+", layer)
            .at(STEP, || format!("add layer {}", layer.display()))?;
    }
    for (key, value) in FIXED {
        fsconfig_set_string(&context, key, value).at(STEP, || format!("set {key}={value}"))?;
    }
    fsconfig_create(&context).at(STEP, || "mount the image's layers".to_owned())?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).at(STEP, || "mount the image's layers".to_owned())
}

/// For kernels before 6.5; see `rootfs`. Mounted on `empty`, which it is also an empty layer of.
fn by_mount(layers: &[PathBuf], empty: &Path, asked: &Mount) -> Result<OwnedFd, Failure> {
    let shared = shared_parent(layers);
    let mut options = b"lowerdir=".to_vec();
    for layer in layers {
        options.extend(escape(layer.strip_prefix(&shared).unwrap_or(layer), b"\\:,").into_encoded_bytes());
        options.push(b':');
    }
    options.extend(escape(empty, b"\\:,").into_encoded_bytes());
    for (key, value) in FIXED {
        options.extend(format!(",{key}={value}").into_bytes());
    }
    if options.len() >= PAGE {
        return refuse(
            STEP,
            format!("{} layers do not fit one page of options, as this kernel needs", layers.len()),
        );
    }
    let options = CString::new(options).at(STEP, || "use the image's layers".to_owned())?;
    let mut flags = MountFlags::RDONLY;
    for (is_set, flag) in [
        (asked.nosuid, MountFlags::NOSUID),
        (asked.nodev, MountFlags::NODEV),
        (asked.noexec, MountFlags::NOEXEC),
    ] {
        flags.set(flag, is_set);
    }
    chdir(&shared).at(STEP, || format!("enter {}", shared.display()))?;
    let mounted = mount("overlay", empty, "overlay", flags, Some(options.as_c_str()))
        .at(STEP, || format!("mount the image on {}", empty.display()));
    chdir("/").at(STEP, || "enter /".to_owned())?;
    mounted?;
    openat(CWD, empty, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at(STEP, || format!("open {}", empty.display()))
}
