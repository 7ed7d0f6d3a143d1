//! System calls by name, for each ABI that a filter can meet.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::error::SeccompError;

/// Set in the number of each x32 call (asm/unistd.h, `__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 1 << 30;

/// A binary interface of the kernel: what numbers mean which call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Abi {
    /// 64-bit programs on x86.
    X86_64,
    /// 32-bit programs on x86.
    X86,
    /// Programs with 32-bit pointers in 64-bit mode. The kernel says "x86_64" of them, and sets [`X32_BIT`].
    X32,
    /// 64-bit programs on ARM.
    Aarch64,
}

/// Names that profiles have for machines that Cove is not built for, and for ARM's 32-bit programs.
const OTHERS: [&str; 20] = [
    "ARM",
    "LOONGARCH64",
    "M68K",
    "MIPS",
    "MIPS64",
    "MIPS64N32",
    "MIPSEL",
    "MIPSEL64",
    "MIPSEL64N32",
    "PARISC",
    "PARISC64",
    "PPC",
    "PPC64",
    "PPC64LE",
    "RISCV64",
    "S390",
    "S390X",
    "SH",
    "SHEB",
    "LOONGARCH32",
];

impl Abi {
    /// Of `SCMP_ARCH_X86_64` and the like. None for the native one, which is always there, and for one without a
    /// table: calls of its programs, if the machine has such, are met by the answer to all foreign ABIs, to kill.
    pub(super) fn by_name(name: &str, field: &str) -> Result<Option<Self>, SeccompError> {
        match name.strip_prefix("SCMP_ARCH_") {
            Some("X86_64") => Ok(Some(Self::X86_64)),
            Some("X86") => Ok(Some(Self::X86)),
            Some("X32") => Ok(Some(Self::X32)),
            Some("AARCH64") => Ok(Some(Self::Aarch64)),
            Some("NATIVE") => Ok(None),
            Some(other) if OTHERS.contains(&other) => Ok(None),
            _ => Err(SeccompError::Unknown { field: field.to_owned(), value: name.to_owned() }),
        }
    }

    /// As profiles write it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::X86 => "SCMP_ARCH_X86",
            Self::X32 => "SCMP_ARCH_X32",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
        }
    }

    /// As `arches` in the conditions of a profile's rule has it.
    pub(super) const fn short_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::X86 => "x86",
            Self::X32 => "x32",
            Self::Aarch64 => "arm64",
        }
    }

    /// What the kernel says in `seccomp_data.arch` (linux/audit.h, AUDIT_ARCH_*).
    pub(super) const fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xC000_003E,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xC000_00B7,
        }
    }

    /// Whether all 64 bits of an argument count.
    pub(super) const fn is_wide(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64)
    }

    /// The number of a call as the kernel reports it, with [`X32_BIT`] if it is one of x32.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        let base = if matches!(self, Self::X32) { X32_BIT } else { 0 };
        self.calls().get(name).map(|number| base | number)
    }

    fn calls(self) -> &'static HashMap<&'static str, u32> {
        static X86_64: LazyLock<HashMap<&str, u32>> =
            LazyLock::new(|| read(include_str!("table/x86_64.tbl")));
        static X86: LazyLock<HashMap<&str, u32>> = LazyLock::new(|| read(include_str!("table/x86.tbl")));
        static X32: LazyLock<HashMap<&str, u32>> = LazyLock::new(|| read(include_str!("table/x32.tbl")));
        static AARCH64: LazyLock<HashMap<&str, u32>> =
            LazyLock::new(|| read(include_str!("table/aarch64.tbl")));
        match self {
            Self::X86_64 => &X86_64,
            Self::X86 => &X86,
            Self::X32 => &X32,
            Self::Aarch64 => &AARCH64,
        }
    }
}

/// Lines of number and name. A test holds that every line is one.
fn read(table: &'static str) -> HashMap<&'static str, u32> {
    let line = |line: &'static str| {
        let (number, name) = line.split_once(' ')?;
        Some((name, number.parse().ok()?))
    };
    table.lines().filter_map(line).collect()
}

/// One call of x86 that stands for many, by its first argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Multiplexed {
    /// Name of the call that is really made.
    pub by: &'static str,
    /// Its first argument.
    pub selector: u64,
    /// The bits of the argument that the kernel looks at.
    pub mask: u64,
}

/// By `selector` (linux/net.h, SYS_*).
const SOCKETCALL: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];

/// With `selector` (linux/ipc.h).
const IPC: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// The other way in which a 32-bit program on x86 can make the call `name`: a rule for the call must hold there too.
pub(super) fn multiplexed(abi: Abi, name: &str) -> Option<Multiplexed> {
    if abi != Abi::X86 {
        return None;
    }
    if let Some((_, selector)) = IPC.iter().find(|(known, _)| *known == name) {
        // The upper half is a version (ipc/syscall.c).
        return Some(Multiplexed { by: "ipc", selector: *selector, mask: 0xFFFF });
    }
    let position = SOCKETCALL.iter().position(|known| *known == name)?;
    let selector = u64::try_from(position).ok()? + 1;
    Some(Multiplexed { by: "socketcall", selector, mask: u64::MAX })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::seccomp) const ALL: [Abi; 4] = [Abi::X86_64, Abi::X86, Abi::X32, Abi::Aarch64];

    /// Every name of a table.
    pub(in crate::seccomp) fn names(abi: Abi) -> Vec<&'static str> {
        abi.calls().keys().copied().collect()
    }

    #[test]
    fn every_line_is_a_call() {
        for (abi, table) in [
            (Abi::X86_64, include_str!("table/x86_64.tbl")),
            (Abi::X86, include_str!("table/x86.tbl")),
            (Abi::X32, include_str!("table/x32.tbl")),
            (Abi::Aarch64, include_str!("table/aarch64.tbl")),
        ] {
            let lines = table.lines().filter(|line| !line.starts_with('#')).count();
            assert_eq!(abi.calls().len(), lines, "{abi:?}");
            let numbers: std::collections::HashSet<_> = abi.calls().values().collect();
            assert_eq!(numbers.len(), lines, "{abi:?}: a number twice");
            assert!(abi.calls().values().all(|number| *number < 600), "{abi:?}");
        }
    }

    #[test]
    fn numbers() {
        for (abi, name, expected) in [
            (Abi::X86_64, "read", Some(0)),
            (Abi::X86_64, "clone3", Some(435)),
            (Abi::X86_64, "socketcall", None),
            (Abi::X86, "socketcall", Some(102)),
            (Abi::X32, "execve", Some(X32_BIT | 520)),
            (Abi::Aarch64, "openat", Some(56)),
            (Abi::Aarch64, "open", None),
            (Abi::X86_64, "", None),
            (Abi::X86_64, "#", None),
        ] {
            assert_eq!(abi.number(name), expected, "{abi:?} {name}");
        }
    }

    #[test]
    fn names_of_abis() {
        assert_eq!(Abi::by_name("SCMP_ARCH_X32", "f").unwrap(), Some(Abi::X32));
        assert_eq!(Abi::by_name("SCMP_ARCH_S390X", "f").unwrap(), None);
        for unknown in ["", "X86_64", "SCMP_ARCH_", "SCMP_ARCH_x86", "SCMP_ARCH_VAX"] {
            let error = Abi::by_name(unknown, "architectures[0]").unwrap_err().to_string();
            assert!(error.contains("architectures[0]"), "{error}");
        }
    }
}
