//! Each kind of damage is planted, found, and mended by pulling again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{self, Headers, LayerRecord};
use super::testing::{Fault, Pushed, TestRegistry, TestStore, layer};
use super::{Checked, Finding, Image, ImageError, Progress};

/// With a directory that the upper layer does not name, so that there is a fix-up layer.
fn layers() -> [Vec<u8>; 2] {
    [layer(&[("tmp/", b""), ("a", b"lower")]), layer(&[("tmp/x", b"upper"), ("b", b"more")])]
}

struct Place {
    images: PathBuf,
    pushed: Pushed,
}

impl Place {
    fn document(&self, name: &str) -> PathBuf {
        self.images.join("documents").join(self.pushed.config.hex()).join(name)
    }

    fn layer(&self, number: usize) -> PathBuf {
        self.images.join("layers").join(self.pushed.diff_ids[number].hex())
    }

    fn fix_up(&self) -> PathBuf {
        self.images.join("layers").join(super::fix_up::key(&self.pushed.config).hex())
    }

    fn record(&self) -> PathBuf {
        self.images.join("records").join(format!("{}.json", self.pushed.config.hex()))
    }
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
}

async fn check(store: &TestStore, content: bool) -> Checked {
    store.images.check(content, Arc::new(Progress::new(String::new()))).await.unwrap()
}

/// By the quick look.
async fn quick(store: &TestStore) -> Vec<Finding> {
    check(store, false).await.findings
}

async fn repair(store: &TestStore, id: &str) -> Result<Arc<Image>, ImageError> {
    store.images.repair(id, false, None, Arc::new(Progress::new(id.to_owned()))).await
}

fn is_whole(image: &Image) {
    let [fix_up, upper, lower] = &image.layers[..] else { panic!("{:?}", image.layers) };
    assert!(fix_up.join("tmp").is_dir());
    assert_eq!(fs::read_to_string(upper.join("tmp/x")).unwrap(), "upper");
    assert_eq!(fs::read_to_string(lower.join("a")).unwrap(), "lower");
}

type Damage = fn(&Place);

