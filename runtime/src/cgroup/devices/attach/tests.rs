//! Real groups of a version 2 tree, which may have no controller at all, and real processes in them.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command};

use super::super::program::{ALL, Kind};
use super::super::{DeviceRule, rules};
use super::*;
use crate::cgroup::hierarchy::Version;
use crate::cgroup::testing::{Scratch, wait_until};
use crate::cgroup::{Cgroup, Hierarchies};

const DENY_ALL: Rule = Rule { allow: false, kind: None, major: None, minor: None, access: ALL };
const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;

fn device(allow: bool, minor: u32, access: u32) -> Rule {
    Rule { allow, kind: Some(Kind::Char), major: Some(1), minor: Some(minor), access }
}

/// The group of version 2; none, said aloud, where this host cannot have a device program.
fn unified(cgroup: &Cgroup) -> Option<&Group> {
    let group = cgroup.groups.iter().find(|group| group.is(Version::V2));
    let missing = match group.map(|group| cove_sys::device_programs(group.dir.as_fd())) {
        None => "no cgroup v2 is mounted".to_owned(),
        Some(Err(e)) if Errno::from_io_error(&e) == Some(Errno::NOSYS) => format!("bpf(2): {e}"),
        Some(_) => return group,
    };
    // Not by a macro, whose output the test harness keeps to itself.
    writeln!(std::io::stderr(), "SKIPPED, nothing of cgroup v2's device rules is tested: {missing}").unwrap();
    None
}

fn programs(group: &Group) -> Vec<u32> {
    cove_sys::device_programs(group.dir.as_fd()).unwrap()
}

/// A shell that moves itself to the group and runs a script.
fn shell(group: &Group, script: &str) -> Command {
    let script = format!("echo $$ > {} || exit 99\n{script}", group.file("cgroup.procs").display());
    let mut command = Command::new("sh");
    command.args(["-c", &script]).env("LC_ALL", "C");
    command
}

/// Which attempts of a process in the group get past the device rules: each is a shell command.
fn allowed<const N: usize>(group: &Group, attempts: [&str; N]) -> [bool; N] {
    // What fails for another reason (no terminal to open, a node that cannot be opened here) got past them.
    let script: String =
        attempts.map(|attempt| format!("( {attempt} ) 2>&1 | tr '\\n' ' '; echo\n")).concat();
    let output = shell(group, &script).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("No such file"), "{text}");
    let lines: Vec<bool> = text.lines().map(|line| !line.contains("Operation not permitted")).collect();
    lines.try_into().unwrap_or_else(|_| panic!("{text}"))
}

/// A directory for nodes, removed when dropped.
struct Nodes(tempfile::TempDir);

impl Nodes {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn mknod(&self, name: &str, device: &str) -> String {
        let place: PathBuf = self.0.path().join(name);
        format!("mknod {} {device}", place.display())
    }
}

#[test]
fn a_container_uses_the_usual_devices_and_what_it_was_given_and_no_other() {
    let scratch = Scratch::new("bpf-usual");
    let cgroup = scratch.create("pod");
    let Some(group) = unified(&cgroup) else { return };
    let nodes = Nodes::new();
    let make = nodes.mknod("loop", "b 7 0");
    let attempts = [
        "exec 3<>/dev/null",
        "exec 3<>/dev/zero",
        "exec 3<>/dev/full",
        "exec 3</dev/urandom",
        "exec 3<>/dev/tty",
        &make,
        "exec 3</dev/kmsg",
        "exec 3</dev/tty0",
        &format!("{} && exec 3<{}", nodes.mknod("disk", "b 7 1"), nodes.0.path().join("disk").display()),
    ];
    set(group, &rules(&[]).unwrap()).unwrap();
    assert_eq!(allowed(group, attempts), [true, true, true, true, true, true, false, false, false]);

    let kmsg = DeviceRule { block: false, major: Some(1), minor: Some(11), access: "r".into() };
    set(group, &rules(&[kmsg]).unwrap()).unwrap();
    let attempts =
        ["exec 3</dev/kmsg", "exec 3>/dev/kmsg", "exec 3<>/dev/kmsg", "exec 3</dev/tty0", "exec 3</dev/null"];
    assert_eq!(allowed(group, attempts), [true, false, false, false, true]);
    clear(group).unwrap();
    assert_eq!(allowed(group, attempts), [true; 5]);
}

