//! What is exported comes back as the same image, by our own import and by another reader; what cannot be is refused by name.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use cove_layer::Digest;
use futures_util::stream;
use hyper::body::Bytes;
use serde_json::{Value, json};

use super::record::{self, Headers, LayerRecord};
use super::testing::{TestRegistry, TestStore, layer};
use super::{Choices, Image, ImageError, Progress, sha256};

type Exported = Result<Vec<Arc<Image>>, ImageError>;

/// The bytes that came, and what was said of them.
async fn export(store: &TestStore, references: &[&str]) -> (Vec<u8>, Exported) {
    let references = references.iter().map(|text| (*text).to_owned()).collect();
    let (mut pieces, work) = store.images.export(references, Arc::new(Progress::new("test".into())));
    let taking = async {
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.recv().await {
            bytes.extend_from_slice(&piece);
        }
        bytes
    };
    futures_util::future::join(taking, work).await
}

async fn import(store: &TestStore, archive: &[u8]) -> Exported {
    let pieces: Vec<Result<Bytes, ()>> =
        archive.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let progress = Arc::new(Progress::new("test".into()));
    store.images.import(stream::iter(pieces), Choices::default(), progress).await
}

/// The members of an archive, by another reader than ours, and their names in order.
fn members(archive: &[u8]) -> (BTreeMap<String, Vec<u8>>, Vec<String>) {
    let (mut found, mut names) = (BTreeMap::new(), Vec::new());
    for entry in ::tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        names.push(name.clone());
        assert!(found.insert(name, bytes).is_none(), "a member is there twice");
    }
    (found, names)
}

