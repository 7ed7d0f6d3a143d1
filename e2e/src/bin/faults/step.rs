//! A pod's whole life while one step of one operation fails, or kills the daemon: the same request again succeeds or
//! joins, and at the end nothing is left.

use std::time::Duration;

use cove_e2e::daemon::Daemon;
use cove_e2e::kubelet::Kubelet;
use cove_e2e::{Outcome, pod, residue, wait};
use k8s_cri::v1::{ContainerConfig, ContainerState, PodSandboxConfig, PodSandboxState};
use tonic::Status;

use crate::Ground;

/// How long a process that aborts may take to be gone after its connection is.
const DEATH: Duration = Duration::from_secs(5);
/// How long a container that was being started may take to be one thing or the other after a restart.
const SETTLED: Duration = Duration::from_secs(3);

/// A fail point and what happens there.
#[derive(Debug)]
pub struct Visit {
    point: String,
    action: &'static str,
    /// A point that fails before, so that this one is reached on the way back.
    before: Option<&'static str>,
}

/// The visits of a point: failing and dying, and the same on the way back from a failure for what undoes.
pub fn visits(point: &str) -> Vec<Visit> {
    let after = match point.rsplit_once('.') {
        Some(("sandbox.teardown", _)) => Some("sandbox.run.ready"),
        Some(("container.erase", _)) => Some("container.create.commit"),
        _ => None,
    };
    let mut visits = Vec::new();
    for action in ["error", "abort"] {
        visits.push(Visit { point: point.to_owned(), action, before: None });
        // No container is there yet when a Run fails.
        if after.is_some() && point != "sandbox.teardown.containers" {
            visits.push(Visit { point: point.to_owned(), action, before: after });
        }
    }
    visits
}

impl Visit {
    /// As `COVE_FAILPOINT` writes it.
    pub fn name(&self) -> String {
        let before = self.before.map(|before| format!("{before}=error:1,")).unwrap_or_default();
        format!("{before}{}={}:1", self.point, self.action)
    }
}

/// A client that sees its daemon fail, and brings up another.
struct Life<'a> {
    ground: &'a Ground,
    daemon: Option<Daemon>,
    kubelet: Kubelet,
    errors: Vec<Status>,
    deaths: usize,
}

/// A call until it succeeds, at most twice more: after the point's own failure, and after one on the way to it.
macro_rules! again {
    ($life:ident, $call:ident($($argument:expr),*)) => {{
        let mut tries = 0;
        loop {
            match $life.kubelet.$call($($argument),*).await {
                Ok(value) => break value,
                Err(status) => $life.after(stringify!($call), status, &mut tries).await?,
            }
        }
    }};
}

/// Lives a pod's life with the point set.
pub async fn run(ground: &Ground, visit: &Visit) -> Outcome {
    let (daemon, kubelet) = ground.start(&visit.name()).await?;
    let mut life = Life { ground, daemon: Some(daemon), kubelet, errors: Vec::new(), deaths: 0 };
    life.live().await?;
    let reached = if visit.action == "abort" { life.deaths == 1 } else { !life.errors.is_empty() };
    if !reached {
        return Err(
            format!("the point was not reached: {} deaths, errors {:?}", life.deaths, life.errors).into()
        );
    }
    let daemon = life.daemon.take().ok_or("no daemon")?;
    residue::check(&ground.place, Some(daemon.pid()))?;
    daemon.stop()?;
    residue::check(&ground.place, None)
}

impl Life<'_> {
    async fn live(&mut self) -> Outcome {
        let life = self;
        let config = PodSandboxConfig {
            log_directory: life.ground.directory.path().join("logs").display().to_string(),
            ..pod::sandbox("visit")
        };
        let id = again!(life, run(&config));
        let container = |name| pod::container(name, &life.ground.image, &["sleep", "1000"]);
        let (first, second) = (container("first"), container("second"));
        let one = life.launch(&id, &config, &first).await?;
        life.launch(&id, &config, &second).await?;
        again!(life, stop(&one, 0));
        again!(life, remove(&one));
        again!(life, stop_pod(&id));
        again!(life, remove_pod(&id));
        // What was never answered may be listed, not ready, and goes like any other (N8).
        for id in life.kubelet.pods().await? {
            let state = life.kubelet.pod_status(&id).await?.state();
            if state != PodSandboxState::SandboxNotready {
                return Err(format!("sandbox {id} is {state:?}, and nobody was given it").into());
            }
            life.kubelet.stop_pod(&id).await?;
            life.kubelet.remove_pod(&id).await?;
        }
        let left = life.kubelet.containers().await?;
        if !left.is_empty() {
            return Err(format!("still listed: {left:?}").into());
        }
        Ok(())
    }

    /// A container that runs. One that failed to start has ended, as its status says, and is made anew.
    async fn launch(
        &mut self,
        sandbox: &str,
        pod: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> Outcome<String> {
        let life = self;
        let mut tries = 0;
        loop {
            let id = again!(life, create(sandbox, pod, config));
            match life.kubelet.start(&id).await {
                Ok(()) => {}
                Err(status) => {
                    life.after("start", status, &mut tries).await?;
                    match life.settled(&id).await? {
                        ContainerState::ContainerRunning => {}
                        ContainerState::ContainerExited => {
                            again!(life, remove(&id));
                            continue;
                        }
                        _ => continue,
                    }
                }
            }
            let (code, _) = again!(life, exec(&id, &["true"]));
            if code != 0 {
                return Err(format!("exec in {id} ended with {code}").into());
            }
            return Ok(id);
        }
    }

    /// The state of a container whose start was cut off. It is still said to be created until its shim has been asked.
    async fn settled(&self, id: &str) -> Outcome<ContainerState> {
        let kubelet = self.kubelet.clone();
        let not_created = wait::until_async("the start to be one thing or the other", SETTLED, || {
            let mut kubelet = kubelet.clone();
            async move {
                let state = kubelet.status(id).await?.state();
                Ok((state != ContainerState::ContainerCreated).then_some(state))
            }
        });
        Ok(not_created.await.unwrap_or(ContainerState::ContainerCreated))
    }

    /// After a call that failed: another daemon, if this one died of it.
    async fn after(&mut self, call: &str, status: Status, tries: &mut usize) -> Outcome {
        *tries += 1;
        if *tries > 2 {
            return Err(format!("{call} failed {tries} times: {status:?}").into());
        }
        let daemon = self.daemon.as_mut().ok_or("no daemon")?;
        let broken = matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown)
            && !status.message().contains("fail point");
        self.errors.push(status);
        if broken
            && wait::until("the daemon's death", DEATH, || Ok(daemon.has_ended()?.then_some(()))).is_ok()
        {
            self.deaths += 1;
            (self.daemon, self.kubelet) = {
                let (daemon, kubelet) = self.ground.start("").await?;
                (Some(daemon), kubelet)
            };
        }
        Ok(())
    }
}
