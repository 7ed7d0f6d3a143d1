//! Containers: what runs, as whom, with which rights and limits.

use std::fs;
use std::time::Duration;

use cove_e2e::{Outcome, cgroup, pod, wait};
use k8s_cri::v1::*;

use crate::ensure::Refused;
use crate::world::World;

cases!(
    writes_its_log_and_exits,
    joins_partial_lines_of_the_log,
    loses_no_line_when_its_log_is_rotated,
    takes_command_args_env_and_cwd_by_the_rules,
    resolves_users_and_groups,
    has_exact_capabilities,
    hides_and_protects_paths,
    mounts_volumes,
    has_three_descriptors,
    obeys_its_limits,
    writes_an_oci_spec,
    lists_and_filters,
);

async fn writes_its_log_and_exits(world: &mut World) -> Outcome {
    let config = world.pod("log");
    let id = world.run_pod(&config).await?;
    let script = world.script("talk", "echo hello World; echo oops >&2; exit 3");
    let (status, _) = world.output(&id, &config, &script).await?;
    ensure_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    ensure!(status.created_at <= status.started_at && status.started_at <= status.finished_at, "{status:?}");
    let log = fs::read_to_string(&status.log_path)?;
    ensure!(log.contains(" stdout F hello World\n") && log.contains(" stderr F oops\n"), "{log}");
    let (status, text) = world.output(&id, &config, &world.script("silent", "exit 0")).await?;
    ensure_eq!((status.exit_code, status.reason.as_str(), text.as_str()), (0, "Completed", ""));
    Ok(())
}

async fn joins_partial_lines_of_the_log(world: &mut World) -> Outcome {
    let config = world.pod("partial");
    let id = world.run_pod(&config).await?;
    let script = "head -c 100000 /dev/zero | tr '\\0' x; echo; seq 1 20000; printf end";
    let (_, text) = world.output(&id, &config, &world.script("long", script)).await?;
    let mut expected = "x".repeat(100_000) + "\n";
    for n in 1..=20_000 {
        expected += &format!("{n}\n");
    }
    ensure!(text == expected + "end", "{} bytes came back", text.len());
    Ok(())
}

async fn loses_no_line_when_its_log_is_rotated(world: &mut World) -> Outcome {
    let config = world.pod("rotate");
    let id = world.run_pod(&config).await?;
    let script = "n=0; while [ ! -e /tmp/enough ]; do echo $n; n=$((n + 1)); done; echo last";
    let container = world.launch(&id, &config, &world.script("counter", script)).await?;
    let path = world.status(&container).await?.log_path;
    let reopen = |id: &str| ReopenContainerLogRequest { container_id: id.into() };
    let mut files = Vec::new();
    for turn in 0..5 {
        // Something is in each file before it is renamed.
        wait::until(
            "a line",
            Duration::from_secs(20),
            || Ok((fs::metadata(&path)?.len() > 0).then_some(())),
        )?;
        files.push(format!("{path}.{turn}"));
        fs::rename(&path, &files[turn])?;
        world.cri.runtime.reopen_container_log(reopen(&container)).await?;
        ensure!(fs::exists(&path)?, "no new file when the call had been answered");
    }
    world.exec(&container, &["touch", "/tmp/enough"]).await?;
    world.exited(&container).await?;
    files.push(path.clone());
    let mut lines = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file)?;
        ensure!(text.ends_with('\n') && !text.is_empty(), "{file} ends within a line");
        lines.extend(text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(str::to_owned));
    }
    let last = lines.pop();
    ensure_eq!(last.as_deref(), Some("last"));
    let expected: Vec<_> = (0..lines.len()).map(|n| n.to_string()).collect();
    ensure!(lines == expected, "of {} lines some are lost, doubled or out of order", lines.len());
    // Ended: refused, and the file that the kubelet renamed is not replaced.
    fs::remove_file(&path)?;
    let refused = world.cri.runtime.reopen_container_log(reopen(&container)).await.refused()?;
    ensure_eq!(refused.code(), tonic::Code::FailedPrecondition);
    ensure!(!fs::exists(&path)?, "a log was made for a container that has ended");
    let refused = world.cri.runtime.reopen_container_log(reopen(&"0".repeat(64))).await.refused()?;
    ensure_eq!(refused.code(), tonic::Code::NotFound);
    Ok(())
}

