//! What a pull may show to its registry. Credentials never leave this module but as a header marked sensitive, and no
//! error or log line holds any part of them.

pub(super) mod challenge;
pub(super) mod token;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cove_layer::Digest;
use hyper::header::HeaderValue;

use super::reference::Reference;
use super::secret::Secret;
use super::{Auth, ImageError, sha256};
use challenge::Challenge;

/// The credentials of one pull, for the registry of its reference only.
#[derive(Clone)]
pub(super) enum Credentials {
    /// None.
    Anonymous,
    /// User name and password, ready as a header.
    Basic(HeaderValue),
    /// A token that the registry itself takes, ready as a header.
    Bearer(HeaderValue),
    /// A refresh token, which only a token server takes.
    Refresh(Secret),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic(_) => "Basic(…)",
            Self::Bearer(_) => "Bearer(…)",
            Self::Refresh(_) => "Refresh(…)",
        })
    }
}

impl Credentials {
    /// Takes the first of the fields that is set, in the order of the CRI: user name and password, `auth`, identity token,
    /// registry token. Credentials for another server are not used.
    pub(super) fn new(auth: Option<&Auth>, reference: &Reference) -> Result<Self, ImageError> {
        let Some(auth) = auth else { return Ok(Self::Anonymous) };
        if !auth.server_address.is_empty() && !is_same_server(&auth.server_address, reference) {
            return Ok(Self::Anonymous);
        }
        let invalid = |reason| ImageError::InvalidAuth { host: reference.host().to_owned(), reason };
        if !auth.username.is_empty() || !auth.password.is_empty() {
            if auth.username.contains(':') {
                return Err(invalid("the user name holds a ':'"));
            }
            basic(format!("{}:{}", auth.username, auth.password.expose()).as_bytes()).map_err(invalid)
        } else if !auth.auth.is_empty() {
            let decoded =
                STANDARD.decode(auth.auth.expose()).map_err(|_| invalid("field auth is not base64"))?;
            let end = decoded.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
            if !decoded[..end].contains(&b':') {
                return Err(invalid("field auth is not the base64 of user:password"));
            }
            basic(&decoded[..end]).map_err(invalid)
        } else if !auth.identity_token.is_empty() {
            Ok(Self::Refresh(auth.identity_token.clone()))
        } else if !auth.registry_token.is_empty() {
            header("Bearer", auth.registry_token.expose())
                .map(Self::Bearer)
                .ok_or_else(|| invalid("field registry_token holds bytes that a header cannot hold"))
        } else {
            Ok(Self::Anonymous)
        }
    }

    /// How these challenges (`WWW-Authenticate`) of a registry are answered when `repository` is pulled. A token is asked
    /// for without credentials, too: public registries want one of everybody.
    pub(super) fn answer(&self, challenges: &[Challenge], repository: &str) -> Answer {
        let find = |scheme: &str| challenges.iter().find(|challenge| challenge.is(scheme));
        match (self, find("basic"), find("bearer")) {
            (Self::Basic(value), Some(_), _) | (Self::Bearer(value), _, Some(_)) => {
                Answer::Header(value.clone())
            }
            (_, _, Some(bearer)) => {
                token::Wanted::new(bearer, repository).map_or(Answer::Nothing, Answer::Token)
            }
            _ => Answer::Nothing,
        }
    }
}

/// How a challenge can be answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// By this `Authorization`.
    Header(HeaderValue),
    /// By a token, which a token server gives.
    Token(token::Wanted),
    /// Not at all: the registry's refusal stands.
    Nothing,
}

/// What tells the credentials of one pull from those of another, without keeping them.
pub(super) fn fingerprint(auth: Option<&Auth>) -> Option<Digest> {
    let auth = auth?;
    let mut bytes = Vec::new();
    for field in [
        &auth.username,
        auth.password.expose(),
        auth.auth.expose(),
        &auth.server_address,
        auth.identity_token.expose(),
        auth.registry_token.expose(),
    ] {
        bytes.extend_from_slice(&field.len().to_le_bytes());
        bytes.extend_from_slice(field.as_bytes());
    }
    Some(sha256(&bytes))
}

