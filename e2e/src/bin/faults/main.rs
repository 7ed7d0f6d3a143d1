//! What Cove survives, behind `hack/faults`: every named step failing and dying, kill -9 of the daemon at seeded random
//! moments under load, kill -9 of a shim. Needs a daemon with fail points (`COVE_PROGRAMS`).
//!
//! `faults [--short] [--seed N] [FILTER]`. Looks only at names of its own instance (`COVE_E2E_INSTANCE`, `faults`).
#![forbid(unsafe_code)]
#![allow(
    clippy::large_futures,
    reason = "requests with every field of a pod are large, and nobody counts here"
)]

mod deadline;
mod fuse;
mod images;
mod joining;
mod load;
mod neighbour;
mod records;
mod shims;
mod side;
mod step;
mod stranger;
mod stuck;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use cove_e2e::daemon::{self, Daemon, Place};
use cove_e2e::image;
use cove_e2e::kubelet::Kubelet;
use cove_e2e::registry::Registry;
use cove_e2e::sysctl::Saved;
use cove_e2e::{Outcome, pod, residue, wait};
use k8s_cri::v1::PodSandboxConfig;
use serde_json::json;
use tempfile::TempDir;

/// What is more than any check takes hangs.
const CHECK_LIMIT: Duration = Duration::from_secs(120);

/// How long an operation may take to come to the step where it is held.
const HELD_LIMIT: Duration = Duration::from_secs(15);

/// Where everything happens.
#[derive(Debug)]
struct Ground {
    place: Place,
    image: String,
    seed: u64,
    short: bool,
    registry: Registry,
    directory: TempDir,
}

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("faults: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<usize> {
    let (mut seed, mut short, mut filter) = (None, false, String::new());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--short" => short = true,
            "--seed" => seed = Some(words.next().ok_or("--seed needs a number")?.parse()?),
            text if !text.starts_with('-') => filter = text.to_owned(),
            other => return Err(format!("unknown: {other}; faults [--short] [--seed N] [FILTER]").into()),
        }
    }
    let seed = seed
        .map_or_else(|| std::time::UNIX_EPOCH.elapsed().map(|since| u64::from(since.subsec_nanos())), Ok)?;
    println!("seed {seed}");
    let settings = Saved::now()?;
    let ground = Ground::new(seed, short)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (mut passed, mut failed) = (0, 0);
    let began = Instant::now();
    for (name, check) in checks(&ground)?.iter().filter(|(name, _)| name.contains(&filter)) {
        let outcome = runtime.block_on(async {
            let limited = tokio::time::timeout(CHECK_LIMIT, check.run(&ground)).await;
            limited.unwrap_or_else(|_| Err(format!("took longer than {CHECK_LIMIT:?}").into()))
        });
        let outcome =
            outcome.map_err(|error| format!("{error}\n--- what the daemons said:\n{}", ground.trouble()));
        let cleaned = ground.clear(&runtime);
        match outcome.map_err(Into::into).and(cleaned) {
            Ok(()) => passed += 1,
            Err(error) => {
                failed += 1;
                println!("FAILED {name}: {error}");
            }
        }
    }
    println!("{passed} passed, {failed} failed in {:.0?}", began.elapsed());
    ground.end()?;
    settings.restore()?;
    Ok(failed)
}

/// One thing that is tried.
#[derive(Debug)]
enum Check {
    /// A step fails or kills the daemon.
    Step(step::Visit),
    /// The daemon is killed under load.
    Load,
    /// A shim is killed while the daemon lives, or while it does not.
    Shim { daemon_lives: bool },
    /// A client gives up at a step.
    Deadline(String),
    /// Somebody ends what is at a step.
    Ended(String),
    /// The same request, and another, while the first is at work or was.
    Joining,
    /// The same while the first is undone.
    Undone { is_other: bool },
    /// Records that cannot be read.
    Records,
    /// The same of images.
    Images,
    /// Records of an earlier life of the host.
    Reboot,
    /// Something hangs.
    Stuck(stuck::Part),
    /// Two instances.
    Instances,
    /// Shims of two builds.
    Builds,
    /// Shims of an unknown version.
    Strangers,
}

impl Check {
    async fn run(&self, ground: &Ground) -> Outcome {
        match self {
            Self::Step(visit) => step::run(ground, visit).await,
            Self::Load => load::run(ground).await,
            Self::Shim { daemon_lives } => shims::run(ground, *daemon_lives).await,
            Self::Deadline(point) => deadline::run(ground, point).await,
            Self::Ended(point) => joining::ended_at(ground, point).await,
            Self::Joining => joining::of_one_request(ground).await,
            Self::Undone { is_other } => joining::of_what_is_undone(ground, *is_other).await,
            Self::Records => records::damaged(ground).await,
            Self::Images => images::damaged(ground).await,
            Self::Reboot => records::reboot(ground).await,
            Self::Instances => side::instances(ground).await,
            Self::Builds => side::builds(ground).await,
            Self::Strangers => side::strangers(ground).await,
            Self::Stuck(part) => stuck::run(ground, *part).await,
        }
    }
}

