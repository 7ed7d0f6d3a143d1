//! Figures of Cove beside containerd with runc, driven by the same client in the same run. Ratios are what counts:
//! machines differ.
//!
//! `bench [--quick] [--rounds N] [--steps] [--json FILE]`. Rounds of both take turns, so that a busy moment hits both.
//! `--steps` prints what each step of Cove's took, p50.
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

use cove_e2e::client::Cri;
use cove_e2e::daemon::{self, Place};
use cove_e2e::image;
use cove_e2e::peer::Peer;
use cove_e2e::registry::Registry;
use cove_e2e::sysctl::Saved;
use cove_e2e::{Outcome, pod};
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

/// One runtime under the bench.
struct Side {
    name: &'static str,
    cri: Cri,
    daemon: u32,
    times: [Vec<Duration>; 3],
    steps: BTreeMap<String, Vec<Duration>>,
    weights: Vec<Weight>,
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
    let rounds = match value("--rounds") {
        Some(rounds) => rounds.parse()?,
        None if arguments.iter().any(|argument| argument == "--quick") => 200,
        None => 1000,
    };
    let keep = tempfile::Builder::new().prefix("cove-bench-").tempdir()?;
    let settings = Saved::now()?;
    let steps = arguments.iter().any(|argument| argument == "--steps");
    let outcome = measure(keep.path(), rounds, steps).await;
    settings.restore()?;
    let rows = outcome?;
    for row in &rows {
        let [cove, peer] = ["cove", "containerd"].map(|side| row[side].as_f64().unwrap_or(f64::NAN));
        let ratio = if cove > 0.0 { format!("{:.2}x", peer / cove) } else { "-".to_owned() };
        println!("{:<28} {cove:>10.3} {peer:>10.3} {ratio:>9}", row["name"].as_str().unwrap_or_default());
    }
    if let Some(file) = value("--json") {
        let machine = json!({
            "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
            "cpus": std::thread::available_parallelism()?.get(),
            "load": fs::read_to_string("/proc/loadavg")?.trim(),
            "rounds": rounds,
        });
        fs::write(file, serde_json::to_vec_pretty(&json!({"machine": machine, "rows": rows}))?)?;
    }
    Ok(())
}

async fn measure(directory: &Path, rounds: usize, steps: bool) -> Outcome<Vec<Value>> {
    let registry = Registry::start(&directory.join("registry"))?;
    let config = json!({"Env": ["PATH=/bin"], "Entrypoint": ["sleep", "1000000"]});
    let pause = registry.push("bench/pause", "1", &image::build(vec![image::busybox()?], config)?)?;
    let image = image::build(vec![image::busybox()?, image::accounts()], json!({"Env": ["PATH=/bin"]}))?;
    let reference = registry.push("bench/busybox", "1", &image)?;
    let programs = cache().join("bin");
    let peer = Peer::start(&directory.join("containerd"), &programs, &pause, "10.217.0.0/16")?;
    let place = Place {
        instance: "bench".into(),
        root: directory.join("root"),
        state: directory.join("state"),
        range: "10.216.0.0/16".into(),
        programs: daemon::programs(),
        hosts: None,
        images: String::new(),
        cni: None,
    };
    let mut cove = place.start()?;
    let mut sides = [
        Side::new("cove", cove.connect().await?, cove.pid()),
        Side::new("containerd", peer.connect().await?, peer.pid()),
    ];
    let outcome = async {
        for side in &mut sides {
            side.pull(&reference).await?;
        }
        for round in 0..rounds {
            for side in &mut sides {
                side.round(directory, &reference, round).await?;
            }
        }
        for side in &mut sides {
            side.weigh(directory, &reference).await?;
        }
        if steps {
            sides[0].print_steps();
        }
        Ok(rows(&sides))
    }
    .await;
    for side in &mut sides {
        side.remove_all().await?;
    }
    cove.stop()?;
    peer.end()?;
    outcome
}

