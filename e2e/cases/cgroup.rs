//! Control groups, seen from outside: what a container does with its own, who freezes it, and the files of version 2.

use std::fs;
use std::path::PathBuf;

use cove_e2e::{Outcome, cgroup, pod, process, wait};
use k8s_cri::v1::*;

use crate::ensure::Refused;
use crate::world::{SOON, World};

cases!(
    stops_what_somebody_froze,
    runs_beside_the_groups_of_a_container,
    takes_files_of_version_2,
    kills_a_whole_group_for_want_of_memory,
);

/// The pid of a container, and the directory of its group in the hierarchy of `controller`.
async fn place(world: &mut World, container: &str, controller: &str) -> Outcome<(i32, PathBuf)> {
    let request = ContainerStatusRequest { container_id: container.into(), verbose: true };
    let info = world.cri.runtime.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
    let pid = i32::try_from(info["pid"].as_i64().ok_or("no pid")?)?;
    let places = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    Ok((pid, cgroup::directory(&places, controller)?))
}

/// An operator, or a snapshot tool that died, leaves a group frozen.
async fn stops_what_somebody_froze(world: &mut World) -> Outcome {
    let config = world.pod("frozen");
    let id = world.run_pod(&config).await?;
    let (file, frozen) = if cgroup::unified() { ("cgroup.freeze", "1") } else { ("freezer.state", "FROZEN") };
    for (name, grace) in [("at-once", 0), ("with-grace", 1)] {
        let container = world.script(name, "trap '' TERM; sleep 1000 & echo ready; wait");
        let container = world.launch(&id, &config, &container).await?;
        world.wrote(&container, "ready").await?;
        let (pid, group) = place(world, &container, "freezer").await?;
        fs::write(group.join(file), frozen)?;
        wait::until("the group to freeze", SOON, || {
            let state = match cgroup::unified() {
                true => fs::read_to_string(group.join("cgroup.events"))?.contains("frozen 1"),
                false => fs::read_to_string(group.join(file))?.trim() == frozen,
            };
            Ok(state.then_some(()))
        })?;
        tokio::time::timeout(SOON, world.stop(&container, grace)).await??;
        let status = world.exited(&container).await?;
        ensure_eq!((name, status.exit_code), (name, 137));
        ensure!(!process::lives(pid), "{name}: {pid} goes on");
        world.remove(&container).await?;
    }
    Ok(())
}

/// A privileged container that hands its controllers down, as systemd, kind and Docker do in a pod: version 2 takes no
/// process in its own group from then on. Execs go where its first process is, and all of it ends with it.
async fn runs_beside_the_groups_of_a_container(world: &mut World) -> Outcome {
    if !cgroup::unified() {
        return Ok(());
    }
    let mut config = world.pod("nested");
    config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let id = world.run_pod(&config).await?;
    let script = "g=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup); mkdir -p $g/init $g/below/deep; \
                  echo $$ >$g/init/cgroup.procs && echo +memory +pids >$g/cgroup.subtree_control || exit 9; \
                  (echo 0 >$g/below/deep/cgroup.procs; exec setsid sleep 4244) & echo ready; wait";
    let mut container = world.script("nested", script);
    pod::security(&mut container).privileged = true;
    let container = world.launch(&id, &config, &container).await?;
    world.wrote(&container, "ready").await?;
    let (pid, group) = place(world, &container, "").await?;
    ensure!(group.ends_with("init"), "{}", group.display());
    let first = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let exec = world.exec(&container, &["cat", "/proc/self/cgroup"]).await?;
    ensure_eq!(String::from_utf8(exec.stdout)?, first);
    // One that is cut short leaves nothing there.
    let request = ExecSyncRequest {
        container_id: container.clone(),
        cmd: ["sh", "-c", "sleep 4245 & sleep 4245"].map(str::to_owned).into(),
        timeout: 1,
    };
    ensure_eq!(world.cri.runtime.exec_sync(request).await.refused()?.code(), tonic::Code::DeadlineExceeded);
    wait::until("the exec's processes to end", SOON, || Ok((!runs("4245")?).then_some(())))?;
    ensure!(runs("4244")?, "a process that is none of the exec's was ended with it");
    world.stop(&container, 0).await?;
    wait::until("the processes of its groups to end", SOON, || Ok((!runs("4244")?).then_some(())))?;
    world.remove(&container).await?;
    let own = group.parent().ok_or("no parent")?;
    ensure!(!own.exists(), "{} is left", own.display());
    Ok(())
}

