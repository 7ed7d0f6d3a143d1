//! Images that lie or that are ambiguous (rows E28 to E30, E33 and E34 of docs/security.md): each is refused by
//! name, and nothing of it stays. What a real registry takes comes from one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cove_e2e::image::{self, INDEX, Layer, MANIFEST};
use cove_e2e::process::Peak;
use cove_e2e::registry::{self, Registry};
use cove_e2e::server::{Answer, Server};
use cove_e2e::{Outcome, tree, wait};
use k8s_cri::v1::*;
use serde_json::{Value, json};
use tonic::Code;

use crate::ensure::Refused;
use crate::escape::{canary, climb};
use crate::image_pull::{small, try_pull, whole};
use crate::world::{SOON, World};

cases!(
    takes_no_digest_for_a_path,
    names_what_is_not_what_it_says,
    refuses_manifests_that_are_indexes_too,
    refuses_headers_that_lie,
    lets_no_attribute_hide_or_rename,
);

/// What a hostile document may take of the daemon's memory (R28), in KiB.
pub(crate) const DOCUMENT: u64 = 32 << 10;
/// What the headers of an archive may take beside the pull itself, in KiB.
const HEADERS: u64 = 16 << 10;
/// A bomb is stopped well before this; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn store(world: &World) -> Outcome<PathBuf> {
    Ok(world.place.as_ref().ok_or("no place")?.root.join("images"))
}

pub(crate) fn pid(world: &World) -> Outcome<u32> {
    Ok(world.daemon.as_ref().ok_or("no daemon")?.pid())
}

/// The names of all files of the store.
pub(crate) fn names(world: &World) -> Outcome<BTreeSet<PathBuf>> {
    Ok(tree::canary(&store(world)?)?.into_keys().collect())
}

/// Nothing half-done lies there, and nothing that was not there before.
pub(crate) fn settles(world: &World, before: &BTreeSet<PathBuf>) -> Outcome {
    wait::until("the store to be as before", SOON, || {
        // What is just being removed may go between a listing and a look at it.
        Ok(names(world).ok().filter(|now| now == before).map(drop))
    })
}

/// A pull that must fail with all of these parts in its message, as the daemon's memory grows by `memory` KiB at most.
pub(crate) async fn fails(
    world: &World,
    reference: &str,
    parts: &[&str],
    memory: u64,
) -> Outcome<tonic::Status> {
    let (peak, began) = (Peak::from_now(pid(world)?)?, Instant::now());
    let status = try_pull(world, reference, None).await.refused()?;
    for part in parts {
        ensure!(status.message().contains(part), "{reference}: {part:?} is not in {status}");
    }
    ensure!(status.message().len() < 4096, "{reference}: {} bytes of message", status.message().len());
    ensure!(began.elapsed() < LIMIT, "{reference} took {:?}", began.elapsed());
    let grown = peak.grown()?;
    ensure!(grown <= memory, "{reference}: the daemon grew by {grown} KiB");
    let image = Some(ImageSpec { image: reference.into(), ..Default::default() });
    let mut images = world.cri.clone().images;
    let shown = images.image_status(ImageStatusRequest { image, verbose: false }).await;
    ensure!(shown.is_ok_and(|shown| shown.into_inner().image.is_none()), "{reference} is listed");
    Ok(status)
}

/// What is no digest, and what would lead somewhere as a part of a path.
fn bad_digests(canary: &Path) -> Vec<String> {
    let hex = "a".repeat(64);
    vec![
        "sha256:../../x".into(),
        format!("sha256:{}", climb(canary)),
        format!("sha256:{hex}/../../x"),
        format!("sha512:{hex}"),
        format!("SHA256:{hex}"),
        format!("sha256:{}", hex.to_uppercase()),
        format!("md5:{}", &hex[..32]),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{}", "a".repeat(10_000)),
        "sha256:".into(),
    ]
}

