//! Our filters against those of libseccomp for the same profile: every number, every ABI, arguments on both sides of
//! each condition. What runc puts before libseccomp's program, ENOSYS for newer calls, is computed here on its own.

use std::fs::File;
use std::io::{Read, Seek};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use rustix::fs::MemfdFlags;

use super::compile::compile_for;
use super::interpret::{Call, run};
use super::machine::Machine;
use super::profile::{Action, Comparison, Condition, Profile, Rule, Scope};
use super::table::tests::{ALL, names};
use super::table::{self, Abi, X32_BIT};
use crate::build::capabilities;

const X86_64: Machine = Machine { native: Abi::X86_64, kernel: (6, 1), capabilities: 0 };
const AARCH64: Machine = Machine { native: Abi::Aarch64, kernel: (6, 1), capabilities: 0 };
/// What Docker and containerd leave in a bounding set.
const USUAL: u64 = 0xA804_25FB;
const ENOSYS: u32 = 0x0005_0026;

fn arch(abi: Abi) -> ScmpArch {
    match abi {
        Abi::X86_64 => ScmpArch::X8664,
        Abi::X86 => ScmpArch::X86,
        Abi::X32 => ScmpArch::X32,
        Abi::Aarch64 => ScmpArch::Aarch64,
    }
}

fn action(action: Action) -> ScmpAction {
    match action {
        Action::KillProcess => ScmpAction::KillProcess,
        Action::KillThread => ScmpAction::KillThread,
        Action::Trap => ScmpAction::Trap,
        Action::Errno(errno) => ScmpAction::Errno(errno.into()),
        Action::Trace(message) => ScmpAction::Trace(message),
        Action::Log => ScmpAction::Log,
        Action::Allow => ScmpAction::Allow,
    }
}

fn condition(condition: &Condition) -> ScmpArgCompare {
    let operator = match condition.comparison {
        Comparison::Ne => ScmpCompareOp::NotEqual,
        Comparison::Lt => ScmpCompareOp::Less,
        Comparison::Le => ScmpCompareOp::LessOrEqual,
        Comparison::Eq => ScmpCompareOp::Equal,
        Comparison::Ge => ScmpCompareOp::GreaterEqual,
        Comparison::Gt => ScmpCompareOp::Greater,
        Comparison::MaskedEq(mask) => ScmpCompareOp::MaskedEqual(mask),
    };
    ScmpArgCompare::new(condition.index.into(), operator, condition.value)
}

/// The profile without the calls that this libseccomp is too old for.
fn known(mut profile: Profile) -> Profile {
    for rule in &mut profile.rules {
        rule.names.retain(|name| ScmpSyscall::from_name(name).is_ok());
    }
    profile
}

/// libseccomp's program, fed with rules as runc feeds it.
fn reference(profile: &Profile, machine: Machine) -> Vec<u8> {
    let mut filter = ScmpFilterContext::new(action(profile.default)).unwrap();
    for abi in profile.abis_on(machine) {
        filter.add_arch(arch(abi)).unwrap();
    }
    if machine.native != Abi::X86_64 {
        filter.remove_arch(ScmpArch::Native).unwrap();
    }
    for rule in profile.rules_on(machine).filter(|rule| rule.action != profile.default) {
        for name in &rule.names {
            let call = ScmpSyscall::from_name(name).unwrap();
            for conditions in rule.alternatives() {
                let conditions: Vec<_> = conditions.iter().map(condition).collect();
                if conditions.is_empty() {
                    filter.add_rule(action(rule.action), call).unwrap();
                } else {
                    filter.add_rule_conditional(action(rule.action), call, &conditions).unwrap();
                }
            }
        }
    }
    let mut file = File::from(rustix::fs::memfd_create("filter", MemfdFlags::CLOEXEC).unwrap());
    filter.export_bpf(&mut file).unwrap();
    file.rewind().unwrap();
    let mut program = Vec::new();
    file.read_to_end(&mut program).unwrap();
    program
}

/// The greatest number that the rules name, by libseccomp's tables; x32's with its bit.
fn newest(profile: &Profile, machine: Machine, abi: Abi) -> Option<u32> {
    let number = |name: &String| {
        let number = ScmpSyscall::from_name_by_arch(name, arch(abi)).ok()?.as_raw_syscall();
        u32::try_from(number).ok()
    };
    profile.rules_on(machine).flat_map(|rule| &rule.names).filter_map(number).max()
}

