//! Figures of Cove beside containerd with runc, driven by the same client in the same run. Ratios are what counts:
//! machines differ.
//!
//! `bench [--quick] [--rounds N] [--pulls N] [--standing N] [--parallel N] [--steps] [--beside DIRECTORY] [--json FILE]`. Rounds of
//! both take turns, so that a busy moment hits both. `--standing`: pods that stand meanwhile. `--parallel`: pods that a
//! round starts at once. `--steps` prints what each step of Cove's took, p50. `--beside`: another build of Cove takes the
//! place of containerd, to see what a change brings. `--rounds 0` measures pulls alone, `--pulls 0` none.
#![forbid(unsafe_code)]
#![allow(
    clippy::large_futures,
    reason = "requests with every field of a pod are large, and nobody counts here"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cove_e2e::cache::cached;
use cove_e2e::client::Cri;
use cove_e2e::daemon::{self, Daemon, Place};
use cove_e2e::image;
use cove_e2e::peer::Peer;
use cove_e2e::registry::Registry;
use cove_e2e::sysctl::Saved;
use cove_e2e::{Outcome, bulk, pod};
use k8s_cri::v1::*;
use serde_json::{Value, json};

/// How many pods stand when memory is measured: what the first costs, and what each more.
const PODS: [usize; 2] = [1, 50];
/// Execs a round.
const EXECS: usize = 5;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is timed of a round, each pod for itself.
const TIMED: [&str; 6] =
    ["run_pod_sandbox", "create_container", "start_container", "pod_start", "exec_sync", "stop_remove"];

/// One runtime under the bench.
struct Side {
    name: &'static str,
    cri: Cri,
    daemon: u32,
    times: BTreeMap<&'static str, Vec<Duration>>,
    steps: BTreeMap<String, Vec<Duration>>,
    weights: Vec<Weight>,
    pulls: Vec<bulk::Cost>,
}

/// A pod that has said something.
struct Pod {
    sandbox: String,
    container: String,
    /// As the first of [`TIMED`] say.
    times: [Duration; 4],
}

/// Memory while some pods stand, in MB.
struct Weight {
    pods: usize,
    /// PSS of all helpers, less that of those which were there before the first pod.
    helpers: f64,
    /// Shared memory of the machine (memfds, tmpfs), less what there was before the first pod.
    shmem: f64,
    /// PSS of the daemon.
    daemon: f64,
    /// What of that is shared memory.
    daemon_shmem: f64,
}

async fn run() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        arguments
            .iter()
            .position(|argument| argument == name)
            .and_then(|place| arguments.get(place + 1))
            .cloned()
    };
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let number = |name: &str, default| value(name).map_or(Ok(default), |text| text.parse());
    let plan = Plan {
        rounds: number("--rounds", if is_quick { 200 } else { 1000 })?,
        pulls: number("--pulls", if is_quick { 3 } else { 7 })?,
        standing: number("--standing", 0)?,
        parallel: number("--parallel", 1)?,
        steps: arguments.iter().any(|argument| argument == "--steps"),
        beside: value("--beside").map(PathBuf::from),
    };
    let keep = tempfile::Builder::new().prefix("cove-bench-").tempdir()?;
    let settings = Saved::now()?;
    let outcome = measure(keep.path(), &plan).await;
    settings.restore()?;
    let rows = outcome?;
    for row in &rows {
        let other = if plan.beside.is_some() { "other" } else { "containerd" };
        let [cove, peer] = ["cove", other].map(|side| row[side].as_f64().unwrap_or(f64::NAN));
        let ratio = if cove > 0.0 { format!("{:.2}x", peer / cove) } else { "-".to_owned() };
        println!("{:<28} {cove:>10.3} {peer:>10.3} {ratio:>9}", row["name"].as_str().unwrap_or_default());
    }
    if let Some(file) = value("--json") {
        let machine = json!({
            "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
            "cpus": std::thread::available_parallelism()?.get(),
            "load": fs::read_to_string("/proc/loadavg")?.trim(),
            "rounds": plan.rounds,
            "pulls": plan.pulls,
        });
        fs::write(file, serde_json::to_vec_pretty(&json!({"machine": machine, "rows": rows}))?)?;
    }
    Ok(())
}

/// What is measured.
struct Plan {
    rounds: usize,
    pulls: usize,
    standing: usize,
    parallel: usize,
    steps: bool,
    beside: Option<PathBuf>,
}

/// What Cove is measured beside.
enum Other {
    Containerd(Peer),
    Cove(Daemon),
}

