//! The shim's binary through its socket, with real containers. Needs root and busybox-static.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod pod;

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cove_runtime::protocol::*;

use pod::{Daemon, Pod, text, until, until_in};

fn alive(pid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_private_container_from_start_to_exit() {
    let (mut pod, init) = Pod::new(false);
    assert!(init.is_none());
    let id = pod.start(PidMode::Private, "hostname; echo to err >&2; ls /proc/self/fd; echo $$; exit 3");
    let (started, _pidfd) = pod.daemon.started();
    assert_eq!((started.container.as_str(), started.user.uid), (id.as_str(), 0));
    assert!(started.start_time > 0);
    let exited = pod.daemon.exited();
    assert_eq!(exited.status, ExitStatus { code: 3, signal: 0 });
    assert!(!exited.oom);
    // The fact comes when the log is complete. 3 is the directory that `ls` reads.
    assert_eq!(pod.output(&id, "stdout"), "web-0\n0\n1\n2\n3\n1\n");
    assert_eq!(pod.output(&id, "stderr"), "to err\n");
    pod.daemon.done(Request::Forget(ContainerId { container: id }), &[]);
    pod.shut_down();
}

#[test]
fn containers_share_an_init_that_reaps() {
    let (mut pod, init) = Pod::new(true);
    assert!(init.is_some());
    let first = pod.start(PidMode::Pod, "echo one > /dev/shm/seen; exec sleep 1000");
    let (started, pidfd) = pod.daemon.started();
    let second = pod.start(PidMode::Pod, "cat /dev/shm/seen; cat /proc/1/comm; sleep 1000 & exit 7");
    pod.daemon.started();
    let exited = pod.daemon.exited();
    assert_eq!((exited.container.as_str(), exited.status.code), (second.as_str(), 7));
    assert_eq!(pod.output(&second, "stdout"), "one\ncove-init\n");
    // Its other process was killed with it.
    assert_eq!(pod.members(&second), [0; 0]);

    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", started.pid)).unwrap();
    assert_eq!(score, "500\n");
    pod.daemon.done(Request::Signal(Signal { container: first.clone(), signal: 9 }), &[]);
    let exited = pod.daemon.exited();
    assert_eq!((exited.container, exited.status), (first, ExitStatus { code: 137, signal: 9 }));
    assert!(!alive(started.pid));
    drop(pidfd);
    pod.shut_down();
}

#[test]
fn ended_containers_hold_no_descriptor_and_programs_have_the_usual_limit() {
    let (mut pod, _) = Pod::new(true);
    let shim = format!("/proc/{}", pod.process.id());
    let open = || fs::read_dir(format!("{shim}/fd")).unwrap().count();
    let before = open();
    for mode in [PidMode::Private, PidMode::Pod, PidMode::Host] {
        let id = pod.start(mode, "ulimit -Sn; ulimit -Hn");
        pod.daemon.started();
        assert_eq!(pod.daemon.exited().status.code, 0);
        let limits = fs::read_to_string(format!("{shim}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let own: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
        assert_eq!(own[0], own[1], "the shim has raised its own");
        assert_eq!(pod.output(&id, "stdout"), format!("1024\n{}\n", own[1]));
    }
    let failed = pod.start_with(PidMode::Pod, None, |process| process.args = vec!["/bin/absent".into()]);
    let last = pod.daemon.fact().0;
    assert!(matches!(last.fact, Fact::StartFailed(failed_) if failed_.container == failed));
    // A start that is not recorded yet keeps its pidfd. None of the containers is forgotten.
    pod.daemon.send(Request::Acknowledge(Acknowledge { serial: last.serial }), &[]);
    until("descriptors to be closed", || open() <= before);
    pod.shut_down();
}

#[test]
fn host_pid_orphans_die_with_their_container() {
    let (mut pod, _) = Pod::new(false);
    let id = pod.start(PidMode::Host, "for i in 1 2 3; do setsid sleep 1000 & done; echo $$; exit 0");
    let (started, _pidfd) = pod.daemon.started();
    assert_eq!(pod.daemon.exited().status.code, 0);
    assert_eq!(pod.output(&id, "stdout"), format!("{}\n", started.pid));
    assert_eq!(pod.members(&id), [0; 0]);
    pod.shut_down();
}

#[test]
fn those_who_fork_all_the_time_end_with_their_container() {
    let (mut pod, _) = Pod::new(true);
    for mode in [PidMode::Host, PidMode::Pod] {
        let id =
            pod.start(mode, "for i in 1 2 3 4 5 6 7 8; do while :; do sleep 0; done & done; exec sleep 1000");
        pod.daemon.started();
        until("all of them", || pod.members(&id).len() > 9);
        pod.daemon.done(Request::Signal(Signal { container: id.clone(), signal: 9 }), &[]);
        assert_eq!(pod.daemon.exited().status.signal, 9);
        assert_eq!(pod.members(&id), [0; 0]);
    }
    pod.shut_down();
}

/// So many processes that sleep, and eight that do nothing but fork, for ever.
fn bomb(sleepers: usize) -> String {
    format!(
        "for s in 1 2 3 4; do (n=0; while [ $n -lt {} ]; do sleep 1000 & n=$((n+1)); done) & done; \
         for i in 1 2 3 4 5 6 7 8; do while :; do sleep 0; done & done; exec sleep 1000",
        sleepers / 4
    )
}

/// How long thousands of processes may take to be forked on a machine that others use.
const FORKED: Duration = Duration::from_secs(90);

/// Runs commands in `sibling`, one after another, until a fact satisfies `is_last`. Gives how long the slowest took.
fn keep_asking(pod: &mut Pod, sibling: &str, is_last: impl Fn(&Fact) -> bool) -> Duration {
    let (mut slowest, mut seen) = (Duration::ZERO, false);
    for exec in 1000.. {
        let begun = Instant::now();
        let _streams = pod.exec(exec, sibling, true, "exit 5");
        loop {
            let fact = pod.daemon.fact().0.fact;
            seen |= is_last(&fact);
            match fact {
                Fact::ExecExited(exited) if exited.exec == exec => {
                    assert_eq!(exited.status.code, 5);
                    break;
                }
                Fact::ExecFailed(failed) => panic!("{failed:?}"),
                _ => {}
            }
        }
        slowest = slowest.max(begun.elapsed());
        if seen {
            break;
        }
    }
    slowest
}

/// What a container's end and a command in its sibling may take while thousands are killed, on a machine that others use.
const BOMB_LIMIT: Duration = Duration::from_secs(4);

#[test]
fn a_fork_bomb_ends_in_time_and_its_sibling_answers_meanwhile() {
    for (v2, mode) in [(false, PidMode::Host), (false, PidMode::Pod), (true, PidMode::Pod)] {
        let (mut pod, _) = Pod::of(true, v2, None);
        let sibling = pod.start(PidMode::Pod, "exec sleep 1000");
        pod.daemon.started();
        let container = pod.start(mode, &bomb(1900));
        pod.daemon.started();
        assert!(pod.limit_pids(&container, 2000) || v2, "v2 may have no such limit here");
        until_in(FORKED, "all of them", || pod.members(&container).len() > 1900);
        let begun = Instant::now();
        pod.daemon.done(Request::Signal(Signal { container: container.clone(), signal: 9 }), &[]);
        let slowest = keep_asking(
            &mut pod,
            &sibling,
            |fact| matches!(fact, Fact::Exited(exited) if exited.container == container),
        );
        eprintln!(
            "v2 {v2}: ended in {:?}, the slowest command of its sibling took {slowest:?}",
            begun.elapsed()
        );
        assert_eq!(pod.members(&container), [0; 0]);
        assert!(begun.elapsed() < BOMB_LIMIT && slowest < BOMB_LIMIT, "{:?}, {slowest:?}", begun.elapsed());
        pod.shut_down();
    }
}

#[test]
fn an_exec_that_is_a_fork_bomb_dies_and_nobody_else() {
    let (mut pod, _) = Pod::new(true);
    let sibling = pod.start(PidMode::Pod, "exec sleep 1000");
    pod.daemon.started();
    let container = pod.start(PidMode::Pod, "exec sleep 1000");
    let (first, _pidfd) = pod.daemon.started();
    assert!(pod.limit_pids(&container, 1000));
    let _streams = pod.exec(1, &container, true, &bomb(900));
    pod.daemon.fact();
    until_in(FORKED, "all of them", || pod.members(&container).len() > 900);
    let begun = Instant::now();
    pod.daemon.done(Request::KillExec(ExecId { exec: 1 }), &[]);
    let slowest =
        keep_asking(&mut pod, &sibling, |fact| matches!(fact, Fact::ExecExited(exited) if exited.exec == 1));
    until("its descendants to be gone", || pod.members(&container) == [first.pid]);
    eprintln!("gone in {:?}, the slowest command took {slowest:?}", begun.elapsed());
    assert!(begun.elapsed() < BOMB_LIMIT && slowest < BOMB_LIMIT, "{:?}, {slowest:?}", begun.elapsed());
    let [mut out, _err] = pod.exec(2, &container, true, "echo alive");
    assert_eq!(text(&mut out), "alive\n");
    while !matches!(pod.daemon.fact().0.fact, Fact::ExecExited(exited) if exited.exec == 2) {}
    pod.shut_down();
}

#[test]
fn who_is_in_the_pid_namespace_of_another_ends_with_it_and_alone() {
    let (mut pod, _) = Pod::new(false);
    let target_of = |id: &str| PidMode::Target(ContainerId { container: id.to_owned() });
    let target = pod.start(PidMode::Private, "exec sleep 1000");
    pod.daemon.started();
    // Its end is not the target's, and nothing of it is left there.
    let alone = pod.start(target_of(&target), "for i in 1 2 3; do setsid sleep 1000 & done; exit 3");
    pod.daemon.started();
    assert_eq!(pod.daemon.exited().status.code, 3);
    assert_eq!(pod.members(&alone), [0; 0]);
    assert_eq!(pod.members(&target).len(), 1);
    // In one that is itself beside another.
    let first = pod.start(target_of(&target), "exec sleep 1000");
    pod.daemon.started();
    let second = pod.start(target_of(&first), "exec sleep 1000");
    pod.daemon.started();
    pod.daemon.done(Request::Signal(Signal { container: target.clone(), signal: 9 }), &[]);
    let mut ended: Vec<_> =
        (0..3).map(|_| pod.daemon.exited()).map(|exit| (exit.container, exit.status.signal)).collect();
    ended.sort();
    let mut all = [target.clone(), first, second].map(|id| (id, 9));
    all.sort();
    assert_eq!(ended, all);
    let late = pod.refused(target_of(&target));
    assert!(late.detail.contains("does not run"), "{late:?}");
    pod.shut_down();
}

#[test]
fn what_cannot_be_started_is_told_and_leaves_nothing() {
    let (mut pod, _) = Pod::new(true);
    for mode in [PidMode::Private, PidMode::Pod, PidMode::Host] {
        let id = pod.start_with(mode, None, |process| process.args = vec![OsString::from("/bin/absent")]);
        match pod.daemon.fact().0.fact {
            Fact::StartFailed(failed) => {
                assert_eq!(failed.container, id);
                assert!(failed.failure.detail.contains("absent"), "{:?}", failed.failure);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(pod.members(&id), [0; 0]);
        pod.daemon.done(Request::Forget(ContainerId { container: id }), &[]);
    }
    let id = pod.start_with(PidMode::Pod, None, |process| process.user.user = "nobody-knows".into());
    match pod.daemon.fact().0.fact {
        Fact::StartFailed(failed) => assert_eq!(failed.container, id),
        other => panic!("{other:?}"),
    }
    pod.shut_down();
}

#[test]
fn memory_kills_are_told_before_the_exit() {
    let (mut pod, _) = Pod::new(true);
    for mode in [PidMode::Private, PidMode::Pod] {
        let id = pod.start_with(mode, Some(16 << 20), |process| {
            let script = "x=0123456789; while :; do x=$x$x; done";
            process.args = vec!["/bin/sh".into(), "-c".into(), script.into()];
        });
        pod.daemon.started();
        let mut told = Vec::new();
        let exited = loop {
            match pod.daemon.fact().0.fact {
                Fact::Oom(oom) => told.push(oom.container),
                Fact::Exited(exited) => break exited,
                other => panic!("{other:?}"),
            }
        };
        assert!(exited.oom, "{exited:?} {}", pod.log(&id));
        assert_eq!(told, [id]);
    }
    pod.shut_down();
}

#[test]
fn execs_run_fail_and_die() {
    let (mut pod, _) = Pod::new(true);
    for mode in [PidMode::Private, PidMode::Pod, PidMode::Host] {
        let id = pod.start(mode, "exec sleep 1000");
        pod.daemon.started();
        let [mut out, mut err] = pod.exec(1, &id, true, "hostname; ls /proc/self/fd >&2; exit 4");
        assert!(matches!(pod.daemon.fact(), (Event { fact: Fact::ExecStarted(_), serial: 0, .. }, Some(_))));
        assert_eq!((text(&mut out), text(&mut err)), ("web-0\n".to_owned(), "0\n1\n2\n3\n".to_owned()));
        match pod.daemon.fact().0.fact {
            Fact::ExecExited(exited) => assert_eq!((exited.exec, exited.status.code), (1, 4)),
            other => panic!("{other:?}"),
        }
        // Its session, its children, and what they started.
        let [out, _err] = pod.exec(2, &id, true, "sleep 1000 & (sleep 1000; true) & exec sleep 1000");
        pod.daemon.fact();
        until("four processes", || pod.members(&id).len() >= 5);
        pod.daemon.done(Request::KillExec(ExecId { exec: 2 }), &[]);
        match pod.daemon.fact().0.fact {
            Fact::ExecExited(exited) => assert_eq!(exited.status, ExitStatus { code: 137, signal: 9 }),
            other => panic!("{other:?}"),
        }
        until("all of it to be gone", || pod.members(&id).len() == 1);
        drop(out);
        pod.daemon.done(Request::Signal(Signal { container: id, signal: 9 }), &[]);
        pod.daemon.exited();
    }
    pod.shut_down();
}

#[test]
fn a_bound_exec_dies_with_its_connection_and_facts_outlive_it() {
    let (mut pod, _) = Pod::new(true);
    let id = pod.start(PidMode::Pod, "echo here; exec sleep 1000");
    let (started, _) = pod.daemon.started();
    let _output = [pod.exec(1, &id, true, "exec sleep 1000"), pod.exec(2, &id, false, "exec sleep 1000")];
    pod.daemon.fact();
    pod.daemon.fact();
    assert_eq!(pod.members(&id).len(), 3);

    let path = pod.socket();
    pod.daemon = Daemon::connect(&path);
    until("the bound one to be gone", || pod.members(&id).len() == 2);
    let hello = pod.daemon.hello(5);
    assert_eq!((hello.protocol, hello.sandbox), (PROTOCOL, "5".repeat(64)));
    // Never acknowledged, so told again, with the pidfd; and told to the next one although it was.
    let (again, pidfd) = pod.daemon.started();
    assert_eq!(again, started);
    drop(pidfd);
    pod.daemon.send(Request::Acknowledge(Acknowledge { serial: 1 }), &[]);
    cove_killed(started.pid);
    let exited = pod.daemon.exited();
    assert_eq!(exited.container, id);

    let mut newer = Daemon::connect(&path);
    newer.hello(6);
    assert_eq!(newer.exited(), exited);
    assert!(newer.facts.is_empty());
    // The older one is sent away, and one of its kind is refused.
    assert!(pod.daemon.receive().is_none());
    let mut older = Daemon::connect(&path);
    let failure = older.refused(Request::Hello(Hello { protocol: PROTOCOL, generation: 5 }), &[]);
    assert_eq!(failure.step, "hello");
    assert!(older.receive().is_none());
    newer.send(Request::Acknowledge(Acknowledge { serial: 2 }), &[]);
    let mut last = Daemon::connect(&path);
    last.hello(6);
    assert!(last.facts.is_empty());
    pod.daemon = newer;
    pod.shut_down();
}

/// From outside, as an operator does.
fn cove_killed(pid: i32) {
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[test]
fn cgroup_v2_does_the_same() {
    let (mut pod, _) = Pod::of(true, true, None);
    let first = pod.start(PidMode::Pod, "exec sleep 1000");
    let (started, _) = pod.daemon.started();
    assert_eq!(pod.members(&first), [started.pid]);
    let second = pod.start(PidMode::Host, "for i in 1 2 3; do setsid sleep 1000 & done; exit 2");
    pod.daemon.started();
    assert_eq!(pod.daemon.exited().status.code, 2);
    assert_eq!(pod.members(&second), [0; 0]);

    let [mut out, _] = pod.exec(1, &first, true, "cat /proc/self/cgroup");
    pod.daemon.fact();
    assert!(text(&mut out).contains("container-1"));
    pod.daemon.fact();
    let [_out, _err] = pod.exec(2, &first, true, "sleep 1000 & exec sleep 1000");
    pod.daemon.fact();
    until("its processes", || pod.members(&first).len() == 3);
    pod.daemon.done(Request::KillExec(ExecId { exec: 2 }), &[]);
    until("all of it to be gone", || pod.members(&first).len() == 1);
    pod.daemon.fact();

    let hung = pod.start_frozen();
    pod.daemon.done(Request::Signal(Signal { container: hung, signal: 9 }), &[]);
    // Frozen in v2 is not frozen against SIGKILL.
    assert!(matches!(pod.daemon.fact().0.fact, Fact::StartFailed(_)));
    pod.shut_down();
}

#[test]
fn a_pod_has_a_user_namespace_of_its_own() {
    let ids = IdMap { host: 1_000_000, size: 65_536 };
    for shared_pid in [true, false] {
        let (mut pod, init) = Pod::of(shared_pid, false, Some(ids.clone()));
        assert_eq!(init.is_some(), shared_pid);
        let modes = if shared_pid { &[PidMode::Pod, PidMode::Private][..] } else { &[PidMode::Private] };
        for (n, mode) in (0..).zip(modes) {
            let id = pod
                .start(mode.clone(), "hostname; cat /proc/self/uid_map /proc/self/gid_map; exec sleep 1000");
            let (started, _) = pod.daemon.started();
            until("its output", || pod.output(&id, "stdout").lines().count() == 3);
            let map = format!("{:>10} {:>10} {:>10}\n", 0, ids.host, ids.size);
            assert_eq!(pod.output(&id, "stdout"), format!("web-0\n{map}{map}"));
            let of = |pid: u32, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
            let (container, shim) = (started.pid.cast_unsigned(), pod.process.id());
            assert_ne!(of(container, "user"), of(shim, "user"), "the shim stays the host's");
            for name in ["net", "ipc", "uts"] {
                assert_eq!(of(container, name), of(shim, name), "{name}");
            }
            let [mut out, mut err] = pod.exec(n, &id, true, "cat /proc/self/uid_map; id -u");
            assert_eq!((text(&mut out), text(&mut err)), (format!("{map}0\n"), String::new()));
            let ended = [pod.daemon.fact(), pod.daemon.fact()].map(|(event, _)| event.fact);
            assert!(matches!(&ended[1], Fact::ExecExited(exited) if exited.status.code == 0), "{ended:?}");
        }
        pod.shut_down();
    }
    let mut pod = Pod::bare();
    pod.daemon.hello(1);
    let wrong = UserSandbox { sandbox: pod.sandbox(), ids: IdMap { host: u32::MAX, size: 2 } };
    assert_eq!(pod.daemon.refused(Request::MakeUserSandbox(wrong), &[]).step, "userns");
    // Those of IPC are for the pod's root alone to write, the domain name for the host's.
    let mut spec = pod.sandbox();
    for (key, value) in
        [("kernel.shm_rmid_forced", "1"), ("kernel.domainname", "lan"), ("fs.mqueue.msg_max", "11")]
    {
        spec.sysctls.push((key.into(), value.into()));
    }
    let whole = UserSandbox { sandbox: spec, ids };
    assert_eq!(pod.daemon.ask(Request::MakeUserSandbox(whole), &[]).0, Reply::Sandbox, "{}", pod.said());
    pod.shut_down();
}

#[test]
fn a_starting_container_can_be_killed() {
    let (mut pod, _) = Pod::new(true);
    for mode in [PidMode::Private, PidMode::Pod, PidMode::Host] {
        // Sent together: the signal may come before, between or after the gates.
        let id = pod.start(mode, "exec sleep 1000");
        pod.daemon.done(Request::Signal(Signal { container: id.clone(), signal: 9 }), &[]);
        loop {
            match pod.daemon.fact().0.fact {
                Fact::Started(_) => {}
                Fact::StartFailed(failed) => {
                    assert!(failed.failure.detail.contains("signal 9"), "{:?}", failed.failure);
                    break;
                }
                Fact::Exited(exited) => {
                    assert_eq!(exited.status.signal, 9);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(pod.members(&id), [0; 0]);
    }
    pod.shut_down();
}

#[test]
fn the_init_is_a_fact_too() {
    let (mut pod, init) = Pod::new(true);
    pod.start(PidMode::Pod, "exec sleep 1000");
    pod.daemon.started();
    cove_sys::send_signal(init.unwrap().as_fd(), 9).unwrap();
    let mut ends = 0;
    while ends < 2 {
        match pod.daemon.fact().0.fact {
            Fact::InitExited(status) => assert_eq!(status.signal, 9),
            Fact::Exited(exited) => assert_eq!(exited.status.signal, 9),
            other => panic!("{other:?}"),
        }
        ends += 1;
    }
    pod.shut_down();
}

#[test]
fn logs_are_whole_through_a_rotation() {
    let (mut pod, _) = Pod::new(false);
    let id = pod.start(
        PidMode::Private,
        "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo -n tail",
    );
    pod.daemon.started();
    let log = pod.directory.path().join(&id).join("log");
    let mut parts = Vec::new();
    for turn in 0..5 {
        until("some lines", || fs::metadata(&log).unwrap().len() > 0 || pod.members(&id).is_empty());
        let old = log.with_extension(turn.to_string());
        fs::rename(&log, &old).unwrap();
        let new = File::create(&log).unwrap();
        let (reply, _) =
            pod.daemon.ask(Request::ReopenLog(ContainerId { container: id.clone() }), &[new.as_fd()]);
        if reply != Reply::Done {
            fs::rename(&old, &log).unwrap();
            break;
        }
        parts.push(old);
    }
    while !matches!(pod.daemon.fact().0.fact, Fact::Exited(_)) {}
    parts.push(log);
    let lines: Vec<String> = parts
        .iter()
        .flat_map(|part| fs::read_to_string(part).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert_eq!(lines.len(), 20_001);
    for (number, line) in lines.iter().take(20_000).enumerate() {
        assert!(line.ends_with(&format!(" stdout F line {number}")), "{line}");
    }
    assert!(lines[20_000].ends_with(" stdout P tail"));
    assert!(lines.is_sorted());
    let none = pod.daemon.refused(
        Request::ReopenLog(ContainerId { container: id }),
        &[File::open("/dev/null").unwrap().as_fd()],
    );
    assert_eq!(none.step, "log");
    pod.shut_down();
}

#[test]
fn requests_out_of_place_are_refused() {
    let mut pod = Pod::bare();
    let mut rude = Daemon::connect(&pod.socket());
    rude.send(Request::Shutdown, &[]);
    assert!(rude.receive().is_none());
    let mut broken = Daemon::connect(&pod.socket());
    broken.hello(1);
    let garbage = File::open("/dev/null").unwrap();
    broken.send(Request::Acknowledge(Acknowledge { serial: 0 }), &[]);
    assert_eq!(broken.refused(Request::KillExec(ExecId { exec: 1 }), &[garbage.as_fd()]).step, "request");

    pod.daemon.hello(1);
    let start = StartInit { shared_pid: true, shm_size: 0, cgroup: CgroupPlace { unified: false, count: 0 } };
    assert_eq!(pod.daemon.refused(Request::StartInit(start), &[]).step, "init");
    let mut spec = pod.sandbox();
    spec.sysctls.push(("kernel.core_pattern".into(), "x".into()));
    assert_eq!(pod.daemon.refused(Request::MakeSandbox(spec), &[]).step, "sysctl");
    let spec = pod.sandbox();
    assert_eq!(pod.daemon.ask(Request::MakeSandbox(spec.clone()), &[]).0, Reply::Sandbox);
    assert_eq!(pod.daemon.refused(Request::MakeSandbox(spec), &[]).step, "sandbox");
    let gone = || ContainerId { container: "nobody".into() };
    pod.daemon.done(Request::Forget(gone()), &[]);
    pod.daemon.done(Request::Signal(Signal { container: "nobody".into(), signal: 15 }), &[]);
    let signal = Signal { container: "nobody".into(), signal: 99 };
    assert_eq!(pod.daemon.refused(Request::Signal(signal), &[]).errno, 22);
    pod.shut_down();
}

#[test]
fn a_pod_is_gone_at_once_with_all_that_runs_in_it() {
    let (mut pod, _) = Pod::new(true);
    for mode in [PidMode::Private, PidMode::Pod, PidMode::Host] {
        let id = pod
            .start(mode, "setsid sleep 1000 & setsid sleep 1000 & trap '' 15; while :; do sleep 1000; done");
        pod.daemon.started();
        until("its processes", || pod.members(&id).len() >= 3);
    }
    let begun = Instant::now();
    pod.shut_down();
    assert!(begun.elapsed() < pod::PATIENCE / 2);
}

#[test]
fn a_hung_builder_is_nobody_elses_matter() {
    let (mut pod, _) = Pod::new(true);
    let id = pod.start_frozen();
    let other = pod.start(PidMode::Private, "echo ok");
    pod.daemon.started();
    assert_eq!(pod.daemon.exited().container, other);
    pod.daemon.done(Request::Signal(Signal { container: id.clone(), signal: 15 }), &[]);
    pod.thaw(&id);
    match pod.daemon.fact().0.fact {
        Fact::StartFailed(failed) => {
            assert_eq!(failed.container, id);
            assert!(failed.failure.detail.contains("signal 15"), "{:?}", failed.failure);
        }
        other => panic!("{other:?}"),
    }
    pod.shut_down();
}
