//! The root file system: an overlay of the image's layers and the container's writable layer, mounted in the
//! builder's own mount namespace, and the step into it by pivot_root(2), where the mount namespace is a copy of the
//! host's (else see `void`).
//!
//! What an overlay of layers that somebody else wrote must not do is turned off: following a redirect
//! (`redirect_dir=nofollow`), taking a file's content from elsewhere (`metacopy=off`), trusting file handles
//! (`index=off`). See the kernel's Documentation/filesystems/overlayfs.rst.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use cove_sys::MountAttr;
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, fstatvfs, open, openat};
use rustix::io::{Errno, read};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    mount, move_mount, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};
use rustix::system::uname;

use super::request::{Mount, MountKind, Rootfs};
use super::sources;
use super::step::{At, refuse};
use super::userns::UserNamespace;
use crate::protocol::Failure;

const STEP: &str = "rootfs";
/// mount(2) takes at most a page of options.
pub(super) const PAGE: usize = 4096;

/// Mounts the overlay nowhere yet and gives the descriptor of its root. `None` where the kernel cannot (before 6.5).
pub(super) fn assemble_detached(rootfs: &Rootfs) -> Result<Option<OwnedFd>, Failure> {
    match by_mount_api(rootfs) {
        Err(failure) if failure.errno == Errno::INVAL.raw_os_error() => Ok(None),
        done => done.map(Some),
    }
}

/// Mounts the overlay on `rootfs.target` and gives the descriptor of its root.
pub(super) fn assemble(rootfs: &Rootfs) -> Result<OwnedFd, Failure> {
    match by_mount_api(rootfs).and_then(|overlay| attach(overlay, rootfs)) {
        // `lowerdir+` came with 6.5, and one value may have 255 bytes.
        Err(failure) if failure.errno == Errno::INVAL.raw_os_error() => by_mount(rootfs).map_err(|older| {
            // Both causes: the first says more on a new kernel, the second is the one that counts on an old one.
            Failure { detail: format!("{}; with mount(2): {}", failure.detail, older.detail), ..older }
        }),
        done => done,
    }
}

/// `lowerdir+` came with 6.5. An older kernel is not asked: it would log each option that it does not know, twice a
/// container. A release that says nothing is one to ask.
pub(super) fn takes_layers_one_by_one() -> Result<(), Errno> {
    match older_than_6_5(&uname().release().to_string_lossy()) {
        true => Err(Errno::INVAL),
        false => Ok(()),
    }
}

fn older_than_6_5(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < (6, 5))
}

fn by_mount_api(rootfs: &Rootfs) -> Result<OwnedFd, Failure> {
    takes_layers_one_by_one().at(STEP, || "add layers one by one".to_owned())?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .at(STEP, || "open the overlay file system".to_owned())?;
    for layer in &rootfs.lower {
        fsconfig_set_string(&context, "lowerdir+", layer)
            .at(STEP, || format!("add layer {}", layer.display()))?;
    }
    for (key, value) in [("upperdir", &rootfs.upper), ("workdir", &rootfs.work)] {
        fsconfig_set_string(&context, key, escape(value, b"\\"))
            .at(STEP, || format!("set {key} {}", value.display()))?;
    }
    for (key, value) in [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")] {
        fsconfig_set_string(&context, key, value).at(STEP, || format!("set {key}={value}"))?;
    }
    if rootfs.volatile {
        fsconfig_set_flag(&context, "volatile").at(STEP, || "set volatile".to_owned())?;
    }
    fsconfig_create(&context)
        .at(STEP, || format!("mount the overlay of {}{}", rootfs.upper.display(), log_of(&context)))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .at(STEP, || format!("mount the overlay of {}", rootfs.upper.display()))
}

fn attach(overlay: OwnedFd, rootfs: &Rootfs) -> Result<OwnedFd, Failure> {
    move_mount(&overlay, "", CWD, &rootfs.target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .at(STEP, || format!("mount the overlay on {}", rootfs.target.display()))?;
    Ok(overlay)
}

/// What the file system says of the error, if anything: lines such as `e overlay: …` (fsopen(2)).
fn log_of(context: &OwnedFd) -> String {
    let mut text = String::new();
    let mut line = [0_u8; 512];
    while let Ok(n @ 1..) = read(context, &mut line) {
        text.push_str(" (");
        text.push_str(String::from_utf8_lossy(&line[..n]).trim());
        text.push(')');
    }
    text
}

/// Shows the layers, those of image volumes too, with owners of the pod's user namespace, in this mount namespace only:
/// one mapped mount over the directory that they share, however many there are.
pub(super) fn map_layers(rootfs: &Rootfs, mounts: &[Mount], user: &UserNamespace) -> Result<(), Failure> {
    let of_volumes = mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Image(volume) => Some(&volume.lower),
        _ => None,
    });
    let layers: Vec<PathBuf> = of_volumes.chain([&rootfs.lower]).flatten().cloned().collect();
    let shared = shared_parent(&layers);
    let shown = shared.display();
    if [&rootfs.upper, &rootfs.work, &rootfs.target].iter().any(|path| path.starts_with(&shared)) {
        return refuse(STEP, format!("{shown} has more in it than layers, and cannot be mapped"));
    }
    let tree = sources::clone_tree(CWD, &shared, OpenTreeFlags::empty())
        .at(STEP, || format!("open the layers in {shown}"))?;
    let mapped = MountAttr {
        set: u64::from(MountAttrFlags::MOUNT_ATTR_IDMAP.bits()),
        propagation: u64::from(MountPropagationFlags::PRIVATE.bits()),
        userns: Some(user.namespace.as_fd()),
        ..MountAttr::default()
    };
    cove_sys::mount_setattr(tree.as_fd(), false, mapped)
        .at(STEP, || format!("map the owners of {shown} (can its file system?)"))?;
    move_mount(&tree, "", CWD, &shared, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .at(STEP, || format!("mount the mapped layers on {shown}"))
}

