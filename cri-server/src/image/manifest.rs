//! Manifests and indexes, OCI and Docker schema 2: parsed strictly, since they come from outside. Only called on bytes
//! whose digest was verified. Does not fetch.

use std::fmt;

use cove_layer::Compression;
use cove_layer::Digest;
use hyper::header::HeaderValue;
use serde::{Deserialize, Deserializer};

use super::bounds::Bounds;

/// An image.
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Images for several platforms, and what `index.json` of a layout is.
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// The media types that are understood, for `Accept`.
pub(super) fn accepted() -> HeaderValue {
    HeaderValue::from_static(concat!(
        "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, ",
        "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"
    ))
}

/// What names a blob or a document.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    /// As written.
    #[serde(default)]
    pub(super) media_type: String,
    /// Of its bytes.
    #[serde(deserialize_with = "digest")]
    pub(super) digest: Digest,
    /// In bytes.
    pub(super) size: u64,
    /// Of an entry of an index.
    #[serde(default)]
    pub(super) platform: Option<Platform>,
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.digest, self.size)
    }
}

impl Descriptor {
    /// Whether `bytes` are what this names.
    pub(super) fn verify(&self, bytes: &[u8]) -> Result<(), String> {
        if u64::try_from(bytes.len()).ok() != Some(self.size) {
            return Err(format!("{} bytes were sent", bytes.len()));
        }
        verify_digest(&self.digest, bytes)
    }
}

/// Whether `bytes` have this digest.
pub(super) fn verify_digest(digest: &Digest, bytes: &[u8]) -> Result<(), String> {
    let actual = Digest::of(digest.algorithm(), bytes);
    if actual == *digest {
        Ok(())
    } else {
        Err(format!("its digest is {actual}, and {digest} was asked for"))
    }
}

/// For which machines an image is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
}

/// The architecture of this machine in the words of images.
pub(super) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

impl Platform {
    /// Whether this machine runs it. A variant beyond the architecture's base (amd64/v3, arm64/v9) is not assumed.
    pub(super) fn is_ours(&self) -> bool {
        let base = match self.architecture.as_str() {
            "amd64" => "v1",
            "arm64" => "v8",
            _ => "",
        };
        self.os == "linux"
            && self.architecture == host_architecture()
            && (self.variant.is_empty() || self.variant == base)
    }
}

/// A manifest: the config and the layers of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    /// The image's config.
    pub(super) config: Descriptor,
    /// The undermost first.
    pub(super) layers: Vec<Layer>,
}

/// A layer as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    /// Its blob.
    pub(super) blob: Descriptor,
    /// How the blob is packed.
    pub(super) compression: Compression,
}

/// A document that a reference or a descriptor led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Parsed {
    /// One image.
    Manifest(Manifest),
    /// Images for several platforms.
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    /// Of Docker's schema 1, which has another meaning.
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Parses a document whose `Content-Type` (or whose descriptor) says `expected`. What it says of itself, what it was sent
/// as and what it holds must agree (CVE-2021-41190).
pub(super) fn parse(bytes: &[u8], expected: Option<&str>, bounds: &Bounds) -> Result<Parsed, String> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|error| format!("is no manifest: {error}"))?;
    if raw.schema_version == 1 || raw.fs_layers.is_some() {
        return Err("is of Docker's schema 1 (schema version 1), which is not read: push the image again with a newer tool"
            .to_owned());
    }
    if raw.schema_version != 2 {
        return Err(format!("has schema version {}; only 2 is read", raw.schema_version));
    }
    let stated = raw.media_type.as_deref().filter(|stated| !stated.is_empty());
    if let (Some(stated), Some(expected)) = (stated, expected)
        && stated != expected
    {
        return Err(format!("says that it is {stated:?} and was sent as {expected:?}"));
    }
    let Some(kind) = stated.or(expected) else { return Err("has no media type".to_owned()) };
    let (has_manifests, has_layers) = (raw.manifests.is_some(), raw.layers.is_some() || raw.config.is_some());
    if has_manifests && has_layers {
        return Err("is a manifest and an index at once".to_owned());
    }
    match (kind, raw.manifests, raw.config, raw.layers) {
        (OCI_INDEX | DOCKER_INDEX, Some(manifests), None, None) => index(manifests, bounds),
        (OCI_MANIFEST | DOCKER_MANIFEST, None, Some(config), Some(layers)) => {
            manifest(config, layers, bounds)
        }
        (OCI_INDEX | DOCKER_INDEX, ..) => Err(format!("is sent as {kind:?} and has no manifests")),
        (OCI_MANIFEST | DOCKER_MANIFEST, ..) => {
            Err(format!("is sent as {kind:?} and lacks config or layers"))
        }
        (other, ..) => Err(format!("is of type {other:?}, which is not a manifest or index that is read")),
    }
}

