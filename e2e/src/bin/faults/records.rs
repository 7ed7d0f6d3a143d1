//! Records that cannot be read: the daemon starts, everything else is as it was, and the object is told truthfully or is set
//! aside with all that belongs to it. And a host that was restarted: records of which nothing is left in the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cove_e2e::kubelet::Kubelet;
use cove_e2e::random::Random;
use cove_e2e::{Outcome, pod, process, residue, wait};
use k8s_cri::v1::{ContainerState, PodSandboxConfig, PodSandboxState, PodSandboxStatus};
use tonic::Code;

use crate::Ground;

/// How long after its start the daemon may take to know how it really is.
const SETTLED: Duration = Duration::from_secs(10);

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    Empty,
    Cut,
    Random,
    Future,
    /// Root may read and write everything but this.
    Directory,
}

pub const DAMAGES: [Damage; 5] =
    [Damage::Empty, Damage::Cut, Damage::Random, Damage::Future, Damage::Directory];

impl Damage {
    /// Does it.
    pub fn apply(self, path: &Path, random: &mut Random) -> Outcome {
        let mut text = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        match self {
            Self::Empty => text.clear(),
            Self::Cut => text.truncate(text.len() / 2),
            Self::Random => text.iter_mut().for_each(|byte| *byte = random.below(256).to_le_bytes()[0]),
            Self::Future => {
                let version = text.iter().position(u8::is_ascii_digit).ok_or("no version to change")?;
                text.insert(version, b'9');
            }
            Self::Directory => {
                fs::remove_file(path)?;
                return Ok(fs::create_dir(path)?);
            }
        }
        Ok(fs::write(path, text)?)
    }
}

/// Files of a pod with two containers: one runs, one has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum File {
    SandboxIdentity,
    SandboxState,
    Attachment,
    RunningIdentity,
    RunningState,
    RunningSpec,
    EndedState,
}

const FILES: [File; 7] = [
    File::SandboxIdentity,
    File::SandboxState,
    File::Attachment,
    File::RunningIdentity,
    File::RunningState,
    File::RunningSpec,
    File::EndedState,
];

/// A pod as it was before.
#[derive(Debug)]
struct Pod {
    config: PodSandboxConfig,
    id: String,
    status: PodSandboxStatus,
    running: String,
    ended: String,
    pid: i32,
    started: String,
}

impl Pod {
    async fn run(ground: &Ground, kubelet: &mut Kubelet, name: &str) -> Outcome<Self> {
        let config = ground.pod(name);
        let id = kubelet.run(&config).await?;
        let mut containers = Vec::new();
        for (name, script) in [("running", "exec sleep 1000"), ("ended", "exit 7")] {
            let container = pod::container(name, &ground.image, &["sh", "-c", script]);
            let container = kubelet.create(&id, &config, &container).await?;
            kubelet.start(&container).await?;
            containers.push(container);
        }
        let (ended, running) = (containers.pop().unwrap_or_default(), containers.pop().unwrap_or_default());
        reaches(kubelet, &ended, ContainerState::ContainerExited).await?;
        let pid = kubelet.pid(&running).await?;
        let (status, started) = (kubelet.pod_status(&id).await?, process::start_time(pid)?);
        Ok(Self { config, id, status, running, ended, pid, started })
    }

    fn path(&self, root: &Path, file: File) -> PathBuf {
        let (room, id, name) = match file {
            File::SandboxIdentity => ("sandboxes", &self.id, "identity.json"),
            File::SandboxState => ("sandboxes", &self.id, "state.json"),
            File::Attachment => ("sandboxes", &self.id, "attachment.json"),
            File::RunningIdentity => ("containers", &self.running, "identity.json"),
            File::RunningState => ("containers", &self.running, "state.json"),
            File::RunningSpec => ("containers", &self.running, "config.json"),
            File::EndedState => ("containers", &self.ended, "state.json"),
        };
        root.join(room).join(id).join(name)
    }

    /// The sandbox is as it was, and the same request is told so.
    async fn sandbox_is_same(&self, kubelet: &mut Kubelet) -> Outcome {
        let now = kubelet.pod_status(&self.id).await?;
        if now != self.status {
            return Err(format!("the sandbox has changed from {:?} to {now:?}", self.status).into());
        }
        if kubelet.run(&self.config).await? != self.id {
            return Err("the same request made another sandbox".into());
        }
        Ok(())
    }

