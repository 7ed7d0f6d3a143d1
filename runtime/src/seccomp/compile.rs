//! From a profile to a filter: a switch by ABI, a binary search by number, the tests of arguments at the leaves.

use std::collections::BTreeMap;

use super::bpf::{self, Code, MAX_INSTRUCTIONS};
use super::error::SeccompError;
use super::machine::Machine;
use super::profile::{Action, Comparison, Condition, Profile, Rule};
use super::table::{self, Abi, X32_BIT};

/// For calls that are newer than the profile: programs fall back to an older call, as on an older kernel.
const ENOSYS: u16 = 38;
/// For calls of an ABI that the profile is not for, as libseccomp has it.
const FOREIGN: Action = Action::KillThread;

/// The filter of `profile` for a container whose bounding set is `capabilities` (mask by number), for this node: an
/// array of `struct sock_filter`, as `ProcessSpec.seccomp` takes it.
///
/// # Errors
/// [`SeccompError::TooManyInstructions`]; [`SeccompError::Machine`] on a node without a table of system calls.
pub fn compile(profile: &Profile, capabilities: u64) -> Result<Vec<u8>, SeccompError> {
    compile_for(profile, Machine::this(capabilities)?)
}

pub(super) fn compile_for(profile: &Profile, machine: Machine) -> Result<Vec<u8>, SeccompError> {
    let abis = profile.abis_on(machine);
    let mut code = vec![bpf::load_arch()];
    for abi in machine.abis().iter().filter(|abi| **abi != Abi::X32) {
        let mut answers = Answers::default();
        answers.add(profile, machine, *abi, abis.contains(abi))?;
        if *abi == Abi::X86_64 {
            answers.add(profile, machine, Abi::X32, abis.contains(&Abi::X32))?;
        }
        let mut section = vec![bpf::load_number()];
        section.extend(search(&answers.ranges, profile.default.value()));
        code.extend(bpf::section(abi.audit(), section));
    }
    code.push(bpf::answer(FOREIGN.value()));
    if code.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooManyInstructions { limit: MAX_INSTRUCTIONS });
    }
    Ok(code.into_iter().flat_map(bpf::Instruction::bytes).collect())
}

/// What a number is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Always(u32),
    /// The first alternative that holds, else the default.
    First {
        alternatives: Vec<Alternative>,
        wide: bool,
    },
}

/// An answer for when all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Alternative {
    conditions: Vec<Condition>,
    value: u32,
}

/// What the rules say about one call.
#[derive(Debug, Default)]
struct Call {
    /// The first rule without a condition: it is stronger than all with one, as in libseccomp.
    always: Option<u32>,
    alternatives: Vec<Alternative>,
}

/// Ranges of numbers: first number of each, ascending from 0, with what all numbers up to the next are answered.
#[derive(Debug, Default)]
struct Answers {
    ranges: Vec<(u32, Answer)>,
}

impl Answers {
    /// Adds the numbers of an ABI; its first is greater than all that are there.
    fn add(
        &mut self,
        profile: &Profile,
        machine: Machine,
        abi: Abi,
        wanted: bool,
    ) -> Result<(), SeccompError> {
        let first = if abi == Abi::X32 { X32_BIT } else { 0 };
        if !wanted {
            self.push(first, Answer::Always(FOREIGN.value()));
            return Ok(());
        }
        let (calls, newest) = calls(profile, machine, abi)?;
        let default = Answer::Always(profile.default.value());
        self.push(first, default.clone());
        for (number, call) in calls {
            let answer = match call.always {
                Some(value) => Answer::Always(value),
                None => Answer::First { alternatives: call.alternatives, wide: abi.is_wide() },
            };
            self.push(number, answer);
            self.push(number + 1, default.clone());
        }
        if let (Some(newest), false) = (newest, profile.default.lets_through()) {
            self.push(newest + 1, Answer::Always(Action::Errno(ENOSYS).value()));
        }
        Ok(())
    }

    fn push(&mut self, first: u32, answer: Answer) {
        if self.ranges.last().is_some_and(|(last, _)| *last == first) {
            self.ranges.pop();
        }
        if self.ranges.last().is_none_or(|(_, last)| *last != answer) {
            self.ranges.push((first, answer));
        }
    }
}

/// What the rules say about each call of an ABI, and the greatest number that they name.
fn calls(
    profile: &Profile,
    machine: Machine,
    abi: Abi,
) -> Result<(BTreeMap<u32, Call>, Option<u32>), SeccompError> {
    let mut calls: BTreeMap<u32, Call> = BTreeMap::new();
    let mut newest = None;
    let mut count = 0;
    for rule in profile.rules_on(machine) {
        let value = rule.action.value();
        let alternatives = rule.alternatives();
        for name in &rule.names {
            let number = abi.number(name);
            let other_way = other_way(rule, abi, name);
            newest = newest.max(number).max(other_way.map(|(number, _)| number));
            // As runtimes on libseccomp do: such a rule says nothing, not even against a later one.
            if rule.action == profile.default {
                continue;
            }
            if let Some(number) = number {
                let call = calls.entry(number).or_default();
                for conditions in &alternatives {
                    call.add(conditions.clone(), value);
                }
            }
            if let Some((number, condition)) = other_way {
                calls.entry(number).or_default().add(vec![condition], value);
            }
            count += alternatives.len();
            // Each is at least one instruction unless a name is there twice: what a hostile profile costs is bounded.
            if count > MAX_INSTRUCTIONS {
                return Err(SeccompError::TooManyInstructions { limit: MAX_INSTRUCTIONS });
            }
        }
    }
    Ok((calls, newest))
}

/// The multiplexing call by which the same can be had, and the condition that it is this one.
///
/// There, arguments are in memory, where no filter can look. What a rule lets through under conditions is then not
/// let through; what it stops under conditions is stopped always.
fn other_way(rule: &Rule, abi: Abi, name: &str) -> Option<(u32, Condition)> {
    let multiplexed = table::multiplexed(abi, name)?;
    if rule.action.lets_through() && !rule.conditions.is_empty() {
        return None;
    }
    let comparison = Comparison::MaskedEq(multiplexed.mask);
    let condition = Condition { index: 0, comparison, value: multiplexed.selector };
    Some((abi.number(multiplexed.by)?, condition))
}

impl Call {
    fn add(&mut self, conditions: Vec<Condition>, value: u32) {
        if conditions.is_empty() {
            self.always.get_or_insert(value);
        } else {
            self.alternatives.push(Alternative { conditions, value });
        }
    }
}

/// Finds the range of the loaded number and answers.
fn search(ranges: &[(u32, Answer)], default: u32) -> Code {
    match ranges {
        [] => vec![bpf::answer(default)],
        [(_, answer)] => leaf(answer, default),
        _ => {
            let (below, rest) = ranges.split_at(ranges.len() / 2);
            bpf::branch(rest[0].0, search(below, default), search(rest, default))
        }
    }
}

fn leaf(answer: &Answer, default: u32) -> Code {
    match answer {
        Answer::Always(value) => vec![bpf::answer(*value)],
        Answer::First { alternatives, wide } => {
            let mut code = Code::new();
            for alternative in alternatives {
                code.extend(bpf::guarded(&alternative.conditions, *wide, alternative.value));
            }
            code.push(bpf::answer(default));
            code
        }
    }
}
