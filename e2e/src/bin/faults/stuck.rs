//! What is stuck keeps only itself: a stopped shim, a slow one, a volume that hangs, a registry that never answers. The calls
//! of another pod take what they took before, and the stuck pod itself can be seen, stopped and removed.

use std::future::Future;
use std::io::Read;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cove_e2e::kubelet::Kubelet;
use cove_e2e::{Outcome, pod, process, residue, wait};
use k8s_cri::v1::{ContainerConfig, ContainerState, Mount, PodSandboxConfig};
use rustix::process::Signal;

use crate::Ground;
use crate::fuse::Fuse;
use crate::neighbour::Neighbour;

/// A call that waits for nothing that is stuck.
const AT_ONCE: Duration = Duration::from_secs(1);
/// A call that gives up what is stuck after a limit of its own (2 s each for what a shim is asked).
const SOON: Duration = Duration::from_secs(10);
/// Beyond the 10 s after which a Stop says that the process cannot be ended.
const LONG: Duration = Duration::from_secs(20);
/// How long a shim that is slow does nothing at a time.
const NAP: Duration = Duration::from_millis(150);

/// What is stuck.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    StoppedShim,
    SlowShim,
    VolumeAtStart,
    VolumeAtStop,
    Registry,
}

pub const PARTS: [Part; 5] =
    [Part::StoppedShim, Part::SlowShim, Part::VolumeAtStart, Part::VolumeAtStop, Part::Registry];

pub async fn run(ground: &Ground, part: Part) -> Outcome {
    let (daemon, kubelet) = ground.start("").await?;
    let mut victim = Victim { kubelet: kubelet.clone(), ground };
    let mut neighbour = Neighbour::start(ground, &kubelet).await?;
    match part {
        Part::StoppedShim => victim.stopped_shim(&mut neighbour).await?,
        Part::SlowShim => victim.slow_shim(&mut neighbour).await?,
        Part::VolumeAtStart => victim.volume_at_start(&mut neighbour).await?,
        Part::VolumeAtStop => victim.volume_at_stop(&mut neighbour).await?,
        Part::Registry => victim.registry(&mut neighbour).await?,
    }
    for id in victim.kubelet.pods().await? {
        victim.kubelet.stop_pod(&id).await?;
        victim.kubelet.remove_pod(&id).await?;
    }
    residue::check(&ground.place, Some(daemon.pid()))?;
    daemon.stop()?;
    residue::check(&ground.place, None)
}

struct Victim<'a> {
    ground: &'a Ground,
    kubelet: Kubelet,
}

async fn within<T, E>(limit: Duration, what: &str, call: impl Future<Output = Result<T, E>>) -> Outcome<T>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|error| format!("{what}: {}", error.into()).into()),
        Err(_) => Err(format!("{what} was not answered within {limit:?}").into()),
    }
}

/// Wakes the shim again, whatever comes of the check.
struct Stopped(i32);

impl Stopped {
    fn new(shim: i32) -> Outcome<Self> {
        process::signal(shim, Signal::STOP)?;
        wait::until("the shim to be stopped", SOON, || {
            let stat = std::fs::read_to_string(format!("/proc/{shim}/stat"))?;
            Ok(stat.contains(") T ").then_some(()))
        })?;
        Ok(Self(shim))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // Gone is fine.
        let _ = process::signal(self.0, Signal::CONT);
    }
}

