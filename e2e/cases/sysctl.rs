//! Kernel parameters: those of the pod's own namespaces are set, and the host's stay as they are (E16).

use std::fs;

use cove_e2e::{Outcome, pod};
use k8s_cri::v1::*;

use crate::ensure::Refused;
use crate::world::World;

cases!(
    sets_what_is_the_pods_own,
    gives_what_users_expect,
    refuses_what_is_the_hosts,
    refuses_what_is_shared_with_the_host,
    says_what_the_kernel_refuses,
);

fn with(mut config: PodSandboxConfig, pairs: &[(&str, &str)]) -> PodSandboxConfig {
    let sysctls = &mut config.linux.get_or_insert_default().sysctls;
    sysctls.extend(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    config
}

/// Parameters in a new container of a pod, one a line.
async fn read(world: &mut World, id: &str, config: &PodSandboxConfig, paths: &[&str]) -> Outcome<String> {
    let files: Vec<_> = paths.iter().map(|path| format!("/proc/sys/{path}")).collect();
    let script = world.script("read", &format!("cat {} | tr '\\t' ' '", files.join(" ")));
    Ok(world.output(id, config, &script).await?.1)
}

async fn sets_what_is_the_pods_own(world: &mut World) -> Outcome {
    let host = |path: &str| fs::read_to_string(format!("/proc/sys/{path}"));
    let paths = [
        "kernel/shm_rmid_forced",
        "fs/mqueue/msg_max",
        "net/ipv4/ip_forward",
        "net/core/somaxconn",
        "kernel/sem",
    ];
    let before = paths.map(host);
    let config = with(
        world.pod("sysctl"),
        &[
            ("kernel.shm_rmid_forced", "1"),
            ("fs.mqueue.msg_max", "77"),
            ("net/ipv4/ip_forward", "1"),
            ("net.core.somaxconn", "321"),
            ("kernel.sem", "100 200 30 40"),
        ],
    );
    let id = world.run_pod(&config).await?;
    let text = read(world, &id, &config, &paths).await?;
    ensure_eq!(text, "1\n77\n1\n321\n100 200 30 40\n");
    for (path, before) in paths.iter().zip(before) {
        ensure_eq!(host(path)?, before?);
    }
    Ok(())
}

async fn gives_what_users_expect(world: &mut World) -> Outcome {
    let paths = ["net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range"];
    let config = world.pod("defaults");
    let id = world.run_pod(&config).await?;
    ensure_eq!(read(world, &id, &config, &paths).await?, "0\n0 2147483647\n");
    let config = with(world.pod("own"), &[("net/ipv4/ip_unprivileged_port_start", "512")]);
    let id = world.run_pod(&config).await?;
    ensure_eq!(read(world, &id, &config, &paths).await?, "512\n0 2147483647\n");
    Ok(())
}

async fn refuses_what_is_the_hosts(world: &mut World) -> Outcome {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    let bad = [
        ("kernel.core_pattern", "|/x"),
        ("kernel/core_pattern", "|/x"),
        ("net/../kernel/core_pattern", "|/x"),
        ("net.//.kernel.core_pattern", "|/x"),
        ("/kernel/core_pattern", "|/x"),
        ("../proc/sys/kernel/core_pattern", "|/x"),
        ("kernel.hostname", "x"),
        ("kernel.pid_max", "1000"),
        ("kernel.panic", "1"),
        ("vm.swappiness", "1"),
        ("fs.file-max", "1"),
        ("user.max_net_namespaces", "1"),
        ("net.ipv4.ip_forward\n", "1"),
        ("net.ipv4.ip_forward", "1\nkernel.core_pattern=x"),
        ("net.ipv4.ip_forward=1+kernel.core_pattern", "|/x"),
        ("", "1"),
        ("net", "1"),
        ("net..ipv4", "1"),
    ];
    for (key, value) in bad {
        let config = with(world.pod("bad"), &[(key, value)]);
        let refused = world.try_run_pod(&config).await.refused()?;
        ensure_eq!((key, refused.code()), (key, tonic::Code::InvalidArgument));
        ensure!(refused.message().contains("sysctls"), "{refused}");
    }
    // One parameter a write, and the value is one value: what would smuggle another is refused by the kernel.
    for value in ["0+kernel.core_pattern=|/x", "0=1", "0,1", "0 x"] {
        let config = with(world.pod("smuggle"), &[("net.ipv4.ip_forward", value)]);
        world.try_run_pod(&config).await.refused()?;
    }
    ensure!(world.pods().await?.is_empty(), "nothing is left of a refused pod");
    ensure_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern")?, pattern);
    Ok(())
}

async fn refuses_what_is_shared_with_the_host(world: &mut World) -> Outcome {
    let mut network = with(world.pod("host-net"), &[("net.ipv4.ip_forward", "1")]);
    pod::namespaces(&mut network).network = NamespaceMode::Node.into();
    let mut ipc = with(world.pod("host-ipc"), &[("kernel.shm_rmid_forced", "1")]);
    pod::namespaces(&mut ipc).ipc = NamespaceMode::Node.into();
    let mut queue = with(world.pod("host-mqueue"), &[("fs.mqueue.msg_max", "77")]);
    pod::namespaces(&mut queue).ipc = NamespaceMode::Node.into();
    for config in [network, ipc, queue] {
        let refused = world.try_run_pod(&config).await.refused()?;
        ensure_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
    // Its own network beside the host's IPC: the one may be set, the other not.
    let mut mixed = with(world.pod("mixed"), &[("net.ipv4.ip_forward", "1")]);
    pod::namespaces(&mut mixed).ipc = NamespaceMode::Node.into();
    world.run_pod(&mixed).await?;
    Ok(())
}

async fn says_what_the_kernel_refuses(world: &mut World) -> Outcome {
    for (key, value) in [("net.ipv4.no_such_thing", "1"), ("net.core.somaxconn", "many")] {
        let config = with(world.pod("kernel"), &[(key, value)]);
        let refused = world.try_run_pod(&config).await.refused()?;
        ensure!(refused.message().contains(key), "{refused}");
    }
    ensure!(world.pods().await?.is_empty(), "nothing is left of a failed pod");
    Ok(())
}
