//! Pods with a user namespace of their own (KEP-127): exact mappings, right owners, no right outside, wrong mappings
//! refused.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use cove_e2e::image::{self, Layer};
use cove_e2e::{Outcome, cgroup, pod};
use k8s_cri::v1::*;
use serde_json::{Value, json};
use tonic::Code;

use crate::ensure::Refused;
use crate::world::{End, SOON, World};

cases!(
    says_whether_it_can,
    has_exact_maps_and_owns_its_namespaces,
    keeps_pid_namespaces_apart,
    shows_files_and_volumes_with_their_owners,
    keeps_layers_as_they_are_between_pods,
    refuses_wrong_mappings,
    refuses_containers_that_differ,
    has_users_groups_and_terminals,
    sets_sysctls_inside,
    is_confined_when_privileged,
    lives_through_a_restart,
);

/// Not what others on this machine use.
const HOST: u32 = 1_200_000;
const LENGTH: u32 = 65_536;

fn line(container_id: u32, host_id: u32, length: u32) -> IdMapping {
    IdMapping { host_id, container_id, length }
}

fn userns(lines: Vec<IdMapping>) -> UserNamespace {
    UserNamespace { mode: NamespaceMode::Pod.into(), uids: lines.clone(), gids: lines }
}

impl World {
    fn mapped_pod(&self, name: &str, host: u32) -> PodSandboxConfig {
        let mut config = self.pod(name);
        pod::namespaces(&mut config).userns_options = Some(userns(vec![line(0, host, LENGTH)]));
        config
    }

    /// As a kubelet asks: it repeats the pod's namespaces, and maps every volume.
    fn mapped_script(&self, config: &PodSandboxConfig, name: &str, script: &str) -> ContainerConfig {
        let mut container = self.script(name, script);
        pod::security(&mut container).namespace_options = Some(pod::namespaces(&mut config.clone()).clone());
        container
    }

    async fn pod_info(&mut self, sandbox: &str) -> Outcome<Value> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.into(), verbose: true };
        let info = self.cri.runtime.pod_sandbox_status(request).await?.into_inner().info;
        Ok(serde_json::from_str(info.get("info").ok_or("no info")?)?)
    }

    async fn info(&mut self, container: &str) -> Outcome<Value> {
        let request = ContainerStatusRequest { container_id: container.into(), verbose: true };
        let info = self.cri.runtime.container_status(request).await?.into_inner().info;
        Ok(serde_json::from_str(info.get("info").ok_or("no info")?)?)
    }
}

fn volume(host: &Path, inside: &str, mapped: bool) -> Mount {
    let lines = if mapped { vec![line(0, HOST, LENGTH)] } else { Vec::new() };
    Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: inside.into(),
        uid_mappings: lines.clone(),
        gid_mappings: lines,
        ..Default::default()
    }
}

fn map(host: u32) -> String {
    format!("{:>10} {host:>10} {LENGTH:>10}\n", 0)
}

/// The kernel takes the mappings of a tmpfs, which secrets and tokens are on, since 6.3 (KEP-127).
fn can_map_a_tmpfs() -> Outcome<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Err(format!("not a release: {release:?}").into());
    };
    Ok((major, minor) >= (6, 3))
}

/// A node that cannot says so, and runs no pod in less than it asked for.
async fn says_whether_it_can(world: &mut World) -> Outcome {
    let can = can_map_a_tmpfs()?;
    let status = world.cri.runtime.status(StatusRequest { verbose: false }).await?.into_inner();
    let able =
        |handler: &RuntimeHandler| handler.features.as_ref().is_some_and(|features| features.user_namespaces);
    ensure!(!status.runtime_handlers.is_empty(), "no handler");
    ensure!(
        status.runtime_handlers.iter().all(|handler| able(handler) == can),
        "{:?}",
        status.runtime_handlers
    );
    let config = world.mapped_pod("can", HOST);
    let run = world.try_run_pod(&config).await;
    if can {
        run?;
        return Ok(());
    }
    let refused = run.refused()?;
    ensure_eq!(refused.code(), Code::InvalidArgument);
    ensure!(refused.message().contains("map the owners of a tmpfs"), "{refused}");
    ensure!(world.pods().await?.is_empty(), "nothing was made");
    Ok(())
}

