//! Figures of a kubelet with its runtime: how long a pod takes from its file to its first word, one at a time and twenty at
//! once, and what probes cost. `--measure`; docs/kubernetes.md has those of Cove and containerd.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use cove_e2e::{Outcome, process};
use serde_json::{Value, json};

use crate::ground::{Ground, IDLE, LIMIT};
use crate::node::Kubelet;
use crate::runtime::Runtime;

/// Pods that are started one after the other.
const ROUNDS: usize = 15;
/// Pods that are started at once.
const BURST: usize = 20;
/// Pods that are probed each second.
const PROBED: usize = 30;
/// How long.
const PROBED_FOR: Duration = Duration::from_secs(120);
/// How exactly times are taken.
const TICK: Duration = Duration::from_millis(2);

/// Takes all figures and prints them.
pub(crate) fn run(ground: &Ground, kubelet: &Kubelet, runtime: &Runtime) -> Outcome {
    one_by_one(ground, "without a volume", &json!({}))?;
    one_by_one(ground, "with an emptyDir", &json!({"volumes": [{"name": "empty", "emptyDir": {}}]}))?;
    at_once(ground)?;
    probed(ground, kubelet, runtime)
}

/// A pod that says something. Without the witness, which is a volume.
fn speaker(ground: &Ground, name: &str, spec: &Value) -> Outcome<Value> {
    let mut pod = ground.simple(name, &format!("echo here; {IDLE}"), json!({}), json!({}))?;
    pod["spec"]["volumes"] = spec["volumes"].clone();
    pod["spec"]["containers"][0]["volumeMounts"] = Value::Null;
    Ok(pod)
}

/// It has said so.
fn spoke(ground: &Ground, name: &str) -> Outcome<bool> {
    let files = ground.log_files(name, "main")?;
    Ok(files.iter().any(|file| fs::metadata(file).is_ok_and(|file| file.len() > 0)))
}

fn one_by_one(ground: &Ground, what: &str, spec: &Value) -> Outcome {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let name = format!("round-{round}");
        let pod = speaker(ground, &name, spec)?;
        let began = Instant::now();
        ground.node.place(&pod)?;
        while !spoke(ground, &name)? {
            ensure!(began.elapsed() < LIMIT, "{name} says nothing");
            std::thread::sleep(TICK);
        }
        times.push(began.elapsed());
        ground.node.take_away(&name)?;
        ground.settled()?;
    }
    times.sort_unstable();
    println!(
        "file to first word {what}: p50 {} ms, max {} ms",
        millis(times[ROUNDS / 2]),
        millis(times[ROUNDS - 1])
    );
    Ok(())
}

fn at_once(ground: &Ground) -> Outcome {
    let names: Vec<String> = (0..BURST).map(|place| format!("burst-{place}")).collect();
    let pods = names.iter().map(|name| speaker(ground, name, &json!({}))).collect::<Outcome<Vec<_>>>()?;
    let began = Instant::now();
    for pod in &pods {
        ground.node.place(pod)?;
    }
    let mut times = BTreeMap::new();
    while times.len() < BURST {
        ensure!(began.elapsed() < LIMIT, "only {} pods say something", times.len());
        for name in &names {
            if !times.contains_key(name) && spoke(ground, name)? {
                times.insert(name, began.elapsed());
            }
        }
        std::thread::sleep(TICK);
    }
    let first = times.values().min().copied().unwrap_or_default();
    let last = times.values().max().copied().unwrap_or_default();
    println!("{BURST} pods at once: the first {} ms, the last {} ms", millis(first), millis(last));
    for name in &names {
        ground.node.take_away(name)?;
    }
    ground.settled()
}

fn probed(ground: &Ground, kubelet: &Kubelet, runtime: &Runtime) -> Outcome {
    let probe = json!({"exec": {"command": ["test", "-e", "/"]}, "periodSeconds": 1});
    for place in 0..PROBED {
        let name = format!("probed-{place}");
        ground.node.place(&ground.simple(&name, IDLE, json!({"readinessProbe": probe}), json!({}))?)?;
    }
    for place in 0..PROBED {
        ground.ready(&format!("probed-{place}"))?;
    }
    let before = (process::cpu_seconds(kubelet.pid())?, of_runtime(ground, runtime)?);
    let calls = crate::figures::calls(ground, "exec_sync")?;
    std::thread::sleep(PROBED_FOR);
    let calls = crate::figures::calls(ground, "exec_sync")? - calls;
    let after = (process::cpu_seconds(kubelet.pid())?, of_runtime(ground, runtime)?);
    let seconds = PROBED_FOR.as_secs();
    println!(
        "{PROBED} pods probed each second for {seconds} s: {calls} probes, CPU seconds: kubelet {:.1}, runtime with its helpers {:.1}",
        after.0 - before.0,
        after.1 - before.1
    );
    for place in 0..PROBED {
        ground.node.take_away(&format!("probed-{place}"))?;
    }
    ground.settled()
}

fn millis(time: Duration) -> u128 {
    time.as_millis()
}

/// CPU seconds of the runtime's daemon and its helpers, which carry the id of their sandbox in their arguments.
fn of_runtime(ground: &Ground, runtime: &Runtime) -> Outcome<f64> {
    let pods = ground.cri(async |mut cri| Ok(cri.pods().await?))?;
    let mut sum = process::cpu_seconds(runtime.pid())?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).any(|word| pods.iter().any(|pod| pod.as_bytes() == word)) {
            // A short-lived one may end in between; it counts with its parent then.
            sum += process::cpu_seconds(pid).unwrap_or_default();
        }
    }
    Ok(sum)
}
