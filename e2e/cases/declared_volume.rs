//! VOLUMEs that an image declares: what its users expect to be able to write, and find filled.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use cove_e2e::Outcome;
use cove_e2e::image::{self, Layer};
use k8s_cri::v1::*;
use serde_json::json;

use crate::world::World;

cases!(gives_each_container_its_own_copy, leaves_to_the_request_what_it_mounts,);

async fn image(world: &mut World, name: &str, volumes: &[&str]) -> Outcome<String> {
    let layer = Layer::new()
        .dir("data", 0o2770)
        .owner(1000, 50)
        .dir("data/sub", 0o755)
        .file("data/sub/file", 0o4755, "of the image\n")
        .owner(7, 8)
        .hardlink("data/same", "data/sub/file")
        .symlink("data/link", "sub/file");
    let volumes: serde_json::Map<_, _> = volumes.iter().map(|path| ((*path).to_owned(), json!({}))).collect();
    let config = json!({"Env": ["PATH=/bin"], "Volumes": volumes});
    let made = image::build(vec![image::busybox()?, image::accounts(), layer], config)?;
    let reference = world.registry.push("e2e/declared", name, &made)?;
    world.pull(&reference).await?;
    Ok(reference)
}

fn bundle(world: &World, container: &str) -> PathBuf {
    world.directory.join("root/containers").join(container)
}

async fn gives_each_container_its_own_copy(world: &mut World) -> Outcome {
    let reference = image(world, "own", &["/data", "/empty/new"]).await?;
    let config = world.pod("own");
    let id = world.run_pod(&config).await?;
    let script = "cd /data; ls; cat link; stat -c '%a %u %g' . same; stat -c %h same; stat -c '%a %u' /empty/new; \
                  echo mine >>link && touch /empty/new/x && rm same && echo written; touch /x 2>&1; exec sleep 1000";
    let expected = "link\nsame\nsub\nof the image\n2770 1000 50\n4755 7 8\n2\n755 0\nwritten\n\
                    touch: /x: Read-only file system\n";
    let mut containers = Vec::new();
    for name in ["one", "two"] {
        let mut container = cove_e2e::pod::container(name, &reference, &["sh", "-c", script]);
        cove_e2e::pod::security(&mut container).readonly_rootfs = true;
        let container = world.launch(&id, &config, &container).await?;
        let log = world.wrote(&container, "Read-only").await?;
        ensure_eq!(crate::world::log_text(&log)?, expected);
        // What the request did not ask for is not told of.
        ensure!(
            world.status(&container).await?.mounts.is_empty(),
            "a mount that was not asked for is in status"
        );
        containers.push(container);
    }
    for container in &containers {
        let volumes = bundle(world, container).join("volumes");
        ensure_eq!(fs::read_to_string(volumes.join("0/sub/file"))?, "of the image\nmine\n");
        ensure_eq!(fs::metadata(&volumes)?.mode() & 0o777, 0o700);
        ensure!(volumes.join("1/x").exists(), "the second volume is not where it is looked for");
        world.remove(container).await?;
        ensure!(!volumes.exists(), "volumes of a container that is gone are left");
    }
    Ok(())
}

async fn leaves_to_the_request_what_it_mounts(world: &mut World) -> Outcome {
    let volumes = ["/data", "/data/sub", "/dev/shm", "/sys/fs/cgroup", "/etc/hosts", "relative"];
    let reference = image(world, "asked", &volumes).await?;
    let config = world.pod("asked");
    let id = world.run_pod(&config).await?;
    let host = world.directory.join("volume");
    fs::create_dir(&host)?;
    let script = "ls -A /data; touch /data/by-container; stat -f -c %T /dev/shm /sys/fs/cgroup; grep -c localhost /etc/hosts; \
                  touch /relative/x && echo end";
    let mut container = cove_e2e::pod::container("asked", &reference, &["sh", "-c", script]);
    container.mounts.push(Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: "/data/".into(),
        ..Default::default()
    });
    let (status, text) = world.output(&id, &config, &container).await?;
    ensure_eq!(text, "tmpfs\ntmpfs\n2\nend\n");
    let made: Vec<_> =
        fs::read_dir(&host)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>()?;
    ensure_eq!(made, ["by-container"]);
    let volumes = bundle(world, &status.id).join("volumes");
    ensure_eq!(fs::read_dir(&volumes)?.count(), 1);
    Ok(())
}
