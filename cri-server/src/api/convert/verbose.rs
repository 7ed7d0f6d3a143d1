//! What `crictl inspect`, `inspectp`, `inspecti` and `info` show beyond the status: one JSON document under the key that tools know.
//! The names in it (`pid`, `sandboxID`, `runtimeSpec`, `config`, `cniResult`, `imageSpec`) are those that scripts read.

use std::collections::BTreeMap;
use std::path::Path;

use cove_layer::{Algorithm, Digest};
use serde_json::{Value, json};

use crate::container::ContainerView;
use crate::container::config::ContainerConfig;
use crate::sandbox::SandboxView;
use crate::step::StepTime;

/// Larger than any spec that this daemon writes (`cove_runtime::protocol::MAX_SPEC`).
const MAX_SPEC: u64 = cove_runtime::protocol::MAX_SPEC;

/// One document under the key `info`.
pub(in crate::api) fn info(document: &Value) -> BTreeMap<String, String> {
    BTreeMap::from([("info".to_owned(), document.to_string())])
}

/// Of a sandbox.
pub(in crate::api) fn sandbox(view: &SandboxView) -> Value {
    json!({
        "sandboxID": view.id,
        // Scripts enter namespaces by this pid; 0 is how other runtimes say that nothing runs.
        "pid": view.pid.unwrap_or(0),
        "netns": view.netns,
        "cniResult": view.attachment.as_ref().map(|attachment| attachment.shown()),
        "runtimeHandler": view.config.runtime_handler,
        "reason": view.reason,
        "steps": steps(&view.steps),
        "config": &*view.config,
    })
}

/// Of a container; `spec` is its OCI spec as it lies on disk.
pub(in crate::api) fn container(view: &ContainerView, spec: &Value) -> Value {
    json!({
        "sandboxID": view.sandbox,
        "pid": view.pid.unwrap_or(0),
        "imageID": view.image_id,
        "bundle": view.bundle,
        "steps": steps(&view.steps),
        "config": container_config(&view.config),
        "runtimeSpec": spec,
    })
}

/// Of an image; `config` is its config as it lies in the store. The chain ID names its whole stack of layers (image-spec,
/// config.md, "Layer ChainID").
pub(in crate::api) fn image(config: &[u8]) -> Value {
    let spec: Value = serde_json::from_slice(config).unwrap_or(Value::Null);
    let layers = spec["rootfs"]["diff_ids"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let chain = layers.map(str::to_owned).reduce(|below, layer| {
        Digest::of(Algorithm::Sha256, format!("{below} {layer}").as_bytes()).to_string()
    });
    json!({ "chainID": chain, "imageSpec": spec })
}

/// The OCI spec of a container, null while there is none to read.
pub(in crate::api) fn read_spec(bundle: &Path) -> Value {
    let path = bundle.join("config.json");
    let small = std::fs::metadata(&path).is_ok_and(|found| found.len() <= MAX_SPEC);
    let text = if small { std::fs::read(&path).ok() } else { None };
    text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or(Value::Null)
}

/// In order; milliseconds, since that is what people compare.
fn steps(steps: &[StepTime]) -> Value {
    steps
        .iter()
        .map(|step| json!({ "step": step.name, "milliseconds": step.duration.as_secs_f64() * 1000.0 }))
        .collect()
}

/// Values of the environment are bytes; here they are shown as text.
fn container_config(config: &ContainerConfig) -> Value {
    let envs: Vec<_> = config
        .envs
        .iter()
        .map(|(key, value)| json!({ "key": key, "value": String::from_utf8_lossy(value) }))
        .collect();
    // A record's type, which is written as JSON all the time.
    let mut shown = serde_json::to_value(config).unwrap_or(Value::Null);
    shown["envs"] = Value::Array(envs);
    shown
}
