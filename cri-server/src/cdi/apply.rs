//! Edits of CDI files become changes of an OCI spec, which is JSON here. What is not built is refused by name.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path};

use rustix::fs::{major, minor};
use serde_json::{Value, json};

use super::document::{DeviceNode, Edits, Hook, Mount};

/// What a container may do with a device whose file does not say.
const ACCESS: &str = "rwm";

/// Makes the edits, in their order. `env` is the environment where JSON cannot hold it; `rules`: the container's devices are
/// limited to those that have a rule. The error says what cannot be done. Blocking: looks at nodes of the host.
pub fn apply(
    spec: &mut Value,
    mut env: Option<&mut Vec<Vec<u8>>>,
    edits: &[Edits],
    rules: bool,
) -> Result<(), String> {
    for edit in edits {
        refuse_not_built(edit)?;
        for entry in edit.env.iter().flatten() {
            set_env(spec, env.as_deref_mut(), entry);
        }
        for node in edit.device_nodes.iter().flatten() {
            add_device(spec, node, rules)?;
        }
        for mount in edit.mounts.iter().flatten() {
            add_mount(spec, mount)?;
        }
        for hook in edit.hooks.iter().flatten() {
            add_hook(spec, hook)?;
        }
        for gid in edit.additional_gids.iter().flatten().filter(|gid| **gid != 0) {
            let groups = list(&mut spec["process"]["user"]["additionalGids"]);
            if !groups.contains(&json!(gid)) {
                groups.push(json!(gid));
            }
        }
    }
    // Parents first, as all mounts are.
    list(&mut spec["mounts"])
        .sort_by_key(|mount| components(mount["destination"].as_str().unwrap_or_default()).count());
    Ok(())
}

fn refuse_not_built(edit: &Edits) -> Result<(), String> {
    let not_built = |what: &str| Err(format!("{what} is not implemented by this version of Cove"));
    if edit.intel_rdt.as_ref().is_some_and(|rdt| !rdt.is_null()) {
        return not_built("intelRdt");
    }
    if edit.net_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
        return not_built("netDevices");
    }
    Ok(())
}

/// The list at a place of the spec, made if it is not there.
fn list(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().expect("it was made one")
}

/// A path by its parts, so that a slash at its end makes no other of it.
fn components(path: &str) -> impl Iterator<Item = Component<'_>> {
    Path::new(path).components()
}

fn set_env(spec: &mut Value, raw: Option<&mut Vec<Vec<u8>>>, entry: &str) {
    // Checked when the file was read.
    let prefix = &entry[..=entry.find('=').unwrap_or(entry.len() - 1)];
    let all = list(&mut spec["process"]["env"]);
    all.retain(|known| !known.as_str().unwrap_or_default().starts_with(prefix));
    all.push(json!(entry));
    if let Some(raw) = raw {
        raw.retain(|known| !known.starts_with(prefix.as_bytes()));
        raw.push(entry.as_bytes().to_vec());
    }
}

fn add_device(spec: &mut Value, node: &DeviceNode, rules: bool) -> Result<(), String> {
    let device = filled(node)?;
    let owner = |field: &str| spec["process"]["user"][field].as_u64().filter(|id| *id > 0);
    let (uid, gid) =
        (node.uid.map(u64::from).or_else(|| owner("uid")), node.gid.map(u64::from).or_else(|| owner("gid")));
    let mut entry =
        json!({ "path": node.path, "type": device.kind, "major": device.major, "minor": device.minor });
    for (field, value) in [("fileMode", device.mode.map(u64::from)), ("uid", uid), ("gid", gid)] {
        if let Some(value) = value {
            entry[field] = json!(value);
        }
    }
    let devices = list(&mut spec["linux"]["devices"]);
    devices.retain(|known| !known["path"].as_str().unwrap_or_default().eq(&node.path));
    devices.push(entry);
    let access = match node.permissions.as_deref().unwrap_or_default() {
        "" => ACCESS,
        "none" => return Ok(()),
        given => given,
    };
    if rules {
        list(&mut spec["linux"]["resources"]["devices"]).push(json!({ "allow": true, "type": device.kind,
            "major": device.major, "minor": device.minor, "access": access }));
    }
    Ok(())
}

