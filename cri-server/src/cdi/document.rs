//! A CDI file: `vendor.json` or `vendor.yaml`, checked whole before anything of it is used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::name::{is_device, is_kind};
use super::{DocumentError, yaml};

/// The largest file that is read: those of machines with a hundred devices have some 200 KiB.
const MAX_BYTES: u64 = 4 << 20;
/// Versions of the specification whose files are understood.
const VERSIONS: [&str; 10] =
    ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// A file's content.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Document {
    cdi_version: String,
    /// `VENDOR/CLASS` of all its devices.
    pub kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: Option<BTreeMap<String, String>>,
    /// Its devices.
    pub devices: Vec<Device>,
    /// For every container that has one of them.
    #[serde(default)]
    pub container_edits: Option<Edits>,
}

/// A device.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    /// Within its kind.
    pub name: String,
    #[serde(default, rename = "annotations")]
    _annotations: Option<BTreeMap<String, String>>,
    /// For every container that has it.
    pub container_edits: Edits,
}

/// What is changed of an OCI spec.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Edits {
    /// `NAME=value`.
    pub(super) env: Option<Vec<String>>,
    pub(super) device_nodes: Option<Vec<DeviceNode>>,
    pub(super) mounts: Option<Vec<Mount>>,
    pub(super) hooks: Option<Vec<Hook>>,
    /// Groups of the first process.
    pub(super) additional_gids: Option<Vec<u32>>,
    pub(super) intel_rdt: Option<Value>,
    pub(super) net_devices: Option<Vec<Value>>,
}

/// A node below /dev.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct DeviceNode {
    /// In the container.
    pub path: String,
    /// On the host; the same if not given.
    pub host_path: Option<String>,
    /// `b`, `c` or `u`; what is not given is taken from the host's node.
    pub r#type: Option<String>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub file_mode: Option<u32>,
    /// Letters of `rwm`, or `none`.
    pub permissions: Option<String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mount {
    pub host_path: String,
    pub container_path: String,
    pub options: Option<Vec<String>>,
    pub r#type: Option<String>,
}

/// A program that is run while the container is made.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Hook {
    pub hook_name: String,
    pub path: String,
    pub args: Option<Vec<String>>,
    pub env: Option<Vec<String>>,
    /// Seconds.
    pub timeout: Option<u32>,
}

/// Reads a file. Blocking, but never for ever: a pipe is no file.
pub(super) fn read(path: &Path) -> Result<Document, DocumentError> {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblock).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(DocumentError::Kind("no regular file".to_owned()));
    }
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(DocumentError::Kind(format!("larger than {MAX_BYTES} bytes")));
    }
    let yaml = path.extension().is_some_and(|extension| extension == "yaml");
    parse(&text, yaml)
}

fn parse(text: &str, yaml: bool) -> Result<Document, DocumentError> {
    let value = if yaml { yaml::parse(text)? } else { serde_json::from_str(text)? };
    let document: Document = serde_json::from_value(value)?;
    document.check()?;
    Ok(document)
}

impl Document {
    fn check(&self) -> Result<(), DocumentError> {
        let version = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        if !VERSIONS.contains(&version) {
            let last = VERSIONS[VERSIONS.len() - 1];
            let reason = format!("{version:?} is not a version that is understood: up to {last}");
            return Err(DocumentError::value("cdiVersion", reason));
        }
        if !is_kind(&self.kind) {
            return Err(DocumentError::value("kind", format!("{:?} is not VENDOR/CLASS", self.kind)));
        }
        if self.devices.is_empty() {
            return Err(DocumentError::value("devices", "has none"));
        }
        let mut names = BTreeSet::new();
        for (index, device) in self.devices.iter().enumerate() {
            let field = format!("devices[{index}]");
            if !is_device(&device.name) {
                return Err(DocumentError::value(
                    format!("{field}.name"),
                    format!("{:?} is no name", device.name),
                ));
            }
            if !names.insert(&device.name) {
                return Err(DocumentError::value(
                    format!("{field}.name"),
                    format!("{:?} is there twice", device.name),
                ));
            }
            device.container_edits.check(&format!("{field}.containerEdits"))?;
        }
        self.container_edits.as_ref().map_or(Ok(()), |edits| edits.check("containerEdits"))
    }
}

impl Edits {
    fn check(&self, field: &str) -> Result<(), DocumentError> {
        environment(&format!("{field}.env"), self.env.as_deref())?;
        for (index, node) in self.device_nodes.iter().flatten().enumerate() {
            node.check(&format!("{field}.deviceNodes[{index}]"))?;
        }
        for (index, mount) in self.mounts.iter().flatten().enumerate() {
            let field = format!("{field}.mounts[{index}]");
            // What another kind of mount calls its source is no path.
            if mount.is_bind() {
                absolute(&format!("{field}.hostPath"), &mount.host_path)?;
            }
            no_nul(&format!("{field}.hostPath"), &mount.host_path)?;
            absolute(&format!("{field}.containerPath"), &mount.container_path)?;
        }
        for (index, hook) in self.hooks.iter().flatten().enumerate() {
            let field = format!("{field}.hooks[{index}]");
            absolute(&format!("{field}.path"), &hook.path)?;
            environment(&format!("{field}.env"), hook.env.as_deref())?;
            for arg in hook.args.iter().flatten() {
                no_nul(&format!("{field}.args"), arg)?;
            }
        }
        Ok(())
    }
}

