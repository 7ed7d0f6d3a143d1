//! What profiles are taken, what is refused and how, and what filters do where no oracle is asked.

use std::path::Path;

use serde_json::{Value, json};

use super::compile::compile_for;
use super::interpret::{Call, run};
use super::machine::Machine;
use super::profile::{Action, Profile};
use super::table::tests::names;
use super::table::{Abi, X32_BIT};
use super::{PROFILE_LIMIT, SeccompError, compile};

const MACHINE: Machine = Machine { native: Abi::X86_64, kernel: (6, 1), capabilities: 0 };
const ALLOW: u32 = 0x7FFF_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL: u32 = 0;

fn profile(json: &Value) -> Result<Profile, SeccompError> {
    Profile::from_json(json.to_string().as_bytes())
}

/// What `profile` answers on `machine` to the call `name` of `abi`, with a first argument.
fn ask(profile: &Profile, machine: Machine, abi: Abi, name: &str, argument: u64) -> u32 {
    ask_number(profile, machine, abi, abi.number(name).unwrap(), argument)
}

fn ask_number(profile: &Profile, machine: Machine, abi: Abi, number: u32, argument: u64) -> u32 {
    let program = compile_for(profile, machine).unwrap();
    run(&program, &Call { number, arch: abi.audit(), arguments: [argument, 0, 0, 0, 0, 0] })
}

#[test]
fn what_is_refused() {
    let rule = |more: Value| {
        let mut rule = json!({"names": ["read"], "action": "SCMP_ACT_ALLOW"});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]})
    };
    let arg = |index: u64, op: &str| rule(json!({"args": [{"index": index, "value": 1, "op": op}]}));
    let whole = |name: &str, value: Value| json!({"defaultAction": "SCMP_ACT_ERRNO", name: value});
    // Profile, what the refusal says.
    let table = [
        (json!({}), "defaultAction is missing"),
        (json!({"defaultAction": ""}), "defaultAction is missing"),
        (json!({"syscalls": []}), "defaultAction is missing"),
        (json!({"defaultAction": "SCMP_ACT_NOPE"}), "\"SCMP_ACT_NOPE\" is unknown"),
        (json!({"defaultAction": "scmp_act_allow"}), "is unknown"),
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "is not built"),
        (json!({"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}), "gives no errno"),
        (whole("defaultErrnoRet", json!(4096)), "greater than 4095"),
        (whole("defaultErrno", json!("EWHAT")), "defaultErrno: \"EWHAT\" is unknown"),
        (whole("architectures", json!(["SCMP_ARCH_VAX"])), "architectures[0]: \"SCMP_ARCH_VAX\""),
        (whole("architectures", json!([""])), "architectures[0]"),
        (whole("flags", json!(["SECCOMP_FILTER_FLAG_LOG"])), "flags[0]"),
        (whole("flags", json!(["X"])), "flags[0]: \"X\" is unknown"),
        (whole("listenerPath", json!("/run/x")), "listenerPath"),
        (whole("syscals", json!([])), "unknown field `syscals`"),
        (whole("syscalls", json!({})), "invalid type"),
        (
            whole("archMap", json!([{"architecture": "X", "subArchitectures": []}])),
            "archMap[0].architecture: \"X\"",
        ),
        (rule(json!({"names": []})), "syscalls[0].names is missing"),
        (rule(json!({"names": ["read", ""]})), "syscalls[0].names is missing"),
        (rule(json!({"name": "write"})), "syscalls[0].name"),
        (rule(json!({"action": ""})), "syscalls[0].action is missing"),
        (rule(json!({"action": "SCMP_ACT_NOTIFY"})), "syscalls[0].action"),
        (rule(json!({"errnoRet": 1})), "gives no errno"),
        (rule(json!({"action": "SCMP_ACT_TRACE", "errnoRet": 65536})), "greater than 65535"),
        (rule(json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 1, "errno": "ENOSYS"})), "ENOSYS is 38, not 1"),
        (rule(json!({"arg": []})), "unknown field `arg`"),
        (rule(json!({"includes": {"caps": ["CAP_ALL"]}})), "syscalls[0].includes.caps"),
        (rule(json!({"excludes": {"minKernel": "new"}})), "syscalls[0].excludes.minKernel"),
        (arg(6, "SCMP_CMP_EQ"), "syscalls[0].args[0].index"),
        (arg(256, "SCMP_CMP_EQ"), "invalid value"),
        (arg(0, "SCMP_CMP_LIKE"), "syscalls[0].args[0].op"),
        (arg(0, ""), "syscalls[0].args[0].op"),
        (rule(json!({"args": [{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]})), "invalid value"),
    ];
    for (json, expected) in table {
        let error = profile(&json).expect_err(&json.to_string()).to_string();
        assert!(error.contains(expected), "{json}: {error}");
    }
    for text in ["", " ", "null", "[]", "{", "\u{0}", "{\"defaultAction\": 1}"] {
        assert!(matches!(Profile::from_json(text.as_bytes()), Err(SeccompError::Form(_))), "{text:?}");
    }
    let long = vec![b' '; usize::try_from(PROFILE_LIMIT).unwrap() + 1];
    assert!(matches!(Profile::from_json(&long), Err(SeccompError::TooLong { .. })));
}