/// E28: in references of all calls, in manifests, indexes, configs and headers.
async fn takes_no_digest_for_a_path(world: &mut World) -> Outcome {
    let canary = canary(world)?;
    let digests = bad_digests(&canary);
    let (untouched, before) = (tree::canary(&canary)?, names(world)?);
    for digest in &digests {
        let reference = format!("{}/e2e/busybox@{digest}", world.registry.host);
        let image = Some(ImageSpec { image: reference.clone(), ..Default::default() });
        let mut images = world.cri.clone().images;
        let status = try_pull(world, &reference, None).await.refused()?;
        ensure!(status.code() == Code::InvalidArgument, "pull of {reference:.200}: {status}");
        ensure!(status.message().len() < 1024, "{} bytes of message", status.message().len());
        let shown = images.image_status(ImageStatusRequest { image: image.clone(), verbose: false }).await;
        ensure!(
            shown.map_or_else(
                |status| status.code() == Code::InvalidArgument,
                |shown| shown.into_inner().image.is_none()
            ),
            "status of {reference:.200}"
        );
        let removed = images.remove_image(RemoveImageRequest { image }).await;
        ensure!(
            removed.map_or_else(|status| status.code() == Code::InvalidArgument, |_| true),
            "removal of {reference:.200}"
        );
    }
    let made = small("digests")?;
    let (of_server, bad) = (made.clone(), digests.clone());
    let server = Server::start("127.0.0.1", move |asked| {
        let mut words = asked.target.split('/').skip(2);
        let (kind, number) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let digest =
            number.parse().ok().and_then(|number: usize| bad.get(number)).cloned().unwrap_or_default();
        let mut manifest: Value = serde_json::from_slice(&of_server.manifest.bytes).unwrap_or_default();
        let typed = |media_type: &str, document: &Value| {
            Answer::Whole(200, vec![format!("content-type: {media_type}")], document.to_string().into_bytes())
        };
        match kind {
            "layer" | "config" if asked.target.contains("/manifests/") => {
                let place =
                    if kind == "layer" { &mut manifest["layers"][0] } else { &mut manifest["config"] };
                place["digest"] = digest.into();
                typed(MANIFEST, &manifest)
            }
            "index" => {
                let entry = json!({"mediaType": MANIFEST, "digest": digest, "size": 2});
                typed(INDEX, &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}))
            }
            "header" if asked.target.contains("/manifests/") => {
                let headers =
                    vec![format!("content-type: {MANIFEST}"), format!("docker-content-digest: {digest}")];
                Answer::Whole(200, headers, of_server.manifest.bytes.clone())
            }
            _ => whole(&of_server, asked),
        }
    })?;
    for (number, digest) in digests.iter().enumerate() {
        for (kind, expected) in
            [("layer", "sha256"), ("config", "sha256"), ("index", "sha256"), ("header", "no digest")]
        {
            fails(
                world,
                &format!("{}/{kind}/{number}:1", server.address),
                &[expected, "manifest 1"],
                DOCUMENT,
            )
            .await?;
        }
        let mut config = made.config()?;
        config["rootfs"]["diff_ids"][0] = digest.as_str().into();
        let wrong = made.with_config(serde_json::to_vec(&config)?)?;
        let reference = world.registry.push("e2e/digests", &number.to_string(), &wrong)?;
        fails(world, &reference, &["sha256", "config sha256:"], DOCUMENT).await?;
    }
    let asked = server.asked();
    ensure!(asked.iter().all(|asked| asked.target.contains("/manifests/")), "{asked:?}");
    settles(world, &before)?;
    ensure!(tree::canary(&canary)? == untouched, "the canary was reached");
    Ok(())
}