fn member(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// A small layer, and one that no import takes for a document, with a directory that it does not name.
fn layers(text: &[u8]) -> [Vec<u8>; 2] {
    let noise: Vec<u8> =
        (0..2_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    [layer(&[("tmp/", b""), ("a", b"lower")]), layer(&[("tmp/x", text), ("noise", &noise)])]
}

fn layer_directory(store: &TestStore, diff_id: &Digest) -> std::path::PathBuf {
    store.root.join("images/layers").join(diff_id.hex())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_back_the_same() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let pushed = registry.push("app", "v1", &layers(b"one"));
    let pulled = store.images.pull(&registry.reference("app:v1"), None).await.unwrap();
    let (archive, exported) = export(&store, &[&registry.reference("app:v1")]).await;
    assert_eq!(exported.unwrap()[0].id, pulled.id);

    let (found, names) = members(&archive);
    assert_eq!(names[..3], ["oci-layout", "index.json", "manifest.json"]);
    for (name, bytes) in found.iter().filter(|(name, _)| name.starts_with("blobs/")) {
        assert_eq!(*name, member(sha256(bytes).as_str()), "a blob has its digest");
    }
    let index: Value = serde_json::from_slice(&found["index.json"]).unwrap();
    let tag = registry.reference("app:v1");
    assert_eq!(
        index["manifests"][0]["annotations"],
        json!({"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": tag})
    );
    let manifest = &found[&member(index["manifests"][0]["digest"].as_str().unwrap())];
    let manifest: Value = serde_json::from_slice(manifest).unwrap();
    assert_eq!(manifest["config"]["digest"], pulled.id);
    let docker: Value = serde_json::from_slice(&found["manifest.json"]).unwrap();
    let blobs: Vec<String> = pushed.diff_ids.iter().map(|layer| member(layer.as_str())).collect();
    assert_eq!(docker, json!([{"Config": member(&pulled.id), "RepoTags": [tag], "Layers": blobs}]));

    let elsewhere = tempfile::tempdir().unwrap();
    let other = TestStore::open(elsewhere.path());
    let imported = import(&other, &archive).await.unwrap();
    assert_eq!((&imported[0].id, &imported[0].repo_tags), (&pulled.id, &pulled.repo_tags));
    assert_eq!(imported[0].config, pulled.config);
    assert_eq!(imported[0].layers.len(), 3, "the fix-up layer is made again");
    assert_eq!(fs::read_to_string(imported[0].layers[1].join("tmp/x")).unwrap(), "one");
    // From there it goes on in the very same form.
    let (again, _) = export(&other, &[&tag]).await;
    assert!(again == archive, "an export of an import differs");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_those_that_were_given_and_layers_come_once() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let [lower, upper] = layers(b"one");
    let first = registry.push("app", "v1", &[lower.clone(), upper.clone(), lower.clone()]);
    registry.push("app", "v2", &[lower.clone(), upper.clone(), lower.clone()]);
    registry.push("other", "v1", &[lower, layer(&[("c", b"d")])]);
    for name in ["app:v1", "app:v2", "other:v1"] {
        store.images.pull(&registry.reference(name), None).await.unwrap();
    }
    let tags = |archive: &[u8]| {
        let docker: Value = serde_json::from_slice(&members(archive).0["manifest.json"]).unwrap();
        docker.as_array().unwrap().iter().map(|image| image["RepoTags"].clone()).collect::<Vec<_>>()
    };
    let [v1, v2, other] = ["app:v1", "app:v2", "other:v1"].map(|name| registry.reference(name));
    let (archive, _) = export(&store, &[&v2]).await;
    assert_eq!(tags(&archive), [json!([v2])], "only the name that was given");
    let (archive, _) = export(&store, &[first.config.as_str()]).await;
    assert_eq!(tags(&archive), [json!([v1, v2])], "all of an id");
    let (archive, exported) = export(&store, &[&v1, &other, &v2, &first.config.hex()[..20]]).await;
    assert_eq!(exported.unwrap().len(), 2);
    assert_eq!(tags(&archive), [json!([v1, v2]), json!([other])]);
    let elsewhere = tempfile::tempdir().unwrap();
    assert_eq!(import(&TestStore::open(elsewhere.path()), &archive).await.unwrap().len(), 2);

    let (archive, exported) = export(&store, &[&v1, "none:1"]).await;
    assert!(archive.is_empty() && matches!(exported, Err(ImageError::NotFound { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_ends_an_export_by_the_name_of_the_layer() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let pushed = registry.push("app", "v1", &layers(b"one"));
    let name = registry.reference("app:v1");
    store.images.pull(&name, None).await.unwrap();
    let damaged = layer_directory(&store, &pushed.diff_ids[1]);
    fs::write(damaged.join("fs/tmp/x"), "two").unwrap();
    let (_, exported) = export(&store, &[&name]).await;
    let error = exported.unwrap_err().to_string();
    assert!(
        error.contains(pushed.config.as_str())
            && error.contains(pushed.diff_ids[1].as_str())
            && error.contains("cove check --content --repair"),
        "{error}"
    );
    fs::write(damaged.join("fs/tmp/x"), "").unwrap();
    let (_, exported) = export(&store, &[&name]).await;
    let error = exported.unwrap_err().to_string();
    assert!(error.contains("tmp/x") && error.contains("has 0 bytes, and 3 were unpacked"), "{error}");
    fs::write(store.root.join("images/documents").join(pushed.config.hex()).join("config.json"), "{}")
        .unwrap();
    let (archive, exported) = export(&store, &[&name]).await;
    assert!(archive.is_empty() && exported.unwrap_err().to_string().contains("config"));
}

fn rewrite(layer: &Path, headers: Headers) {
    let path = layer.join("layer.json");
    let record: LayerRecord = record::read(&path).unwrap();
    record::write(&path, &LayerRecord { headers, ..record }).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_without_headers_are_refused_by_name() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let twice = layer(&[("a", b"one"), ("a", b"two")]);
    let lost = registry.push("lost", "v1", &[twice]);
    let older = registry.push("older", "v1", &layers(b"one"));
    for (pushed, name, expected) in
        [(&lost, "lost:v1", "names a path twice"), (&older, "older:v1", "an older version")]
    {
        store.images.pull(&registry.reference(name), None).await.unwrap();
        let directory = layer_directory(&store, &pushed.diff_ids[0]);
        if name == "older:v1" {
            rewrite(&directory, Headers::Unknown);
        } else {
            assert!(!directory.join("tar-headers").exists());
        }
        let (archive, exported) = export(&store, &[&registry.reference(name)]).await;
        let error = exported.unwrap_err().to_string();
        assert!(archive.is_empty() && error.contains(expected), "{error}");
        assert!(error.contains(pushed.diff_ids[0].as_str()), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_no_more_ends_it_and_keeps_nothing() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    registry.push("app", "v1", &layers(b"one"));
    let name = registry.reference("app:v1");
    store.images.pull(&name, None).await.unwrap();
    let progress = Arc::new(Progress::new("test".into()));
    let (mut pieces, work) = store.images.export(vec![name.clone()], progress);
    assert!(pieces.recv().await.is_some());
    store.images.remove(&name).await.unwrap();
    assert!(store.names("layers").len() > 1, "an export keeps what it needs");
    drop(pieces);
    assert!(work.await.is_err());
    store.settles_with(&[]).await;
}