/// What a node is, as far as its file says it, and for the rest as the host's node is.
struct Filled {
    kind: &'static str,
    major: u32,
    minor: u32,
    mode: Option<u32>,
}

fn filled(node: &DeviceNode) -> Result<Filled, String> {
    let path = node.host_path.as_deref().filter(|path| !path.is_empty()).unwrap_or(&node.path);
    let asked = match node.r#type.as_deref().unwrap_or_default() {
        "" => None,
        "b" => Some("b"),
        // `u` is a character device that is not buffered: mknod(1).
        _ => Some("c"),
    };
    let host = std::fs::metadata(path).map_err(|error| format!("{path}: {error}")).and_then(|found| {
        let kind = match found.file_type() {
            kind if kind.is_block_device() => "b",
            kind if kind.is_char_device() => "c",
            _ => return Err(format!("{path} is no device")),
        };
        Ok(Filled {
            kind,
            major: major(found.rdev()),
            minor: minor(found.rdev()),
            mode: Some(found.mode() & 0o777),
        })
    });
    match (asked, node.major, node.minor) {
        // All is said: whether the host has the node is for the vendor to know.
        (Some(kind), Some(major), minor) if major > 0 => {
            let mode = node.file_mode.or_else(|| host.ok().and_then(|host| host.mode));
            Ok(Filled { kind, major, minor: minor.unwrap_or(0), mode: mode.map(|mode| mode & 0o777) })
        }
        _ => {
            let host = host?;
            if asked.is_some_and(|asked| asked != host.kind) {
                return Err(format!("{path} is a device of another type than the file says"));
            }
            let mode = node.file_mode.map(|mode| mode & 0o777).or(host.mode);
            Ok(Filled { mode, ..host })
        }
    }
}

