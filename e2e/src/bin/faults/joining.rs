//! Who asks twice, and who takes back what was asked for, over the CRI socket: the same request joins, waits, or is told
//! the same id; another is told the owner; Stop and Remove end what is under way.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use cove_e2e::daemon::Daemon;
use cove_e2e::kubelet::Kubelet;
use cove_e2e::{Outcome, pod, residue};
use k8s_cri::v1::{ContainerConfig, ContainerState, PodSandboxConfig, PodSandboxState};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::Ground;

/// Requests at once.
const CROWD: usize = 64;
/// How long a held step may take until it is left, and everything it needs after that.
const SOON: Duration = Duration::from_secs(10);
/// How long a failed operation is held on its way back, in milliseconds.
const UNDOING_MS: u64 = 1000;

/// Removes what is left, and looks whether that was all.
async fn end(ground: &Ground, daemon: Daemon, kubelet: &mut Kubelet) -> Outcome {
    for id in kubelet.pods().await? {
        kubelet.stop_pod(&id).await?;
        kubelet.remove_pod(&id).await?;
    }
    residue::check(&ground.place, Some(daemon.pid()))?;
    daemon.stop()?;
    residue::check(&ground.place, None)
}

fn sleeper(ground: &Ground, name: &str) -> ContainerConfig {
    pod::container(name, &ground.image, &["sleep", "1000"])
}

/// The same wish, but for a label.
fn other_pod(config: &PodSandboxConfig) -> PodSandboxConfig {
    let mut other = config.clone();
    other.labels.insert("another".into(), "wish".into());
    other
}

fn other_container(config: &ContainerConfig) -> ContainerConfig {
    let mut other = config.clone();
    other.labels.insert("another".into(), "wish".into());
    other
}

/// The answers of many calls at once.
async fn crowd<T, F>(call: impl Fn() -> F) -> Outcome<Vec<Result<T, Status>>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Status>> + Send + 'static,
{
    let mut calls = JoinSet::new();
    for _ in 0..CROWD {
        calls.spawn(call());
    }
    let mut answers = Vec::new();
    while let Some(answer) = calls.join_next().await {
        answers.push(answer?);
    }
    Ok(answers)
}

/// All were given one id.
fn one(answers: Vec<Result<String, Status>>) -> Outcome<String> {
    let ids: BTreeSet<String> = answers.into_iter().collect::<Result<_, _>>()?;
    match ids.iter().collect::<Vec<_>>().as_slice() {
        [id] => Ok((*id).clone()),
        ids => Err(format!("one request was given {ids:?}").into()),
    }
}

/// A refusal that names the owner; returns the owner's id.
fn owner(status: &Status) -> Outcome<String> {
    let word = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    // A container's sandbox is named before its owner is.
    let id = status.message().split(|c: char| !c.is_ascii_alphanumeric()).rfind(|text| word(text));
    match (status.code(), id) {
        (Code::AlreadyExists, Some(id)) => Ok(id.to_owned()),
        _ => Err(format!("a taken name is refused by {status:?}").into()),
    }
}

/// Two wishes for one name, the work on which is held: one of them is refused with the other's id. Returns it, and the
/// call that goes on.
async fn held<F>(first: F, second: F) -> Outcome<(String, tokio::task::JoinHandle<Result<String, Status>>)>
where
    F: Future<Output = Result<String, Status>> + Send + 'static,
{
    let (mut first, mut second) = (tokio::spawn(first), tokio::spawn(second));
    let (answer, goes_on) = tokio::select! {
        answer = &mut first => (answer?, second),
        answer = &mut second => (answer?, first),
    };
    match answer {
        Err(status) => Ok((owner(&status)?, goes_on)),
        Ok(id) => Err(format!("{id} was made though its making is held").into()),
    }
}

