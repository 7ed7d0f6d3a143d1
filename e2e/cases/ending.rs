//! How containers end: by themselves, for want of memory, by a signal, within their grace, and with their pod.

use std::time::{Duration, Instant};

use cove_e2e::{Outcome, pod, process};
use k8s_cri::v1::*;
use rustix::process::Signal;

use crate::ensure::Refused;
use crate::world::World;

cases!(
    tells_an_oom_kill,
    tells_signals,
    tells_a_start_error,
    stops_within_its_grace,
    is_seen_to_end_though_its_shim_is_stopped,
    stops_by_the_signal_asked_for,
    removes_while_running,
    ends_a_fork_bomb_beside_a_sibling_that_answers,
);

/// A thousand processes that sleep, eight that do nothing but fork, and a first one that is deaf.
const BOMB: &str = "for s in 1 2 3 4; do (n=0; while [ $n -lt 250 ]; do sleep 1000 & n=$((n+1)); done) & done; wait; \
    for i in 1 2 3 4 5 6 7 8; do while :; do sleep 0; done & done; trap '' TERM; echo forked; while :; do sleep 1; done";
/// What its end beyond its grace, and a command in its sibling meanwhile, may take on a machine that others use.
const BOMB_LIMIT: Duration = Duration::from_secs(5);

async fn tells_an_oom_kill(world: &mut World) -> Outcome {
    let config = world.pod("oom");
    let id = world.run_pod(&config).await?;
    let mut container = world.script("eat", "dd if=/dev/zero of=/dev/null bs=64M");
    pod::resources(&mut container).memory_limit_in_bytes = 15 << 20;
    let container = world.launch(&id, &config, &container).await?;
    let status = world.exited(&container).await?;
    ensure_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    Ok(())
}

async fn tells_signals(world: &mut World) -> Outcome {
    let config = world.pod("signals");
    let id = world.run_pod(&config).await?;
    for (name, signal, code) in [("term", "TERM", 143), ("kill", "KILL", 137), ("segv", "SEGV", 139)] {
        let (status, _) = world
            .output(&id, &config, &world.script(name, &format!("kill -{signal} $$; sleep 1000")))
            .await?;
        ensure_eq!((name, status.exit_code, status.reason.as_str()), (name, code, "Error"));
    }
    Ok(())
}

async fn tells_a_start_error(world: &mut World) -> Outcome {
    let config = world.pod("start-error");
    let id = world.run_pod(&config).await?;
    let container =
        world.create(&id, &config, &pod::container("missing", &world.image, &["no-such-program"])).await?;
    let error = world.start(&container).await.refused()?;
    ensure!(error.message().contains("no-such-program"), "{error:?}");
    let status = world.status(&container).await?;
    ensure_eq!(
        (status.state(), status.exit_code, status.reason.as_str()),
        (ContainerState::ContainerExited, 128, "StartError")
    );
    ensure!(status.message.contains("no-such-program"), "{}", status.message);
    Ok(())
}

async fn stops_within_its_grace(world: &mut World) -> Outcome {
    let config = world.pod("stop");
    let id = world.run_pod(&config).await?;
    let polite = world
        .launch(
            &id,
            &config,
            &world.script("polite", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"),
        )
        .await?;
    world.wrote(&polite, "ready").await?;
    let began = Instant::now();
    world.stop(&polite, 30).await?;
    ensure!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    ensure_eq!(world.status(&polite).await?.exit_code, 7);
    let deaf = world
        .launch(&id, &config, &world.script("deaf", "trap '' TERM; echo ready; while :; do sleep 0.05; done"))
        .await?;
    world.wrote(&deaf, "ready").await?;
    let began = Instant::now();
    world.stop(&deaf, 1).await?;
    ensure!(began.elapsed() >= Duration::from_millis(950), "killed after {:?} of 1 s", began.elapsed());
    ensure_eq!(world.status(&deaf).await?.exit_code, 137);
    world.stop(&deaf, 1).await?;
    world.stop(&"0".repeat(64), 1).await?;
    // A longer stop is cut short by a shorter one.
    let deaf = world
        .launch(
            &id,
            &config,
            &world.script("deaf2", "trap '' TERM; echo ready; while :; do sleep 0.05; done"),
        )
        .await?;
    world.wrote(&deaf, "ready").await?;
    let mut other = world.cri.clone();
    let request = StopContainerRequest { container_id: deaf.clone(), timeout: 600 };
    let long = tokio::spawn(async move { other.runtime.stop_container(request).await });
    world.stop(&deaf, 0).await?;
    tokio::time::timeout(Duration::from_secs(15), long).await???;
    Ok(())
}

/// A stopped process, which goes on when this is dropped.
struct Stopped(i32);

impl Drop for Stopped {
    fn drop(&mut self) {
        // It fails only where the process is gone.
        let _ = process::signal(self.0, Signal::CONT);
    }
}

async fn is_seen_to_end_though_its_shim_is_stopped(world: &mut World) -> Outcome {
    let config = world.pod("silent");
    let id = world.run_pod(&config).await?;
    let script = world.script("silent", "trap 'exit 3' TERM; echo set; while :; do sleep 0.05; done");
    let container = world.launch(&id, &config, &script).await?;
    world.wrote(&container, "set").await?;
    let shim = Stopped(process::shim(&id)?);
    process::signal(shim.0, Signal::STOP)?;
    let begun = Instant::now();
    world.stop(&container, 120).await?;
    ensure!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
    let status = world.status(&container).await?;
    ensure_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 3));
    drop(shim);
    // What the shim tells in the end is the same.
    world.stop_pod(&id).await?;
    ensure_eq!(world.status(&container).await?, status);
    Ok(())
}

