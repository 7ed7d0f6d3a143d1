//! Images and volumes that lead mounts, nodes, files and layers elsewhere.

use std::fs;

use cove_e2e::image::{self, Layer};
use cove_e2e::{Outcome, pod, tree};
use k8s_cri::v1::*;
use serde_json::json;

use super::{Reached, canary, climb, path, pull, pull_attacker};
use crate::world::World;

attacks!(
    starts_nothing_without_a_real_proc_and_sys without "plain-directory",
    mounts_nowhere_else_while_destinations_are_swapped without "in-root,pivot-first",
    makes_no_node_outside without "plain-directory,in-root,pivot-first",
    masks_with_the_null_device_only without "null-device",
    writes_no_generated_file_outside without "in-root,pivot-first",
    makes_no_volume_outside without "in-root,pivot-first",
    unpacks_nothing_outside without "in-root",
);

/// Containers made beside somebody who swaps their destinations.
const SWAPPED: usize = 500;

/// Tells what is different in the canary.
fn look(
    what: &str,
    canary: &std::path::Path,
    before: &mut std::collections::BTreeMap<std::path::PathBuf, String>,
    reached: &mut Reached,
) -> Outcome {
    let now = tree::canary(canary)?;
    if now != *before {
        reached.push(format!("{what} changed the canary"));
        *before = now;
    }
    Ok(())
}

/// Starts a container of an image with this layer and gives its output, or why it was refused.
async fn run(world: &mut World, name: &str, layer: Layer, script: &str) -> Outcome<Result<String, String>> {
    let reference = pull(world, name, vec![layer], path()).await?;
    let mut config = world.pod(name);
    config.hostname = "written-by-cove".into();
    let id = world.run_pod(&config).await?;
    let container = pod::container("try", &reference, &["/bin/sh", "-c", script]);
    let ran = run_in(world, &id, &config, &container).await?;
    world.remove_pod(&id).await?;
    Ok(ran)
}

async fn run_in(
    world: &mut World,
    id: &str,
    config: &PodSandboxConfig,
    container: &ContainerConfig,
) -> Outcome<Result<String, String>> {
    let created = match world.create(id, config, container).await {
        Ok(created) => created,
        Err(error) => return Ok(Err(error.message().to_owned())),
    };
    if let Err(error) = world.start(&created).await {
        return Ok(Err(error.message().to_owned()));
    }
    let status = world.exited(&created).await?;
    Ok(Ok(crate::world::log_text(&fs::read_to_string(&status.log_path)?)?))
}

/// E05, CVE-2019-16884, CVE-2023-27561: where /proc or /sys is something else, masks and labels would go to a fake.
async fn starts_nothing_without_a_real_proc_and_sys(world: &mut World) -> Outcome<Reached> {
    let mut reached = Reached::new();
    for (name, layer) in [
        ("proc-link", Layer::new().symlink("proc", "/bad-proc").dir("bad-proc", 0o755)),
        ("proc-climb", Layer::new().symlink("proc", "../../../bad-proc").dir("bad-proc", 0o755)),
        ("sys-link", Layer::new().symlink("sys", "/x").dir("x", 0o755)),
        ("proc-file", Layer::new().file("proc", 0o644, "x")),
        ("sys-file", Layer::new().file("sys", 0o644, "x")),
    ] {
        match run(world, name, layer, "true").await? {
            Ok(_) => reached.push(format!("a container with {name} runs")),
            Err(error) => ensure!(error.contains("/proc") || error.contains("/sys"), "{name}: {error}"),
        }
    }
    // A volume of the request that is mounted on procfs or in it.
    let volume = world.directory.join("volume");
    fs::create_dir(&volume)?;
    let config = world.pod("over");
    let id = world.run_pod(&config).await?;
    for (n, destination) in ["/proc", "/proc/sys", "/proc/../proc/sys/", "/proc/self/attr"].iter().enumerate()
    {
        let mut container = world.script(&format!("over-{n}"), "true");
        container.mounts.push(Mount {
            container_path: (*destination).into(),
            host_path: volume.display().to_string(),
            ..Default::default()
        });
        match run_in(world, &id, &config, &container).await? {
            Ok(_) => reached.push(format!("a container with a volume on {destination} runs")),
            Err(error) => ensure!(error.contains("proc"), "{destination}: {error}"),
        }
    }
    Ok(reached)
}

