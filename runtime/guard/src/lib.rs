//! Guards against ways out of a container, by name.
//!
//! A test of an escape shows something only if it can fail. So each guard is asked for at its own place whether it
//! holds, and that is `true` at compile time, unless the program was built with the feature `unguarded`: then
//! `COVE_UNGUARDED=masks,null-device` takes guards away, and the same attack must succeed (`hack/escapes`).
//! docs/security.md has a row for each promise, with its guard.
#![forbid(unsafe_code)]

use std::ffi::OsString;

/// The variable of the daemon's environment that names the guards to take away; shims are handed it on.
pub const VARIABLE: &str = "COVE_UNGUARDED";

macro_rules! guards {
    ($($(#[doc = $doc:literal])+ $guard:ident = $name:literal,)+) => {
        /// A guard. Its name in [`VARIABLE`] is its own with dashes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Guard {
            $($(#[doc = $doc])+ $guard,)+
        }

        /// All, with their names.
        pub const ALL: &[(Guard, &str)] = &[$((Guard::$guard, $name),)+];
    };
}

guards! {
    /// What a builder waits with at its gate is closed by the exec of the program.
    CloseOnExec = "close-on-exec",
    /// A child of the shim closes all that it was not given.
    CloseRange = "close-range",
    /// The working directory is resolved in the root, follows no magic link, and is looked at again.
    WorkingDirectory = "working-directory",
    /// Shims run from a sealed copy of their program.
    SealedProgram = "sealed-program",
    /// An exec's process is cloned into the container's PID namespace only when it has nothing of the host any more.
    BuilderOutside = "builder-outside",
    /// Kernel file systems and /dev are on plain directories.
    PlainDirectory = "plain-directory",
    /// Paths of images and containers are resolved within their root.
    InRoot = "in-root",
    /// Nothing of the host is in sight when destinations are resolved.
    PivotFirst = "pivot-first",
    /// /dev/null and other nodes are the devices that they are called.
    NullDevice = "null-device",
    /// Masked and read-only paths are so.
    Masks = "masks",
    /// Procfs is a mount of its own, which nobody can mount over.
    PrivateProc = "private-proc",
    /// Ids are in range and never wrap.
    StrictIds = "strict-ids",
    /// A value stays on its line of a generated file.
    OneLine = "one-line",
    /// Only kernel parameters of the pod's own namespaces are set.
    OwnSysctls = "own-sysctls",
    /// Capability sets are exactly those asked for; nothing is inheritable.
    ExactCapabilities = "exact-capabilities",
    /// no_new_privs is set where it was asked for.
    NoNewPrivs = "no-new-privs",
    /// The system call filter is loaded.
    Seccomp = "seccomp",
    /// Every process of a container is in its cgroup.
    CgroupPlace = "cgroup-place",
    /// A container's view of its cgroups is read-only.
    CgroupReadonly = "cgroup-readonly",
}

impl Guard {
    /// It stands. Without the feature a constant, and nothing of a test is left in the program.
    #[cfg(not(feature = "unguarded"))]
    #[must_use]
    #[inline(always)]
    pub const fn holds(self) -> bool {
        true
    }

    /// It stands: nobody has taken it away.
    #[cfg(feature = "unguarded")]
    #[must_use]
    pub fn holds(self) -> bool {
        !taken_away().is_ok_and(|taken| taken.contains(&self))
    }
}

/// The guards that are taken away in this process.
///
/// # Errors
/// The name in [`VARIABLE`] that no guard has, or the variable itself in a program that cannot take guards away: who
/// set it means to test something that would not be tested.
pub fn taken_away() -> Result<Vec<Guard>, String> {
    let Some(names) = std::env::var_os(VARIABLE) else { return Ok(Vec::new()) };
    if !cfg!(feature = "unguarded") {
        return Err(format!("{VARIABLE} is set, and this build has no guard that could be taken away"));
    }
    parse(&names.to_string_lossy())
}

fn parse(names: &str) -> Result<Vec<Guard>, String> {
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| {
            let known = ALL.iter().find(|(_, known)| *known == name);
            known.map(|(guard, _)| *guard).ok_or_else(|| format!("{VARIABLE}: there is no guard {name:?}"))
        })
        .collect()
}

/// What a process that is started with an empty environment must be given nevertheless; nothing without the feature.
#[must_use]
pub fn environment() -> Option<(&'static str, OsString)> {
    if cfg!(feature = "unguarded") { std::env::var_os(VARIABLE).map(|names| (VARIABLE, names)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_or_refused() {
        assert_eq!(parse("masks,close-range"), Ok(vec![Guard::Masks, Guard::CloseRange]));
        assert_eq!(parse(""), Ok(Vec::new()));
        assert!(parse("masks,mask").unwrap_err().contains("\"mask\""));
        for (n, (_, name)) in ALL.iter().enumerate() {
            assert!(ALL[..n].iter().all(|(_, earlier)| earlier != name), "{name} twice");
        }
    }

    #[test]
    fn every_guard_holds() {
        assert!(ALL.iter().all(|(guard, _)| guard.holds()));
    }
}