async fn stops_by_the_signal_asked_for(world: &mut World) -> Outcome {
    let image = cove_e2e::image::build(
        vec![cove_e2e::image::busybox()?],
        serde_json::json!({"Env": ["PATH=/bin"], "StopSignal": "SIGUSR1"}),
    )?;
    let reference = world.registry.push("e2e/stop-signal", "1", &image)?;
    world.pull(&reference).await?;
    let config = world.pod("stop-signal");
    let id = world.run_pod(&config).await?;
    let script = "trap 'exit 11' USR1; trap 'exit 12' TERM; echo ready; while :; do sleep 0.05; done";
    let container =
        world.launch(&id, &config, &pod::container("usr1", &reference, &["sh", "-c", script])).await?;
    world.wrote(&container, "ready").await?;
    world.stop(&container, 30).await?;
    ensure_eq!(world.status(&container).await?.exit_code, 11);
    Ok(())
}

async fn removes_while_running(world: &mut World) -> Outcome {
    let config = world.pod("remove");
    let id = world.run_pod(&config).await?;
    let container =
        world.launch(&id, &config, &world.script("run", "trap '' TERM; while :; do sleep 1; done")).await?;
    for _ in 0..2 {
        world.remove(&container).await?;
    }
    ensure_eq!(world.status(&container).await.refused()?.code(), tonic::Code::NotFound);
    let created = world.create(&id, &config, &world.script("created", "true")).await?;
    world.remove(&created).await?;
    world.launch(&id, &config, &world.script("left", "sleep 1000")).await?;
    world.remove_pod(&id).await?;
    ensure!(world.containers().await?.is_empty(), "removing a sandbox removes its containers");
    Ok(())
}

async fn ends_a_fork_bomb_beside_a_sibling_that_answers(world: &mut World) -> Outcome {
    let config = world.pod("bomb");
    let id = world.run_pod(&config).await?;
    let sibling = world.launch(&id, &config, &world.script("sibling", "exec sleep 1000")).await?;
    let bomb = world.launch(&id, &config, &world.script("bomb", BOMB)).await?;
    world.wrote(&bomb, "forked").await?;
    let mut runtime = world.cri.runtime.clone();
    let request = StopContainerRequest { container_id: bomb.clone(), timeout: 1 };
    let began = Instant::now();
    let stop = tokio::spawn(async move { runtime.stop_container(request).await });
    let mut slowest = Duration::ZERO;
    while !stop.is_finished() {
        let asked = Instant::now();
        world.exec(&sibling, &["true"]).await?;
        slowest = slowest.max(asked.elapsed());
    }
    stop.await??;
    let took = began.elapsed();
    eprintln!("gone in {took:?}, the slowest command of its sibling took {slowest:?}");
    ensure!(took < Duration::from_secs(1) + BOMB_LIMIT && slowest < BOMB_LIMIT, "{took:?}, {slowest:?}");
    ensure_eq!(world.status(&bomb).await?.exit_code, 137);
    ensure_eq!(world.status(&sibling).await?.state(), ContainerState::ContainerRunning);
    Ok(())
}