impl Other {
    async fn connect(&mut self) -> Outcome<Side> {
        match self {
            Self::Containerd(peer) => Ok(Side::new("containerd", peer.connect().await?, peer.pid())),
            Self::Cove(cove) => Ok(Side::new("other", cove.connect().await?, cove.pid())),
        }
    }

    fn end(self) -> Outcome {
        match self {
            Self::Containerd(peer) => peer.end(),
            Self::Cove(cove) => cove.stop(),
        }
    }
}

fn place(directory: &Path, instance: &str, range: &str, programs: PathBuf) -> Place {
    Place {
        instance: instance.into(),
        root: directory.join(instance).join("root"),
        state: directory.join(instance).join("state"),
        range: range.into(),
        programs,
        hosts: None,
        images: String::new(),
        cni: None,
    }
}

async fn measure(directory: &Path, plan: &Plan) -> Outcome<Vec<Value>> {
    let registry = Registry::start(&directory.join("registry"))?;
    let config = json!({"Env": ["PATH=/bin"], "Entrypoint": ["sleep", "1000000"]});
    let pause = registry.push("bench/pause", "1", &image::build(vec![image::busybox()?], config)?)?;
    let image = image::build(vec![image::busybox()?, image::accounts()], json!({"Env": ["PATH=/bin"]}))?;
    let reference = registry.push("bench/busybox", "1", &image)?;
    let mut other = match &plan.beside {
        Some(programs) => {
            Other::Cove(place(directory, "other", "10.217.0.0/16", programs.canonicalize()?).start()?)
        }
        None => {
            let programs = cached("bin");
            Other::Containerd(Peer::start(&directory.join("containerd"), &programs, &pause, "10.217.0.0/16")?)
        }
    };
    let mut cove = place(directory, "bench", "10.216.0.0/16", daemon::programs()).start()?;
    let mut sides = [Side::new("cove", cove.connect().await?, cove.pid()), other.connect().await?];
    let outcome = async {
        for side in &mut sides {
            side.pull(&reference).await?;
            for pod in 0..plan.standing {
                side.pod(directory, &reference, &format!("standing-{pod}")).await?;
            }
        }
        for round in 0..plan.rounds {
            for side in &mut sides {
                side.round(directory, &reference, round, plan.parallel).await?;
            }
        }
        if plan.standing == 0 && plan.rounds > 0 {
            for side in &mut sides {
                side.weigh(directory, &reference).await?;
            }
        }
        if plan.pulls > 0 {
            let large = registry.push("bench/large", "1", &bulk::image()?)?;
            let roots = ["bench", "other"].map(|instance| directory.join(instance).join("root/images"));
            for _ in 0..plan.pulls {
                for side in &mut sides {
                    side.pulls.push(bulk::pull(&mut side.cri, side.daemon, &large, &roots).await?);
                }
            }
        }
        if plan.steps {
            sides.iter().for_each(Side::print_steps);
        }
        Ok(rows(&sides))
    }
    .await;
    for side in &mut sides {
        side.remove_all().await?;
    }
    cove.stop()?;
    other.end()?;
    outcome
}

impl Weight {
    #[expect(clippy::cast_precision_loss, reason = "fifty")]
    fn helpers_per_pod(&self) -> f64 {
        (self.helpers + self.shmem) / self.pods as f64
    }
}

impl Side {
    fn new(name: &'static str, cri: Cri, daemon: u32) -> Self {
        let (times, steps) = (BTreeMap::new(), BTreeMap::new());
        Self { name, cri, daemon, times, steps, weights: Vec::new(), pulls: Vec::new() }
    }

    async fn pull(&mut self, reference: &str) -> Outcome {
        let image = Some(ImageSpec { image: reference.into(), ..Default::default() });
        self.cri.images.pull_image(PullImageRequest { image, ..Default::default() }).await?;
        Ok(())
    }

