//! What an archive says that it holds: images with their names, configs and layers, from `index.json` of an OCI image layout
//! or from `manifest.json` of `docker save`. Reads documents by the names of members, touches no layer, and believes no
//! digest that it did not verify.

mod docker;
mod oci;

use cove_layer::{Compression, Digest};

use super::ImageError;
use super::bounds::Bounds;
use super::manifest::Descriptor;
pub(super) use oci::{BLOBS, member};
pub(crate) use oci::{LAYOUT, named_by};

/// The document of an OCI image layout that names its images.
pub(crate) const INDEX: &str = "index.json";
/// The document of `docker save` that names its images.
pub(crate) const DOCKER: &str = "manifest.json";
/// Names that one image may get from an archive.
const MAX_NAMES: usize = 1000;

/// Where documents are read.
pub(crate) trait Documents {
    /// A member of at most `image_limits.document_bytes`, if it is there.
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError>;

    /// The member that a name in a document means, where names can lead elsewhere. `None`: to nothing.
    fn resolve(&self, name: &str) -> Option<String> {
        Some(name.to_owned())
    }
}

/// An image as the archive describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    /// Digest of its config.
    pub(super) id: Digest,
    /// The member that is its config.
    pub(super) config: String,
    /// The member that is its manifest, where there is one.
    pub(super) manifest: Option<String>,
    /// `registry/name:tag`.
    pub(super) tags: Vec<String>,
    /// `registry/name@digest`.
    pub(super) digests: Vec<String>,
    /// The undermost first.
    pub(super) layers: Vec<PlannedLayer>,
}

/// A layer of such an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedLayer {
    /// What the config says of it.
    pub(super) diff_id: Digest,
    /// The member that it is.
    pub(super) member: String,
    /// What the manifest says of the member; `docker save` says nothing.
    pub(super) blob: Option<Descriptor>,
    /// How the member is packed.
    pub(super) compression: Compression,
}

/// The images of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// For this machine, each once.
    pub(super) images: Vec<Planned>,
    /// Members below `blobs` that no image names are of no use.
    pub(super) is_layout: bool,
}

/// Finds out what `documents` describe. An archive with `index.json` is an OCI image layout, and `manifest.json` beside it
/// only gives names.
pub(super) fn plan(documents: &impl Documents, bounds: &Bounds) -> Result<Plan, ImageError> {
    let mut images = Vec::new();
    let is_layout = match documents.document(INDEX)? {
        Some(index) => {
            oci::images(documents, &index, bounds, &mut images)?;
            true
        }
        None => false,
    };
    match documents.document(DOCKER)? {
        Some(list) if is_layout => docker::names(documents, &list, bounds, &mut images)?,
        Some(list) => docker::images(documents, &list, bounds, &mut images)?,
        None if is_layout => (),
        None => {
            let reason = format!("has neither {INDEX} (an OCI image layout) nor {DOCKER} (docker save)");
            return Err(ImageError::archive("the archive", reason));
        }
    }
    Ok(Plan { images, is_layout })
}

/// Takes an image in, or adds its names to the one of the same id.
fn add(images: &mut Vec<Planned>, new: Planned) -> Result<(), ImageError> {
    let id = new.id.clone();
    let image = match images.iter_mut().find(|image| image.id == id) {
        Some(image) => {
            image.tags.extend(new.tags);
            image.digests.extend(new.digests);
            image
        }
        None => {
            images.push(new);
            let last = images.len() - 1;
            &mut images[last]
        }
    };
    if image.tags.len() + image.digests.len() > MAX_NAMES {
        return Err(ImageError::archive(id.as_str(), format!("has more than {MAX_NAMES} names")));
    }
    Ok(())
}

/// A document that must be there.
fn required(documents: &impl Documents, name: &str) -> Result<Vec<u8>, ImageError> {
    documents.document(name)?.ok_or_else(|| ImageError::archive(shown(name), "is not in the archive"))
}

