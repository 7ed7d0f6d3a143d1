//! Sandboxes: what a pod's environment is, and that it comes and goes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use cove_e2e::{Outcome, cgroup, pod};
use k8s_cri::v1::*;
use rustix::fs::Mode;

use crate::ensure::Refused;
use crate::world::{End, World};

cases!(
    names_itself_and_is_ready,
    runs_stops_and_goes,
    gives_attributes_back_and_filters,
    uses_the_host_network,
    makes_hostname_dns_and_shm,
    shares_a_pid_namespace_by_default,
    keeps_pid_namespaces_apart_on_request,
    shows_host_processes_on_request,
    places_processes_below_the_cgroup_parent,
    leaves_no_mount_in_the_host_table,
    says_what_is_not_built,
    lets_nobody_else_at_its_files,
);

async fn names_itself_and_is_ready(world: &mut World) -> Outcome {
    let version = world.cri.runtime.version(VersionRequest { version: String::new() }).await?.into_inner();
    ensure_eq!(version.version, "0.1.0");
    ensure_eq!(version.runtime_api_version, "v1");
    ensure!(!version.runtime_name.is_empty() && !version.runtime_version.is_empty(), "{version:?}");
    let status = world.cri.runtime.status(StatusRequest { verbose: true }).await?.into_inner();
    let conditions = status.status.clone().ok_or("no status")?.conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        ensure!(conditions.iter().any(|c| c.r#type == name && c.status), "{name} in {conditions:?}");
    }
    ensure!(
        status.runtime_handlers.iter().any(|handler| handler.name.is_empty()),
        "a handler without a name"
    );
    let config = world.cri.runtime.runtime_config(RuntimeConfigRequest {}).await?.into_inner();
    ensure_eq!(config.linux.ok_or("no linux")?.cgroup_driver(), CgroupDriver::Cgroupfs);
    Ok(())
}

async fn runs_stops_and_goes(world: &mut World) -> Outcome {
    let config = world.pod("plain");
    let id = world.run_pod(&config).await?;
    ensure!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    let status = world.pod_status(&id).await?;
    ensure_eq!(status.state(), PodSandboxState::SandboxReady);
    ensure!(
        status.network.as_ref().is_some_and(|network| network.ip.starts_with("10.")),
        "{:?}",
        status.network
    );
    ensure!(status.created_at > 1_600_000_000_000_000_000, "{}", status.created_at);
    for _ in 0..2 {
        world.stop_pod(&id).await?;
    }
    let status = world.pod_status(&id).await?;
    ensure_eq!(status.state(), PodSandboxState::SandboxNotready);
    for _ in 0..2 {
        world.remove_pod(&id).await?;
    }
    ensure_eq!(world.pod_status(&id).await.refused()?.code(), tonic::Code::NotFound);
    // The CRI asks that these succeed for what does not exist.
    world.stop_pod(&"0".repeat(64)).await?;
    world.remove_pod(&"0".repeat(64)).await?;
    Ok(())
}

async fn gives_attributes_back_and_filters(world: &mut World) -> Outcome {
    let mut config = world.pod("labelled");
    config.labels.insert("io.kubernetes.pod.uid".into(), "uid-labelled".into());
    config.labels.insert("odd key/ü".into(), "value with spaces".into());
    config.annotations.insert("note".into(), "line\nbreak".into());
    let id = world.run_pod(&config).await?;
    let other = world.run_pod(&world.pod("other")).await?;
    let status = world.pod_status(&id).await?;
    ensure_eq!(status.labels, config.labels);
    ensure_eq!(status.annotations, config.annotations);
    ensure_eq!(status.metadata, config.metadata);
    let mut find = async |filter: PodSandboxFilter| -> Outcome<Vec<String>> {
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let items = world.cri.runtime.list_pod_sandbox(request).await?.into_inner().items;
        Ok(items.into_iter().map(|item| item.id).collect())
    };
    let label = [("io.kubernetes.pod.uid".to_owned(), "uid-labelled".to_owned())];
    let by_label = PodSandboxFilter { label_selector: label.into_iter().collect(), ..Default::default() };
    ensure_eq!(find(by_label.clone()).await?, [id.clone()]);
    let by_prefix = PodSandboxFilter { id: id[..13].into(), ..Default::default() };
    ensure_eq!(find(by_prefix).await?, [id.clone()]);
    let both = PodSandboxFilter { id: other.clone(), ..by_label };
    ensure!(find(both).await?.is_empty(), "filters are ANDed");
    let unknown = PodSandboxFilter { id: "f".repeat(64), ..Default::default() };
    ensure!(find(unknown).await?.is_empty(), "an unknown id is an empty list");
    ensure_eq!(world.pod_status(&id[..13]).await?.id, id);
    let verbose = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
    let info = world.cri.runtime.pod_sandbox_status(verbose).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
    ensure!(info["pid"].as_i64().is_some_and(|pid| pid > 1) && info["netns"].is_string(), "{info}");
    Ok(())
}

async fn uses_the_host_network(world: &mut World) -> Outcome {
    let mut config = world.pod("host");
    config.hostname = String::new();
    pod::namespaces(&mut config).network = NamespaceMode::Node.into();
    let id = world.run_pod(&config).await?;
    let status = world.pod_status(&id).await?;
    ensure!(status.network.is_none_or(|network| network.ip.is_empty()), "no address of its own");
    let script = world.script("look", "readlink /proc/self/ns/net; readlink /proc/self/ns/uts; hostname");
    let (_, text) = world.output(&id, &config, &script).await?;
    let host =
        |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).map(|link| link.display().to_string());
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname")?;
    ensure_eq!(text, format!("{}\n{}\n{hostname}", host("net")?, host("uts")?));
    Ok(())
}