impl Victim<'_> {
    fn volume(&self, name: &str, host: &std::path::Path, script: &str) -> ContainerConfig {
        let mut config = pod::container(name, &self.ground.image, &["sh", "-c", script]);
        let host_path = host.display().to_string();
        config.mounts.push(Mount { container_path: "/v".into(), host_path, ..Default::default() });
        config
    }

    async fn launch(&mut self, id: &str, config: &PodSandboxConfig, name: &str) -> Outcome<String> {
        let container = pod::container(name, &self.ground.image, &["sleep", "1000"]);
        let container = self.kubelet.create(id, config, &container).await?;
        self.kubelet.start(&container).await?;
        Ok(container)
    }

    async fn state_within(&self, id: &str, state: ContainerState, limit: Duration) -> Outcome<i32> {
        wait::until_async(&format!("{id} to be {state:?}"), limit, || {
            let mut kubelet = self.kubelet.clone();
            async move {
                let status = kubelet.status(id).await?;
                Ok((status.state() == state).then_some(status.exit_code))
            }
        })
        .await
    }

    /// It is seen at once, whatever it waits for.
    async fn is_seen(&self, sandbox: &str, container: &str) -> Outcome {
        let mut kubelet = self.kubelet.clone();
        within(AT_ONCE, "PodSandboxStatus", kubelet.pod_status(sandbox)).await?;
        within(AT_ONCE, "ContainerStatus", kubelet.status(container)).await?;
        let listed = within(AT_ONCE, "ListContainers", kubelet.containers()).await?;
        if !listed.iter().any(|id| id == container) {
            return Err(format!("{container} is not listed").into());
        }
        within(AT_ONCE, "ListPodSandbox", kubelet.pods()).await?;
        Ok(())
    }

    async fn stopped_shim(&mut self, neighbour: &mut Neighbour<'_>) -> Outcome {
        let config = self.ground.pod("stopped");
        let id = self.kubelet.run(&config).await?;
        let first = self.launch(&id, &config, "first").await?;
        let second = self.launch(&id, &config, "second").await?;
        let third = self.launch(&id, &config, "third").await?;
        let stopped = Stopped::new(process::shim(&id)?)?;
        let asking = tokio::spawn({
            let (mut kubelet, first) = (self.kubelet.clone(), first.clone());
            async move { kubelet.exec(&first, &["true"]).await }
        });
        neighbour.notices_nothing().await?;
        self.is_seen(&id, &first).await?;
        // sh and sleep end by SIGTERM; nobody is there to tell, so the grace is over first.
        within(SOON, "StopContainer", self.kubelet.stop(&first, 1)).await?;
        within(SOON, "StopContainer", self.kubelet.stop(&second, 0)).await?;
        for container in [&first, &second] {
            let code = self.state_within(container, ContainerState::ContainerExited, AT_ONCE).await?;
            if code == 0 {
                return Err(format!("{container} was killed, and ended with 0").into());
            }
        }
        within(SOON, "RemoveContainer", self.kubelet.remove(&first)).await?;
        asking.abort();
        // Awake again, it works as before.
        drop(stopped);
        let (code, _) = within(SOON, "ExecSync", self.kubelet.exec(&third, &["true"])).await?;
        if code != 0 {
            return Err(format!("exec after the shim was woken ends with {code}").into());
        }
        let _stopped = Stopped::new(process::shim(&id)?)?;
        within(SOON, "StopPodSandbox", self.kubelet.stop_pod(&id)).await?;
        within(SOON, "RemovePodSandbox", self.kubelet.remove_pod(&id)).await
    }

    async fn slow_shim(&mut self, neighbour: &mut Neighbour<'_>) -> Outcome {
        let config = self.ground.pod("slow");
        let id = self.kubelet.run(&config).await?;
        let container = self.launch(&id, &config, "stays").await?;
        let (shim, end) = (process::shim(&id)?, Arc::new(AtomicBool::new(false)));
        let naps = std::thread::spawn({
            let end = Arc::clone(&end);
            move || {
                while !end.load(Ordering::SeqCst)
                    && process::signal(shim, Signal::STOP).is_ok()
                    && {
                        std::thread::sleep(NAP);
                        true
                    }
                    && process::signal(shim, Signal::CONT).is_ok()
                {
                    std::thread::sleep(NAP / 30);
                }
            }
        });
        let lived = async {
            neighbour.notices_nothing().await?;
            let (code, _) = within(SOON, "ExecSync", self.kubelet.exec(&container, &["true"])).await?;
            let other = within(LONG, "a container's start", self.launch(&id, &config, "comes")).await?;
            within(SOON, "StopContainer", self.kubelet.stop(&other, 0)).await?;
            within(SOON, "RemoveContainer", self.kubelet.remove(&other)).await?;
            within(SOON, "StopPodSandbox", self.kubelet.stop_pod(&id)).await?;
            within(SOON, "RemovePodSandbox", self.kubelet.remove_pod(&id)).await?;
            if code == 0 { Ok(()) } else { Err(format!("exec by a slow shim ends with {code}").into()) }
        }
        .await;
        end.store(true, Ordering::SeqCst);
        naps.join().map_err(|_| "the thread that stops the shim panicked")?;
        lived
    }

    async fn volume_at_start(&mut self, neighbour: &mut Neighbour<'_>) -> Outcome {
        let point = self.ground.directory.path().join("volume");
        let config = self.ground.pod("volume");
        let id = self.kubelet.run(&config).await?;
        for swallows in [false, true] {
            let mut fuse = if swallows { Fuse::swallowing(&point)? } else { Fuse::silent(&point)? };
            let name = if swallows { "swallowed" } else { "silent" };
            let volume = self.volume(name, &point.join("below"), "sleep 1000");
            let container =
                within(AT_ONCE, "CreateContainer", self.kubelet.create(&id, &config, &volume)).await?;
            let starting = tokio::spawn({
                let (mut kubelet, container) = (self.kubelet.clone(), container.clone());
                async move { kubelet.start(&container).await }
            });
            let state = self.ground.place.root.join("containers").join(&container).join("state.json");
            wait::until("the start to begin", SOON, || {
                Ok(std::fs::read_to_string(&state)?.contains("\"Starting\"").then_some(()))
            })?;
            neighbour.notices_nothing().await?;
            self.is_seen(&id, &container).await?;
            // Another container of the same pod does not wait either.
            let other =
                within(SOON, "a container's start", self.launch(&id, &config, &format!("beside-{name}")))
                    .await?;
            within(SOON, "StopContainer", self.kubelet.stop(&other, 0)).await?;
            let stopped = within(LONG, "StopContainer", async {
                Ok::<_, std::convert::Infallible>(self.kubelet.stop(&container, 30).await)
            })
            .await?;
            // What waits in the kernel and cannot be killed is said to be so.
            if !swallows {
                stopped?;
            }
            let started = within(LONG, "StartContainer", starting).await?;
            if started.is_ok() {
                return Err("a container whose volume hangs has started".into());
            }
            neighbour.notices_nothing().await?;
            if swallows {
                fuse.abort()?;
            }
            self.state_within(&container, ContainerState::ContainerExited, SOON).await?;
            within(SOON, "RemoveContainer", self.kubelet.remove(&container)).await?;
            fuse.abort()?;
        }
        Ok(())
    }

    async fn volume_at_stop(&mut self, neighbour: &mut Neighbour<'_>) -> Outcome {
        let point = self.ground.directory.path().join("volume");
        let config = self.ground.pod("volume");
        let id = self.kubelet.run(&config).await?;
        let mut fuse = Fuse::swallowing(&point)?;
        let volume = self.volume("hangs", &point, "exec cat /v/file");
        let container = self.kubelet.create(&id, &config, &volume).await?;
        within(SOON, "StartContainer", self.kubelet.start(&container)).await?;
        let pid = self.kubelet.pid(&container).await?;
        wait::until("the program to hang", SOON, || {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm"))?;
            Ok((name == "cat\n").then_some(()))
        })?;
        let stopping = tokio::spawn({
            let (mut kubelet, container) = (self.kubelet.clone(), container.clone());
            async move { kubelet.stop(&container, 0).await }
        });
        neighbour.notices_nothing().await?;
        self.is_seen(&id, &container).await?;
        let refused = within(LONG, "StopContainer", stopping).await?.err();
        let refused = refused.ok_or("a process that cannot be ended is said to have been")?;
        if !refused.message().contains("state D") {
            return Err(format!("the error does not say that the process hangs: {refused}").into());
        }
        if self.kubelet.status(&container).await?.state() != ContainerState::ContainerRunning {
            return Err("what still runs is not said to run".into());
        }
        fuse.abort()?;
        let code = self.state_within(&container, ContainerState::ContainerExited, SOON).await?;
        if code != 137 {
            return Err(format!("it was killed, and ended with {code}").into());
        }
        within(SOON, "RemoveContainer", self.kubelet.remove(&container)).await
    }

    async fn registry(&mut self, neighbour: &mut Neighbour<'_>) -> Outcome {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let reference = format!("{}/never/answers:1", listener.local_addr()?);
        let pulling = tokio::spawn({
            let mut kubelet = self.kubelet.clone();
            async move { kubelet.pull(&reference).await }
        });
        let accepted = tokio::task::spawn_blocking(move || listener.accept());
        let (mut connection, _) = within(SOON, "the daemon's connection", accepted).await??;
        connection.set_read_timeout(Some(SOON))?;
        neighbour.notices_nothing().await?;
        within(SOON, "PullImage of another image", self.kubelet.pull(&self.ground.image)).await?;
        // A pod is stopped and removed while an image is pulled for it.
        let config = self.ground.pod("waits");
        let id = self.kubelet.run(&config).await?;
        within(SOON, "StopPodSandbox", self.kubelet.stop_pod(&id)).await?;
        within(SOON, "RemovePodSandbox", self.kubelet.remove_pod(&id)).await?;
        // The pull ends with the last who waits for it.
        pulling.abort();
        let ended = tokio::task::spawn_blocking(move || {
            let mut asked = [0; 4096];
            while connection.read(&mut asked)? > 0 {}
            Ok::<_, std::io::Error>(())
        });
        within(SOON, "the end of the pull", ended).await??;
        Ok(())
    }
}
