//! Images that cost too much (rows E31 and E32 of docs/security.md), and every limit by its key (R28): what is beyond one is
//! refused with its name, soon, and gives back what it took.

use std::io::Write as _;

use cove_e2e::Outcome;
use cove_e2e::image::{self, Blob, INDEX, Image, Layer, MANIFEST, Sent};
use cove_e2e::process::Peak;
use cove_e2e::registry::Registry;
use cove_e2e::server::{Answer, Server};
use k8s_cri::v1::*;
use serde_json::{Value, json};

use crate::image_hostile::{DOCUMENT, fails, names, pid, settles};
use crate::image_pull::{configure, random, small, try_pull, whole};
use crate::world::World;

cases!(ends_bombs_of_documents_soon, stops_bombs_of_layers_at_their_limit, names_each_limit_by_its_key,);

/// E31: indexes in indexes, and configs of many or deep values.
async fn ends_bombs_of_documents_soon(world: &mut World) -> Outcome {
    let before = names(world)?;
    let made = small("bombs")?;
    let registry = world.registry;
    registry.push("e2e/bombs", "plain", &made)?;
    let index = |entries: &[Value]| -> Outcome<Blob> {
        Ok(Blob::new(serde_json::to_vec(
            &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}),
        )?))
    };
    let mut inner = image::descriptor(MANIFEST, &made.manifest);
    for _ in 0..10 {
        let outer = index(&vec![inner; 100])?;
        registry.put("e2e/bombs", "deep", INDEX, &outer.bytes)?;
        inner = image::descriptor(INDEX, &outer);
    }
    let foreign = |n: usize| {
        let mut entry = image::descriptor(MANIFEST, &made.manifest);
        entry["platform"] = json!({"os": "linux", "architecture": format!("none{n}")});
        entry
    };
    let mut many = Vec::new();
    for n in 0..20 {
        let one = index(&[foreign(n)])?;
        registry.put("e2e/bombs", "one", INDEX, &one.bytes)?;
        many.push(image::descriptor(INDEX, &one));
    }
    registry.put("e2e/bombs", "wide", INDEX, &index(&many)?.bytes)?;
    registry.put("e2e/bombs", "long", INDEX, &index(&vec![foreign(0); 1025])?.bytes)?;
    for (tag, limit) in [
        ("deep", "image_limits.index_depth = 4"),
        ("wide", "image_limits.documents = 16"),
        ("long", "image_limits.index_entries = 1024"),
    ] {
        fails(world, &format!("{}/e2e/bombs:{tag}", registry.host), &[limit], DOCUMENT).await?;
    }

    let plain = made.config()?;
    // Bytes in place of one value, which serde_json would not write.
    let with = |key: &str, value: String| -> Outcome<Vec<u8>> {
        let mut config = plain.clone();
        config["config"][key] = "HERE".into();
        Ok(config.to_string().replace("\"HERE\"", &value).into_bytes())
    };
    let list = |count: usize, of: &dyn Fn(usize) -> String| (0..count).map(of).collect::<Vec<_>>().join(",");
    let strings = "environment variables, arguments and volumes";
    for (tag, config, expected) in [
        (
            "large",
            with("Large", format!("{:?}", "x".repeat(5 << 20)))?,
            Some("image_limits.document_bytes = 4194304"),
        ),
        ("env", with("Env", format!("[{}]", list(1_300_000, &|_| "\"\"".into())))?, Some(strings)),
        ("cmd", with("Cmd", format!("[{}]", list(1_300_000, &|_| "\"\"".into())))?, Some(strings)),
        (
            "volumes",
            with("Volumes", format!("{{{}}}", list(350_000, &|n| format!("\"{n}\":{{}}"))))?,
            Some(strings),
        ),
        ("deep", with("Deep", "[".repeat(100_000))?, Some("is no image config")),
        ("labels", with("Labels", format!("{{{}}}", list(300_000, &|n| format!("\"{n}\":\"\""))))?, None),
    ] {
        let reference = registry.push("e2e/configs", tag, &made.with_config(config)?)?;
        match expected {
            Some(expected) => drop(fails(world, &reference, &[expected, "config sha256:"], DOCUMENT).await?),
            // Nobody reads them.
            None => {
                let peak = Peak::from_now(pid(world)?)?;
                let id = try_pull(world, &reference, None).await?;
                ensure!(peak.grown()? <= DOCUMENT, "{tag}: the daemon grew by {} KiB", peak.grown()?);
                let image = Some(ImageSpec { image: id, ..Default::default() });
                world.cri.images.remove_image(RemoveImageRequest { image }).await?;
            }
        }
    }
    settles(world, &before)
}

