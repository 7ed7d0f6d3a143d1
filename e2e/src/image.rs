//! OCI images made from explicit entries, for tests and the demo.

use std::collections::BTreeMap;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Outcome;

/// A blob and its digest (`sha256:…`).
#[derive(Debug, Clone)]
pub struct Blob {
    /// `sha256:` and 64 hex digits.
    pub digest: String,
    /// The content.
    pub bytes: Vec<u8>,
}

impl Blob {
    /// Names `bytes` by their digest.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { digest: digest(&bytes), bytes }
    }
}

/// `sha256:…` of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    digest_of(Sha256::new_with_prefix(bytes))
}

/// The same of what was hashed already.
pub fn digest_of(hash: Sha256) -> String {
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A tar archive that grows by entries. Names go in as they are: also hostile ones.
#[derive(Clone, Default)]
pub struct Layer {
    bytes: Vec<u8>,
    /// Where the header of the entry that was added last begins.
    last: usize,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Layer({} bytes)", self.bytes.len())
    }
}

impl Layer {
    /// An empty layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// The entries of an archive that was made elsewhere, without the zeros at its end.
    pub fn of(entries: Vec<u8>) -> Self {
        Self { bytes: entries, last: 0 }
    }

    fn entry(mut self, kind: tar::EntryType, name: &str, link: &str, mode: u32, body: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        // Written by hand: the crate refuses names such as `../x`, which are what the tests need.
        let raw = header.as_mut_bytes();
        raw[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
        raw[157..157 + link.len().min(100)].copy_from_slice(&link.as_bytes()[..link.len().min(100)]);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(body.len() as u64);
        header.set_cksum();
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// A regular file.
    #[must_use]
    pub fn file(self, name: &str, mode: u32, body: impl AsRef<[u8]>) -> Self {
        self.entry(tar::EntryType::Regular, name, "", mode, body.as_ref())
    }

    /// A directory.
    #[must_use]
    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(tar::EntryType::Directory, name, "", mode, &[])
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, name, target, 0o777, &[])
    }

    /// A hard link. The mode is that of the programs that test images link: some runtimes give it to the file.
    #[must_use]
    pub fn hardlink(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Link, name, target, 0o755, &[])
    }

    /// A named pipe.
    #[must_use]
    pub fn fifo(self, name: &str, mode: u32) -> Self {
        self.entry(tar::EntryType::Fifo, name, "", mode, &[])
    }

    /// A character device.
    #[must_use]
    pub fn device(mut self, name: &str, major: u32, minor: u32) -> Self {
        self = self.entry(tar::EntryType::Char, name, "", 0o666, &[]);
        self.edit(|header| {
            // Numbers of this size fit their fields.
            let _ = header.set_device_major(major);
            let _ = header.set_device_minor(minor);
        })
    }

    /// A PAX header (pax(1)) for the entry that is added next.
    #[must_use]
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let content: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.entry(tar::EntryType::XHeader, "pax", "", 0o644, &content)
    }

    /// A header that promises `size` bytes, as the field for it has them, and nothing after it.
    #[must_use]
    pub fn claim(self, kind: u8, name: &str, size: &[u8; 12]) -> Self {
        self.entry(tar::EntryType::new(kind), name, "", 0o644, &[])
            .edit(|header| header.as_mut_bytes()[124..136].copy_from_slice(size))
    }

    /// Gives the entry that was added last to a user and a group.
    #[must_use]
    pub fn owner(self, uid: u64, gid: u64) -> Self {
        self.edit(|header| {
            header.set_uid(uid);
            header.set_gid(gid);
        })
    }

    /// Changes the header of the entry that was added last.
    fn edit(mut self, change: impl FnOnce(&mut tar::Header)) -> Self {
        let mut header = tar::Header::new_ustar();
        let raw = &mut self.bytes[self.last..self.last + 512];
        header.as_mut_bytes().copy_from_slice(raw);
        change(&mut header);
        header.set_cksum();
        raw.copy_from_slice(header.as_bytes());
        self
    }

    /// The whole archive.
    pub fn tar(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

/// One PAX record, whose length counts its own digits.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// An image: blobs and the manifest that names them.
#[derive(Debug, Clone)]
pub struct Image {
    /// Config and layers.
    pub blobs: Vec<Blob>,
    /// The manifest.
    pub manifest: Blob,
    /// Digest of the config: the id that a runtime gives the image.
    pub id: String,
}

/// Builds an image of gzip layers. `config` is the `config` object of the OCI image config.
pub fn build(layers: Vec<Layer>, config: Value) -> Outcome<Image> {
    assemble(Vec::new(), Vec::new(), Vec::new(), layers, config)
}

/// A layer as it is sent, whatever it holds.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The blob.
    pub bytes: Vec<u8>,
    /// How it is compressed, as the end of a media type: `tar+gzip`.
    pub form: &'static str,
    /// The digest of what comes out, right or wrong.
    pub diff_id: String,
}