async fn has_exact_maps_and_owns_its_namespaces(world: &mut World) -> Outcome {
    let config = world.mapped_pod("maps", HOST);
    let id = world.run_pod(&config).await?;
    let script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; hostname; \
                  stat -c '%n %u %g' / /bin /etc/hosts /dev/shm /dev/mqueue /proc/1 /sys/class/net/lo; \
                  hostname renamed && hostname; echo x >/etc/hosts && echo written; exec sleep 1000";
    let mut container = world.mapped_script(&config, "maps", script);
    pod::security(&mut container)
        .capabilities
        .get_or_insert_default()
        .add_capabilities
        .push("SYS_ADMIN".into());
    let container = world.launch(&id, &config, &container).await?;
    let text = crate::world::log_text(&world.wrote(&container, "written").await?)?;
    let map = map(HOST);
    ensure_eq!(
        text,
        format!(
            "{map}{map}0\nmaps\n/ 0 0\n/bin 0 0\n/etc/hosts 0 0\n/dev/shm 0 0\n/dev/mqueue 0 0\n/proc/1 65534 65534\n\
             /sys/class/net/lo 0 0\nrenamed\nwritten\n"
        )
    );
    // From outside: the process has the pod's ids and its namespaces have the pod's user namespace as their owner.
    let info = world.info(&container).await?;
    let pid = info["pid"].as_i64().ok_or("no pid")?;
    ensure_eq!(fs::read_to_string(format!("/proc/{pid}/uid_map"))?, map);
    ensure_eq!(fs::metadata(format!("/proc/{pid}"))?.uid(), HOST);
    let shim = world.pod_info(&id).await?["pid"].as_i64().ok_or("no pid")?;
    for (name, same) in [("user", false), ("net", true), ("ipc", true), ("uts", true), ("pid", false)] {
        let of = |pid: i64| fs::read_link(format!("/proc/{pid}/ns/{name}"));
        ensure_eq!((name, of(pid)? == of(shim)?), (name, same));
    }
    let spec = &info["runtimeSpec"]["linux"];
    let mapping = json!([{ "containerID": 0, "hostID": HOST, "size": LENGTH }]);
    ensure_eq!([&spec["uidMappings"], &spec["gidMappings"]], [&mapping, &mapping]);
    let options = world.pod_status(&id).await?.linux.and_then(|linux| linux.namespaces?.options);
    ensure_eq!(options.and_then(|options| options.userns_options), Some(userns(vec![line(0, HOST, LENGTH)])));
    // An exec is in the same one, and so in the same cgroups.
    let answer =
        world.exec(&container, &["sh", "-c", "cat /proc/self/uid_map; readlink /proc/self/ns/user"]).await?;
    let inside = fs::read_link(format!("/proc/{pid}/ns/user"))?;
    ensure_eq!(String::from_utf8_lossy(&answer.stdout), format!("{map}{}\n", inside.display()));
    let first = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    ensure!(first.contains(&id) || first.contains(&container), "not in its pod's cgroups: {first}");
    let answer = world.exec(&container, &["cat", "/proc/self/cgroup"]).await?;
    // On version 2 its cgroup namespace begins at its own group.
    let seen = if cgroup::unified() { "0::/\n".to_owned() } else { first };
    ensure_eq!(String::from_utf8_lossy(&answer.stdout), seen);
    Ok(())
}

async fn keeps_pid_namespaces_apart(world: &mut World) -> Outcome {
    for (mode, first) in [(NamespaceMode::Pod, false), (NamespaceMode::Container, true)] {
        let mut config = world.mapped_pod(&format!("pids-{}", mode as i32), HOST);
        pod::namespaces(&mut config).pid = mode.into();
        let id = world.run_pod(&config).await?;
        let script = "echo $$; cat /proc/1/comm; stat -c %u /proc/1; ls /proc/1/root 2>&1 | head -n 1; kill -9 1; echo alive";
        let (status, text) =
            world.output(&id, &config, &world.mapped_script(&config, "pids", script)).await?;
        let lines: Vec<_> = text.lines().collect();
        ensure_eq!(status.exit_code, 0);
        ensure_eq!(lines.first() == Some(&"1"), first);
        ensure_eq!((first, lines[1]), (first, if first { "sh" } else { "cove-init" }));
        ensure_eq!((first, lines[3].contains("Permission denied")), (first, !first));
        ensure_eq!(lines.last(), Some(&"alive"));
    }
    Ok(())
}

