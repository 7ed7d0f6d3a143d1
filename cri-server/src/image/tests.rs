//! Pulls from a registry on loopback, and what is on disk and in memory afterwards.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cove_layer::Digest;
use futures_util::future::join_all;
use serde_json::json;

use super::manifest::host_architecture;
use super::testing::{Fault, INDEX, MANIFEST, TestRegistry, TestStore, blob_path, layer};
use super::{Auth, ImageError, sha256};

fn two_layers() -> [Vec<u8>; 2] {
    [layer(&[("etc/", b""), ("etc/a", b"lower")]), layer(&[("etc/", b""), ("etc/b", b"upper")])]
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..bytes).map(|_| next()).collect()
}

async fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..4000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} did not come about");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_pulled_listed_and_asked_for_again() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let pushed = registry.push("app", "v1", &two_layers());
    let image = store.images.pull(&registry.reference("app:v1"), None).await.unwrap();

    assert_eq!(image.id, pushed.config.to_string());
    assert_eq!(image.repo_tags, [registry.reference("app:v1")]);
    assert_eq!(image.repo_digests, [registry.reference(&format!("app@{}", pushed.manifest))]);
    assert_eq!(
        (image.config.cmd.as_slice(), image.config.env.as_slice()),
        (&["sh".to_owned()][..], &["A=b".to_owned()][..])
    );
    assert!(image.size > 0 && !image.pinned);
    let read = |layer: &Path, name: &str| std::fs::read_to_string(layer.join(name)).unwrap();
    assert_eq!(read(&image.layers[0], "etc/b"), "upper", "the uppermost is the first");
    assert_eq!(read(&image.layers[1], "etc/a"), "lower");
    store.settles_with(&[&pushed.diff_ids[0], &pushed.diff_ids[1]]).await;

    let names = [
        registry.reference("app:v1"),
        registry.reference(&format!("app@{}", pushed.manifest)),
        registry.reference(&format!("app:other@{}", pushed.manifest)),
        image.id.clone(),
        pushed.config.hex().to_owned(),
        pushed.config.hex()[..13].to_owned(),
        format!("sha256:{}", &pushed.config.hex()[..13]),
    ];
    for name in &names {
        assert_eq!(store.images.status(name).map(|found| found.id.clone()), Some(image.id.clone()), "{name}");
        assert_eq!(store.images.list(Some(name)).len(), 1, "{name}");
        assert_eq!(store.images.lease(name).unwrap().image.id, image.id, "{name}");
    }
    assert!(store.images.status(&registry.reference("app:v2")).is_none());
    assert!(matches!(store.images.lease("nothing"), Err(ImageError::NotFound { .. })));
    assert_eq!(store.images.list(None).len(), 1);
    let info = store.images.fs_info();
    assert!(info.mountpoint.is_dir() && info.used_bytes > 0 && info.inodes_used > 0);

    let asked = registry.hits_below("/");
    store.images.pull(&registry.reference("app:v1"), None).await.unwrap();
    assert_eq!(registry.hits_below("/"), asked + 1, "an unchanged tag costs one request");
    store.images.pull(&registry.reference("app:v2"), None).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_gives_no_tag_and_an_index_its_own_digest() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let pushed = registry.push("app", "v1", &two_layers());
    let by_digest = registry.reference(&format!("app@{}", pushed.manifest));
    let image = store.images.pull(&by_digest, None).await.unwrap();
    assert!(image.repo_tags.is_empty());
    assert_eq!(image.repo_digests, std::slice::from_ref(&by_digest));

    let entry = |architecture: &str, digest: &Digest, size: usize| json!({"mediaType": MANIFEST, "digest": digest.to_string(), "size": size, "platform": {"os": "linux", "architecture": architecture}});
    let size = 0; // of the manifest for another machine, which nobody fetches
    let manifest_size = manifest_size(&registry, &pushed.manifest).await;
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        entry("riscv128", &sha256(b"x"), size), entry(host_architecture(), &pushed.manifest, manifest_size),
    ]});
    let index = serde_json::to_vec(&index).unwrap();
    registry.put_manifest("app", "multi", INDEX, index.clone());
    let image = store.images.pull(&registry.reference("app:multi"), None).await.unwrap();
    assert_eq!(image.id, pushed.config.to_string());
    assert_eq!(image.repo_tags, [registry.reference("app:multi")]);
    let of_index = registry.reference(&format!("app@{}", sha256(&index)));
    assert!(image.repo_digests.contains(&of_index) && image.repo_digests.contains(&by_digest));
    assert_eq!(
        registry.hits(&blob_path("app", &pushed.blobs[0])),
        1,
        "layers that are there are not fetched again"
    );
}