#[test]
fn files() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("good"), r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    std::fs::write(at("empty"), "").unwrap();
    std::fs::File::create(at("huge")).unwrap().set_len(100 << 20).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(Profile::from_file(&at("good")).unwrap().default, Action::Allow);
    for (path, expected) in [
        (Path::new(""), "is not absolute"),
        (Path::new("good"), "is not absolute"),
        (&at("missing"), "open seccomp profile"),
        (&at("empty"), "EOF while parsing"),
        (&at("huge"), "more than 1048576 bytes"),
        (&at("fifo"), "is not a regular file"),
        (directory.path(), "is not a regular file"),
        (Path::new("/dev/zero"), "is not a regular file"),
    ] {
        let error = Profile::from_file(path).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn what_profiles_of_other_tools_have() {
    let docker = profile(&json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "defaultErrno": "ENOSYS", "comment": "ours",
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
            {"architecture": "SCMP_ARCH_S390X", "subArchitectures": ["SCMP_ARCH_S390"]}
        ],
        "flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"], "listenerPath": "",
        "syscalls": [
            {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "",
             "includes": {}, "excludes": {}},
            {"name": "mkdir", "action": "SCMP_ACT_ERRNO", "errno": "EINVAL"},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["umount2"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.2"}},
            {"names": ["acct"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
            {"names": ["close"], "action": "SCMP_ACT_LOG", "args": null},
            {"names": ["open"], "action": "SCMP_ACT_KILL"},
            {"names": ["write"], "action": "SCMP_ACT_TRACE"},
        ],
    }))
    .unwrap();
    let on = |machine, name| ask(&docker, machine, Abi::X86_64, name, 0);
    let admin = Machine { capabilities: 1 << 21 | 1 << 3, ..MACHINE };
    let newer = Machine { kernel: (6, 2), ..MACHINE };
    for (machine, name, expected) in [
        (MACHINE, "read", ALLOW),
        (MACHINE, "mkdir", ERRNO | 22),
        (MACHINE, "rmdir", ERRNO | 38),
        (MACHINE, "mount", ERRNO | 38),
        (admin, "mount", ALLOW),
        (MACHINE, "umount2", ALLOW),
        (admin, "umount2", ERRNO | 38),
        (MACHINE, "ptrace", ERRNO | 38),
        (newer, "ptrace", ALLOW),
        (MACHINE, "acct", ERRNO | 38),
        (MACHINE, "close", 0x7FFC_0000),
        (MACHINE, "open", KILL),
        (MACHINE, "write", 0x7FF0_0001),
    ] {
        assert_eq!(on(machine, name), expected, "{machine:?} {name}");
    }
    assert_eq!(ask(&docker, MACHINE, Abi::X32, "read", 0), ALLOW);
}

#[test]
fn other_abis_are_killed() {
    let mut native = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}],
    });
    let profile_of = |json: &Value| profile(json).unwrap();
    let only = profile_of(&native);
    assert_eq!(ask(&only, MACHINE, Abi::X86_64, "mkdir", 0), ERRNO | 1);
    for (abi, number) in [(Abi::X32, X32_BIT | 83), (Abi::X32, u32::MAX), (Abi::X86, 39), (Abi::Aarch64, 0)] {
        assert_eq!(ask_number(&only, MACHINE, abi, number, 0), KILL, "{abi:?} {number:#x}");
    }
    native["architectures"] = json!(["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_RISCV64"]);
    let all = profile_of(&native);
    for abi in [Abi::X86_64, Abi::X86, Abi::X32] {
        assert_eq!(ask(&all, MACHINE, abi, "mkdir", 0), ERRNO | 1, "{abi:?}");
    }
    assert_eq!(ask_number(&all, MACHINE, Abi::Aarch64, 0, 0), KILL);
}

