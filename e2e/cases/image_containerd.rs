//! `cove image import --from containerd`: the images of a real containerd, and what cannot come.

use std::fs;
use std::os::unix::net::UnixListener;

use cove_e2e::containerd::Containerd;
use cove_e2e::image::{self, Blob, Layer};
use cove_e2e::relay::Relay;
use cove_e2e::{Outcome, archive};
use k8s_cri::v1::*;
use serde_json::json;

use crate::image_command::{find, is_tidy, list, run, two_layers, works};
use crate::world::World;

cases!(
    brings_over_what_a_kubelet_has_pulled,
    names_what_cannot_come_and_brings_the_others,
    says_what_is_wrong_with_a_containerd,
);

/// What nothing but documents and answers may take.
const LITTLE: u64 = 100_000;

fn pull(reference: &str) -> PullImageRequest {
    let image = ImageSpec { image: reference.into(), ..Default::default() };
    PullImageRequest { image: Some(image), ..Default::default() }
}

async fn brings_over_what_a_kubelet_has_pulled(world: &mut World) -> Outcome {
    let layers = vec![image::busybox()?, Layer::new().file("said", 0o644, "brought over\n")];
    let app = image::build(layers, json!({"Env": ["PATH=/bin"]}))?;
    let references = [
        world.registry.push("e2e/app", "1", &app)?,
        world.registry.push("e2e/app", "again", &app)?,
        world.registry.push("e2e/pause", "1", &two_layers("pinned")?)?,
    ];
    // What a pull gives, to compare with.
    for reference in &references {
        world.pull(reference).await?;
    }
    let mut pulled = Vec::new();
    for reference in &references {
        pulled.push(find(world, reference).await?.ok_or("not pulled")?);
    }
    works(world, &["rm", &references[0], &references[2]], b"")?;

    let containerd = Containerd::start(&world.directory.join("containerd"), &references[2])?;
    let mut cri = containerd.connect().await?;
    for reference in &references {
        cri.images.pull_image(pull(reference)).await?;
    }
    let theirs = cri.images.list_images(ListImagesRequest { filter: None }).await?.into_inner().images;
    let relay = Relay::start(world.directory.join("relay.sock"), &containerd.socket)?;
    let address = relay.socket.to_str().ok_or("a path")?;
    let words = ["import", "--from", "containerd", "--address", address];
    let before = list(world).await?.len();
    let (out, _) = works(world, &words, b"")?;
    ensure_eq!(out.lines().count(), 2);
    ensure_eq!(list(world).await?.len(), before + 2);
    let (_, received) = relay.taken();
    ensure!(received > 5 << 20, "{received} bytes brought two images over");
    for (reference, pulled) in references.iter().zip(&pulled) {
        let ours = find(world, reference).await?.ok_or(format!("{reference} did not come"))?;
        ensure_eq!(
            (&ours.id, &ours.repo_tags, &ours.repo_digests),
            (&pulled.id, &pulled.repo_tags, &pulled.repo_digests)
        );
        let theirs = theirs.iter().find(|image| image.id == ours.id).ok_or("containerd has another id")?;
        let sorted = |names: &[String]| std::collections::BTreeSet::from_iter(names.iter().cloned());
        ensure_eq!(sorted(&ours.repo_tags), sorted(&theirs.repo_tags));
        ensure_eq!(sorted(&ours.repo_digests), sorted(&theirs.repo_digests));
        ensure_eq!(ours.pinned, *reference == references[2]);
        ensure_eq!(theirs.pinned, ours.pinned);
    }
    is_tidy(world)?;

    let pod = world.pod("brought");
    let sandbox = world.run_pod(&pod).await?;
    let config = cove_e2e::pod::container("c", &references[0], &["cat", "/said"]);
    let (status, text) = world.output(&sandbox, &pod, &config).await?;
    ensure_eq!((status.exit_code, text.as_str()), (0, "brought over\n"));

    // Again: no layer is read, neither of an image that is there nor of one whose layers are.
    works(world, &words, b"")?;
    works(world, &["rm", &references[0]], b"")?;
    works(world, &[&words[..], &["--pinned", &references[1]]].concat(), b"")?;
    let (_, received) = relay.taken();
    ensure!(received < LITTLE, "{received} bytes were read again");
    let ours = find(world, &references[0]).await?.ok_or("an image comes with all its names")?;
    ensure!(ours.pinned, "--pinned pins");
    is_tidy(world)
}