/// While the work goes on, 64 of the same are one, and another wish is told whose the name is. The same once it is done.
pub async fn of_one_request(ground: &Ground) -> Outcome {
    let points =
        "sandbox.run.network=sleep:700,container.create.record=sleep:700,container.start.log=sleep:300";
    let (daemon, mut kubelet) = ground.start(points).await?;
    let (config, caller) = (ground.pod("crowd"), kubelet.clone());
    let run = |config: &PodSandboxConfig| {
        let (mut kubelet, config) = (caller.clone(), config.clone());
        async move { kubelet.run(&config).await }
    };
    let (id, goes_on) = held(run(&config), run(&other_pod(&config))).await?;
    goes_on.await??;
    kubelet.stop_pod(&id).await?;
    kubelet.remove_pod(&id).await?;
    let sandbox = one(crowd(|| run(&config)).await?)?;
    if (sandbox == id, kubelet.pods().await?) != (false, vec![sandbox.clone()]) {
        return Err(format!("{id}, then {sandbox}, and listed are {:?}", kubelet.pods().await?).into());
    }
    if kubelet.run(&config).await? != sandbox {
        return Err("a finished Run is not told again".into());
    }
    let refused = kubelet.run(&other_pod(&config)).await.err().ok_or("two wishes for one name")?;
    if owner(&refused)? != sandbox {
        return Err(format!("not the owner's id: {refused}").into());
    }

    let container = sleeper(ground, "crowd");
    let create = |container: &ContainerConfig| {
        let (mut kubelet, sandbox, config) = (caller.clone(), sandbox.clone(), config.clone());
        let container = container.clone();
        async move { kubelet.create(&sandbox, &config, &container).await }
    };
    let (id, goes_on) = held(create(&container), create(&other_container(&container))).await?;
    goes_on.await??;
    kubelet.remove(&id).await?;
    let made = one(crowd(|| create(&container)).await?)?;
    if kubelet.containers().await? != [made.clone()] || create(&container).await? != made {
        return Err(format!("{made} is not the one container {:?}", kubelet.containers().await?).into());
    }
    let refused = create(&other_container(&container)).await.err().ok_or("two wishes for one name")?;
    if owner(&refused)? != made {
        return Err(format!("not the owner's id: {refused}").into());
    }
    for answer in crowd(|| {
        let (mut kubelet, made) = (kubelet.clone(), made.clone());
        async move { kubelet.start(&made).await }
    })
    .await?
    {
        answer?;
    }
    // An EXITED container owns no name, nor does a NOTREADY sandbox.
    for answer in crowd(|| {
        let (mut kubelet, made) = (kubelet.clone(), made.clone());
        async move { kubelet.stop(&made, 0).await }
    })
    .await?
    {
        answer?;
    }
    let again = create(&other_container(&container)).await?;
    if again == made || kubelet.status(&made).await?.state() != ContainerState::ContainerExited {
        return Err(format!("{made} has ended, and {again} was made").into());
    }
    kubelet.stop_pod(&sandbox).await?;
    let anew = kubelet.run(&other_pod(&config)).await?;
    if anew == sandbox || kubelet.pod_status(&sandbox).await?.state() != PodSandboxState::SandboxNotready {
        return Err(format!("{sandbox} is not ready, and {anew} was made").into());
    }
    for answer in crowd(|| {
        let (mut kubelet, sandbox) = (kubelet.clone(), sandbox.clone());
        async move { kubelet.remove_pod(&sandbox).await }
    })
    .await?
    {
        answer?;
    }
    end(ground, daemon, &mut kubelet).await
}

/// What comes while a failure is being undone waits for its end, and then begins anew: the same wish, or another.
pub async fn of_what_is_undone(ground: &Ground, is_other: bool) -> Outcome {
    let points = format!(
        "sandbox.run.ready=error:1,sandbox.teardown.network=sleep:{UNDOING_MS},\
         container.create.commit=error:1,container.erase.cgroup=sleep:{UNDOING_MS}"
    );
    let (daemon, mut kubelet) = ground.start(&points).await?;
    let config = ground.pod("undone");
    let (teardowns, erasures) =
        (ground.holds("sandbox.teardown.network")?, ground.holds("container.erase.cgroup")?);
    let failing = tokio::spawn({
        let (mut kubelet, config) = (kubelet.clone(), config.clone());
        async move { kubelet.run(&config).await }
    });
    ground.held_at("sandbox.teardown.network", teardowns).await?;
    let next = if is_other { other_pod(&config) } else { config.clone() };
    let id = kubelet.run(&next).await?;
    let failed = failing.await?.err().ok_or("a Run that was to fail did not")?;
    if !failed.message().contains("fail point") || kubelet.pods().await? != [id.clone()] {
        return Err(format!("{failed}; {id} of {:?}", kubelet.pods().await?).into());
    }

    let container = sleeper(ground, "undone");
    let failing = tokio::spawn({
        let (mut kubelet, id) = (kubelet.clone(), id.clone());
        let (config, container) = (config.clone(), container.clone());
        async move { kubelet.create(&id, &config, &container).await }
    });
    ground.held_at("container.erase.cgroup", erasures).await?;
    let next = if is_other { other_container(&container) } else { container };
    let made = kubelet.create(&id, &config, &next).await?;
    let failed = failing.await?.err().ok_or("a Create that was to fail did not")?;
    if !failed.message().contains("fail point") || kubelet.containers().await? != [made.clone()] {
        return Err(format!("{failed}; {made} of {:?}", kubelet.containers().await?).into());
    }
    end(ground, daemon, &mut kubelet).await
}

/// The operations that Stop and Remove end.
pub const CAN_BE_ENDED: [&str; 3] = ["sandbox.run.", "container.create.", "container.start."];

