//! Images that try to reach the host: whatever they do, a canary outside stays byte-identical. More of them, with their
//! controls, are in the room `escape`.

use std::fs;
use std::path::Path;

use cove_e2e::image::{self, Layer};
use cove_e2e::{Outcome, pod, tree};
use serde_json::json;

use crate::world::World;

cases!(keeps_volumes_of_the_image_inside, reads_no_hostile_passwd,);

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