/// A member's name for an error: escaped and bounded.
pub(super) fn shown(name: &str) -> String {
    const SHOWN: usize = 200;
    let cut: String = name.chars().take(SHOWN).collect();
    if cut.len() < name.len() { format!("member {:?}", cut + "…") } else { format!("member {cut:?}") }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::{Value, json};

    use super::super::manifest::host_architecture;
    use super::super::sha256;
    use super::*;

    #[derive(Default)]
    struct Files(HashMap<String, Vec<u8>>);

    impl Documents for Files {
        fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
            Ok(self.0.get(name).cloned())
        }
    }

    const DIFF_ID: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

    impl Files {
        fn put(&mut self, name: &str, value: &Value) {
            self.0.insert(name.to_owned(), serde_json::to_vec(value).unwrap());
        }

        /// Puts a blob and gives its descriptor.
        fn blob(&mut self, media_type: &str, value: &Value) -> Value {
            let bytes = serde_json::to_vec(value).unwrap();
            let digest = sha256(&bytes);
            let descriptor =
                json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()});
            self.0.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
            descriptor
        }

        fn config(architecture: &str) -> Value {
            json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIFF_ID]}})
        }

        fn manifest(&mut self, architecture: &str) -> Value {
            let config = self.blob("application/vnd.oci.image.config.v1+json", &Self::config(architecture));
            let layer = json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIFF_ID, "size": 9});
            self.blob(MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": [layer]}))
        }

        fn plan(&self) -> Result<Plan, String> {
            plan(self, &Bounds::default()).map_err(|error| error.to_string())
        }
    }

    fn with(mut value: Value, key: &str, inner: Value) -> Value {
        value[key] = inner;
        value
    }

    #[test]
    fn a_layout_gives_images_of_this_machine_with_their_names() {
        let mut files = Files::default();
        let ours = files.manifest(host_architecture());
        let name = |key: &str, name: &str| json!({key: name});
        let reference = "org.opencontainers.image.ref.name";
        let other = json!({"os": "linux", "architecture": "riscv128"});
        let missing = json!({"mediaType": MANIFEST, "digest": DIFF_ID, "size": 1, "platform": other});
        files.put(
            INDEX,
            &json!({"schemaVersion": 2, "manifests": [
                with(ours.clone(), "annotations", name(reference, "latest")),
                with(ours.clone(), "annotations", name(reference, "r.io/a:1")),
                with(ours.clone(), "annotations", name("io.containerd.image.name", "docker.io/library/b:2")),
                missing,
            ]}),
        );
        let plan = files.plan().unwrap();
        assert!(plan.is_layout && plan.images.len() == 1);
        let digest = ours["digest"].as_str().unwrap();
        assert_eq!(plan.images[0].tags, ["r.io/a:1", "docker.io/library/b:2"]);
        assert_eq!(
            plan.images[0].digests,
            [format!("r.io/a@{digest}"), format!("docker.io/library/b@{digest}")]
        );
        assert_eq!(plan.images[0].layers[0].diff_id.to_string(), DIFF_ID);

        files.put(DOCKER, &json!([{"Config": plan.images[0].config, "RepoTags": ["c:3"], "Layers": []}]));
        assert_eq!(files.plan().unwrap().images[0].tags[2], "docker.io/library/c:3");
    }

    #[test]
    fn an_index_within_leads_to_the_manifest_of_this_machine() {
        let mut files = Files::default();
        let ours = with(
            files.manifest(host_architecture()),
            "platform",
            json!({"os": "linux", "architecture": host_architecture()}),
        );
        let foreign = with(ours.clone(), "platform", json!({"os": "linux", "architecture": "riscv128"}));
        let index_type = "application/vnd.oci.image.index.v1+json";
        let index = files.blob(index_type, &json!({"schemaVersion": 2, "manifests": [foreign, ours]}));
        let digest = index["digest"].as_str().unwrap().to_owned();
        let named = with(index, "annotations", json!({"org.opencontainers.image.ref.name": "r.io/a:1"}));
        files.put(INDEX, &json!({"schemaVersion": 2, "manifests": [named]}));
        let plan = files.plan().unwrap();
        assert_eq!(plan.images[0].digests, [format!("r.io/a@{digest}")], "the index has the name");
    }

    #[test]
    fn docker_save_gives_images_in_order_with_their_tags() {
        let mut files = Files::default();
        let config = Files::config(host_architecture());
        let name = format!("{}.json", sha256(&serde_json::to_vec(&config).unwrap()).hex());
        files.put(&name, &config);
        files.put(
            DOCKER,
            &json!([{"Config": name, "RepoTags": ["a:1", "r.io/b:2"], "Layers": ["x/layer.tar"]}, {"Config": name, "RepoTags": null, "Layers": ["x/layer.tar"]}]),
        );
        let plan = files.plan().unwrap();
        assert!(!plan.is_layout && plan.images.len() == 1);
        assert_eq!(plan.images[0].tags, ["docker.io/library/a:1", "r.io/b:2"]);
        assert!(plan.images[0].digests.is_empty(), "nobody knows the digest of its manifest");
        assert_eq!(plan.images[0].layers[0].member, "x/layer.tar");
    }

    #[test]
    fn what_is_wrong_is_told_by_its_name() {
        type Damage = fn(&mut Files);
        let table: [(Damage, &str); 9] = [
            (|files| drop(files.0.remove(INDEX)), "has neither"),
            (|files| files.put(INDEX, &json!({"schemaVersion": 2, "manifests": []})), "holds no image"),
            (|files| drop(files.0.insert(INDEX.into(), b"{".to_vec())), "is no manifest"),
            (|files| files.0.values_mut().for_each(|bytes| bytes.extend_from_slice(b" ")), "bytes were sent"),
            (|files| files.0.retain(|name, _| name == INDEX), "is not in the archive"),
            (
                |files| {
                    let foreign = files.manifest("riscv128");
                    files.put(INDEX, &json!({"schemaVersion": 2, "manifests": [foreign]}));
                },
                "is for",
            ),
            (
                |files| {
                    let bad = json!({"mediaType": MANIFEST, "digest": "sha256:../../etc/passwd", "size": 1});
                    files.put(INDEX, &json!({"schemaVersion": 2, "manifests": [bad]}));
                },
                "not a sha256",
            ),
            (
                |files| {
                    files.0.remove(INDEX);
                    files.put(DOCKER, &json!([{"Config": "../x", "RepoTags": null, "Layers": []}]));
                },
                "has no layers",
            ),
            (
                |files| {
                    files.0.remove(INDEX);
                    files.put("c.json", &Files::config(host_architecture()));
                    files.put(DOCKER, &json!([{"Config": "c.json", "RepoTags": ["A:1"], "Layers": ["l"]}]));
                },
                "repository name",
            ),
        ];
        for (damage, expected) in table {
            let mut files = Files::default();
            let manifest = files.manifest(host_architecture());
            files.put(INDEX, &json!({"schemaVersion": 2, "manifests": [manifest]}));
            files.plan().unwrap();
            damage(&mut files);
            let error = files.plan().expect_err(expected);
            assert!(error.contains(expected), "{error} lacks {expected}");
        }
    }
}
