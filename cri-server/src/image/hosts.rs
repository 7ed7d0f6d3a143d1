//! Where a registry is asked: mirrors and the registry itself, in order, as `hosts.toml` files say (the form that containerd
//! documents). Read at each pull, so a changed file counts at once. A key that is not built is refused by name: to go on
//! without a `ca` would ask somebody else than the administrator means.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::ImageError;
use super::reference::Reference;
use super::transport::{Origin, Transport};

/// A file beside the directories of registries, for all that have none.
const FOR_ALL: &str = "_default";
/// Largest file that is read: an administrator's file has some lines.
const MAX_FILE: u64 = 256 * 1024;

/// One place that serves a registry's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// Who is asked.
    pub(super) origin: Origin,
    /// What goes before `/NAME/manifests/…`: `/v2`, or what the file says.
    pub(super) base: String,
    /// Tags may be asked for here.
    pub(super) resolves: bool,
    /// Content may be asked for here by digest.
    pub(super) pulls: bool,
}

/// The hosts of `reference`, in the order to ask them: those of the first file that is found below `directories`, then the
/// registry itself.
pub(super) fn of(
    directories: &[PathBuf],
    reference: &Reference,
    transport: &Transport,
) -> Result<Vec<Host>, ImageError> {
    let upstream = upstream(reference, transport)?;
    let Some((path, text)) = find(directories, reference)? else { return Ok(vec![upstream]) };
    parse(&text, upstream, transport).map_err(|reason| ImageError::Hosts { path, reason })
}

fn upstream(reference: &Reference, transport: &Transport) -> Result<Host, ImageError> {
    let origin = transport.origin(reference.host()).map_err(|_| ImageError::InvalidReference {
        reference: reference.to_string(),
        reason: "has a registry that is not host or host:port",
    })?;
    Ok(Host { origin, base: "/v2".to_owned(), resolves: true, pulls: true })
}

