//! Devices: those asked for can be used and no others, and a privileged container has all.

use std::fs;

use cove_e2e::{Outcome, pod};
use k8s_cri::v1::*;

use crate::ensure::Refused;
use crate::world::World;

cases!(
    uses_the_devices_asked_for,
    takes_a_directory_of_devices,
    refuses_what_is_no_device,
    privileged_has_everything,
    has_sane_resource_limits,
);

fn device(host: &str, inside: &str, permissions: &str) -> Device {
    Device { host_path: host.into(), container_path: inside.into(), permissions: permissions.into() }
}

async fn uses_the_devices_asked_for(world: &mut World) -> Outcome {
    let config = world.pod("devices");
    let id = world.run_pod(&config).await?;
    // A node that no container has by default, by a symlink on the host.
    let link = world.directory.join("link");
    std::os::unix::fs::symlink("/dev/fuse", &link)?;
    let look = |path: &str| {
        format!(
            "( : <{path} ) 2>/dev/null && echo readable; ( : >{path} ) 2>/dev/null && echo writable; echo end"
        )
    };
    let mut container = world.script("reads", &format!("stat -c %t:%T /dev/mine; {}", look("/dev/mine")));
    container.devices.push(device(&link.to_string_lossy(), "/dev/mine", "r"));
    let (_, text) = world.output(&id, &config, &container).await?;
    ensure_eq!(text, "a:e5\nreadable\nend\n");
    let mut container = world.script("writes", &look("/dev/fuse"));
    container.devices.push(device("/dev/fuse", "", "rw"));
    let (_, text) = world.output(&id, &config, &container).await?;
    ensure_eq!(text, "readable\nwritable\nend\n");
    // A node that a container makes itself opens nothing that it was not given.
    let script = format!("ls /dev/fuse 2>/dev/null; mknod /tmp/fuse c 10 229; {}", look("/tmp/fuse"));
    let (_, text) = world.output(&id, &config, &world.script("none", &script)).await?;
    ensure_eq!(text, "end\n");
    Ok(())
}

async fn takes_a_directory_of_devices(world: &mut World) -> Outcome {
    let config = world.pod("directory");
    let id = world.run_pod(&config).await?;
    let directory = world.directory.join("nodes");
    fs::create_dir_all(directory.join("below"))?;
    for (name, minor) in [("one", "7"), ("below/two", "5")] {
        let output = std::process::Command::new("mknod")
            .args(["-m", "600"])
            .arg(directory.join(name))
            .args(["c", "1", minor])
            .output()?;
        ensure!(output.status.success(), "mknod: {}", String::from_utf8_lossy(&output.stderr));
    }
    fs::write(directory.join("file"), "no device")?;
    let mut container =
        world.script("all", "cd /dev/mine; ls -R; stat -c %a:%t:%T one; head -c 3 below/two | wc -c");
    container.devices.push(device(&directory.to_string_lossy(), "/dev/mine", "rwm"));
    let (_, text) = world.output(&id, &config, &container).await?;
    ensure_eq!(text, ".:\nbelow\none\n\n./below:\ntwo\n600:1:7\n3\n");
    Ok(())
}

async fn refuses_what_is_no_device(world: &mut World) -> Outcome {
    let config = world.pod("no-devices");
    let id = world.run_pod(&config).await?;
    for (host, inside, permissions) in [
        ("/etc/passwd", "/dev/x", "r"),
        ("/dev/nowhere", "/dev/x", "r"),
        ("/dev/null", "/etc/x", "r"),
        ("/dev/null", "/dev/../etc/x", "r"),
        ("/dev/null", "/dev/x", "rx"),
        ("/dev/null", "/dev/x", ""),
        ("dev/null", "/dev/x", "r"),
        ("", "/dev/x", "r"),
    ] {
        let mut container = world.script("refused", "true");
        container.devices.push(device(host, inside, permissions));
        let refused = world.create(&id, &config, &container).await.refused()?;
        ensure_eq!((host, inside, refused.code()), (host, inside, tonic::Code::InvalidArgument));
        ensure!(refused.message().contains("devices[0]"), "{refused}");
    }
    Ok(())
}

async fn privileged_has_everything(world: &mut World) -> Outcome {
    let mut config = world.pod("privileged");
    let sandbox = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    sandbox.privileged = true;
    let id = world.run_pod(&config).await?;
    let script = "grep -E '^Cap(Eff|Bnd)|^Seccomp:' /proc/self/status | tr -d '\\t'; ls /dev/fuse; \
                  mkdir /sys/fs/cgroup/cpu/x 2>/dev/null && rmdir /sys/fs/cgroup/cpu/x && echo cgroup; \
                  grep -c ' /sys sysfs rw' /proc/self/mounts; \
                  ( : <>/dev/fuse ) && echo opened; \
                  cat /proc/sys/kernel/hostname >/proc/sys/kernel/hostname && echo sysctl";
    let mut container = world.script("privileged", script);
    let security = pod::security(&mut container);
    security.privileged = true;
    security.masked_paths = vec!["/proc/kcore".into()];
    security.readonly_paths = vec!["/proc/sys".into()];
    let (_, text) = world.output(&id, &config, &container).await?;
    let of_host = fs::read_to_string("/proc/self/status")?;
    let bounding = of_host.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).ok_or("no CapBnd")?;
    for line in [
        format!("CapEff:{bounding}"),
        format!("CapBnd:{bounding}"),
        "Seccomp:0".to_owned(),
        "/dev/fuse".to_owned(),
        "1".to_owned(),
        "sysctl".to_owned(),
    ] {
        ensure!(text.lines().any(|found| found == line), "{line:?} in {text}");
    }
    ensure!(text.contains("opened"), "{text}");
    // Not in a pod that is not privileged.
    let plain = world.pod("plain");
    let id = world.run_pod(&plain).await?;
    let refused = world.create(&id, &plain, &container).await.refused()?;
    ensure!(refused.message().contains("privileged"), "{refused}");
    Ok(())
}

async fn has_sane_resource_limits(world: &mut World) -> Outcome {
    let config = world.pod("rlimits");
    let id = world.run_pod(&config).await?;
    let container = world.launch(&id, &config, &world.script("limits", "ulimit -n; sleep 1000")).await?;
    world.wrote(&container, "1024\n").await?;
    let exec = world.exec(&container, &["sh", "-c", "ulimit -n"]).await?;
    ensure_eq!(String::from_utf8(exec.stdout)?, "1024\n");
    Ok(())
}
