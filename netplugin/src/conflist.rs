//! A network configuration: a chain of plugins (`.conflist`), or one alone (`.conf`, `.json`), of CNI 0.3.0 to 1.1.0.
//!
//! Its text is kept as it was read, since the same text must undo what it did: it goes into the sandbox's record.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::CniError;
use crate::version::Version;

/// The largest file, in bytes: real ones have some 2 KiB, and each is kept in the record of each pod.
pub(crate) const MAX_FILE: usize = 256 * 1024;
/// The longest chain: real ones have up to 5 plugins.
const MAX_PLUGINS: usize = 32;
/// The longest name of a network or type: NAME_MAX of the kernel, since both become names of files.
const MAX_NAME: usize = 255;

/// A network configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflist {
    /// Where it was read.
    pub file: PathBuf,
    /// The network's name.
    pub name: String,
    /// The version that plugins are spoken to in: the highest that both sides know.
    pub version: Version,
    /// CHECK is not to be called.
    pub disable_check: bool,
    /// GC is not to be called.
    pub disable_gc: bool,
    /// The chain, in the order of ADD.
    pub plugins: Vec<Plugin>,
    /// The whole file.
    pub text: String,
}

/// One plugin of a chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Plugin {
    /// Its type: the name of its program.
    pub kind: String,
    /// The type of the plugin that it asks for addresses, if it has one.
    pub ipam: Option<String>,
    /// What it wants to be told.
    pub capabilities: BTreeSet<String>,
    /// What is handed to it, without what the runtime fills in.
    pub config: Map<String, Value>,
}

impl Conflist {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// [`CniError::Conflist`], with what is wrong and what would be right.
    pub fn parse(file: &Path, text: &str) -> Result<Self, CniError> {
        parse(file, text)
            .map_err(|reason| CniError::Conflist { file: file.to_owned(), reason: reason.to_string() })
    }

    /// Every program that its pods need: the plugins and those that they ask for addresses.
    pub fn programs(&self) -> impl Iterator<Item = &str> {
        self.plugins
            .iter()
            .flat_map(|plugin| [Some(&plugin.kind), plugin.ipam.as_ref()])
            .flatten()
            .map(String::as_str)
    }
}

/// A reason in words.
type Reason = String;

fn parse(file: &Path, text: &str) -> Result<Conflist, Reason> {
    if text.len() > MAX_FILE {
        return Err(format!("is {} bytes long, more than {MAX_FILE}", text.len()));
    }
    let value: Value = serde_json::from_str(text).map_err(|error| format!("is not whole JSON: {error}"))?;
    let Value::Object(object) = value else { return Err("is not a JSON object".to_owned()) };
    let name = text_of(&object, "name")?.ok_or("has no \"name\"")?;
    check_name("name", &name)?;
    let plugins = match object.get("plugins") {
        Some(Value::Array(plugins)) => plugins.clone(),
        Some(_) => return Err("\"plugins\" is not a list".to_owned()),
        // A configuration of one plugin.
        None => vec![Value::Object(object.clone())],
    };
    if plugins.is_empty() {
        return Err("\"plugins\" is empty: it needs one or more objects with a \"type\"".to_owned());
    }
    if plugins.len() > MAX_PLUGINS {
        return Err(format!("has {} plugins, more than {MAX_PLUGINS}", plugins.len()));
    }
    Ok(Conflist {
        file: file.to_owned(),
        name,
        version: version(&object)?,
        disable_check: flag(&object, "disableCheck")?,
        disable_gc: flag(&object, "disableGC")?,
        plugins: plugins.into_iter().map(plugin).collect::<Result<_, _>>()?,
        text: text.to_owned(),
    })
}

/// The highest of `cniVersion` and `cniVersions` that Cove speaks (spec 1.1.0, "Version considerations").
fn version(object: &Map<String, Value>) -> Result<Version, Reason> {
    let mut named: Vec<String> = text_of(object, "cniVersion")?.into_iter().collect();
    match object.get("cniVersions") {
        None => {}
        Some(Value::Array(versions)) => {
            for version in versions {
                named.push(
                    version.as_str().ok_or("\"cniVersions\" holds something that is no text")?.to_owned(),
                );
            }
        }
        Some(_) => return Err("\"cniVersions\" is not a list".to_owned()),
    }
    named.iter().filter_map(|text| Version::parse(text)).max().ok_or_else(|| {
        let known = Version::ALL.map(Version::as_str).join(", ");
        match named.is_empty() {
            true => format!("has no \"cniVersion\": write one of {known}"),
            false => format!("\"cniVersion\" {} is not supported: {known} are", named.join(", ")),
        }
    })
}

fn plugin(value: Value) -> Result<Plugin, Reason> {
    let Value::Object(mut config) = value else { return Err("a plugin is not a JSON object".to_owned()) };
    let kind = text_of(&config, "type")?.ok_or("a plugin has no \"type\"")?;
    check_type("type", &kind)?;
    let ipam = match config.get("ipam") {
        Some(Value::Object(ipam)) => text_of(ipam, "type")?.filter(|kind| !kind.is_empty()),
        _ => None,
    };
    if let Some(kind) = &ipam {
        check_type("ipam.type", kind)?;
    }
    let capabilities = match config.remove("capabilities") {
        None | Some(Value::Null) => BTreeSet::new(),
        Some(Value::Object(map)) => {
            map.into_iter().filter(|(_, wanted)| wanted == &Value::Bool(true)).map(|(name, _)| name).collect()
        }
        Some(_) => return Err(format!("\"capabilities\" of plugin {kind} is not an object")),
    };
    // The runtime's own, which no file may fill in (spec 1.1.0, "Reserved keys").
    config.retain(|key, _| key != "runtimeConfig" && key != "prevResult" && !key.starts_with("cni.dev/"));
    Ok(Plugin { kind, ipam, capabilities, config })
}

