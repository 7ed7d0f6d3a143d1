//! Images that try to reach the host: whatever they do, a canary outside stays byte-identical.

use std::fs;
use std::path::Path;

use cove_e2e::image::{self, Layer};
use cove_e2e::{Outcome, pod, tree};
use serde_json::json;

use crate::world::World;

cases!(
    unpacks_nothing_outside_the_layer,
    writes_no_generated_file_through_a_symlink,
    keeps_volumes_of_the_image_inside,
    refuses_proc_and_sys_that_are_no_directories,
    makes_no_device_outside,
    reads_no_hostile_passwd,
    keeps_the_working_directory_inside,
);

fn canary(world: &World) -> Outcome<std::path::PathBuf> {
    let canary = world.directory.join("canary");
    fs::create_dir_all(canary.join("sub"))?;
    fs::write(canary.join("file"), "untouched")?;
    fs::write(canary.join("sub/file"), "untouched too")?;
    Ok(canary)
}

/// Names in a tar header are at most 100 bytes; the canary's path is short enough, climbing from anywhere.
fn climb(path: &Path) -> String {
    format!("../../../../../../../../../../..{}", path.display())
}

async fn unpacks_nothing_outside_the_layer(world: &mut World) -> Outcome {
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
    let before = tree::canary(&canary)?;
    for (name, layer) in layers {
        let made = image::build(vec![layer], json!({}))?;
        let reference = world.registry.push("e2e/hostile", name, &made)?;
        // Refused or unpacked within: both are right, and both leave the canary alone.
        let outcome = world.pull(&reference).await;
        ensure!(tree::canary(&canary)? == before, "{name} reached the canary ({outcome:?})");
    }
    Ok(())
}

/// Runs `true` in an image with these layers over busybox; refused or not, the canary stays.
async fn try_to_run(
    world: &mut World,
    name: &str,
    layer: Layer,
    config: serde_json::Value,
) -> Outcome<Result<String, String>> {
    let canary = canary(world)?;
    let before = tree::canary(&canary)?;
    let made = image::build(vec![image::busybox()?, layer], config)?;
    let reference = world.registry.push("e2e/hostile-run", name, &made)?;
    world.pull(&reference).await?;
    let mut pod = world.pod(name);
    pod.hostname = "written-by-cove".into();
    let id = world.run_pod(&pod).await?;
    let script = "hostname; for f in hosts hostname resolv.conf mtab; do echo x >>/etc/$f; done; chmod 777 /etc/hosts; \
                  ls /v /v/.. 2>&1; head -c 20 /v/file 2>&1; echo y >/dev/console; cat /dev/null; pwd; echo done";
    let container = pod::container("try", &reference, &["/bin/sh", "-c", script]);
    let outcome = match world.create(&id, &pod, &container).await {
        Err(error) => Err(error.message().to_owned()),
        Ok(created) => match world.start(&created).await {
            Err(error) => Err(error.message().to_owned()),
            Ok(()) => {
                let status = world.exited(&created).await?;
                Ok(crate::world::log_text(&fs::read_to_string(&status.log_path)?)?)
            }
        },
    };
    ensure!(tree::canary(&canary)? == before, "{name} reached the canary ({outcome:?})");
    world.remove_pod(&id).await?;
    Ok(outcome)
}

fn path() -> serde_json::Value {
    json!({"Env": ["PATH=/bin"]})
}

async fn writes_no_generated_file_through_a_symlink(world: &mut World) -> Outcome {
    let canary = canary(world)?;
    for (n, target) in [climb(&canary), canary.display().to_string()].into_iter().enumerate() {
        // CVE-2024-5154: /etc itself leads out.
        let outcome =
            try_to_run(world, &format!("etc-{n}"), Layer::new().symlink("etc", &target), path()).await?;
        ensure!(outcome.as_ref().map_or(true, |text| text.contains("done")), "{outcome:?}");
        for file in ["hosts", "hostname", "resolv.conf", "mtab"] {
            let layer = Layer::new().symlink(&format!("etc/{file}"), &format!("{target}/file"));
            // Refused or not: the canary is what counts, and it was looked at.
            drop(try_to_run(world, &format!("{file}-{n}"), layer, path()).await?);
        }
    }
    Ok(())
}