fn gzip(bytes: &[u8]) -> Outcome<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// An image of one blob.
fn of(bytes: Vec<u8>, form: &'static str) -> Outcome<Image> {
    image::build_of(vec![Sent { bytes, form, diff_id: image::digest(b"something else") }], json!({}))
}

/// E32: what is small when it is sent. The room on disk is given back.
async fn stops_bombs_of_layers_at_their_limit(world: &mut World) -> Outcome {
    // A gigabyte may come out at any ratio; the disk of a test need not hold it.
    configure(world, None, "[image_limits]\nlayer_expansion_free = 67108864\n").await?;
    let before = names(world)?;
    let zeros = gzip(&vec![0; 16 << 20])?;
    let file = gzip(&Layer::new().claim(b'0', "zeros", b"120000000000").tar()[..512])?;
    let members = [file, zeros.repeat(640)].concat();
    ensure!(members.len() < 12 << 20, "{} bytes are sent", members.len());
    // Magic number, a frame without a size, a window of 2^31 (RFC 8878, section 3.1.1.1.2), one empty last block.
    let window = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    let nested = gzip(&gzip(&Layer::new().file("f", 0o644, "x").tar())?)?;
    let empty = gzip(b"")?.repeat(500_000);
    for (tag, made, parts) in [
        ("zeros", of(members, "tar+gzip")?, ["image_limits.layer_expansion = 1000", "layer sha256:"]),
        ("window", of(window, "tar+zstd")?, ["decompress", "layer sha256:"]),
        ("nested", of(nested, "tar+gzip")?, ["the archive is cut off", "layer sha256:"]),
        ("members", of(empty, "tar+gzip")?, ["its diff ID is", "layer sha256:"]),
    ] {
        let reference = world.registry.push("e2e/expands", tag, &made)?;
        fails(world, &reference, &parts, DOCUMENT).await?;
        settles(world, &before)?;
    }
    Ok(())
}

/// R28: each limit is set low, and one image is beyond each; it is pulled when its limit is as it was.
async fn names_each_limit_by_its_key(world: &mut World) -> Outcome {
    let hops = small("redirected")?;
    let server = Server::start("127.0.0.1", move |asked| {
        let target = asked.target.as_str();
        match target.rsplit_once("?hop=").map(|(path, hop)| (path, hop.parse().unwrap_or(0))) {
            None if target.contains("/manifests/") => redirect(target, 1),
            Some((path, hop)) if hop < 3 => redirect(path, hop + 1),
            _ => whole(&hops, asked),
        }
    })?;
    let mut table = vec![("redirects", 2, format!("{}/redirects:1", server.address))];
    table.extend(documents_beyond(world.registry)?);
    table.extend(layers_beyond(world.registry)?);
    let mut text = "[image_limits]\nlayer_expansion_free = 262144\n".to_owned();
    for (key, value, _) in &table {
        text.push_str(&format!("{key} = {value}\n"));
    }
    configure(world, None, &text).await?;
    for (key, value, reference) in &table {
        let limit = match *key {
            "redirects" => "(image_limits.redirects)".to_owned(),
            key => format!("image_limits.{key} = {value}"),
        };
        fails(world, reference, &[&limit], DOCUMENT).await?;
    }
    configure(world, None, "").await?;
    for (key, _, reference) in &table {
        // Nothing in it is for this machine.
        if *key != "documents" {
            try_pull(world, reference, None).await.map_err(|status| format!("{key} as it is: {status}"))?;
        }
    }
    Ok(())
}

