//! The second life of the kubelet: a full disk, containers that cannot start, probes that take too long, statistics without
//! the runtime's, and the gates by which it takes lists in streams and listens to events. Apart from the first, whose
//! calls must all succeed.

use cove_e2e::Outcome;
use serde_json::{Value, json};

use crate::figures;
use crate::ground::{Ground, IDLE, Trial, of, restarts};
use crate::image::has;
use crate::node::NAME;

cases!(
    collects_images_that_nobody_uses,
    tells_why_a_container_cannot_start,
    tells_that_an_image_is_missing,
    ends_a_probe_that_takes_too_long,
    has_figures_without_those_of_the_runtime,
    takes_lists_in_streams,
    listens_to_events,
    ends_by_the_signal_that_is_asked_for,
    pins_a_container_to_its_cpu,
);

/// Pods that ask for parts of CPUs: without them there is a whole one to be had on a machine of two.
pub(crate) const IN_THE_WAY: &[&str] = &["limits", "guaranteed", "projected"];

/// How the kubelet is set up then: no disk is as empty as it wants, so it collects images, each 10 s. It evicts no static
/// pod for that.
pub(crate) fn changes() -> Value {
    json!({
        "evictionHard": {"imagefs.available": "99.99%"},
        "imageMinimumGCAge": "1ns",
        "featureGates": {"PodAndContainerStatsFromCRI": false, "CRIListStreaming": true, "EventedPLEG": true,
                         "ContainerStopSignals": true},
        // The first CPU is for all, the others can be had by one alone.
        "cpuManagerPolicy": "static",
        "cpuManagerReconcilePeriod": "1s",
        "reservedSystemCPUs": "0",
    })
}

fn collects_images_that_nobody_uses(_: &Ground) -> Outcome<Trial> {
    Trial::new(vec![], |ground| {
        ground.until("the image that nobody uses to go", || {
            Ok((!has(ground, &ground.images.unused)?).then_some(()))
        })?;
        for used in [&ground.images.busybox, &ground.images.user, &ground.images.content] {
            ensure!(has(ground, used)?, "{used} is in use, and gone");
        }
        Ok(())
    })
}

fn tells_why_a_container_cannot_start(ground: &Ground) -> Outcome<Trial> {
    let pod = ground.simple("no-command", "", json!({}), json!({"restartPolicy": "Never"}))?;
    let mut pod = pod;
    pod["spec"]["containers"][0]["command"] = json!(["/no/such/program"]);
    Trial::new(vec![pod], |ground| {
        let ended = ground.seen("no-command", "to fail", |pod| {
            let ended = of(pod, "main")["state"]["terminated"].clone();
            ended.is_object().then_some(ended)
        })?;
        ensure!(ended["reason"] == "StartError" && ended["exitCode"] == 128, "{ended}");
        ensure!(ended["message"].as_str().is_some_and(|text| text.contains("/no/such/program")), "{ended}");
        Ok(())
    })
}

fn tells_that_an_image_is_missing(ground: &Ground) -> Outcome<Trial> {
    let pod = ground.simple("no-image", IDLE, json!({"image": ground.images.missing}), json!({}))?;
    Trial::new(vec![pod], |ground| {
        ground.seen("no-image", "to be told of", |pod| {
            let waiting = of(pod, "main")["state"]["waiting"].clone();
            let named = waiting["message"].as_str().is_some_and(|text| text.contains("node/missing"));
            (waiting["reason"] == "ErrImagePull" && named).then_some(())
        })?;
        ground.seen("no-image", "to be backed off", |pod| {
            (of(pod, "main")["state"]["waiting"]["reason"] == "ImagePullBackOff").then_some(())
        })
    })
}

fn ends_a_probe_that_takes_too_long(ground: &Ground) -> Outcome<Trial> {
    let exec = json!({"command": ["sh", "-c", "test -e /witness/ill || sleep 54321"]});
    let probe = json!({"exec": exec, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1});
    let script = format!("test -e /tmp/x; {IDLE}");
    let pod = ground.simple("slow-probe", &script, json!({"livenessProbe": probe}), json!({}))?;
    Trial::new(vec![pod], |ground| {
        ground.seen("slow-probe", "to be restarted", |pod| (restarts(pod, "main") > 0).then_some(()))?;
        std::fs::write(ground.witness("slow-probe", "ill"), "")?;
        ground.ready("slow-probe")?;
        // What the probe started went with it.
        ground.until("its processes to be gone", || {
            // It may be restarted once more, where the machine is slow.
            let Ok(left) = ground.exec("slow-probe", "main", &["ps", "-o", "args"]) else { return Ok(None) };
            ensure!(left.contains("sleep 100000"), "its own process is missing: {left}");
            Ok((!left.lines().any(|line| line.starts_with("sleep 54321"))).then_some(()))
        })
    })
}