/// `HOST:PORT`, else `HOST_PORT_` (for file systems that know no colon), else the one for all.
fn find(directories: &[PathBuf], reference: &Reference) -> Result<Option<(PathBuf, String)>, ImageError> {
    let domain = reference.domain();
    let mut names = vec![domain.to_owned()];
    names.extend(domain.split_once(':').map(|(host, port)| format!("{host}_{port}_")));
    names.push(FOR_ALL.to_owned());
    for directory in directories {
        for name in &names {
            let path = directory.join(name).join("hosts.toml");
            if let Some(text) = read(&path)? {
                return Ok(Some((path, text)));
            }
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Option<String>, ImageError> {
    let wrong = |reason: String| ImageError::Hosts { path: path.to_owned(), reason };
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Err(wrong("is no file".to_owned())),
        Ok(metadata) if metadata.len() > MAX_FILE => {
            return Err(wrong(format!("is larger than the limit of {MAX_FILE} bytes")));
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        _ => (),
    }
    std::fs::read_to_string(path).map(Some).map_err(|error| wrong(error.to_string()))
}

fn parse(text: &str, upstream: Host, transport: &Transport) -> Result<Vec<Host>, String> {
    let table = DeTable::parse(text).map_err(|error| error.to_string())?;
    let (mut hosts, mut last) = (Vec::new(), upstream);
    for (key, value) in table.get_ref() {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("server", DeValue::String(url)) => (last.origin, last.base) = place(url, false, transport)?,
            ("host", DeValue::Table(listed)) => hosts = mirrors(listed, transport)?,
            (key, _) => return Err(format!("{key}: is not built, or not of the type it must have")),
        }
    }
    if !hosts.iter().any(|host| host.origin == last.origin && host.resolves && host.pulls) {
        hosts.push(last);
    }
    Ok(hosts)
}

/// In the order of the file: a TOML table has none of its own.
fn mirrors(listed: &DeTable<'_>, transport: &Transport) -> Result<Vec<Host>, String> {
    let mut entries: Vec<_> = listed.iter().collect();
    entries.sort_by_key(|(url, _)| url.span().start);
    let entries = entries.into_iter().map(|(url, value)| {
        let url = url.get_ref().as_ref();
        match value.get_ref() {
            DeValue::Table(settings) => mirror(url, settings, transport),
            _ => Err("must be a table".to_owned()),
        }
        .map_err(|reason| format!("host {url:?}: {reason}"))
    });
    entries.collect()
}

fn mirror(url: &str, settings: &DeTable<'_>, transport: &Transport) -> Result<Host, String> {
    let (mut resolves, mut pulls, mut overrides) = (true, true, false);
    for (key, value) in settings {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("capabilities", DeValue::Array(listed)) => {
                let names: Vec<_> =
                    listed.iter().map(|name| name.get_ref().as_str().unwrap_or_default()).collect();
                // Cove never pushes: a mirror that may be pushed to is no other.
                if let Some(name) = names.iter().find(|name| !["pull", "resolve", "push"].contains(name)) {
                    return Err(format!("capabilities: {name:?} is none; there are pull and resolve"));
                }
                (resolves, pulls) = (names.contains(&"resolve"), names.contains(&"pull"));
            }
            ("override_path", DeValue::Boolean(value)) => overrides = *value,
            (key, _) => return Err(format!("{key}: is not built, or not of the type it must have")),
        }
    }
    let (origin, base) = place(url, overrides, transport)?;
    Ok(Host { origin, base, resolves, pulls })
}

/// Origin and path of a URL; without a scheme it is https.
fn place(url: &str, overrides: bool, transport: &Transport) -> Result<(Origin, String), String> {
    let (origin, path) = transport.place(url).ok_or_else(|| {
        format!("{:?} is not http or https, a host, and a path", url.chars().take(200).collect::<String>())
    })?;
    let path = path.trim_end_matches('/');
    Ok((origin, if overrides || path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn hosts(text: &str) -> Result<Vec<String>, String> {
        let transport = Transport::new(Vec::new(), Duration::from_secs(1));
        let upstream = upstream(&Reference::parse("r.io/a").unwrap(), &transport).unwrap();
        let shown = |host: Host| {
            let can = |yes: bool, letter| if yes { letter } else { '-' };
            format!("{}{} {}{}", host.origin, host.base, can(host.resolves, 'r'), can(host.pulls, 'p'))
        };
        parse(text, upstream, &transport).map(|hosts| hosts.into_iter().map(shown).collect())
    }

    #[test]
    fn files_give_hosts_in_order_and_the_registry_last() {
        let table: [(&str, &[&str]); 7] = [
            ("", &["https://r.io/v2 rp"]),
            ("server = \"https://other.io\"", &["https://other.io/v2 rp"]),
            (
                "[host.\"http://z:5000\"]\n[host.\"https://a\"]",
                &["http://z:5000/v2 rp", "https://a/v2 rp", "https://r.io/v2 rp"],
            ),
            (
                "[host.\"http://m:5000\"]\ncapabilities = [\"pull\"]",
                &["http://m:5000/v2 -p", "https://r.io/v2 rp"],
            ),
            // Fallback is switched off by naming the mirror as the server.
            (
                "server = \"http://m:5000\"\n[host.\"http://m:5000\"]\ncapabilities = [\"pull\", \"resolve\"]",
                &["http://m:5000/v2 rp"],
            ),
            (
                "[host.\"https://m/v2/k8s/\"]\noverride_path = true",
                &["https://m/v2/k8s rp", "https://r.io/v2 rp"],
            ),
            ("[host.\"m/cache\"]", &["https://m/cache/v2 rp", "https://r.io/v2 rp"]),
        ];
        for (text, expected) in table {
            assert_eq!(hosts(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let table = [
            ("servr = \"x\"", "servr"),
            ("server = 3", "server"),
            ("[host.\"https://m\"]\nca = \"/x\"", "ca"),
            ("[host.\"https://m\"]\ncapabilities = [\"pul\"]", "\"pul\""),
            ("[host.\"ftp://m\"]", "ftp://m"),
            ("[host.\"https://u:p@m\"]", "not http or https"),
            ("[host]\nx = 1", "must be a table"),
            ("host = ", "TOML"),
        ];
        for (text, named) in table {
            let reason = hosts(text).unwrap_err();
            assert!(reason.contains(named), "{text}: {reason}");
        }
    }

    #[test]
    fn the_most_exact_directory_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let transport = Transport::new(Vec::new(), Duration::from_secs(1));
        let first = |reference: &str| {
            let hosts = of(&[directory.path().to_owned()], &Reference::parse(reference).unwrap(), &transport);
            hosts.map(|hosts| hosts[0].origin.to_string())
        };
        assert_eq!(first("r.io:5000/a").unwrap(), "https://r.io:5000");
        for (name, mirror) in
            [(FOR_ALL, "all"), ("r.io_5000_", "port"), ("r.io:5000", "exact"), ("docker.io", "hub")]
        {
            let path = directory.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("hosts.toml"), format!("[host.\"http://{mirror}\"]")).unwrap();
            let reference = if name == "docker.io" { "busybox" } else { "r.io:5000/a" };
            assert_eq!(first(reference).unwrap(), format!("http://{mirror}"));
        }
        assert_eq!(first("r.io/a").unwrap(), "http://all");
        std::fs::write(directory.path().join("r.io:5000/hosts.toml"), "x = 1").unwrap();
        let error = first("r.io:5000/a").unwrap_err().to_string();
        assert!(error.contains("r.io:5000/hosts.toml") && error.contains("x: "), "{error}");
    }
}