fn add_mount(spec: &mut Value, mount: &Mount) -> Result<(), String> {
    let mut options: Vec<&str> = mount.options.iter().flatten().map(String::as_str).collect();
    let kind = if mount.is_bind() { "bind" } else { mount.r#type.as_deref().unwrap_or_default() };
    if mount.is_bind() {
        // Drivers and their libraries, not somebody's volume. A builder would make a directory of what is missing.
        std::fs::symlink_metadata(&mount.host_path)
            .map_err(|error| format!("{}: {error}", mount.host_path))?;
        if !options.iter().any(|option| matches!(*option, "bind" | "rbind")) {
            options.push("rbind");
        }
    }
    let all = list(&mut spec["mounts"]);
    all.retain(|known| {
        !components(known["destination"].as_str().unwrap_or_default()).eq(components(&mount.container_path))
    });
    all.push(json!({ "destination": mount.container_path, "type": kind, "source": mount.host_path, "options": options }));
    Ok(())
}

/// The only hooks of CDI files in use; the others are for who makes networks.
fn add_hook(spec: &mut Value, hook: &Hook) -> Result<(), String> {
    if hook.hook_name != "createContainer" {
        let Hook { hook_name, path, .. } = hook;
        return Err(format!("the hook {hook_name} ({path}) is not implemented by this version of Cove"));
    }
    let mut entry = json!({ "path": hook.path });
    for (field, values) in [("args", &hook.args), ("env", &hook.env)] {
        if let Some(values) = values.as_ref().filter(|values| !values.is_empty()) {
            entry[field] = json!(values);
        }
    }
    if let Some(seconds) = hook.timeout.filter(|seconds| *seconds > 0) {
        entry["timeout"] = json!(seconds);
    }
    list(&mut spec["hooks"]["createContainer"]).push(entry);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Value {
        json!({
            "process": { "env": ["PATH=/bin", "A=old"], "user": { "uid": 1000, "gid": 0 } },
            "mounts": [{ "destination": "/proc" }, { "destination": "/opt/x/" }],
            "linux": { "resources": {}, "devices": [{ "path": "/dev/null" }] },
        })
    }

    fn edits(value: Value) -> Vec<Edits> {
        vec![serde_json::from_value(value).unwrap()]
    }

    fn applied(value: Value) -> Result<Value, String> {
        let mut spec = spec();
        apply(&mut spec, None, &edits(value), true)?;
        Ok(spec)
    }

    #[test]
    fn environment_and_groups() {
        let spec = applied(json!({ "env": ["A=new", "B=1"], "additionalGids": [0, 44, 44] })).unwrap();
        assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "A=new", "B=1"]));
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([44]));
        let mut raw = vec![b"A=\xff".to_vec(), b"C=\xfe".to_vec()];
        apply(&mut self::spec(), Some(&mut raw), &edits(json!({ "env": ["A=new"] })), true).unwrap();
        assert_eq!(raw, [b"C=\xfe".to_vec(), b"A=new".to_vec()]);
    }

    #[test]
    fn nodes_take_from_the_host_what_is_not_said() {
        let spec = applied(json!({ "deviceNodes": [
            { "path": "/dev/null", "hostPath": "/dev/full", "permissions": "r" },
            { "path": "/dev/said", "type": "b", "major": 7, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6 },
            { "path": "/dev/shut", "type": "u", "major": 7, "permissions": "none" },
        ] }))
        .unwrap();
        assert_eq!(
            spec["linux"]["devices"],
            json!([
                { "path": "/dev/null", "type": "c", "major": 1, "minor": 7, "fileMode": 0o666, "uid": 1000 },
                { "path": "/dev/said", "type": "b", "major": 7, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6 },
                { "path": "/dev/shut", "type": "c", "major": 7, "minor": 0, "uid": 1000 },
            ])
        );
        assert_eq!(
            spec["linux"]["resources"]["devices"],
            json!([
                { "allow": true, "type": "c", "major": 1, "minor": 7, "access": "r" },
                { "allow": true, "type": "b", "major": 7, "minor": 3, "access": "rwm" },
            ])
        );
        let mut all = self::spec();
        apply(&mut all, None, &edits(json!({ "deviceNodes": [{ "path": "/dev/full" }] })), false).unwrap();
        assert_eq!(all["linux"]["resources"], json!({}), "a privileged container has no rule");
        for bad in [json!({ "path": "/dev/nowhere" }), json!({ "path": "/dev/null", "type": "b" })] {
            assert!(applied(json!({ "deviceNodes": [bad] })).is_err());
        }
        assert!(
            applied(json!({ "deviceNodes": [{ "path": "/dev/x", "hostPath": "/etc/passwd" }] })).is_err()
        );
    }

    #[test]
    fn mounts_replace_and_come_after_their_parents() {
        let spec = applied(json!({ "mounts": [
            { "hostPath": "/etc", "containerPath": "/opt/x", "options": ["ro", "bind"] },
            { "hostPath": "/etc/passwd", "containerPath": "/a" },
            { "hostPath": "none", "containerPath": "/b", "type": "tmpfs", "options": ["size=1m"] },
        ] }));
        let spec = spec.unwrap();
        let places: Vec<_> =
            spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
        assert_eq!(places, ["/proc", "/a", "/b", "/opt/x"]);
        assert_eq!(spec["mounts"][3]["options"], json!(["ro", "bind"]));
        assert_eq!(spec["mounts"][1]["options"], json!(["rbind"]));
        assert_eq!(spec["mounts"][2]["type"], "tmpfs");
        let missing =
            applied(json!({ "mounts": [{ "hostPath": "/nowhere/lib.so", "containerPath": "/a" }] }));
        assert!(missing.unwrap_err().contains("/nowhere/lib.so"));
    }

    #[test]
    fn hooks_come_in_their_order() {
        let spec = applied(json!({ "hooks": [
            { "hookName": "createContainer", "path": "/bin/one", "args": ["one", "-v"], "env": ["A=1"], "timeout": 5 },
            { "hookName": "createContainer", "path": "/bin/two", "args": [], "timeout": 0 },
        ] }));
        assert_eq!(
            spec.unwrap()["hooks"],
            json!({ "createContainer": [
                { "path": "/bin/one", "args": ["one", "-v"], "env": ["A=1"], "timeout": 5 },
                { "path": "/bin/two" },
            ] })
        );
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (edit, name) in [
            (json!({ "intelRdt": { "closID": "x" } }), "intelRdt"),
            (json!({ "netDevices": [{ "hostInterfaceName": "eth7", "name": "eth1" }] }), "netDevices"),
            (json!({ "hooks": [{ "hookName": "createRuntime", "path": "/bin/x" }] }), "createRuntime"),
        ] {
            let error = applied(edit).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }
}
