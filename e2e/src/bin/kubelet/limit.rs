//! Resources: what a kubelet asks for, and what the kernel holds a container to.

use std::fs;

use cove_e2e::Outcome;
use serde_json::json;

use crate::ground::{Ground, IDLE, Trial, of};

cases!(holds_to_its_limits, tells_who_ran_out_of_memory, keeps_classes_apart);

/// The cgroup of a process in the hierarchy of a controller.
fn group(pid: i32, controller: &str) -> Outcome<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(names), Some(path)) = (fields.next(), fields.next()) else { continue };
        if names.split(',').any(|name| name == controller) {
            return Ok(format!("/sys/fs/cgroup/{controller}{path}"));
        }
        if names.is_empty() && controller != "unified" && !text.contains(controller) {
            return Ok(format!("/sys/fs/cgroup{path}"));
        }
    }
    Err(format!("{pid} is in no cgroup of {controller}").into())
}

fn read(group: &str, names: [&str; 2]) -> Outcome<String> {
    let text = names.iter().find_map(|name| fs::read_to_string(format!("{group}/{name}")).ok());
    Ok(text.ok_or_else(|| format!("{group} has none of {names:?}"))?.trim().to_owned())
}

fn holds_to_its_limits(ground: &Ground) -> Outcome<Trial> {
    let resources =
        json!({"limits": {"memory": "64Mi", "cpu": "200m"}, "requests": {"memory": "32Mi", "cpu": "100m"}});
    let pod = ground.simple("limits", IDLE, json!({"resources": resources}), json!({}))?;
    Trial::new(vec![pod], |ground| {
        ground.ready("limits")?;
        let pid = ground.pid("limits")?;
        let memory = read(&group(pid, "memory")?, ["memory.limit_in_bytes", "memory.max"])?;
        ensure_eq!(memory, (64 << 20).to_string());
        let cpu = read(&group(pid, "cpu")?, ["cpu.cfs_quota_us", "cpu.max"])?;
        ensure!(cpu.starts_with("20000"), "{cpu}");
        let shares = read(&group(pid, "cpu")?, ["cpu.shares", "cpu.weight"])?;
        ensure!(["102", "4"].contains(&shares.as_str()), "{shares}");
        Ok(())
    })
}

fn tells_who_ran_out_of_memory(ground: &Ground) -> Outcome<Trial> {
    let resources = json!({"limits": {"memory": "16Mi"}});
    let script = "tail /dev/zero";
    let pod =
        ground.simple("oom", script, json!({"resources": resources}), json!({"restartPolicy": "Never"}))?;
    Trial::new(vec![pod], |ground| {
        let ended = ground.seen("oom", "to end", |pod| {
            let ended = of(pod, "main")["state"]["terminated"].clone();
            ended.is_object().then_some(ended)
        })?;
        ensure!(ended["reason"] == "OOMKilled" && ended["exitCode"] == 137, "{ended}");
        Ok(())
    })
}

fn keeps_classes_apart(ground: &Ground) -> Outcome<Trial> {
    let same = json!({"limits": {"memory": "32Mi", "cpu": "100m"}});
    let guaranteed = ground.simple("guaranteed", IDLE, json!({"resources": same}), json!({}))?;
    let best = ground.simple("best-effort", IDLE, json!({}), json!({}))?;
    Trial::new(vec![guaranteed, best], |ground| {
        let parent = format!("/{}/kubepods", ground.node.cgroup);
        for (name, class, least) in [("guaranteed", "/pod", -998), ("best-effort", "/besteffort/pod", 1000)] {
            ground.ready(name)?;
            let pid = ground.pid(name)?;
            let group = group(pid, "memory")?;
            ensure!(group.contains(&format!("{parent}{class}")), "{name} is in {group}");
            // Without CAP_SYS_RESOURCE a runtime cannot go below its own.
            let score: i32 = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim().parse()?;
            ensure!(score >= least && (name != "best-effort" || score == least), "{name} has {score}");
        }
        Ok(())
    })
}