    /// A pod whose container says something.
    async fn pod(&self, directory: &Path, reference: &str, name: &str) -> Outcome<Pod> {
        let mut runtime = self.cri.runtime.clone();
        let logs = directory.join("logs").join(self.name).join(name);
        fs::create_dir_all(&logs)?;
        let config =
            PodSandboxConfig { log_directory: logs.to_string_lossy().into_owned(), ..pod::sandbox(name) };
        let container = pod::container("c", reference, &["sh", "-c", "echo here; exec sleep 1000000"]);
        let log = logs.join(&container.log_path);
        let began = Instant::now();
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let sandbox = runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let ran = began.elapsed();
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let container = runtime.create_container(request).await?.into_inner().container_id;
        let created = began.elapsed();
        let request = StartContainerRequest { container_id: container.clone() };
        runtime.start_container(request).await?;
        let started = began.elapsed();
        while !fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
            if began.elapsed() > Duration::from_secs(30) {
                return Err(format!("{}: no output of {container}", self.name).into());
            }
            // Not tokio's sleep, whose shortest is a millisecond.
            std::thread::sleep(Duration::from_micros(100));
            tokio::task::yield_now().await;
        }
        let times = [ran, created - ran, started - created, began.elapsed()];
        Ok(Pod { sandbox, container, times })
    }

    /// Pods, one or several at once; each is then looked at and goes again.
    async fn round(&mut self, directory: &Path, reference: &str, round: usize, parallel: usize) -> Outcome {
        let names: Vec<String> = (0..parallel).map(|pod| format!("round-{round}-{pod}")).collect();
        let this = &*self;
        let pods: Vec<Pod> =
            futures_util::future::try_join_all(names.iter().map(|name| this.pod(directory, reference, name)))
                .await?;
        for Pod { sandbox, container, times } in pods {
            for (name, time) in TIMED.into_iter().zip(times) {
                self.note(name, time);
            }
            if self.name != "containerd" {
                self.note_steps(&sandbox, &container).await?;
            }
            for _ in 0..EXECS {
                let began = Instant::now();
                let request = ExecSyncRequest {
                    container_id: container.clone(),
                    cmd: vec!["true".into()],
                    timeout: 60,
                };
                self.cri.runtime.exec_sync(request).await?;
                self.note("exec_sync", began.elapsed());
            }
            let began = Instant::now();
            self.remove(&sandbox, Some(&container)).await?;
            self.note("stop_remove", began.elapsed());
        }
        Ok(())
    }

    fn note(&mut self, name: &'static str, time: Duration) {
        self.times.entry(name).or_default().push(time);
    }

    /// What the steps of the pod and of its container took, as the daemon tells it.
    async fn note_steps(&mut self, sandbox: &str, container: &str) -> Outcome {
        let runtime = &mut self.cri.runtime;
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.into(), verbose: true };
        let of_sandbox = runtime.pod_sandbox_status(request).await?.into_inner().info;
        let request = ContainerStatusRequest { container_id: container.into(), verbose: true };
        let of_container = runtime.container_status(request).await?.into_inner().info;
        for (name, info) in [("run", of_sandbox), ("container", of_container)] {
            let info: Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
            for (place, step) in info["steps"].as_array().ok_or("no steps")?.iter().enumerate() {
                let key = format!("{name} {place:02} {}", step["step"].as_str().unwrap_or_default());
                let time =
                    Duration::from_secs_f64(step["milliseconds"].as_f64().unwrap_or_default() / 1000.0);
                self.steps.entry(key).or_default().push(time);
            }
        }
        Ok(())
    }

    fn print_steps(&self) {
        for (step, times) in &self.steps {
            print!("{:<8}", self.name);
            println!("{step:<28} {:>10.3} ms, p95 {:.3}", percentile(times, 50), percentile(times, 95));
        }
    }

    async fn remove(&mut self, sandbox: &str, container: Option<&str>) -> Outcome {
        let runtime = &mut self.cri.runtime;
        if let Some(container) = container {
            runtime
                .stop_container(StopContainerRequest { container_id: container.into(), timeout: 0 })
                .await?;
            runtime.remove_container(RemoveContainerRequest { container_id: container.into() }).await?;
        }
        runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.into() }).await?;
        runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox.into() }).await?;
        Ok(())
    }

    async fn remove_all(&mut self) -> Outcome {
        let request = ListPodSandboxRequest { filter: None };
        for pod in self.cri.runtime.list_pod_sandbox(request).await?.into_inner().items {
            self.remove(&pod.id, None).await?;
        }
        Ok(())
    }

    /// Memory with one pod and with many.
    async fn weigh(&mut self, directory: &Path, reference: &str) -> Outcome {
        let before = (self.helper_pss().await?, shmem()?);
        let mut stand = 0;
        for pods in PODS {
            while stand < pods {
                self.pod(directory, reference, &format!("stands-{stand}")).await?;
                stand += 1;
            }
            let weight = Weight {
                pods,
                helpers: self.helper_pss().await? - before.0,
                shmem: (shmem()? - before.1).max(0.0),
                daemon: rollup(self.daemon, "Pss:"),
                daemon_shmem: rollup(self.daemon, "Pss_Shmem:"),
            };
            self.weights.push(weight);
        }
        self.remove_all().await
    }

    async fn helper_pss(&mut self) -> Outcome<f64> {
        Ok(self.helper_pids().await?.into_iter().map(|pid| rollup(pid, "Pss:")).sum())
    }

    /// Everything that is there because of pods, but for what the pods run: shims, and pause or init processes.
    async fn helper_pids(&mut self) -> Outcome<Vec<u32>> {
        let mut pids = Vec::new();
        let shims =
            if self.name == "containerd" { ["containerd-shim", "runc"] } else { ["cove-shim", "cove-init"] };
        for entry in fs::read_dir("/proc")?.flatten() {
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if let Ok(pid) = entry.file_name().to_string_lossy().parse()
                && shims.iter().any(|name| comm.starts_with(name))
            {
                pids.push(pid);
            }
        }
        if self.name == "containerd" {
            // The pause processes, which are called whatever their image calls them.
            let request = ListPodSandboxRequest { filter: None };
            for pod in self.cri.runtime.list_pod_sandbox(request).await?.into_inner().items {
                let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id, verbose: true };
                let info = self.cri.runtime.pod_sandbox_status(request).await?.into_inner().info;
                let info: Value = serde_json::from_str(info.get("info").ok_or("no info of a sandbox")?)?;
                pids.push(u32::try_from(info["pid"].as_u64().ok_or("a sandbox without a pid")?)?);
            }
        }
        Ok(pids)
    }
}