async fn takes_command_args_env_and_cwd_by_the_rules(world: &mut World) -> Outcome {
    let config = world.pod("words");
    let id = world.run_pod(&config).await?;
    let mut first = world.script("first", "pwd; echo $FROM_IMAGE $MINE $PATH $HOSTNAME; echo \"$@\"");
    first.args = vec!["zero".into(), "one".into(), "two words".into()];
    first.envs = vec![KeyValue { key: "MINE".into(), value: "x y".into() }];
    first.envs.push(KeyValue { key: "FROM_IMAGE".into(), value: "overridden".into() });
    let (_, text) = world.output(&id, &config, &first).await?;
    ensure_eq!(text, "/tmp\noverridden x y /bin words\none two words\n");
    let mut cwd = world.script("cwd", "pwd");
    cwd.working_dir = "/made/here".into();
    let (_, text) = world.output(&id, &config, &cwd).await?;
    ensure_eq!(text, "/made/here\n");
    // Args alone keep the image's command out: its entrypoint is empty, so the args are the program.
    let mut args = pod::container("args", &world.image, &[]);
    args.args = vec!["echo".into(), "from args".into()];
    let (_, text) = world.output(&id, &config, &args).await?;
    ensure_eq!(text, "from args\n");
    Ok(())
}

type Change = Box<dyn Fn(&mut LinuxContainerSecurityContext)>;

async fn resolves_users_and_groups(world: &mut World) -> Outcome {
    let config = world.pod("users");
    let id = world.run_pod(&config).await?;
    let show = "id -u; id -g; id -G";
    let user = |uid| Some(Int64Value { value: uid });
    let cases: Vec<(&str, Change, &str)> = vec![
        ("root", Box::new(|_| ()), "0\n0\n0\n"),
        ("uid", Box::new(move |s| s.run_as_user = user(1234)), "1234\n0\n0\n"),
        ("uid-in-passwd", Box::new(move |s| s.run_as_user = user(1000)), "1000\n1000\n1000 50000\n"),
        ("name", Box::new(|s| s.run_as_username = "app".into()), "1000\n1000\n1000 50000\n"),
        (
            "groups",
            Box::new(move |s| {
                s.run_as_user = user(1000);
                s.run_as_group = user(77);
                s.supplemental_groups = vec![88];
            }),
            "1000\n77\n77 88 50000\n",
        ),
        (
            "strict",
            Box::new(move |s| {
                s.run_as_user = user(1000);
                s.supplemental_groups = vec![88];
                s.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
            }),
            "1000\n1000\n1000 88\n",
        ),
    ];
    for (name, change, expected) in cases {
        let mut container = world.script(name, &format!("{show}; sleep 1000"));
        change(pod::security(&mut container));
        let container = world.launch(&id, &config, &container).await?;
        let exec = world.exec(&container, &["sh", "-c", show]).await?;
        let sorted = |text: &str| {
            let mut words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
            words[2..].sort();
            words
        };
        ensure!(sorted(&String::from_utf8(exec.stdout.clone())?) == sorted(expected), "{name}: {exec:?}");
        let status = world.status(&container).await?;
        let resolved = status.user.and_then(|user| user.linux).ok_or("no user in status")?;
        let mut groups: Vec<_> =
            expected.lines().nth(2).unwrap_or_default().split(' ').map(str::to_owned).collect();
        groups.sort();
        let mut told: Vec<_> = resolved.supplemental_groups.iter().map(ToString::to_string).collect();
        told.sort();
        ensure_eq!((name, told), (name, groups));
    }
    Ok(())
}

async fn has_exact_capabilities(world: &mut World) -> Outcome {
    let config = world.pod("caps");
    let id = world.run_pod(&config).await?;
    let read = "grep -E '^(Cap|NoNew)' /proc/self/status | tr -d '\\t' | tr '\\n' ' '; echo; sleep 1000";
    // The fourteen that Docker and containerd give: capabilities(7) numbers 0 1 3 4 5 6 7 8 10 13 18 27 29 31.
    let default = 0xa804_25fb_u64;
    let change = |add: &[&str], drop: &[&str]| Capability {
        add_capabilities: add.iter().map(|name| (*name).into()).collect(),
        drop_capabilities: drop.iter().map(|name| (*name).into()).collect(),
        add_ambient_capabilities: Vec::new(),
    };
    let cases = [
        ("default", None, 0, default, default),
        ("drop-all", Some(change(&[], &["ALL"])), 0, 0, 0),
        (
            "add",
            Some(change(&["net_admin"], &["CAP_NET_RAW"])),
            0,
            default & !(1 << 13) | 1 << 12,
            default & !(1 << 13) | 1 << 12,
        ),
        ("not-root", None, 1000, 0, default),
    ];
    for (name, capabilities, uid, effective, bounding) in cases {
        let mut container = world.script(name, read);
        let security = pod::security(&mut container);
        security.capabilities = capabilities;
        security.run_as_user = Some(Int64Value { value: uid });
        security.no_new_privs = uid != 0;
        let container = world.launch(&id, &config, &container).await?;
        let exec = world.exec(&container, &["sh", "-c", &read.replace("; echo; sleep 1000", "")]).await?;
        let expected = format!(
            "CapInh:{:016x} CapPrm:{effective:016x} CapEff:{effective:016x} CapBnd:{bounding:016x} CapAmb:{:016x} NoNewPrivs:{} ",
            0,
            0,
            i32::from(uid != 0)
        );
        ensure_eq!((name, String::from_utf8(exec.stdout)?), (name, expected.clone()));
        world.wrote(&container, expected.trim_end()).await?;
    }
    Ok(())
}