async fn keeps_volumes_of_the_image_inside(world: &mut World) -> Outcome {
    let canary = canary(world)?;
    for (n, volume) in [climb(&canary), canary.display().to_string(), "/v".into(), "/proc".into(), "/".into()]
        .into_iter()
        .enumerate()
    {
        let layer = Layer::new().symlink("v", &canary.display().to_string());
        let config = json!({"Env": ["PATH=/bin"], "Volumes": {volume.as_str(): {}}});
        if let Ok(text) = try_to_run(world, &format!("volume-{n}"), layer, config).await? {
            ensure!(!text.contains("untouched"), "volume {volume}: the canary's content came out: {text}");
        }
    }
    Ok(())
}

async fn refuses_proc_and_sys_that_are_no_directories(world: &mut World) -> Outcome {
    for (name, layer) in [
        ("proc-link", Layer::new().symlink("proc", "/bad-proc").dir("bad-proc", 0o755)),
        ("sys-link", Layer::new().symlink("sys", "/x").dir("x", 0o755)),
        ("proc-file", Layer::new().file("proc", 0o644, "x")),
    ] {
        let error = try_to_run(world, name, layer, path()).await?.err().ok_or(format!("{name} ran"))?;
        ensure!(error.contains("/proc") || error.contains("/sys"), "{name}: {error}");
    }
    Ok(())
}

async fn makes_no_device_outside(world: &mut World) -> Outcome {
    let canary = canary(world)?;
    let (up, at) = (climb(&canary), canary.display().to_string());
    let pattern = fs::read("/proc/sys/kernel/core_pattern")?;
    for (name, layer) in [
        ("dev-link", Layer::new().symlink("dev", &at)),
        ("dev-climb", Layer::new().symlink("dev", &up)),
        ("dev-null", Layer::new().dir("dev", 0o755).symlink("dev/null", "/proc/sys/kernel/core_pattern")),
        ("dev-console", Layer::new().dir("dev", 0o755).symlink("dev/console", &format!("{at}/new"))),
        ("dev-shm", Layer::new().dir("dev", 0o755).symlink("dev/shm", &at)),
        ("dev-pts", Layer::new().dir("dev", 0o755).symlink("dev/pts", &at).symlink("dev/mqueue", &at)),
    ] {
        let outcome = try_to_run(world, name, layer, path()).await?;
        ensure!(
            fs::read("/proc/sys/kernel/core_pattern")? == pattern,
            "{name}: core_pattern changed ({outcome:?})"
        );
    }
    Ok(())
}

async fn reads_no_hostile_passwd(world: &mut World) -> Outcome {
    let canary = canary(world)?;
    for (name, layer) in [
        ("passwd-fifo", Layer::new().fifo("etc/passwd", 0o644)),
        ("passwd-link", Layer::new().symlink("etc/passwd", &format!("{}/file", canary.display()))),
        ("passwd-dir", Layer::new().dir("etc/passwd", 0o755)),
        ("passwd-wrap", Layer::new().file("etc/passwd", 0o644, "app:x:4294967296:0::/:/bin/sh\n")),
        ("passwd-digits", Layer::new().file("etc/passwd", 0o644, "4294967296:x:0:0::/:/bin/sh\n")),
    ] {
        let user = if name == "passwd-digits" { "4294967296" } else { "app" };
        let began = std::time::Instant::now();
        let outcome = try_to_run(world, name, layer, json!({"Env": ["PATH=/bin"], "User": user})).await?;
        let error = outcome.err().ok_or(format!("{name} ran"))?;
        ensure!(error.contains(user) || error.contains("/etc/passwd"), "{name}: {error}");
        ensure!(began.elapsed() < crate::world::SOON, "{name} took {:?}", began.elapsed());
    }
    Ok(())
}

async fn keeps_the_working_directory_inside(world: &mut World) -> Outcome {
    let pod = world.pod("cwd");
    let id = world.run_pod(&pod).await?;
    for n in 0..40 {
        for process in ["self", "1"] {
            let mut container = world.script(&format!("cwd-{process}-{n}"), "ls ../../../../canary; pwd");
            container.working_dir = format!("/proc/{process}/fd/{n}");
            let created = world.create(&id, &pod, &container).await?;
            if world.start(&created).await.is_ok() {
                let status = world.exited(&created).await?;
                let text = crate::world::log_text(&fs::read_to_string(&status.log_path)?)?;
                ensure!(text.contains("No such file"), "{}: {text}", container.working_dir);
            }
            world.remove(&created).await?;
        }
    }
    Ok(())
}