fn cache() -> PathBuf {
    std::env::var_os("COVE_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/cove"),
        PathBuf::from,
    )
}

impl Weight {
    #[expect(clippy::cast_precision_loss, reason = "fifty")]
    fn helpers_per_pod(&self) -> f64 {
        (self.helpers + self.shmem) / self.pods as f64
    }
}

impl Side {
    fn new(name: &'static str, cri: Cri, daemon: u32) -> Self {
        Self { name, cri, daemon, times: Default::default(), steps: BTreeMap::new(), weights: Vec::new() }
    }

    async fn pull(&mut self, reference: &str) -> Outcome {
        let image = Some(ImageSpec { image: reference.into(), ..Default::default() });
        self.cri.images.pull_image(PullImageRequest { image, ..Default::default() }).await?;
        Ok(())
    }

    /// A pod whose container says something; returns their ids once it has been said.
    async fn pod(&mut self, directory: &Path, reference: &str, name: &str) -> Outcome<(String, String)> {
        let logs = directory.join("logs").join(self.name).join(name);
        fs::create_dir_all(&logs)?;
        let config =
            PodSandboxConfig { log_directory: logs.to_string_lossy().into_owned(), ..pod::sandbox(name) };
        let container = pod::container("c", reference, &["sh", "-c", "echo here; exec sleep 1000000"]);
        let log = logs.join(&container.log_path);
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let sandbox = self.cri.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let container = self.cri.runtime.create_container(request).await?.into_inner().container_id;
        let request = StartContainerRequest { container_id: container.clone() };
        self.cri.runtime.start_container(request).await?;
        let end = Instant::now() + Duration::from_secs(30);
        while !fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
            if Instant::now() > end {
                return Err(format!("{}: no output of {container}", self.name).into());
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        Ok((sandbox, container))
    }

    async fn round(&mut self, directory: &Path, reference: &str, round: usize) -> Outcome {
        let began = Instant::now();
        let (sandbox, container) = self.pod(directory, reference, &format!("round-{round}")).await?;
        self.times[0].push(began.elapsed());
        if self.name == "cove" {
            self.note_steps(&sandbox, &container).await?;
        }
        for _ in 0..EXECS {
            let began = Instant::now();
            let request =
                ExecSyncRequest { container_id: container.clone(), cmd: vec!["true".into()], timeout: 60 };
            self.cri.runtime.exec_sync(request).await?;
            self.times[1].push(began.elapsed());
        }
        let began = Instant::now();
        self.remove(&sandbox, Some(&container)).await?;
        self.times[2].push(began.elapsed());
        Ok(())
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
            if self.name == "cove" { ["cove-shim", "cove-init"] } else { ["containerd-shim", "runc"] };
        for entry in fs::read_dir("/proc")?.flatten() {
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if let Ok(pid) = entry.file_name().to_string_lossy().parse()
                && shims.iter().any(|name| comm.starts_with(name))
            {
                pids.push(pid);
            }
        }
        if self.name != "cove" {
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
    let row = |name: String, unit: &str, figure: &dyn Fn(&Side) -> f64| json!({"name": name, "unit": unit, "cove": figure(&sides[0]), "containerd": figure(&sides[1])});
    let mut rows = Vec::new();
    for (place, name) in ["pod_start", "exec_sync", "stop_remove"].into_iter().enumerate() {
        for part in [50, 95] {
            rows.push(row(format!("{name}_p{part}_ms"), "ms", &|side| percentile(&side.times[place], part)));
        }
    }
    let weights = [&sides[0].weights, &sides[1].weights];
    for (place, pods) in PODS.into_iter().enumerate() {
        let row = |name: String, figure: &dyn Fn(&Weight) -> f64| {
            let [cove, containerd] = weights.map(|weights| weights.get(place).map(figure));
            json!({"name": name, "unit": "MB", "cove": cove, "containerd": containerd})
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
