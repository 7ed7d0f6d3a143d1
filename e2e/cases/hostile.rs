//! Images that try to reach the host: whatever they do, a canary outside stays byte-identical. More of them, with their
//! controls, are in the room `escape`.

use std::fs;

use cove_e2e::image::{self, Layer};
use cove_e2e::{Outcome, pod, tree};
use k8s_cri::v1::*;
use serde_json::json;

use crate::escape::{canary, climb};
use crate::world::World;

cases!(
    keeps_volumes_of_the_image_inside,
    makes_no_device_outside,
    gives_no_file_of_the_host_as_a_stream,
    reads_no_hostile_passwd,
    reads_accounts_within_bounds,
);

/// Runs a script in an image with these layers over busybox; refused or not, the canary stays.
async fn try_to_run(
    world: &mut World,
    name: &str,
    layer: Layer,
    config: serde_json::Value,
) -> Outcome<Result<String, String>> {
    try_with(world, name, layer, config, |_| {}).await
}

/// The same, in a container that `change` makes a special one.
async fn try_with(
    world: &mut World,
    name: &str,
    layer: Layer,
    config: serde_json::Value,
    change: impl FnOnce(&mut ContainerConfig),
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
                  ls /v /v/.. 2>&1; head -c 20 /v/file 2>&1; echo y >/dev/console; cat /dev/null; pwd; \
                  stat -Lc 'null is %t:%T' /dev/null; for n in 0 1 2; do readlink /proc/self/fd/$n; done; echo done";
    let mut container = pod::container("try", &reference, &["/bin/sh", "-c", script]);
    change(&mut container);
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

/// Each as an image's VOLUME.
async fn keeps_volumes_of_the_image_inside(world: &mut World) -> Outcome {
    let canary = canary(world)?;
    let (up, at) = (climb(&canary), canary.display().to_string());
    let long = "/x".repeat(3000);
    let component = format!("/{}", "x".repeat(300));
    for (n, (volume, may_run)) in [
        (up.as_str(), true),
        (&format!("/{up}"), true),
        (&at, true),
        ("/v", true),
        ("/v/sub", true),
        ("/up", true),
        ("/nested", true),
        ("/loop/x", false),
        ("/", false),
        ("", false),
        ("/proc", false),
        ("/proc/sys", false),
        ("/to-proc", false),
        ("/dev", false),
        ("/a\0b", false),
        (&long, false),
        (&component, false),
    ]
    .into_iter()
    .enumerate()
    {
        let layer = Layer::new()
            .symlink("v", &at)
            .symlink("up", &up)
            .dir("nested", 0o755)
            .symlink("nested/v", &at)
            .symlink("nested/self", "..")
            .symlink("loop", "loop")
            .symlink("to-proc", "/proc");
        let config = json!({"Env": ["PATH=/bin"], "Volumes": {volume: {}}});
        let outcome = try_to_run(world, &format!("volume-{n}"), layer, config).await?;
        ensure!(outcome.is_ok() == may_run, "volume {volume:?}: {outcome:?}");
        match outcome {
            Ok(text) => {
                ensure!(!text.contains("untouched"), "volume {volume:?}: the canary came out: {text}");
                ensure!(text.contains("done"), "volume {volume:?}: {text}");
            }
            // A path that is too long is not repeated whole.
            Err(error) => ensure!(
                error.contains(volume) || error.contains("/proc") || error.contains("volume"),
                "volume {volume:?}: {error}"
            ),
        }
    }
    Ok(())
}

async fn makes_no_device_outside(world: &mut World) -> Outcome {
    let canary = canary(world)?;
    let (up, at) = (climb(&canary), canary.display().to_string());
    let pattern = fs::read("/proc/sys/kernel/core_pattern")?;
    let dev = || Layer::new().dir("dev", 0o755);
    // Which of them are refused, and by which path.
    for (name, layer, refused) in [
        ("dev-link", Layer::new().symlink("dev", &at), Some("/dev")),
        ("dev-climb", Layer::new().symlink("dev", &up), Some("/dev")),
        ("dev-file", Layer::new().file("dev", 0o644, ""), Some("/dev")),
        ("dev-null", dev().symlink("dev/null", "/proc/sys/kernel/core_pattern"), None),
        ("dev-null-dir", dev().dir("dev/null", 0o755), None),
        ("dev-console", dev().symlink("dev/console", &format!("{at}/new")), None),
        ("dev-console-up", dev().symlink("dev/console", &format!("{up}/new")), None),
        ("dev-shm", dev().symlink("dev/shm", &at), None),
        ("dev-pts", dev().symlink("dev/pts", &at).symlink("dev/mqueue", &at), None),
        (
            "dev-files",
            dev().file("dev/pts", 0o644, "").file("dev/shm", 0o644, "").file("dev/mqueue", 0o644, ""),
            None,
        ),
    ] {
        for tty in [false, true] {
            let name = format!("{name}-{tty}");
            let outcome =
                try_with(world, &name, layer.clone(), path(), |container| container.tty = tty).await?;
            ensure!(
                fs::read("/proc/sys/kernel/core_pattern")? == pattern,
                "{name}: core_pattern changed ({outcome:?})"
            );
            match (&outcome, refused) {
                (Err(error), Some(path)) => ensure!(error.contains(path), "{name}: {error}"),
                (Ok(text), None) => {
                    ensure!(text.contains("null is 1:3"), "{name}: /dev/null is no null device: {text}");
                    ensure!(
                        !tty || text.contains("/dev/pts/"),
                        "{name}: its terminal is not of its devpts: {text}"
                    );
                }
                other => return Err(format!("{name}: {other:?}").into()),
            }
        }
    }
    Ok(())
}

/// The image's /dev/null leads to a file of the host's that the container may write to: its streams are not that file,
/// which keeps its owner.
async fn gives_no_file_of_the_host_as_a_stream(world: &mut World) -> Outcome {
    let shared = world.directory.join("shared");
    fs::create_dir_all(&shared)?;
    fs::write(shared.join("file"), "shared\n")?;
    let before = tree::canary(&shared)?;
    let layer = Layer::new().dir("dev", 0o755).symlink("dev/null", "/shared/file");
    let outcome = try_with(world, "stream", layer, path(), |container| {
        pod::security(container).run_as_user = Some(Int64Value { value: 1000 });
        container.mounts.push(Mount {
            host_path: shared.join("file").to_string_lossy().into_owned(),
            container_path: "/shared/file".into(),
            ..Default::default()
        });
    })
    .await?;
    let text = outcome?;
    ensure!(text.contains("null is 1:3") && !text.contains("/shared"), "{text}");
    ensure!(tree::canary(&shared)? == before, "the file of the host was changed");
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

/// E35: accounts that are no files, too long, or too many. A container's memory is 24 MiB here, and whoever reads for it
/// is within it.
async fn reads_accounts_within_bounds(world: &mut World) -> Outcome {
    let line = "app:x:1000:1000:app:/:/bin/sh\n";
    let lines = |text: String, bytes: usize| text.repeat(bytes / text.len());
    let comment = format!("# {}\n", "x".repeat(61));
    let near =
        |text: &str| format!("{}{text}", lines(comment.clone(), (10 << 20) - text.len() - comment.len()));
    let groups: String = (1..600_000).map(|n| format!("g:x:{n}:app\n")).collect();
    let passwd = || Layer::new().file("etc/passwd", 0o644, line);
    let limit = "10485760";
    for (name, layer, refused) in [
        ("passwd-zero", Layer::new().device("etc/passwd", 1, 5), Some("/etc/passwd")),
        ("passwd-kmsg", Layer::new().symlink("etc/passwd", "/proc/kmsg"), Some("app")),
        ("passwd-line", Layer::new().file("etc/passwd", 0o644, "x".repeat(64 << 20)), Some(limit)),
        ("passwd-long", Layer::new().file("etc/passwd", 0o644, near("") + &comment + &comment), Some(limit)),
        ("group-zero", passwd().device("etc/group", 1, 5), Some("/etc/group")),
        ("group-line", passwd().file("etc/group", 0o644, "x".repeat(64 << 20)), Some(limit)),
        (
            "group-many",
            passwd().file("etc/group", 0o644, groups.get(..10 << 20).unwrap_or(&groups)),
            Some("groups, more than"),
        ),
        (
            "full",
            Layer::new().file("etc/passwd", 0o644, near(line)).file(
                "etc/group",
                0o644,
                near("app:x:1000:\n"),
            ),
            None,
        ),
    ] {
        let began = std::time::Instant::now();
        let config = json!({"Env": ["PATH=/bin"], "User": "app"});
        let outcome = try_with(world, name, layer, config, |container| {
            pod::resources(container).memory_limit_in_bytes = 24 << 20;
        })
        .await?;
        match (&outcome, refused) {
            (Err(error), Some(part)) => ensure!(error.contains(part), "{name}: {part:?} is not in {error}"),
            (Ok(text), None) => ensure!(text.contains("done"), "{name}: {text}"),
            other => return Err(format!("{name}: {other:?}").into()),
        }
        ensure!(began.elapsed() < crate::world::SOON, "{name} took {:?}", began.elapsed());
    }
    Ok(())
}