/// E29: blobs and manifests that were changed on the disk of a real registry, and configs that lie.
async fn names_what_is_not_what_it_says(world: &mut World) -> Outcome {
    type Change = fn(&mut Vec<u8>);
    let directory = world.directory.join("changed");
    let registry = Registry::start(&directory)?;
    let before = names(world)?;
    let flip: Change = |bytes| {
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
    };
    let short: Change = |bytes| bytes.truncate(bytes.len() - 1);
    let long: Change = |bytes| bytes.push(b' ');
    for (name, change) in [("flipped", flip), ("short", short), ("long", long)] {
        for part in ["layer", "config"] {
            let made = small(&format!("{part} {name}"))?;
            let reference = registry.push("e2e/changed", &format!("{part}-{name}"), &made)?;
            let blob =
                if part == "layer" { made.blobs.first() } else { made.blobs.last() }.ok_or("no blob")?;
            let file = registry::blob_file(&directory, &blob.digest)?;
            let mut bytes = fs::read(&file)?;
            change(&mut bytes);
            fs::write(file, bytes)?;
            let reason = if name == "flipped" { "its digest is" } else { "bytes" };
            let named = format!("{part} {}", blob.digest);
            fails(world, &reference, &[reason, &named, "e2e/changed"], DOCUMENT).await?;
        }
    }
    let made = small("manifest")?;
    let reference = registry.push("e2e/changed", "manifest", &made)?;
    let file = registry::blob_file(&directory, &made.manifest.digest)?;
    fs::write(file, [&made.manifest.bytes[..], b" "].concat())?;
    fails(world, &reference, &["its digest is", "manifest manifest"], DOCUMENT).await?;

    let two = || vec![Layer::new().file("one", 0o644, "one"), Layer::new().file("two", 0o644, "two")];
    let made = image::build(two(), json!({}))?;
    let right = made.config()?["rootfs"]["diff_ids"].clone();
    let other = image::digest(b"");
    let config = "config sha256:";
    for (tag, diff_ids, parts) in [
        ("other", json!([right[0], other]), ["its diff ID is", "layer sha256:"]),
        ("swapped", json!([right[1], right[0]]), ["its diff ID is", "layer sha256:"]),
        ("fewer", json!([right[0]]), ["names 1 layers, and the manifest names 2", config]),
        ("more", json!([right[0], right[1], right[1]]), ["names 3 layers, and the manifest names 2", config]),
    ] {
        let mut document = made.config()?;
        document["rootfs"]["diff_ids"] = diff_ids;
        let wrong = made.with_config(serde_json::to_vec(&document)?)?;
        let reference = registry.push("e2e/lies", tag, &wrong)?;
        fails(world, &reference, &parts, DOCUMENT).await?;
    }
    // A layer that is what it says is kept for the next try, and nothing else.
    wait::until("nothing half-done", SOON, || {
        let count = |name: &str| Outcome::Ok(fs::read_dir(store(world)?.join(name))?.count());
        Ok((count("tmp")? == 0 && count("trash")? == 0).then_some(()))
    })?;
    let is_document = |path: &&PathBuf| {
        path.components().any(|part| part.as_os_str() == "records" || part.as_os_str() == "documents")
    };
    let now = names(world)?;
    ensure!(now.iter().filter(is_document).eq(before.iter().filter(is_document)), "a record is left");
    let good = registry.push("e2e/lies", "good", &made)?;
    ensure_eq!(try_pull(world, &good, None).await?, made.id);
    Ok(())
}

