//! The chain of a network configuration over a pod (spec 1.1.0, section 3).
//!
//! ADD goes forward and stops at the first that fails; undoing it is the caller's DEL, the same as any other. DEL goes
//! backward, goes on after a failure and tells every one.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::attachment::Attachment;
use crate::conflist::{Conflist, Plugin};
use crate::error::CniError;
use crate::plugin::{Plugins, Verb, end_strays};
use crate::process::Limit;
use crate::result::CniResult;
use crate::version::Version;

/// A plugin's code for a version that it does not speak (spec 1.1.0, "Error").
const INCOMPATIBLE: u64 = 1;

/// Runs chains of plugins.
#[derive(Debug, Clone)]
pub struct Chain {
    plugins: Plugins,
}

impl Chain {
    /// With the plugins of these directories.
    pub fn new(plugins: Plugins) -> Self {
        Self { plugins }
    }

    /// Where its plugins are.
    pub fn plugins(&self) -> &Plugins {
        &self.plugins
    }

    /// Attaches a pod. The result is to be recorded in the attachment.
    ///
    /// # Errors
    /// The first plugin that fails; what was done by then is undone by [`Self::del`].
    pub fn add(&self, attachment: &Attachment, limit: &Limit) -> Result<Value, CniError> {
        attachment.check()?;
        let list = attachment.list()?;
        let netns = attachment.netns.display().to_string();
        let mut result: Option<Value> = None;
        for plugin in &list.plugins {
            let config = pod_config(&list, plugin, attachment, result.as_ref());
            let output = self
                .plugins
                .run(Verb::Add, &plugin.kind, Some((attachment, &netns)), &config, limit)
                .map_err(|error| self.with_versions(&list, plugin, error, limit))?;
            result = Some(answer(plugin, list.version, &output)?);
        }
        let result = result.ok_or_else(|| CniError::Conflist {
            file: list.file.clone(),
            reason: "has no plugins".to_owned(),
        })?;
        let addresses = CniResult::parse(&result).map(|result| result.addresses(&attachment.interface));
        if addresses.is_ok_and(|addresses| addresses.is_empty()) {
            let kind = list.plugins.last().map(|plugin| plugin.kind.clone()).unwrap_or_default();
            let reason = format!("it gives {} of the pod no address", attachment.interface);
            return Err(CniError::Answer { kind, verb: Verb::Add, reason });
        }
        Ok(result)
    }

    /// Detaches a pod; what is not attached is detached already. Where the pod's network namespace is gone, plugins are
    /// told none. For an attachment without a result the run of ADD is ended first, if it still goes on somewhere.
    ///
    /// # Errors
    /// Every plugin that failed, all of them after each other. It can be repeated.
    pub fn del(&self, attachment: &Attachment, limit: &Limit) -> Result<(), CniError> {
        attachment.check()?;
        let list = attachment.list()?;
        if attachment.result.is_none() {
            end_strays(&attachment.container);
        }
        let netns =
            if is_netns(&attachment.netns) { attachment.netns.display().to_string() } else { String::new() };
        // Before 0.4.0 plugins were handed no result with DEL.
        let result = attachment.result.as_ref().filter(|_| list.version.has_check());
        let mut errors = None;
        for plugin in list.plugins.iter().rev() {
            let config = pod_config(&list, plugin, attachment, result);
            let run = self.plugins.run(Verb::Del, &plugin.kind, Some((attachment, &netns)), &config, limit);
            if let Err(error) = run {
                CniError::collect(&mut errors, error);
            }
        }
        errors.map_or(Ok(()), Err)
    }

    /// Asks the plugins whether a pod is still attached; those that know no CHECK are not asked.
    ///
    /// # Errors
    /// The first plugin that misses something.
    pub fn check(&self, attachment: &Attachment, limit: &Limit) -> Result<(), CniError> {
        attachment.check()?;
        let list = attachment.list()?;
        if list.disable_check || !list.version.has_check() {
            return Ok(());
        }
        let netns = attachment.netns.display().to_string();
        for plugin in &list.plugins {
            let config = pod_config(&list, plugin, attachment, attachment.result.as_ref());
            self.plugins.run(Verb::Check, &plugin.kind, Some((attachment, &netns)), &config, limit)?;
        }
        Ok(())
    }

    /// Asks the plugins whether they could attach a pod now; those that know no STATUS are not asked.
    ///
    /// # Errors
    /// The first plugin that could not.
    pub fn status(&self, list: &Conflist, limit: &Limit) -> Result<(), CniError> {
        if !list.version.has_status_and_gc() {
            return Ok(());
        }
        for plugin in &list.plugins {
            let config = Value::Object(config(list, plugin));
            self.plugins.run(Verb::Status, &plugin.kind, None, &config, limit)?;
        }
        Ok(())
    }

