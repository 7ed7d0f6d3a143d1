//! Device rules as an eBPF program of the type `BPF_PROG_TYPE_CGROUP_DEVICE`, which the kernel asks for every open and
//! every making of a node (admin-guide/cgroup-v2, device controller). Instructions: the kernel's
//! bpf/standardization/instruction-set.
//!
//! A request is for one or more of read, write and make; each of these is decided by the last rule that names it and
//! fits the device, and all must be allowed. The program looks at the rules from the last to the first, and keeps in a
//! register what is not decided yet.

use cove_sys::Instruction;

/// Most rules of one list. The kernel's verifier keeps at most 8192 branches to come back to
/// (`BPF_COMPLEXITY_LIMIT_JMP_SEQ`, kernel/bpf/verifier.c), and a rule costs it up to four.
pub(super) const MAX_RULES: usize = 2000;

/// Letters of a rule and their bits in a request: `BPF_DEVCG_ACC_*`.
const ACCESS: [(char, u32); 3] = [('m', 1), ('r', 2), ('w', 4)];
/// Read, write and make.
pub(super) const ALL: u32 = 7;

/// Kinds of device, by their number in a request: `BPF_DEVCG_DEV_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Block = 1,
    Char = 2,
}

/// Allows or denies; none is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) allow: bool,
    pub(super) kind: Option<Kind>,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    /// Bits of [`access`].
    pub(super) access: u32,
}

impl Rule {
    /// Decides every request.
    fn is_default(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }
}

/// The bits of letters of `rwm`; none for no letter and for any other.
pub(super) fn access(letters: &str) -> Option<u32> {
    let bit = |letter| ACCESS.iter().find(|(known, _)| *known == letter).map(|(_, bit)| *bit);
    let bits = letters.chars().try_fold(0, |bits, letter| Some(bits | bit(letter)?))?;
    (bits != 0).then_some(bits)
}

// Registers. The kernel passes the request, `struct bpf_cgroup_dev_ctx`, in REQUEST, and takes the verdict from VERDICT.
const VERDICT: u8 = 0;
const REQUEST: u8 = 1;
const UNDECIDED: u8 = 2;
const FIELD: u8 = 3;

// Fields of the request: how wide they are loaded, and from which offset. The access is the upper half of the first.
const FIRST: (u8, i16) = (LOAD, 0);
const KIND: (u8, i16) = (LOAD_HALF, 0);
const MAJOR: (u8, i16) = (LOAD, 4);
const MINOR: (u8, i16) = (LOAD, 8);

// Opcodes: class, source and operation in one byte. All on 32 bits, so that constants are not sign-extended.
const LOAD: u8 = 0x61; // LDX | MEM | W
const LOAD_HALF: u8 = 0x69; // LDX | MEM | H
const MOVE: u8 = 0xb4; // ALU | MOV | K
const AND: u8 = 0x54; // ALU | AND | K
const SHIFT_RIGHT: u8 = 0x74; // ALU | RSH | K
const JUMP_IF_NOT: u8 = 0x56; // JMP32 | JNE | K
const JUMP_IF_NONE_OF: u8 = 0x46; // JMP32 | JSET | K, over one jump
const JUMP: u8 = 0x05; // JMP | JA
const EXIT: u8 = 0x95; // JMP | EXIT

const fn with(opcode: u8, register: u8, offset: i16, constant: u32) -> Instruction {
    Instruction { opcode, registers: register, offset, immediate: constant.cast_signed() }
}

const fn load(register: u8, (opcode, offset): (u8, i16)) -> Instruction {
    with(opcode, REQUEST << 4 | register, offset, 0)
}

const fn answer(allow: bool) -> [Instruction; 2] {
    [with(MOVE, VERDICT, 0, allow as u32), with(EXIT, 0, 0, 0)]
}

/// The program for a list of rules, of which later ones win. What no rule decides is allowed, as in a group without
/// rules; a list that begins with the denial of everything denies it.
pub(super) fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let start = rules.iter().rposition(Rule::is_default);
    let allow = start.is_none_or(|start| rules[start].allow);
    let rules = &rules[start.map_or(0, |start| start + 1)..];
    let mut program = vec![load(UNDECIDED, FIRST), with(SHIFT_RIGHT, UNDECIDED, 0, 16)];
    for rule in rules.iter().rev() {
        one(rule, &mut program);
    }
    program.extend(answer(allow));
    program
}

