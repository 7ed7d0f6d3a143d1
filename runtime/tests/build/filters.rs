//! Compiled seccomp profiles, loaded into the kernel.

use cove_runtime::build::request::ContainerSpec;
use cove_runtime::seccomp::{Profile, compile};
use cove_sys::{CloneFlags, Forked};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::cases::renew;
use crate::image::{self, DEFAULT_CAPABILITIES, Image};
use crate::shim::{Job, output, run, start};
use crate::{Case, Host};

pub const ALL: &[Case] = &[
    ("seccomp: the default profile", default_profile),
    ("seccomp: rules on arguments", arguments),
    ("seccomp: what a process sees", errors),
    ("seccomp: a profile too narrow to start", too_narrow),
];

const ADMIN: u64 = 1 << 21;

fn with_default(image: &Image, script: &str, capabilities: u64) -> ContainerSpec {
    let mut spec = image.spec(script);
    let sets = &mut spec.process.capabilities;
    (sets.bounding, sets.permitted, sets.effective) = (capabilities, capabilities, capabilities);
    spec.process.seccomp = Some(compile(&Profile::runtime_default(), capabilities).unwrap());
    spec
}

fn default_profile(host: &Host, image: &Image) {
    let script = "unshare -m true 2>&1; unshare -U true 2>&1; mount -t tmpfs x /tmp 2>&1; mkdir /tmp/d; echo $?; \
        (echo child); chroot / true; echo $?; grep Seccomp: /proc/self/status";
    let spec = with_default(image, script, DEFAULT_CAPABILITIES);
    let out = output(host, &spec);
    assert_eq!(
        out.matches("Operation not permitted").count() + out.matches("ermission denied").count(),
        3,
        "{out}"
    );
    assert!(out.ends_with("0\nchild\n0\nSeccomp:\t2\n"), "{out}");
    renew(image);
    // As root with CAP_SYS_ADMIN the same calls are let through, and an exec is behind the same filter.
    let mut spec =
        with_default(image, "unshare -m true && echo made; exec sleep 1000", DEFAULT_CAPABILITIES | ADMIN);
    spec.process.no_new_privs = false;
    let running = start(host, &Job::Shared(&spec, None)).unwrap_or_else(|f| panic!("{f:?}"));
    assert_eq!(running.line(), "made");
    for no_new_privs in [true, false] {
        let mut process = image::process("unshare -m true 2>&1; grep Seccomp: /proc/self/status");
        process.no_new_privs = no_new_privs;
        process.seccomp = Some(compile(&Profile::runtime_default(), DEFAULT_CAPABILITIES).unwrap());
        let out =
            start(host, &Job::Exec(&process, &running.pidfd)).unwrap_or_else(|f| panic!("{f:?}")).finish();
        assert!(out.output.contains("not permitted") && out.output.ends_with("Seccomp:\t2\n"), "{out:?}");
    }
    running.kill();
}

/// kill(2) with one signal is refused, in every way to say so; others are not.
fn arguments(host: &Host, image: &Image) {
    for (args, refused) in [
        (r#"{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}"#, [true, false]),
        (r#"{"index": 1, "value": 10, "op": "SCMP_CMP_GE"}"#, [true, false]),
        (r#"{"index": 1, "value": 10, "op": "SCMP_CMP_LT"}"#, [false, true]),
        (r#"{"index": 1, "value": 2, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}"#, [true, false]),
        (r#"{"index": 1, "value": 4294967306, "op": "SCMP_CMP_EQ"}"#, [false, false]),
        (
            r#"{"index": 1, "value": 0, "op": "SCMP_CMP_NE"}, {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}"#,
            [true, false],
        ),
    ] {
        let json = format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95, "args": [{args}]}}]}}"#
        );
        renew(image);
        let mut spec = image.spec("trap : USR1; kill -USR1 $$ 2>&1; kill -0 $$ 2>&1; echo end");
        let profile = Profile::from_json(json.as_bytes()).unwrap();
        spec.process.seccomp = Some(compile(&profile, DEFAULT_CAPABILITIES).unwrap());
        let out = output(host, &spec);
        let expected = refused.iter().filter(|refused| **refused).count();
        assert_eq!(out.matches("not supported").count(), expected, "{args}: {out}");
        assert!(out.ends_with("end\n"), "{out}");
    }
}

/// In a process of this program: what is asked for, what is not, and what is newer than the profile.
fn errors(host: &Host, _: &Image) {
    let json = br#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5, "syscalls": [
        {"names": ["exit_group", "munmap", "sigaltstack", "dup3"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["getcwd"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77},
        {"names": ["chdir"], "action": "SCMP_ACT_ERRNO"}
    ]}"#;
    let program = compile(&Profile::from_json(json).unwrap(), 0).unwrap();
    match cove_sys::fork(host.single, CloneFlags::none(), None).unwrap() {
        Forked::Child(_) => {
            rustix::thread::set_no_new_privs(true).unwrap();
            cove_sys::set_filter(&program).unwrap();
            let openat2 = rustix::fs::openat2(CWD, "/", OFlags::PATH, Mode::empty(), ResolveFlags::empty());
            let seen = [
                rustix::process::getcwd(Vec::new()).err() == Some(Errno::from_raw_os_error(77)),
                rustix::process::chdir("/").err() == Some(Errno::PERM),
                rustix::process::chroot("/").err() == Some(Errno::IO),
                openat2.err() == Some(Errno::NOSYS),
            ];
            // A bit for each that is as it should be.
            cove_sys::exit_now(seen.iter().fold(0, |bits, seen| bits << 1 | i32::from(*seen)))
        }
        Forked::Parent { pid, .. } => {
            let status = waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap().unwrap().1;
            assert_eq!(status.exit_status(), Some(0b1111), "{status:?}");
        }
    }
}

/// A filter that does not let execve through is loaded all the same, and the start fails with what it answers.
fn too_narrow(host: &Host, image: &Image) {
    let json = br#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 95, "syscalls": [
        {"names": ["sendto", "sendmsg", "write", "exit_group", "mmap", "munmap", "brk"], "action": "SCMP_ACT_ALLOW"}
    ]}"#;
    let mut spec = image.spec("true");
    spec.process.seccomp = Some(compile(&Profile::from_json(json).unwrap(), 0).unwrap());
    let failure = run(host, &spec).unwrap_err();
    assert_eq!((failure.step.as_str(), failure.errno), ("exec", 95), "{failure:?}");
}
