//! References: what a pod writes to name an image. Parsed strictly and put into the one form that names are stored in.
//! Never touches a path, a registry or the store.

use std::fmt;

use cove_layer::Digest;

use super::ImageError;

/// Longest text that is looked at: the longest name, tag and digest with their separators, rounded up.
const MAX_TEXT: usize = 1024;
/// Longest registry and repository together (distribution/reference).
const MAX_NAME: usize = 255;
/// Longest tag (OCI distribution specification).
const MAX_TAG: usize = 128;
/// The registry of names that give none.
const DEFAULT_DOMAIN: &str = "docker.io";
/// Where the images of [`DEFAULT_DOMAIN`] are served.
const DEFAULT_HOST: &str = "registry-1.docker.io";
/// The tag of names that give neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// Digits of a whole image id.
const ID_DIGITS: usize = 64;

/// What selects one image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Selector {
    /// By tag: the registry may move it.
    Tag(String),
    /// By digest: a tag beside it is dropped, since the digest decides.
    Digest(Digest),
}

/// A whole reference: registry, repository and tag or digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Reference {
    /// As written in names: `docker.io`, `localhost:5000`.
    domain: String,
    /// `library/busybox`.
    path: String,
    /// Which image.
    pub(super) selector: Selector,
}

impl Reference {
    /// Parses what a pod wrote.
    pub(super) fn parse(text: &str) -> Result<Self, ImageError> {
        parse(text).map_err(|reason| ImageError::InvalidReference { reference: shorten(text), reason })
    }

    /// Host and port that serve it.
    pub(super) fn host(&self) -> &str {
        if self.domain == DEFAULT_DOMAIN { DEFAULT_HOST } else { &self.domain }
    }

    /// The registry as it is written in names.
    pub(super) fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository as the registry knows it.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Registry and repository.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag, or the digest, as the registry's URL wants it.
    pub(super) fn selector_text(&self) -> String {
        match &self.selector {
            Selector::Tag(tag) => tag.clone(),
            Selector::Digest(digest) => digest.to_string(),
        }
    }

    /// `registry/name:tag`, if it has a tag.
    pub(super) fn repo_tag(&self) -> Option<String> {
        match &self.selector {
            Selector::Tag(tag) => Some(format!("{}:{tag}", self.name())),
            Selector::Digest(_) => None,
        }
    }

    /// `registry/name@digest` with the digest of the manifest that was asked for.
    pub(super) fn repo_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::Tag(tag) => write!(f, "{}/{}:{tag}", self.domain, self.path),
            Selector::Digest(digest) => write!(f, "{}/{}@{digest}", self.domain, self.path),
        }
    }
}

/// The digits of an image id or of a prefix of one, if `text` can be that: `sha256:` may stand before them.
pub(super) fn id_digits(text: &str) -> Option<&str> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (!digits.is_empty() && digits.len() <= ID_DIGITS && digits.bytes().all(hex)).then_some(digits)
}

/// Whether `text` is a whole image id, which no name can be.
pub(super) fn is_whole_id(text: &str) -> bool {
    id_digits(text).is_some_and(|digits| digits.len() == ID_DIGITS)
}

/// Cuts hostile text to a length that fits into an error.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 256;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("is empty; give registry/name:tag");
    }
    if text.len() > MAX_TEXT {
        return Err("is longer than 1024 bytes");
    }
    if is_whole_id(text) {
        return Err("is an image id; only names can be pulled");
    }
    let (rest, digest) =
        match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(digest.parse::<Digest>().map_err(
                    |_| "has a digest that is not sha256: or sha512: and its lower-case hex digits",
                )?),
            ),
            None => (text, None),
        };
    let (name, tag) = split_tag(rest);
    if tag.is_some_and(|tag| !tag_is_valid(tag)) {
        return Err(
            "has a tag that is not 1 to 128 letters, digits, '_', '.' and '-', the first no '.' or '-'",
        );
    }
    let (domain, path) = split_domain(name);
    if !domain_is_valid(domain) {
        return Err("has a registry that is not host or host:port");
    }
    let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    if !path.split('/').all(component_is_valid) {
        return Err(
            "has a repository name that is not lower-case letters and digits, separated by '.', '_', '__', '-' or '/'",
        );
    }
    if domain.len() + 1 + path.len() > MAX_NAME {
        return Err("has a registry and repository of more than 255 bytes");
    }
    let selector = match (digest, tag) {
        (Some(digest), _) => Selector::Digest(digest),
        (None, tag) => Selector::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
    };
    Ok(Reference { domain: domain.to_owned(), path, selector })
}