fn redirect(path: &str, hop: u32) -> Answer {
    Answer::Whole(307, vec![format!("location: {path}?hop={hop}")], Vec::new())
}

/// The key of a limit, a low value, and an image that is beyond that, and beyond no other.
type Beyond = (&'static str, u64, String);

fn documents_beyond(registry: &Registry) -> Outcome<Vec<Beyond>> {
    let put = |tag: &str, image: &Image| registry.push("e2e/limits", tag, image);
    let index = |tag: &str, entries: Vec<Value>| -> Outcome<(Value, String)> {
        let document = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        let made = Blob::new(serde_json::to_vec(&document)?);
        let reference = registry.put("e2e/limits", tag, INDEX, &made.bytes)?;
        Ok((image::descriptor(INDEX, &made), reference))
    };
    let plain = small("limits")?;
    put("plain", &plain)?;
    let entry = image::descriptor(MANIFEST, &plain.manifest);
    let (inner, _) = index("inner", vec![entry.clone()])?;
    let (outer, _) = index("outer", vec![inner])?;
    let foreign = |n: u32| -> Outcome<Value> {
        let mut entry = entry.clone();
        entry["platform"] = json!({"os": "linux", "architecture": format!("none{n}")});
        Ok(index("foreign", vec![entry])?.0)
    };
    let mut config = plain.config()?;
    config["config"]["Labels"] = json!({"large": "x".repeat(80_000)});
    let four = (1..5).map(files).collect();
    Ok(vec![
        ("document_bytes", 65_536, put("document", &plain.with_config(serde_json::to_vec(&config)?)?)?),
        ("index_depth", 1, index("depth", vec![outer])?.1),
        ("index_entries", 4, index("entries", vec![entry.clone(); 5])?.1),
        ("documents", 2, index("documents", vec![foreign(0)?, foreign(1)?, foreign(2)?])?.1),
        ("layers", 3, put("layers", &image::build(four, json!({}))?)?),
    ])
}

fn files(count: usize) -> Layer {
    (0..count).fold(Layer::new(), |layer, n| layer.file(&n.to_string(), 0o644, "x"))
}

fn layers_beyond(registry: &Registry) -> Outcome<Vec<Beyond>> {
    // Half of each byte is random: it shrinks to a little more than half.
    let halves: Vec<u8> = random(1_200_000).iter().map(|byte| byte & 0x0f).collect();
    let of = |content: &[u8]| Layer::new().file("f", 0o644, content);
    let after = |records: &[(&str, &[u8])]| Layer::new().pax(records).file("f", 0o644, "");
    let text = [b'c'; 3000];
    let comments = ["a", "b", "c", "d"].map(|key| (key, &text[..1500]));
    let path = format!("{}f", format!("{}/", "d".repeat(200)).repeat(7));
    let layers = [
        ("blob_bytes", 1 << 20, of(&random(1_100_000))),
        ("layer_size", 1 << 20, of(&halves)),
        ("layer_expansion", 20, of(&[0; 512 << 10])),
        ("layer_entries", 10, files(11)),
        ("layer_headers", 4096, after(&comments)),
        ("layer_pax_record", 2048, after(&[("comment", &text)])),
        ("layer_xattr_value", 512, after(&[("SCHILY.xattr.user.note", &text[..600])])),
        ("layer_implicit", 1024, after(&[("path", path.as_bytes())])),
    ];
    let push = |(key, value, layer)| -> Outcome<Beyond> {
        let made = image::build(vec![layer], json!({}))?;
        Ok((key, value, registry.push("e2e/limits", key, &made)?))
    };
    layers.into_iter().map(push).collect()
}
