//! A node that has run out of something: calls fail with a reason, what runs goes on and can be ended, and nothing has to be
//! restarted when there is some again.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cove_e2e::{Outcome, cni, process, wait};
use k8s_cri::v1::*;
use tonic::Code;

use crate::ensure::Refused;
use crate::world::{End, SOON, World, log_text};

cases!(
    ends_pods_while_the_disk_is_full,
    lets_containers_go_on_while_no_log_can_be_written,
    answers_again_after_it_had_no_descriptors,
);

/// Room for the records, the common image and little more.
const SIZE: &str = "size=48m";

/// Runs `body` with a daemon whose root is on a small disk of its own, which is gone after it.
async fn on_a_small_disk(world: &mut World, body: impl AsyncFnOnce(&mut World, &Path) -> Outcome) -> Outcome {
    // Only against a runtime that runs already there is none; its disk is not for tests.
    let Some(before) = world.place.clone() else { return Ok(()) };
    let disk = world.directory.join("disk");
    fs::create_dir(&disk)?;
    cni::run("mount", &["-t", "tmpfs", "-o", SIZE, "small", &disk.to_string_lossy()])?;
    if let Some(place) = &mut world.place {
        place.root = disk.join("root");
    }
    let outcome = async {
        world.restart(End::Term).await?;
        world.pull(&world.image.clone()).await?;
        body(world, &disk).await
    }
    .await;
    let _ = fs::remove_file(disk.join("filler"));
    if outcome.is_err() {
        eprintln!("{}", fs::read_to_string(disk.join("root/cove.log")).unwrap_or_default());
    }
    let removed = world.remove_everything().await;
    let ended = world.daemon.take().map_or(Ok(()), |daemon| daemon.stop());
    let unmounted = cni::run("umount", &[&disk.to_string_lossy()]).map(|_| ());
    world.place = Some(before);
    outcome.and(removed).and(ended).and(unmounted).and(world.resume(&[]).await)
}

/// Takes the last byte of a disk. Removing the file gives them back.
fn fill(disk: &Path) -> Outcome<PathBuf> {
    let path = disk.join("filler");
    let mut file = fs::File::create(&path)?;
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    Ok(path)
}

async fn ends_pods_while_the_disk_is_full(world: &mut World) -> Outcome {
    on_a_small_disk(world, async |world, disk| {
        let config = world.pod("kept");
        let kept = world.run_pod(&config).await?;
        let container = world.launch(&kept, &config, &world.script("kept", "exec sleep 1000")).await?;
        let gone = world.run_pod(&world.pod("gone")).await?;
        let filler = fill(disk)?;

        let error = world.try_run_pod(&world.pod("more")).await.refused()?;
        ensure_eq!(error.code(), Code::ResourceExhausted);
        ensure!(error.message().contains("No space left"), "{error:?}");
        let other = world.registry.push("e2e/more", "1", &crate::image::small("more")?)?;
        let error = world.pull(&other).await.err().ok_or("pulled onto a full disk")?.to_string();
        ensure!(error.contains("No space left"), "{error}");
        // What runs goes on, and is told of.
        world.exec(&container, &["true"]).await?;
        ensure_eq!(world.status(&container).await?.state(), ContainerState::ContainerRunning);
        // What is to end ends, and makes room for names.
        world.remove_pod(&gone).await?;
        world.stop(&container, 0).await?;
        ensure_eq!(world.status(&container).await?.state(), ContainerState::ContainerExited);
        ensure_eq!(world.pods().await?.len(), 1);

        fs::remove_file(filler)?;
        for name in ["more", "gone"] {
            let again = world.run_pod(&world.pod(name)).await?;
            world.remove_pod(&again).await?;
        }
        world.pull(&other).await?;
        // The record tells what happened while it could not be written.
        world.restart(End::Kill).await?;
        let status = world.status(&container).await?;
        ensure_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
        Ok(())
    })
    .await
}

async fn lets_containers_go_on_while_no_log_can_be_written(world: &mut World) -> Outcome {
    let disk = world.directory.join("logs-disk");
    fs::create_dir(&disk)?;
    cni::run("mount", &["-t", "tmpfs", "-o", "size=1m", "small", &disk.to_string_lossy()])?;
    let outcome = async {
        let mut config = world.pod("talks");
        config.log_directory = disk.join("talks").to_string_lossy().into_owned();
        let id = world.run_pod(&config).await?;
        // Far more than the disk and a pipe hold.
        let script = "echo before; until test -e /tmp/go; do sleep 0.1; done; yes 0123456789abcdef | head -n 500000; \
                      touch /tmp/written; until test -e /tmp/end; do sleep 0.1; done; echo after; exec sleep 1000";
        let container = world.launch(&id, &config, &world.script("talks", script)).await?;
        world.wrote(&container, "before").await?;
        let filler = fill(&disk)?;
        world.exec(&container, &["touch", "/tmp/go"]).await?;
        let began = Instant::now();
        while world.exec(&container, &["test", "-e", "/tmp/written"]).await?.exit_code != 0 {
            ensure!(began.elapsed() < SOON, "the container waits for its log");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        fs::remove_file(filler)?;
        world.exec(&container, &["touch", "/tmp/end"]).await?;
        world.wrote(&container, "after").await?;
        // What is there is whole lines.
        let text = log_text(&fs::read_to_string(world.status(&container).await?.log_path)?)?;
        let odd = text.lines().find(|line| !["before", "0123456789abcdef", "after"].contains(line));
        ensure!(odd.is_none(), "{odd:?}");
        world.remove_pod(&id).await?;
        Ok(())
    }
    .await;
    outcome.and(cni::run("umount", &[&disk.to_string_lossy()]).map(|_| ()))
}

async fn answers_again_after_it_had_no_descriptors(world: &mut World) -> Outcome {
    let config = world.pod("stays");
    let id = world.run_pod(&config).await?;
    let container = world.launch(&id, &config, &world.script("stays", "exec sleep 1000")).await?;
    let Some(place) = world.place.clone() else { return Ok(()) };
    let pid = world.daemon.as_ref().ok_or("needs a daemon of its own")?.pid();
    let open = || process::descriptors(pid);
    let before = open()?;
    cni::run("prlimit", &["--pid", &pid.to_string(), "--nofile=128:"])?;
    // Each takes one of the daemon's, until it has none. A few more wait to be accepted: so few that they cannot take the last
    // one again while the others go.
    let connections: Vec<UnixStream> =
        (before..128 + 5).map(|_| UnixStream::connect(place.socket())).collect::<Result<_, _>>()?;
    wait::until("the daemon to have none left", SOON, || Ok((open()? >= 128).then_some(())))?;
    let busy = process::cpu_seconds(pid)?;
    let error = world.try_run_pod(&world.pod("more")).await.refused()?;
    ensure_eq!(error.code(), Code::ResourceExhausted);
    tokio::time::sleep(Duration::from_secs(2)).await;
    // It does not spin on what it cannot accept.
    let busy = process::cpu_seconds(pid)? - busy;
    ensure!(busy < 0.6, "{busy} seconds of a core in two");
    drop(connections);
    wait::until("the connections to be gone", Duration::from_secs(5), || {
        Ok((open()? < before + 20).then_some(()))
    })?;
    world.exec(&container, &["true"]).await?;
    let more = world.run_pod(&world.pod("more")).await?;
    world.remove_pod(&more).await?;
    ensure_eq!(world.status(&container).await?.state(), ContainerState::ContainerRunning);
    Ok(())
}
