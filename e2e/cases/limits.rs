//! Limits of containers: what is changed while they run, and what a kubelet finds afterwards.

use std::collections::HashMap;
use std::fs;

use cove_e2e::{Outcome, pod, wait};
use k8s_cri::v1::*;

use crate::ensure::Refused;
use crate::world::{End, SOON, World};

cases!(
    changes_limits_of_a_running_container,
    changes_limits_before_the_start,
    leaves_limits_when_one_is_refused,
    keeps_changed_limits_over_a_restart,
    takes_huge_page_limits,
    continues_its_log_in_a_new_file,
);

async fn update(world: &mut World, id: &str, linux: LinuxContainerResources) -> Result<(), tonic::Status> {
    let request =
        UpdateContainerResourcesRequest { container_id: id.into(), linux: Some(linux), ..Default::default() };
    world.cri.runtime.update_container_resources(request).await.map(drop)
}

async fn told(world: &mut World, id: &str) -> Outcome<LinuxContainerResources> {
    let status = world.status(id).await?;
    Ok(status.resources.and_then(|resources| resources.linux).ok_or("no resources in the status")?)
}

/// What the kernel holds for a container, as it sees it itself on cgroup v1 or v2.
async fn held(world: &mut World, id: &str) -> Outcome<[String; 3]> {
    let mut values = [const { String::new() }; 3];
    let files = [
        ["cpu/cpu.shares", "cpu.weight"],
        ["memory/memory.limit_in_bytes", "memory.max"],
        ["cpuset/cpuset.cpus", "cpuset.cpus"],
    ];
    for (value, [v1, v2]) in values.iter_mut().zip(files) {
        let script = format!("cat /sys/fs/cgroup/{v1} /sys/fs/cgroup/{v2} 2>/dev/null | head -n 1");
        let exec = world.exec(id, &["sh", "-c", &script]).await?;
        *value = String::from_utf8(exec.stdout)?.trim().to_owned();
    }
    Ok(values)
}

fn first() -> LinuxContainerResources {
    LinuxContainerResources { cpu_shares: 512, memory_limit_in_bytes: 64 << 20, ..Default::default() }
}

async fn changes_limits_of_a_running_container(world: &mut World) -> Outcome {
    let config = world.pod("resize");
    let id = world.run_pod(&config).await?;
    let mut container = world.script("resized", "sleep 1000");
    *pod::resources(&mut container) = first();
    let container = world.launch(&id, &config, &container).await?;
    let before = held(world, &container).await?;
    ensure_eq!(before[1], (64 << 20).to_string());
    let asked = LinuxContainerResources {
        memory_limit_in_bytes: 128 << 20,
        cpuset_cpus: "0".into(),
        ..Default::default()
    };
    update(world, &container, asked.clone()).await?;
    let after = held(world, &container).await?;
    ensure_eq!(after, [before[0].clone(), (128 << 20).to_string(), "0".to_owned()]);
    let told_now = told(world, &container).await?;
    ensure_eq!((told_now.cpu_shares, told_now.memory_limit_in_bytes), (512, 128 << 20));
    ensure_eq!(told_now.cpuset_cpus, "0");
    // And down again.
    update(world, &container, first()).await?;
    ensure_eq!(held(world, &container).await?[1], (64 << 20).to_string());
    // What is not there, or has ended, has nothing to limit.
    update(world, &"f".repeat(64), first()).await?;
    world.stop(&container, 0).await?;
    update(world, &container, asked).await?;
    Ok(())
}

async fn changes_limits_before_the_start(world: &mut World) -> Outcome {
    let config = world.pod("early");
    let id = world.run_pod(&config).await?;
    let mut container = world.script("early", "cat /proc/self/oom_score_adj; sleep 1000");
    *pod::resources(&mut container) = LinuxContainerResources { oom_score_adj: 777, ..first() };
    let container = world.create(&id, &config, &container).await?;
    let asked = LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() };
    update(world, &container, asked).await?;
    ensure_eq!(told(world, &container).await?.memory_limit_in_bytes, 96 << 20);
    world.start(&container).await?;
    ensure_eq!(held(world, &container).await?[1], (96 << 20).to_string());
    world.wrote(&container, "777\n").await?;
    Ok(())
}

