//! Images: pulled whole or not at all, known by one id, removed by any name.

use cove_e2e::Outcome;
use cove_e2e::image::{self, Layer};
use k8s_cri::v1::*;
use serde_json::{Value, json};

use crate::stream::crictl;
use crate::world::World;

cases!(
    has_one_id_everywhere,
    is_pulled_by_digest_without_tags,
    is_removed_by_any_name,
    tells_its_user,
    shows_its_config,
    applies_whiteouts_and_layers_in_order,
    survives_a_restart,
    stays_usable_while_a_container_holds_it,
    tells_what_it_takes_on_disk,
    is_pulled_once_by_many,
);

fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: image.into(), ..Default::default() })
}

async fn status(world: &mut World, image: &str) -> Outcome<Option<Image>> {
    let request = ImageStatusRequest { image: spec(image), verbose: false };
    Ok(world.cri.images.image_status(request).await?.into_inner().image)
}

async fn list(world: &mut World) -> Outcome<Vec<Image>> {
    Ok(world.cri.images.list_images(ListImagesRequest { filter: None }).await?.into_inner().images)
}

async fn remove(world: &mut World, image: &str) -> Outcome {
    world.cri.images.remove_image(RemoveImageRequest { image: spec(image) }).await?;
    Ok(())
}

pub(crate) fn small(text: &str) -> Outcome<image::Image> {
    image::build(vec![Layer::new().file("text", 0o644, text)], json!({"Cmd": ["/text"]}))
}

async fn has_one_id_everywhere(world: &mut World) -> Outcome {
    let made = small("one id")?;
    let reference = world.registry.push("e2e/one-id", "1", &made)?;
    let id = world.pull(&reference).await?;
    ensure_eq!(id, made.id);
    for name in [reference.clone(), id.clone(), id["sha256:".len()..].to_owned()] {
        let image = status(world, &name).await?.ok_or(format!("no status by {name}"))?;
        ensure_eq!((&image.id, &image.repo_tags), (&id, &vec![reference.clone()]));
        let digest = format!("{}@{}", reference.trim_end_matches(":1"), made.manifest.digest);
        ensure_eq!(image.repo_digests, [digest]);
        ensure!(image.size > 0, "{image:?}");
    }
    ensure!(list(world).await?.iter().any(|image| image.id == id), "not listed");
    let filter = Some(ImageFilter { image: spec(&reference) });
    let found = world.cri.images.list_images(ListImagesRequest { filter }).await?.into_inner().images;
    ensure_eq!(found.len(), 1);
    ensure!(status(world, "127.0.0.1:1/e2e/absent:1").await?.is_none(), "absent is an empty answer");
    Ok(())
}

async fn is_pulled_by_digest_without_tags(world: &mut World) -> Outcome {
    let made = small("by digest")?;
    let reference = world.registry.push("e2e/by-digest", "1", &made)?;
    let by_digest = format!("{}@{}", reference.trim_end_matches(":1"), made.manifest.digest);
    let id = world.pull(&by_digest).await?;
    let image = status(world, &id).await?.ok_or("no status")?;
    ensure!(image.repo_tags.is_empty(), "{image:?}");
    ensure_eq!(image.repo_digests, [by_digest]);
    Ok(())
}

async fn is_removed_by_any_name(world: &mut World) -> Outcome {
    let made = small("many names")?;
    let first = world.registry.push("e2e/names", "1", &made)?;
    let second = world.registry.push("e2e/names", "2", &made)?;
    for by in 0..3 {
        let id = world.pull(&first).await?;
        ensure_eq!(world.pull(&second).await?, id);
        let image = status(world, &id).await?.ok_or("no status")?;
        ensure_eq!(image.repo_tags, [first.clone(), second.clone()]);
        let name = [&first, &id, &image.repo_digests[0]][by].clone();
        remove(world, &name).await?;
        for name in [&first, &second, &id] {
            ensure!(
                status(world, name).await?.is_none(),
                "{name} is still there after removal by number {by}"
            );
        }
    }
    remove(world, &first).await?;
    remove(world, &format!("sha256:{}", "0".repeat(64))).await?;
    Ok(())
}

async fn tells_its_user(world: &mut World) -> Outcome {
    let cases = [
        ("1002", Some(1002), ""),
        ("www-data", None, "www-data"),
        ("1003:7", Some(1003), ""),
        ("app:app", None, "app"),
    ];
    for (n, (user, uid, username)) in cases.into_iter().enumerate() {
        let made = image::build(vec![Layer::new().file("n", 0o644, n.to_string())], json!({"User": user}))?;
        let id = world.pull(&world.registry.push("e2e/user", &n.to_string(), &made)?).await?;
        let image = status(world, &id).await?.ok_or("no status")?;
        let told = (image.uid.map(|uid| uid.value), image.username.as_str());
        ensure!(told == (uid, username), "{user}: {told:?}");
    }
    Ok(())
}