/// A field of a process's smaps_rollup (proc_pid_smaps(5)) in MB; a process that has ended has none.
fn rollup(pid: u32, field: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    kilobytes(&text, field).unwrap_or_default() / 1024.0
}

/// Shared memory of the whole machine in MB, memfds and tmpfs.
fn shmem() -> Outcome<f64> {
    Ok(kilobytes(&fs::read_to_string("/proc/meminfo")?, "Shmem:").ok_or("no Shmem in /proc/meminfo")?
        / 1024.0)
}

fn kilobytes(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok())
}

fn percentile(times: &[Duration], part: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted
        .get((sorted.len() * part / 100).min(sorted.len().saturating_sub(1)))
        .map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}

fn rows(sides: &[Side; 2]) -> Vec<Value> {
    let row = |name: String, unit: &str, figure: &dyn Fn(&Side) -> f64| json!({"name": name, "unit": unit, "cove": figure(&sides[0]), sides[1].name: figure(&sides[1])});
    let mut rows = Vec::new();
    if sides.iter().all(|side| !side.pulls.is_empty()) {
        let times = |side: &Side| side.pulls.iter().map(|pull| pull.time).collect::<Vec<_>>();
        rows.push(row("pull_230mb_9_layers_s".into(), "s", &|side| percentile(&times(side), 50) / 1000.0));
        let highest = |side: &Side| side.pulls.iter().map(|pull| pull.memory).fold(0.0, f64::max);
        rows.push(row("pull_peak_memory_mb".into(), "MB", &highest));
    }
    if sides.iter().all(|side| side.times.is_empty()) {
        return rows;
    }
    for name in TIMED {
        for part in [50, 95] {
            let figure = |side: &Side| percentile(side.times.get(name).map_or(&[], Vec::as_slice), part);
            rows.push(row(format!("{name}_p{part}_ms"), "ms", &figure));
        }
    }
    if sides.iter().any(|side| side.weights.is_empty()) {
        return rows;
    }
    let weights = [&sides[0].weights, &sides[1].weights];
    for (place, pods) in PODS.into_iter().enumerate() {
        let row = |name: String, figure: &dyn Fn(&Weight) -> f64| {
            let [cove, other] = weights.map(|weights| weights.get(place).map(figure));
            json!({"name": name, "unit": "MB", "cove": cove, sides[1].name: other})
        };
        rows.push(row(format!("helpers_pss_{pods}_pods_mb"), &|weight| weight.helpers));
        rows.push(row(format!("shmem_{pods}_pods_mb"), &|weight| weight.shmem));
        rows.push(row(format!("daemon_memory_{pods}_pods_mb"), &|weight| weight.daemon));
        rows.push(row(format!("daemon_shmem_{pods}_pods_mb"), &|weight| weight.daemon_shmem));
    }
    rows.push(row("helper_memory_per_pod_mb".into(), "MB", &|side| {
        side.weights.last().map_or(f64::NAN, Weight::helpers_per_pod)
    }));
    rows
}