async fn makes_hostname_dns_and_shm(world: &mut World) -> Outcome {
    let mut config = world.pod("files");
    config.hostname = "files-host".into();
    config.dns_config = Some(DnsConfig {
        servers: vec!["10.10.10.10".into()],
        searches: vec!["google.com".into()],
        options: vec!["ndots:8".into()],
    });
    let id = world.run_pod(&config).await?;
    let first = "hostname; cat /etc/hostname /etc/resolv.conf; grep -c localhost /etc/hosts | head -c 1 | wc -c; echo shared >/dev/shm/x; \
                 df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2";
    let (_, text) = world.output(&id, &config, &world.script("first", first)).await?;
    ensure_eq!(
        text,
        "files-host\nfiles-host\nsearch google.com\nnameserver 10.10.10.10\noptions ndots:8\n1\n65536\n"
    );
    let (_, text) = world.output(&id, &config, &world.script("second", "cat /dev/shm/x")).await?;
    ensure_eq!(text, "shared\n");
    Ok(())
}

async fn shares_a_pid_namespace_by_default(world: &mut World) -> Outcome {
    let config = world.pod("shared");
    let id = world.run_pod(&config).await?;
    let first = world.launch(&id, &config, &world.script("first", "sleep 1000")).await?;
    let look = "cat /proc/1/comm; ls -a /proc/1/root/ 2>&1 | wc -l; ls /proc/1/fd 2>&1 | wc -l; ps -o comm | grep -c '^sleep'";
    let (_, text) = world.output(&id, &config, &world.script("second", look)).await?;
    let lines: Vec<_> = text.lines().collect();
    ensure!(lines.first().is_some_and(|comm| comm.starts_with("cove")), "{text}");
    ensure_eq!(lines.get(3), Some(&"1"));
    let look = world.exec(&first, &["sh", "-c", "echo $$ >/dev/null; cat /proc/1/status"]).await?;
    let status = String::from_utf8(look.stdout)?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(status.contains(&format!("{set}:\t0000000000000000")), "the init holds {set}: {status}");
    }
    ensure!(status.contains("NoNewPrivs:\t1"), "{status}");
    Ok(())
}

async fn keeps_pid_namespaces_apart_on_request(world: &mut World) -> Outcome {
    let mut config = world.pod("apart");
    pod::namespaces(&mut config).pid = NamespaceMode::Container.into();
    let id = world.run_pod(&config).await?;
    world.launch(&id, &config, &apart(world.script("first", "sleep 1000"))).await?;
    let (_, text) = world
        .output(&id, &config, &apart(world.script("second", "echo $$; ps -o comm | grep -c '^sleep'")))
        .await?;
    ensure_eq!(text, "1\n0\n");
    Ok(())
}

fn apart(mut config: ContainerConfig) -> ContainerConfig {
    pod::security(&mut config).namespace_options.get_or_insert_default().pid =
        NamespaceMode::Container.into();
    config
}