/// E06, CVE-2021-30465, CVE-2024-45310: destinations in a volume that two containers share, one of which swaps them for a
/// symlink to the canary; some destinations exist, one is missing, one path is to be read-only.
async fn mounts_nowhere_else_while_destinations_are_swapped(world: &mut World) -> Outcome<Reached> {
    let canary = canary(world)?;
    let mut before = tree::canary(&canary)?;
    let image = pull_attacker(world).await?;
    let volume = world.directory.join("volume");
    fs::create_dir_all(volume.join("a/b"))?;
    std::os::unix::fs::symlink(&canary, volume.join("link"))?;
    let source = world.directory.join("source");
    fs::create_dir(&source)?;
    fs::write(source.join("file"), "of the source")?;
    let mount = |from: &std::path::Path, to: &str| Mount {
        container_path: to.into(),
        host_path: from.display().to_string(),
        ..Default::default()
    };
    let config = world.pod("swap");
    let id = world.run_pod(&config).await?;
    let mut swapper = pod::container("swapper", &image, &["attacker", "swap", "/vol/a", "/vol/link"]);
    swapper.mounts.push(mount(&volume, "/vol"));
    let swapper = world.launch(&id, &config, &swapper).await?;
    world.wrote(&swapper, "swapping").await?;
    let mut reached = Reached::new();
    let (mut ran, mut refused) = (0, 0);
    for n in 0..SWAPPED {
        let script = "for f in /proc/sysrq-trigger /proc/sys/kernel/domainname; do \
                      ( : >>$f ) 2>/dev/null && echo reached $f; done; true";
        let mut victim = pod::container(&format!("victim-{n}"), &image, &["sh", "-c", script]);
        victim.mounts = vec![
            mount(&volume, "/vol"),
            Mount { readonly: true, ..mount(&source, "/vol/a/b") },
            mount(&source, "/vol/a/made"),
            mount(&source.join("file"), "/vol/a/new/file"),
        ];
        let security = pod::security(&mut victim);
        security.readonly_paths = vec!["/proc/sys".into(), "/vol/a".into(), "/proc/sysrq-trigger".into()];
        let victim = world.create(&id, &config, &victim).await?;
        match world.start(&victim).await {
            Ok(()) => {
                ran += 1;
                let status = world.exited(&victim).await?;
                reached.extend(super::reached_in(&fs::read_to_string(&status.log_path)?));
            }
            Err(_) => refused += 1,
        }
        world.remove(&victim).await?;
        if n % 25 == 24 {
            look("a swapped destination", &canary, &mut before, &mut reached)?;
            if world.is_shown(&reached) {
                return Ok(reached);
            }
        }
    }
    ensure!(ran > 0, "a race that is always lost shows nothing: {refused} refused");
    ensure!(fs::read_to_string(source.join("file"))? == "of the source", "the source changed");
    Ok(reached)
}

