//! What the tests of this module share: a place in the real tree that is always taken down, and a process to put there.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::{Cgroup, CgroupPath, Hierarchies};

/// Longest wait for something that the kernel does at once.
const SOON: Duration = Duration::from_secs(10);

/// Waits until a condition holds.
pub(super) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not after {SOON:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A cgroup of one test, `/cove-test-<pid>-<name>`, removed with all in it when dropped.
pub(super) struct Scratch {
    pub(super) hierarchies: Hierarchies,
    root: CgroupPath,
}

impl Scratch {
    pub(super) fn new(name: &str) -> Self {
        let root = format!("/cove-test-{}-{name}", std::process::id());
        let hierarchies = Hierarchies::detect().unwrap();
        Self { hierarchies, root: CgroupPath::new(Path::new(&root)).unwrap() }
    }

    pub(super) fn path(&self, below: &str) -> CgroupPath {
        CgroupPath::new(&self.root.as_path().join(below)).unwrap()
    }

    pub(super) fn create(&self, below: &str) -> Cgroup {
        self.hierarchies.create(&self.path(below)).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Ok(Some(cgroup)) = self.hierarchies.open(&self.root) {
            cgroup.kill().unwrap();
        }
        self.hierarchies.remove(&self.root).unwrap();
    }
}

/// A process that sleeps until it is killed; killed and reaped when dropped.
pub(super) struct Sleeper(Child);

impl Sleeper {
    pub(super) fn start() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }

    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    /// Has ended; reaps it.
    pub(super) fn ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