async fn shows_host_processes_on_request(world: &mut World) -> Outcome {
    let mut config = world.pod("host-pid");
    pod::namespaces(&mut config).pid = NamespaceMode::Node.into();
    let id = world.run_pod(&config).await?;
    let mut look = world.script("look", "readlink /proc/self/ns/pid; sleep 1000");
    pod::security(&mut look).namespace_options.get_or_insert_default().pid = NamespaceMode::Node.into();
    let container = world.launch(&id, &config, &look).await?;
    let seen = world.exec(&container, &["readlink", "/proc/self/ns/pid"]).await?;
    let host = fs::read_link("/proc/self/ns/pid")?.display().to_string();
    ensure_eq!(String::from_utf8(seen.stdout)?, format!("{host}\n"));
    Ok(())
}

async fn places_processes_below_the_cgroup_parent(world: &mut World) -> Outcome {
    let parent = format!("/e2e-parent-{}", std::process::id());
    let mut config = world.pod("placed");
    config.linux.get_or_insert_default().cgroup_parent.clone_from(&parent);
    let id = world.run_pod(&config).await?;
    let container = world.launch(&id, &config, &world.script("sleep", "sleep 1000")).await?;
    let request = ContainerStatusRequest { container_id: container, verbose: true };
    let info = world.cri.runtime.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
    let places = fs::read_to_string(format!("/proc/{}/cgroup", info["pid"]))?;
    let paths = cgroup::paths(&places);
    ensure!(!paths.is_empty(), "in no cgroup: {places}");
    for path in paths {
        ensure!(path.starts_with(&parent), "not below {parent}: {path}");
    }
    world.stop_pod(&id).await?;
    world.remove_pod(&id).await?;
    // The kubelet makes the pod's cgroup and removes it; so does this case.
    for root in cgroup::roots()? {
        let there = root.join(&parent[1..]).exists();
        ensure!(there, "{}: the parent that was given is not Cove's to remove", root.display());
    }
    cgroup::remove(&parent)
}

async fn leaves_no_mount_in_the_host_table(world: &mut World) -> Outcome {
    let config = world.pod("mounts");
    let count = || fs::read_to_string("/proc/self/mountinfo").map(|text| text.lines().count());
    let id = world.run_pod(&config).await?;
    let before = count()?;
    for name in ["a", "b", "c"] {
        world.launch(&id, &config, &world.script(name, "sleep 1000")).await?;
    }
    ensure_eq!(count()?, before);
    Ok(())
}

async fn says_what_is_not_built(world: &mut World) -> Outcome {
    let id = "0".repeat(64);
    let runtime = &mut world.cri.runtime;
    let answers = [(
        "CheckpointContainer",
        runtime
            .checkpoint_container(CheckpointContainerRequest { container_id: id, ..Default::default() })
            .await
            .err(),
    )];
    for (name, error) in answers {
        let error = error.ok_or(format!("{name} answered"))?;
        ensure!(
            error.code() == tonic::Code::Unimplemented && error.message().contains(name),
            "{name}: {error:?}"
        );
    }
    // What did not answer in time would hide a hang.
    tokio::time::timeout(Duration::from_secs(5), world.cri.runtime.version(VersionRequest::default()))
        .await??;
    Ok(())
}

async fn lets_nobody_else_at_its_files(world: &mut World) -> Outcome {
    let Some(place) = world.place.clone() else { return Ok(()) };
    // Whatever whoever starts it has set.
    let usual = rustix::process::umask(Mode::empty());
    let restarted = world.restart(End::Term).await;
    rustix::process::umask(usual);
    restarted?;
    let config = world.pod("private");
    let id = world.run_pod(&config).await?;
    world.launch(&id, &config, &world.script("private", "exec sleep 1000")).await?;
    // The way to what is walked is open: it is not the case's own directory that keeps nobody out.
    fs::set_permissions(&world.directory, fs::Permissions::from_mode(0o755))?;
    let (root, state) = (place.root.display().to_string(), place.state.display().to_string());
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let finds = ["find", &root, &state, "-mindepth", "2"];
    // Its own errors are what is wanted: it may not look into the directories.
    let seen = std::process::Command::new("setpriv").args(nobody).args(finds).output()?;
    ensure_eq!(String::from_utf8(seen.stdout)?, "");
    ensure!(String::from_utf8(seen.stderr)?.contains("sandboxes"), "it did not look there");
    let mut open = Vec::new();
    for entry in fs::read_dir(&root)?.chain(fs::read_dir(&state)?) {
        let entry = entry?;
        let written_by_case = [place.config_file(), place.log()].contains(&entry.path());
        if !written_by_case && entry.metadata()?.mode() & 0o022 != 0 {
            open.push(entry.path());
        }
    }
    // Whoever is of the socket's group may use the CRI.
    ensure_eq!(open, [place.socket()]);
    Ok(())
}