/// A ':' after the last '/' begins the tag; one before it belongs to the registry's port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    }
}

/// The first component is a registry if it can be no repository: it has a '.' or a ':', or is `localhost`.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", path)) => (DEFAULT_DOMAIN, path),
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (first, path),
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn domain_is_valid(domain: &str) -> bool {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match port.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if port.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let port_is_valid = |port: &str| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    host.is_none_or(|host| host.split('.').all(label)) && port.is_none_or(port_is_valid)
}

fn tag_is_valid(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// `[a-z0-9]+` runs, separated by one '.', one or two '_', or any number of '-'.
fn component_is_valid(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    ends.is_some_and(|(first, last)| alphanumeric(*first) && alphanumeric(*last))
        && bytes.split(|b| alphanumeric(*b)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_take_the_defaults_of_the_field() {
        let digest = format!("sha256:{HEX}");
        let table = [
            ("busybox", "docker.io/library/busybox:latest", "registry-1.docker.io"),
            ("user/app:1.0", "docker.io/user/app:1.0", "registry-1.docker.io"),
            ("docker.io/busybox", "docker.io/library/busybox:latest", "registry-1.docker.io"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest", "registry-1.docker.io"),
            ("localhost/app", "localhost/app:latest", "localhost"),
            ("localhost:5000/a/b__c-d.e:T_1", "localhost:5000/a/b__c-d.e:T_1", "localhost:5000"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest", "127.0.0.1:5000"),
            ("[::1]:5000/app:x", "[::1]:5000/app:x", "[::1]:5000"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10", "registry.k8s.io"),
            ("sha256:abc", "docker.io/library/sha256:abc", "registry-1.docker.io"),
            (&format!("r.io/a@{digest}"), &format!("r.io/a@{digest}"), "r.io"),
            (&format!("r.io/a:tag@{digest}"), &format!("r.io/a@{digest}"), "r.io"),
        ];
        for (text, canonical, host) in table {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(reference.host(), host, "{text}");
            assert_eq!(
                Reference::parse(canonical).unwrap(),
                reference,
                "{text}: canonical form parses to itself"
            );
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long_tag = format!("a:{}", "t".repeat(129));
        let long_name = format!("r.io/{}", "a".repeat(256));
        let long = "a/".repeat(5000);
        let upper = format!("r.io/a@sha256:{}", HEX.to_uppercase());
        let short512 = format!("r.io/a@sha512:{HEX}");
        let table = [
            "",
            " ",
            "a b",
            "A",
            "a/",
            "/a",
            "a//b",
            "a/../b",
            "..",
            "a:",
            "a:-x",
            "a:.x",
            "a:x/y z",
            "a@",
            "a___b",
            "a..b",
            "a._b",
            "-a",
            "a-",
            "r.io/",
            "r.io:0/a",
            "r.io:99999/a",
            "r.io:x/a",
            "-r.io/a",
            "r..io/a",
            "[::1/a",
            "[x]:1/a",
            "[::1]x/a",
            "a@sha256:../../x",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "a@sha256:abc",
            "user@r.io/a",
            "http://r.io/a",
            "r.io/a?x",
            "r.io/a#x",
            "r.io/a%2e",
            "a\0b",
            "a\nb",
            "é",
            HEX,
            &upper,
            &short512,
            &long_tag,
            &long_name,
            &long,
        ];
        for text in table {
            let error = Reference::parse(text).expect_err(text);
            assert!(matches!(error, ImageError::InvalidReference { .. }), "{text}");
            assert!(error.to_string().len() < 3000, "{text}");
        }
    }

    #[test]
    fn ids_are_told_from_names() {
        assert_eq!(id_digits(&format!("sha256:{HEX}")), Some(HEX));
        assert_eq!(id_digits("e3b0"), Some("e3b0"));
        for text in ["", "sha256:", "xyz", "E3", &format!("{HEX}0"), "busybox"] {
            assert_eq!(id_digits(text), None, "{text}");
        }
        assert!(is_whole_id(HEX));
        assert!(!is_whole_id("e3b0"));
    }
}