async fn shows_files_and_volumes_with_their_owners(world: &mut World) -> Outcome {
    let config = world.mapped_pod("owners", HOST);
    let id = world.run_pod(&config).await?;
    let disk = world.directory.join("disk");
    fs::create_dir(&disk)?;
    for (name, owner) in [("of-root", 0), ("of-app", 1000), ("of-nobody", 70_000)] {
        fs::write(disk.join(name), name)?;
        chown(disk.join(name), Some(owner), Some(owner))?;
        fs::set_permissions(disk.join(name), fs::Permissions::from_mode(0o600))?;
    }
    let mut container = world.mapped_script(
        &config,
        "owners",
        "exec 2>&1; cd /mapped; stat -c '%n %u' *; cat of-root; echo; cat of-nobody; cd /plain; stat -c '%n %u' *; cat of-root; \
         echo a >/mapped/made; touch /mapped/made-by-app; chown 1000:1000 /mapped/made-by-app; touch /ro/x; \
         echo made >/in-the-root; chown 7 /in-the-root; stat -c %u /mapped/made /mapped/made-by-app /in-the-root",
    );
    container.mounts = vec![
        volume(&disk, "/mapped", true),
        volume(&disk, "/plain", false),
        Mount { readonly: true, recursive_read_only: true, ..volume(&disk, "/ro", true) },
    ];
    let mounts = container.mounts.clone();
    let (status, text) = world.output(&id, &config, &container).await?;
    ensure_eq!(
        text,
        "of-app 1000\nof-nobody 65534\nof-root 0\nof-root\ncat: can't open 'of-nobody': Permission denied\n\
         of-app 65534\nof-nobody 65534\nof-root 65534\ncat: can't open 'of-root': Permission denied\n\
         touch: /ro/x: Read-only file system\n0\n1000\n7\n"
    );
    ensure_eq!(status.mounts, mounts);
    // On the disk a volume has the ids that the pod means, so that every pod sees the same.
    for (name, owner) in
        [("of-root", 0), ("of-app", 1000), ("of-nobody", 70_000), ("made", 0), ("made-by-app", 1000)]
    {
        ensure_eq!((name, fs::metadata(disk.join(name))?.uid()), (name, owner));
    }
    Ok(())
}

/// Two pods with other ids and one without run from the same layers: nobody's owners are changed.
async fn keeps_layers_as_they_are_between_pods(world: &mut World) -> Outcome {
    let image = image::build(
        vec![image::busybox()?, image::accounts(), Layer::new().file("bin/setuid", 0o4755, "x")],
        json!({}),
    )?;
    let reference = world.registry.push("e2e/userns", "1", &image)?;
    world.pull(&reference).await?;
    let layers = world.place.as_ref().map(|place| place.root.join("images/layers"));
    let owners = || -> Outcome<Vec<(String, u32, u32, u32)>> {
        let Some(layers) = &layers else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for layer in fs::read_dir(layers)? {
            for entry in fs::read_dir(layer?.path().join("fs/bin")).into_iter().flatten() {
                let entry = entry?;
                let stat = fs::symlink_metadata(entry.path())?;
                found.push((entry.path().display().to_string(), stat.uid(), stat.gid(), stat.mode()));
            }
        }
        found.sort();
        Ok(found)
    };
    let before = owners()?;
    let script = "stat -c '%u %g %a' /bin/busybox /bin/setuid; chown 5 /bin/setuid; stat -c '%u %a' /bin/setuid; cat /proc/self/uid_map";
    let mut pods = Vec::new();
    for (name, host) in [("one", HOST), ("two", HOST + 2 * LENGTH)] {
        let config = world.mapped_pod(name, host);
        let id = world.run_pod(&config).await?;
        let mut container = world.mapped_script(&config, name, script);
        container.image.get_or_insert_default().image = reference.clone();
        let (_, text) = world.output(&id, &config, &container).await?;
        ensure_eq!(text, format!("0 0 755\n0 0 4755\n5 755\n{}", map(host)));
        pods.push(id);
    }
    let config = world.pod("plain");
    let id = world.run_pod(&config).await?;
    let mut container = world.script("plain", "stat -c '%u %g %a' /bin/busybox /bin/setuid");
    container.image.get_or_insert_default().image = reference;
    ensure_eq!(world.output(&id, &config, &container).await?.1, "0 0 755\n0 0 4755\n");
    ensure_eq!(owners()?, before);
    Ok(())
}