fn basic(pair: &[u8]) -> Result<Credentials, &'static str> {
    header("Basic", &STANDARD.encode(pair)).map(Credentials::Basic).ok_or("cannot be put into a header")
}

fn header(scheme: &str, value: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("{scheme} {value}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Whether `server` (`host`, `host:port`, or a URL with a path, as Docker writes it) is the registry of `reference`.
fn is_same_server(server: &str, reference: &Reference) -> bool {
    let server = server.strip_prefix("https://").or_else(|| server.strip_prefix("http://")).unwrap_or(server);
    let server = server.split('/').next().unwrap_or_default();
    let server = if server == "index.docker.io" { "docker.io" } else { server };
    server == reference.domain() || server == reference.host()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(set: impl FnOnce(&mut Auth)) -> Auth {
        let mut auth = Auth::default();
        set(&mut auth);
        auth
    }

    #[test]
    fn fields_are_taken_in_order_and_only_for_their_server() {
        let reference = Reference::parse("r.io:5000/a").unwrap();
        let pair = STANDARD.encode("u:p");
        let table = [
            (
                auth(|a| {
                    a.username = "u".into();
                    a.password = "p".into();
                    a.auth = "x".into()
                }),
                format!("Basic {pair}"),
            ),
            (auth(|a| a.auth = STANDARD.encode("u:p\0\0").into()), format!("Basic {pair}")),
            (auth(|a| a.registry_token = "t".into()), "Bearer t".to_owned()),
            (
                auth(|a| {
                    a.registry_token = "t".into();
                    a.server_address = "https://r.io:5000/v2/".into()
                }),
                "Bearer t".to_owned(),
            ),
            (
                auth(|a| {
                    a.registry_token = "t".into();
                    a.server_address = "r.io".into()
                }),
                String::new(),
            ),
            (
                auth(|a| {
                    a.registry_token = "t".into();
                    a.server_address = "evil.io:5000".into()
                }),
                String::new(),
            ),
            (auth(|_| ()), String::new()),
        ];
        let challenges = challenge::parse("Basic realm=\"x\", bearer realm=\"y\"");
        for (auth, expected) in table {
            let header = match Credentials::new(Some(&auth), &reference).unwrap().answer(&challenges, "a") {
                Answer::Header(value) => {
                    assert!(value.is_sensitive());
                    value.to_str().unwrap().to_owned()
                }
                _ => String::new(),
            };
            assert_eq!(header, expected);
        }
    }

    #[test]
    fn docker_hub_is_known_by_all_its_names() {
        let reference = Reference::parse("busybox").unwrap();
        for server in ["https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"] {
            assert!(is_same_server(server, &reference), "{server}");
        }
    }

    #[test]
    fn broken_credentials_are_refused_without_showing_them() {
        let reference = Reference::parse("r.io/a").unwrap();
        let table = [
            auth(|a| {
                a.username = "sec:ret".into();
                a.password = "secret".into()
            }),
            auth(|a| a.auth = "secret!".into()),
            auth(|a| a.auth = STANDARD.encode("secret").into()),
            auth(|a| a.registry_token = "secret\n".into()),
        ];
        for auth in table {
            let error = Credentials::new(Some(&auth), &reference).unwrap_err();
            assert!(matches!(error, ImageError::InvalidAuth { .. }));
            assert!(!format!("{error} {error:?} {auth:?}").contains("secret"));
        }
    }

    #[test]
    fn fingerprints_tell_fields_apart() {
        let a = auth(|a| {
            a.username = "ab".into();
            a.password = "c".into()
        });
        let b = auth(|a| {
            a.username = "a".into();
            a.password = "bc".into()
        });
        assert_ne!(fingerprint(Some(&a)), fingerprint(Some(&b)));
        assert_eq!(fingerprint(Some(&a)), fingerprint(Some(&a.clone())));
        assert_eq!(fingerprint(None), None);
    }
}