/// E30: a document that is a manifest and an index, under six types.
async fn refuses_manifests_that_are_indexes_too(world: &mut World) -> Outcome {
    let types = [
        MANIFEST,
        INDEX,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/json",
        "application/octet-stream",
    ];
    let made = small("ambiguous")?;
    let before = names(world)?;
    let of_server = made.clone();
    let server = Server::start("127.0.0.1", move |asked| {
        let mut words = asked.target.split('/').skip(2);
        let (form, number) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !asked.target.contains("/manifests/") {
            return whole(&of_server, asked);
        }
        let mut both: Value = serde_json::from_slice(&of_server.manifest.bytes).unwrap_or_default();
        let entry = json!({"mediaType": MANIFEST, "digest": of_server.manifest.digest, "size": 2});
        both["manifests"] = if form == "empty" { json!([]) } else { json!([entry]) };
        if form == "untyped" {
            both.as_object_mut().map(|both| both.remove("mediaType"));
        }
        let media_type =
            number.parse().ok().and_then(|number: usize| types.get(number)).copied().unwrap_or_default();
        Answer::Whole(200, vec![format!("content-type: {media_type}")], both.to_string().into_bytes())
    })?;
    for form in ["typed", "untyped", "empty"] {
        for number in 0..types.len() {
            fails(world, &format!("{}/{form}/{number}:1", server.address), &["manifest 1"], DOCUMENT).await?;
        }
    }
    let asked = server.asked();
    ensure!(asked.iter().all(|asked| asked.target.contains("/manifests/1")), "{asked:?}");
    settles(world, &before)
}

/// E33: sizes, names and numbers of headers.
async fn refuses_headers_that_lie(world: &mut World) -> Outcome {
    let before = names(world)?;
    let gibibyte = b"010000000000";
    let two_to_63 = b"\x80\0\0\0\x80\0\0\0\0\0\0\0";
    let minus_one = &[0xff; 12];
    let file = |layer: Layer| layer.file("f", 0o644, "x");
    // A body that is as long as its header says: a gigabyte of a PAX record, a megabyte when it is sent.
    let record = [&Layer::new().claim(b'x', "pax", gibibyte).tar()[..512], &vec![b'a'; 1 << 20]].concat();
    let chain = (0..3000).fold(Layer::new(), |layer, _| layer.claim(b'g', "global", b"00000000000\0"));
    let sparse = |key: &str| file(Layer::new().pax(&[(key, b"100000000")]));
    let number = |key: &str, value: &str| file(Layer::new().pax(&[(key, value.as_bytes())]));
    for (tag, layer, expected) in [
        ("pax", Layer::of(record), "image_limits.layer_headers"),
        ("long-name", file(Layer::new().claim(b'L', "name", gibibyte)), "image_limits.layer_headers"),
        ("chain", file(chain), "image_limits.layer_headers"),
        ("sparse", sparse("GNU.sparse.numblocks"), "sparse"),
        ("sparse-type", Layer::new().claim(b'S', "s", b"00000000000\0"), "sparse"),
        ("negative", Layer::new().claim(b'0', "f", minus_one), "size is out of range"),
        ("size", Layer::new().claim(b'0', "f", two_to_63), "image_limits.layer_size"),
        ("cut-off", Layer::new().claim(b'0', "f", gibibyte), "cut off"),
        ("pax-size", number("size", "0"), "size differs"),
        ("mtime", number("mtime", "9223372036854775808"), "mtime is out of range"),
        ("uid", number("uid", "9223372036854775808"), "uid is out of range"),
        ("device", Layer::new().device("d", 1 << 12, 1), "devmajor is out of range"),
        ("component", file(Layer::new().pax(&[("path", &[b'n'; 256])])), "the limit component = 255"),
        ("path", file(Layer::new().pax(&[("path", "d/".repeat(2048).as_bytes())])), "the limit path = 4095"),
    ] {
        let made = image::build(vec![layer], json!({}))?;
        let reference = world.registry.push("e2e/headers", tag, &made)?;
        fails(world, &reference, &[expected, "layer sha256:"], HEADERS).await?;
    }
    settles(world, &before)
}

