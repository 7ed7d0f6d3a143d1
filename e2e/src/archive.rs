//! Archives of images, in both forms that tools write, from images made by [`crate::image`]: also hostile ones.

use std::io::{Read as _, Write as _};
use std::path::Path;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::Outcome;
use crate::image::{self, Image, Layer, MANIFEST};

/// A member: its name and its content.
pub type Member = (String, Vec<u8>);

fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// The members of an OCI image layout, the documents first. `names` is what its index says of the image.
pub fn layout(image: &Image, names: &Value) -> Outcome<Vec<Member>> {
    let mut entry = image::descriptor(MANIFEST, &image.manifest);
    entry["annotations"] = names.clone();
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?;
    let mut members = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index),
        (blob_name(&image.manifest.digest), image.manifest.bytes.clone()),
    ];
    members.extend(image.blobs.iter().rev().map(|blob| (blob_name(&blob.digest), blob.bytes.clone())));
    Ok(members)
}

/// What `docker save` writes of images with their tags, the documents first: layers are plain, in directories of their own.
pub fn saved(images: &[(&Image, &[&str])]) -> Outcome<Vec<Member>> {
    let mut list = Vec::new();
    let mut members = Vec::new();
    for (number, (image, tags)) in images.iter().enumerate() {
        let (config, layers) = image.blobs.split_last().ok_or("an image without a config")?;
        let config_name = format!("{}.json", &config.digest["sha256:".len()..]);
        members.push((config_name.clone(), config.bytes.clone()));
        let mut names = Vec::new();
        for (at, layer) in layers.iter().enumerate() {
            let name = format!("{number}-{at}/layer.tar");
            let mut plain = Vec::new();
            GzDecoder::new(&layer.bytes[..]).read_to_end(&mut plain)?;
            names.push(name.clone());
            members.push((name, plain));
        }
        list.push(json!({"Config": config_name, "RepoTags": tags, "Layers": names}));
    }
    members.insert(0, ("manifest.json".to_owned(), serde_json::to_vec(&list)?));
    Ok(members)
}

/// A tar of members, in their order.
pub fn tar(members: &[Member]) -> Vec<u8> {
    members.iter().fold(Layer::new(), |tar, (name, content)| tar.file(name, 0o644, content)).tar()
}

/// Compresses.
pub fn gzip(bytes: &[u8]) -> Outcome<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes)?;
    Ok(gzip.finish()?)
}

/// Writes members as files below a directory.
pub fn unpack(members: &[Member], directory: &Path) -> Outcome {
    for (name, content) in members {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().ok_or("a member without a directory")?)?;
        std::fs::write(path, content)?;
    }
    Ok(())
}
