//! The protocol of shims that run on customers' machines: its bytes are committed, and a change that would make an
//! old shim misunderstand a new daemon fails here. `COVE_BLESS=1` writes what is missing; it never overwrites.
#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures has failed")]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::PathBuf;

use cove_runtime::build::request::*;
use cove_runtime::protocol::*;
use cove_runtime::wire::{Malformed, Wire};

fn golden<T: Wire + PartialEq + Debug>(name: &str, value: &T) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/fixtures/protocol-{PROTOCOL}"))
        .join(format!("{name}.bin"));
    let bytes = value.to_bytes();
    if std::env::var_os("COVE_BLESS").is_some() && !path.exists() {
        std::fs::write(&path, &bytes).unwrap();
    }
    let committed = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(bytes, committed, "{name}: the bytes of this message have changed");
    assert_eq!(T::from_bytes(&committed).as_ref(), Ok(value), "{name}");
    assert!(bytes.len() <= MAX_FRAME);
}

/// Every tag up to the first that is unknown has a fixture.
fn complete<T: Wire>(tags: &BTreeSet<u8>) {
    let known: BTreeSet<u8> =
        (0..=u8::MAX).filter(|tag| !matches!(T::from_bytes(&[*tag]), Err(Malformed::Tag { .. }))).collect();
    assert_eq!(tags, &known, "a kind of message has no fixture");
}

fn requests() -> Vec<(&'static str, Request)> {
    let container = || "c".repeat(64);
    let cgroup = || CgroupPlace { unified: false, count: 8 };
    vec![
        ("hello", Request::Hello(Hello { protocol: 1, generation: 0x0102_0304_0506_0708 })),
        (
            "make-sandbox",
            Request::MakeSandbox(SandboxSpec {
                sandbox: "5".repeat(64),
                new_net: true,
                new_ipc: true,
                new_uts: false,
                hostname: "web-0".into(),
                sysctls: vec![("net.ipv4.ip_forward".into(), "1".into())],
            }),
        ),
        (
            "start-init",
            Request::StartInit(StartInit { shared_pid: true, shm_size: 64 << 20, cgroup: cgroup() }),
        ),
        (
            "start",
            Request::Start(Start {
                container: container(),
                pid: PidMode::Pod,
                log: true,
                oom_events: true,
                oom_score_adj: Some(-997),
                cgroup: CgroupPlace { unified: true, count: 1 },
            }),
        ),
        (
            "exec",
            Request::Exec(Exec {
                exec: 7,
                container: container(),
                bound: true,
                terminal: false,
                oom_score_adj: None,
                cgroup: cgroup(),
            }),
        ),
        ("signal", Request::Signal(Signal { container: container(), signal: 15 })),
        ("kill-exec", Request::KillExec(ExecId { exec: 7 })),
        ("reopen-log", Request::ReopenLog(ContainerId { container: container() })),
        ("acknowledge", Request::Acknowledge(Acknowledge { serial: 99 })),
        ("forget", Request::Forget(ContainerId { container: container() })),
        ("shutdown", Request::Shutdown),
        (
            "start-open",
            Request::StartOpen(StartOpen {
                start: Start {
                    container: container(),
                    pid: PidMode::Private,
                    log: true,
                    oom_events: false,
                    oom_score_adj: None,
                    cgroup: CgroupPlace { unified: false, count: 8 },
                },
                stdin: true,
                terminal: false,
            }),
        ),
        (
            "attach",
            Request::Attach(Attach { container: container(), stdin: true, stdout: true, stderr: false }),
        ),
        ("close-stdin", Request::CloseStdin(ContainerId { container: container() })),
    ]
}