    /// The container runs as it did. Its program answers, unless its spec was damaged.
    async fn container_is_same(&self, kubelet: &mut Kubelet, spec_is_whole: bool) -> Outcome {
        reaches(kubelet, &self.running, ContainerState::ContainerRunning).await?;
        let now = (kubelet.pid(&self.running).await?, process::start_time(self.pid)?);
        if now != (self.pid, self.started.clone()) {
            return Err(format!("the container's process was {} and is {now:?}", self.pid).into());
        }
        match kubelet.exec(&self.running, &["echo", "here"]).await {
            Ok((0, said)) if said == b"here\n" => Ok(()),
            Err(_) if !spec_is_whole => Ok(()),
            answer => Err(format!("exec: {answer:?}").into()),
        }
    }

    async fn is_set_aside(&self, root: &Path, kind: &str, id: &str) -> Outcome {
        if !root.join("quarantine").join(format!("{kind}-{id}")).is_dir() {
            return Err(format!("{kind} {id} is not in quarantine").into());
        }
        wait::until("its process to end", SETTLED, || Ok((!process::lives(self.pid)).then_some(())))
    }

    /// What must hold after one file of it was damaged.
    async fn check(&self, ground: &Ground, kubelet: &mut Kubelet, file: File) -> Outcome {
        let root = &ground.place.root;
        match file {
            File::SandboxIdentity => {
                self.is_set_aside(root, "sandboxes", &self.id).await?;
                let listed = kubelet.containers().await?;
                let mine = [&self.running, &self.ended];
                if kubelet.pods().await?.contains(&self.id) || mine.iter().any(|id| listed.contains(id)) {
                    return Err("what was set aside is listed".into());
                }
                let again = kubelet.run(&self.config).await?;
                if again == self.id {
                    return Err("an id that was set aside was given".into());
                }
                Ok(())
            }
            File::RunningIdentity => {
                self.sandbox_is_same(kubelet).await?;
                self.is_set_aside(root, "containers", &self.running).await?;
                let container = pod::container("running", &ground.image, &["sleep", "1000"]);
                let again = kubelet.create(&self.id, &self.config, &container).await?;
                kubelet.start(&again).await?;
                Ok(())
            }
            File::SandboxState | File::Attachment | File::RunningState => {
                self.sandbox_is_same(kubelet).await?;
                self.container_is_same(kubelet, true).await
            }
            File::RunningSpec => {
                self.sandbox_is_same(kubelet).await?;
                self.container_is_same(kubelet, false).await
            }
            File::EndedState => {
                self.sandbox_is_same(kubelet).await?;
                self.container_is_same(kubelet, true).await?;
                let status = reaches(kubelet, &self.ended, ContainerState::ContainerExited).await?;
                // Its shim has forgotten what was recorded once: then nobody knows.
                match (status.exit_code, status.reason.as_str()) {
                    (7, "Error") | (255, "Unknown") => Ok(()),
                    other => {
                        Err(format!("a container that ended with 7 is said to have ended with {other:?}")
                            .into())
                    }
                }
            }
        }
    }
}

async fn reaches(
    kubelet: &Kubelet,
    id: &str,
    state: ContainerState,
) -> Outcome<k8s_cri::v1::ContainerStatus> {
    wait::until_async(&format!("{id} to be {state:?}"), SETTLED, || {
        let mut kubelet = kubelet.clone();
        async move {
            let status = kubelet.status(id).await?;
            Ok((status.state() == state).then_some(status))
        }
    })
    .await
}

/// Every file of a pod, damaged in every way, all at once; and the daemon's own count of its lives.
pub async fn damaged(ground: &Ground) -> Outcome {
    let (daemon, mut kubelet) = ground.start("").await?;
    let mut random = Random::new(ground.seed);
    let whole = Pod::run(ground, &mut kubelet, "whole").await?;
    let mut pods = Vec::new();
    for file in FILES {
        for damage in DAMAGES {
            let name = format!("{file:?}-{damage:?}").to_lowercase();
            pods.push((file, damage, Pod::run(ground, &mut kubelet, &name).await?));
        }
    }
    daemon.kill()?;
    for (file, damage, pod) in &pods {
        damage.apply(&pod.path(&ground.place.root, *file), &mut random)?;
    }
    let (mut daemon, mut kubelet) = ground.start("").await?;
    whole.sandbox_is_same(&mut kubelet).await?;
    whole.container_is_same(&mut kubelet, true).await?;
    let mut wrong = Vec::new();
    for (file, damage, pod) in &pods {
        if let Err(error) = pod.check(ground, &mut kubelet, *file).await {
            wrong.push(format!("{file:?} {damage:?}: {error}"));
        }
    }
    if !wrong.is_empty() {
        return Err(wrong.join("\n").into());
    }
    for damage in DAMAGES {
        daemon.kill()?;
        damage.apply(&ground.place.state.join("generation"), &mut random)?;
        (daemon, kubelet) = ground.start("").await?;
        whole.sandbox_is_same(&mut kubelet).await?;
        whole.container_is_same(&mut kubelet, true).await?;
    }
    for id in kubelet.pods().await? {
        kubelet.stop_pod(&id).await?;
        kubelet.remove_pod(&id).await?;
    }
    // Evidence for people: theirs to look at, and to remove.
    fs::remove_dir_all(ground.place.root.join("quarantine"))?;
    residue::check(&ground.place, Some(daemon.pid()))?;
    daemon.stop()?;
    residue::check(&ground.place, None)
}