#[test]
fn calls_newer_than_the_profile() {
    let of = |default: &str| {
        let rule = json!({"names": ["statx", "mkdir"], "action": "SCMP_ACT_LOG"});
        profile(&json!({"defaultAction": default, "syscalls": [rule]})).unwrap()
    };
    for (default, old, new) in [
        ("SCMP_ACT_ERRNO", ERRNO | 1, ERRNO | 38),
        ("SCMP_ACT_KILL_PROCESS", 0x8000_0000, ERRNO | 38),
        ("SCMP_ACT_TRAP", 0x0003_0000, ERRNO | 38),
        ("SCMP_ACT_ALLOW", ALLOW, ALLOW),
        ("SCMP_ACT_TRACE", 0x7FF0_0001, 0x7FF0_0001),
    ] {
        let profile = of(default);
        // statx is 332.
        for (number, expected) in [(331, old), (332, 0x7FFC_0000), (333, new), (9999, new)] {
            let answer = ask_number(&profile, MACHINE, Abi::X86_64, number, 0);
            assert_eq!(answer, expected, "{default} {number}");
        }
    }
    let nothing = profile(&json!({"defaultAction": "SCMP_ACT_ERRNO"})).unwrap();
    assert_eq!(ask_number(&nothing, MACHINE, Abi::X86_64, 9999, 0), ERRNO | 1);
}

#[test]
fn the_first_rule_that_holds() {
    let rule = |action: &str, errno: Value, op: &str, value: u64| {
        let args = json!([{"index": 0, "value": value, "op": op}]);
        json!({"names": ["setuid"], "action": action, "errnoRet": errno, "args": args})
    };
    let ordered = profile(&json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [rule("SCMP_ACT_ERRNO", json!(5), "SCMP_CMP_EQ", 7), rule("SCMP_ACT_ERRNO", json!(6), "SCMP_CMP_LT", 9)],
    }))
    .unwrap();
    for (uid, expected) in [(7, ERRNO | 5), (8, ERRNO | 6), (9, ALLOW)] {
        assert_eq!(ask(&ordered, MACHINE, Abi::X86_64, "setuid", uid), expected, "{uid}");
    }
}

#[test]
fn no_way_round_by_socketcall_and_ipc() {
    let both = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
    let alg = json!([{"index": 0, "value": 38, "op": "SCMP_CMP_EQ"}]);
    let rules = |default: &str, action: &str| {
        profile(&json!({
            "defaultAction": default,
            "architectures": both,
            "syscalls": [{"names": ["socket"], "action": action, "args": alg}, {"names": ["shmat"], "action": action}],
        }))
        .unwrap()
    };
    let denied = rules("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO");
    let allowed = rules("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW");
    // By socketcall and ipc: selector 1 is socket, 21 shmat, also with a version in its upper half.
    for (name, argument, when_denied, when_allowed) in [
        ("socket", 38, ERRNO | 1, ALLOW),
        ("socket", 2, ALLOW, ERRNO | 1),
        ("socketcall", 1, ERRNO | 1, ERRNO | 1),
        ("socketcall", 2, ALLOW, ERRNO | 1),
        ("ipc", 21, ERRNO | 1, ALLOW),
        ("ipc", 21 | 1 << 16, ERRNO | 1, ALLOW),
        ("ipc", 22, ALLOW, ERRNO | 1),
    ] {
        assert_eq!(ask(&denied, MACHINE, Abi::X86, name, argument), when_denied, "denied {name} {argument}");
        assert_eq!(
            ask(&allowed, MACHINE, Abi::X86, name, argument),
            when_allowed,
            "allowed {name} {argument}"
        );
    }
}