/// Holds our program against libseccomp's. Returns how many calls were compared.
fn compare(profile: &Profile, machine: Machine, arguments: &[[u64; 6]]) -> usize {
    let (ours, theirs) = (compile_for(profile, machine).unwrap(), reference(profile, machine));
    let mut compared = 0;
    for abi in ALL {
        let base = if abi == Abi::X32 { X32_BIT } else { 0 };
        let there = profile.abis_on(machine).contains(&abi);
        let newest = newest(profile, machine, abi).filter(|_| there && !profile.default.lets_through());
        for number in (0..=600).chain([0x0FFF_FFFF, 0x3FFF_FFFF]).map(|number| base | number) {
            for arguments in arguments {
                // The selector of ipc has a version in its upper half, which libseccomp does not mask.
                if (abi, number) == (Abi::X86, 117) && arguments[0] > 0xFFFF {
                    continue;
                }
                let call = Call { number, arch: abi.audit(), arguments: *arguments };
                let newer = newest.is_some_and(|newest| number > newest);
                let expected = if newer { ENOSYS } else { run(&theirs, &call) };
                assert_eq!(run(&ours, &call), expected, "{abi:?} {call:x?} {profile:?}");
                compared += 1;
            }
        }
    }
    for arch in [0, 0x4000_0028, 0x8000_0016] {
        let call = Call { number: 0, arch, arguments: [0; 6] };
        assert_eq!(run(&ours, &call), run(&theirs, &call), "architecture {arch:#x}");
    }
    compared
}

/// The first argument, the others zero.
fn first(values: &[u64]) -> Vec<[u64; 6]> {
    values.iter().map(|value| [*value, 0, 0, 0, 0, 0]).collect()
}

#[test]
fn the_tables_are_those_of_libseccomp() {
    for abi in ALL {
        let mut compared = 0;
        for name in names(abi) {
            let Ok(theirs) = ScmpSyscall::from_name_by_arch(name, arch(abi)) else { continue };
            compared += 1;
            let number = u32::try_from(theirs.as_raw_syscall()).ok();
            // It knows these by the multiplexing call; their own numbers are looked at below.
            if number.is_none() && table::multiplexed(abi, name).is_some() {
                continue;
            }
            assert_eq!(abi.number(name), number, "{abi:?} {name}");
        }
        assert!(compared > 290, "{abi:?}: {compared}");
        for number in 0..600 {
            let raw = i32::try_from(if abi == Abi::X32 { X32_BIT | number } else { number }).unwrap();
            if let Ok(name) = ScmpSyscall::from(raw).get_name_by_arch(arch(abi)) {
                assert_eq!(abi.number(&name), u32::try_from(raw).ok(), "{abi:?} {name}");
            }
        }
    }
}

#[test]
fn the_default_profile() {
    let profile = known(Profile::runtime_default());
    let mut values: Vec<u64> = (0..48).collect();
    values.extend([
        0x0002_0000,
        0x0002_0008,
        0x0002_0009,
        0x7E02_0000,
        0x0080_0000,
        0x1000_0000,
        0x0001_0000,
    ]);
    values.extend([0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 32, 1 << 32 | 2, 1 << 32 | 38, u64::MAX]);
    let compared = compare(&profile, Machine { capabilities: USUAL, ..X86_64 }, &first(&values))
        + compare(&profile, Machine { capabilities: USUAL, ..AARCH64 }, &first(&values));
    assert!(compared > 200_000, "{compared}");
    let few = first(&[0, 38, 0x1000_0000]);
    let single = (0..capabilities::NAMES.len()).map(|number| 1 << number);
    for capabilities in single.chain([0, u64::MAX]) {
        compare(&profile, Machine { capabilities, ..X86_64 }, &few);
        compare(&profile, Machine { capabilities, ..AARCH64 }, &few);
    }
    compare(&profile, Machine { kernel: (4, 7), ..X86_64 }, &few);
}

/// xorshift: the same profiles in every run.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end).unwrap()).unwrap()
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