/// Pods in a range that has not room for as many again; then the host is restarted.
pub async fn reboot(ground: &Ground) -> Outcome {
    const PODS: usize = 8;
    let range = ground.place.range.rsplit_once('/').ok_or("a range without a length")?.0;
    let place = cove_e2e::daemon::Place { range: format!("{range}/28"), ..ground.place.clone() };
    let mut daemon = place.start()?;
    let mut kubelet = Kubelet(daemon.connect().await?);
    kubelet.pull(&ground.image).await?;
    let mut pods = Vec::new();
    for n in 0..PODS {
        pods.push(Pod::run(ground, &mut kubelet, &format!("before-{n}")).await?);
    }
    daemon.kill()?;
    forget_the_host(&place)?;
    let mut daemon = place.start()?;
    let mut kubelet = Kubelet(daemon.connect().await?);
    let mut anew = Vec::new();
    for pod in &pods {
        let status = kubelet.pod_status(&pod.id).await?;
        let container = kubelet.status(&pod.running).await?;
        let ended = kubelet.status(&pod.ended).await?;
        let seen = (status.state(), container.state(), container.exit_code, container.reason.as_str());
        let expected = (PodSandboxState::SandboxNotready, ContainerState::ContainerExited, 255, "Unknown");
        if seen != expected || (ended.exit_code, ended.reason.as_str()) != (7, "Error") {
            return Err(format!("after the restart of the host: {status:?} {container:?} {ended:?}").into());
        }
    }
    // The same attempt: what the old ones had is free, whether or not they are removed.
    for pod in &pods {
        let again = Pod::run(ground, &mut kubelet, &pod.config.hostname).await?;
        if again.id == pod.id || again.status.state() != PodSandboxState::SandboxReady {
            return Err(format!("the same attempt is given {:?}", again.status).into());
        }
        anew.push(again);
    }
    for pod in pods.iter().chain(&anew) {
        kubelet.stop_pod(&pod.id).await?;
        kubelet.remove_pod(&pod.id).await?;
        let left = kubelet.pod_status(&pod.id).await;
        if left.as_ref().err().map(tonic::Status::code) != Some(Code::NotFound) {
            return Err(format!("{left:?}").into());
        }
    }
    residue::check(&place, Some(daemon.pid()))?;
    // Every address of the range can be had again: 16 but network, gateway and broadcast.
    for n in 0..13 {
        kubelet.run(&pod::sandbox(&format!("after-{n}"))).await?;
    }
    for id in kubelet.pods().await? {
        kubelet.remove_pod(&id).await?;
    }
    residue::check(&place, Some(daemon.pid()))?;
    daemon.stop()?;
    residue::check(&place, None)
}

/// Does to an instance what the end of its host does: no process, mount, link, rule, cgroup, and nothing in /run.
fn forget_the_host(place: &cove_e2e::daemon::Place) -> Outcome {
    for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
        for group in groups(&hierarchy?.path().join(&place.instance)) {
            for pid in fs::read_to_string(group.join("cgroup.procs"))?.lines() {
                // It may have ended with another just before.
                let _ = process::signal(pid.parse()?, rustix::process::Signal::KILL);
            }
        }
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
        for group in groups(&hierarchy?.path().join(&place.instance)) {
            wait::until("the end of all processes", SETTLED, || Ok(fs::remove_dir(&group).ok()))?;
        }
    }
    for entry in fs::read_dir("/run/netns")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&format!("{}-", place.instance)) {
            rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH)?;
            fs::remove_file(&path)?;
        }
    }
    let table = ["delete", "table", "inet", &place.instance];
    let output = std::process::Command::new("nft").args(table).output()?;
    if !output.status.success() {
        return Err(format!("nft: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(fs::remove_dir_all(&place.state)?)
}

/// A cgroup and all below it, the deepest first.
fn groups(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(groups(&entry.path()));
        }
    }
    if top.is_dir() {
        found.push(top.to_owned());
    }
    found
}
