//! Imports of archives in both forms, in every order, whole and hostile, and what is on disk afterwards.

use std::path::Path;
use std::sync::Arc;

use cove_layer::Digest;
use futures_util::{StreamExt as _, stream};
use hyper::body::Bytes;
use serde_json::{Value, json};

use super::manifest::host_architecture;
use super::testing::{TestStore, gzip, layer};
use super::{Bounds, Choices, Image, ImageError, Options, Progress, sha256, tar};

/// Small, so that a layer of some kilobytes is larger than a document can be.
const DOCUMENT_BYTES: usize = 4096;

type Members = Vec<(String, Vec<u8>)>;

fn options() -> Options {
    let bounds = Bounds { document_bytes: DOCUMENT_BYTES, ..Bounds::default() };
    Options { bounds, ..Options::default() }
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..bytes).map(|_| next()).collect()
}

/// One layer that is smaller than a document can be, and one that is larger.
fn two_layers() -> [Vec<u8>; 2] {
    [
        layer(&[("etc/", b""), ("etc/a", b"lower")]),
        layer(&[("etc/", b""), ("etc/b", b"upper"), ("noise", &noise(3 * DOCUMENT_BYTES, 1))]),
    ]
}

fn bytes_of(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| sha256(layer).to_string()).collect();
    bytes_of(&json!({
        "architecture": host_architecture(), "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
}

fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", sha256(bytes).hex())
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha256(bytes).to_string(), "size": bytes.len()})
}

/// An OCI image layout, the documents first.
fn layout(layers: &[Vec<u8>], name: &str) -> Members {
    let config = config(layers);
    let blobs: Vec<_> = layers.iter().map(|layer| gzip(layer)).collect();
    let layer_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let descriptors: Vec<_> = blobs.iter().map(|blob| descriptor(layer_type, blob)).collect();
    let config_descriptor = descriptor("application/vnd.oci.image.config.v1+json", &config);
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = bytes_of(
        &json!({"schemaVersion": 2, "mediaType": manifest_type, "config": config_descriptor, "layers": descriptors}),
    );
    let mut named = descriptor(manifest_type, &manifest);
    named["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    let mut members = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), bytes_of(&json!({"schemaVersion": 2, "manifests": [named]}))),
        (blob(&config), config),
        (blob(&manifest), manifest),
    ];
    members.extend(blobs.into_iter().map(|bytes| (blob(&bytes), bytes)));
    members
}

/// What `docker save` writes, the documents first.
fn saved(layers: &[Vec<u8>], tags: &[&str]) -> Members {
    let config = config(layers);
    let config_name = format!("{}.json", sha256(&config).hex());
    let names: Vec<_> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let list = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
    let mut members = vec![("manifest.json".to_owned(), bytes_of(&list)), (config_name, config)];
    members.extend(names.into_iter().zip(layers.iter().cloned()));
    members
}

fn archive(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in members {
        let size = u64::try_from(content.len()).unwrap();
        bytes.extend_from_slice(&tar::header(name, size));
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len() + tar::padding(size), 0);
    }
    bytes.extend_from_slice(&tar::END);
    bytes
}

