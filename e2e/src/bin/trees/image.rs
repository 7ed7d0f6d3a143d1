//! An image of real packages: each layer is what some packages install, and the last one changes what lies below it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cove_e2e::Outcome;
use cove_e2e::image::{self, Blob, Image, Layer};
use serde_json::{Value, json};

/// What an image is made of.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) suite: &'static str,
    pub(crate) layers: usize,
    pub(crate) variant: &'static str,
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Debian {} ({}) in {} layers", self.suite, self.variant, self.layers)
    }
}

impl Recipe {
    /// Builds it. `work` is for files on the way.
    pub(crate) fn build(&self, packages: &[PathBuf], work: &Path) -> Outcome<Image> {
        let own = [Layer::new().file("busybox-cove", 0o755, fs::read("/bin/busybox")?), changes(work)?];
        let count = self.layers - own.len();
        if packages.len() < count {
            return Err(format!("{} packages do not make {} layers", packages.len(), self.layers).into());
        }
        let mut layers = Vec::new();
        for part in 0..count {
            let (from, to) = (part * packages.len() / count, (part + 1) * packages.len() / count);
            let mut archive = Vec::new();
            for package in &packages[from..to] {
                let output = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).output()?;
                if !output.status.success() {
                    return Err(String::from_utf8_lossy(&output.stderr).into());
                }
                archive.extend_from_slice(&output.stdout[..end(&output.stdout)?]);
            }
            layers.push(Layer::of(archive));
        }
        layers.extend(own);
        image::build(layers, json!({"Env": ["PATH=/usr/bin:/bin"]}))
    }
}

/// Where the last entry of an archive ends: the zeros behind it would end a longer archive too early.
fn end(archive: &[u8]) -> Outcome<usize> {
    let mut end = 0;
    for entry in tar::Archive::new(archive).entries()?.raw(true) {
        let entry = entry?;
        end = entry.raw_file_position() + entry.header().entry_size()?.next_multiple_of(512);
    }
    Ok(usize::try_from(end)?)
}

/// What a package does not hold: files taken away and replaced, nodes, attributes, owners. Made by GNU tar.
fn changes(work: &Path) -> Outcome<Layer> {
    let script = "
        set -e
        mkdir -p usr/share/doc usr/share/locale/de opt/of/user usr/share/info
        touch usr/share/doc/.wh.base-files usr/share/doc/.wh.never-was
        touch usr/share/locale/.wh..wh..opq; echo guten tag >usr/share/locale/de/text
        mknod opt/null c 1 3; mknod opt/disk b 8 1; mkfifo opt/pipe; chmod 640 opt/disk
        echo 1 >opt/one; ln opt/one opt/two; ln -s ../one opt/of/link; ln -s /nowhere opt/of/dangling
        cp /bin/busybox opt/setuid; chown 7:8 opt/setuid; chmod 6755 opt/setuid
        echo capable >opt/capable; setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 opt/capable
        setfattr -n user.note -v text opt/one
        chown -R 1000:1001 opt/of/user; chmod 1777 opt/of/user
        truncate -s 300K opt/zeros
        printf x >\"opt/$(printf 'long%.0s' $(seq 40))\"; printf y >'opt/a name with spaces'; printf z >\"opt/$(printf 'n\\303\\244me')\"
        touch -d 1970-01-01T00:00:01Z opt/old; touch -d 2038-06-01T00:00:00.123456789Z opt/new
        tar --sort=name --numeric-owner --xattrs --xattrs-include='*' --format=pax -cf ../changes.tar usr opt";
    let directory = work.join("changes");
    fs::create_dir_all(&directory)?;
    let output = Command::new("bash").args(["-c", script]).current_dir(&directory).output()?;
    if !output.status.success() {
        return Err(format!("make the last layer: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let archive = fs::read(work.join("changes.tar"))?;
    let end = end(&archive)?;
    Ok(Layer::of(archive[..end].to_vec()))
}

/// Writes an image as an OCI layout, and says how umoci is to be told of it.
pub(crate) fn layout(image: &Image, directory: &Path) -> Outcome<String> {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    for Blob { digest, bytes } in image.blobs.iter().chain([&image.manifest]) {
        fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes)?;
    }
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
    let mut manifest = image::descriptor(image::MANIFEST, &image.manifest);
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "it"});
    let index: Value = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(directory.join("index.json"), serde_json::to_vec(&index)?)?;
    Ok(format!("{}:it", directory.display()))
}