fn index(manifests: Vec<Descriptor>, bounds: &Bounds) -> Result<Parsed, String> {
    if manifests.len() > bounds.index_entries {
        let (count, limit) = (manifests.len(), bounds.index_entries);
        return Err(format!("lists {count} manifests; the limit is image_limits.index_entries = {limit}"));
    }
    Ok(Parsed::Index(manifests))
}

fn manifest(config: Descriptor, layers: Vec<Descriptor>, bounds: &Bounds) -> Result<Parsed, String> {
    if !CONFIGS.contains(&config.media_type.as_str()) {
        return Err(format!("has a config of type {:?}: it is not a container image", config.media_type));
    }
    if layers.is_empty() {
        return Err("has no layers".to_owned());
    }
    if layers.len() > bounds.layers {
        let (count, limit) = (layers.len(), bounds.layers);
        return Err(format!("has {count} layers; the limit is image_limits.layers = {limit}"));
    }
    let layers = layers.into_iter().map(|blob| layer(blob, bounds)).collect::<Result<_, _>>()?;
    Ok(Parsed::Manifest(Manifest { config, layers }))
}

fn layer(blob: Descriptor, bounds: &Bounds) -> Result<Layer, String> {
    if blob.size > bounds.blob_bytes {
        return Err(format!("layer {blob} is larger than image_limits.blob_bytes = {}", bounds.blob_bytes));
    }
    match Compression::from_media_type(&blob.media_type) {
        Some(compression) => Ok(Layer { blob, compression }),
        None => Err(format!("layer {blob} is of type {:?}, which is not read", blob.media_type)),
    }
}

/// The entries of an index to look at: the one for this machine, else those that do not say for which machine they are.
pub(super) fn candidates(index: &[Descriptor]) -> Vec<&Descriptor> {
    let is_document = |entry: &&Descriptor| {
        [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX].contains(&entry.media_type.as_str())
    };
    let documents = || index.iter().filter(is_document);
    let ours = documents().find(|entry| entry.platform.as_ref().is_some_and(Platform::is_ours));
    match ours {
        Some(entry) => vec![entry],
        None => documents().filter(|entry| entry.platform.is_none()).collect(),
    }
}