/// Those that came later.
fn later_requests() -> Vec<(&'static str, Request)> {
    let container = || "c".repeat(64);
    let cgroup = || CgroupPlace { unified: false, count: 8 };
    vec![
        ("make-user-sandbox", Request::MakeUserSandbox(user_sandbox())),
        (
            "start-target",
            Request::Start(Start {
                container: container(),
                pid: PidMode::Target(ContainerId { container: "d".repeat(64) }),
                log: false,
                oom_events: false,
                oom_score_adj: None,
                cgroup: cgroup(),
            }),
        ),
    ]
}

fn user_sandbox() -> UserSandbox {
    let sandbox = SandboxSpec {
        sandbox: "5".repeat(64),
        new_net: true,
        new_ipc: true,
        new_uts: true,
        hostname: "web-0".into(),
        sysctls: Vec::new(),
    };
    UserSandbox { sandbox, ids: IdMap { host: 1_048_576, size: 65_536 } }
}

fn replies() -> Vec<(&'static str, Reply)> {
    let failure = Failure { step: "mounts".into(), errno: 2, detail: "open /srv".into() };
    vec![
        ("done", Reply::Done),
        ("failed", Reply::Failed(failure)),
        (
            "hello",
            Reply::Hello(HelloReply { protocol: 1, build: "0.1.0+abc".into(), sandbox: "5".repeat(64) }),
        ),
        ("sandbox", Reply::Sandbox),
        ("init", Reply::Init(InitReply { pid: 4242 })),
    ]
}

fn facts() -> Vec<(&'static str, Fact)> {
    let container = || "c".repeat(64);
    let failure = || Failure { step: "exec".into(), errno: 13, detail: "/bin/app".into() };
    vec![
        (
            "started",
            Fact::Started(Started {
                container: container(),
                pid: 4242,
                start_time: 123_456_789,
                user: ResolvedUser { uid: 1000, gid: 1000, groups: vec![1000, 50_000] },
            }),
        ),
        ("start-failed", Fact::StartFailed(StartFailed { container: container(), failure: failure() })),
        ("oom", Fact::Oom(ContainerId { container: container() })),
        (
            "exited",
            Fact::Exited(Exited {
                container: container(),
                status: ExitStatus { code: 137, signal: 9 },
                oom: true,
            }),
        ),
        ("exec-started", Fact::ExecStarted(ExecStarted { exec: 7, pid: 4243 })),
        ("exec-failed", Fact::ExecFailed(ExecFailed { exec: 7, failure: failure() })),
        ("exec-exited", Fact::ExecExited(ExecExited { exec: 7, status: ExitStatus { code: 3, signal: 0 } })),
        ("init-exited", Fact::InitExited(ExitStatus { code: 0, signal: 0 })),
    ]
}

#[test]
fn requests_are_what_they_were() {
    let mut tags = BTreeSet::new();
    for (seq, (name, request)) in (1_u32..).zip(requests().into_iter().chain(later_requests())) {
        tags.insert(request.to_bytes()[0]);
        golden(&format!("request-{name}"), &Frame { seq, request });
    }
    complete::<Request>(&tags);
}