/// Another mount of the same, attached nowhere: it can go to a mount namespace of a user namespace's own.
pub(super) fn detach(overlay: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    sources::clone_tree(overlay, "", OpenTreeFlags::AT_EMPTY_PATH)
        .at(STEP, || "detach the overlay".to_owned())
}

/// Attaches a detached root file system on top of the present root, and makes it the root.
pub(super) fn enter_detached(root: BorrowedFd<'_>) -> Result<(), Failure> {
    move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .at(STEP, || "mount a root".to_owned())?;
    enter(root)
}

/// For kernels before 6.5: mount(2), with the layers' names relative to the directory that they share, so that many
/// fit into its page of options.
fn by_mount(rootfs: &Rootfs) -> Result<OwnedFd, Failure> {
    let shared = shared_parent(&rootfs.lower);
    let mut options = OsString::from("lowerdir=").into_vec();
    for (i, layer) in rootfs.lower.iter().enumerate() {
        if i > 0 {
            options.push(b':');
        }
        options.extend(escape(layer.strip_prefix(&shared).unwrap_or(layer), b"\\:,").into_vec());
    }
    for (key, value) in [(",upperdir=", &rootfs.upper), (",workdir=", &rootfs.work)] {
        options.extend(key.as_bytes());
        options.extend(escape(value, b"\\,").into_vec());
    }
    options.extend(b",redirect_dir=nofollow,metacopy=off,index=off");
    if rootfs.volatile {
        options.extend(b",volatile");
    }
    if options.len() >= PAGE {
        return refuse(
            STEP,
            format!("{} layers do not fit one page of options, as this kernel needs", rootfs.lower.len()),
        );
    }
    let options = std::ffi::CString::new(options).at(STEP, || "use the overlay's directories".to_owned())?;
    chdir(&shared).at(STEP, || format!("enter {}", shared.display()))?;
    mount("overlay", &rootfs.target, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .at(STEP, || format!("mount the overlay on {}", rootfs.target.display()))?;
    chdir("/").at(STEP, || "enter /".to_owned())?;
    openat(CWD, &rootfs.target, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at(STEP, || format!("open {}", rootfs.target.display()))
}

/// The deepest directory that is above every path.
pub(super) fn shared_parent(paths: &[PathBuf]) -> PathBuf {
    let mut shared = paths.first().and_then(|first| first.parent()).unwrap_or(Path::new("/")).to_owned();
    while !paths.iter().all(|path| path.starts_with(&shared) && path != &shared) {
        if !shared.pop() {
            break;
        }
    }
    shared
}

/// Puts a backslash before each of `special`, as overlayfs's option parser takes it away again.
pub(super) fn escape(path: &Path, special: &[u8]) -> OsString {
    let mut out = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if special.contains(byte) {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    OsString::from_vec(out)
}

/// Makes `root` the root of the mount namespace and leaves the old one, with everything of the host, behind.
pub(super) fn enter(root: BorrowedFd<'_>) -> Result<(), Failure> {
    fchdir(root).at("pivot", || "enter the root file system".to_owned())?;
    // pivot_root(2), "pivot_root(".", ".")": the old root lands on top of the new one, and is what `.` then names.
    pivot_root(".", ".").at("pivot", || "pivot_root".to_owned())?;
    unmount(".", UnmountFlags::DETACH).at("pivot", || "detach the host's root".to_owned())?;
    chdir("/").at("pivot", || "enter the new root".to_owned())
}

/// Makes the root file system read-only, the mounts over it not, and looks whether it is.
pub(super) fn set_readonly() -> Result<(), Failure> {
    let root = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at(STEP, || "open /".to_owned())?;
    let readonly =
        MountAttr { set: u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()), ..MountAttr::default() };
    cove_sys::mount_setattr(root.as_fd(), false, readonly).at(STEP, || "make / read-only".to_owned())?;
    let flags = fstatvfs(&root).at(STEP, || "look at /".to_owned())?.f_flag;
    if !flags.contains(StatVfsMountFlags::RDONLY) {
        return refuse(STEP, "/ did not become read-only".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_by_their_release() {
        for (release, older) in [
            ("6.1.0-56-cloud-amd64", true),
            ("5.14.0-503.el9.x86_64", true),
            ("6.4.16", true),
            ("6.5.0", false),
            ("6.18.44-fc-v669", false),
            ("7.0", false),
            ("", false),
            ("linux", false),
        ] {
            assert_eq!(older_than_6_5(release), older, "{release:?}");
        }
    }

    #[test]
    fn shared_parents() {
        let table: [(&[&str], &str); 5] = [
            (&["/a/b/1", "/a/b/2"], "/a/b"),
            (&["/a/b/1/x", "/a/b/2/x"], "/a/b"),
            (&["/a/b", "/a/b/c"], "/a"),
            (&["/a"], "/"),
            (&[], "/"),
        ];
        for (paths, expected) in table {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            assert_eq!(shared_parent(&paths), Path::new(expected), "{paths:?}");
        }
    }

    #[test]
    fn escapes() {
        assert_eq!(escape(Path::new("/a:b\\c,d"), b"\\:,"), "/a\\:b\\\\c\\,d");
        assert_eq!(escape(Path::new("/a:b\\c,d"), b"\\"), "/a:b\\\\c,d");
    }
}