async fn hides_and_protects_paths(world: &mut World) -> Outcome {
    let config = world.pod("paths");
    let id = world.run_pod(&config).await?;
    let script = "cat /etc/motd; ls /home; touch /tmp/x; touch /etc/x; echo y >/proc/sys/kernel/hostname; mknod /dev/x c 1 3; true";
    let mut masked = world.script("masked", script);
    let security = pod::security(&mut masked);
    security.masked_paths = vec!["/etc/motd".into(), "/home".into(), "/missing".into()];
    security.readonly_paths = vec!["/etc".into(), "/proc/sys".into()];
    let (status, _) = world.output(&id, &config, &masked).await?;
    let log = fs::read_to_string(&status.log_path)?;
    ensure!(!log.contains("welcome") && !log.contains("app"), "{log}");
    ensure!(!log.contains("/tmp/x"), "{log}");
    for path in ["/etc/x", "/proc/sys/kernel/hostname"] {
        ensure!(log.lines().any(|line| line.contains(path) && line.contains("Read-only")), "{path}: {log}");
    }
    let mut readonly =
        world.script("readonly", "touch /x; touch /dev/shm/y && echo shm; echo z >/dev/null && echo null");
    pod::security(&mut readonly).readonly_rootfs = true;
    let (status, _) = world.output(&id, &config, &readonly).await?;
    let log = fs::read_to_string(&status.log_path)?;
    ensure!(
        log.contains("Read-only file system") && log.contains("F shm") && log.contains("F null"),
        "{log}"
    );
    Ok(())
}

async fn mounts_volumes(world: &mut World) -> Outcome {
    let config = world.pod("volumes");
    let id = world.run_pod(&config).await?;
    let volume = world.directory.join("volume");
    fs::create_dir_all(&volume)?;
    fs::write(volume.join("in"), "from the host\n")?;
    std::os::unix::fs::symlink(&volume, world.directory.join("link"))?;
    let mount = |from: &std::path::Path, to: &str, readonly| Mount {
        container_path: to.into(),
        host_path: from.to_string_lossy().into_owned(),
        readonly,
        ..Default::default()
    };
    let mut container =
        world.script("use", "cat /ro/in /link/in /file; echo out >/rw/out; touch /ro/x; echo $?");
    container.mounts = vec![
        mount(&volume, "/ro", true),
        mount(&volume, "/rw", false),
        mount(&world.directory.join("link"), "/link", true),
        mount(&volume.join("in"), "/file", true),
        mount(&world.directory.join("missing/deep"), "/made", false),
    ];
    let (status, text) = world.output(&id, &config, &container).await?;
    ensure!(
        text.starts_with("from the host\nfrom the host\nfrom the host\n") && text.ends_with("1\n"),
        "{text}"
    );
    ensure_eq!(fs::read_to_string(volume.join("out"))?, "out\n");
    ensure_eq!(status.mounts, container.mounts);
    Ok(())
}

async fn has_three_descriptors(world: &mut World) -> Outcome {
    let config = world.pod("fds");
    let id = world.run_pod(&config).await?;
    // The shell lists its own by a glob; the fourth is the directory that it reads for that.
    let list = "cd /proc/$$/fd; echo *";
    let script = format!("{list}; sleep 1000");
    for (name, mode) in
        [("pod", NamespaceMode::Pod), ("own", NamespaceMode::Container), ("host", NamespaceMode::Node)]
    {
        let mut container = world.script(name, &script);
        pod::security(&mut container).namespace_options.get_or_insert_default().pid = mode.into();
        let container = world.launch(&id, &config, &container).await?;
        let exec = world.exec(&container, &["sh", "-c", list]).await?;
        ensure_eq!((name, String::from_utf8(exec.stdout)?), (name, "0 1 2 3\n".to_owned()));
        world.wrote(&container, "F 0 1 2 3\n").await?;
    }
    Ok(())
}

