//! The config of an image: which layers it has and what it says of its containers. Only called on bytes whose digest was
//! verified. Labels and annotations are not read: nothing in an image steers Cove (A38).

use std::fmt;

use cove_layer::Digest;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::ImageConfig;
use super::manifest::host_architecture;

/// Most strings of environment, arguments and volumes together: they stay in memory, and no program can be started with as
/// many.
const MAX_STRINGS: usize = 65_536;

/// What is read of a config.
#[derive(Debug, Clone)]
pub(super) struct Config {
    /// Digests of the unpacked layers, the undermost first.
    pub(super) diff_ids: Vec<Digest>,
    /// What it says of containers.
    pub(super) container: ImageConfig,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<Container>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(deserialize_with = "digests")]
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Container {
    #[serde(deserialize_with = "null_as_default")]
    user: String,
    #[serde(deserialize_with = "list")]
    env: Vec<String>,
    #[serde(deserialize_with = "list")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "list")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    working_dir: String,
    #[serde(deserialize_with = "null_as_default")]
    stop_signal: String,
    #[serde(deserialize_with = "keys")]
    volumes: Vec<String>,
}

/// Parses a config that must describe `layers` layers for this machine.
pub(super) fn parse(bytes: &[u8], layers: usize) -> Result<Config, String> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|error| format!("is no image config: {error}"))?;
    if raw.rootfs.kind != "layers" {
        return Err(format!("has a rootfs of type {:?}", raw.rootfs.kind));
    }
    if raw.rootfs.diff_ids.len() != layers {
        return Err(format!("names {} layers, and the manifest names {layers}", raw.rootfs.diff_ids.len()));
    }
    if !(raw.os.is_empty() || raw.os == "linux")
        || !(raw.architecture.is_empty() || raw.architecture == host_architecture())
    {
        return Err(format!(
            "is for {:?} on {:?}; this machine is linux on {}",
            raw.os,
            raw.architecture,
            host_architecture()
        ));
    }
    let container = raw.config.unwrap_or_default();
    let strings =
        [container.env.len(), container.entrypoint.len(), container.cmd.len(), container.volumes.len()];
    if strings.iter().sum::<usize>() > MAX_STRINGS {
        return Err(format!("has {}", too_many()));
    }
    Ok(Config {
        diff_ids: raw.rootfs.diff_ids,
        container: ImageConfig {
            user: container.user,
            env: container.env,
            entrypoint: container.entrypoint,
            cmd: container.cmd,
            working_dir: container.working_dir,
            stop_signal: container.stop_signal,
            volumes: container.volumes,
        },
    })
}

/// Builders write `null` for lists and maps that are not set.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn too_many() -> String {
    format!("more than {MAX_STRINGS} environment variables, arguments and volumes")
}

/// Strings, counted while they are read: the longest config that is taken holds a million empty ones, which would take ten
/// times its size.
#[derive(Default)]
struct Strings(Vec<String>);

impl Strings {
    fn push<E: serde::de::Error>(&mut self, one: String) -> Result<(), E> {
        if self.0.len() >= MAX_STRINGS {
            return Err(E::custom(too_many()));
        }
        self.0.push(one);
        Ok(())
    }
}

/// A list of strings, or `null`.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct List;
    impl<'de> Visitor<'de> for List {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of strings or null")
        }
        fn visit_unit<E>(self) -> Result<Vec<String>, E> {
            Ok(Vec::new())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<String>, A::Error> {
            let mut strings = Strings::default();
            while let Some(one) = from.next_element()? {
                strings.push::<A::Error>(one)?;
            }
            Ok(strings.0)
        }
    }
    deserializer.deserialize_any(List)
}

/// The keys of a map in order, each once, or `null`.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map or null")
        }
        fn visit_unit<E>(self) -> Result<Vec<String>, E> {
            Ok(Vec::new())
        }
        fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Vec<String>, A::Error> {
            let mut strings = Strings::default();
            while let Some((key, IgnoredAny)) = from.next_entry()? {
                strings.push::<A::Error>(key)?;
            }
            strings.0.sort_unstable();
            strings.0.dedup();
            Ok(strings.0)
        }
    }
    deserializer.deserialize_any(Keys)
}

fn digests<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Digest>, D::Error> {
    #[derive(Deserialize)]
    struct One(#[serde(deserialize_with = "super::manifest::digest")] Digest);
    Ok(Vec::<One>::deserialize(deserializer)?.into_iter().map(|one| one.0).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn document() -> Value {
        json!({
            "architecture": host_architecture(), "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [D]},
            "config": {
                "User": "1000:1000", "Env": ["A=b"], "Entrypoint": null, "Cmd": ["sh"], "WorkingDir": "/w",
                "StopSignal": "SIGINT", "Volumes": {"/b": {}, "/a": {}}, "Labels": {"io.kubernetes.x": "y"}
            }
        })
    }

    fn parse_value(document: &Value, layers: usize) -> Result<Config, String> {
        parse(&serde_json::to_vec(document).unwrap(), layers)
    }

    #[test]
    fn what_containers_need_is_read() {
        let config = parse_value(&document(), 1).unwrap();
        assert_eq!(config.diff_ids, [D.parse().unwrap()]);
        assert_eq!(config.container.user, "1000:1000");
        assert_eq!(config.container.env, ["A=b"]);
        assert!(config.container.entrypoint.is_empty());
        assert_eq!(config.container.cmd, ["sh"]);
        assert_eq!(config.container.volumes, ["/a", "/b"]);
        let bare = json!({"rootfs": {"type": "layers", "diff_ids": []}, "config": null});
        assert!(parse_value(&bare, 0).unwrap().container.cmd.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let table = [
            ("/rootfs/diff_ids", json!([D, D]), "names 2 layers"),
            ("/rootfs/diff_ids", json!(["sha256:../../../etc"]), "not a sha256"),
            ("/rootfs/type", json!("x"), "rootfs of type"),
            ("/architecture", json!("riscv128"), "riscv128"),
            ("/os", json!("windows"), "windows"),
            ("/config", json!([1]), "no image config"),
            ("/config/Env", json!(vec![""; MAX_STRINGS]), "more than 65536"),
            ("/config/Cmd", json!(vec![""; MAX_STRINGS + 1]), "more than 65536"),
            ("/config/Cmd", json!({"0": "a"}), "a list of strings"),
            ("/config/Volumes", json!(["/a"]), "a map or null"),
        ];
        for (pointer, value, expected) in table {
            let mut changed = document();
            *changed.pointer_mut(pointer).unwrap() = value;
            let error = parse_value(&changed, 1).expect_err(expected);
            assert!(error.contains(expected), "{error} lacks {expected}");
        }
    }
}