/// E34: what overlayfs, the kernel's labels and capabilities read.
async fn lets_no_attribute_hide_or_rename(world: &mut World) -> Outcome {
    // A version 2 capability set with cap_net_raw permitted (linux/capability.h, vfs_cap_data).
    let mut capability = [0_u8; 20];
    (capability[3], capability[5]) = (2, 0x20);
    let key = |name: &str| format!("SCHILY.xattr.{name}");
    let spoofed = [
        ("trusted.overlay.opaque", &b"y"[..]),
        ("trusted.overlay.redirect", b"/etc"),
        ("trusted.overlay.metacopy", b""),
        ("trusted.overlay.whiteout", b""),
        ("user.overlay.opaque", b"y"),
        ("user.overlay.whiteout", b""),
        ("user.overlay.redirect", b"/etc"),
        ("security.ima", b"\x03\x02"),
        ("security.evm", b"\x03\x02"),
        ("trusted.x", b"1"),
    ];
    let keys: Vec<(String, &[u8])> = spoofed.iter().map(|(name, value)| (key(name), *value)).collect();
    let records: Vec<(&str, &[u8])> = keys.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    let lower = Layer::new().dir("d", 0o755).file("d/kept", 0o644, "kept").file("plain", 0o644, "below");
    let kept = [(key("security.capability"), &capability[..]), (key("user.note"), &b"noted"[..])];
    let kept = kept.each_ref().map(|(key, value)| (key.as_str(), *value));
    let upper = Layer::new()
        .pax(&records)
        .dir("d", 0o755)
        .pax(&records)
        .file("plain", 0o644, "above")
        .pax(&records)
        .file("d/empty", 0o644, "")
        .pax(&kept)
        .file("raw", 0o755, "x");
    let made = image::build(vec![image::busybox()?, lower, upper], json!({"Env": ["PATH=/bin"]}))?;
    let reference = world.registry.push("e2e/attributes", "1", &made)?;
    world.pull(&reference).await?;
    let pod = world.pod("attributes");
    let id = world.run_pod(&pod).await?;
    let script = "cat /d/kept /plain; ls /d; stat -c '%F' /d/empty";
    let container = cove_e2e::pod::container("look", &reference, &["/bin/sh", "-c", script]);
    let (status, text) = world.output(&id, &pod, &container).await?;
    ensure_eq!((status.exit_code, text.as_str()), (0, "keptaboveempty\nkept\nregular empty file\n"));

    let layers = store(world)?.join("layers");
    let has_raw = |entry: &fs::DirEntry| entry.path().join("fs/raw").is_file();
    let entries = fs::read_dir(layers)?.collect::<Result<Vec<_>, _>>()?;
    let root = entries.iter().find(|entry| has_raw(entry)).ok_or("no layer has the file")?.path().join("fs");
    let mut value = [0_u8; 256];
    for name in ["d", "plain", "d/empty"] {
        for (attribute, _) in spoofed {
            let found = rustix::fs::lgetxattr(root.join(name), attribute, &mut value[..]);
            ensure!(found == Err(rustix::io::Errno::NODATA), "{name} has {attribute}: {found:?}");
        }
    }
    for (attribute, expected) in [("security.capability", &capability[..]), ("user.note", b"noted")] {
        let count = rustix::fs::lgetxattr(root.join("raw"), attribute, &mut value[..])?;
        ensure_eq!(&value[..count], expected);
    }

    // The largest value that the kernel takes is the file system's to refuse; one more is the limit's.
    for (tag, size, expected) in
        [("64k", 64 << 10, None), ("65k", 65 << 10, Some("image_limits.layer_xattr_value = 65536"))]
    {
        let layer = Layer::new().pax(&[(&key("user.large"), &vec![b'v'; size])]).file("large", 0o644, "x");
        let reference = world.registry.push("e2e/attributes", tag, &image::build(vec![layer], json!({}))?)?;
        match (try_pull(world, &reference, None).await, expected) {
            (Ok(_), None) => {}
            (Err(status), None) => {
                for part in ["\"large\"", "extended attribute"] {
                    ensure!(status.message().contains(part), "{part:?} is not in {status}");
                }
            }
            (Err(status), Some(expected)) => ensure!(status.message().contains(expected), "{status}"),
            (Ok(_), Some(expected)) => return Err(format!("pulled, and not {expected:?}").into()),
        }
    }
    Ok(())
}
