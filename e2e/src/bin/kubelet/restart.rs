//! The kubelet, its runtime and both end, by SIGTERM and by SIGKILL, and start again: nothing that runs is touched.

use std::collections::BTreeMap;

use cove_e2e::{Outcome, process};
use k8s_cri::v1::ContainerState;
use tokio::runtime::Handle;

use crate::figures;
use crate::ground::{Ground, condition};
use crate::node::Kubelet;
use crate::runtime::Runtime;

/// Rounds of the kubelet's look at its runtime after which it has acted on what it saw.
const ROUNDS: f64 = 4.0;

/// Who ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Who {
    Kubelet,
    Runtime,
    Both,
}

pub(crate) const ALL: [(Who, bool); 6] = [
    (Who::Kubelet, false),
    (Who::Runtime, false),
    (Who::Both, false),
    (Who::Kubelet, true),
    (Who::Runtime, true),
    (Who::Both, true),
];

/// Every running container, with the pid and the start of its process.
fn running(ground: &Ground) -> Outcome<BTreeMap<String, (i32, String)>> {
    ground.cri(async |mut cri| {
        let mut found = BTreeMap::new();
        for id in cri.containers().await? {
            // One that has ended may be collected in between.
            let runs =
                cri.status(&id).await.is_ok_and(|status| status.state() == ContainerState::ContainerRunning);
            if runs {
                let pid = cri.pid(&id).await?;
                found.insert(id, (pid, process::start_time(pid)?));
            }
        }
        Ok(found)
    })
}

fn rounds(ground: &Ground) -> Outcome<f64> {
    figures::sum(ground, "kubelet_pleg_relist_duration_seconds_count")
}

fn ready_pods(ground: &Ground) -> Outcome<Vec<String>> {
    let pods: serde_json::Value = serde_json::from_str(&ground.node.get("/pods")?)?;
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    let ready = pods.iter().filter(|pod| condition(pod, "Ready"));
    Ok(ready.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect())
}

/// Ends who is named, starts it again, and compares.
pub(crate) fn survives(
    ground: &Ground,
    kubelet: &mut Option<Kubelet>,
    runtime: &mut Runtime,
    handle: &Handle,
    who: Who,
    kill: bool,
) -> Outcome {
    let (before, ready) = (running(ground)?, ready_pods(ground)?);
    ensure!(before.len() >= 10 && ready.len() >= 10, "only {} containers run", before.len());
    let mut starts = figures::calls(ground, "start_container")?;
    if matches!(who, Who::Kubelet | Who::Both) {
        let kubelet = kubelet.take().ok_or("the kubelet does not run")?;
        if kill {
            kubelet.kill()?
        } else {
            kubelet.stop()?
        }
        starts = 0.0;
    }
    if matches!(who, Who::Runtime | Who::Both) {
        runtime.end(kill)?;
        runtime.start_again(handle)?;
    }
    if kubelet.is_none() {
        *kubelet = Some(ground.node.start()?);
    }
    let reached = rounds(ground)? + ROUNDS;
    ground.until("the kubelet to look at its runtime", || Ok((rounds(ground)? >= reached).then_some(())))?;
    ground.until("every pod to be ready again", || {
        let now = ready_pods(ground)?;
        Ok(ready.iter().all(|pod| now.contains(pod)).then_some(()))
    })?;
    let after = running(ground)?;
    for (id, process) in &before {
        ensure!(after.get(id) == Some(process), "{id} was {process:?} and is {:?}", after.get(id));
    }
    ensure_eq!(after.len(), before.len());
    let now = figures::calls(ground, "start_container")?;
    ensure!(now.total_cmp(&starts).is_le(), "the kubelet started {} containers", now - starts);
    Ok(())
}
