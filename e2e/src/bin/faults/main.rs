//! What Cove survives, behind `hack/faults`: every named step failing and dying, kill -9 of the daemon at seeded random
//! moments under load, kill -9 of a shim. Needs a daemon with fail points (`COVE_PROGRAMS`).
//!
//! `faults [--short] [--seed N] [FILTER]`. Looks only at names of its own instance (`COVE_E2E_INSTANCE`, `faults`).
#![forbid(unsafe_code)]
#![allow(
    clippy::large_futures,
    reason = "requests with every field of a pod are large, and nobody counts here"
)]

mod load;
mod shims;
mod step;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use cove_e2e::daemon::{self, Daemon, Place};
use cove_e2e::image;
use cove_e2e::kubelet::Kubelet;
use cove_e2e::registry::Registry;
use cove_e2e::sysctl::Saved;
use cove_e2e::{Outcome, residue};
use serde_json::json;
use tempfile::TempDir;

/// What is more than any check takes hangs.
const CHECK_LIMIT: Duration = Duration::from_secs(120);

/// Where everything happens.
#[derive(Debug)]
struct Ground {
    place: Place,
    image: String,
    seed: u64,
    short: bool,
    _registry: Registry,
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
}

impl Check {
    async fn run(&self, ground: &Ground) -> Outcome {
        match self {
            Self::Step(visit) => step::run(ground, visit).await,
            Self::Load => load::run(ground).await,
            Self::Shim { daemon_lives } => shims::run(ground, *daemon_lives).await,
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
    }
    if checks.is_empty() {
        return Err("the daemon names no steps".into());
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
        };
        Ok(Self { place, image, seed, short, _registry: registry, directory })
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