/// What is at work at a step is ended by Stop and Remove.
pub async fn ended_at(ground: &Ground, point: &str) -> Outcome {
    match CAN_BE_ENDED.iter().position(|operation| point.starts_with(operation)) {
        Some(0) => ended_in_run(ground, point).await,
        Some(1) => ended_in_create(ground, point).await,
        _ => ended_in_start(ground, point).await,
    }
}

/// Stop and Remove of a pod that is being made end the making at whatever step it is; the same request then begins anew.
async fn ended_in_run(ground: &Ground, point: &str) -> Outcome {
    let (daemon, mut kubelet) = ground.start(&format!("{point}=pause:2")).await?;
    let (config, caller) = (ground.pod("ended"), kubelet.clone());
    for removes in [false, true] {
        let run = |config: &PodSandboxConfig| {
            let (mut kubelet, config) = (caller.clone(), config.clone());
            async move { kubelet.run(&config).await }
        };
        let before = ground.holds(point)?;
        let (id, held) = held(run(&config), run(&other_pod(&config))).await?;
        ground.held_at(point, before).await?;
        if !kubelet.pods().await?.is_empty() {
            return Err("a pod that is being made is listed".into());
        }
        if removes {
            in_time("RemovePodSandbox", kubelet.remove_pod(&id)).await?;
        } else {
            in_time("StopPodSandbox", kubelet.stop_pod(&id)).await?;
        }
        in_time("RunPodSandbox", held).await?.err().ok_or("a Run that was ended succeeded")?;
    }
    let id = kubelet.run(&config).await?;
    if kubelet.pod_status(&id).await?.state() != PodSandboxState::SandboxReady {
        return Err(format!("{id} is not ready").into());
    }
    end(ground, daemon, &mut kubelet).await
}

/// Stop and Remove of a pod in which a container is being made.
async fn ended_in_create(ground: &Ground, point: &str) -> Outcome {
    let (daemon, mut kubelet) = ground.start(&format!("{point}=pause:2")).await?;
    for removes in [false, true] {
        let config = ground.pod(if removes { "removed" } else { "stopped" });
        let (id, container) = (kubelet.run(&config).await?, sleeper(ground, "held"));
        let caller = kubelet.clone();
        let create = |container: &ContainerConfig| {
            let (mut kubelet, id) = (caller.clone(), id.clone());
            let (config, container) = (config.clone(), container.clone());
            async move { kubelet.create(&id, &config, &container).await }
        };
        let before = ground.holds(point)?;
        let (_, held) = held(create(&container), create(&other_container(&container))).await?;
        ground.held_at(point, before).await?;
        if removes {
            in_time("RemovePodSandbox", kubelet.remove_pod(&id)).await?;
        } else {
            in_time("StopPodSandbox", kubelet.stop_pod(&id)).await?;
        }
        in_time("CreateContainer", held).await?.err().ok_or("a Create that was ended succeeded")?;
        if !kubelet.containers().await?.is_empty() {
            return Err(format!("listed: {:?}", kubelet.containers().await?).into());
        }
    }
    end(ground, daemon, &mut kubelet).await
}

/// Whatever ends a container that is being started: it does so at once, and the start says that it failed.
async fn ended_in_start(ground: &Ground, point: &str) -> Outcome {
    let (daemon, mut kubelet) = ground.start(&format!("{point}=pause:4")).await?;
    for verb in ["stop", "remove", "stop-pod", "remove-pod"] {
        let config = ground.pod(verb);
        let id = kubelet.run(&config).await?;
        let container = kubelet.create(&id, &config, &sleeper(ground, "held")).await?;
        let before = ground.holds(point)?;
        let held = tokio::spawn({
            let (mut kubelet, container) = (kubelet.clone(), container.clone());
            async move { kubelet.start(&container).await }
        });
        ground.held_at(point, before).await?;
        match verb {
            // Much longer than it may take: what does not run yet is not asked to end.
            "stop" => in_time(verb, kubelet.stop(&container, 60)).await?,
            "remove" => in_time(verb, kubelet.remove(&container)).await?,
            "stop-pod" => in_time(verb, kubelet.stop_pod(&id)).await?,
            _ => in_time(verb, kubelet.remove_pod(&id)).await?,
        }
        in_time("StartContainer", held).await?.err().ok_or("a Start that was ended succeeded")?;
        let status = kubelet.status(&container).await;
        let told = match &status {
            Ok(status) => status.state() == ContainerState::ContainerExited && status.exit_code != 0,
            Err(status) => status.code() == Code::NotFound && verb.starts_with("remove"),
        };
        if !told {
            return Err(format!("after {verb} its status is {status:?}").into());
        }
    }
    end(ground, daemon, &mut kubelet).await
}

async fn in_time<T, E>(what: &str, call: impl Future<Output = Result<T, E>>) -> Outcome<T>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match tokio::time::timeout(SOON, call).await {
        Ok(answer) => Ok(answer.map_err(Into::into)?),
        Err(_) => Err(format!("{what} was not answered within {SOON:?}").into()),
    }
}