async fn obeys_its_limits(world: &mut World) -> Outcome {
    let config = world.pod("limits");
    let id = world.run_pod(&config).await?;
    let mut container = world.script("limited", "sleep 1000");
    *pod::resources(&mut container) = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        cpuset_cpus: "0".into(),
        ..Default::default()
    };
    let container = world.launch(&id, &config, &container).await?;
    let request = ContainerStatusRequest { container_id: container, verbose: true };
    let info = world.cri.runtime.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
    let places = fs::read_to_string(format!("/proc/{}/cgroup", info["pid"]))?;
    let value = |controller: &str, file: &str| -> Outcome<String> {
        let file = cgroup::directory(&places, controller)?.join(file);
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(text.trim().to_owned())
    };
    let memory = (64 << 20).to_string();
    let expected: &[(&str, &str, &str)] = if cgroup::unified() {
        // Memory and swap together are memory: none is left for swap.
        &[
            ("cpu", "cpu.max", "50000 100000"),
            ("cpu", "cpu.weight", "59"),
            ("cpuset", "cpuset.cpus", "0"),
            ("memory", "memory.max", &memory),
            ("memory", "memory.swap.max", "0"),
        ]
    } else {
        &[
            ("cpu", "cpu.cfs_quota_us", "50000"),
            ("cpu", "cpu.shares", "512"),
            ("cpuset", "cpuset.cpus", "0"),
            ("memory", "memory.limit_in_bytes", &memory),
        ]
    };
    for (controller, file, expected) in expected {
        ensure_eq!((*file, value(controller, file)?), (*file, (*expected).to_owned()));
    }
    Ok(())
}

async fn writes_an_oci_spec(world: &mut World) -> Outcome {
    let Some(place) = world.place.clone() else { return Ok(()) };
    let config = world.pod("spec");
    let id = world.run_pod(&config).await?;
    let container = world.launch(&id, &config, &world.script("spec", "sleep 1000")).await?;
    let file = place.root.join("containers").join(&container).join("config.json");
    let spec: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
    ensure_eq!(spec["process"]["args"], serde_json::json!(["sh", "-c", "sleep 1000"]));
    let request = ContainerStatusRequest { container_id: container, verbose: true };
    let info = world.cri.runtime.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
    ensure!(info["pid"].as_i64().is_some_and(|pid| pid > 1), "{info}");
    ensure_eq!(info["runtimeSpec"]["process"]["args"], spec["process"]["args"]);
    Ok(())
}

async fn lists_and_filters(world: &mut World) -> Outcome {
    let config = world.pod("list");
    let id = world.run_pod(&config).await?;
    let mut running = world.script("running", "sleep 1000");
    running.labels.insert("which".into(), "running".into());
    let running = world.launch(&id, &config, &running).await?;
    let created = world.create(&id, &config, &world.script("created", "true")).await?;
    ensure_eq!(world.containers().await?.len(), 2);
    let mut find = async |filter: ContainerFilter| -> Outcome<Vec<String>> {
        let request = ListContainersRequest { filter: Some(filter) };
        let containers = world.cri.runtime.list_containers(request).await?.into_inner().containers;
        Ok(containers.into_iter().map(|container| container.id).collect())
    };
    let state = |state: ContainerState| Some(ContainerStateValue { state: state.into() });
    let by_state = ContainerFilter { state: state(ContainerState::ContainerCreated), ..Default::default() };
    ensure_eq!(find(by_state).await?, [created.clone()]);
    let label = [("which".to_owned(), "running".to_owned())].into_iter().collect();
    ensure_eq!(
        find(ContainerFilter { label_selector: label, ..Default::default() }).await?,
        [running.clone()]
    );
    ensure_eq!(find(ContainerFilter { id: created[..12].into(), ..Default::default() }).await?, [created]);
    let of_pod = ContainerFilter { pod_sandbox_id: id[..20].into(), ..Default::default() };
    ensure_eq!(find(of_pod).await?.len(), 2);
    let container = world.status(&running).await?;
    ensure_eq!(container.image.ok_or("no image")?.image, world.image);
    ensure!(container.image_ref.contains("@sha256:"), "{}", container.image_ref);
    Ok(())
}
