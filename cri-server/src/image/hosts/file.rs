//! The text of a `hosts.toml`: what it says of the registry and of its mirrors. A key that is not known is refused by name:
//! to go on without a `ca` would ask somebody else than the administrator means.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use toml::de::{DeTable, DeValue};

use super::super::reference::Reference;
use super::super::transport::{Access, Origin, Transport};
use super::{Host, certificates};

/// Where `https://docker.io` is served (distribution's registry client).
const DOCKER_HUB: &str = "https://registry-1.docker.io";

/// What one table says, beside the URL that it is for.
#[derive(Debug, Default)]
struct Settings {
    resolves: Option<bool>,
    pulls: Option<bool>,
    overrides: bool,
    headers: hyper::HeaderMap,
    access: Access,
}

/// The hosts of `text`, a file in `directory`, in the order to ask them.
pub(in crate::image) fn parse(
    text: &str,
    directory: &Path,
    reference: &Reference,
    upstream: Host,
    transport: &Transport,
) -> Result<Vec<Host>, String> {
    let table = DeTable::parse(text).map_err(|error| error.to_string())?;
    let (mut hosts, mut server, mut settings) = (Vec::new(), None, Settings::default());
    for (key, value) in table.get_ref() {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("server", DeValue::String(url)) => server = Some(url.to_string()),
            ("host", DeValue::Table(listed)) => hosts = mirrors(listed, directory, reference, transport)?,
            (key, value) => settings.set(key, value, directory)?,
        }
    }
    let last = match server {
        Some(url) => settings.host(place(&url, settings.overrides, transport)?, reference),
        None if settings.access.is_of_tls() => {
            settings.host((upstream.origin.with_tls(), upstream.base), reference)
        }
        None => settings.host((upstream.origin, upstream.base), reference),
    };
    if !hosts.iter().any(|host| host.origin == last.origin && host.resolves && host.pulls) {
        hosts.push(last);
    }
    Ok(hosts)
}

/// In the order of the file: a TOML table has none of its own.
fn mirrors(
    listed: &DeTable<'_>,
    directory: &Path,
    reference: &Reference,
    transport: &Transport,
) -> Result<Vec<Host>, String> {
    let mut entries: Vec<_> = listed.iter().collect();
    entries.sort_by_key(|(url, _)| url.span().start);
    let entries = entries.into_iter().map(|(url, value)| {
        let url = url.get_ref().as_ref();
        let host = || {
            let DeValue::Table(table) = value.get_ref() else { return Err("must be a table".to_owned()) };
            let mut settings = Settings::default();
            for (key, value) in table {
                settings.set(key.get_ref().as_ref(), value.get_ref(), directory)?;
            }
            Ok(settings.host(place(url, settings.overrides, transport)?, reference))
        };
        host().map_err(|reason| format!("host {url:?}: {reason}"))
    });
    entries.collect()
}

impl Settings {
    fn set(&mut self, key: &str, value: &DeValue<'_>, directory: &Path) -> Result<(), String> {
        let named = |reason: String| format!("{key}: {reason}");
        match (key, value) {
            ("capabilities", DeValue::Array(_)) => {
                let names = strings(value).map_err(named)?;
                // Cove never pushes: a mirror that may be pushed to is no other.
                if let Some(name) = names.iter().find(|name| !["pull", "resolve", "push"].contains(name)) {
                    return Err(named(format!("{name:?} is none; there are pull and resolve")));
                }
                self.resolves = Some(names.contains(&"resolve"));
                self.pulls = Some(names.contains(&"pull"));
            }
            ("override_path", DeValue::Boolean(value)) => self.overrides = *value,
            ("skip_verify", DeValue::Boolean(value)) => self.access.skip_verify = *value,
            ("ca", DeValue::String(_) | DeValue::Array(_)) => {
                for file in strings(value).map_err(named)? {
                    let found = certificates::certificates(&directory.join(file)).map_err(named)?;
                    self.access.roots.extend(found);
                }
            }
            ("client", DeValue::String(_) | DeValue::Array(_)) => {
                let (certificate, key) = pair(value).map_err(named)?;
                let found = certificates::identity(&directory.join(certificate), &directory.join(key));
                self.access.identity = Some(found.map_err(named)?);
            }
            ("header", DeValue::Table(listed)) => {
                for (name, value) in listed {
                    let name = name.get_ref().as_ref();
                    let wrong = || named(format!("{name:?} or its value cannot be a header"));
                    let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
                    for value in strings(value.get_ref()).map_err(|_| wrong())? {
                        let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
                        value.set_sensitive(true);
                        self.headers.append(header.clone(), value);
                    }
                }
            }
            ("dial_timeout", DeValue::String(text)) => {
                let wrong = || named("must be a time such as \"5s\" or \"500ms\"".to_owned());
                self.access.dial = Some(duration(text).ok_or_else(wrong)?);
            }
            _ => return Err(named("is not known, or not of the type it must have".to_owned())),
        }
        Ok(())
    }

    fn host(&self, (origin, base): (Origin, String), reference: &Reference) -> Host {
        Host {
            is_own: origin.is_named(reference.host()),
            origin,
            base,
            resolves: self.resolves.unwrap_or(true),
            pulls: self.pulls.unwrap_or(true),
            headers: self.headers.clone(),
            access: Arc::new(self.access.clone()),
        }
    }
}

/// A string, or a list of them.
fn strings<'a>(value: &'a DeValue<'_>) -> Result<Vec<&'a str>, String> {
    let wrong = || "must be a string or a list of strings".to_owned();
    match value {
        DeValue::String(text) => Ok(vec![text.as_ref()]),
        DeValue::Array(listed) => listed.iter().map(|one| one.get_ref().as_str().ok_or_else(wrong)).collect(),
        _ => Err(wrong()),
    }
}

/// One file of certificate and key; or both in a list; or a list with such a list in it. A server asks for one certificate,
/// so more than one are not understood.
fn pair<'a>(value: &'a DeValue<'_>) -> Result<(&'a str, &'a str), String> {
    if let DeValue::Array(listed) = value
        && listed.len() == 1
        && let Some(one) = listed.iter().next()
        && let DeValue::Array(_) = one.get_ref()
    {
        return pair(one.get_ref());
    }
    match strings(value)?.as_slice() {
        [both] => Ok((both, both)),
        [certificate, key] => Ok((certificate, key)),
        _ => Err("must be a file, or a certificate and its key".to_owned()),
    }
}

/// As Go writes times, as far as one unit goes.
fn duration(text: &str) -> Option<Duration> {
    let (count, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let count: u32 = count.parse().ok()?;
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        _ => return None,
    };
    (count > 0).then(|| unit.saturating_mul(count))
}

/// Origin and path of a URL; without a scheme it is https. docker.io is served elsewhere, by all clients' knowledge.
fn place(url: &str, overrides: bool, transport: &Transport) -> Result<(Origin, String), String> {
    let served = if url.trim_end_matches('/') == "https://docker.io" { DOCKER_HUB } else { url };
    let (origin, path) = transport.place(served).ok_or_else(|| {
        format!("{:?} is not http or https, a host, and a path", url.chars().take(200).collect::<String>())
    })?;
    let path = path.trim_end_matches('/');
    Ok((origin, if overrides || path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") }))
}
