//! Image volumes (KEP-4639): the files of another image in a container, read-only.

use std::fs;

use cove_e2e::crictl::Crictl;
use cove_e2e::image::{self, Layer};
use cove_e2e::{Outcome, wait};
use k8s_cri::v1::*;
use serde_json::{Value, json};

use crate::ensure::Refused;
use crate::world::{End, World};

cases!(
    shows_another_image_read_only,
    shows_a_directory_of_it,
    refuses_what_cannot_be_mounted,
    keeps_the_image_while_a_record_names_it,
);

/// An image in two layers, of which the upper one hides a file of the lower one, and its id.
async fn data(world: &mut World, name: &str) -> Outcome<(String, String)> {
    let canary = world.directory.join("canary");
    fs::create_dir_all(&canary)?;
    let lower = Layer::new()
        .dir("etc", 0o755)
        .file("etc/conf", 0o644, "conf\n")
        .file("etc/gone", 0o644, "gone\n")
        .dir("etc/empty", 0o755)
        .dir("bin", 0o755)
        .file("bin/hello", 0o755, "#!/bin/sh\necho hello from the volume\n")
        .symlink("inside", "/etc")
        .symlink("outside", &canary.display().to_string())
        .symlink("climbs", &format!("../../../../../../../../../..{}", canary.display()));
    let upper = Layer::new().file("etc/.wh.gone", 0o644, "").file("mark", 0o644, name);
    let made = image::build(vec![lower, upper], json!({}))?;
    let reference = world.registry.push("e2e/data", name, &made)?;
    let id = world.pull(&reference).await?;
    Ok((reference, id))
}

