//! A real kubelet with static pods drives Cove, behind `hack/kubelet`.
//!
//! `kubelet [--runtime cove|containerd] [--keep] [--measure | [--kubectl] FILTER]`. All pods are started at once, each by its manifest, and every
//! case looks at its own. Then the kubelet, its runtime and both end and start again; then comes a second life of the
//! kubelet for what must fail. At the end everything is taken down, and nothing may be left. `--keep` leaves the logs.
//! `--measure` takes figures instead; with `--kubectl` the kubelet has an API server, and the real kubectl does what people
//! do with it.
#![forbid(unsafe_code)]

#[macro_use]
extern crate cove_e2e;

/// Lists functions as cases under their own names.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[(&str, crate::Case)] = &[$((stringify!($name), $name)),*];
    };
}

mod cluster;
mod figures;
mod flow;
mod ground;
mod image;
mod later;
mod left;
mod limit;
mod log;
mod measure;
mod network;
mod node;
mod probe;
mod restart;
mod runtime;
mod security;
mod volume;
mod work;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cove_e2e::kubelet::Kubelet as Cri;
use cove_e2e::registry::Registry;
use cove_e2e::{Outcome, client};
use tokio::runtime::Handle;

use crate::cluster::Cluster;
use crate::ground::{Ground, Images, Trial};
use crate::left::Left;
use crate::node::{Kubelet, Node};
use crate::runtime::Runtime;

/// Makes what a case wants to be tried.
pub(crate) type Case = fn(&Ground) -> Outcome<Trial>;

/// A pod that is there all the time.
const ALWAYS_THERE: &str = "web";

#[derive(Debug, Default)]
struct Options {
    runtime: String,
    keep: bool,
    measure: bool,
    kubectl: bool,
    filter: String,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut options = Self { runtime: "cove".into(), ..Self::default() };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--runtime" => options.runtime = words.next().ok_or("--runtime needs a name")?,
                "--keep" => options.keep = true,
                "--measure" => options.measure = true,
                "--kubectl" => options.kubectl = true,
                text if !text.starts_with('-') => options.filter = text.to_owned(),
                other => {
                    return Err(format!(
                        "unknown: {other}; kubelet [--runtime cove|containerd] [--keep] [--measure | [--kubectl] FILTER]"
                    )
                    .into());
                }
            }
        }
        Ok(options)
    }
}

/// How many cases ended how.
#[derive(Debug, Default)]
struct Count {
    passed: usize,
    failed: usize,
}

impl Count {
    fn tell(&mut self, name: &str, took: Duration, outcome: Outcome) {
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("ok {name} ({:.1} s)", took.as_secs_f64());
            }
            Err(error) => {
                self.failed += 1;
                println!("FAILED {name}: {error}");
            }
        }
    }
}

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kubelet: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Outcome<usize> {
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    left::take_away(threads.handle())?;
    let mut directory = tempfile::Builder::new().prefix("cove-kubelet-").tempdir()?;
    directory.disable_cleanup(options.keep);
    let left = Left::before(directory.path())?;
    let (mut count, began) = (Count::default(), Instant::now());
    let outcome = all(options, directory.path(), threads.handle(), &left, &mut count);
    // Also when what came before failed; that is the first to tell then.
    let restored = left.restore();
    outcome.and(restored)?;
    if options.keep {
        println!("logs: {}", directory.path().display());
    } else {
        directory.close()?;
    }
    println!("{} passed, {} failed in {:.0?}", count.passed, count.failed, began.elapsed());
    Ok(count.failed)
}

fn all(options: &Options, directory: &Path, handle: &Handle, left: &Left, count: &mut Count) -> Outcome {
    let registry = Registry::start(&directory.join("registry"))?;
    let images = Images::push(&registry)?;
    let mut runtime = Runtime::start(&options.runtime, directory, &registry, handle)?;
    let node = Node::new(&directory.join("node"), &runtime.socket(), &runtime::instance())?;
    let mut ground = Ground::new(node, images, directory, handle.clone())?;
    let outcome = lives(options, &mut ground, &mut runtime, handle, count);
    let trouble = runtime.trouble();
    let began = Instant::now();
    let cleaned = runtime.take_down(handle).and_then(|()| left.clear(&ground.node));
    count.tell("leaves_nothing", began.elapsed(), cleaned);
    if (count.failed > 0 || outcome.is_err()) && !trouble.is_empty() {
        println!("--- what the runtime said:\n{trouble}");
    }
    outcome
}

