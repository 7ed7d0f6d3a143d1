//! kill -9 of the daemon at seeded random moments, while ten pods come and go and two stay.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cove_e2e::daemon::Daemon;
use cove_e2e::kubelet::Kubelet;
use cove_e2e::random::Random;
use cove_e2e::{Outcome, pod, process, residue, wait};
use k8s_cri::v1::*;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::Ground;

/// Pods that come and go.
const PODS: usize = 10;
/// Kills in a run; the short one is the issue's.
const KILLS: (usize, usize) = (20, 100);
/// The longest that a daemon lives in this, in milliseconds: a pod's life under this load takes a few of these.
const LIFE_MS: u64 = 600;
/// How long a call is repeated while the daemon is away: a kubelet never stops, but what takes this long is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pod that stays, and what must not change about it.
#[derive(Debug)]
struct Kept {
    sandbox: String,
    container: String,
    seen: Seen,
}

#[derive(Debug, PartialEq)]
struct Seen {
    pod: PodSandboxStatus,
    container: ContainerStatus,
    pid: i32,
    started: String,
}

/// Kills it again and again.
pub async fn run(ground: &Ground) -> Outcome {
    let (mut daemon, mut kubelet) = ground.start("").await?;
    let mut kept = Vec::new();
    for n in 0..2 {
        kept.push(keep(ground, &mut kubelet, n).await?);
    }
    let (connection, watched) = watch::channel(Some(kubelet));
    let (end, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut load = JoinSet::new();
    for n in 0..PODS {
        let user = User { connection: watched.clone(), end: Arc::clone(&end), rounds: Arc::clone(&rounds) };
        load.spawn(user.work(config(ground, &format!("come-{n}")), ground.image.clone()));
    }
    let mut random = Random::new(ground.seed);
    let kills = if ground.short { KILLS.0 } else { KILLS.1 };
    for n in 0..kills {
        tokio::time::sleep(Duration::from_millis(random.below(LIFE_MS))).await;
        daemon = again(ground, daemon, &connection, &mut kept)
            .await
            .map_err(|error| format!("kill {n}: {error}"))?;
        while let Some(done) = load.try_join_next() {
            done??;
        }
    }
    end.store(true, Ordering::SeqCst);
    while let Some(done) = load.join_next().await {
        done??;
    }
    println!("{kills} kills, {} whole lives of pods under them", rounds.load(Ordering::SeqCst));
    let mut kubelet = connection.borrow().clone().ok_or("no daemon")?;
    for pod in &kept {
        check_log(&mut kubelet, pod).await?;
        kubelet.stop_pod(&pod.sandbox).await?;
        kubelet.remove_pod(&pod.sandbox).await?;
    }
    let cri = kubelet.clone();
    wait::until_async("the last daemon to remove what was never given to anybody", PATIENCE / 6, || {
        let mut kubelet = cri.clone();
        async move { Ok(kubelet.pods().await?.is_empty().then_some(())) }
    })
    .await?;
    residue::check(&ground.place, Some(daemon.pid()))?;
    daemon.stop()?;
    residue::check(&ground.place, None)
}

fn config(ground: &Ground, name: &str) -> PodSandboxConfig {
    let logs = ground.directory.path().join("logs").join(name);
    PodSandboxConfig { log_directory: logs.display().to_string(), ..pod::sandbox(name) }
}

async fn keep(ground: &Ground, kubelet: &mut Kubelet, n: usize) -> Outcome<Kept> {
    let config = config(ground, &format!("stay-{n}"));
    let sandbox = kubelet.run(&config).await?;
    let script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done";
    let container = pod::container("count", &ground.image, &["sh", "-c", script]);
    let container = kubelet.create(&sandbox, &config, &container).await?;
    kubelet.start(&container).await?;
    let seen = see(kubelet, &sandbox, &container).await?;
    Ok(Kept { sandbox, container, seen })
}

async fn see(kubelet: &mut Kubelet, sandbox: &str, container: &str) -> Outcome<Seen> {
    let pid = kubelet.pid(container).await?;
    Ok(Seen {
        pod: kubelet.pod_status(sandbox).await?,
        container: kubelet.status(container).await?,
        pid,
        started: process::start_time(pid)?,
    })
}

/// One kill, another daemon, and a look at what must be as it was.
async fn again(
    ground: &Ground,
    daemon: Daemon,
    connection: &watch::Sender<Option<Kubelet>>,
    kept: &mut [Kept],
) -> Outcome<Daemon> {
    connection.send_replace(None);
    daemon.kill()?;
    let mut daemon = ground.place.start()?;
    let mut kubelet = Kubelet(daemon.connect().await?);
    for pod in kept {
        let now = see(&mut kubelet, &pod.sandbox, &pod.container).await?;
        if now != pod.seen {
            return Err(format!("a pod that stays has changed from {:?} to {now:?}", pod.seen).into());
        }
    }
    connection.send_replace(Some(kubelet));
    Ok(daemon)
}

/// The counting in the log has no gap and no line twice.
async fn check_log(kubelet: &mut Kubelet, pod: &Kept) -> Outcome {
    kubelet.stop(&pod.container, 0).await?;
    let log = std::fs::read_to_string(kubelet.status(&pod.container).await?.log_path)?;
    for (n, line) in log.lines().enumerate() {
        let said = line.splitn(4, ' ').nth(3).unwrap_or_default();
        if said != (n + 1).to_string() {
            return Err(format!("line {} of the log is {line:?}: a gap", n + 1).into());
        }
    }
    Ok(())
}

/// Somebody who runs pods, and never gives up on a daemon that dies.
struct User {
    connection: watch::Receiver<Option<Kubelet>>,
    end: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
}

/// The same call until a daemon answers it. An answer that is an error is an answer, but for those that say so.
macro_rules! patient {
    ($user:ident, $call:ident($($argument:expr),*)) => {
        tokio::time::timeout(PATIENCE, async {
            loop {
                let mut kubelet = $user.kubelet().await?;
                match kubelet.$call($($argument),*).await {
                    Err(status) if is_away(&status) => tokio::time::sleep(Duration::from_millis(20)).await,
                    answer => return answer.map_err(|status| format!(concat!(stringify!($call), ": {:?}"), status)),
                }
            }
        })
        .await
        .map_err(|_| concat!(stringify!($call), " was never answered"))??
    };
}

/// The daemon died, or is not ready yet, or was asked to do what it was about to leave to the next.
fn is_away(status: &Status) -> bool {
    let broken = status.code() == Code::Unknown && status.message().contains("transport");
    let cut = status.code() == Code::Cancelled || status.message().contains("h2 protocol error");
    status.code() == Code::Unavailable || broken || cut
}

impl User {
    async fn kubelet(&self) -> Result<Kubelet, String> {
        let mut connection = self.connection.clone();
        let found = connection.wait_for(Option::is_some).await.map_err(|_| "the test is over")?;
        found.clone().ok_or_else(|| "no daemon".to_owned())
    }

    async fn work(self, config: PodSandboxConfig, image: String) -> Outcome {
        let mut config = config;
        let user = &self;
        while !user.end.load(Ordering::SeqCst) {
            let id = patient!(user, run(&config));
            let container = user.launch(&id, &config, &image).await?;
            for _ in 0..3 {
                let (code, stdout) = patient!(user, exec(&container, &["echo", "here"]));
                if (code, stdout.as_slice()) != (0, b"here\n") {
                    return Err(format!("exec ended with {code} and {stdout:?}").into());
                }
            }
            patient!(user, stop(&container, 0));
            patient!(user, remove(&container));
            patient!(user, stop_pod(&id));
            patient!(user, remove_pod(&id));
            user.rounds.fetch_add(1, Ordering::SeqCst);
            if let Some(metadata) = &mut config.metadata {
                metadata.attempt += 1;
            }
        }
        Ok(())
    }

    async fn launch(&self, id: &str, pod: &PodSandboxConfig, image: &str) -> Outcome<String> {
        let user = self;
        let config = pod::container("main", image, &["sleep", "1000"]);
        for _ in 0..100 {
            let container = patient!(user, create(id, pod, &config));
            let mut kubelet = user.kubelet().await?;
            match kubelet.start(&container).await {
                Ok(()) => return Ok(container),
                // Whether it was cut off before or after it started: its status will say.
                Err(_) => {
                    let status = patient!(user, status(&container));
                    match status.state() {
                        ContainerState::ContainerRunning => return Ok(container),
                        ContainerState::ContainerExited => patient!(user, remove(&container)),
                        _ => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
            }
        }
        Err(format!("a container of {id} never started").into())
    }
}
