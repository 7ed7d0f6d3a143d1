//! A container in the PID namespace of another one of its pod: how `kubectl debug --target` looks at what runs.

use std::fs;

use cove_e2e::{Outcome, pod};
use k8s_cri::v1::*;

use crate::ensure::Refused;
use crate::world::{End, World};

cases!(
    joins_the_pid_namespace_of_its_target,
    ends_with_its_target,
    refuses_a_target_that_it_cannot_join,
    goes_on_beside_its_target_when_the_daemon_is_restarted,
);

fn beside(mut config: ContainerConfig, target: &str) -> ContainerConfig {
    let options = pod::security(&mut config).namespace_options.get_or_insert_default();
    (options.pid, options.target_id) = (NamespaceMode::Target.into(), target.into());
    config
}

/// A pod whose containers have PID namespaces of their own, as a kubelet makes it, and one container that runs.
async fn with_target(world: &mut World, name: &str) -> Outcome<(PodSandboxConfig, String, String)> {
    let mut config = world.pod(name);
    pod::namespaces(&mut config).pid = NamespaceMode::Container.into();
    let id = world.run_pod(&config).await?;
    let target =
        world.launch(&id, &config, &world.script("target", "echo kept >/only-here; exec sleep 1000")).await?;
    Ok((config, id, target))
}

/// The PID namespace of a container, by its verbose status.
async fn namespace(world: &mut World, container: &str) -> Outcome<String> {
    let request = ContainerStatusRequest { container_id: container.into(), verbose: true };
    let info = world.cri.runtime.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
    Ok(fs::read_link(format!("/proc/{}/ns/pid", info["pid"]))?.display().to_string())
}

async fn joins_the_pid_namespace_of_its_target(world: &mut World) -> Outcome {
    let (config, id, target) = with_target(world, "target").await?;
    let script =
        "cat /proc/1/comm; cat /proc/1/root/only-here 2>&1; ls /only-here 2>&1; echo ready; sleep 1000";
    let mut debug = beside(world.script("debug", script), &target[..13]);
    let added = Capability { add_capabilities: vec!["SYS_PTRACE".into()], ..Default::default() };
    pod::security(&mut debug).capabilities = Some(added);
    let debug = world.launch(&id, &config, &debug).await?;
    let log = world.wrote(&debug, "ready").await?;
    // It sees the target's files through its process, and has its own root.
    ensure_eq!(
        crate::world::log_text(&log)?,
        "sleep\nkept\nls: /only-here: No such file or directory\nready\n"
    );
    ensure_eq!(namespace(world, &debug).await?, namespace(world, &target).await?);
    let seen = world
        .exec(&debug, &["sh", "-c", "ps -o pid,comm | grep -c sleep; kill -0 1 && echo reached"])
        .await?;
    ensure_eq!(String::from_utf8(seen.stdout)?, "2\nreached\n");
    // Its end, and that of what it leaves behind, is not the target's.
    world.exec(&debug, &["sh", "-c", "setsid sleep 999 & true"]).await?;
    world.stop(&debug, 0).await?;
    ensure_eq!(world.status(&debug).await?.exit_code, 137);
    let seen = world.exec(&target, &["sh", "-c", "ps -o args | grep -c '[s]leep 999'"]).await?;
    ensure_eq!(String::from_utf8(seen.stdout)?, "0\n");
    world.remove(&debug).await?;
    ensure_eq!(world.status(&target).await?.state(), ContainerState::ContainerRunning);
    Ok(())
}

async fn ends_with_its_target(world: &mut World) -> Outcome {
    let (config, id, target) = with_target(world, "ends").await?;
    let debug =
        world.launch(&id, &config, &beside(world.script("debug", "exec sleep 1000"), &target)).await?;
    let late = world.create(&id, &config, &beside(world.script("late", "true"), &target)).await?;
    world.stop(&target, 0).await?;
    ensure_eq!(world.exited(&debug).await?.exit_code, 137);
    // Made while the target ran, started too late.
    let refused = world.start(&late).await.refused()?;
    ensure_eq!(refused.code(), tonic::Code::FailedPrecondition);
    ensure!(refused.message().contains("must be running"), "{refused}");
    Ok(())
}

async fn refuses_a_target_that_it_cannot_join(world: &mut World) -> Outcome {
    let (config, id, target) = with_target(world, "refused").await?;
    let (_, _, elsewhere) = with_target(world, "elsewhere").await?;
    let ended = world.script("ended", "true");
    world.output(&id, &config, &ended).await?;
    let ended = world.containers().await?.into_iter().find(|c| c.state() == ContainerState::ContainerExited);
    let ended = ended.ok_or("none has ended")?.id;
    let missing = "f".repeat(64);
    use tonic::Code::{FailedPrecondition, InvalidArgument};
    for (target, code, text) in [
        ("", InvalidArgument, "must not be empty"),
        (missing.as_str(), InvalidArgument, "does not exist"),
        (elsewhere.as_str(), InvalidArgument, "is of sandbox"),
        (ended.as_str(), FailedPrecondition, "is exited"),
    ] {
        let refused =
            world.create(&id, &config, &beside(world.script("debug", "true"), target)).await.refused()?;
        ensure_eq!((target, refused.code()), (target, code));
        ensure!(refused.message().contains(text), "{refused}");
    }
    // TARGET is nothing for a sandbox.
    let mut sandbox = world.pod("sandbox");
    let options = pod::namespaces(&mut sandbox);
    (options.pid, options.target_id) = (NamespaceMode::Target.into(), target);
    ensure_eq!(world.try_run_pod(&sandbox).await.refused()?.code(), InvalidArgument);
    Ok(())
}

async fn goes_on_beside_its_target_when_the_daemon_is_restarted(world: &mut World) -> Outcome {
    let (config, id, target) = with_target(world, "restart").await?;
    let debug =
        world.launch(&id, &config, &beside(world.script("debug", "exec sleep 1000"), &target)).await?;
    world.restart(End::Kill).await?;
    ensure_eq!(namespace(world, &debug).await?, namespace(world, &target).await?);
    let seen = world.exec(&debug, &["cat", "/proc/1/comm"]).await?;
    ensure_eq!(String::from_utf8(seen.stdout)?, "sleep\n");
    let later = world.launch(&id, &config, &beside(world.script("later", "exec sleep 1000"), &debug)).await?;
    ensure_eq!(namespace(world, &later).await?, namespace(world, &target).await?);
    world.stop(&target, 0).await?;
    for container in [&debug, &later] {
        ensure_eq!(world.exited(container).await?.exit_code, 137);
    }
    Ok(())
}