/// E23.
async fn refuses_wrong_mappings(world: &mut World) -> Outcome {
    let good = || vec![line(0, HOST, LENGTH)];
    let with = |mode: NamespaceMode, uids: Vec<IdMapping>, gids: Vec<IdMapping>| UserNamespace {
        mode: mode.into(),
        uids,
        gids,
    };
    let of = |uids: Vec<IdMapping>, gids: Vec<IdMapping>| with(NamespaceMode::Pod, uids, gids);
    let same = |lines: Vec<IdMapping>| of(lines.clone(), lines);
    let cases = [
        ("none", same(vec![]), "uids"),
        ("no groups", of(good(), vec![]), "gids"),
        ("no users", of(vec![], good()), "uids"),
        ("two", same(vec![line(0, HOST, 10), line(10, HOST + 100, 10)]), "uids"),
        ("two, overlapping inside", same(vec![line(0, HOST, 10), line(0, HOST + 100, 10)]), "uids"),
        ("two, overlapping outside", same(vec![line(0, HOST, 10), line(10, HOST + 5, 10)]), "uids"),
        ("0 is not mapped", same(vec![line(1, HOST, LENGTH)]), "container_id"),
        ("no length", same(vec![line(0, HOST, 0)]), "uids"),
        ("beyond the last id", same(vec![line(0, u32::MAX - 1, 2)]), "uids"),
        ("the id that is none", same(vec![line(0, u32::MAX, 1)]), "uids"),
        ("longer than there are ids", same(vec![line(0, HOST, u32::MAX)]), "uids"),
        ("groups elsewhere", of(good(), vec![line(0, HOST + 1, LENGTH)]), "gids"),
        ("fewer groups", of(good(), vec![line(0, HOST, LENGTH - 1)]), "gids"),
        ("CONTAINER", with(NamespaceMode::Container, good(), good()), "mode"),
        ("TARGET", with(NamespaceMode::Target, good(), good()), "mode"),
        ("NODE with a mapping", with(NamespaceMode::Node, good(), good()), "userns_options"),
    ];
    for (name, options, field) in cases {
        let mut config = world.pod("wrong");
        pod::namespaces(&mut config).userns_options = Some(options);
        let error = world.try_run_pod(&config).await.err().ok_or(format!("{name}: accepted"))?;
        ensure!(
            error.code() == Code::InvalidArgument && error.message().contains(field),
            "{name}: {error:?}"
        );
    }
    for (kind, change) in [
        ("network", (|options| options.network = NamespaceMode::Node.into()) as fn(&mut NamespaceOption)),
        ("pid", |options| options.pid = NamespaceMode::Node.into()),
        ("ipc", |options| options.ipc = NamespaceMode::Node.into()),
    ] {
        let mut config = world.mapped_pod("wrong", HOST);
        change(pod::namespaces(&mut config));
        let error = world.try_run_pod(&config).await.err().ok_or(format!("{kind}: accepted"))?;
        ensure!(error.code() == Code::InvalidArgument && error.message().contains(kind), "{kind}: {error:?}");
    }
    ensure!(world.pods().await?.is_empty(), "nothing was made");
    Ok(())
}