const KINDS: [(&str, Damage, &str); 13] = [
    ("a config with another byte", |at| flip(&at.document("config.json")), "config"),
    ("a config that is gone", |at| fs::remove_file(at.document("config.json")).unwrap(), "config"),
    ("a manifest with another byte", |at| flip(&at.document("manifest.json")), "manifest"),
    ("a manifest that is gone", |at| fs::remove_file(at.document("manifest.json")).unwrap(), "manifest"),
    ("a record that is cut off", |at| fs::write(at.record(), "cove").unwrap(), "record"),
    ("a file that is cut off", |at| fs::write(at.layer(0).join("fs/a"), "low").unwrap(), "layer"),
    ("a file that is gone", |at| fs::remove_file(at.layer(1).join("fs/tmp/x")).unwrap(), "layer"),
    ("a file too many", |at| fs::write(at.layer(1).join("fs/tmp/y"), "").unwrap(), "layer"),
    ("a layer's record with another byte", |at| flip(&at.layer(0).join("layer.json")), "layer"),
    ("tar headers that are cut off", |at| cut(&at.layer(0).join("tar-headers")), "layer"),
    ("tar headers that are gone", |at| fs::remove_file(at.layer(1).join("tar-headers")).unwrap(), "layer"),
    ("a layer that is gone", |at| fs::remove_dir_all(at.layer(0)).unwrap(), "layer"),
    (
        "a fix-up layer without its directory",
        |at| fs::remove_dir(at.fix_up().join("fs/tmp")).unwrap(),
        "layer",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_damage_is_found_and_mended_by_pulling_again() {
    let registry = TestRegistry::start().await;
    let pushed = registry.push("app", "v1", &layers());
    let id = pushed.config.to_string();
    for (what, damage, part) in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let store = TestStore::open(directory.path());
        store.images.pull(&registry.reference("app:v1"), None).await.unwrap();
        assert_eq!(quick(&store).await, [], "nothing is damaged yet");
        let place = Place { images: directory.path().join("images"), pushed: pushed.clone() };
        damage(&place);
        let findings = quick(&store).await;
        assert_eq!(findings.len(), 1, "{what}: {findings:?}");
        assert!(findings[0].image == id && findings[0].part.starts_with(part), "{what}: {findings:?}");
        assert_eq!(store.images.list(None).len(), 1, "{what}: a look changes nothing");

        is_whole(&repair(&store, &id).await.unwrap());
        assert_eq!(quick(&store).await, [], "{what}: mended");
        is_whole(&store.images.status(&registry.reference("app:v1")).unwrap());
        drop(store);
        let store = TestStore::open(directory.path());
        is_whole(&store.images.status(&registry.reference("app:v1")).expect("it is there after a restart"));
    }
}

/// What no look at lengths finds.
const CONTENT: [(&str, Damage, &str); 4] = [
    ("a bit of a file", |at| flip(&at.layer(1).join("fs/tmp/x")), "a file of it is damaged"),
    ("a bit of tar headers", |at| flip(&at.layer(0).join("tar-headers")), "tar headers"),
    (
        "two files that changed places",
        |at| {
            let (one, other) = (at.layer(1).join("fs/tmp/x"), at.layer(1).join("fs/b"));
            fs::rename(&one, at.images.join("x")).unwrap();
            fs::rename(&other, &one).unwrap();
            fs::rename(at.images.join("x"), &other).unwrap();
        },
        "and 5 were unpacked",
    ),
    ("an older version", |at| unpacked_before(&at.layer(0)), "an older version"),
];

/// As if by a version that kept no headers.
fn unpacked_before(layer: &Path) {
    let path = layer.join("layer.json");
    let record: LayerRecord = record::read(&path).unwrap();
    record::write(&path, &LayerRecord { headers: Headers::Unknown, ..record }).unwrap();
    fs::remove_file(layer.join("tar-headers")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_content_is_found_and_mended() {
    let registry = TestRegistry::start().await;
    let pushed = registry.push("app", "v1", &layers());
    let id = pushed.config.to_string();
    for (what, damage, expected) in CONTENT {
        let directory = tempfile::tempdir().unwrap();
        let store = TestStore::open(directory.path());
        store.images.pull(&registry.reference("app:v1"), None).await.unwrap();
        assert_eq!(check(&store, true).await, Checked::default(), "nothing is damaged yet");
        let place = Place { images: directory.path().join("images"), pushed: pushed.clone() };
        damage(&place);
        assert_eq!(quick(&store).await, [], "{what}: the quick look does not see it");
        let Checked { findings, unknown } = check(&store, true).await;
        assert_eq!((findings.len(), unknown.len()), (1, 0), "{what}: {findings:?}");
        let layer = pushed.diff_ids.iter().any(|layer| findings[0].part == format!("layer {layer}"));
        assert!(
            layer && findings[0].image == id && findings[0].reason.contains(expected),
            "{what}: {findings:?}"
        );

        let progress = Arc::new(Progress::new(id.clone()));
        is_whole(&store.images.repair(&id, true, None, progress).await.unwrap());
        assert_eq!(check(&store, true).await, Checked::default(), "{what}: mended");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_compared_is_no_fault() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let pushed = registry.push("app", "v1", &[layer(&[("a", b"one"), ("a", b"two")]), layer(&[("b", b"")])]);
    store.images.pull(&registry.reference("app:v1"), None).await.unwrap();
    let Checked { findings, unknown } = check(&store, true).await;
    assert_eq!(findings, []);
    assert_eq!(unknown.len(), 1, "{unknown:?}");
    assert_eq!(unknown[0].part, format!("layer {}", pushed.diff_ids[0]));
    assert!(unknown[0].reason.contains("names a path twice"), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_is_found_at_a_start_is_mended_too() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let pushed = registry.push("app", "v1", &layers());
    store.images.pull(&registry.reference("app:v1"), None).await.unwrap();
    drop(store);
    let place = Place { images: directory.path().join("images"), pushed };
    flip(&place.layer(1).join("layer.json"));
    let store = TestStore::open(directory.path());
    assert!(store.images.list(None).is_empty(), "it lacks a layer");
    let findings = quick(&store).await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    is_whole(&repair(&store, &findings[0].image).await.unwrap());
    assert_eq!(quick(&store).await, []);
    assert_eq!(store.images.list(None)[0].repo_tags, [registry.reference("app:v1")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_mended_stays_as_it_is() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let pushed = registry.push("app", "v1", &layers());
    let id = pushed.config.to_string();
    store.images.pull(&registry.reference("app:v1"), None).await.unwrap();
    let place = Place { images: directory.path().join("images"), pushed: pushed.clone() };
    fs::write(place.layer(0).join("fs/a"), "low").unwrap();

    store.images.hold(&id, "c1");
    let error = repair(&store, &id).await.unwrap_err().to_string();
    assert!(error.contains("containers run from it"), "{error}");
    assert_eq!(fs::read_to_string(place.layer(0).join("fs/a")).unwrap(), "low");
    store.images.release("c1");

    registry.fault(&format!("/v2/app/manifests/{}", pushed.manifest), Fault::Status(404));
    let error = repair(&store, &id).await.unwrap_err().to_string();
    assert!(error.contains("answered 404"), "{error}");
    assert_eq!(store.images.list(None).len(), 1, "it is listed as before");
    assert_eq!(quick(&store).await.len(), 1);
    registry.mend();
    is_whole(&repair(&store, &id).await.unwrap());
    store
        .settles_with(&[&pushed.diff_ids[0], &pushed.diff_ids[1], &super::fix_up::key(&pushed.config)])
        .await;
    assert!(matches!(repair(&store, "nothing").await, Err(ImageError::NotFound { .. })));
}
