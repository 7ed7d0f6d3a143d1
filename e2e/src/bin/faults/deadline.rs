//! A client that gives up while a step is at work: the step goes on, the same request joins it or is given what came of it,
//! and nothing is left.

use std::future::Future;
use std::time::Duration;

use cove_e2e::kubelet::Kubelet;
use cove_e2e::{Outcome, pod, residue, wait};
use k8s_cri::v1::{ContainerState, PodSandboxConfig, PodSandboxState};
use tonic::{Code, Status};

use crate::Ground;

/// How long the step takes, in milliseconds; and how long the client waits.
const STEP_MS: u64 = 250;
const PATIENCE: Duration = Duration::from_millis(80);
/// How long the operation may take to end without its client.
const SOON: Duration = Duration::from_secs(15);

/// When the client asks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    /// While the step is at work.
    AtOnce,
    /// When it can be seen that the operation has ended.
    Afterwards,
}

/// A pod's whole life by a client that does not wait for the step, twice side by side.
pub async fn run(ground: &Ground, point: &str) -> Outcome {
    let before = ground.holds(point).unwrap_or(0);
    let (daemon, kubelet) = ground.start(&format!("{point}=sleep:{STEP_MS}")).await?;
    let client = |again| Client { ground, kubelet: kubelet.clone(), again, gave_up: 0 };
    let (mut joins, mut comes_back) = (client(Again::AtOnce), client(Again::Afterwards));
    tokio::try_join!(joins.live(), comes_back.live())?;
    for client in [joins, comes_back] {
        if client.gave_up == 0 {
            return Err(format!("the client that asks again {:?} never had to", client.again).into());
        }
    }
    if ground.holds(point)? < before + 2 {
        return Err("the point was not reached by both".into());
    }
    residue::check(&ground.place, Some(daemon.pid()))?;
    daemon.stop()?;
    residue::check(&ground.place, None)
}

struct Client<'a> {
    ground: &'a Ground,
    kubelet: Kubelet,
    again: Again,
    gave_up: usize,
}

/// A call that is given up, and made again: at once, or once `done` is seen.
macro_rules! impatient {
    ($client:ident, $call:ident($($argument:expr),*), $done:expr) => {{
        let mut kubelet = $client.kubelet.clone();
        match tokio::time::timeout(PATIENCE, kubelet.$call($($argument),*)).await {
            Ok(answer) => answer?,
            Err(_) => {
                $client.gave_up += 1;
                if $client.again == Again::Afterwards {
                    seen(stringify!($call), &$client.kubelet, $done).await?;
                }
                kubelet.$call($($argument),*).await?
            }
        }
    }};
}

/// Waits until a look says so.
async fn seen<F>(what: &str, kubelet: &Kubelet, done: impl Fn(Kubelet) -> F) -> Outcome
where
    F: Future<Output = Outcome<bool>>,
{
    wait::until_async(&format!("{what} to go on to its end"), SOON, || {
        let look = done(kubelet.clone());
        async move { Ok(look.await?.then_some(())) }
    })
    .await
}

fn is_gone<T>(answer: &Result<T, Status>) -> bool {
    answer.as_ref().is_err_and(|status| status.code() == Code::NotFound)
}

impl Client<'_> {
    async fn live(&mut self) -> Outcome {
        let client = self;
        let name = if client.again == Again::AtOnce { "joins" } else { "comes-back" };
        let config = client.ground.pod(name);
        // What finishes after its last waiter has left is listed: a sandbox.
        let id = impatient!(client, run(&config), |mut kubelet: Kubelet| async move {
            for id in kubelet.pods().await? {
                let status = kubelet.pod_status(&id).await?;
                if status.metadata.is_some_and(|metadata| metadata.name == name) {
                    return Ok(true);
                }
            }
            Ok(false)
        });
        if client.kubelet.pod_status(&id).await?.state() != PodSandboxState::SandboxReady {
            return Err(format!("{id} is not ready").into());
        }
        let first = client.launch(&id, &config, "first").await?;
        client.launch(&id, &config, "second").await?;
        impatient!(client, stop(&first, 0), |mut kubelet: Kubelet| {
            let first = first.clone();
            async move { Ok(kubelet.status(&first).await?.state() == ContainerState::ContainerExited) }
        });
        impatient!(client, remove(&first), |mut kubelet: Kubelet| {
            let first = first.clone();
            async move { Ok(is_gone(&kubelet.status(&first).await)) }
        });
        impatient!(client, stop_pod(&id), |mut kubelet: Kubelet| {
            let id = id.clone();
            async move { Ok(kubelet.pod_status(&id).await?.state() == PodSandboxState::SandboxNotready) }
        });
        impatient!(client, remove_pod(&id), |mut kubelet: Kubelet| {
            let id = id.clone();
            async move { Ok(is_gone(&kubelet.pod_status(&id).await)) }
        });
        Ok(())
    }

    async fn launch(&mut self, sandbox: &str, pod: &PodSandboxConfig, name: &str) -> Outcome<String> {
        let client = self;
        let config = pod::container(name, &client.ground.image, &["sleep", "1000"]);
        let bundles = client.ground.place.root.join("containers");
        // A container is not: a kubelet would take it for a restart. On disk it is.
        let id = impatient!(client, create(sandbox, pod, &config), |mut kubelet: Kubelet| {
            let bundles = bundles.clone();
            async move {
                let Some(id) = unlisted(&bundles, sandbox, name)? else { return Ok(false) };
                if kubelet.containers().await?.contains(&id) {
                    return Err(format!("{id} is listed, and nobody was given its id").into());
                }
                Ok(true)
            }
        });
        let of_the_pod = client.kubelet.clone().containers().await?;
        if of_the_pod.iter().filter(|listed| **listed == id).count() != 1 {
            return Err(format!("{id} is not listed once it was given: {of_the_pod:?}").into());
        }
        let mut kubelet = client.kubelet.clone();
        match tokio::time::timeout(PATIENCE, kubelet.start(&id)).await {
            Ok(answer) => answer?,
            Err(_) => {
                client.gave_up += 1;
                if client.again == Again::AtOnce
                    && let Err(status) = kubelet.start(&id).await
                    // It was over just before: a container is started once.
                    && status.code() != Code::FailedPrecondition
                {
                    return Err(status.into());
                }
                seen("start", &client.kubelet, |mut kubelet: Kubelet| {
                    let id = id.clone();
                    async move { Ok(kubelet.status(&id).await?.state() == ContainerState::ContainerRunning) }
                })
                .await?;
            }
        }
        Ok(id)
    }
}

/// The id of a container that is made, as its record says.
fn unlisted(bundles: &std::path::Path, sandbox: &str, name: &str) -> Outcome<Option<String>> {
    for entry in std::fs::read_dir(bundles)?.flatten() {
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let (identity, state) = (read("identity.json"), read("state.json"));
        let is_it = [sandbox, &format!("{name:?}")].iter().all(|word| identity.contains(word));
        if is_it && state.contains("\"Created\"") {
            return Ok(Some(entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}