/// The same image for a machine that there is not.
fn foreign(made: &image::Image) -> Outcome<image::Image> {
    let mut blobs = made.blobs.clone();
    let old = blobs.pop().ok_or("an image without a config")?;
    let new = Blob::new(String::from_utf8(old.bytes.clone())?.replace("amd64", "riscv").into_bytes());
    let manifest = String::from_utf8(made.manifest.bytes.clone())?.replace(&old.digest, &new.digest);
    let id = new.digest.clone();
    blobs.push(new);
    Ok(image::Image { blobs, manifest: Blob::new(manifest.into_bytes()), id })
}

async fn names_what_cannot_come_and_brings_the_others(world: &mut World) -> Outcome {
    let containerd = Containerd::start(&world.directory.join("containerd"), "")?;
    containerd.connect().await?;
    let good = two_layers("good")?;
    let cut = two_layers("cut")?;
    let foreign = foreign(&two_layers("foreign")?)?;
    for (name, made) in [("r.io/good:1", &good), ("r.io/cut:1", &cut), ("r.io/foreign:1", &foreign)] {
        let file = world.directory.join("import.tar");
        let members = archive::layout(made, &json!({"io.containerd.image.name": name}))?;
        fs::write(&file, archive::tar(&members))?;
        let file = file.to_str().ok_or("a path")?;
        containerd.ctr("moved", &["images", "import", "--local", "--no-unpack", "--all-platforms", file])?;
    }
    // As discard_unpacked_layers leaves it.
    containerd.ctr("moved", &["content", "rm", &cut.blobs[0].digest])?;
    let address = containerd.socket.to_str().ok_or("a path")?;
    let words = ["import", "--from", "containerd", "--namespace", "moved", "--address", address];
    let before = list(world).await?.len();
    let asked: [&[&str]; 2] = [&[], &["r.io/good:1", "r.io/cut:1", "r.io/foreign:1", "r.io/none:1"]];
    for names in asked {
        let output = run(world, &[&words[..], names].concat(), b"")?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure_eq!(output.status.code(), Some(1));
        ensure!(text.contains("passed over: r.io/cut:1: ") && text.contains(&cut.blobs[0].digest), "{text}");
        ensure!(text.contains("discard_unpacked_layers"), "{text}");
        ensure!(text.contains("passed over: r.io/foreign:1: ") && text.contains("linux on amd64"), "{text}");
        ensure_eq!(text.contains("passed over: r.io/none:1: "), !names.is_empty());
        let count = if names.is_empty() { "2 of 3 images" } else { "3 of 4 images" };
        ensure!(text.contains(count), "{text}");
        ensure_eq!(String::from_utf8(output.stdout)?, format!("{} r.io/good:1\n", good.id));
        ensure_eq!(list(world).await?.len(), before + 1);
        works(world, &["rm", "r.io/good:1"], b"")?;
        is_tidy(world)?;
    }
    // Layers that Cove has need not be in containerd.
    let reference = world.registry.push("e2e/cut", "1", &cut)?;
    world.pull(&reference).await?;
    works(world, &[&words[..], &["r.io/cut:1"]].concat(), b"")?;
    ensure_eq!(find(world, "r.io/cut:1").await?.ok_or("it did not come")?.id, cut.id);
    Ok(())
}

async fn says_what_is_wrong_with_a_containerd(world: &mut World) -> Outcome {
    let containerd = Containerd::start(&world.directory.join("containerd"), "")?;
    containerd.connect().await?;
    let path = |name: &str| world.directory.join(name).to_string_lossy().into_owned();
    // Bound once, and nobody listens any more.
    drop(UnixListener::bind(path("dead.sock"))?);
    let cove = world.place.as_ref().ok_or("no place")?.socket().to_string_lossy().into_owned();
    let real = containerd.socket.to_string_lossy().into_owned();
    containerd.ctr("k8s.io", &["namespaces", "create", "moby"])?;
    let table: [(&str, &str, &str); 5] = [
        (&path("nothing.sock"), "k8s.io", "no such socket; --address names another"),
        (&path("dead.sock"), "k8s.io", "nobody listens on this socket"),
        (&cove, "k8s.io", "containerd at"),
        (&real, "moby", "has no images in namespace moby; its namespaces are: "),
        (&real, "no\nsense", "can be no namespace"),
    ];
    for (address, namespace, expected) in table {
        let words = ["import", "--from", "containerd", "--address", address, "--namespace", namespace];
        let output = run(world, &words, b"")?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && text.contains(expected), "{expected}: {text}");
    }
    Ok(())
}
