//! For tests: a fault in what is tested must harm a temporary directory, never the machine that the tests run on.

use std::path::Path;

use nix::sched::{CloneFlags, unshare};

/// Runs `test` on a thread whose root is an empty directory.
pub(crate) fn confined(test: impl FnOnce() + Send) {
    // In memory where that is possible: these tests make deep trees.
    let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let confine = || {
        unshare(CloneFlags::CLONE_FS).unwrap();
        rustix::process::chroot(root.path()).unwrap();
        rustix::process::chdir("/").unwrap();
        assert_eq!(std::fs::read_dir("/").unwrap().count(), 0, "not confined");
        test();
    };
    let ended = std::thread::scope(|scope| scope.spawn(confine).join());
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

/// A directory inside the root of a confined test.
pub(crate) fn directory() -> tempfile::TempDir {
    assert!(!Path::new("/etc").exists(), "not confined");
    tempfile::tempdir_in("/").unwrap()
}
