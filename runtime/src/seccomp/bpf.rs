//! Classic BPF: the few instructions that a filter needs, and the pieces that are made of them.
//!
//! Jumps go forward only and, when conditional, at most 255 instructions far, so that pieces are made whole, from
//! the leaves up, and their length is known where it is jumped over.

use super::profile::{Comparison, Condition};

/// Most instructions of a program (linux/bpf_common.h, BPF_MAXINSNS).
pub(super) const MAX_INSTRUCTIONS: usize = 4096;

// linux/bpf_common.h: class, size, mode and operation in one.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

// linux/seccomp.h, struct seccomp_data: offsets in bytes. The 64-bit fields are little-endian where we run.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
const _: () = assert!(cfg!(target_endian = "little"), "halves of arguments are looked for in this order");

/// `struct sock_filter` of linux/filter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub k: u32,
}

/// Instructions in order.
pub(super) type Code = Vec<Instruction>;

impl Instruction {
    const fn new(code: u16, k: u32) -> Self {
        Self { code, if_true: 0, if_false: 0, k }
    }

    /// The eight bytes that the kernel reads.
    pub(super) fn bytes(self) -> [u8; 8] {
        let ([a, b], [c, d, e, f]) = (self.code.to_ne_bytes(), self.k.to_ne_bytes());
        [a, b, self.if_true, self.if_false, c, d, e, f]
    }
}

pub(super) const fn load_number() -> Instruction {
    Instruction::new(LOAD, NUMBER)
}

pub(super) const fn load_arch() -> Instruction {
    Instruction::new(LOAD, ARCH)
}

pub(super) const fn answer(value: u32) -> Instruction {
    Instruction::new(RETURN, value)
}

/// `then` if the loaded word is `value`, which must end in an answer on all its ways; what follows otherwise.
pub(super) fn section(value: u32, then: Code) -> Code {
    let test = Instruction { code: IF_EQUAL, if_true: 1, if_false: 0, k: value };
    let mut code = vec![test, Instruction::new(JUMP, length(&then))];
    code.extend(then);
    code
}

/// `below` if the loaded word is less than `value`, else `rest`; both must end in an answer on all their ways.
pub(super) fn branch(value: u32, below: Code, rest: Code) -> Code {
    let mut code = match u8::try_from(below.len()) {
        Ok(over) => vec![Instruction { code: IF_GREATER_OR_EQUAL, if_true: over, if_false: 0, k: value }],
        Err(_) => vec![
            Instruction { code: IF_GREATER_OR_EQUAL, if_true: 0, if_false: 1, k: value },
            Instruction::new(JUMP, length(&below)),
        ],
    };
    code.extend(below);
    code.extend(rest);
    code
}

/// Where a test of an argument goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Holds,
    Fails,
}

/// Answers `value` if all `conditions` hold; what follows otherwise. At most one condition an argument, so that no
/// jump is too far (6 × 6 instructions).
pub(super) fn guarded(conditions: &[Condition], wide: bool, value: u32) -> Code {
    let tests: Vec<Vec<(Instruction, To, To)>> = conditions.iter().map(|c| test(*c, wide)).collect();
    let mut code = Code::new();
    let total: usize = tests.iter().map(Vec::len).sum();
    for test in tests {
        let end = code.len() + test.len();
        for (instruction, if_true, if_false) in test {
            let here = code.len() + 1;
            let distance = |to| {
                let target = match to {
                    To::Next => here,
                    To::Holds => end,
                    To::Fails => total + 1,
                };
                u8::try_from(target - here).expect("six arguments with six instructions each are near")
            };
            code.push(Instruction {
                if_true: distance(if_true),
                if_false: distance(if_false),
                ..instruction
            });
        }
    }
    code.push(answer(value));
    code
}

/// The tests of one argument: in its upper half, if that counts, and its lower.
fn test(condition: Condition, wide: bool) -> Vec<(Instruction, To, To)> {
    use To::{Fails, Holds, Next};
    let (high, low) = (upper(condition.value), lower(condition.value));
    let load = |offset: u32| {
        let at = ARGUMENTS + 8 * u32::from(condition.index) + offset;
        (Instruction::new(LOAD, at), Next, Next)
    };
    let jump = |code, k, if_true, if_false| (Instruction::new(code, k), if_true, if_false);
    let mut tests = Vec::new();
    let mut half = |offset, wanted: Vec<_>| {
        tests.push(load(offset));
        tests.extend(wanted);
    };
    match condition.comparison {
        Comparison::Eq => {
            if wide {
                half(4, vec![jump(IF_EQUAL, high, Next, Fails)]);
            }
            half(0, vec![jump(IF_EQUAL, low, Holds, Fails)]);
        }
        Comparison::Ne => {
            if wide {
                half(4, vec![jump(IF_EQUAL, high, Next, Holds)]);
            }
            half(0, vec![jump(IF_EQUAL, low, Fails, Holds)]);
        }
        Comparison::MaskedEq(mask) => {
            let masked = |mask: u32, value: u32, then| {
                vec![(Instruction::new(AND, mask), Next, Next), jump(IF_EQUAL, value & mask, then, Fails)]
            };
            if wide {
                half(4, masked(upper(mask), high, Next));
            }
            half(0, masked(lower(mask), low, Holds));
        }
        Comparison::Gt | Comparison::Ge | Comparison::Lt | Comparison::Le => {
            // Less is what greater-or-equal is not.
            let (code, yes, no) = match condition.comparison {
                Comparison::Gt => (IF_GREATER, Holds, Fails),
                Comparison::Ge => (IF_GREATER_OR_EQUAL, Holds, Fails),
                Comparison::Lt => (IF_GREATER_OR_EQUAL, Fails, Holds),
                _ => (IF_GREATER, Fails, Holds),
            };
            if wide {
                half(4, vec![jump(IF_GREATER, high, yes, Next), jump(IF_EQUAL, high, Next, no)]);
            }
            half(0, vec![jump(code, low, yes, no)]);
        }
    }
    tests
}

fn upper(value: u64) -> u32 {
    u32::try_from(value >> 32).expect("32 bits are left")
}

fn lower(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).expect("32 bits are left")
}

fn length(code: &Code) -> u32 {
    u32::try_from(code.len()).expect("the compiler stops long before")
}