fn text_of(object: &Map<String, Value>, key: &str) -> Result<Option<String>, Reason> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("{key:?} is not text")),
    }
}

/// A boolean; files with it as text are about, too.
fn flag(object: &Map<String, Value>, key: &str) -> Result<bool, Reason> {
    match object.get(key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text == "true" || text == "false" => Ok(text == "true"),
        Some(_) => Err(format!("{key:?} is neither true nor false")),
    }
}

/// Spec 1.1.0, "Configuration format": a letter or digit, then letters, digits, `_`, `.` and `-`.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn check_name(key: &str, name: &str) -> Result<(), Reason> {
    if is_name(name) {
        return Ok(());
    }
    Err(format!("{key} {name:?} is not a letter or digit and then letters, digits, '_', '.' and '-'"))
}

/// A type is the name of a file in a directory of plugins, never a path to another (CVE-2021-20206).
fn check_type(key: &str, kind: &str) -> Result<(), Reason> {
    if kind.contains(['/', '\\']) {
        return Err(format!("{key} {kind:?} is a path: it must be the name of a plugin"));
    }
    check_name(key, kind)
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Conflist, String> {
        Conflist::parse(Path::new("/x/10-a.conflist"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_lists_and_single_plugins() {
        let list = read(
            r#"{"cniVersion": "0.3.1", "cniVersions": ["0.4.0", "1.0.0", "9.0.0"], "name": "net", "disableGC": "true",
                "plugins": [
                  {"type": "bridge", "ipam": {"type": "host-local"}, "x": [1], "prevResult": 1, "cni.dev/a": 2},
                  {"type": "portmap", "capabilities": {"portMappings": true, "mac": false}}]}"#,
        )
        .unwrap();
        assert_eq!((list.name.as_str(), list.version), ("net", Version::V1_0_0));
        assert!(list.disable_gc && !list.disable_check);
        assert_eq!(list.programs().collect::<Vec<_>>(), ["bridge", "host-local", "portmap"]);
        assert_eq!(list.plugins[0].config.keys().collect::<Vec<_>>(), ["ipam", "type", "x"]);
        assert_eq!(list.plugins[1].capabilities, BTreeSet::from(["portMappings".to_owned()]));
        let one = read(r#"{"cniVersion": "0.3.1", "name": "one", "type": "ptp"}"#).unwrap();
        assert_eq!((one.plugins.len(), one.plugins[0].kind.as_str()), (1, "ptp"));
    }

    #[test]
    fn says_what_is_wrong() {
        let with = |plugins: &str| format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":{plugins}}}"#);
        let cases = [
            (String::new(), "not whole JSON"),
            (r#"{"cniVersion": "1.0.0", "na"#.to_owned(), "not whole JSON"),
            ("[]".to_owned(), "not a JSON object"),
            (r#"{"cniVersion":"1.0.0","type":"a"}"#.to_owned(), "no \"name\""),
            (r#"{"cniVersion":"1.0.0","name":"../n","type":"a"}"#.to_owned(), "name"),
            (r#"{"name":"n","type":"a"}"#.to_owned(), "write one of"),
            (r#"{"cniVersion":"0.2.0","name":"n","type":"a"}"#.to_owned(), "not supported"),
            (r#"{"cniVersion":1,"name":"n","type":"a"}"#.to_owned(), "not text"),
            (r#"{"cniVersion":"1.0.0","cniVersions":"1","name":"n","type":"a"}"#.to_owned(), "not a list"),
            (r#"{"cniVersion":"1.0.0","name":"n","type":"a","disableCheck":3}"#.to_owned(), "neither"),
            (with("[]"), "empty"),
            (with("{}"), "not a list"),
            (with("[1]"), "not a JSON object"),
            (with("[{}]"), "no \"type\""),
            (with(r#"[{"type":""}]"#), "type"),
            (with(r#"[{"type":"../../bin/sh"}]"#), "is a path"),
            (with(r#"[{"type":"a/b"}]"#), "is a path"),
            (with(r#"[{"type":"a\\b"}]"#), "is a path"),
            (with(r#"[{"type":".."}]"#), "type"),
            (with(r#"[{"type":"a","ipam":{"type":"/bin/sh"}}]"#), "ipam.type"),
            (with(r#"[{"type":"a","capabilities":[]}]"#), "capabilities"),
            (with(&format!("[{}]", vec![r#"{"type":"a"}"#; 33].join(","))), "more than 32"),
            (" ".repeat(MAX_FILE + 1), "bytes long"),
        ];
        for (text, reason) in cases {
            let error = read(&text).unwrap_err();
            assert!(error.starts_with("/x/10-a.conflist: ") && error.contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_type_that_is_taken_leaves_its_directory(kind in "[a./\\\\\\x00 -]{0,6}") {
            let text = serde_json::json!({"cniVersion": "1.0.0", "name": "n", "type": kind}).to_string();
            if read(&text).is_ok() {
                let path = Path::new("/opt/cni/bin").join(&kind);
                prop_assert_eq!(path.parent(), Some(Path::new("/opt/cni/bin")));
            }
        }

        #[test]
        fn any_text_is_taken_or_refused(text in "\\PC{0,64}") {
            let _ = read(&text);
        }

        #[test]
        fn what_is_cut_off_is_never_taken(at in 1_usize..70) {
            let whole = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"},{"type":"b"}]}"#;
            prop_assert!(read(&whole[..at]).is_err());
        }
    }
}
