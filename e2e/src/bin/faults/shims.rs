//! kill -9 of a shim: its containers end with it, the sandbox tells the truth, and all of it can be removed.

use std::time::Duration;

use cove_e2e::{Outcome, pod, process, residue, wait};
use k8s_cri::v1::{ContainerState, PodSandboxConfig, PodSandboxState};
use rustix::process::Signal;

use crate::Ground;

/// security-bar.md F03.
const ENDED: Duration = Duration::from_secs(5);

/// A pod whose shim is killed, and another that must not notice.
pub async fn run(ground: &Ground, daemon_lives: bool) -> Outcome {
    let (mut daemon, mut kubelet) = ground.start("").await?;
    let config = |name: &str| PodSandboxConfig {
        log_directory: ground.directory.path().join("logs").join(name).display().to_string(),
        ..pod::sandbox(name)
    };
    let (hit, other) = (config("hit"), config("other"));
    let mut sandboxes = Vec::new();
    let mut containers = Vec::new();
    for (config, count) in [(&hit, 2), (&other, 1)] {
        let id = kubelet.run(config).await?;
        for n in 0..count {
            let script = "setsid sleep 1000 & exec sleep 1001";
            let container = pod::container(&format!("c{n}"), &ground.image, &["sh", "-c", script]);
            let container = kubelet.create(&id, config, &container).await?;
            kubelet.start(&container).await?;
            containers.push((container.clone(), kubelet.pid(&container).await?));
        }
        sandboxes.push(id);
    }
    let shim = process::shim(&sandboxes[0])?;
    if daemon_lives {
        process::signal(shim, Signal::KILL)?;
    } else {
        daemon.kill()?;
        process::signal(shim, Signal::KILL)?;
        (daemon, kubelet) = ground.start("").await?;
    }
    for (container, pid) in &containers[..2] {
        wait::until("the container's process to end", ENDED, || Ok((!process::lives(*pid)).then_some(())))?;
        let cri = kubelet.clone();
        let status = wait::until_async("the container to be said to have ended", ENDED, || {
            let mut kubelet = cri.clone();
            async move {
                let status = kubelet.status(container).await?;
                Ok((status.state() == ContainerState::ContainerExited).then_some(status))
            }
        })
        .await?;
        if status.exit_code == 0 || status.reason == "Completed" || status.finished_at == 0 {
            return Err(format!("the end of a container that was lost is told as {status:?}").into());
        }
    }
    let cri = kubelet.clone();
    wait::until_async("the sandbox to be said not to be ready", ENDED, || {
        let (mut kubelet, id) = (cri.clone(), sandboxes[0].clone());
        async move {
            let state = kubelet.pod_status(&id).await?.state();
            Ok((state == PodSandboxState::SandboxNotready).then_some(()))
        }
    })
    .await?;
    let (container, pid) = &containers[2];
    if kubelet.pid(container).await? != *pid || kubelet.exec(container, &["true"]).await?.0 != 0 {
        return Err("another pod noticed".into());
    }
    // The name is free at once, also while the old one is still listed.
    let anew = kubelet.run(&hit).await?;
    for id in sandboxes.iter().chain([&anew]) {
        kubelet.stop_pod(id).await?;
        kubelet.remove_pod(id).await?;
    }
    residue::check(&ground.place, Some(daemon.pid()))?;
    daemon.stop()?;
    residue::check(&ground.place, None)
}