/// A digest in a document: its text never becomes a path before it was parsed (A57).
pub(super) fn digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(100).collect();
        serde::de::Error::custom(format!("{shown:?} is not a sha256 or sha512 digest in lower case"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn descriptor(media_type: &str) -> serde_json::Value {
        json!({"mediaType": media_type, "digest": D, "size": 3})
    }

    fn image() -> serde_json::Value {
        json!({"schemaVersion": 2, "config": descriptor(CONFIGS[0]), "layers": [descriptor(LAYER)]})
    }

    fn with(mut document: serde_json::Value, key: &str, value: serde_json::Value) -> serde_json::Value {
        document[key] = value;
        document
    }

    fn parse_value(document: &serde_json::Value, expected: Option<&str>) -> Result<Parsed, String> {
        parse(&serde_json::to_vec(document).unwrap(), expected, &Bounds::default())
    }

    #[test]
    fn good_documents_are_read() {
        let index = json!({"schemaVersion": 2, "manifests": [descriptor(OCI_MANIFEST)]});
        assert!(matches!(parse_value(&image(), Some(OCI_MANIFEST)), Ok(Parsed::Manifest(_))));
        assert!(matches!(parse_value(&image(), Some(DOCKER_MANIFEST)), Ok(Parsed::Manifest(_))));
        assert!(matches!(
            parse_value(&with(image(), "mediaType", OCI_MANIFEST.into()), None),
            Ok(Parsed::Manifest(_))
        ));
        assert!(matches!(parse_value(&index, Some(OCI_INDEX)), Ok(Parsed::Index(_))));
        assert!(matches!(parse_value(&index, Some(DOCKER_INDEX)), Ok(Parsed::Index(_))));
    }

    #[test]
    fn ambiguous_documents_are_refused_under_every_type() {
        let both = with(image(), "manifests", json!([descriptor(OCI_MANIFEST)]));
        let empty = with(image(), "manifests", json!([]));
        let types =
            [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX, "application/json", "text/plain"];
        for document in [both, empty] {
            for expected in types {
                assert!(parse_value(&document, Some(expected)).is_err(), "{expected}");
            }
            assert!(parse_value(&document, None).is_err());
        }
    }

    #[test]
    fn bad_documents_are_refused_with_the_reason() {
        let long = |count: usize, media_type: &str| json!(vec![descriptor(media_type); count]);
        let digest = |text: &str| json!([{"mediaType": LAYER, "digest": text, "size": 1}]);
        let table = [
            (with(image(), "mediaType", OCI_INDEX.into()), "was sent as"),
            (with(image(), "schemaVersion", json!(1)), "schema version 1"),
            (with(image(), "fsLayers", json!([])), "schema version"),
            (with(image(), "layers", json!([])), "no layers"),
            (with(image(), "layers", long(128, LAYER)), "image_limits.layers = 127"),
            (with(image(), "layers", json!([descriptor("application/x-foo")])), "not read"),
            (
                with(
                    image(),
                    "layers",
                    json!([{"mediaType": LAYER, "digest": D, "size": (64_u64 << 30) + 1}]),
                ),
                "image_limits.blob_bytes",
            ),
            (
                with(image(), "layers", json!([{"mediaType": LAYER, "digest": D, "size": -1}])),
                "is no manifest",
            ),
            (with(image(), "layers", digest("sha256:../../x")), "not a sha256"),
            (with(image(), "layers", digest(&D.to_uppercase())), "not a sha256"),
            (with(image(), "layers", digest(&D.replace("256", "512"))), "not a sha256"),
            (
                with(image(), "config", descriptor("application/vnd.oci.empty.v1+json")),
                "not a container image",
            ),
            (json!({"schemaVersion": 2, "layers": []}), "lacks config"),
            (json!([]), "is no manifest"),
        ];
        for (document, expected) in table {
            let error = parse_value(&document, Some(OCI_MANIFEST)).expect_err(expected);
            assert!(error.contains(expected), "{error} lacks {expected}");
        }
        assert!(parse_value(&image(), None).unwrap_err().contains("no media type"));
        let many = json!({"schemaVersion": 2, "manifests": long(1025, OCI_MANIFEST)});
        assert!(
            parse_value(&many, Some(OCI_INDEX)).unwrap_err().contains("image_limits.index_entries = 1024")
        );
        let deep = "[".repeat(100_000);
        let deep = format!("{{\"schemaVersion\":2,\"x\":{deep}");
        assert!(parse(deep.as_bytes(), Some(OCI_INDEX), &Bounds::default()).is_err());
    }

    #[test]
    fn the_platform_of_this_machine_is_chosen() {
        let entry = |os: &str, architecture: &str, variant: &str| {
            let platform = json!({"os": os, "architecture": architecture, "variant": variant});
            with(descriptor(OCI_MANIFEST), "platform", platform)
        };
        let host = host_architecture();
        let choose = |manifests: serde_json::Value| {
            let Ok(Parsed::Index(index)) =
                parse_value(&json!({"schemaVersion": 2, "manifests": manifests}), Some(OCI_INDEX))
            else {
                panic!("no index")
            };
            candidates(&index).into_iter().cloned().collect::<Vec<_>>()
        };
        let found = choose(json!([
            entry("windows", host, ""),
            entry("linux", "riscv128", ""),
            entry("linux", host, "v99"),
            descriptor("application/x-signature"),
            descriptor(OCI_MANIFEST),
            entry("linux", host, ""),
        ]));
        assert_eq!(found.len(), 1);
        assert!(found[0].platform.as_ref().unwrap().is_ours());
        assert_eq!(
            choose(json!([entry("linux", "riscv128", ""), descriptor(OCI_INDEX), descriptor(OCI_MANIFEST)]))
                .len(),
            2
        );
        assert!(choose(json!([entry("unknown", "unknown", "")])).is_empty());
    }
}