/// What a kubelet reads from the cgroups of pods and asks of the runtime anyway: `kubectl top` and autoscalers live of it.
/// What is missing then, docs/kubernetes.md tells.
fn has_figures_without_those_of_the_runtime(ground: &Ground) -> Outcome<Trial> {
    let pod = ground.simple("plain", IDLE, json!({}), json!({}))?;
    Trial::new(vec![pod], |ground| {
        ground.ready("plain")?;
        let pod = format!("plain-{NAME}");
        let summary = ground.until("the statistics of the pod", || {
            let Ok(found) = figures::summary(ground, &pod) else { return Ok(None) };
            let of_container = &found["containers"][0];
            let all = [&found, of_container].iter().all(|part| {
                part["cpu"]["usageCoreNanoSeconds"].is_u64() && part["memory"]["workingSetBytes"].is_u64()
            });
            Ok((all && of_container["rootfs"]["usedBytes"].is_u64()).then_some(found))
        })?;
        ensure!(summary["network"].is_null(), "it is no longer missing: {summary}");
        let of_pod = |path: &str| -> Outcome<Vec<figures::Sample>> {
            let found = figures::samples(ground, path)?;
            Ok(found.into_iter().filter(|sample| sample.labels.get("pod") == Some(&pod)).collect())
        };
        let found = of_pod("/metrics/resource")?;
        for name in ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes"] {
            ensure!(found.iter().any(|sample| sample.name == name), "no {name} of {pod} in {found:?}");
        }
        for sample in of_pod("/metrics/cadvisor")? {
            let of_container = sample.labels.get("container").is_some_and(|name| !name.is_empty());
            ensure!(!of_container, "it is no longer missing: {sample:?}");
            ensure!(!sample.name.starts_with("container_network_"), "it is no longer missing: {sample:?}");
        }
        Ok(())
    })
}

/// It says so and asks for whole lists from then on where a runtime has no streams.
fn takes_lists_in_streams(ground: &Ground) -> Outcome<Trial> {
    let pod = ground.simple("streamed", IDLE, json!({}), json!({}))?;
    Trial::new(vec![pod], |ground| {
        ground.ready("streamed")?;
        let log = std::fs::read_to_string(ground.node.log())?;
        let refused = log
            .lines()
            .find(|line| line.contains("not implemented, falling back") || line.contains("recv failed"));
        ensure!(refused.is_none(), "{refused:?}");
        Ok(())
    })
}

fn listens_to_events(ground: &Ground) -> Outcome<Trial> {
    let pod = ground.simple("listened", "sleep 2; exit 0", json!({}), json!({"restartPolicy": "Never"}))?;
    Trial::new(vec![pod], |ground| {
        ground.seen("listened", "to succeed", |pod| (pod["status"]["phase"] == "Succeeded").then_some(()))?;
        let listened = figures::sum(ground, "kubelet_evented_pleg_connection_success_count")?;
        ensure!(listened.total_cmp(&0.0).is_gt(), "it listened to none");
        let lost = figures::sum(ground, "kubelet_evented_pleg_connection_error_count")?;
        ensure!(lost.total_cmp(&0.0).is_eq(), "the stream of events ended {lost} times");
        Ok(())
    })
}

fn ends_by_the_signal_that_is_asked_for(ground: &Ground) -> Outcome<Trial> {
    let script = "trap 'echo USR1 >/witness/signal; echo end >>/witness/signal; exit 0' USR1
        trap 'echo TERM >/witness/signal; echo end >>/witness/signal; exit 0' TERM; sleep 100000 & wait";
    let more = json!({"lifecycle": {"stopSignal": "SIGUSR1"}});
    let pod = ground.simple("signal", script, more, json!({"os": {"name": "linux"}}))?;
    Trial::new(vec![pod], |ground| {
        ground.ready("signal")?;
        ground.node.take_away("signal")?;
        ensure_eq!(ground.told("signal", "signal")?, "USR1\n");
        Ok(())
    })
}

/// The kubelet's CPU manager tells the runtime of each change, of all other containers as well.
fn pins_a_container_to_its_cpu(ground: &Ground) -> Outcome<Trial> {
    let own = json!({"resources": {"limits": {"memory": "32Mi", "cpu": "1"}}});
    let pinned = ground.simple("pinned", IDLE, own, json!({}))?;
    let beside = ground.simple("beside-pinned", IDLE, json!({}), json!({}))?;
    Trial::new(vec![pinned, beside], |ground| {
        let cpus = |pod: &str| -> Outcome<Vec<usize>> {
            let status = std::fs::read_to_string(format!("/proc/{}/status", ground.pid(pod)?))?;
            let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            let mut found = Vec::new();
            for part in line.ok_or("no CPUs")?.trim().split(',') {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                found.extend(first.parse::<usize>()?..=last.parse()?);
            }
            Ok(found)
        };
        for pod in ["pinned", "beside-pinned"] {
            ground.ready(pod)?;
        }
        ground.until("one to have a CPU alone", || {
            let (pinned, beside) = (cpus("pinned")?, cpus("beside-pinned")?);
            let alone = pinned.len() == 1 && pinned[0] != 0 && !beside.contains(&pinned[0]);
            Ok(alone.then_some(()))
        })
    })
}