async fn shows_its_config(world: &mut World) -> Outcome {
    let layers = ["one", "two", "three"].map(|text| Layer::new().file(text, 0o644, text));
    let config = json!({"Env": ["A=b"], "Labels": {"of": "mine"}, "ExposedPorts": {"80/tcp": {}}});
    let reference = world.registry.push("e2e/shown", "1", &image::build(layers.to_vec(), config.clone())?)?;
    let id = world.pull(&reference).await?;
    let shown: Value = serde_json::from_str(&crictl(world)?.run(&["inspecti", "-o", "json", &id])?)?;
    let told = &shown["info"]["imageSpec"];
    for (key, value) in config.as_object().ok_or("no object")? {
        ensure_eq!(&told["config"][key], value);
    }
    // As image-spec's config.md defines it, by another implementation of the hash.
    let layers = told["rootfs"]["diff_ids"].as_array().ok_or("no layers")?;
    let mut chain = layers[0].as_str().ok_or("no text")?.to_owned();
    for layer in &layers[1..] {
        chain = image::digest(format!("{chain} {}", layer.as_str().ok_or("no text")?).as_bytes());
    }
    ensure_eq!((layers.len(), &shown["info"]["chainID"]), (3, &json!(chain)));
    let request = ImageStatusRequest { image: spec(&id), verbose: false };
    ensure!(world.cri.images.image_status(request).await?.into_inner().info.is_empty(), "nobody asked");
    Ok(())
}

async fn applies_whiteouts_and_layers_in_order(world: &mut World) -> Outcome {
    let made = image::build(
        vec![
            image::busybox()?,
            Layer::new()
                .dir("d", 0o755)
                .file("d/a", 0o644, "a1")
                .file("d/b", 0o644, "b1")
                .file("gone", 0o644, "x"),
            Layer::new().file("d/.wh.a", 0o644, "").file(".wh.gone", 0o644, "").file("d/b", 0o600, "b2"),
            Layer::new().dir("e", 0o755).file("e/old", 0o644, "x"),
            Layer::new().dir("e", 0o700).file("e/.wh..wh..opq", 0o644, "").file("e/new", 0o644, "y"),
        ],
        json!({"Env": ["PATH=/bin"]}),
    )?;
    let reference = world.registry.push("e2e/layers", "1", &made)?;
    world.pull(&reference).await?;
    let config = world.pod("layers");
    let id = world.run_pod(&config).await?;
    let script = "ls /d /e; cat /d/b; echo; stat -c %a /d/b /e /tmp; ls -d /gone /.wh* 2>&1 | grep -c such";
    let container = cove_e2e::pod::container("look", &reference, &["sh", "-c", script]);
    let (_, text) = world.output(&id, &config, &container).await?;
    ensure_eq!(text, "/d:\nb\n\n/e:\nnew\nb2\n600\n700\n1777\n2\n");
    Ok(())
}

async fn survives_a_restart(world: &mut World) -> Outcome {
    let id = world.pull(&world.image.clone()).await?;
    let before = status(world, &id).await?;
    world.restart(crate::world::End::Kill).await?;
    ensure_eq!(status(world, &id).await?, before);
    Ok(())
}

async fn stays_usable_while_a_container_holds_it(world: &mut World) -> Outcome {
    let made = image::build(
        vec![image::busybox()?, Layer::new().file("held", 0o644, "held\n")],
        json!({"Env": ["PATH=/bin"]}),
    )?;
    let reference = world.registry.push("e2e/held", "1", &made)?;
    let image_id = world.pull(&reference).await?;
    let config = world.pod("held");
    let id = world.run_pod(&config).await?;
    let container = cove_e2e::pod::container("hold", &reference, &["sleep", "1000"]);
    let created = world.create(&id, &config, &container).await?;
    remove(world, &reference).await?;
    ensure!(status(world, &image_id).await?.is_none(), "removed is invisible");
    world.start(&created).await?;
    let answer = world.exec(&created, &["cat", "/held"]).await?;
    ensure_eq!(answer.stdout, b"held\n");
    ensure_eq!(world.status(&created).await?.image_id, image_id);
    Ok(())
}

async fn tells_what_it_takes_on_disk(world: &mut World) -> Outcome {
    let info = world.cri.images.image_fs_info(ImageFsInfoRequest {}).await?.into_inner();
    let image = info.image_filesystems.first().ok_or("no image file system")?;
    let used = |usage: &FilesystemUsage| usage.used_bytes.as_ref().map_or(0, |bytes| bytes.value);
    let mountpoint = image.fs_id.as_ref().ok_or("no mountpoint")?.mountpoint.clone();
    ensure!(std::fs::exists(&mountpoint)? && image.timestamp > 0, "{image:?}");
    let before = used(image);
    ensure!(before > 1 << 20, "busybox alone takes 2 MB: {image:?}");
    let made = image::build(vec![Layer::new().file("big", 0o644, vec![7; 5 << 20])], json!({}))?;
    let id = world.pull(&world.registry.push("e2e/big", "1", &made)?).await?;
    let info = world.cri.images.image_fs_info(ImageFsInfoRequest {}).await?.into_inner();
    let grown = used(info.image_filesystems.first().ok_or("no image file system")?) - before;
    ensure!((5 << 20..6 << 20).contains(&grown), "grown by {grown}");
    remove(world, &id).await
}

async fn is_pulled_once_by_many(world: &mut World) -> Outcome {
    let made = image::build(vec![Layer::new().file("many", 0o644, vec![1; 1 << 20])], json!({}))?;
    let reference = world.registry.push("e2e/many", "1", &made)?;
    let mut pulls = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let mut cri = world.cri.clone();
        let request = PullImageRequest { image: spec(&reference), ..Default::default() };
        pulls.spawn(async move { cri.images.pull_image(request).await });
    }
    while let Some(pull) = pulls.join_next().await {
        ensure_eq!(pull??.into_inner().image_ref, made.id);
    }
    Ok(())
}