#[test]
fn the_default_profile() {
    let default = Profile::runtime_default();
    let admin = Machine { capabilities: 1 << 21, ..MACHINE };
    for (machine, name, argument, expected) in [
        (MACHINE, "openat2", 0, ALLOW),
        (MACHINE, "mount", 0, ERRNO | 1),
        (MACHINE, "unshare", 0, ERRNO | 1),
        (MACHINE, "keyctl", 0, ERRNO | 1),
        (MACHINE, "io_uring_setup", 0, ERRNO | 1),
        (MACHINE, "userfaultfd", 0, ERRNO | 1),
        (MACHINE, "clone3", 0, ERRNO | 38),
        (MACHINE, "clone", 0x11, ALLOW),
        (MACHINE, "clone", 0x1000_0011, ERRNO | 1),
        (MACHINE, "socket", 2, ALLOW),
        (MACHINE, "socket", 38, ERRNO | 1),
        (MACHINE, "socket", 40, ERRNO | 1),
        (MACHINE, "socket", 1 << 32 | 2, ERRNO | 1),
        (MACHINE, "personality", 0x0004_0000, ERRNO | 1),
        (MACHINE, "removexattrat", 0, ALLOW),
        (MACHINE, "open_tree_attr", 0, ERRNO | 38),
        (admin, "mount", 0, ALLOW),
        (admin, "clone3", 0, ALLOW),
        (admin, "clone", 0x1000_0011, ALLOW),
        (admin, "reboot", 0, ERRNO | 1),
    ] {
        assert_eq!(
            ask(&default, machine, Abi::X86_64, name, argument),
            expected,
            "{machine:?} {name} {argument:#x}"
        );
    }
    assert_eq!(ask_number(&default, MACHINE, Abi::X86_64, 100_000, 0), ERRNO | 38);
    // Each CLONE_NEW* of linux/sched.h.
    for flag in [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        assert_eq!(ask(&default, MACHINE, Abi::X86_64, "clone", flag | 0x11), ERRNO | 1, "{flag:#x}");
    }
    let names: Vec<_> =
        default.rules.iter().filter(|r| r.conditions.is_empty()).flat_map(|r| &r.names).collect();
    assert!(names.len() > 400, "{}", names.len());
}

/// Of Linux 7.0 on x86_64, what a container with the usual capabilities cannot call whatever the arguments.
const DENIED: &str = "_sysctl acct add_key afs_syscall bpf clock_settime clone3 create_module delete_module fanotify_init \
    file_getattr file_setattr finit_module fsconfig fsmount fsopen fspick get_kernel_syms get_mempolicy \
    getpmsg init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load \
    kexec_load keyctl listns lookup_dcookie mbind migrate_pages mount mount_setattr move_mount move_pages \
    nfsservctl open_by_handle_at open_tree open_tree_attr perf_event_open pidfd_getfd pivot_root \
    process_madvise putpmsg query_module quotactl quotactl_fd reboot request_key rseq_slice_yield security \
    set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday swapoff swapon sysfs \
    syslog tuxcall umount2 unshare uprobe uselib userfaultfd ustat vhangup vserver";

#[test]
fn what_the_default_profile_denies() {
    let usual = Machine { capabilities: 0xA804_25FB, ..MACHINE };
    let program = compile_for(&Profile::runtime_default(), usual).unwrap();
    let mut denied = names(Abi::X86_64);
    denied.retain(|name| {
        let number = Abi::X86_64.number(name).unwrap();
        let argument = u64::from(*name == "socket");
        run(&program, &Call { number, arch: Abi::X86_64.audit(), arguments: [argument, 0, 0, 0, 0, 0] })
            != ALLOW
    });
    denied.sort_unstable();
    assert_eq!(denied.join(" "), DENIED);
}

#[test]
fn as_the_runtime_spec_has_it() {
    for capabilities in [0, 1 << 21, u64::MAX] {
        let default = Profile::runtime_default();
        let oci = default.to_oci(capabilities).unwrap();
        let again = Profile::from_oci(&oci).unwrap();
        // Its conditions were resolved: the same filter, whatever it is compiled with.
        assert_eq!(compile(&again, 0).unwrap(), compile(&default, capabilities).unwrap());
        assert_eq!(again.to_oci(0).unwrap(), oci);
        let json = serde_json::to_vec(&oci).unwrap();
        assert_eq!(Profile::from_json(&json).unwrap(), again);
    }
}

#[test]
fn a_program_too_long_for_the_kernel() {
    let args: Vec<_> =
        (0..6).map(|i| json!({"index": i, "value": 1_u64 << 40, "op": "SCMP_CMP_GT"})).collect();
    let many: Vec<_> =
        (0..200).map(|_| json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": args})).collect();
    let long = profile(&json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": many})).unwrap();
    assert!(matches!(compile(&long, 0), Err(SeccompError::TooManyInstructions { limit: 4096 })));
    let many = json!({"names": vec!["read"; 100_000], "action": "SCMP_ACT_ALLOW", "args": args});
    let long = profile(&json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [many]})).unwrap();
    assert!(matches!(compile(&long, 0), Err(SeccompError::TooManyInstructions { limit: 4096 })));
    let default = compile(&Profile::runtime_default(), 0).unwrap();
    assert!(default.len() / 8 < 1500, "{} instructions", default.len() / 8);
}