const VALUES: [u64; 12] = [
    0,
    1,
    2,
    5,
    0x8000_0000,
    0xFFFF_FFFE,
    0xFFFF_FFFF,
    1 << 32,
    1 << 32 | 5,
    5 << 32 | 1,
    u64::MAX - 1,
    u64::MAX,
];
const ACTIONS: [Action; 9] = [
    Action::KillProcess,
    Action::KillThread,
    Action::Trap,
    Action::Errno(1),
    Action::Errno(38),
    Action::Errno(4094),
    Action::Trace(7),
    Action::Log,
    Action::Allow,
];

fn random_condition(random: &mut Random) -> Condition {
    let value = random.one(&VALUES);
    let mask = random.one(&[0, 1, 4, 7, 0xFFFF_FFFF, 0xFFFF_FFFF_0000_0000, u64::MAX]);
    let comparison = random.one(&[
        Comparison::Ne,
        Comparison::Lt,
        Comparison::Le,
        Comparison::Eq,
        Comparison::Ge,
        Comparison::Gt,
        Comparison::MaskedEq(mask),
    ]);
    Condition { index: u8::try_from(random.below(6)).unwrap(), comparison, value }
}

fn rule(names: Vec<String>, action: Action, conditions: Vec<Condition>) -> Rule {
    Rule { names, action, conditions, only: Scope::default(), except: Scope::default() }
}

/// What a call's rules are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mix {
    /// At most one rule with conditions a call, on different arguments, or several that ask for equality.
    Plain,
    /// Any; libseccomp 2.5.4 is wrong about some: `< 1 << 32` and `> 0xFFFF_FFFF` on one argument do not meet.
    Wild,
}

/// Every call has its own action, so that the order of rules with conditions, which libseccomp does not keep, does not
/// matter; some have a second rule, without conditions.
fn random_profile(random: &mut Random, mix: Mix) -> Profile {
    let mut all = names(random.one(&ALL));
    all.sort_unstable();
    let default = random.one(&ACTIONS);
    let mut rules = Vec::new();
    for name in all {
        let action = random.one(&ACTIONS);
        let mut conditions = Vec::new();
        let plain = table::multiplexed(Abi::X86, name).is_none();
        if plain && random.below(12) == 0 {
            conditions.extend((0..random.one(&[1, 2, 3, 6])).map(|_| random_condition(random)));
        }
        if mix == Mix::Plain {
            if random.below(3) == 0 {
                conditions.iter_mut().for_each(|c| (c.index, c.comparison) = (2, Comparison::Eq));
            }
            let several = conditions.iter().all(|c| c.index == 2 && c.comparison == Comparison::Eq);
            // libseccomp refuses the same twice, where it sees half of the bits too.
            let key = |c: &Condition| if several { c.value & 0xFFFF_FFFF } else { c.index.into() };
            let mut seen = std::collections::HashSet::new();
            conditions.retain(|c| seen.insert(key(c)));
        }
        if random.below(4) != 0 {
            rules.push(rule(vec![name.to_owned()], action, conditions));
        }
        if plain && random.below(8) == 0 {
            let action = random.one(&ACTIONS);
            let at = rules.len() - usize::from(!rules.is_empty() && random.below(2) == 0);
            rules.insert(at, rule(vec![name.to_owned()], action, Vec::new()));
        }
    }
    let abis = ALL.into_iter().filter(|abi| *abi != Abi::Aarch64 && random.below(2) == 0).collect();
    known(Profile { default, abis, abis_by_native: Vec::new(), rules })
}

fn holds(condition: &Condition, arguments: &[u64; 6], wide: bool) -> bool {
    let cut = |value: u64| if wide { value } else { value & 0xFFFF_FFFF };
    let (argument, value) = (cut(arguments[usize::from(condition.index)]), cut(condition.value));
    match condition.comparison {
        Comparison::Ne => argument != value,
        Comparison::Lt => argument < value,
        Comparison::Le => argument <= value,
        Comparison::Eq => argument == value,
        Comparison::Ge => argument >= value,
        Comparison::Gt => argument > value,
        Comparison::MaskedEq(mask) => argument & mask == value & mask,
    }
}

