//! The daemon dies and comes back: nothing that runs depends on it.

use std::fs;

use cove_e2e::{Outcome, wait};
use k8s_cri::v1::*;

use crate::world::{End, SOON, World, log_text};

cases!(keeps_what_runs, learns_what_ended_meanwhile, refuses_a_second_daemon);

async fn pid(world: &mut World, container: &str) -> Outcome<i64> {
    let request = ContainerStatusRequest { container_id: container.into(), verbose: true };
    let info = world.cri.runtime.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
    info["pid"].as_i64().ok_or_else(|| format!("no pid in {info}").into())
}

async fn keeps_what_runs(world: &mut World) -> Outcome {
    let config = world.pod("kept");
    let id = world.run_pod(&config).await?;
    let script = world.script("count", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done");
    let container = world.launch(&id, &config, &script).await?;
    let before = (world.pod_status(&id).await?, pid(world, &container).await?);
    for how in [End::Kill, End::Term] {
        world.restart(how).await?;
        ensure_eq!(world.pod_status(&id).await?, before.0);
        ensure_eq!(pid(world, &container).await?, before.1);
        ensure_eq!(world.status(&container).await?.state(), ContainerState::ContainerRunning);
        let answer = world.exec(&container, &["echo", "still here"]).await?;
        ensure_eq!(answer.stdout, b"still here\n");
        ensure_eq!(world.run_pod(&config).await?, id);
    }
    world.stop(&container, 1).await?;
    let text = log_text(&fs::read_to_string(world.status(&container).await?.log_path)?)?;
    for (n, line) in text.lines().enumerate() {
        ensure!(line == (n + 1).to_string(), "line {n} of the log is {line:?}: a gap");
    }
    Ok(())
}

async fn learns_what_ended_meanwhile(world: &mut World) -> Outcome {
    let config = world.pod("meanwhile");
    let id = world.run_pod(&config).await?;
    let gate = world.directory.join("gate");
    fs::create_dir(&gate)?;
    let mut script =
        world.script("wait", "while ! test -e /gate/open; do sleep 0.02; done; echo last words; exit 42");
    let volume =
        Mount { container_path: "/gate".into(), host_path: gate.display().to_string(), ..Default::default() };
    script.mounts.push(volume);
    let container = world.launch(&id, &config, &script).await?;
    let log = world.status(&container).await?.log_path;
    world.daemon.take().ok_or("no daemon")?.kill()?;
    fs::write(gate.join("open"), "")?;
    wait::until("the container's last words", SOON, || {
        Ok(fs::read_to_string(&log)?.contains("last words").then_some(()))
    })?;
    world.resume(&[]).await?;
    let status = world.exited(&container).await?;
    ensure_eq!((status.exit_code, status.reason.as_str()), (42, "Error"));
    Ok(())
}

async fn refuses_a_second_daemon(world: &mut World) -> Outcome {
    let Some(place) = world.place.clone() else { return Ok(()) };
    let first = world.daemon.as_ref().ok_or("no daemon")?.pid();
    let mut second = place.start()?;
    let error = second.connect_or_end().await.err().ok_or("the second daemon lives")?.to_string();
    ensure!(error.contains("ended with") && error.contains(&first.to_string()), "{error}");
    let version = world.cri.runtime.version(VersionRequest::default()).await?.into_inner();
    ensure!(!version.runtime_name.is_empty(), "the first still answers");
    Ok(())
}
