//! A profile as it is meant, whatever it was read from.

use super::machine::{Kernel, Machine};
use super::table::Abi;

/// Which system calls a container may make, and what happens at the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// For every call that no rule matches.
    pub(super) default: Action,
    /// ABIs whose calls the rules are for, beside the native one. All others are killed.
    pub(super) abis: Vec<Abi>,
    /// The same, but only on a machine whose native ABI is the first.
    pub(super) abis_by_native: Vec<(Abi, Vec<Abi>)>,
    pub(super) rules: Vec<Rule>,
}

/// What is done at some calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub names: Vec<String>,
    pub action: Action,
    /// All must hold, unless two are about the same argument: then any, see [`Rule::alternatives`].
    pub conditions: Vec<Condition>,
    /// The rule is there only where all of it holds.
    pub only: Scope,
    /// The rule is not there where any of it holds.
    pub except: Scope,
}

/// Where a rule is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scope {
    /// Mask of capabilities by number.
    pub capabilities: u64,
    /// Names of native ABIs, as [`Abi::short_name`].
    pub arches: Vec<String>,
    /// This kernel or a newer one.
    pub kernel: Option<Kernel>,
}

/// What the kernel does. See seccomp(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    KillProcess,
    KillThread,
    Trap,
    Errno(u16),
    Trace(u16),
    Log,
    Allow,
}

impl Action {
    /// The word of a profile, without `SCMP_ACT_`.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::KillProcess => "KILL_PROCESS",
            Self::KillThread => "KILL_THREAD",
            Self::Trap => "TRAP",
            Self::Errno(_) => "ERRNO",
            Self::Trace(_) => "TRACE",
            Self::Log => "LOG",
            Self::Allow => "ALLOW",
        }
    }

    /// What a filter returns (linux/seccomp.h, SECCOMP_RET_*).
    pub(super) fn value(self) -> u32 {
        match self {
            Self::KillProcess => 0x8000_0000,
            Self::KillThread => 0,
            Self::Trap => 0x0003_0000,
            Self::Errno(errno) => 0x0005_0000 | u32::from(errno),
            Self::Trace(message) => 0x7FF0_0000 | u32::from(message),
            Self::Log => 0x7FFC_0000,
            Self::Allow => 0x7FFF_0000,
        }
    }

    /// Whether the call can be made. A tracer is trusted to answer for calls it does not know.
    pub(super) const fn lets_through(self) -> bool {
        matches!(self, Self::Allow | Self::Log | Self::Trace(_))
    }
}

/// What an argument of the call must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub index: u8,
    pub comparison: Comparison,
    pub value: u64,
}

/// How an argument is compared, as unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Ne,
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
    /// Equal in the bits of the mask.
    MaskedEq(u64),
}

impl Profile {
    /// The rules that are there on `machine`.
    pub(super) fn rules_on(&self, machine: Machine) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| rule.only.all(machine) && !rule.except.any(machine))
    }

    /// The ABIs of `machine` that the rules are for: the native one always.
    pub(super) fn abis_on(&self, machine: Machine) -> Vec<Abi> {
        let more = self.abis_by_native.iter().find(|(native, _)| *native == machine.native);
        let more = more.map_or(&[][..], |(_, more)| more);
        let asked = |abi: &Abi| *abi == machine.native || self.abis.contains(abi) || more.contains(abi);
        machine.abis().iter().copied().filter(asked).collect()
    }
}

impl Rule {
    /// Sets of conditions, any one of which is enough. Each is about different arguments.
    ///
    /// Two conditions on one argument are two rules: the old meaning, which runc keeps and on which profiles rest.
    pub(super) fn alternatives(&self) -> Vec<Vec<Condition>> {
        let mut seen = [false; 256];
        let twice = self.conditions.iter().any(|c| std::mem::replace(&mut seen[usize::from(c.index)], true));
        if twice {
            self.conditions.iter().map(|condition| vec![*condition]).collect()
        } else {
            vec![self.conditions.clone()]
        }
    }
}

impl Scope {
    fn all(&self, machine: Machine) -> bool {
        machine.capabilities & self.capabilities == self.capabilities
            && (self.arches.is_empty() || self.has_arch(machine))
            && self.kernel.is_none_or(|least| machine.kernel >= least)
    }

    fn any(&self, machine: Machine) -> bool {
        machine.capabilities & self.capabilities != 0
            || self.has_arch(machine)
            || self.kernel.is_some_and(|least| machine.kernel >= least)
    }

    fn has_arch(&self, machine: Machine) -> bool {
        self.arches.iter().any(|arch| arch == machine.native.short_name())
    }
}