#[test]
fn each_way_of_access_is_ruled_by_itself_and_later_rules_win() {
    let scratch = Scratch::new("bpf-access");
    let cgroup = scratch.create("pod");
    let Some(group) = unified(&cgroup) else { return };
    let nodes = Nodes::new();
    let (null, zero) = (nodes.mknod("null", "c 1 3"), nodes.mknod("zero", "c 1 5"));
    let attempts =
        ["exec 3</dev/null", "exec 3>/dev/null", "exec 3<>/dev/null", &null, "exec 3</dev/zero", &zero];
    let any = |allow, access| Rule { allow, kind: None, major: None, minor: None, access };
    let table: [(&[Rule], [bool; 6]); 9] = [
        (&[], [true; 6]),
        (&[DENY_ALL], [false; 6]),
        (&[DENY_ALL, device(true, 3, READ)], [true, false, false, false, false, false]),
        (&[DENY_ALL, device(true, 3, WRITE)], [false, true, false, false, false, false]),
        (&[DENY_ALL, device(true, 3, READ), device(true, 3, WRITE)], [true, true, true, false, false, false]),
        (&[DENY_ALL, any(true, MAKE)], [false, false, false, true, false, true]),
        (&[device(false, 3, WRITE)], [true, false, false, true, true, true]),
        (
            &[device(true, 3, ALL), any(false, READ), device(true, 5, READ)],
            [false, true, false, true, true, true],
        ),
        (&[device(true, 3, ALL), DENY_ALL], [false; 6]),
    ];
    for (rules, expected) in table {
        set(group, rules).unwrap();
        assert_eq!(allowed(group, attempts), expected, "{rules:?}");
        for name in ["null", "zero"] {
            let _ = fs::remove_file(nodes.0.path().join(name));
        }
    }
}

#[test]
fn rules_are_replaced_any_number_of_times_and_found_by_who_knows_nothing_of_them() {
    let scratch = Scratch::new("bpf-again");
    let cgroup = scratch.create("pod");
    let Some(group) = unified(&cgroup) else { return };
    set(group, &[DENY_ALL]).unwrap();
    for _ in 0..3 {
        set(group, &[DENY_ALL, device(true, 3, ALL)]).unwrap();
        assert_eq!(programs(group).len(), 1);
    }
    drop(cgroup);
    // As after a restart of the daemon: only the path is known.
    let again = Hierarchies::detect().unwrap().open(&scratch.path("pod")).unwrap().unwrap();
    let group = unified(&again).unwrap();
    let attempts = ["exec 3</dev/null", "exec 3</dev/zero"];
    assert_eq!(allowed(group, attempts), [true, false]);
    set(group, &[DENY_ALL, device(true, 5, ALL)]).unwrap();
    assert_eq!(programs(group).len(), 1);
    assert_eq!(allowed(group, attempts), [false, true]);
    for _ in 0..2 {
        clear(group).unwrap();
        assert!(programs(group).is_empty());
    }
}

#[test]
fn what_another_writer_left_of_ours_goes_and_what_is_not_ours_stays() {
    let scratch = Scratch::new("bpf-others");
    let cgroup = scratch.create("pod");
    let Some(group) = unified(&cgroup) else { return };
    for (name, rule) in [(NAME, DENY_ALL), ("another", device(false, 7, ALL)), (NAME, DENY_ALL)] {
        let program = cove_sys::load_device_program(name, &program::compile(&[rule])).unwrap();
        cove_sys::attach_device_program(group.dir.as_fd(), program.as_fd(), None).unwrap();
    }
    let attempts = ["exec 3</dev/null", "exec 3</dev/full"];
    assert_eq!(allowed(group, attempts), [false, false]);
    set(group, &[DENY_ALL, device(true, 3, ALL), device(true, 7, ALL)]).unwrap();
    assert_eq!(programs(group).len(), 2);
    assert_eq!(allowed(group, attempts), [true, false]);
    clear(group).unwrap();
    assert_eq!(programs(group).len(), 1);
    assert_eq!(allowed(group, attempts), [true, false]);
}