async fn manifest_size(registry: &TestRegistry, digest: &Digest) -> usize {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut connection = tokio::net::TcpStream::connect(registry.address).await.unwrap();
    let request = format!("GET /v2/app/manifests/{digest} HTTP/1.0\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.unwrap();
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    answer.len() - head - 4
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_answers_leave_nothing_and_the_next_try_works() {
    type Break = fn(&TestRegistry, &super::testing::Pushed);
    let manifest_path = "/v2/app/manifests/v1";
    let table: [(&str, Break, &[&str]); 11] = [
        ("404", |r, _| r.fault("/v2/app/manifests/v1", Fault::Status(404)), &["manifest v1", "answered 404"]),
        ("500", |r, _| r.fault("/v2/app/manifests/v1", Fault::Status(500)), &["answered 500"]),
        (
            "503",
            |r, _| r.fault("/v2/app/manifests/v1", Fault::Status(503)),
            &["RegistryUnavailable: ", "503"],
        ),
        (
            "blob 404",
            |r, p| r.fault(&blob_path("app", &p.blobs[1]), Fault::Status(404)),
            &["layer sha256:", "answered 404"],
        ),
        (
            "short",
            |r, p| r.fault(&blob_path("app", &p.blobs[1]), Fault::Short),
            &["RegistryUnavailable: ", "layer sha256:"],
        ),
        ("short config", |r, p| r.fault(&blob_path("app", &p.config), Fault::Short), &["config sha256:"]),
        ("encoded", |r, p| r.fault(&blob_path("app", &p.blobs[0]), Fault::Encoded), &["Content-Encoding"]),
        (
            "loop",
            |r, _| r.fault("/v2/app/manifests/v1", Fault::Redirect("/v2/app/manifests/v1".into())),
            &["more than 10"],
        ),
        (
            "elsewhere",
            |r, _| r.fault("/v2/app/manifests/v1", Fault::Redirect("http://10.0.0.1/x".into())),
            &["without TLS"],
        ),
        ("claim", |r, _| r.claim(&sha256(b"x").to_string()), &["manifest v1", "its digest is"]),
        ("claim", |r, _| r.claim("sha256:../../x"), &["no digest"]),
    ];
    for (name, break_it, expected) in table {
        let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
        let store = TestStore::open(directory.path());
        let pushed = registry.push("app", "v1", &two_layers());
        break_it(&registry, &pushed);
        let error = store.images.pull(&registry.reference("app:v1"), None).await.expect_err(name).to_string();
        for part in expected
            .iter()
            .copied()
            .chain([registry.reference("app:v1").as_str(), &format!("http://{}", registry.address)])
        {
            assert!(error.contains(part), "{name}: {error:?} lacks {part:?}");
        }
        assert!(store.images.list(None).is_empty(), "{name}");
        wait_for("an empty tmp", || store.names("tmp").is_empty()).await;
        assert!(store.names("records").is_empty(), "{name}");
        registry.mend();
        registry.claim(&sha256(&document(&registry, manifest_path).await).to_string());
        store.images.pull(&registry.reference("app:v1"), None).await.expect(name);
        store.settles_with(&[&pushed.diff_ids[0], &pushed.diff_ids[1]]).await;
    }
}

async fn document(registry: &TestRegistry, path: &str) -> Vec<u8> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut connection = tokio::net::TcpStream::connect(registry.address).await.unwrap();
    connection.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.unwrap();
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    answer.split_off(head + 4)
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_not_what_it_says_is_refused() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let layers = two_layers();
    let right: Vec<Digest> = layers.iter().map(|layer| sha256(layer)).collect();
    let fails = async |tag: &str, expected: &str| {
        let error = store.images.pull(&registry.reference(tag), None).await.expect_err(tag).to_string();
        assert!(error.contains(expected), "{tag}: {error:?} lacks {expected:?}");
        assert!(store.images.list(None).is_empty(), "{tag}");
    };

    registry.push_with("app", "swapped", &layers, &[right[1].clone(), right[0].clone()]);
    fails("app:swapped", "its diff ID is").await;
    registry.push_with("app", "count", &layers, &right[..1]);
    fails("app:count", "names 1 layers, and the manifest names 2").await;

    for (name, change) in [("flip", 0_usize), ("long", 1), ("truncated", 2)] {
        let pushed = registry.push(name, "v1", &layers);
        let path = blob_path(name, &pushed.blobs[1]);
        let mut blob = document(&registry, &path).await;
        match change {
            0 => *blob.last_mut().unwrap() ^= 1,
            1 => blob.push(0),
            _ => blob.truncate(blob.len() - 1),
        }
        registry.put(&path, "application/octet-stream", blob);
        let expected = if change == 0 { "its digest is" } else { "bytes are offered" };
        fails(&format!("{name}:v1"), expected).await;
        fails(&format!("{name}:v1"), &format!("layer {}", pushed.blobs[1])).await;
    }

    let pushed = registry.push("config", "v1", &layers);
    let path = blob_path("config", &pushed.config);
    let mut config = document(&registry, &path).await;
    config[0] = b' ';
    registry.put(&path, "application/octet-stream", config);
    fails("config:v1", "its digest is").await;

    let both = json!({"schemaVersion": 2, "config": {}, "layers": [], "manifests": []});
    for media_type in [MANIFEST, INDEX, "application/json"] {
        registry.put_manifest("both", "v1", media_type, serde_json::to_vec(&both).unwrap());
        fails("both:v1", "manifest").await;
    }
    registry.put_manifest("big", "v1", MANIFEST, vec![b' '; 5 << 20]);
    fails("big:v1", "larger than image_limits.document_bytes = 4194304").await;
    let wrong = registry.push("wrong", "v1", &layers);
    let manifest = document(&registry, "/v2/wrong/manifests/v1").await;
    registry.put(&format!("/v2/wrong/manifests/{}", sha256(b"x")), MANIFEST, manifest);
    fails(&format!("wrong@{}", sha256(b"x")), &format!("its digest is {}", wrong.manifest)).await;
    wait_for("an empty tmp", || store.names("tmp").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn index_bombs_end_soon() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let entry =
        |bytes: &[u8]| json!({"mediaType": INDEX, "digest": sha256(bytes).to_string(), "size": bytes.len()});
    let index = |entries: Vec<serde_json::Value>| {
        serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})).unwrap()
    };
    let mut deep = index(Vec::new());
    for _ in 0..10 {
        registry.put_manifest("deep", "v1", INDEX, deep.clone());
        deep = index(vec![entry(&deep); 100]);
    }
    registry.put_manifest("deep", "v1", INDEX, deep);
    let error = store.images.pull(&registry.reference("deep:v1"), None).await.unwrap_err().to_string();
    assert!(error.contains("image_limits.index_depth = 4"), "{error}");

    let many: Vec<_> = (0..100_u8).map(|n| index(vec![entry(&[n])])).collect();
    many.iter().for_each(|one| registry.put_manifest("many", "x", INDEX, one.clone()));
    registry.put_manifest("many", "v1", INDEX, index(many.iter().map(|one| entry(one)).collect()));
    let error = store.images.pull(&registry.reference("many:v1"), None).await.unwrap_err().to_string();
    assert!(error.contains("answered 404") || error.contains("image_limits.documents = 16"), "{error}");
    assert!(registry.hits_below("/") < 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_not_there_or_hangs_is_unavailable() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open_with(directory.path(), Duration::from_millis(300));
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let error = store.images.pull(&format!("{gone}/app:v1"), None).await.unwrap_err();
    assert!(matches!(error, ImageError::RegistryUnavailable { .. }));
    let text = error.to_string();
    for part in ["RegistryUnavailable: ", &format!("http://{gone}"), "app:v1", "Connection refused"] {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }

    let pushed = registry.push("app", "v1", &two_layers());
    for (path, fault) in [
        ("/v2/app/manifests/v1".to_owned(), Fault::Silent),
        (blob_path("app", &pushed.blobs[0]), Fault::Hang),
    ] {
        registry.fault(&path, fault);
        let error = store.images.pull(&registry.reference("app:v1"), None).await.unwrap_err().to_string();
        assert!(error.starts_with("RegistryUnavailable: ") && error.contains("300ms"), "{error}");
        registry.mend();
    }
    store.images.pull(&registry.reference("app:v1"), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pull_shows_nothing_and_keeps_whole_layers() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let pushed = registry.push("app", "v1", &[layer(&[("a", b"a")]), layer(&[("b", &noise(100_000))])]);
    let slow = blob_path("app", &pushed.blobs[1]);
    registry.fault(&slow, Fault::Hang);
    let reference = registry.reference("app:v1");
    let hang = async {
        let (first, second) = (store.images.pull(&reference, None), store.images.pull(&reference, None));
        let both = futures_util::future::join(first, second);
        let whole = wait_for("a whole first layer", || {
            registry.hits(&slow) == 1
                && store
                    .names("tmp")
                    .iter()
                    .any(|name| directory.path().join("images/tmp").join(name).join("layer.json").exists())
        });
        tokio::select! { _ = both => panic!("the pull ended"), () = whole => () }
    };
    hang.await;
    assert!(store.images.list(None).is_empty());
    store.settles_with(&[&pushed.diff_ids[0]]).await;
    assert!(store.names("records").is_empty());
    wait_for("a counted layer", || store.images.fs_info().used_bytes > 0).await;

    registry.mend();
    store.images.pull(&reference, None).await.unwrap();
    assert_eq!(registry.hits(&blob_path("app", &pushed.blobs[0])), 1, "the whole layer is not fetched again");
    assert_eq!(registry.hits(&slow), 2);
    store.settles_with(&[&pushed.diff_ids[0], &pushed.diff_ids[1]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_fetch_each_blob_once() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let [lower, upper] = two_layers();
    let shared = noise(300_000);
    let shared = layer(&[("big", &shared)]);
    let one = registry.push("one", "v1", &[shared.clone(), lower]);
    let two = registry.push("two", "v1", &[shared.clone(), upper]);
    // Nothing is sent whole before everybody waits.
    registry.fault(&blob_path("one", &one.blobs[0]), Fault::Hang);
    registry.fault(&blob_path("two", &two.blobs[0]), Fault::Hang);
    let references: Vec<String> =
        (0..32).map(|n| registry.reference(if n % 2 == 0 { "one:v1" } else { "two:v1" })).collect();
    let pulls = join_all(references.iter().map(|reference| store.images.pull(reference, None)));
    let release = async {
        wait_for("both pulls", || registry.hits_below("/blobs/") >= 5).await;
        registry.let_go();
    };
    let (pulled, ()) = futures_util::future::join(pulls, release).await;
    for image in pulled {
        let image = image.unwrap();
        assert!(image.id == one.config.to_string() || image.id == two.config.to_string());
    }
    assert_eq!(store.images.list(None).len(), 2);
    let shared_fetches =
        registry.hits(&blob_path("one", &one.blobs[0])) + registry.hits(&blob_path("two", &two.blobs[0]));
    assert_eq!(shared_fetches, 1, "one layer of two images");
    assert_eq!(registry.hits_below("/blobs/"), 5, "two configs and three layers");
    store.settles_with(&[&one.diff_ids[0], &one.diff_ids[1], &two.diff_ids[1]]).await;
}

/// A small disk, unmounted also when the test fails.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        rustix::mount::mount(
            "tmpfs",
            directory.path(),
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            options.as_c_str(),
        )
        .unwrap();
        Self(directory)
    }

    fn resize(&self, size: &str) {
        rustix::mount::mount_remount(
            self.0.path(),
            rustix::mount::MountFlags::empty(),
            format!("size={size}"),
        )
        .unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_nothing_is_left_on_it() {
    let registry = TestRegistry::start().await;
    let disk = Disk::new("1m");
    let store = TestStore::open(disk.0.path());
    let pushed = registry.push(
        "app",
        "v1",
        &[layer(&[("a", b"a")]), layer(&[("usr/", b""), ("usr/big", &noise(3 << 20))])],
    );
    let error = store.images.pull(&registry.reference("app:v1"), None).await.unwrap_err();
    assert!(error.is_disk_full());
    let text = error.to_string();
    for part in ["app:v1", &format!("layer {}", pushed.blobs[1]), "No space left on device"] {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    assert!(store.images.list(None).is_empty());
    store.settles_with(&[]).await;
    disk.resize("16m");
    store.images.pull(&registry.reference("app:v1"), None).await.unwrap();
    store.settles_with(&[&pushed.diff_ids[0], &pushed.diff_ids[1]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_lists_whole_images_only_and_pulls_mend() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let [lower, upper] = two_layers();
    let good = registry.push("good", "v1", &[lower]);
    let bad = registry.push("bad", "v1", &[upper]);
    let damaged = registry.push("damaged", "v1", &[layer(&[("c", b"c")])]);
    let references = ["good:v1", "bad:v1", "damaged:v1"].map(|name| registry.reference(name));
    let before = {
        let store = TestStore::open(directory.path());
        for reference in &references {
            store.images.pull(reference, None).await.unwrap();
        }
        store.images.status(&references[0]).unwrap()
    };
    let images = directory.path().join("images");
    std::fs::remove_dir_all(images.join("layers").join(bad.diff_ids[0].hex())).unwrap();
    let record = images.join("records").join(format!("{}.json", damaged.config.hex()));
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, &whole[..whole.len() - 9]).unwrap();
    std::fs::create_dir_all(images.join("tmp/7/fs/x")).unwrap();
    std::fs::write(images.join("records/x.new"), b"").unwrap();

    let store = TestStore::open(directory.path());
    let after = store.images.status(&references[0]).unwrap();
    assert_eq!(
        (&after.id, &after.repo_tags, &after.repo_digests),
        (&before.id, &before.repo_tags, &before.repo_digests)
    );
    assert_eq!((after.size, &after.layers, &after.config), (before.size, &before.layers, &before.config));
    assert_eq!(store.images.list(None).len(), 1);
    store.images.remove(&references[0]).await.unwrap();
    assert!(store.images.list(None).is_empty());
    store.settles_with(&[&good.diff_ids[0], &damaged.diff_ids[0]]).await; // nothing is deleted while a record is damaged

    for reference in &references[1..] {
        store.images.pull(reference, None).await.unwrap();
    }
    assert_eq!(registry.hits(&blob_path("damaged", &damaged.blobs[0])), 1, "its layer was there");
    assert_eq!(store.images.list(None).len(), 2);
    store.images.remove("nothing").await.unwrap();
    store.settles_with(&[&bad.diff_ids[0], &damaged.diff_ids[0]]).await;

    std::fs::write(&record, b"").unwrap();
    drop(store);
    let store = TestStore::open(directory.path());
    store.images.remove(&damaged.config.to_string()).await.unwrap();
    assert_eq!(store.names("records"), [format!("{}.json", bad.config.hex())]);
    store.settles_with(&[&bad.diff_ids[0]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_takes_every_name_and_users_keep_the_layers() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let pushed = registry.push("app", "v1", &two_layers());
    registry.push("other/app", "v2", &two_layers());
    let both = [&pushed.diff_ids[0], &pushed.diff_ids[1]];
    let (first, second) = (registry.reference("app:v1"), registry.reference("other/app:v2"));
    let pull = async || {
        for reference in [&first, &second] {
            store.images.pull(reference, None).await.unwrap();
        }
        assert_eq!(store.images.status(&first).unwrap().repo_tags, [first.clone(), second.clone()]);
        store.images.status(&first).unwrap()
    };

    for name in
        [first.clone(), registry.reference(&format!("app@{}", pushed.manifest)), pushed.config.to_string()]
    {
        pull().await;
        let removed = join_all((0..5).map(|_| store.images.remove(&name))).await;
        assert!(removed.iter().all(Result::is_ok), "{name}");
        assert!(store.images.list(None).is_empty() && store.images.status(&second).is_none(), "{name}");
        assert!(store.names("records").is_empty());
        store.settles_with(&[]).await;
        assert_eq!(store.images.fs_info().used_bytes, 0);
    }

    let image = pull().await;
    let lease = store.images.lease(&first).unwrap();
    store.images.hold(&image.id, "container");
    store.images.remove(&first).await.unwrap();
    assert!(store.images.list(None).is_empty());
    assert!(matches!(store.images.lease(&image.id), Err(ImageError::NotFound { .. })));
    drop(lease);
    store.settles_with(&both).await;
    assert_eq!(store.images.held("container").unwrap().layers, image.layers);
    drop(store);

    let store = TestStore {
        root: directory.path().to_owned(),
        images: super::Images::open(directory.path(), super::Options::default()).unwrap(),
    };
    assert!(store.images.list(None).is_empty(), "removed stays removed after a restart");
    store.images.hold(&image.id, "container");
    store.images.recovered();
    store.settles_with(&both).await;
    store.images.pull(&first, None).await.unwrap();
    assert_eq!(
        store.images.status(&image.id).unwrap().repo_tags,
        std::slice::from_ref(&first),
        "a pull brings it back"
    );
    store.images.remove(&first).await.unwrap();
    store.images.release("container");
    store.settles_with(&[]).await;
    wait_for("no record", || store.names("records").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_collected_before_recovery() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let pushed = registry.push("app", "v1", &two_layers());
    let both = [&pushed.diff_ids[0], &pushed.diff_ids[1]];
    let images = super::Images::open(directory.path(), super::Options::default()).unwrap();
    let store = TestStore { root: directory.path().to_owned(), images };
    store.images.pull(&registry.reference("app:v1"), None).await.unwrap();
    store.images.remove(&registry.reference("app:v1")).await.unwrap();
    assert!(store.images.list(None).is_empty());
    store.settles_with(&both).await;
    store.images.recovered();
    store.settles_with(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves_to_the_image_pulled_last() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let [lower, upper] = two_layers();
    let reference = registry.reference("app:v1");
    let old = registry.push("app", "v1", &[lower]);
    let store = TestStore::open(directory.path());
    store.images.pull(&reference, None).await.unwrap();
    let record = directory.path().join("images/records").join(format!("{}.json", old.config.hex()));
    let before_the_move = std::fs::read(&record).unwrap();
    let new = registry.push("app", "v1", &[upper]);
    store.images.pull(&reference, None).await.unwrap();
    let check = |store: &TestStore| {
        assert_eq!(store.images.status(&reference).unwrap().id, new.config.to_string());
        let old_image = store.images.status(&old.config.to_string()).unwrap();
        assert!(old_image.repo_tags.is_empty());
        assert_eq!(old_image.repo_digests, [registry.reference(&format!("app@{}", old.manifest))]);
    };
    check(&store);
    drop(store);
    check(&TestStore::open(directory.path()));
    // A crash between the two records: both name the tag, and the later one has it.
    std::fs::write(&record, before_the_move).unwrap();
    check(&TestStore::open(directory.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_go_to_their_registry_only_and_are_always_asked() {
    let (registry, other, directory) =
        (TestRegistry::start().await, TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let pushed = registry.push("app", "v1", &two_layers());
    let blob = blob_path("app", &pushed.blobs[0]);
    other.put("/cdn", "application/octet-stream", document(&registry, &blob).await);
    registry.protect("Basic dTpw");
    registry.fault(&blob, Fault::Redirect(format!("http://{}/cdn", other.address)));
    let reference = registry.reference("app:v1");
    let auth = |username: &str, password: &str, server_address: &str| {
        let (username, password) = (username.to_owned(), password.into());
        Some(Auth { username, password, server_address: server_address.to_owned(), ..Auth::default() })
    };

    for bad in [None, auth("u", "wrong", ""), auth("u", "p", "elsewhere.io")] {
        let error = store.images.pull(&reference, bad).await.unwrap_err().to_string();
        assert!(error.contains("answered 401") && error.contains("UNAUTHORIZED"), "{error}");
        assert!(!error.contains("wrong"), "{error}");
    }
    store.images.pull(&reference, auth("u", "p", &registry.address.to_string())).await.unwrap();
    assert_eq!(other.authorizations(), [("/cdn".to_owned(), None)]);
    let error = store.images.pull(&reference, auth("u", "wrong", "")).await.unwrap_err().to_string();
    assert!(error.contains("answered 401"), "present or not, the credentials are asked: {error}");

    let token = Some(Auth { identity_token: "secret".into(), ..Auth::default() });
    let error = store.images.pull(&reference, token).await.unwrap_err().to_string();
    assert!(error.contains("answered 401") && !error.contains("secret"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_prefix_of_two_images_is_ambiguous() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    // Seventeen ids have at least two with the same first digit.
    let mut ids: Vec<String> = Vec::new();
    for n in 0..17_u8 {
        registry.push("app", &format!("v{n}"), &[layer(&[("n", &[n])])]);
        ids.push(
            store.images.pull(&registry.reference(&format!("app:v{n}")), None).await.unwrap().id.clone(),
        );
    }
    let digit = |id: &String| id["sha256:".len()..][..1].to_owned();
    let twice =
        ids.iter().map(digit).find(|first| ids.iter().filter(|id| digit(id) == *first).count() > 1).unwrap();
    assert!(matches!(store.images.lease(&twice), Err(ImageError::Ambiguous { .. })));
    assert!(store.images.status(&twice).is_none());
    assert!(store.images.remove(&twice).await.is_err());
    assert_eq!(store.images.list(None).len(), 17);
    let shared: Arc<_> = store.images.shared.store.catalog();
    assert!(ids.iter().all(|id| shared.contains(id)));
}

/// One entry of a layer with owner and mode.
fn owned(name: &str, mode: u32, uid: u64) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    let is_directory = name.ends_with('/');
    header.set_entry_type(if is_directory { tar::EntryType::Directory } else { tar::EntryType::Regular });
    header.set_size(0);
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(uid);
    header.set_mtime(7);
    builder.append_data(&mut header, name, &[][..]).unwrap();
    builder.into_inner().unwrap()
}

fn both(first: &[u8], second: &[u8]) -> Vec<u8> {
    let mut joined = first[..first.len() - 1024].to_vec();
    joined.extend_from_slice(second);
    joined
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_a_layer_does_not_name_look_as_below() {
    use std::os::unix::fs::MetadataExt as _;
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let home = both(&owned("home/", 0o751, 3), &owned("home/u/", 0o700, 1000));
    let whiteout = owned("gone/.wh..wh..opq", 0o644, 0);
    let layers = [
        both(&both(&owned("tmp/", 0o1777, 5), &home), &owned("gone/", 0o700, 9)),
        both(&owned("home/u/x", 0o644, 0), &whiteout),
        both(&both(&owned("tmp/x", 0o644, 0), &owned("new/x", 0o644, 0)), &owned("gone/x", 0o644, 0)),
    ];
    let pushed = registry.push("app", "v1", &layers);
    let reference = registry.reference("app:v1");
    let image = store.images.pull(&reference, None).await.unwrap();
    let check = |layers: &[std::path::PathBuf]| {
        assert_eq!(layers.len(), 4);
        let look = |path: &str| {
            let metadata = layers.iter().find_map(|layer| layer.join(path).metadata().ok()).unwrap();
            (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
        };
        assert_eq!(look("tmp"), (0o1777, 5, 5));
        assert_eq!(look("home"), (0o751, 3, 3));
        assert_eq!(look("home/u"), (0o700, 1000, 1000));
        assert_eq!(look("new"), (0o755, 0, 0));
        assert_eq!(layers[0].join("home/u").metadata().unwrap().mtime(), 7);
        assert!(!layers[0].join("gone").exists() && !layers[0].join("new").exists(), "only what is needed");
    };
    check(&image.layers);
    let fix_up = super::fix_up::key(&pushed.config);
    let all: Vec<&Digest> = pushed.diff_ids.iter().chain([&fix_up]).collect();
    store.settles_with(&all).await;
    drop(store);

    let store = TestStore::open(directory.path());
    check(&store.images.status(&reference).unwrap().layers);
    registry.push("app", "v2", &layers);
    let again = store.images.pull(&registry.reference("app:v2"), None).await.unwrap();
    check(&again.layers);
    store.images.remove(&reference).await.unwrap();
    store.settles_with(&[]).await;
}

/// A store that asks the registries of `hosts` as its text says.
fn store_with_hosts(directory: &Path, registry: &str, hosts: &str) -> super::Images {
    let files = directory.join("hosts.d").join(registry);
    std::fs::create_dir_all(&files).unwrap();
    std::fs::write(files.join("hosts.toml"), hosts).unwrap();
    let options = super::Options { hosts_dirs: vec![directory.join("hosts.d")], ..super::Options::default() };
    let images = super::Images::open(directory, options).unwrap();
    images.recovered();
    images
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_in_order_and_see_no_credentials() {
    let (mirror, upstream) = (TestRegistry::start().await, TestRegistry::start().await);
    let directory = tempfile::tempdir().unwrap();
    let here = |registry: &TestRegistry| registry.address.to_string();
    let pushed = mirror.push("app", "v1", &two_layers());
    upstream.push("other", "v1", &two_layers());
    upstream.protect("Basic dTpw");
    let hosts = format!("[host.\"http://{}\"]", here(&mirror));
    let images = store_with_hosts(directory.path(), &here(&upstream), &hosts);
    let auth = Some(Auth { username: "u".into(), password: "p".into(), ..Auth::default() });

    let image = images.pull(&upstream.reference("app:v1"), auth.clone()).await.unwrap();
    assert_eq!(image.id, pushed.config.to_string());
    assert_eq!(
        image.repo_tags,
        [upstream.reference("app:v1")],
        "the name is the reference's, not the mirror's"
    );
    assert_eq!(upstream.authorizations(), [], "what the mirror has is not asked for elsewhere");

    // The mirror has not this one, and the registry itself has.
    images.pull(&upstream.reference("other:v1"), auth.clone()).await.unwrap();
    mirror.protect("Basic dTpw");
    let error = images.pull(&upstream.reference("none:v1"), auth).await.unwrap_err();
    assert!(mirror.authorizations().iter().all(|(_, authorization)| authorization.is_none()));
    let ImageError::Registry { status: 404, .. } = &error else { panic!("{error}") };
    let text = error.to_string();
    assert!(text.contains("answered 401") && text.contains(&here(&mirror)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_down_gives_way_and_one_that_is_the_server_does_not() {
    let (down, upstream) = (TestRegistry::start().await, TestRegistry::start().await);
    upstream.push("app", "v1", &two_layers());
    down.fault("/v2/app/manifests/v1", Fault::Status(503));
    let mirror = format!("http://{}", down.address);
    for (server, is_pulled) in [(String::new(), true), (format!("server = \"{mirror}\"\n"), false)] {
        let directory = tempfile::tempdir().unwrap();
        let hosts = format!("{server}[host.\"{mirror}\"]");
        let images = store_with_hosts(directory.path(), &upstream.address.to_string(), &hosts);
        let pulled = images.pull(&upstream.reference("app:v1"), None).await;
        match pulled {
            Ok(_) => assert!(is_pulled),
            Err(ImageError::RegistryUnavailable { host, .. }) => assert!(!is_pulled && host == mirror),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_got_once_a_pull_and_with_the_credentials() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    registry.push("app", "v1", &two_layers());
    registry.put("/token", "application/json", br#"{"token":"t","expires_in":60}"#.to_vec());
    registry.protect("Bearer t");
    registry.challenge(&format!("Bearer realm=\"http://{}/token\",service=\"s\"", registry.address));
    let reference = registry.reference("app:v1");
    let auth = Auth { username: "u".into(), password: "p".into(), ..Auth::default() };
    store.images.pull(&reference, Some(auth.clone())).await.unwrap();
    assert_eq!(registry.hits("/token"), 1, "one token for every document and layer of a pull");
    let seen = registry.authorizations();
    let of_token: Vec<_> =
        seen.iter().filter(|(path, _)| path == "/token").map(|(_, value)| value.as_deref()).collect();
    assert_eq!(of_token, [Some("Basic dTpw")]);
    assert!(
        seen.iter()
            .all(|(path, value)| path == "/token" || !value.as_deref().unwrap_or("").starts_with("Basic"))
    );
    store.images.pull(&reference, None).await.unwrap();
    assert_eq!(registry.authorizations().iter().rev().find(|(path, _)| path == "/token").unwrap().1, None);

    // A token that has ended: another one is asked for.
    registry.put("/token", "application/json", br#"{"access_token":"u"}"#.to_vec());
    registry.protect("Bearer u");
    store.images.pull(&reference, Some(auth.clone())).await.unwrap();
    registry.protect("Bearer w");
    let error = store.images.pull(&reference, Some(auth.clone())).await.unwrap_err().to_string();
    assert!(error.contains("answered 401"), "{error}");

    // The password goes to no other host without TLS.
    let asked = registry.hits_below("/");
    registry.challenge("Bearer realm=\"http://127.0.0.2:1/token\"");
    let error = store.images.pull(&reference, Some(auth)).await.unwrap_err().to_string();
    assert!(error.contains("another host without TLS"), "{error}");
    assert_eq!(registry.hits_below("/"), asked + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    let big = layer(&[("big", &noise(600_000))]);
    for knows_ranges in [true, false] {
        let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
        let store = TestStore::open(directory.path());
        let pushed = registry.push("app", "v1", std::slice::from_ref(&big));
        let path = blob_path("app", &pushed.blobs[0]);
        if knows_ranges {
            registry.fault(&path, Fault::Breaks(250_000));
        } else {
            registry.knows_no_ranges();
            registry.fault(&path, Fault::BreaksFirst(250_000, 2));
        }
        store.images.pull(&registry.reference("app:v1"), None).await.unwrap();
        store.settles_with(&[&pushed.diff_ids[0]]).await;
        let ranges: Vec<String> = registry.ranges().into_iter().map(|(_, range)| range).collect();
        assert_eq!(registry.hits(&path), 3);
        assert!(ranges[0].starts_with("bytes=250000-"), "{ranges:?}");
        assert_eq!(ranges[1].starts_with("bytes=500000-"), knows_ranges, "{ranges:?}");
    }
    // Who never sends enough is given up.
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let pushed = registry.push("app", "v1", &[big]);
    let path = blob_path("app", &pushed.blobs[0]);
    registry.fault(&path, Fault::Breaks(1000));
    let error = store.images.pull(&registry.reference("app:v1"), None).await.unwrap_err().to_string();
    assert!(error.starts_with("RegistryUnavailable: ") && registry.hits(&path) == 6, "{error}");
    wait_for("an empty tmp", || store.names("tmp").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_layers_come_in_ranges_and_in_order() {
    let content = noise(5 << 20);
    let big = layer(&[("big", &content)]);
    for (knows_ranges, breaks, hits) in [(true, false, 3), (false, false, 1), (true, true, 6)] {
        let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
        let options = super::Options { range_threshold: 4 << 20, ..super::Options::default() };
        let store = TestStore::open_as(directory.path(), options);
        let pushed = registry.push("app", "v1", &[big.clone(), layer(&[("small", b"")])]);
        let path = blob_path("app", &pushed.blobs[0]);
        if !knows_ranges {
            registry.knows_no_ranges();
        }
        if breaks {
            registry.fault(&path, Fault::BreaksFirst(300_000, 3));
        }
        let image = store.images.pull(&registry.reference("app:v1"), None).await.unwrap();
        assert_eq!(std::fs::read(image.layers[1].join("big")).unwrap(), content);
        assert_eq!(registry.hits(&path), hits);
        assert_eq!(registry.hits(&blob_path("app", &pushed.blobs[1])), 1);
        assert!(registry.ranges().iter().all(|(asked, _)| *asked == path), "small ones come whole");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_is_waited_for_within_bounds() {
    let (registry, directory) = (TestRegistry::start().await, tempfile::tempdir().unwrap());
    let store = TestStore::open(directory.path());
    let pushed = registry.push("app", "v1", &two_layers());
    let reference = registry.reference("app:v1");
    registry.fault("/v2/app/manifests/v1", Fault::Busy("3600", 1));
    let error = store.images.pull(&reference, None).await.unwrap_err().to_string();
    for part in ["RegistryUnavailable: ", "429", "3600 s", "images.max_wait_seconds = 60"] {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
    registry.fault("/v2/app/manifests/v1", Fault::Busy("0", 2));
    registry.fault(&blob_path("app", &pushed.blobs[0]), Fault::Busy("soon", 3));
    store.images.pull(&reference, None).await.unwrap();
    registry.fault("/v2/app/manifests/v1", Fault::Busy("0", 100));
    let asked = registry.hits("/v2/app/manifests/v1");
    let error = store.images.pull(&reference, None).await.unwrap_err();
    assert!(matches!(error, ImageError::Registry { status: 429, .. }), "{error}");
    assert_eq!(registry.hits("/v2/app/manifests/v1"), asked + 10, "a head, a get, and four more of each");
}