fn one(rule: &Rule, program: &mut Vec<Instruction>) {
    let verdict: Vec<Instruction> = if rule.allow {
        // Decided; with nothing left, allowed.
        let rest = [with(AND, UNDECIDED, 0, !rule.access), with(JUMP_IF_NOT, UNDECIDED, 2, 0)];
        rest.into_iter().chain(answer(true)).collect()
    } else {
        let any = [with(JUMP_IF_NONE_OF, UNDECIDED, 1, rule.access), with(JUMP, 0, 2, 0)];
        any.into_iter().chain(answer(false)).collect()
    };
    let fits = [(KIND, rule.kind.map(|kind| kind as u32)), (MAJOR, rule.major), (MINOR, rule.minor)];
    let fits: Vec<_> = fits.into_iter().filter_map(|(field, value)| Some((field, value?))).collect();
    let mut after = 2 * fits.len() + verdict.len();
    for (field, value) in fits {
        after -= 2;
        let over = i16::try_from(after).expect("a rule is a few instructions");
        // Loaded anew for each rule: the verifier follows a value for as long as it is in a register, and would walk
        // through all later rules once for each value that an earlier one compares with.
        program.extend([load(FIELD, field), with(JUMP_IF_NOT, FIELD, over, value)]);
    }
    program.extend(verdict);
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    struct Request {
        kind: Kind,
        major: u32,
        minor: u32,
        access: u32,
    }

    /// What the rules say, told from the first to the last.
    fn verdict(rules: &[Rule], request: Request) -> bool {
        let fits = |rule: &&Rule| {
            rule.kind.is_none_or(|kind| kind == request.kind)
                && rule.major.is_none_or(|major| major == request.major)
                && rule.minor.is_none_or(|minor| minor == request.minor)
        };
        let mut allowed = ALL;
        for rule in rules.iter().filter(fits) {
            if rule.allow {
                allowed |= rule.access;
            } else {
                allowed &= !rule.access;
            }
        }
        request.access & !allowed == 0
    }

    /// Runs a program as the kernel does; panics on an instruction that [`compile`] has no use for.
    fn run(program: &[Instruction], request: Request) -> bool {
        let memory = [request.access << 16 | request.kind as u32, request.major, request.minor];
        let mut registers = [0_u32; 11];
        let mut at = 0;
        loop {
            let instruction = program[at];
            let (to, from) =
                (usize::from(instruction.registers & 15), usize::from(instruction.registers >> 4));
            let constant = instruction.immediate.cast_unsigned();
            at += 1;
            let jump = match instruction.opcode {
                0x61 => {
                    assert_eq!((from, instruction.offset % 4), (1, 0));
                    registers[to] = memory[usize::try_from(instruction.offset / 4).unwrap()];
                    false
                }
                0x69 => {
                    assert_eq!((from, instruction.offset), (1, 0));
                    registers[to] = memory[0] & 0xffff;
                    false
                }
                0xb4 => {
                    registers[to] = constant;
                    false
                }
                0x54 => {
                    registers[to] &= constant;
                    false
                }
                0x74 => {
                    registers[to] >>= constant;
                    false
                }
                0x56 => registers[to] != constant,
                0x46 => registers[to] & constant != 0,
                0x05 => true,
                0x95 => return registers[0] != 0,
                other => panic!("{other:#x}"),
            };
            if jump {
                at += usize::try_from(instruction.offset).unwrap();
            }
        }
    }

    /// Few values, so that rules and requests meet, and those at which signs go wrong.
    fn value() -> impl Strategy<Value = u32> {
        prop_oneof![4 => 0..4_u32, 1 => Just(0x7fff_ffff), 1 => Just(0x8000_0000), 1 => Just(u32::MAX)]
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![Just(Kind::Block), Just(Kind::Char)]
    }

    fn rule() -> impl Strategy<Value = Rule> {
        use proptest::option::of as open;
        (any::<bool>(), open(kind()), open(value()), open(value()), 1..=ALL)
            .prop_map(|(allow, kind, major, minor, access)| Rule { allow, kind, major, minor, access })
    }

    fn request() -> impl Strategy<Value = Request> {
        (kind(), value(), value(), 1..=ALL).prop_map(|(kind, major, minor, access)| Request {
            kind,
            major,
            minor,
            access,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn says_what_the_rules_say(
            rules in proptest::collection::vec(rule(), 0..24),
            requests in proptest::collection::vec(request(), 1..24),
        ) {
            let program = compile(&rules);
            for request in requests {
                prop_assert_eq!(run(&program, request), verdict(&rules, request), "{:?}", request);
            }
        }
    }

    #[test]
    fn a_request_for_nothing_needs_a_rule_for_its_device() {
        let deny = Rule { allow: false, kind: None, major: None, minor: None, access: ALL };
        let null = Rule { allow: true, kind: Some(Kind::Char), major: Some(1), minor: Some(3), access: ALL };
        let program = compile(&[deny, null]);
        let request = Request { kind: Kind::Char, major: 1, minor: 3, access: 0 };
        assert!(run(&program, request));
        assert!(!run(&program, Request { minor: 4, ..request }));
    }

    #[test]
    fn reads_letters() {
        assert_eq!(access("rwm"), Some(ALL));
        assert_eq!(access("mm"), Some(1));
        for wrong in ["", "x", "rx", "R", "r w"] {
            assert_eq!(access(wrong), None, "{wrong:?}");
        }
    }
}