/// E07, CVE-2026-41579, CVE-2026-88264: a /dev that is a symlink, and symlinks in the image's /dev and in a volume on it.
async fn makes_no_node_outside(world: &mut World) -> Outcome<Reached> {
    let canary = canary(world)?;
    let (up, at) = (climb(&canary), canary.display().to_string());
    let mut before = tree::canary(&canary)?;
    let pattern = fs::read("/proc/sys/kernel/core_pattern")?;
    let mut reached = Reached::new();
    let script = "for d in /dev/null:1:3 /dev/zero:1:5; do p=${d%%:*}; \
                  [ \"$(stat -c %t:%T $p 2>/dev/null)\" = \"${d#*:}\" ] || echo reached a container without $p; done; \
                  [ -d /dev/pts ] && [ -d /dev/shm ] || echo reached a container without /dev/pts";
    for (name, layer) in [
        ("dev-link", Layer::new().symlink("dev", &at)),
        ("dev-climb", Layer::new().symlink("dev", &up)),
        ("dev-null", Layer::new().dir("dev", 0o755).symlink("dev/null", &format!("{at}/file"))),
        ("dev-console", Layer::new().dir("dev", 0o755).symlink("dev/console", &format!("{at}/new"))),
        ("dev-shm", Layer::new().dir("dev", 0o755).symlink("dev/shm", &format!("{at}/new"))),
        ("dev-pts", Layer::new().dir("dev", 0o755).symlink("dev/pts", &at).symlink("dev/mqueue", &at)),
    ] {
        if let Ok(text) = run(world, name, layer, script).await? {
            reached.extend(super::reached_in(&text).map(|line| format!("{name}: {line}")));
        }
        look(name, &canary, &mut before, &mut reached)?;
    }
    let volume = world.directory.join("dev");
    fs::create_dir(&volume)?;
    for name in ["shm", "pts", "mqueue", "console"] {
        std::os::unix::fs::symlink(canary.join("new"), volume.join(name))?;
    }
    let config = world.pod("volume-on-dev");
    let id = world.run_pod(&config).await?;
    for tty in [false, true] {
        let mut container = world.script(&format!("tty-{tty}"), "true");
        container.tty = tty;
        container.mounts.push(Mount {
            container_path: "/dev".into(),
            host_path: volume.display().to_string(),
            ..Default::default()
        });
        drop(run_in(world, &id, &config, &container).await?);
        look("a volume on /dev", &canary, &mut before, &mut reached)?;
    }
    ensure!(fs::read("/proc/sys/kernel/core_pattern")? == pattern, "core_pattern changed");
    Ok(reached)
}

/// E07, CVE-2025-31133: a volume on /dev whose null device is a symlink to a file that a mask would then show.
async fn masks_with_the_null_device_only(world: &mut World) -> Outcome<Reached> {
    let volume = world.directory.join("dev");
    fs::create_dir(&volume)?;
    let secret = world.directory.join("secret");
    fs::write(&secret, "reached the file behind the false null device\n")?;
    let mount = |from: &std::path::Path, to: &str| Mount {
        container_path: to.into(),
        host_path: from.display().to_string(),
        ..Default::default()
    };
    let config = world.pod("null");
    let id = world.run_pod(&config).await?;
    let mut reached = Reached::new();
    for (name, target) in [("link", "/secret"), ("climb", "../../../secret"), ("none", "/nothing")] {
        let null = volume.join("null");
        let _ = fs::remove_file(&null);
        std::os::unix::fs::symlink(target, &null)?;
        let mut container = world.script(name, "cat /etc/motd");
        container.mounts = vec![mount(&volume, "/dev"), mount(&secret, "/secret")];
        pod::security(&mut container).masked_paths = vec!["/etc/motd".into()];
        if let Ok(text) = run_in(world, &id, &config, &container).await? {
            reached.extend(super::reached_in(&text).map(|line| format!("{name}: {line}")));
        }
    }
    Ok(reached)
}

/// E10, CVE-2024-5154: /etc and the files that Cove puts there are symlinks that lead out.
async fn writes_no_generated_file_outside(world: &mut World) -> Outcome<Reached> {
    let canary = canary(world)?;
    let mut before = tree::canary(&canary)?;
    let mut reached = Reached::new();
    let script =
        "for f in hosts hostname resolv.conf mtab; do echo x >>/etc/$f; done; chmod 777 /etc/hosts; true";
    for (n, target) in [climb(&canary), canary.display().to_string()].into_iter().enumerate() {
        if world.is_shown(&reached) {
            break;
        }
        let name = format!("etc-{n}");
        // Refused or not: the canary is what counts.
        drop(run(world, &name, Layer::new().symlink("etc", &target), script).await?);
        look(&name, &canary, &mut before, &mut reached)?;
        for file in ["hosts", "hostname", "resolv.conf", "mtab"] {
            let name = format!("{file}-{n}");
            let layer = Layer::new().symlink(&format!("etc/{file}"), &format!("{target}/file"));
            drop(run(world, &name, layer, script).await?);
            look(&name, &canary, &mut before, &mut reached)?;
        }
        let name = format!("run-{n}");
        drop(run(world, &name, Layer::new().symlink("run", &target), script).await?);
        look(&name, &canary, &mut before, &mut reached)?;
    }
    Ok(reached)
}

