//! Which fields of a spec are acted on. The spec is looked at as the JSON that it is written as, so that a field
//! which a newer `oci-spec` brings is refused until somebody builds it.

use serde::Serialize;
use serde_json::Value;

use super::SpecError;

/// JSON paths; `[]` is every element, a final `*` everything below. Who acts: builder or shim, unless it says so.
const HONOURED: [&str; 52] = [
    "ociVersion",
    "root.path",
    "root.readonly",
    // Of the sandbox: the shim sets it when it makes the UTS namespace.
    "hostname",
    // For people and tools; nothing is steered by them.
    "annotations.*",
    "mounts[].destination",
    "mounts[].type",
    "mounts[].source",
    "mounts[].options[]",
    "mounts[].uidMappings[].*",
    "mounts[].gidMappings[].*",
    "process.terminal",
    // All but the umask comes resolved, by the `user` beside the spec.
    "process.user.*",
    "process.args[]",
    "process.env[]",
    "process.cwd",
    "process.capabilities.*",
    "process.rlimits[].type",
    "process.rlimits[].hard",
    "process.rlimits[].soft",
    "process.noNewPrivileges",
    "process.apparmorProfile",
    "process.oomScoreAdj",
    "hooks.createContainer[].*",
    // The daemon places and limits the container.
    "linux.cgroupsPath",
    "linux.resources.devices[].*",
    "linux.resources.memory.limit",
    "linux.resources.memory.swap",
    "linux.resources.cpu.shares",
    "linux.resources.cpu.quota",
    "linux.resources.cpu.period",
    "linux.resources.cpu.cpus",
    "linux.resources.cpu.mems",
    "linux.resources.pids.limit",
    "linux.resources.hugepageLimits[].*",
    "linux.resources.unified.*",
    "linux.namespaces[].type",
    "linux.namespaces[].path",
    "linux.uidMappings[].*",
    "linux.gidMappings[].*",
    "linux.devices[].path",
    "linux.devices[].type",
    "linux.devices[].major",
    "linux.devices[].minor",
    "linux.devices[].fileMode",
    "linux.devices[].uid",
    "linux.devices[].gid",
    "linux.rootfsPropagation",
    "linux.maskedPaths[]",
    "linux.readonlyPaths[]",
    // Looked at field by field when it is compiled.
    "linux.seccomp.*",
    // Set on the sandbox by the shim; here the spec only says what is the case in the pod.
    "linux.sysctl.*",
];

/// Refuses the first field that is set and not honoured. `under` is the JSON path of `part` in a spec.
pub(super) fn check(part: &impl Serialize, under: &str) -> Result<(), SpecError> {
    let value = serde_json::to_value(part).map_err(|error| SpecError::new(under, error.to_string()))?;
    walk(&value, under.to_owned(), under.to_owned())
}

/// `pattern` is `path` with `[]` for each index.
fn walk(value: &Value, path: String, pattern: String) -> Result<(), SpecError> {
    match value {
        // How an unset field is written.
        Value::Null | Value::Bool(false) => Ok(()),
        Value::String(text) if text.is_empty() => Ok(()),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(i, item)| walk(item, format!("{path}[{i}]"), format!("{pattern}[]"))),
        Value::Object(fields) => {
            let dot = if path.is_empty() { "" } else { "." };
            fields.iter().try_for_each(|(name, field)| {
                walk(field, format!("{path}{dot}{name}"), format!("{pattern}{dot}{name}"))
            })
        }
        Value::Bool(true) | Value::Number(_) | Value::String(_) if honoured(&pattern) => Ok(()),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => {
            Err(SpecError::new(path, "is set, and nothing here acts on it"))
        }
    }
}

fn honoured(pattern: &str) -> bool {
    HONOURED.iter().any(|known| match known.strip_suffix('*') {
        Some(prefix) => pattern.starts_with(prefix),
        None => *known == pattern,
    })
}