/// A `sleep` of that many seconds runs on this machine.
fn runs(seconds: &str) -> Outcome<bool> {
    let wanted = ["sleep", seconds, ""].join("\0");
    for entry in fs::read_dir("/proc")? {
        let line = fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        if line == wanted.as_bytes() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn takes_files_of_version_2(world: &mut World) -> Outcome {
    if !cgroup::unified() {
        // `limits::leaves_limits_when_one_is_refused` has what is answered there.
        return Ok(());
    }
    let config = world.pod("files");
    let id = world.run_pod(&config).await?;
    let with = |files: &[(&str, &str)]| LinuxContainerResources {
        unified: files.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect(),
        ..Default::default()
    };
    let mut container = world.script("files", "sleep 1000");
    *pod::resources(&mut container) = LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        ..with(&[("memory.high", "33554432"), ("memory.oom.group", "1"), ("cpu.max", "30000 100000")])
    };
    let container = world.launch(&id, &config, &container).await?;
    let (_, group) = place(world, &container, "").await?;
    let read = |file: &str| fs::read_to_string(group.join(file)).map(|text| text.trim().to_owned());
    for (file, value) in [
        ("memory.max", "67108864"),
        ("memory.high", "33554432"),
        ("memory.oom.group", "1"),
        ("cpu.max", "30000 100000"),
    ] {
        ensure_eq!((file, read(file)?), (file, value.to_owned()));
    }
    let mut update = async |files: &[(&str, &str)]| {
        let request = UpdateContainerResourcesRequest {
            container_id: container.clone(),
            linux: Some(with(files)),
            ..Default::default()
        };
        world.cri.runtime.update_container_resources(request).await.map(drop)
    };
    update(&[("memory.high", "41943040")]).await?;
    ensure_eq!(read("memory.high")?, "41943040");
    // What steers a group, is elsewhere, is not there, or is no value.
    for (file, value) in [
        ("cgroup.freeze", "1"),
        ("cgroup.procs", "1"),
        ("../memory.high", "1"),
        ("memory.nothing", "1"),
        ("memory.high", "much"),
    ] {
        let refused = update(&[(file, value)]).await.refused()?;
        ensure!(refused.message().contains(file) || refused.message().contains("unified"), "{refused}");
        ensure_eq!(read("memory.high")?, "41943040");
    }
    Ok(())
}

/// What the kubelet asks for on version 2: a container of several processes goes as a whole.
async fn kills_a_whole_group_for_want_of_memory(world: &mut World) -> Outcome {
    if !cgroup::unified() {
        return Ok(());
    }
    let config = world.pod("whole");
    let id = world.run_pod(&config).await?;
    let eat = "dd if=/dev/zero of=/dev/null bs=64M 2>/dev/null";
    for (name, group, code) in [("whole", "1", 137), ("one", "0", 5)] {
        let mut container = world.script(name, &format!("{eat}; exit 5"));
        *pod::resources(&mut container) = LinuxContainerResources {
            memory_limit_in_bytes: 16 << 20,
            unified: [("memory.oom.group".to_owned(), group.to_owned())].into_iter().collect(),
            ..Default::default()
        };
        let container = world.launch(&id, &config, &container).await?;
        let status = world.exited(&container).await?;
        ensure_eq!((name, status.exit_code, status.reason.as_str()), (name, code, "OOMKilled"));
    }
    Ok(())
}
