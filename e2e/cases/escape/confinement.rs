//! What confines a running container: its system call filter, its cgroups.

use std::fs;

use cove_e2e::{Outcome, cgroup, pod, process};
use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::*;

use super::{Reached, pull_attacker, reached_in};
use crate::ensure::Refused;
use crate::world::World;

attacks!(
    never_runs_without_its_filter without "seccomp",
    keeps_every_process_in_its_cgroup without "cgroup-place",
    writes_to_no_cgroup without "cgroup-readonly",
);

/// E18: whenever a profile was asked for, the filter is on, in the first process and in execs; what this node cannot
/// enforce is refused. Broken profiles are in the room `seccomp`.
async fn never_runs_without_its_filter(world: &mut World) -> Outcome<Reached> {
    let image = pull_attacker(world).await?;
    let config = world.pod("filter");
    let id = world.run_pod(&config).await?;
    let file = world.directory.join("profile.json");
    fs::write(&file, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#)?;
    let mut reached = Reached::new();
    let profiles = [
        ("default", ProfileType::RuntimeDefault, String::new()),
        ("localhost", ProfileType::Localhost, file.display().to_string()),
    ];
    for (name, kind, path) in profiles {
        for (uid, nnp) in [(0, false), (0, true), (1000, false), (1000, true)] {
            if world.is_shown(&reached) {
                return Ok(reached);
            }
            let what = format!("{name}, user {uid}, no_new_privs {nnp}");
            let script = "attacker status; echo end; sleep 1000";
            let mut container = pod::container(&format!("{name}-{uid}-{nnp}"), &image, &["sh", "-c", script]);
            let security = pod::security(&mut container);
            security.seccomp =
                Some(SecurityProfile { profile_type: kind.into(), localhost_ref: path.clone() });
            security.run_as_user = Some(Int64Value { value: uid });
            security.no_new_privs = nnp;
            let container = world.launch(&id, &config, &container).await?;
            let log = world.wrote(&container, "F end").await?;
            let exec = world.exec(&container, &["attacker", "status"]).await?;
            for (kind, text) in [("start", log), ("exec", String::from_utf8(exec.stdout)?)] {
                ensure!(text.contains("NoNewPrivs:"), "{what}: {text}");
                if !text.contains("Seccomp:2") {
                    reached.push(format!("{what}: no filter at {kind}"));
                }
            }
            world.stop(&container, 0).await?;
        }
    }
    // This node has neither: asking for one is an error, or (SELinux) is checked at least.
    type Change = fn(&mut LinuxContainerSecurityContext);
    let refused: [(&str, Change); 2] = [
        ("AppArmor profile", |security| {
            let localhost = ProfileType::Localhost.into();
            security.apparmor =
                Some(SecurityProfile { profile_type: localhost, localhost_ref: "not-loaded".into() });
        }),
        ("SELinux level", |security| {
            security.selinux_options = Some(SeLinuxOption { level: "s0\ns1".into(), ..Default::default() });
        }),
    ];
    for (name, change) in refused {
        let mut container = pod::container("refused", &image, &["true"]);
        change(pod::security(&mut container));
        if let Ok(created) = world.create(&id, &config, &container).await {
            match world.start(&created).await {
                Ok(()) => reached.push(format!("a container runs without its {name}")),
                Err(_) => world.remove(&created).await?,
            }
        }
    }
    Ok(reached)
}

/// E19, CVE-2025-47291: first processes and execs of every kind of pod are below the cgroup that the kubelet named, also
/// those that are started while their container is stopped; the shim is not.
async fn keeps_every_process_in_its_cgroup(world: &mut World) -> Outcome<Reached> {
    let parent = format!("/e2e-place-{}", std::process::id());
    let mut reached = Reached::new();
    // `root`: what `/` stands for, where it was read in a cgroup namespace.
    let mut check = |what: &str, text: &str, container: &str, root: Option<&str>| -> Outcome {
        let paths = cgroup::paths(text);
        ensure!(!paths.is_empty(), "{what}: {text:?}");
        for path in paths {
            let path = root.filter(|_| path == "/").unwrap_or(path);
            if !(path.starts_with(&parent) && path.contains(container)) {
                reached.push(format!("{what}: a process in {path} of {text}"));
            }
        }
        Ok(())
    };
    for name in ["plain", "host-pid", "host-net", "privileged", "own-pid"] {
        let mut config = world.pod(name);
        config.linux.get_or_insert_default().cgroup_parent.clone_from(&parent);
        let mut container = world.script(name, "trap '' TERM; while :; do sleep 0.1; done");
        let pid = match name {
            "host-pid" => NamespaceMode::Node,
            "own-pid" => NamespaceMode::Container,
            _ => NamespaceMode::Pod,
        };
        pod::security(&mut container).namespace_options.get_or_insert_default().pid = pid.into();
        match name {
            "host-pid" => pod::namespaces(&mut config).pid = NamespaceMode::Node.into(),
            "host-net" => pod::namespaces(&mut config).network = NamespaceMode::Node.into(),
            "privileged" => {
                config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged =
                    true;
                pod::security(&mut container).privileged = true;
            }
            _ => {}
        }
        let id = world.run_pod(&config).await?;
        let container = world.launch(&id, &config, &container).await?;
        let request = ContainerStatusRequest { container_id: container.clone(), verbose: true };
        let info = world.cri.runtime.container_status(request).await?.into_inner().info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
        let place = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup"));
        let first = place(&info["pid"].to_string())?;
        check(&format!("{name}, start"), &first, &container, None)?;
        // On version 2 the namespace of a container that is not privileged begins at its own group.
        let root = cgroup::unified().then(|| cgroup::paths(&first).first().copied()).flatten();
        let cat = ["cat", "/proc/self/cgroup"];
        let exec = world.exec(&container, &cat).await?;
        check(&format!("{name}, exec"), &String::from_utf8(exec.stdout)?, &container, root)?;
        let shim = place(&process::shim(&id)?.to_string())?;
        ensure!(!shim.contains(&parent), "{name}: the shim is in the pod's cgroup: {shim}");
        // Execs while it is being stopped: placed, or refused.
        let mut other = world.cri.clone();
        let request = StopContainerRequest { container_id: container.clone(), timeout: 1 };
        let stop = tokio::spawn(async move { other.runtime.stop_container(request).await });
        while !stop.is_finished() {
            if let Ok(exec) = world.exec(&container, &cat).await
                && exec.exit_code == 0
            {
                check(&format!("{name}, exec at stop"), &String::from_utf8(exec.stdout)?, &container, root)?;
            }
        }
        stop.await??;
        world.stop_pod(&id).await?;
        world.remove_pod(&id).await?;
    }
    // As the kubelet does.
    cgroup::remove(&parent)?;
    Ok(reached)
}

/// E20, CVE-2022-0492, CVE-2023-25809: a container changes no limit of its own, makes no group, and finds no
/// `release_agent`; the ways to a cgroup mount of its own are shut.
async fn writes_to_no_cgroup(world: &mut World) -> Outcome<Reached> {
    let config = world.pod("cgroup");
    let id = world.run_pod(&config).await?;
    let script = "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do \
        [ -e $d/release_agent ] && echo reached $d/release_agent; \
        for f in cgroup.procs tasks notify_on_release memory.limit_in_bytes memory.max cpu.shares pids.max; do \
          [ -e $d/$f ] && ( : >>$d/$f ) 2>/dev/null && echo reached $d/$f to write; done; \
        mkdir $d/made 2>/dev/null && rmdir $d/made && echo reached $d to make groups in; done; \
        unshare -UrmC true 2>/dev/null && echo reached a user namespace; \
        mkdir -p /tmp/c; mount -t cgroup -o memory c /tmp/c 2>/dev/null && echo reached a cgroup mount; \
        mount -t cgroup2 c /tmp/c 2>/dev/null && echo reached a cgroup2 mount; \
        mount -o remount,rw /sys/fs/cgroup 2>/dev/null && echo reached a remount; \
        ls /sys/fs/cgroup; echo end";
    let mut container = world.script("cgroup", script);
    let default = ProfileType::RuntimeDefault.into();
    pod::security(&mut container).seccomp =
        Some(SecurityProfile { profile_type: default, localhost_ref: String::new() });
    let (_, text) = world.output(&id, &config, &container).await?;
    ensure!(text.contains("memory") && text.ends_with("end\n"), "{text}");
    let reached = reached_in(&text).collect();
    for parent in ["/a/../..", "../x", "/..", "/a/\0"] {
        let mut config = world.pod("parent");
        config.linux.get_or_insert_default().cgroup_parent = parent.into();
        let refused = world.try_run_pod(&config).await.refused()?;
        ensure_eq!((parent, refused.code()), (parent, tonic::Code::InvalidArgument));
    }
    Ok(reached)
}
