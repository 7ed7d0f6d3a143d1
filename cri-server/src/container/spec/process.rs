//! What runs: command, environment, working directory, identity.

use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::capabilities::capabilities;
use crate::container::config::ContainerConfig;
use crate::error::Error;
use crate::image::ImageConfig;
use crate::sandbox::files::hostname;
use crate::sandbox::record::SandboxIdentity;

/// Where programs are looked for when neither image nor request says: as every runtime has it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// File mode creation mask of containers.
const UMASK: u32 = 0o022;

/// A process as JSON, and its environment as bytes where JSON cannot hold it.
type Described = (Value, Option<Vec<Vec<u8>>>);

/// `process` of the spec; and the environment apart, where JSON cannot hold it.
pub(super) fn process(
    sandbox: &SandboxIdentity,
    config: &ContainerConfig,
    image: &ImageConfig,
) -> Result<Described, Error> {
    let env = environment(&hostname(&sandbox.config), config, image)?;
    let text: Vec<String> = env.iter().map(|entry| String::from_utf8_lossy(entry).into_owned()).collect();
    let is_text = env.iter().zip(&text).all(|(bytes, text)| bytes == text.as_bytes());
    let mut process = json!({
        "terminal": false,
        // Names are resolved by the builder, on the root file system: see `identity.json`.
        "user": { "uid": config.run_as.user.unwrap_or(0), "gid": config.run_as.group.unwrap_or(0), "umask": UMASK },
        "args": command(config, image)?,
        "env": text,
        "cwd": working_dir(config, image)?,
        "capabilities": capabilities(config)?,
        "noNewPrivileges": config.no_new_privs,
        "rlimits": rlimits(),
        "oomScoreAdj": config.resources.oom_score_adj,
    });
    if !config.run_as.supplemental_groups.is_empty() {
        process["user"]["additionalGids"] = json!(config.run_as.supplemental_groups);
    }
    Ok((process, (!is_text).then_some(env)))
}

/// What the service manager gave the daemon for itself must not reach a container: descriptors as on any Linux system
/// (1,024, and as many as the daemon may for who asks; systemd's file-descriptors advice), processes as many as the
/// cgroup allows. Raising a hard limit needs a capability, so hard limits are the daemon's own.
fn rlimits() -> Vec<Value> {
    const DESCRIPTORS: u64 = 1024;
    [("RLIMIT_NOFILE", Resource::Nofile, Some(DESCRIPTORS)), ("RLIMIT_NPROC", Resource::Nproc, None)]
        .into_iter()
        .map(|(name, resource, soft)| {
            // None is infinity, as setrlimit(2) writes it: all ones.
            let hard = getrlimit(resource).maximum.unwrap_or(u64::MAX);
            json!({ "type": name, "soft": soft.unwrap_or(hard).min(hard), "hard": hard })
        })
        .collect()
}

/// Whom it runs as, as an image's USER is written: as asked for, else as the image says.
pub(super) fn user(config: &ContainerConfig, image: &ImageConfig) -> String {
    match (config.run_as.user, &config.run_as.username) {
        (Some(uid), _) => uid.to_string(),
        (None, Some(name)) => name.clone(),
        (None, None) => image.user.clone(),
    }
}