async fn refuses_containers_that_differ(world: &mut World) -> Outcome {
    let mapped = world.mapped_pod("mapped", HOST);
    let plain = world.pod("plain");
    let (in_mapped, in_plain) = (world.run_pod(&mapped).await?, world.run_pod(&plain).await?);
    let asks = |options: UserNamespace| {
        Some(NamespaceOption { userns_options: Some(options), ..Default::default() })
    };
    let node = UserNamespace { mode: NamespaceMode::Node.into(), ..Default::default() };
    let cases: Vec<(&str, Option<NamespaceOption>, Option<Mount>, &str)> = vec![
        ("other ids", asks(userns(vec![line(0, HOST + 1, LENGTH)])), None, "userns_options"),
        ("fewer ids", asks(userns(vec![line(0, HOST, LENGTH - 1)])), None, "userns_options"),
        ("NODE", asks(node), None, "userns_options"),
        ("PID of the host", Some(NamespaceOption { pid: 2, ..Default::default() }), None, "pid"),
        (
            "a volume of other ids",
            None,
            Some(Mount {
                uid_mappings: vec![line(0, HOST + 1, LENGTH)],
                ..volume(&world.directory, "/v", true)
            }),
            "gidMappings",
        ),
        (
            "a volume of users alone",
            None,
            Some(Mount { gid_mappings: Vec::new(), ..volume(&world.directory, "/v", true) }),
            "gidMappings",
        ),
    ];
    for (name, options, mount, field) in cases {
        let mut container = world.script("differs", "true");
        pod::security(&mut container).namespace_options = options;
        container.mounts.extend(mount);
        let error =
            world.create(&in_mapped, &mapped, &container).await.err().ok_or(format!("{name}: accepted"))?;
        ensure!(
            error.code() == Code::InvalidArgument && error.message().contains(field),
            "{name}: {error:?}"
        );
    }
    let mut container = world.script("differs", "true");
    pod::security(&mut container).run_as_user = Some(Int64Value { value: LENGTH.into() });
    let error = world.create(&in_mapped, &mapped, &container).await.refused()?;
    ensure!(error.code() == Code::InvalidArgument && error.message().contains("run_as_user"), "{error:?}");
    for (options, mount) in [
        (asks(userns(vec![line(0, HOST, LENGTH)])), None),
        (None, Some(volume(&world.directory, "/v", true))),
    ] {
        let mut container = world.script("differs", "true");
        pod::security(&mut container).namespace_options = options;
        container.mounts.extend(mount);
        let error = world.create(&in_plain, &plain, &container).await.refused()?;
        ensure_eq!(error.code(), Code::InvalidArgument);
    }
    ensure!(world.containers().await?.is_empty(), "nothing was made");
    // Who says nothing gets the pod's; a file system that cannot be mapped is told by its name.
    let (_, text) =
        world.output(&in_mapped, &mapped, &world.script("silent", "cat /proc/self/uid_map")).await?;
    ensure_eq!(text, map(HOST));
    let mut container = world.script("unmappable", "true");
    container.mounts.push(volume(Path::new("/proc/sys"), "/v", true));
    let container = world.create(&in_mapped, &mapped, &container).await?;
    let error = world.start(&container).await.refused()?;
    ensure!(error.message().contains("/proc/sys") && error.message().contains("map"), "{error:?}");
    Ok(())
}

async fn has_users_groups_and_terminals(world: &mut World) -> Outcome {
    let config = world.mapped_pod("users", HOST);
    let id = world.run_pod(&config).await?;
    let mut container = world.mapped_script(
        &config,
        "users",
        "id -u; id -g; id -G; echo again >/dev/stdout; touch /tmp/mine; stat -c '%u %g' /tmp/mine; \
         grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; exec sleep 1000",
    );
    let security = pod::security(&mut container);
    security.run_as_username = "app".into();
    security.supplemental_groups = vec![40_000];
    security.no_new_privs = true;
    let container = world.launch(&id, &config, &container).await?;
    let text = crate::world::log_text(&world.wrote(&container, "NoNewPrivs").await?)?;
    ensure_eq!(
        text,
        "1000\n1000\n1000 40000 50000\nagain\n1000 1000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\n"
    );
    let user = world.status(&container).await?.user.and_then(|user| user.linux).ok_or("no user")?;
    ensure_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 1000, vec![1000, 40_000, 50_000]));
    let answer =
        world.exec(&container, &["sh", "-c", "id -u; echo out >/dev/stdout; echo err >/dev/stderr"]).await?;
    ensure_eq!((answer.stdout, answer.stderr), (b"1000\nout\n".to_vec(), b"err\n".to_vec()));
    for user in ["", "app"] {
        let mut container =
            world.mapped_script(&config, &format!("tty-{user}"), "tty; echo to-tty >/dev/tty");
        container.tty = true;
        pod::security(&mut container).run_as_username = user.into();
        let (status, text) = world.output(&id, &config, &container).await?;
        ensure_eq!(status.exit_code, 0);
        ensure!(text.contains("to-tty"), "{user}: {text}");
    }
    // An image can name who does not exist in a small user namespace.
    let mut small = world.pod("small");
    pod::namespaces(&mut small).userns_options = Some(userns(vec![line(0, HOST, 1000)]));
    let id = world.run_pod(&small).await?;
    let mut container = world.script("small", "id -u");
    ensure_eq!(world.output(&id, &small, &container).await?.1, "0\n");
    container.metadata = Some(ContainerMetadata { name: "small".into(), attempt: 1 });
    pod::security(&mut container).run_as_username = "app".into();
    let container = world.create(&id, &small, &container).await?;
    let error = world.start(&container).await.refused()?;
    ensure!(error.message().contains("1000") && error.message().contains("user namespace"), "{error:?}");
    Ok(())
}

