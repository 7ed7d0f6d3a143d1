//! The five capability sets of a process. See capabilities(7).

use cove_guard::Guard;
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use super::request::Capabilities;
use super::step::{At, refuse};
use crate::protocol::Failure;

const STEP: &str = "capabilities";

/// By number, as linux/capability.h has them, without `CAP_`.
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The bit of a name such as `NET_RAW` or `CAP_NET_RAW`; none for a name that Linux does not have.
pub fn bit(name: &str) -> Option<u64> {
    let bare = name.strip_prefix("CAP_").unwrap_or(name);
    NAMES.iter().position(|known| *known == bare).map(|number| 1 << number)
}

/// The sets that a process of `uid` has after exec, before it has run an instruction.
///
/// execve(2) computes: root gets its bounding set, everybody else the ambient set. Asking for anything else is
/// refused here, since the kernel would not give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    bounding: u64,
    /// Permitted and effective.
    held: u64,
    /// Ambient, and inheritable, without which the kernel grants no ambient: empty unless asked for
    /// (CVE-2022-24769).
    ambient: u64,
}

impl Wanted {
    pub(super) fn new(asked: &Capabilities, uid: u32) -> Result<Self, Failure> {
        if asked.inheritable & !asked.ambient != 0 {
            return refuse(STEP, format!("inheritable {} without ambient", names(asked.inheritable)));
        }
        if asked.ambient & !asked.bounding != 0 {
            let outside = names(asked.ambient & !asked.bounding);
            return refuse(STEP, format!("ambient {outside} outside of the bounding set"));
        }
        if uid == 0 && (asked.permitted != asked.bounding || asked.effective != asked.bounding) {
            return refuse(STEP, "root gets all of its bounding set; another set cannot be had".to_owned());
        }
        let held = if uid == 0 { asked.bounding } else { asked.ambient };
        Ok(Self { bounding: asked.bounding, held, ambient: asked.ambient })
    }

    /// Nothing at all, for the init of a pod.
    pub(super) const fn none() -> Self {
        Self { bounding: 0, held: 0, ambient: 0 }
    }

    /// Takes away what the bounding set must not have. Needs CAP_SETPCAP, so it comes before the others.
    pub(super) fn limit_bounding(self) -> Result<(), Failure> {
        if !Guard::ExactCapabilities.holds() {
            return Ok(());
        }
        let mut missing = 0;
        // Newer kernels have capabilities without a name here: none of them is ever left.
        for number in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << number);
            let wanted = self.bounding & one.bits() != 0;
            match capability_is_in_bounding_set(one) {
                Ok(true) if !wanted => remove_capability_from_bounding_set(one)
                    .at(STEP, || format!("take {} out of the bounding set", names(one.bits())))?,
                Ok(true) => {}
                Ok(false) | Err(Errno::INVAL) => missing |= if wanted { one.bits() } else { 0 },
                Err(errno) => return Err(errno).at(STEP, || "read the bounding set".to_owned()),
            }
        }
        match missing {
            0 => Ok(()),
            _ => refuse(STEP, format!("{} asked for, which this node does not grant", names(missing))),
        }
    }

    /// The rest, when the process has its final ids.
    pub(super) fn apply(self) -> Result<(), Failure> {
        let held = CapabilitySet::from_bits_retain(self.held);
        let inheritable = if Guard::ExactCapabilities.holds() { self.ambient } else { self.held };
        let inheritable = CapabilitySet::from_bits_retain(inheritable);
        set_capabilities(None, CapabilitySets { effective: held, permitted: held, inheritable })
            .at(STEP, || format!("set {}", names(self.held)))?;
        for number in (0..u64::BITS).filter(|number| self.ambient & (1 << number) != 0) {
            let one = CapabilitySet::from_bits_retain(1 << number);
            configure_capability_in_ambient_set(one, true)
                .at(STEP, || format!("make {} ambient", names(one.bits())))?;
        }
        Ok(())
    }
}

/// Makes everything permitted effective again: changing to another user took it out of the effective set.
pub(super) fn raise() -> Result<(), Failure> {
    let sets = capabilities(None).at(STEP, || "read the sets".to_owned())?;
    set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets })
        .at(STEP, || "raise the effective set".to_owned())
}

fn names(bits: u64) -> String {
    let all: Vec<String> = (0..u64::BITS as usize)
        .filter(|number| bits & (1 << number) != 0)
        .map(|number| NAMES.get(number).map_or_else(|| format!("#{number}"), |name| (*name).to_owned()))
        .collect();
    if all.is_empty() { "no capability".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(bounding: u64, held: u64, inheritable: u64, ambient: u64) -> Capabilities {
        Capabilities { bounding, effective: held, permitted: held, inheritable, ambient }
    }

    #[test]
    fn names_and_bits() {
        assert_eq!(bit("CHOWN"), Some(1));
        assert_eq!(bit("CAP_CHECKPOINT_RESTORE"), Some(1 << 40));
        assert_eq!(bit("cap_chown"), None);
        assert_eq!(bit("ALL"), None);
        assert_eq!(bit(""), None);
        assert_eq!(names(1 | 1 << 13 | 1 << 50), "CHOWN, NET_RAW, #50");
    }

    #[test]
    fn what_exec_gives() {
        let root = Wanted::new(&asked(3, 3, 0, 0), 0).unwrap();
        assert_eq!(root, Wanted { bounding: 3, held: 3, ambient: 0 });
        let user = Wanted::new(&asked(3, 3, 0, 2), 1000).unwrap();
        assert_eq!(user, Wanted { bounding: 3, held: 2, ambient: 2 });
        for (sets, uid) in [
            (asked(3, 3, 1, 0), 0),
            (asked(3, 3, 0, 4), 1000),
            (asked(3, 1, 0, 0), 0),
            (asked(1, 3, 0, 0), 0),
        ] {
            assert!(Wanted::new(&sets, uid).is_err(), "{sets:?} {uid}");
        }
    }
}