/// A command replaces the image's entrypoint and its arguments; arguments alone replace its arguments.
fn command(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, Error> {
    let args: Vec<String> = if !config.command.is_empty() {
        config.command.iter().chain(&config.args).cloned().collect()
    } else if !config.args.is_empty() {
        image.entrypoint.iter().chain(&config.args).cloned().collect()
    } else {
        image.entrypoint.iter().chain(&image.cmd).cloned().collect()
    };
    if args.is_empty() {
        return Err(Error::invalid(
            "config.command",
            "no command specified: neither the request nor the image has one",
        ));
    }
    no_nul("config.command", args.iter().map(|arg| arg.as_bytes()))?;
    Ok(args)
}

/// The default path and the host name, then the image's, then what was asked for: the last one of a name stands.
fn environment(hostname: &str, config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<Vec<u8>>, Error> {
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut set = |name: &[u8], value: &[u8]| match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value.to_vec(),
        None => env.push((name.to_vec(), value.to_vec())),
    };
    set(b"PATH", DEFAULT_PATH.as_bytes());
    set(b"HOSTNAME", hostname.as_bytes());
    // An entry without `=` says nothing.
    for (name, value) in image.env.iter().filter_map(|entry| entry.split_once('=')) {
        set(name.as_bytes(), value.as_bytes());
    }
    for (name, value) in &config.envs {
        if name.is_empty() || name.contains('=') {
            return Err(Error::invalid("config.envs", format!("{name:?} is no name of a variable")));
        }
        set(name.as_bytes(), value);
    }
    let entries: Vec<Vec<u8>> =
        env.into_iter().map(|(name, value)| [name.as_slice(), b"=", &value].concat()).collect();
    no_nul("config.envs", entries.iter().map(Vec::as_slice))?;
    Ok(entries)
}

fn working_dir(config: &ContainerConfig, image: &ImageConfig) -> Result<String, Error> {
    let directory = [&config.working_dir, &image.working_dir].into_iter().find(|dir| !dir.is_empty());
    let Some(directory) = directory else { return Ok("/".to_owned()) };
    no_nul("config.working_dir", [directory.as_bytes()])?;
    // Image builders write relative ones as well; they are meant from the root.
    Ok(if directory.starts_with('/') { directory.clone() } else { format!("/{directory}") })
}

fn no_nul<'a>(field: &str, values: impl IntoIterator<Item = &'a [u8]>) -> Result<(), Error> {
    if values.into_iter().any(|value| value.contains(&0)) {
        return Err(Error::invalid(field, "a value holds a NUL byte, which no program can be given"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::tests::config;

    fn list(values: &[&str]) -> Vec<String> {
        values.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn command_against_image() {
        type Words = &'static [&'static str];
        let table: [(Words, Words, Words, Words, Option<Words>); 8] = [
            (&["c"], &["a"], &["e"], &["m"], Some(&["c", "a"])),
            (&["c"], &[], &["e"], &["m"], Some(&["c"])),
            (&[], &["a"], &["e"], &["m"], Some(&["e", "a"])),
            (&[], &["a"], &[], &["m"], Some(&["a"])),
            (&[], &[], &["e"], &["m"], Some(&["e", "m"])),
            (&[], &[], &[], &["m"], Some(&["m"])),
            (&[], &[], &[], &[], None),
            (&["nul\0"], &[], &[], &[], None),
        ];
        for (command_, args, entrypoint, cmd, wanted) in table {
            let mut config = config();
            (config.command, config.args) = (list(command_), list(args));
            let image =
                ImageConfig { entrypoint: list(entrypoint), cmd: list(cmd), ..ImageConfig::default() };
            assert_eq!(command(&config, &image).ok(), wanted.map(list), "{command_:?} {args:?}");
        }
    }

    #[test]
    fn the_last_one_of_a_name_stands() {
        let mut config = config();
        config.envs =
            vec![("A".into(), b"2".to_vec()), ("B".into(), vec![0xff]), ("A".into(), b"3".to_vec())];
        let image = ImageConfig { env: list(&["A=1", "PATH=/x", "odd"]), ..ImageConfig::default() };
        let env = environment("pod", &config, &image).unwrap();
        assert_eq!(env, [&b"PATH=/x"[..], b"HOSTNAME=pod", b"A=3", b"B=\xff"]);
        for bad in ["", "a=b", "nul\0"] {
            config.envs = vec![(bad.into(), Vec::new())];
            assert!(environment("pod", &config, &image).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bytes_that_are_not_text_are_kept_apart() {
        let (sandbox, _) = crate::container::spec::tests::sandbox(crate::sandbox::files::tests::config());
        let mut config = config();
        let (_, raw) = process(&sandbox, &config, &ImageConfig::default()).unwrap();
        assert_eq!(raw, None);
        config.envs = vec![("B".into(), vec![0xff])];
        let (json, raw) = process(&sandbox, &config, &ImageConfig::default()).unwrap();
        assert_eq!(json["env"][2], "B=\u{fffd}");
        assert_eq!(raw.unwrap()[2], b"B=\xff");
    }

    #[test]
    fn directory_and_user() {
        let mut config = config();
        let mut image = ImageConfig::default();
        assert_eq!(
            (working_dir(&config, &image).unwrap(), user(&config, &image)),
            ("/".into(), String::new())
        );
        (image.working_dir, image.user) = ("srv".into(), "web:www".into());
        assert_eq!(working_dir(&config, &image).unwrap(), "/srv");
        assert_eq!(user(&config, &image), "web:www");
        config.working_dir = "/w".into();
        config.run_as.username = Some("alice".into());
        assert_eq!(
            (working_dir(&config, &image).unwrap(), user(&config, &image)),
            ("/w".into(), "alice".into())
        );
        config.run_as.user = Some(7);
        assert_eq!(user(&config, &image), "7");
    }
}