/// E11: VOLUMEs of an image behind symlinks that lead out. What is refused, and what is put inside, is
/// `hostile::keeps_volumes_of_the_image_inside`.
async fn makes_no_volume_outside(world: &mut World) -> Outcome<Reached> {
    let canary = canary(world)?;
    let mut before = tree::canary(&canary)?;
    let mut reached = Reached::new();
    for (n, target) in [canary.display().to_string(), climb(&canary)].into_iter().enumerate() {
        if world.is_shown(&reached) {
            break;
        }
        let name = format!("volume-{n}");
        let mut config = path();
        config["Volumes"] = json!({"/v/new": {}, "/v/sub": {}});
        let image = pull(world, &name, vec![Layer::new().symlink("v", &target)], config).await?;
        let pod = world.pod(&name);
        let id = world.run_pod(&pod).await?;
        let script = "echo x >/v/new/planted; echo x >/v/sub/planted";
        let container = pod::container("try", &image, &["/bin/sh", "-c", script]);
        // Refused or not: the canary is what counts.
        drop(run_in(world, &id, &pod, &container).await?);
        world.remove_pod(&id).await?;
        look(&name, &canary, &mut before, &mut reached)?;
    }
    Ok(reached)
}

/// E12, CVE-2026-33056 and its like: archives that write, link, chmod or white out outside of their layer. Their trees are
/// compared with what is right in `runtime/layer/tests`.
async fn unpacks_nothing_outside(world: &mut World) -> Outcome<Reached> {
    let canary = canary(world)?;
    let (up, at) = (climb(&canary), canary.display().to_string());
    let layers: Vec<(&str, Layer)> = vec![
        ("dotdot", Layer::new().file(&format!("{up}/new"), 0o644, "x")),
        ("absolute", Layer::new().file(&format!("{at}/new"), 0o644, "x")),
        ("through-symlink", Layer::new().symlink("d", &at).file("d/new", 0o644, "x")),
        ("through-climbing-symlink", Layer::new().symlink("d", &up).file("d/file", 0o644, "x")),
        ("chmod-through-symlink", Layer::new().symlink("d", &at).dir("d", 0o777)),
        ("chmod-file-through-symlink", Layer::new().symlink("f", &format!("{at}/file")).file("f", 0o777, "")),
        ("hardlink-out", Layer::new().hardlink("h", &format!("{at}/file")).file("h", 0o666, "x")),
        ("hardlink-climb", Layer::new().hardlink("h", &format!("{up}/file"))),
        (
            "hardlink-to-symlink",
            Layer::new().symlink("s", &format!("{at}/file")).hardlink("h", "s").file("h", 0o777, "x"),
        ),
        ("whiteout-dotdot", Layer::new().file("d/.wh...", 0o644, "")),
        ("whiteout-dot", Layer::new().file("d/.wh..", 0o644, "")),
        ("whiteout-empty", Layer::new().file("d/.wh.", 0o644, "")),
        ("whiteout-out", Layer::new().symlink("d", &at).file("d/.wh.file", 0o644, "")),
        ("opaque-out", Layer::new().symlink("d", &at).file("d/.wh..wh..opq", 0o644, "")),
        ("root-symlink", Layer::new().symlink(".", &at).file("new", 0o644, "x")),
        ("root-file", Layer::new().file("./", 0o777, "x")),
        ("symlinked-parent-deep", Layer::new().symlink("a", &at).file("a/b/c/d", 0o644, "x")),
    ];
    let mut before = tree::canary(&canary)?;
    let mut reached = Reached::new();
    for (name, layer) in layers {
        if world.is_shown(&reached) {
            break;
        }
        let made = image::build(vec![layer], json!({}))?;
        let reference = world.registry.push("e2e/hostile", name, &made)?;
        // Refused or unpacked within: both are right, and both leave the canary alone.
        drop(world.pull(&reference).await);
        look(name, &canary, &mut before, &mut reached)?;
    }
    Ok(reached)
}