fn link(name: &str, to: &str) -> Vec<u8> {
    let mut header = ::tar::Header::new_gnu();
    header.set_entry_type(::tar::EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    let mut builder = ::tar::Builder::new(Vec::new());
    builder.append_link(&mut header, name, to).unwrap();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(512);
    bytes
}

async fn import(store: &TestStore, bytes: Vec<u8>, choices: Choices) -> Result<Vec<Arc<Image>>, ImageError> {
    let pieces: Vec<Result<Bytes, ()>> =
        bytes.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let progress = Arc::new(Progress::new("test".into()));
    store.images.import(stream::iter(pieces), choices, progress).await
}

fn is_whole(image: &Image) {
    let read = |layer: &Path, name: &str| std::fs::read_to_string(layer.join(name)).unwrap();
    assert_eq!(read(&image.layers[0], "etc/b"), "upper", "the uppermost is the first");
    assert_eq!(read(&image.layers[1], "etc/a"), "lower");
    assert_eq!(image.config.cmd, ["sh"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_forms_are_taken_in_whatever_comes_first() {
    let layers = two_layers();
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| sha256(layer)).collect();
    let id = sha256(&config(&layers)).to_string();
    for form in ["layout", "docker"] {
        for order in ["documents first", "documents last", "compressed"] {
            let directory = tempfile::tempdir().unwrap();
            let store = TestStore::open_as(directory.path(), options());
            let mut members = match form {
                "layout" => layout(&layers, "r.io/a:1"),
                _ => saved(&layers, &["r.io/a:1"]),
            };
            if order == "documents last" {
                members.reverse();
            }
            let mut bytes = archive(&members);
            if order == "compressed" {
                bytes = gzip(&bytes);
            }
            let images = import(&store, bytes, Choices::default()).await.unwrap();
            assert_eq!(images.len(), 1, "{form}, {order}");
            assert_eq!(
                (images[0].id.as_str(), &images[0].repo_tags[..]),
                (&*id, &["r.io/a:1".to_owned()][..])
            );
            assert_eq!(images[0].repo_digests.len(), usize::from(form == "layout"), "{form}, {order}");
            assert!(!images[0].pinned);
            is_whole(&images[0]);
            assert_eq!(store.images.status("r.io/a:1").unwrap().id, id);
            store.settles_with(&[&diff_ids[0], &diff_ids[1]]).await;
            assert_eq!(store.names("documents"), [id["sha256:".len()..].to_owned()]);
            drop(store);
            let store = TestStore::open_as(directory.path(), options());
            is_whole(&store.images.status("r.io/a:1").expect("it is there after a restart"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_links_and_pins_are_as_chosen() {
    let directory = tempfile::tempdir().unwrap();
    let store = TestStore::open_as(directory.path(), options());
    let layers = two_layers();
    // As older tools do: a layer by another name, which comes first.
    let mut members = saved(&layers, &[]);
    let (_, large) = members.pop().unwrap();
    let mut bytes = link("1/layer.tar", "../elsewhere.tar");
    bytes.extend_from_slice(&archive(&[("elsewhere.tar".to_owned(), large)])[..]);
    bytes.truncate(bytes.len() - tar::END.len());
    bytes.extend_from_slice(&archive(&members));
    let choices = Choices { pinned: true, name: Some("named:2".into()) };
    let images = import(&store, bytes.clone(), choices).await.unwrap();
    is_whole(&images[0]);
    assert_eq!(images[0].repo_tags, ["docker.io/library/named:2"]);
    assert!(images[0].pinned);

    // Again, without a pin and a name: what it has stays.
    let images = import(&store, bytes, Choices::default()).await.unwrap();
    assert_eq!(images[0].repo_tags, ["docker.io/library/named:2"]);
    assert!(images[0].pinned);

    // Another image takes the name.
    let other = [layer(&[("x", b"y")])];
    let images =
        import(&store, archive(&saved(&other, &["named:2", "x:1"])), Choices::default()).await.unwrap();
    assert_eq!(images[0].repo_tags.len(), 2);
    assert_eq!(store.images.status("named:2").unwrap().id, images[0].id);
    assert_eq!(store.images.list(None).len(), 2, "one without a name stays, too");

    let nameless = Choices { pinned: false, name: Some("a@sha256:".to_owned() + &"0".repeat(64)) };
    let error = import(&store, archive(&saved(&other, &[])), nameless).await.unwrap_err().to_string();
    assert!(error.contains("names no tag"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_the_configuration_are_pinned() {
    let directory = tempfile::tempdir().unwrap();
    let pinned = Options { pinned: vec!["r.io/*".into()], ..options() };
    let store = TestStore::open_as(directory.path(), pinned);
    let layers = [layer(&[("x", b"y")])];
    let image = import(&store, archive(&saved(&layers, &["r.io/a:1"])), Choices::default()).await.unwrap();
    assert!(image[0].pinned);
    let other = [layer(&[("x", b"z")])];
    import(&store, archive(&saved(&other, &["r.io/a:1"])), Choices::default()).await.unwrap();
    let lost = store.images.status(&image[0].id).unwrap();
    assert!(!lost.pinned && lost.repo_tags.is_empty(), "it was pinned by a name that another has now");
    drop(store);
    let store = TestStore::open_as(directory.path(), options());
    assert!(!store.images.status("r.io/a:1").unwrap().pinned, "the configuration has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_present_are_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let store = TestStore::open_as(directory.path(), options());
    let layers = two_layers();
    import(&store, archive(&saved(&layers, &["a:1"])), Choices::default()).await.unwrap();
    for mut members in [layout(&layers, "r.io/b:1"), saved(&layers, &["r.io/b:1"])] {
        // Not even looked at: what lies in their place is no layer.
        let (_, content) = members.last_mut().unwrap();
        content.fill(0x55);
        let images = import(&store, archive(&members), Choices::default()).await.unwrap();
        is_whole(&images[0]);
        assert_eq!(images[0].repo_tags, ["docker.io/library/a:1", "r.io/b:1"]);
    }
    // And without them: an archive may leave out what is present.
    let mut members = layout(&layers, "r.io/c:1");
    members.truncate(4);
    is_whole(&import(&store, archive(&members), Choices::default()).await.unwrap()[0]);
}

type Spoil = fn(&mut Members);

/// What is done to a good archive, and what is said of the layout and of `docker save` then.
fn spoiled() -> [(&'static str, Spoil, [&'static str; 2]); 12] {
    fn last(members: &mut Members) -> &mut Vec<u8> {
        &mut members.last_mut().unwrap().1
    }
    fn rename(members: &mut Members, name: &str) {
        members.last_mut().unwrap().0 = name.to_owned();
    }
    [
        ("a name that leaves", |m| rename(m, "../../etc/passwd"), ["\"..\"", "\"..\""]),
        ("a member twice", |m| m.push(m[2].clone()), ["is there twice", "is there twice"]),
        ("a layer is missing", |m| drop(m.pop()), ["is not in the archive", "is not in the archive"]),
        ("a small layer is missing", |m| drop(m.remove(m.len() - 2)), ["is not in the archive"; 2]),
        ("a layer that is none", |m| last(m).fill(0x55), ["its digest is", "tar header"]),
        (
            "another layer in its place",
            |m| *last(m) = layer(&[("noise", &noise(3 * DOCUMENT_BYTES, 2))]),
            ["its digest is", "its diff ID is"],
        ),
        (
            "another small layer in its place",
            |m| {
                let at = m.len() - 2;
                m[at].1 = layer(&[("x", b"y")]);
            },
            ["its digest is", "its diff ID is"],
        ),
        (
            "a config that was changed",
            |m| {
                let config = m.iter_mut().find(|(_, bytes)| bytes.starts_with(b"{\"architecture\"")).unwrap();
                config.1.push(b' ');
            },
            ["bytes were sent", "its digest is"],
        ),
        (
            "no documents",
            |m| m.retain(|(name, _)| name != "index.json" && name != "manifest.json"),
            ["has neither"; 2],
        ),
        (
            "a document that is too large",
            |m| {
                let name = if m[0].0 == "oci-layout" { "index.json" } else { "manifest.json" };
                let document = m.iter_mut().find(|(found, _)| found == name).unwrap();
                document.1.resize(DOCUMENT_BYTES + 1, b' ');
            },
            ["image_limits.document_bytes = 4096"; 2],
        ),
        (
            "too many members",
            |m| (0..20).for_each(|number| m.push((format!("x{number}"), Vec::new()))),
            ["image_limits.archive_entries = 20"; 2],
        ),
        (
            "too much that is put by",
            |m| (0..9).for_each(|number| m.push((format!("x{number}"), vec![0; DOCUMENT_BYTES]))),
            ["image_limits.archive_spool_bytes = 32768"; 2],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_archives_are_refused_and_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let bounds = Bounds { archive_entries: 20, archive_spool_bytes: 32768, ..options().bounds };
    let store = TestStore::open_as(directory.path(), Options { bounds, ..options() });
    let layers = two_layers();
    for (what, spoil, expected) in spoiled() {
        for (form, expected) in
            [layout(&layers, "r.io/a:1"), saved(&layers, &["r.io/a:1"])].iter().zip(expected)
        {
            let mut members = form.clone();
            spoil(&mut members);
            for is_reversed in [false, true] {
                if is_reversed {
                    members.reverse();
                }
                let outcome = import(&store, archive(&members), Choices::default()).await;
                let error = outcome.map(|_| ()).expect_err(what).to_string();
                assert!(error.starts_with("import: ") && error.contains(expected), "{what}: {error}");
                assert!(store.images.list(None).is_empty(), "{what}");
                store.settles_with(&[]).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_hit_the_limits_of_layers() {
    let directory = tempfile::tempdir().unwrap();
    let limits =
        cove_layer::Limits { size: 1 << 20, expansion: 10, expansion_free: 1 << 18, ..options().limits };
    let store = TestStore::open_as(directory.path(), Options { limits, ..options() });
    let zeros = |bytes: usize| layer(&[("zeros", &vec![0; bytes])]);
    let table = [
        (archive(&layout(&[zeros(1 << 19)], "a:1")), "image_limits.layer_expansion = 10"),
        (archive(&saved(&[zeros(2 << 20)], &["a:1"])), "image_limits.layer_size = 1048576"),
        (gzip(&archive(&saved(&[zeros(1 << 19)], &["a:1"]))), "image_limits.layer_expansion = 10"),
    ];
    for (bytes, expected) in table {
        let error = import(&store, bytes, Choices::default()).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error} lacks {expected}");
        store.settles_with(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_cut_off_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = TestStore::open_as(directory.path(), options());
    let mut members = saved(&two_layers(), &["a:1"]);
    members.reverse();
    let bytes = archive(&members);
    for length in [0, 100, 513, 5000, bytes.len() - 2000] {
        // The sender says that it has ended, and it goes without a word.
        let error = import(&store, bytes[..length].to_vec(), Choices::default()).await.unwrap_err();
        assert!(error.to_string().starts_with("import: "), "{error}");
        let pieces = [Ok(Bytes::copy_from_slice(&bytes[..length])), Err(())];
        let progress = Arc::new(Progress::new("test".into()));
        let outcome = store.images.import(stream::iter(pieces), Choices::default(), progress).await;
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("its sender is gone"), "{length}: {error}");
        store.settles_with(&[]).await;
    }
    // Nobody waits any more.
    let endless =
        stream::iter([Ok::<_, ()>(Bytes::copy_from_slice(&bytes[..5000]))]).chain(stream::pending());
    let progress = Arc::new(Progress::new("test".into()));
    let work = store.images.import(endless, Choices::default(), progress.clone());
    let gone = tokio::time::timeout(std::time::Duration::from_millis(200), work).await;
    assert!(gone.is_err());
    store.settles_with(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_told_to_be_there_stay_and_need_not_be_sent() {
    let directory = tempfile::tempdir().unwrap();
    let store = TestStore::open_as(directory.path(), options());
    store.images.recovered();
    let layers = two_layers();
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| sha256(layer)).collect();
    let unknown = sha256(b"no layer");
    let members = layout(&layers, "r.io/a:1");
    import(&store, archive(&members), Choices::default()).await.unwrap();
    let asked = [diff_ids[1].clone(), unknown, diff_ids[0].clone()];
    let held = store.images.present(&asked);
    assert_eq!(held.diff_ids, [diff_ids[1].clone(), diff_ids[0].clone()]);
    store.images.remove("r.io/a:1").await.unwrap();
    store.settles_with(&[&diff_ids[0], &diff_ids[1]]).await;
    let images = import(&store, archive(&members[..4]), Choices::default()).await.unwrap();
    is_whole(&images[0]);
    drop(images);
    store.images.remove("r.io/a:1").await.unwrap();
    drop(held);
    store.settles_with(&[]).await;
    let error = import(&store, archive(&members[..4]), Choices::default()).await.unwrap_err().to_string();
    assert!(error.contains("is not in the archive, and its layer is not in the store"), "{error}");
}