fn volume(image: &str, at: &str) -> Mount {
    Mount {
        container_path: at.into(),
        readonly: true,
        image: Some(ImageSpec {
            image: image.into(),
            user_specified_image: "as the author wrote it".into(),
            annotations: [("k".to_owned(), "v".to_owned())].into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// crictl knows sub paths and ids in status, which the bindings of the cases are too old for.
fn crictl(world: &World) -> Outcome<Crictl> {
    Ok(Crictl::new(&world.place.as_ref().ok_or("needs a daemon of its own")?.socket()))
}

/// Creates a container with such a mount by crictl.
fn create(world: &World, sandbox: &str, script: &str, mounts: &Value) -> Outcome<String> {
    let pod = world.directory.join("pod.json");
    let config = world.directory.join("container.json");
    fs::write(&pod, json!({"metadata": {"name": "p", "uid": "u", "namespace": "n"}}).to_string())?;
    let container = json!({
        "metadata": {"name": "c"}, "image": {"image": world.image}, "command": ["sh", "-c", script],
        "log_path": "c.log", "linux": {}, "mounts": mounts,
    });
    fs::write(&config, container.to_string())?;
    crictl(world)?.run(&["create", sandbox, &config.display().to_string(), &pod.display().to_string()])
}

fn inspect(world: &World, container: &str) -> Outcome<Value> {
    let text = crictl(world)?.run(&["inspect", "-o", "json", container])?;
    Ok(serde_json::from_str::<Value>(&text)?["status"]["mounts"].take())
}

async fn shows_another_image_read_only(world: &mut World) -> Outcome {
    let (reference, image) = data(world, "whole").await?;
    let config = world.pod("whole");
    let id = world.run_pod(&config).await?;
    let host = world.directory.join("volume");
    fs::create_dir(&host)?;
    fs::write(host.join("file"), "of the host\n")?;
    let script = "cat /data/etc/conf; ls /data/etc; /data/bin/hello; touch /data/x /data/etc/conf 2>&1; \
                  cat /data/etc/empty/file; echo end; exec sleep 1000";
    let mut container = world.script("whole", script);
    let whole = volume(&reference, "/data");
    container.mounts.push(whole.clone());
    // By id, to a path that the image lacks.
    let by_id = volume(&image, "/made/on/the/way");
    container.mounts.push(by_id.clone());
    // On a directory of the image volume.
    let below = Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: "/data/etc/empty".into(),
        ..Default::default()
    };
    container.mounts.push(below.clone());
    let running = world.launch(&id, &config, &container).await?;
    let log = world.wrote(&running, "end").await?;
    let expected = "conf\nconf\nempty\nhello from the volume\ntouch: /data/x: Read-only file system\n\
                    touch: /data/etc/conf: Read-only file system\nof the host\nend\n";
    ensure_eq!(crate::world::log_text(&log)?, expected);
    let status = world.status(&running).await?;
    ensure_eq!(status.mounts, [whole, by_id, below]);
    let mounts = inspect(world, &running)?;
    ensure_eq!(
        (&mounts[0]["image"]["imageRef"], &mounts[1]["image"]["imageRef"]),
        (&json!(image), &json!(image))
    );
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let root = world.directory.join("root").display().to_string();
    ensure!(!mounts.contains(&root), "the host's mount table has grown: {mounts}");
    let rights =
        world.exec(&running, &["grep", "-o", " /data ro,nosuid,nodev", "/proc/self/mountinfo"]).await?;
    ensure_eq!(rights.exit_code, 0);
    Ok(())
}

async fn shows_a_directory_of_it(world: &mut World) -> Outcome {
    let (reference, image) = data(world, "part").await?;
    let config = world.pod("part");
    let id = world.run_pod(&config).await?;
    let script = "ls /conf /link; touch /conf/x 2>&1; /bin-of-it/hello 2>&1; /no-exec/hello 2>&1";
    let mount = |at: &str, sub_path: &str, options: &[&str]| {
        json!({"container_path": at, "readonly": true, "image": {"image": reference}, "image_sub_path": sub_path,
               "mount_options": options})
    };
    let mounts = json!([
        mount("/conf", "etc", &[]),
        mount("/link", "inside/empty", &[]),
        mount("/bin-of-it", "bin", &[]),
        mount("/no-exec", "bin", &["noexec"]),
    ]);
    let created = create(world, &id, script, &mounts)?;
    let found = inspect(world, &created)?;
    ensure_eq!(
        (&found[0]["imageSubPath"], &found[0]["image"]["image"], &found[0]["image"]["imageRef"]),
        (&json!("etc"), &json!(reference), &json!(image))
    );
    world.start(&created).await?;
    let status = world.exited(&created).await?;
    let text = crate::world::log_text(&fs::read_to_string(&status.log_path)?)?;
    let expected = "/conf:\nconf\nempty\n\n/link:\ntouch: /conf/x: Read-only file system\nhello from the volume\n\
                    sh: /no-exec/hello: Permission denied\n";
    ensure_eq!(text, expected);
    Ok(())
}

async fn refuses_what_cannot_be_mounted(world: &mut World) -> Outcome {
    let (reference, _) = data(world, "refused").await?;
    let config = world.pod("refused");
    let id = world.run_pod(&config).await?;
    for path in ["missing", "etc/gone", "etc/conf", "outside", "climbs", "../etc", "/etc"] {
        let mounts = json!([{"container_path": "/data", "readonly": true, "image": {"image": reference},
                             "image_sub_path": path}]);
        let error = create(world, &id, "true", &mounts).err().ok_or(format!("{path} was taken"))?.to_string();
        ensure!(error.contains("desc = ImageVolumeMountFailed") && error.contains(path), "{path}: {error}");
    }
    let of_host = json!([{"container_path": "/data", "host_path": "/etc", "image_sub_path": "etc"}]);
    let error =
        create(world, &id, "true", &of_host).err().ok_or("a sub path of the host was taken")?.to_string();
    ensure!(error.contains("image_sub_path"), "{error}");
    let good = volume(&reference, "/data");
    let absent = format!("{}/e2e/absent:1", world.registry.host);
    for (mount, named) in [
        (volume(&absent, "/data"), "absent"),
        (volume("", "/data"), "image.image"),
        (Mount { readonly: false, ..good.clone() }, "readonly"),
        (Mount { host_path: "/etc".into(), ..good.clone() }, "host_path"),
        (Mount { propagation: MountPropagation::PropagationBidirectional.into(), ..good }, "propagation"),
    ] {
        let mut container = world.script("refused", "true");
        container.mounts.push(mount.clone());
        let refused = world.create(&id, &config, &container).await.refused()?;
        ensure!(refused.message().starts_with("ImageVolumeMountFailed"), "{mount:?}: {refused}");
        ensure!(refused.message().contains(named), "{mount:?}: {refused}");
        ensure!(refused.code() != tonic::Code::Unimplemented, "{mount:?}: {refused}");
    }
    ensure!(world.containers().await?.is_empty(), "a container that was refused is there");
    Ok(())
}

async fn keeps_the_image_while_a_record_names_it(world: &mut World) -> Outcome {
    let layers = world.directory.join("root/images/layers");
    let count = || Ok::<_, std::io::Error>(fs::read_dir(&layers)?.count());
    let config = world.pod("kept");
    let id = world.run_pod(&config).await?;
    let before = count()?;
    let (reference, image) = data(world, "let-go").await?;
    let mut container = world.script("let-go", "true");
    container.mounts.push(volume(&reference, "/data"));
    let created = world.create(&id, &config, &container).await?;
    let spec = Some(ImageSpec { image, ..Default::default() });
    world.cri.images.remove_image(RemoveImageRequest { image: spec }).await?;
    ensure!(count()? > before, "layers that a container needs are gone");
    world.remove(&created).await?;
    wait::until("the layers of the removed image to go", crate::world::SOON, || {
        Ok((count()? == before).then_some(()))
    })?;

    let (reference, image) = data(world, "kept").await?;
    let held = count()?;
    let mut container = world.script("kept", "cat /data/etc/conf; exec sleep 1000");
    container.mounts.push(volume(&reference, "/data"));
    let created = world.create(&id, &config, &container).await?;
    let spec = Some(ImageSpec { image: image.clone(), ..Default::default() });
    world.cri.images.remove_image(RemoveImageRequest { image: spec.clone() }).await?;
    let found = world.cri.images.image_status(ImageStatusRequest { image: spec, verbose: false }).await?;
    ensure!(found.into_inner().image.is_none(), "removed is invisible");
    let mut other = world.script("other", "true");
    other.mounts.push(volume(&image, "/data"));
    world.create(&id, &config, &other).await.refused()?;
    world.restart(End::Kill).await?;
    // Shims are taken hold of while calls are answered already.
    let cri = world.cri.clone();
    wait::until_async("the container to start", crate::world::SOON, || {
        let mut cri = cri.clone();
        let request = StartContainerRequest { container_id: created.clone() };
        async move {
            match cri.runtime.start_container(request).await {
                Ok(_) => Ok(Some(())),
                Err(status) if status.message().contains("its shim must live") => Ok(None),
                Err(status) => Err(status.into()),
            }
        }
    })
    .await?;
    world.wrote(&created, "conf").await?;
    ensure_eq!(count()?, held);
    let mounts = world.status(&created).await?.mounts;
    ensure_eq!(mounts, [volume(&reference, "/data")]);
    ensure_eq!(inspect(world, &created)?[0]["image"]["imageRef"], json!(image));
    Ok(())
}