#[test]
fn replies_are_what_they_were() {
    let (mut tags, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for (seq, (name, reply)) in (1_u32..).zip(replies()) {
        tags.insert(reply.to_bytes()[0]);
        let message = Message::Reply(Answer { seq, reply });
        kinds.insert(message.to_bytes()[0]);
        golden(&format!("reply-{name}"), &message);
    }
    complete::<Reply>(&tags);
    kinds.insert(Message::SnapshotEnd.to_bytes()[0]);
    golden("snapshot-end", &Message::SnapshotEnd);

    let mut tags = BTreeSet::new();
    for (serial, (name, fact)) in (1_u64..).zip(facts()) {
        tags.insert(fact.to_bytes()[0]);
        let message = Message::Fact(Event { serial, at: 1_795_560_735_000_000_042, fact });
        kinds.insert(message.to_bytes()[0]);
        golden(&format!("fact-{name}"), &message);
    }
    complete::<Fact>(&tags);
    complete::<Message>(&kinds);
}

fn process() -> ProcessSpec {
    ProcessSpec {
        args: vec!["/bin/app".into(), "-v".into()],
        env: vec!["PATH=/bin".into()],
        cwd: "/work".into(),
        user: User {
            user: "app:staff".into(),
            gid: Some(7),
            supplemental: vec![8, 9],
            policy: GroupsPolicy::Strict,
        },
        capabilities: Capabilities { bounding: 1, effective: 2, permitted: 3, inheritable: 0, ambient: 4 },
        no_new_privs: true,
        rlimits: vec![Rlimit { resource: 7, soft: 1024, hard: 4096 }],
        umask: 0o022,
        seccomp: Some(vec![6, 0, 0, 0, 0, 0, 0xff, 0x7f]),
        apparmor: Some("cove-default".into()),
    }
}

/// Kinds of mounts that came after the fixture of a whole specification was committed.
fn later_mounts() -> Vec<(&'static str, MountKind)> {
    vec![
        (
            "mount-image",
            MountKind::Image(ImageVolume {
                lower: vec!["/l/4".into(), "/l/3".into()],
                sub_path: "etc/app".into(),
            }),
        ),
        ("mount-volume", MountKind::Volume("/c/volumes/0".into())),
        (
            "mount-mapped-bind",
            MountKind::MappedBind(Bind {
                source: "/srv".into(),
                recursive: true,
                propagation: Propagation::Private,
                recursive_readonly: false,
            }),
        ),
    ]
}

/// A specification is read by the builder, which is the shim's own program.
#[test]
fn specifications_are_what_they_were() {
    let mount = |destination: &str, kind| Mount {
        destination: destination.into(),
        kind,
        readonly: true,
        nosuid: false,
        nodev: true,
        noexec: false,
    };
    let bind = |propagation| {
        MountKind::Bind(Bind {
            source: "/srv".into(),
            recursive: true,
            propagation,
            recursive_readonly: false,
        })
    };
    let process = process();
    golden("process-spec", &process);
    let container = ContainerSpec {
        container: "c".repeat(64),
        rootfs: Rootfs {
            lower: vec!["/l/2".into(), "/l/1".into()],
            upper: "/c/upper".into(),
            work: "/c/work".into(),
            target: "/c/rootfs".into(),
            readonly: false,
            volatile: true,
        },
        new_cgroup_namespace: true,
        mounts: vec![
            mount("/a", bind(Propagation::Private)),
            mount("/b", bind(Propagation::HostToContainer)),
            mount("/c", bind(Propagation::Bidirectional)),
            mount("/proc", MountKind::Proc),
            mount("/sys", MountKind::Sysfs),
            mount("/dev/mqueue", MountKind::Mqueue),
            mount("/dev/pts", MountKind::Devpts),
            mount("/dev", MountKind::Tmpfs(Tmpfs { size: 65_536, mode: 0o755, strict_atime: true })),
            mount("/dev/shm", MountKind::Shm),
            mount("/sys/fs/cgroup", MountKind::Cgroup),
        ],
        devices: vec![Device {
            path: "/dev/null".into(),
            block: false,
            major: 1,
            minor: 3,
            mode: 0o666,
            uid: 0,
            gid: 0,
        }],
        masked_paths: vec!["/proc/kcore".into()],
        readonly_paths: vec!["/proc/sys".into()],
        process,
    };
    let later = later_mounts();
    let mounts = container.mounts.iter().map(|mount| &mount.kind);
    complete::<MountKind>(
        &mounts.chain(later.iter().map(|(_, kind)| kind)).map(|kind| kind.to_bytes()[0]).collect(),
    );
    golden("container-spec", &container);
    for (name, kind) in &later {
        golden(name, kind);
    }
}

#[test]
fn every_cut_of_a_message_is_refused() {
    for (_, request) in requests() {
        let bytes = Frame { seq: 1, request }.to_bytes();
        for end in 0..bytes.len() {
            assert!(Frame::from_bytes(&bytes[..end]).is_err());
        }
    }
}
