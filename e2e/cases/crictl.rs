//! Sub-commands of the real crictl that no other room runs: each does what its help says.

use std::process::Stdio;
use std::time::Duration;

use cove_e2e::Outcome;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, Lines};
use tokio::time::timeout;

use crate::stream::{crictl, sleeper};
use crate::world::{SOON, World};

cases!(
    runs_a_command_and_waits,
    follows_a_log,
    tells_events,
    changes_and_tells_settings,
    removes_unused_images,
    is_refused_a_checkpoint
);

/// Runs it on a thread of its own, so that the case's runtime goes on.
async fn run(world: &World, args: &[&str]) -> Outcome<String> {
    let output = crictl(world)?.command(args).stdin(Stdio::null()).output().await?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

async fn line(lines: &mut Lines<BufReader<impl AsyncRead + Unpin>>) -> Outcome<String> {
    let line = timeout(SOON, lines.next_line()).await.map_err(|_| "no line came")??;
    line.ok_or_else(|| "crictl ended".into())
}

async fn runs_a_command_and_waits(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let said = run(world, &["exec", "-s", &container, "sh", "-c", "echo out; echo err >&2"]).await?;
    ensure!(said.contains("out\n") && said.contains("err\n"), "{said}");
    let error =
        run(world, &["exec", "-s", &container, "sh", "-c", "exit 7"]).await.err().ok_or("exit code 0")?;
    ensure!(error.to_string().contains("exited with 7"), "{error}");
    let began = std::time::Instant::now();
    let late = run(world, &["exec", "-s", "--timeout", "1", &container, "sleep", "100"]).await;
    ensure!(late.is_err() && began.elapsed() < Duration::from_secs(10), "{late:?}");
    Ok(())
}

async fn follows_a_log(world: &mut World) -> Outcome {
    let config = world.pod("follow");
    let id = world.run_pod(&config).await?;
    let script = "echo first; until test -e /tmp/go; do sleep 0.1; done; echo second";
    let container = world.launch(&id, &config, &world.script("follow", script)).await?;
    let mut child = crictl(world)?.command(&["logs", "-f", &container]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
    ensure_eq!(line(&mut lines).await?, "first");
    // What is written in a new file after a rotation is followed, too.
    let log = world.status(&container).await?.log_path;
    std::fs::rename(&log, format!("{log}.1"))?;
    let request = k8s_cri::v1::ReopenContainerLogRequest { container_id: container.clone() };
    world.cri.runtime.reopen_container_log(request).await?;
    world.exec(&container, &["touch", "/tmp/go"]).await?;
    ensure_eq!(line(&mut lines).await?, "second");
    // It ends with the container.
    ensure!(timeout(SOON, child.wait()).await??.success(), "logs -f failed");
    let tail = run(world, &["logs", "--tail", "1", &container]).await?;
    ensure_eq!(tail, "second\n");
    Ok(())
}

async fn tells_events(world: &mut World) -> Outcome {
    let template = "{{.containerEventType}} {{.containerId}}";
    let arguments = ["events", "--output", "go-template", "--template", template];
    let mut child = crictl(world)?.command(&arguments).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
    // Only what happens from then on is told, and nothing says when that is.
    let mut told = String::new();
    for n in 0.. {
        let config = world.pod(&format!("told-{n}"));
        let id = world.run_pod(&config).await?;
        if let Ok(first) = timeout(Duration::from_millis(500), lines.next_line()).await {
            told = first?.ok_or("crictl ended")?;
            break;
        }
        world.stop_pod(&id).await?;
        world.remove_pod(&id).await?;
        ensure!(n < 20, "no event came");
    }
    ensure!(told.starts_with("CONTAINER_") && told.len() > 64, "{told}");
    child.kill().await?;
    Ok(())
}

async fn changes_and_tells_settings(world: &mut World) -> Outcome {
    let (pod, container) = sleeper(world).await?;
    run(world, &["update", "--cpu-share", "512", "--memory", "67108864", &container]).await?;
    let text = run(world, &["inspect", "-o", "json", &container]).await?;
    let resources: Value = serde_json::from_str(&text)?;
    let resources = &resources["status"]["resources"]["linux"];
    ensure!(resources["cpuShares"] == "512" && resources["memoryLimitInBytes"] == "67108864", "{resources}");
    let told = run(world, &["runtime-config"]).await?;
    ensure!(told.to_lowercase().contains("cgroup"), "{told}");
    run(world, &["update-runtime-config", "--pod-cidr", "10.235.0.0/24"]).await?;
    let usage: Value = serde_json::from_str(&run(world, &["imagefsinfo", "-o", "json"]).await?)?;
    ensure!(usage["status"]["imageFilesystems"][0]["fsId"]["mountpoint"].is_string(), "{usage}");
    for (command, of) in [("stats", &container), ("statsp", &pod)] {
        let text = run(world, &[command, "-s", "1", "-o", "json", "--id", of]).await?;
        ensure!(text.contains(of.as_str()) && text.contains("usageCoreNanoSeconds"), "{command}: {text}");
    }
    let metrics = run(world, &["metricsp"]).await?;
    ensure!(metrics.contains(&pod) && metrics.contains("container_memory_usage_bytes"), "{metrics}");
    Ok(())
}

async fn removes_unused_images(world: &mut World) -> Outcome {
    let image = cove_e2e::image::build(
        vec![cove_e2e::image::Layer::new().file("unused", 0o644, "unused")],
        serde_json::json!({"Cmd": ["none"]}),
    )?;
    let unused = world.registry.push("e2e/unused", "1", &image)?;
    world.pull(&unused).await?;
    sleeper(world).await?;
    run(world, &["rmi", "--prune"]).await?;
    let left = run(world, &["images", "-o", "json"]).await?;
    ensure!(!left.contains("e2e/unused") && left.contains("e2e/busybox"), "{left}");
    Ok(())
}

async fn is_refused_a_checkpoint(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let file = world.directory.join("checkpoint.tar");
    let file = file.to_str().ok_or("not UTF-8")?;
    let error = run(world, &["checkpoint", "--export", file, &container]).await.err().ok_or("it was made")?;
    let error = error.to_string();
    ensure!(error.contains("Unimplemented") && error.contains("not implemented"), "{error}");
    ensure_eq!(world.exec(&container, &["true"]).await?.exit_code, 0);
    Ok(())
}