/// What to try: the steps are those that the daemon itself names.
fn checks(ground: &Ground) -> Outcome<Vec<(String, Check)>> {
    let output = Command::new(ground.place.programs.join("cove")).args(["debug", "steps"]).output()?;
    let points = String::from_utf8(output.stdout)?;
    let mut checks = Vec::new();
    for point in points.lines() {
        for visit in step::visits(point) {
            checks.push((visit.name(), Check::Step(visit)));
        }
        checks.push((format!("a client that gives up at {point}"), Check::Deadline(point.to_owned())));
        if joining::CAN_BE_ENDED.iter().any(|operation| point.starts_with(operation)) {
            checks.push((format!("Stop and Remove at {point}"), Check::Ended(point.to_owned())));
        }
    }
    if checks.is_empty() {
        return Err("the daemon names no steps".into());
    }
    checks.push(("requests that join".into(), Check::Joining));
    checks.push(("the same request while the first is undone".into(), Check::Undone { is_other: false }));
    checks.push(("another request while the first is undone".into(), Check::Undone { is_other: true }));
    checks.push(("records that cannot be read".into(), Check::Records));
    checks.push(("records of images that cannot be read".into(), Check::Images));
    checks.push(("a restart of the host".into(), Check::Reboot));
    checks.push(("side by side: two instances".into(), Check::Instances));
    checks.push(("side by side: shims of another build".into(), Check::Builds));
    checks.push(("side by side: shims of an unknown protocol".into(), Check::Strangers));
    for part in stuck::PARTS {
        checks.push((format!("stuck: {part:?}"), Check::Stuck(part)));
    }
    checks.push(("kill -9 of a shim".into(), Check::Shim { daemon_lives: true }));
    checks.push(("kill -9 of a shim while the daemon is down".into(), Check::Shim { daemon_lives: false }));
    checks.push(("kill -9 of the daemon under load".into(), Check::Load));
    Ok(checks)
}

impl Ground {
    fn new(seed: u64, short: bool) -> Outcome<Self> {
        let directory = tempfile::Builder::new().prefix("cove-faults-").tempdir()?;
        let registry = Registry::start(&directory.path().join("registry"))?;
        let config = json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]});
        let image = registry.push("faults/busybox", "1", &image::build(vec![image::busybox()?], config)?)?;
        let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let place = Place {
            instance: variable("COVE_E2E_INSTANCE", "faults"),
            root: directory.path().join("root"),
            state: directory.path().join("state"),
            range: variable("COVE_E2E_RANGE", "10.216.0.0/24"),
            programs: daemon::programs(),
            hosts: None,
            images: String::new(),
            cni: None,
        };
        Ok(Self { place, image, seed, short, registry, directory })
    }

    /// A pod of this name with a log directory.
    fn pod(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            log_directory: self.directory.path().join("logs").join(name).display().to_string(),
            ..pod::sandbox(name)
        }
    }

    /// How often operations have been held at a point so far, as the daemons' log tells.
    fn holds(&self, point: &str) -> Outcome<usize> {
        let text = std::fs::read_to_string(self.place.log())?;
        let wanted = format!("point={point:?}");
        Ok(text.lines().filter(|line| line.contains("fail point holds") && line.contains(&wanted)).count())
    }

    /// Waits until that is more than `before`.
    async fn held_at(&self, point: &str, before: usize) -> Outcome {
        let what = format!("an operation to be held at {point}");
        wait::until_async(&what, HELD_LIMIT, || async { Ok((self.holds(point)? > before).then_some(())) })
            .await
    }

    /// A daemon that has the image, and its client.
    async fn start(&self, points: &str) -> Outcome<(Daemon, Kubelet)> {
        let mut daemon = self.place.start_with(&[("COVE_FAILPOINT", points)])?;
        let mut kubelet = Kubelet(daemon.connect().await?);
        kubelet.pull(&self.image).await?;
        Ok((daemon, kubelet))
    }

    /// Whatever a check left is removed by another daemon, so that the next one starts on clean ground; a check that
    /// ended well has left nothing.
    fn clear(&self, runtime: &tokio::runtime::Runtime) -> Outcome {
        if residue::look(&self.place, None)?.is_empty() {
            return Ok(());
        }
        runtime.block_on(async {
            let (daemon, mut kubelet) = self.start("").await?;
            for pod in kubelet.pods().await? {
                kubelet.stop_pod(&pod).await?;
                kubelet.remove_pod(&pod).await?;
            }
            daemon.stop()
        })?;
        residue::check(&self.place, None)
    }

    /// The last lines of the log that tell of trouble.
    fn trouble(&self) -> String {
        let text = std::fs::read_to_string(self.place.log()).unwrap_or_default();
        let lines: Vec<_> = text
            .lines()
            .filter(|line| [" WARN ", " ERROR ", "panic", "cove: "].iter().any(|word| line.contains(word)))
            .collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    fn end(self) -> Outcome {
        // The table outlives a daemon that was killed, so that live pods keep their network.
        let name = ["inet", &self.place.instance];
        if Command::new("nft").args(["list", "table"]).args(name).output()?.status.success() {
            Command::new("nft").args(["delete", "table"]).args(name).status()?;
        }
        Ok(self.directory.close()?)
    }
}