async fn leaves_limits_when_one_is_refused(world: &mut World) -> Outcome {
    let config = world.pod("refused");
    let id = world.run_pod(&config).await?;
    let mut container = world.script("refused", "sleep 1000");
    *pod::resources(&mut container) = first();
    let container = world.launch(&id, &config, &container).await?;
    let before = (held(world, &container).await?, told(world, &container).await?);
    let no_such_cpu = LinuxContainerResources {
        cpu_shares: 1024,
        memory_limit_in_bytes: 128 << 20,
        cpuset_cpus: "4000".into(),
        ..Default::default()
    };
    let refused = update(world, &container, no_such_cpu).await.refused()?;
    ensure!(refused.message().contains("cpuset"), "{refused}");
    ensure_eq!((held(world, &container).await?, told(world, &container).await?), before);
    let contradiction = LinuxContainerResources { memory_swap_limit_in_bytes: 1 << 20, ..first() };
    update(world, &container, contradiction).await.refused()?;
    let text = LinuxContainerResources { cpuset_cpus: "0\n".into(), ..Default::default() };
    ensure_eq!(update(world, &container, text).await.refused()?.code(), tonic::Code::InvalidArgument);
    ensure_eq!((held(world, &container).await?, told(world, &container).await?), before);
    // Files of version 2 are refused by name where the controllers are on version 1.
    if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let unified: HashMap<_, _> = [("memory.high".to_owned(), "1000000".to_owned())].into_iter().collect();
        let asked = LinuxContainerResources { unified: unified.clone(), ..Default::default() };
        let refused = update(world, &container, asked.clone()).await.refused()?;
        ensure!(refused.message().contains("unified"), "{refused}");
        let mut other = world.script("unified", "sleep 1000");
        *pod::resources(&mut other) = asked;
        let refused = world.create(&id, &config, &other).await.refused()?;
        ensure!(refused.message().contains("unified"), "{refused}");
    }
    Ok(())
}

async fn keeps_changed_limits_over_a_restart(world: &mut World) -> Outcome {
    let config = world.pod("kept");
    let id = world.run_pod(&config).await?;
    let mut container = world.script("kept", "sleep 1000");
    *pod::resources(&mut container) = first();
    let container = world.launch(&id, &config, &container).await?;
    let asked = LinuxContainerResources { memory_limit_in_bytes: 80 << 20, ..Default::default() };
    update(world, &container, asked).await?;
    world.restart(End::Kill).await?;
    ensure_eq!(told(world, &container).await?.memory_limit_in_bytes, 80 << 20);
    ensure_eq!(held(world, &container).await?[1], (80 << 20).to_string());
    Ok(())
}

async fn takes_huge_page_limits(world: &mut World) -> Outcome {
    let config = world.pod("pages");
    let id = world.run_pod(&config).await?;
    let limit = |page_size: &str, limit| HugepageLimit { page_size: page_size.into(), limit };
    // As a kubelet sends it: a limit for each size of the host, 0 for those that the pod does not ask for.
    let mut container = world.script("pages", "sleep 1000");
    pod::resources(&mut container).hugepage_limits = vec![limit("2MB", 4 << 20), limit("1GB", 0)];
    let container = world.launch(&id, &config, &container).await?;
    ensure_eq!(told(world, &container).await?.hugepage_limits.len(), 2);
    let file = find_group(&container)
        .into_iter()
        .flat_map(|group| ["hugetlb.2MB.max", "hugetlb.2MB.limit_in_bytes"].map(|file| group.join(file)))
        .find(|file| file.exists());
    if let Some(file) = file {
        let limit = fs::read_to_string(&file)?;
        ensure_eq!(limit.trim(), (4 << 20).to_string());
    }
    let mut bad = world.script("bad-pages", "true");
    pod::resources(&mut bad).hugepage_limits = vec![limit("2MB/../../x", 1)];
    let refused = world.create(&id, &config, &bad).await.refused()?;
    ensure_eq!(refused.code(), tonic::Code::InvalidArgument);
    Ok(())
}

/// The directories of a container in every hierarchy: they are called by its id.
fn find_group(id: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut look = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = look.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name() == id {
                    found.push(entry.path());
                } else {
                    look.push(entry.path());
                }
            }
        }
    }
    found
}

async fn continues_its_log_in_a_new_file(world: &mut World) -> Outcome {
    let config = world.pod("rotate");
    let id = world.run_pod(&config).await?;
    let script = "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.05; done";
    let container = world.launch(&id, &config, &world.script("rotate", script)).await?;
    world.wrote(&container, "line 3\n").await?;
    let log = world.status(&container).await?.log_path;
    let old = format!("{log}.20261124");
    fs::rename(&log, &old)?;
    let request = ReopenContainerLogRequest { container_id: container.clone() };
    world.cri.runtime.reopen_container_log(request.clone()).await?;
    ensure!(fs::metadata(&log).is_ok(), "the new file is there when the call returns");
    wait::until("lines in the new file", SOON, || {
        Ok((fs::read_to_string(&log)?.lines().count() >= 3).then_some(()))
    })?;
    world.stop(&container, 0).await?;
    let whole = fs::read_to_string(&old)? + &fs::read_to_string(&log)?;
    for (number, line) in whole.lines().enumerate() {
        ensure!(line.ends_with(&format!("line {}", number + 1)), "line {}: {line:?}", number + 1);
    }
    // It does not run: an error, and no file.
    fs::remove_file(&log)?;
    world.cri.runtime.reopen_container_log(request).await.refused()?;
    ensure!(fs::metadata(&log).is_err(), "no file was made");
    Ok(())
}