#[test]
fn there_is_no_moment_without_rules_while_they_are_replaced() {
    struct Prober(Child);
    impl Drop for Prober {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    let scratch = Scratch::new("bpf-gap");
    let cgroup = scratch.create("pod");
    let Some(group) = unified(&cgroup) else { return };
    let nodes = Nodes::new();
    let place = nodes.0.path();
    set(group, &[DENY_ALL, device(true, 3, ALL)]).unwrap();
    // Nothing but builtins, so that it probes tens of thousands of times a second.
    let script = format!(
        "cd {}; n=0; while :; do
           true 3</dev/full && echo open >> gaps; true 3</dev/null || echo closed >> gaps
           n=$((n+1)); [ $((n%1000)) -eq 0 ] && echo $n > rounds
         done 2>>errors",
        place.display()
    );
    let mut prober = Prober(shell(group, &script).spawn().unwrap());
    let rounds = || -> u64 {
        fs::read_to_string(place.join("rounds")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    wait_until("the first rounds", || rounds() > 0);
    for round in 0..4000 {
        let other = device(true, 3 + 2 * (round % 2), READ);
        set(group, &[DENY_ALL, device(true, 3, ALL), other]).unwrap();
    }
    let during = rounds();
    wait_until("rounds after", || rounds() > during);
    assert!(prober.0.try_wait().unwrap().is_none());
    let gaps = || fs::read_to_string(place.join("gaps")).unwrap_or_default();
    assert_eq!(gaps(), "", "after {during} rounds");
    // The prober sees what there is to see.
    clear(group).unwrap();
    wait_until("an open that is allowed", || gaps().contains("open"));
}

#[test]
fn takes_as_many_rules_as_it_says_and_no_more() {
    let scratch = Scratch::new("bpf-many");
    let cgroup = scratch.create("pod");
    let Some(group) = unified(&cgroup) else { return };
    let attempts = ["exec 3</dev/null", "exec 3</dev/zero", "exec 3>/dev/null"];
    for (count, allow) in [(65, true), (300, true), (MAX_RULES, true), (MAX_RULES, false)] {
        let mut rules = vec![DENY_ALL, device(true, 3, READ)];
        // Of the kind and number that are asked for, but for the last: the longest way through the program.
        rules.extend((0..).map(|minor| device(allow, 1000 + minor, READ)).take(count - rules.len()));
        set(group, &rules).unwrap();
        assert_eq!(allowed(group, attempts), [true, false, false], "{count} {allow}");
    }
    let before = programs(group);
    let mut rules = vec![DENY_ALL; MAX_RULES + 1];
    let error = set(group, &rules).unwrap_err();
    assert!(error.to_string().contains(&MAX_RULES.to_string()), "{error}");
    assert_eq!(programs(group), before, "what was there stays");
    rules.pop();
    set(group, &rules).unwrap();
}

#[test]
fn a_program_that_the_kernel_refuses_is_told_with_what_its_verifier_says() {
    let scratch = Scratch::new("bpf-refused");
    let cgroup = scratch.create("pod");
    if unified(&cgroup).is_none() {
        return;
    }
    let mut program = program::compile(&[]);
    program.pop();
    let refused = cove_sys::load_device_program(NAME, &program).unwrap_err();
    assert_eq!(Errno::from_io_error(&refused.source), Some(Errno::INVAL));
    assert!(refused.log.contains("last insn"), "{}", refused.log);
    let long = cove_sys::load_device_program("a_name_that_is_too_long", &program::compile(&[])).unwrap_err();
    assert_eq!(long.source.kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn wrong_letters_are_refused() {
    for access in ["", "x", "rwx"] {
        let rule = DeviceRule { block: false, major: None, minor: None, access: access.into() };
        assert!(matches!(rules(&[rule]), Err(CgroupError::Limit { .. })), "{access:?}");
    }
}