    /// Has the plugins release what belongs to none of `valid`, which are all attachments that there are of this network,
    /// as container id and link. Nothing may be attached meanwhile: it would be taken for a rest.
    ///
    /// # Errors
    /// Every plugin that failed.
    pub fn gc(&self, list: &Conflist, valid: &[(String, String)], limit: &Limit) -> Result<(), CniError> {
        if list.disable_gc || !list.version.has_status_and_gc() {
            return Ok(());
        }
        let valid: Vec<Value> =
            valid.iter().map(|(id, link)| json!({"containerID": id, "ifname": link})).collect();
        let mut errors = None;
        for plugin in &list.plugins {
            let mut config = config(list, plugin);
            config.insert("cni.dev/valid-attachments".to_owned(), Value::Array(valid.clone()));
            if let Err(error) = self.plugins.run(Verb::Gc, &plugin.kind, None, &Value::Object(config), limit)
            {
                CniError::collect(&mut errors, error);
            }
        }
        errors.map_or(Ok(()), Err)
    }

    /// The versions that a plugin says it speaks.
    ///
    /// # Errors
    /// It cannot be run, or does not say.
    pub fn versions(&self, kind: &str, limit: &Limit) -> Result<Vec<String>, CniError> {
        let config = json!({"cniVersion": Version::V1_1_0.as_str()});
        let output = self.plugins.run(Verb::Version, kind, None, &config, limit)?;
        let versions = serde_json::from_slice::<Value>(&output).ok().and_then(|value| {
            let versions = value.get("supportedVersions")?.as_array()?.iter();
            versions.map(|version| version.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        versions.ok_or_else(|| CniError::Answer {
            kind: kind.to_owned(),
            verb: Verb::Version,
            reason: "it has no list \"supportedVersions\"".to_owned(),
        })
    }

    /// An error about versions says which ones the plugin speaks.
    fn with_versions(&self, list: &Conflist, plugin: &Plugin, error: CniError, limit: &Limit) -> CniError {
        match error {
            CniError::Refused { kind, verb, code: INCOMPATIBLE, message } => {
                let spoken = match self.versions(&plugin.kind, limit) {
                    Ok(versions) => format!("it speaks {}", versions.join(", ")),
                    Err(error) => error.to_string(),
                };
                let message =
                    format!("{message}; {} is spoken to in {}: {spoken}", plugin.kind, list.version);
                CniError::Refused { kind, verb, code: INCOMPATIBLE, message }
            }
            other => other,
        }
    }
}

/// What a plugin is handed whatever it is to do (spec 1.1.0, "Deriving request configuration").
fn config(list: &Conflist, plugin: &Plugin) -> Map<String, Value> {
    let mut config = plugin.config.clone();
    config.insert("name".to_owned(), json!(list.name));
    config.insert("cniVersion".to_owned(), json!(list.version.as_str()));
    config
}

/// The same for one pod.
fn pod_config(list: &Conflist, plugin: &Plugin, attachment: &Attachment, previous: Option<&Value>) -> Value {
    let mut config = config(list, plugin);
    let told: Map<String, Value> = attachment
        .capabilities
        .iter()
        .filter(|(name, _)| plugin.capabilities.contains(*name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !told.is_empty() {
        config.insert("runtimeConfig".to_owned(), Value::Object(told));
    }
    if let Some(previous) = previous {
        config.insert("prevResult".to_owned(), previous.clone());
    }
    Value::Object(config)
}

/// What a plugin said to ADD, in the version that it was asked in.
fn answer(plugin: &Plugin, version: Version, output: &[u8]) -> Result<Value, CniError> {
    let fault = |reason: String| CniError::Answer { kind: plugin.kind.clone(), verb: Verb::Add, reason };
    let mut value: Value =
        serde_json::from_slice(output).map_err(|error| fault(format!("it is not JSON: {error}")))?;
    let result = CniResult::parse(&value).map_err(fault)?;
    match value.get("cniVersion").and_then(Value::as_str).unwrap_or("") {
        "" => value["cniVersion"] = json!(version.as_str()),
        said if said == version.as_str() => {}
        _ => value = result.to_value(version),
    }
    Ok(value)
}

/// Something is pinned there, and it is a namespace: after a restart of the host there is nothing, or an empty file.
fn is_netns(path: &Path) -> bool {
    /// From linux/magic.h.
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|found| u64::try_from(found.f_type) == Ok(NSFS_MAGIC))
}

#[cfg(test)]
mod test {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::attachment::test::attachment;

    /// Plugins that are shell scripts, and what they wrote down.
    struct Bench {
        directory: TempDir,
    }

    impl Bench {
        /// Each plugin writes `VERB NAME` and what it read to the trace, then runs its script.
        fn new(plugins: &[(&str, &str)]) -> (Self, Chain) {
            let directory = tempfile::tempdir().unwrap();
            for (name, script) in plugins {
                let path = directory.path().join(name);
                let text = format!(
                    "#!/bin/sh\nD={}\nread -r IN\necho \"$CNI_COMMAND {name} $IN\" >>$D/trace\nenv >$D/env\n{script}\n",
                    directory.path().display()
                );
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            let chain = Chain::new(Plugins::new(vec![directory.path().into()]));
            (Self { directory }, chain)
        }

        fn file(&self, name: &str) -> String {
            fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
        }

        /// `VERB NAME` of each run.
        fn runs(&self) -> Vec<String> {
            self.file("trace")
                .lines()
                .map(|line| line.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" "))
                .collect()
        }

        /// What the last run of a plugin was handed.
        fn handed(&self, verb: &str, name: &str) -> Value {
            let begin = format!("{verb} {name} ");
            let trace = self.file("trace");
            let line = trace.lines().rev().find_map(|line| line.strip_prefix(&begin)).unwrap();
            serde_json::from_str(line).unwrap()
        }
    }

    const RESULT: &str = r#"[ $CNI_COMMAND != ADD ] || echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.0.0.2/24","interface":0}]}'"#;

    fn list(version: &str, plugins: &str) -> String {
        format!(r#"{{"cniVersion":"{version}","name":"net","plugins":{plugins}}}"#)
    }

    fn limit() -> Limit {
        Limit::new(Duration::from_secs(20)).unwrap()
    }

    const THREE: &str = r#"[{"type":"a","x":1,"capabilities":{"portMappings":true}},{"type":"b","capabilities":{"mac":true}},{"type":"c"}]"#;

    #[test]
    fn a_chain_goes_forward_and_back_and_hands_on_what_was_said() {
        let (bench, chain) = Bench::new(&[("a", RESULT), ("b", RESULT), ("c", RESULT)]);
        let mut pod = attachment(&list("1.1.0", THREE));
        pod.capabilities.insert("portMappings".into(), json!([{"hostPort": 1}]));
        let result = chain.add(&pod, &limit()).unwrap();
        assert_eq!(result["ips"][0]["address"], "10.0.0.2/24");
        let first = bench.handed("ADD", "a");
        assert_eq!(
            (&first["name"], &first["cniVersion"], &first["x"]),
            (&json!("net"), &json!("1.1.0"), &json!(1))
        );
        assert_eq!(first["runtimeConfig"], json!({"portMappings": [{"hostPort": 1}]}));
        assert!(first.get("prevResult").is_none() && first.get("capabilities").is_none());
        let second = bench.handed("ADD", "b");
        assert!(second.get("runtimeConfig").is_none(), "it asks for what there is not");
        assert_eq!(second["prevResult"], result);
        let env = bench.file("env");
        let mut names: Vec<_> =
            env.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        names.retain(|name| !["PWD", "_", "SHLVL", "OLDPWD"].contains(name));
        names.sort_unstable();
        let expected =
            ["CNI_ARGS", "CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH", "PATH"];
        assert_eq!(names, expected);
        assert!(env.contains("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web"), "{env}");

        pod.result = Some(result.clone());
        chain.check(&pod, &limit()).unwrap();
        chain.del(&pod, &limit()).unwrap();
        assert_eq!(
            bench.runs(),
            ["ADD a", "ADD b", "ADD c", "CHECK a", "CHECK b", "CHECK c", "DEL c", "DEL b", "DEL a"]
        );
        assert_eq!(bench.handed("DEL", "a")["prevResult"], result);
        assert_eq!(bench.handed("CHECK", "a")["prevResult"], result);
        assert!(bench.file("env").contains("CNI_NETNS=\n"), "its namespace is not there");
    }

    #[test]
    fn add_stops_at_the_first_that_fails_and_del_goes_on() {
        let fails = r#"echo '{"code": 11, "msg": "not now"}'; exit 1"#;
        let (bench, chain) = Bench::new(&[("a", RESULT), ("b", fails)]);
        let pod = attachment(&list("1.0.0", THREE));
        let error = chain.add(&pod, &limit()).unwrap_err();
        assert!(matches!(&error, CniError::Refused { code: 11, .. }), "{error}");
        assert_eq!(bench.runs(), ["ADD a", "ADD b"]);
        let error = chain.del(&pod, &limit()).unwrap_err();
        assert_eq!(bench.runs()[2..], ["DEL b", "DEL a"], "the one that is missing is passed over");
        let text = error.to_string();
        assert!(matches!(error.first(), CniError::Missing { .. }), "{text}");
        assert!(text.contains("\"c\"") && text.contains("not now"), "{text}");
    }

    #[test]
    fn answers_that_are_none_are_named() {
        let one = list("1.0.0", r#"[{"type":"a"}]"#);
        for (script, reason) in [
            ("exit 0", "not JSON"),
            ("echo hello", "not JSON"),
            (r#"echo '{"ips": 3}'"#, "not a list"),
            ("echo '{}'", "no address"),
            ("echo oh no >&2; exit 4", "exit status: 4 and no CNI error; it said: \"oh no\""),
            ("kill -9 $$", "signal: 9"),
        ] {
            let (_bench, chain) = Bench::new(&[("a", script)]);
            let error = chain.add(&attachment(&one), &limit()).unwrap_err().to_string();
            assert!(error.contains("CNI plugin a ADD") && error.contains(reason), "{script}: {error}");
        }
        let script = r#"[ $CNI_COMMAND = ADD ] && echo '{"code":1,"msg":"version"}' && exit 1; echo '{"supportedVersions":["0.4.0"]}'"#;
        let (_bench, chain) = Bench::new(&[("a", script)]);
        let error = chain.add(&attachment(&one), &limit()).unwrap_err().to_string();
        assert!(error.contains("it speaks 0.4.0"), "{error}");
    }

    #[test]
    fn verbs_that_a_version_does_not_know_are_not_asked() {
        let (bench, chain) = Bench::new(&[("a", RESULT)]);
        let one = r#"[{"type":"a"}]"#;
        let mut pod = attachment(&list("0.3.1", one));
        let result = chain.add(&pod, &limit()).unwrap();
        assert_eq!((&result["cniVersion"], &result["ips"][0]["version"]), (&json!("0.3.1"), &json!("4")));
        pod.result = Some(result);
        let parsed = pod.list().unwrap();
        chain.check(&pod, &limit()).unwrap();
        chain.status(&parsed, &limit()).unwrap();
        chain.gc(&parsed, &[], &limit()).unwrap();
        chain.del(&pod, &limit()).unwrap();
        assert_eq!(bench.runs(), ["ADD a", "DEL a"]);
        assert!(bench.handed("DEL", "a").get("prevResult").is_none());

        let new = Conflist::parse(&PathBuf::from("/x"), &list("1.1.0", one)).unwrap();
        chain.status(&new, &limit()).unwrap();
        chain.gc(&new, &[("id".to_owned(), "eth0".to_owned())], &limit()).unwrap();
        let handed = bench.handed("GC", "a");
        assert_eq!(handed["cni.dev/valid-attachments"], json!([{"containerID": "id", "ifname": "eth0"}]));
        let off = r#"{"cniVersion":"1.1.0","name":"n","disableGC":true,"disableCheck":true,"plugins":[{"type":"a"}]}"#;
        let before = bench.runs().len();
        chain.gc(&Conflist::parse(&PathBuf::from("/x"), off).unwrap(), &[], &limit()).unwrap();
        chain.check(&attachment(off), &limit()).unwrap();
        assert_eq!(bench.runs().len(), before);
    }

    #[test]
    fn del_ends_an_add_that_nobody_waits_for() {
        let hang = "[ $CNI_COMMAND = ADD ] || exit 0; exec sleep 1000";
        let (bench, chain) = Bench::new(&[("a", hang)]);
        let pod = attachment(&list("1.0.0", r#"[{"type":"a"}]"#));
        let mut orphan = std::process::Command::new(bench.directory.path().join("a"))
            .env_clear()
            .env("PATH", "/bin:/usr/bin")
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", &pod.container)
            .stdin(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let begun = std::time::Instant::now();
        // The process that is looked for is there once it has executed its program.
        while bench.runs().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(1));
        }
        chain.del(&pod, &limit()).unwrap();
        assert!(!orphan.wait().unwrap().success());
    }

    #[test]
    fn a_chain_has_one_deadline() {
        let slow = format!("sleep 0.2; {RESULT}");
        let (_bench, chain) = Bench::new(&[("a", &slow), ("b", "exec sleep 1000"), ("c", "")]);
        let pod = attachment(&list("1.0.0", THREE));
        let error = chain.add(&pod, &Limit::new(Duration::from_millis(600)).unwrap()).unwrap_err();
        assert!(matches!(&error, CniError::TimedOut { kind, .. } if kind == "b"), "{error}");
    }
}