/// Builds an image of layers that are ready to be sent.
pub fn build_of(layers: Vec<Sent>, config: Value) -> Outcome<Image> {
    let (mut blobs, mut diff_ids, mut descriptors) = (Vec::new(), Vec::new(), Vec::new());
    for Sent { bytes, form, diff_id } in layers {
        let blob = Blob::new(bytes);
        diff_ids.push(diff_id.into());
        descriptors.push(descriptor(&format!("application/vnd.oci.image.layer.v1.{form}"), &blob));
        blobs.push(blob);
    }
    assemble(blobs, diff_ids, descriptors, Vec::new(), config)
}

impl Image {
    /// The same layers with another config, whatever it says.
    pub fn with_config(&self, config: Vec<u8>) -> Outcome<Self> {
        let mut image = self.clone();
        let config = Blob::new(config);
        let mut manifest: Value = serde_json::from_slice(&image.manifest.bytes)?;
        manifest["config"] = descriptor("application/vnd.oci.image.config.v1+json", &config);
        image.manifest = Blob::new(serde_json::to_vec(&manifest)?);
        image.id.clone_from(&config.digest);
        image.blobs.pop();
        image.blobs.push(config);
        Ok(image)
    }

    /// Its config.
    pub fn config(&self) -> Outcome<Value> {
        Ok(serde_json::from_slice(&self.blobs.last().ok_or("an image without a config")?.bytes)?)
    }
}

/// Builds an image of the layers of `base`, which are not compressed again, and of further ones.
pub fn build_on(base: &Image, layers: Vec<Layer>, config: Value) -> Outcome<Image> {
    let (document, blobs) = base.blobs.split_last().ok_or("an image without a config")?;
    let document: Value = serde_json::from_slice(&document.bytes)?;
    let manifest: Value = serde_json::from_slice(&base.manifest.bytes)?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    assemble(blobs.to_vec(), list(&document["rootfs"]["diff_ids"]), list(&manifest["layers"]), layers, config)
}

fn assemble(
    mut blobs: Vec<Blob>,
    mut diff_ids: Vec<Value>,
    mut descriptors: Vec<Value>,
    layers: Vec<Layer>,
    config: Value,
) -> Outcome<Image> {
    for layer in layers {
        let tar = layer.tar();
        diff_ids.push(digest(&tar).into());
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar)?;
        let blob = Blob::new(gzip.finish()?);
        descriptors.push(descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &blob));
        blobs.push(blob);
    }
    let config = Blob::new(serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))?);
    let manifest = Blob::new(serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": descriptors,
    }))?);
    let id = config.digest.clone();
    blobs.push(config);
    Ok(Image { blobs, manifest, id })
}

/// Media type of an OCI manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Media type of an OCI index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A descriptor of `blob`.
pub fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({"mediaType": media_type, "digest": blob.digest, "size": blob.bytes.len()})
}

/// The programs that the test images link to busybox.
const PROGRAMS: &[&str] = &[
    "sh",
    "sleep",
    "echo",
    "cat",
    "id",
    "ls",
    "touch",
    "wget",
    "httpd",
    "hostname",
    "true",
    "false",
    "kill",
    "ps",
    "head",
    "dd",
    "grep",
    "mkdir",
    "mount",
    "umount",
    "stat",
    "env",
    "pwd",
    "nc",
    "ip",
    "ping",
    "seq",
    "wc",
    "yes",
    "readlink",
    "tail",
    "test",
    "trap",
    "tr",
    "cut",
    "ln",
    "rm",
    "sha256sum",
    "date",
    "printf",
    "df",
    "mknod",
    "pgrep",
    "top",
    "setsid",
    "nohup",
    "uname",
    "unshare",
    "chmod",
];

/// Debian's static busybox with links to its programs in /bin: the lowest layer of every test image.
pub fn busybox() -> Outcome<Layer> {
    let mut layer = Layer::new().dir("bin", 0o755).dir("tmp", 0o1777).dir("etc", 0o755).file(
        "bin/busybox",
        0o755,
        std::fs::read("/bin/busybox")?,
    );
    for program in PROGRAMS {
        layer = layer.symlink(&format!("bin/{program}"), "busybox");
    }
    Ok(layer)
}

/// /etc/passwd and /etc/group with a named user in a further group.
pub fn accounts() -> Layer {
    Layer::new()
        .file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n")
        .file("etc/group", 0o644, "root:x:0:\napp:x:1000:\nextra:x:50000:app\n")
        .dir("home/app", 0o755)
}

/// Environment as a JSON list.
pub fn env(pairs: &[(&str, &str)]) -> Value {
    let sorted: BTreeMap<_, _> = pairs.iter().copied().collect();
    Value::from(sorted.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>())
}