/// The cases whose names fit.
fn chosen<'a>(options: &Options, rooms: &[&'a [(&'static str, Case)]]) -> Vec<&'a (&'static str, Case)> {
    rooms.iter().copied().flatten().filter(|(name, _)| name.contains(&options.filter)).collect()
}

fn lives(
    options: &Options,
    ground: &mut Ground,
    runtime: &mut Runtime,
    handle: &Handle,
    count: &mut Count,
) -> Outcome {
    if options.kubectl {
        return with_kubectl(options, ground, count);
    }
    let first = chosen(
        options,
        &[
            work::CASES,
            probe::CASES,
            volume::CASES,
            security::CASES,
            network::CASES,
            limit::CASES,
            log::CASES,
            image::CASES,
        ],
    );
    let unused = ground.images.unused.clone();
    handle.block_on(async {
        Outcome::Ok(Cri(client::connect(&ground.node.socket).await?).pull(&unused).await.map(drop)?)
    })?;
    let mut kubelet = Some(ground.node.start()?);
    if options.measure {
        let kubelet = kubelet.ok_or("the kubelet does not run")?;
        measure::run(ground, &kubelet, runtime)?;
        return kubelet.stop();
    }
    try_all(ground, &first, count)?;
    if options.filter.is_empty() {
        count.tell("no_call_failed", Duration::ZERO, figures::no_call_failed(ground, &["exec_sync"]));
        let series = figures::has_the_series_of_dashboards(ground, ALWAYS_THERE);
        count.tell("has_the_series_of_dashboards", Duration::ZERO, series);
    }
    let restarts = matches!(runtime, Runtime::Cove { .. }) && options.filter.is_empty();
    if restarts {
        // It is started again and again by design.
        ground.node.take_away("always")?;
        for (who, kill) in restart::ALL {
            let began = Instant::now();
            let how = if kill { "kill -9" } else { "SIGTERM" };
            let outcome = restart::survives(ground, &mut kubelet, runtime, handle, who, kill);
            count.tell(&format!("keeps_what_runs: {how} of {who:?}"), began.elapsed(), outcome);
        }
    }
    let second = chosen(options, &[later::CASES]);
    if !second.is_empty() {
        kubelet.take().map_or(Ok(()), Kubelet::stop)?;
        for name in later::IN_THE_WAY.iter().filter(|name| ground.node.has(name)) {
            ground.node.take_away(name)?;
        }
        ground.node.changes = later::changes();
        // It refuses that of another policy.
        let state = ground.node.directory.join("kubelet/cpu_manager_state");
        fs::remove_file(&state).map_err(|error| format!("{}: {error}", state.display()))?;
        kubelet = Some(ground.node.start()?);
        try_all(ground, &second, count)?;
    }
    let began = Instant::now();
    let outcome = empty(ground);
    count.tell("ends_every_pod_whose_manifest_goes", began.elapsed(), outcome);
    kubelet.map_or(Ok(()), Kubelet::stop)
}

/// The kubelet with an API server, and the real kubectl.
fn with_kubectl(options: &Options, ground: &mut Ground, count: &mut Count) -> Outcome {
    let cluster = Cluster::start(&ground.node.directory.join("cluster"))?;
    (ground.node.kubeconfig, ground.node.name) = (Some(cluster.kubeconfig()), cluster::NODE.to_owned());
    let kubelet = ground.node.start()?;
    cluster.wait_for_node()?;
    let (ground, cluster) = (&*ground, &cluster);
    let flows = flow::FLOWS.iter().filter(|(name, _)| name.contains(&options.filter));
    let checks = flows.map(|(name, flow)| (*name, move || flow(ground, cluster))).collect();
    side_by_side(checks, count);
    if options.filter.is_empty() {
        // One container is to have no program.
        let outcome = figures::no_call_failed(ground, &["start_container"]);
        count.tell("no_call_failed", Duration::ZERO, outcome);
    }
    let began = Instant::now();
    let outcome = flow::empty(cluster);
    count.tell("deletes_every_pod", began.elapsed(), outcome);
    kubelet.stop()
}

/// Lets every check look on a thread of its own.
fn side_by_side<T: FnOnce() -> Outcome + Send>(checks: Vec<(&str, T)>, count: &mut Count) {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let timed = |check: T| {
            move || {
                let outcome = check();
                (began.elapsed(), outcome)
            }
        };
        let running: Vec<_> =
            checks.into_iter().map(|(name, check)| (name, scope.spawn(timed(check)))).collect();
        for (name, thread) in running {
            let (took, outcome) = thread.join().unwrap_or_else(|_| (began.elapsed(), Err("a panic".into())));
            count.tell(name, took, outcome);
        }
    });
}

/// Writes the manifests of all cases, and then lets every case look, each on a thread of its own.
fn try_all(ground: &Ground, cases: &[&(&'static str, Case)], count: &mut Count) -> Outcome {
    let mut trials = Vec::new();
    for (name, case) in cases {
        let trial = case(ground)?;
        for pod in &trial.pods {
            ground.node.place(pod)?;
        }
        trials.push((*name, trial));
    }
    let checks = trials.into_iter().map(|(name, trial)| (name, move || (trial.check)(ground))).collect();
    side_by_side(checks, count);
    Ok(())
}

/// Takes every manifest away, and waits until the kubelet has ended all pods.
fn empty(ground: &Ground) -> Outcome {
    for entry in fs::read_dir(ground.node.manifests())? {
        fs::remove_file(entry?.path())?;
    }
    ground.until("the kubelet to have no pods", || {
        let pods: serde_json::Value = serde_json::from_str(&ground.node.get("/pods")?)?;
        Ok(pods["items"].as_array().is_none_or(Vec::is_empty).then_some(()))
    })?;
    ground.settled()
}