impl Mount {
    /// Of a path of the host, which is what a mount without a type is.
    pub(super) fn is_bind(&self) -> bool {
        matches!(self.r#type.as_deref(), None | Some("" | "bind"))
    }
}

impl DeviceNode {
    fn check(&self, field: &str) -> Result<(), DocumentError> {
        absolute(&format!("{field}.path"), &self.path)?;
        if !Path::new(&self.path).starts_with("/dev") || Path::new(&self.path).components().count() < 3 {
            let reason = format!("{:?} is not below /dev, where alone nodes are made", self.path);
            return Err(DocumentError::value(format!("{field}.path"), reason));
        }
        if let Some(host) = &self.host_path {
            absolute(&format!("{field}.hostPath"), host)?;
        }
        if let Some(kind) = self.r#type.as_deref().filter(|kind| !matches!(*kind, "" | "b" | "c" | "u")) {
            return Err(DocumentError::value(
                format!("{field}.type"),
                format!("{kind:?} is none of b, c and u"),
            ));
        }
        let permissions = self.permissions.as_deref().unwrap_or_default();
        if permissions != "none" && !permissions.chars().all(|letter| "rwm".contains(letter)) {
            let reason = format!("{permissions:?} is not made of the letters r, w and m");
            return Err(DocumentError::value(format!("{field}.permissions"), reason));
        }
        Ok(())
    }
}

fn environment(field: &str, entries: Option<&[String]>) -> Result<(), DocumentError> {
    for entry in entries.into_iter().flatten() {
        no_nul(field, entry)?;
        if entry.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
            return Err(DocumentError::value(field, format!("{entry:?} is not NAME=value")));
        }
    }
    Ok(())
}

fn no_nul(field: &str, text: &str) -> Result<(), DocumentError> {
    if text.contains('\0') { Err(DocumentError::value(field, "holds a NUL byte")) } else { Ok(()) }
}

fn absolute(field: &str, path: &str) -> Result<(), DocumentError> {
    no_nul(field, path)?;
    let above = Path::new(path).components().any(|part| part == std::path::Component::ParentDir);
    if path.starts_with('/') && !above {
        return Ok(());
    }
    Err(DocumentError::value(field, format!("{path:?} is not an absolute path without '..'")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(edits: Value) -> String {
        json!({ "cdiVersion": "1.0.0", "kind": "v/c", "devices": [{ "name": "d", "containerEdits": edits }] })
            .to_string()
    }

    #[test]
    fn files_of_vendors_are_read() {
        // As nvidia-ctk 1.17 writes them, shortened.
        let text = "---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits:\n    \
                    deviceNodes:\n    - path: /dev/nvidia0\n    - path: /dev/dri/card1\n      hostPath: /dev/dri/card1\n    \
                    hooks:\n    - hookName: createContainer\n      path: /usr/bin/nvidia-cdi-hook\n      args:\n      \
                    - nvidia-cdi-hook\n      - create-symlinks\n      - --link\n      - ../card1::/dev/dri/by-path/x\n\
                    containerEdits:\n  env:\n  - NVIDIA_VISIBLE_DEVICES=void\n  mounts:\n  - hostPath: /usr/bin/nvidia-smi\n    \
                    containerPath: /usr/bin/nvidia-smi\n    options: [ro, nosuid, nodev, rbind, rprivate]\n";
        let document = parse(text, true).unwrap();
        assert_eq!(document.devices[0].container_edits.device_nodes.as_ref().unwrap().len(), 2);
        assert_eq!(document.container_edits.unwrap().mounts.unwrap()[0].options.as_ref().unwrap().len(), 5);
        assert!(parse(&with(json!({ "additionalGids": [5], "intelRdt": {} })), false).is_ok());
    }

    #[test]
    fn what_cdi_does_not_allow_is_refused_by_field() {
        let node = |change: Value| {
            let mut node = json!({ "path": "/dev/x" });
            node.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            with(json!({ "deviceNodes": [node] }))
        };
        let top = |field: &str, value: Value| {
            let mut document: Value = serde_json::from_str(&with(json!({}))).unwrap();
            document[field] = value;
            document.to_string()
        };
        let twice = json!([{ "name": "d", "containerEdits": {} }, { "name": "d", "containerEdits": {} }]);
        for (text, word) in [
            (top("cdiVersion", json!("9.0.0")), "cdiVersion"),
            (top("kind", json!("gpu")), "kind"),
            (top("devices", json!([])), "devices"),
            (top("devices", twice), "devices[1].name"),
            (top("surprise", json!(1)), "surprise"),
            (with(json!({ "env": ["=x"] })), "containerEdits.env"),
            (with(json!({ "env": ["A\0=x"] })), "NUL"),
            (node(json!({ "path": "/etc/x" })), "below /dev"),
            (node(json!({ "path": "/dev/../etc/x" })), "path"),
            (node(json!({ "hostPath": "x" })), "hostPath"),
            (node(json!({ "type": "p" })), "type"),
            (node(json!({ "permissions": "rx" })), "permissions"),
            (node(json!({ "major": -1 })), "-1"),
            (with(json!({ "mounts": [{ "hostPath": "x", "containerPath": "/x" }] })), "mounts[0].hostPath"),
            (with(json!({ "hooks": [{ "hookName": "createContainer", "path": "x" }] })), "hooks[0].path"),
            (with(json!({ "unknown": [] })), "unknown"),
            ("{".to_owned(), "EOF"),
        ] {
            let error = parse(&text, false).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn only_bounded_regular_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe.json");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(read(&pipe).unwrap_err().to_string().contains("no regular file"));
        let large = directory.path().join("large.json");
        File::create(&large).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(read(&large).unwrap_err().to_string().contains("larger"));
        assert!(matches!(read(&directory.path().join("missing.json")), Err(DocumentError::Io(_))));
    }
}