/// What the words of a profile mean for the call `name`.
fn meaning(profile: &Profile, machine: Machine, abi: Abi, name: &str, arguments: &[u64; 6]) -> u32 {
    let own = |rule: &&Rule| rule.action != profile.default && rule.names.iter().any(|known| known == name);
    let rules: Vec<&Rule> = profile.rules_on(machine).filter(own).collect();
    let always = rules.iter().find(|rule| rule.conditions.is_empty());
    let matching = rules.iter().find(|rule| {
        let any = |all: &Vec<Condition>| all.iter().all(|one| holds(one, arguments, abi.is_wide()));
        rule.alternatives().iter().any(any)
    });
    always.or(matching).map_or(profile.default, |rule| rule.action).value()
}

/// Holds our program against the meaning of the rules.
fn compare_meaning(profile: &Profile, machine: Machine, arguments: &[[u64; 6]]) -> usize {
    let ours = compile_for(profile, machine).unwrap();
    let mut compared = 0;
    for abi in profile.abis_on(machine) {
        for name in profile.rules.iter().flat_map(|rule| &rule.names) {
            let Some(number) = abi.number(name).filter(|_| !["socketcall", "ipc"].contains(&name.as_str()))
            else {
                continue;
            };
            for arguments in arguments {
                let call = Call { number, arch: abi.audit(), arguments: *arguments };
                let expected = meaning(profile, machine, abi, name, arguments);
                assert_eq!(run(&ours, &call), expected, "{abi:?} {name} {call:x?} {profile:?}");
                compared += 1;
            }
        }
    }
    compared
}

#[test]
fn profiles_at_random() {
    let mut random = Random(0x5EED_C0DE);
    let (mut compared, mut meant) = (0, 0);
    for round in 0..12 {
        let machine = if round % 4 == 3 { AARCH64 } else { X86_64 };
        let arguments: Vec<[u64; 6]> = (0..10).map(|_| [(); 6].map(|()| random.one(&VALUES))).collect();
        let plain = random_profile(&mut random, Mix::Plain);
        compared += compare(&plain, machine, &arguments);
        let wild = random_profile(&mut random, Mix::Wild);
        meant += compare_meaning(&plain, machine, &arguments) + compare_meaning(&wild, machine, &arguments);
    }
    assert!(compared > 250_000 && meant > 40_000, "{compared} {meant}");
}

#[test]
fn every_comparison_on_both_sides() {
    for value in VALUES {
        for mask in [0, 1, 0xFFFF_FFFF, 0xFFFF_FFFF_0000_0000, u64::MAX] {
            let comparisons = [
                Comparison::Ne,
                Comparison::Lt,
                Comparison::Le,
                Comparison::Eq,
                Comparison::Ge,
                Comparison::Gt,
                Comparison::MaskedEq(mask),
            ];
            // getpid and its neighbours take anything: one number a comparison, the same on no two.
            let calls = ["getpid", "getppid", "gettid", "getuid", "getgid", "geteuid", "getegid"];
            let rules = calls.iter().zip(comparisons).enumerate().map(|(i, (name, comparison))| {
                let index = u8::try_from(i % 6).unwrap();
                let conditions = vec![Condition { index, comparison, value }];
                rule(vec![(*name).to_owned()], Action::Errno(77), conditions)
            });
            let profile = Profile {
                default: Action::Allow,
                abis: vec![Abi::X86, Abi::X32],
                abis_by_native: Vec::new(),
                rules: rules.collect(),
            };
            let mut near: Vec<u64> = VALUES.to_vec();
            near.extend([value.wrapping_add(1), value.wrapping_sub(1), value ^ (1 << 32), value ^ (1 << 63)]);
            let arguments: Vec<_> = near.iter().map(|value| [*value; 6]).collect();
            compare_some(&profile, &arguments);
        }
    }
}

/// Only the calls that have rules.
fn compare_some(profile: &Profile, arguments: &[[u64; 6]]) {
    let (ours, theirs) = (compile_for(profile, X86_64).unwrap(), reference(profile, X86_64));
    for abi in [Abi::X86_64, Abi::X86, Abi::X32] {
        for name in profile.rules.iter().flat_map(|rule| &rule.names) {
            let Some(number) = abi.number(name) else { panic!("{abi:?} has no {name}") };
            for arguments in arguments {
                let call = Call { number, arch: abi.audit(), arguments: *arguments };
                assert_eq!(run(&ours, &call), run(&theirs, &call), "{abi:?} {name} {call:x?} {profile:?}");
            }
        }
    }
}
