//! A small image and a canary beside it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cove_runtime::build::request::{
    Bind, Capabilities, ContainerSpec, Device, GroupsPolicy, Mount, MountKind, ProcessSpec, Propagation,
    Rootfs, Tmpfs, User,
};

/// The default set of Docker and containerd, by capability number.
pub const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

/// Of the names of temporary directories.
pub const PREFIX: &str = "cove-build-test-";

const APPLETS: [&str; 22] = [
    "cat", "chmod", "echo", "env", "false", "grep", "hostname", "id", "kill", "ls", "mkdir", "mknod",
    "mount", "ps", "readlink", "sh", "sleep", "stat", "touch", "true", "umask", "wc",
];

/// Layers, a writable layer, and what a container must not touch. Removed when dropped.
#[derive(Debug)]
pub struct Image {
    directory: tempfile::TempDir,
}

impl Image {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir().expect("temporary directory");
        let image = Self { directory };
        let base = image.base();
        for made in ["bin", "etc", "tmp", "proc", "sys", "dev", "home/app"] {
            fs::create_dir_all(base.join(made)).expect("directory");
        }
        for made in ["layers/top", "upper", "work", "target", "canary", "volume"] {
            fs::create_dir_all(image.path(made)).expect("directory");
        }
        fs::copy("/bin/busybox", base.join("bin/busybox")).expect("busybox-static is installed");
        for applet in APPLETS {
            symlink("busybox", base.join("bin").join(applet)).expect("applet");
        }
        image.put("etc/passwd", "root:x:0:0::/:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n");
        image.put("etc/group", "root:x:0:\napp:x:1001:\nextra:x:50:app\n");
        image.put("etc/not-a-program", "x");
        fs::write(image.path("canary/file"), "untouched").expect("canary");
        fs::write(image.path("layers/top/from-the-upper-layer"), "").expect("file");
        image
    }

    /// A file of the lowest layer.
    pub fn put(&self, path: &str, content: &str) {
        fs::write(self.base().join(path), content).expect("file of the image");
    }

    /// The lowest layer.
    pub fn base(&self) -> PathBuf {
        // A name that the overlay's option parsers would take apart.
        self.path("layers/base:with,odd\\name")
    }

    /// Something of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces something of the image by a symlink.
    pub fn link(&self, path: &str, target: impl AsRef<Path>) {
        let at = self.base().join(path);
        match fs::symlink_metadata(&at) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&at).expect("remove"),
            Ok(_) => fs::remove_file(&at).expect("remove"),
            Err(_) => {}
        }
        symlink(target, at).expect("symlink");
    }

    /// Nothing was made, changed or removed beside the rootfs.
    pub fn check_canary(&self) {
        let names: Vec<_> = fs::read_dir(self.path("canary")).expect("canary").flatten().collect();
        assert_eq!(names.len(), 1, "the canary directory has {names:?}");
        let file = self.path("canary/file");
        assert_eq!(fs::read(&file).expect("canary"), b"untouched");
        assert_eq!(fs::metadata(&file).expect("canary").permissions().mode() & 0o7777, 0o644);
    }

    /// A container that runs a shell script as root, with the mounts that the daemon asks for.
    pub fn spec(&self, script: &str) -> ContainerSpec {
        let mut mounts = vec![
            mount("/proc", MountKind::Proc),
            mount("/dev", MountKind::Tmpfs(Tmpfs { size: 65_536 << 10, mode: 0o755, strict_atime: true })),
            mount("/dev/pts", MountKind::Devpts),
            mount("/dev/mqueue", MountKind::Mqueue),
            mount("/sys", MountKind::Sysfs),
        ];
        mounts[1].nodev = false;
        mounts[4].readonly = true;
        ContainerSpec {
            container: "test".to_owned(),
            rootfs: Rootfs {
                lower: vec![self.path("layers/top"), self.base()],
                upper: self.path("upper"),
                work: self.path("work"),
                target: self.path("target"),
                readonly: false,
                volatile: true,
            },
            new_cgroup_namespace: false,
            mounts,
            devices: [
                ("null", 1, 3),
                ("zero", 1, 5),
                ("full", 1, 7),
                ("random", 1, 8),
                ("urandom", 1, 9),
                ("tty", 5, 0),
            ]
            .map(|(name, major, minor)| device(name, major, minor))
            .into(),
            masked_paths: [
                "/proc/kcore",
                "/proc/acpi",
                "/proc/keys",
                "/proc/timer_list",
                "/sys/firmware",
                "/missing",
            ]
            .map(PathBuf::from)
            .into(),
            readonly_paths: ["/proc/bus", "/proc/sys", "/proc/irq", "/missing"].map(PathBuf::from).into(),
            process: process(script),
        }
    }
}

pub fn process(script: &str) -> ProcessSpec {
    let all = DEFAULT_CAPABILITIES;
    ProcessSpec {
        args: ["sh", "-c", script].map(Into::into).into(),
        env: ["PATH=/sbin:/bin", "GREETING=hello"].map(Into::into).into(),
        cwd: "/".into(),
        user: User { user: String::new(), gid: None, supplemental: Vec::new(), policy: GroupsPolicy::Merge },
        capabilities: Capabilities {
            bounding: all,
            effective: all,
            permitted: all,
            inheritable: 0,
            ambient: 0,
        },
        no_new_privs: true,
        rlimits: Vec::new(),
        umask: 0o022,
        seccomp: None,
        apparmor: None,
    }
}

/// A mount as safe as it can be.
pub fn mount(destination: &str, kind: MountKind) -> Mount {
    Mount { destination: destination.into(), kind, readonly: false, nosuid: true, nodev: true, noexec: true }
}

pub fn bind(destination: &str, source: &Path) -> Mount {
    let bind = Bind {
        source: source.to_owned(),
        recursive: true,
        propagation: Propagation::Private,
        recursive_readonly: false,
    };
    Mount { nosuid: false, nodev: false, noexec: false, ..mount(destination, MountKind::Bind(bind)) }
}

pub fn device(name: &str, major: u32, minor: u32) -> Device {
    Device { path: Path::new("/dev").join(name), block: false, major, minor, mode: 0o666, uid: 0, gid: 0 }
}