async fn sets_sysctls_inside(world: &mut World) -> Outcome {
    let mut config = world.mapped_pod("sysctls", HOST);
    let wanted = [
        ("kernel.shm_rmid_forced", "1"),
        ("fs.mqueue.msg_max", "12"),
        ("kernel.domainname", "lan"),
        ("net.ipv4.ip_forward", "1"),
    ];
    config.linux.get_or_insert_default().sysctls =
        wanted.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let id = world.run_pod(&config).await?;
    let files: Vec<_> =
        wanted.iter().map(|(key, _)| format!("/proc/sys/{}", key.replace('.', "/"))).collect();
    let script = format!(
        "cat {} /proc/sys/net/ipv4/ping_group_range /proc/sys/net/ipv4/ip_unprivileged_port_start; \
         ip addr show dev eth0 | grep -c 'inet '",
        files.join(" ")
    );
    let (_, text) = world.output(&id, &config, &world.mapped_script(&config, "read", &script)).await?;
    ensure_eq!(text, format!("1\n12\nlan\n1\n0\t{}\n0\n1\n", LENGTH - 1));
    Ok(())
}

/// Every right, but of the pod's own root: what belongs to the host's stays the host's.
async fn is_confined_when_privileged(world: &mut World) -> Outcome {
    let mut config = world.mapped_pod("privileged", HOST);
    config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let id = world.run_pod(&config).await?;
    let secret = world.directory.join("secret");
    fs::write(&secret, "of the host")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    let mut container = world.mapped_script(
        &config,
        "privileged",
        "exec 2>&1; mount -t tmpfs x /tmp && echo mounted; cat /secret; echo 7 >/proc/sys/kernel/panic; mknod /dev/mine b 1 1; \
         mknod /mine c 1 1; ls -l /dev/kmsg | cut -c 1; head -c 1 /dev/kmsg; echo 1 >/proc/sys/vm/drop_caches; \
         stat -c %u /dev/null; echo x >/dev/null && echo null",
    );
    pod::security(&mut container).privileged = true;
    container.mounts.push(volume(&secret, "/secret", false));
    let (_, text) = world.output(&id, &config, &container).await?;
    ensure!(text.starts_with("mounted\n") && text.ends_with("null\n"), "{text}");
    ensure!(!text.contains("of the host"), "{text}");
    let refusals = text.matches("ermission denied").count() + text.matches("not permitted").count();
    ensure!(refusals >= 5, "{text}");
    Ok(())
}

async fn lives_through_a_restart(world: &mut World) -> Outcome {
    let config = world.mapped_pod("kept", HOST);
    let id = world.run_pod(&config).await?;
    let script = world.mapped_script(&config, "kept", "touch /kept; echo up; exec sleep 1000");
    let container = world.launch(&id, &config, &script).await?;
    world.wrote(&container, "up").await?;
    let before = (world.pod_status(&id).await?, world.info(&container).await?["pid"].clone());
    for how in [End::Kill, End::Term] {
        world.restart(how).await?;
        ensure_eq!((world.pod_status(&id).await?, world.info(&container).await?["pid"].clone()), before);
        let answer =
            world.exec(&container, &["sh", "-c", "stat -c %u /kept; cat /proc/self/uid_map"]).await?;
        ensure_eq!(String::from_utf8_lossy(&answer.stdout), format!("0\n{}", map(HOST)));
        ensure_eq!(world.run_pod(&config).await?, id);
    }
    let (_, text) =
        world.output(&id, &config, &world.mapped_script(&config, "later", "cat /proc/self/uid_map")).await?;
    ensure_eq!(text, map(HOST));
    world.stop(&container, 1).await?;
    let pid = before.1.as_i64().ok_or("no pid")?;
    cove_e2e::wait::until("the process to be gone", SOON, || {
        Ok((!Path::new(&format!("/proc/{pid}")).exists()).then_some(()))
    })
}
