//! What the distribution protocol offers, for one pull: a manifest by tag or digest, and a blob. Speaks to the registry of
//! the reference and to the mirrors that the administrator gave it, one after another; ranges have their place here.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cove_layer::Digest;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::HeaderMap;
use hyper::{Method, StatusCode};
use tokio::time::timeout;

use super::ImageError;
use super::auth::{Answer, Credentials};
use super::hosts::Host;
use super::manifest::{self, Descriptor, MAX_DOCUMENT};
use super::reference::Reference;
use super::transport::{Answered, Ask, Broken, Origin, Transport};

/// How much of a registry's error document is read, and for how long: it only makes an error text better.
const MAX_ERROR_DOCUMENT: usize = 64 * 1024;
/// See [`MAX_ERROR_DOCUMENT`].
const ERROR_DOCUMENT_LIMIT: Duration = Duration::from_secs(5);
/// How many characters of what a registry says are shown.
const SHOWN_DETAIL: usize = 300;

/// The registry of one pull, with the credentials of that pull.
#[derive(Debug)]
pub(super) struct Registry {
    transport: Arc<Transport>,
    reference: Reference,
    /// Never empty.
    hosts: Vec<Host>,
    /// Whom the credentials are for; mirrors never see them.
    own: Origin,
    credentials: Credentials,
    /// What a challenge of the registry itself was answered with.
    authorization: Mutex<Option<HeaderValue>>,
}

/// A document as it came.
#[derive(Debug)]
pub(super) struct Document {
    /// The bytes that the digest is of.
    pub(super) bytes: Vec<u8>,
    /// `Content-Type` without parameters, if there was one.
    pub(super) media_type: Option<String>,
    /// What the registry says the digest is.
    pub(super) claimed: Option<String>,
}

/// What is asked for of a repository.
#[derive(Debug, Clone, Copy)]
struct Wanted<'a> {
    /// For errors.
    what: &'a str,
    method: &'a Method,
    /// `manifests` or `blobs`.
    kind: &'a str,
    /// Tag or digest.
    name: &'a str,
}

/// A blob that is being sent.
#[derive(Debug)]
pub(super) struct Blob {
    /// Not read yet.
    pub(super) body: Incoming,
    /// Who sends it.
    pub(super) origin: Origin,
}

impl Registry {
    /// No connection is made yet. `hosts` are asked in their order.
    pub(super) fn new(
        transport: Arc<Transport>,
        reference: Reference,
        hosts: Vec<Host>,
        credentials: Credentials,
    ) -> Result<Self, ImageError> {
        let own = transport.origin(reference.host()).map_err(|_| ImageError::InvalidReference {
            reference: reference.to_string(),
            reason: "has a registry that is not host or host:port",
        })?;
        Ok(Self { transport, reference, hosts, own, credentials, authorization: Mutex::default() })
    }

    /// The reference that is pulled.
    pub(super) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The digest that the registry gives for the tag or digest of the reference, if it says so in a head: only a hint.
    pub(super) async fn head(&self) -> Result<Option<Digest>, ImageError> {
        let answered = self.ask_manifest(&Method::HEAD, &self.reference.selector_text()).await?;
        Ok(text(answered.response.headers(), "docker-content-digest").and_then(|digest| digest.parse().ok()))
    }

    /// A manifest or an index by tag or digest, not looked into.
    pub(super) async fn manifest(&self, selector: &str) -> Result<Document, ImageError> {
        let what = format!("manifest {selector}");
        let answered = self.ask_manifest(&Method::GET, selector).await?;
        let headers = answered.response.headers();
        let media_type = text(headers, header::CONTENT_TYPE.as_str())
            .map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        let claimed = text(headers, "docker-content-digest");
        let bytes = self
            .transport
            .document(answered.response.into_body(), MAX_DOCUMENT)
            .await
            .map_err(|broken| self.broken(&what, &answered.origin, broken))?;
        Ok(Document { bytes, media_type, claimed })
    }

    /// A small blob, verified against its descriptor before anyone looks into it.
    pub(super) async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let what = format!("config {descriptor}");
        let max = usize::try_from(descriptor.size).unwrap_or(usize::MAX);
        if max > MAX_DOCUMENT {
            return Err(self.content(&what, format!("is larger than the limit of {MAX_DOCUMENT} bytes")));
        }
        let answered = self.ask_blob(&what, &descriptor.digest).await?;
        let bytes = self
            .transport
            .document(answered.response.into_body(), max)
            .await
            .map_err(|broken| self.broken(&what, &answered.origin, broken))?;
        descriptor.verify(&bytes).map_err(|reason| self.content(&what, reason))?;
        Ok(bytes)
    }

    /// A blob as a stream. Nothing is verified yet but the length that the head gives.
    pub(super) async fn blob(&self, descriptor: &Descriptor) -> Result<Blob, ImageError> {
        let what = format!("layer {descriptor}");
        let answered = self.ask_blob(&what, &descriptor.digest).await?;
        let body = answered.response.into_body();
        match body.size_hint().exact() {
            Some(length) if length != descriptor.size => Err(self.content(
                &what,
                format!("{length} bytes are offered, and the manifest says {}", descriptor.size),
            )),
            _ => Ok(Blob { body, origin: answered.origin }),
        }
    }

    /// The next piece of a blob.
    pub(super) async fn next(
        &self,
        blob: &mut Blob,
        descriptor: &Descriptor,
    ) -> Result<Option<hyper::body::Bytes>, ImageError> {
        let next = self.transport.next(&mut blob.body).await;
        next.map_err(|broken| self.broken(&format!("layer {descriptor}"), &blob.origin, broken))
    }

    /// What was sent is wrong.
    pub(super) fn content(&self, descriptor: &str, reason: impl Into<String>) -> ImageError {
        ImageError::Content {
            reference: self.reference.to_string(),
            host: self.hosts.iter().map(|host| host.origin.to_string()).collect::<Vec<_>>().join(" or "),
            descriptor: descriptor.to_owned(),
            reason: reason.into(),
        }
    }

    /// What would be needed is not built.
    pub(super) fn unsupported(&self, what: impl Into<String>) -> ImageError {
        ImageError::Unsupported { reference: self.reference.to_string(), what: what.into() }
    }

    async fn ask_manifest(&self, method: &Method, name: &str) -> Result<Answered, ImageError> {
        self.ask(Wanted { what: &format!("manifest {name}"), method, kind: "manifests", name }).await
    }

    async fn ask_blob(&self, what: &str, digest: &Digest) -> Result<Answered, ImageError> {
        self.ask(Wanted { what, method: &Method::GET, kind: "blobs", name: &digest.to_string() }).await
    }

    /// Asks one host after another until one has it. The error is that of the last, and tells the others' too.
    async fn ask(&self, wanted: Wanted<'_>) -> Result<Answered, ImageError> {
        let is_tag = !wanted.name.contains(':');
        let mut failed: Option<ImageError> = None;
        for host in self.hosts.iter().filter(|host| if is_tag { host.resolves } else { host.pulls }) {
            match self.ask_host(host, wanted).await {
                Ok(answered) => return Ok(answered),
                Err(error) => {
                    failed = Some(match failed {
                        Some(earlier) => error.after(&earlier),
                        None => error,
                    });
                }
            }
        }
        Err(failed.unwrap_or_else(|| self.content(wanted.what, "no host may be asked for this")))
    }

    /// Asks, and answers one challenge.
    async fn ask_host(&self, host: &Host, wanted: Wanted<'_>) -> Result<Answered, ImageError> {
        let what = wanted.what;
        let is_own = host.origin == self.own;
        let known = is_own
            .then(|| self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .flatten();
        let mut ask = Ask {
            method: wanted.method.clone(),
            path: format!("{}/{}/{}/{}", host.base, self.reference.path(), wanted.kind, wanted.name),
            accept: (wanted.kind == "manifests").then(manifest::accepted),
            authorization: known,
        };
        let mut answered = self.send(&host.origin, what, &ask).await?;
        if answered.response.status() == StatusCode::UNAUTHORIZED
            && is_own
            && answered.origin == host.origin
            && ask.authorization.is_none()
        {
            match self.credentials.answer(&challenges(answered.response.headers())) {
                Answer::Header(value) => {
                    *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value.clone());
                    ask.authorization = Some(value);
                    answered = self.send(&host.origin, what, &ask).await?;
                }
                Answer::Unsupported(needed) => {
                    return Err(self.unsupported(format!("{needed} at {}", host.origin)));
                }
                Answer::Nothing => (),
            }
        }
        if answered.response.status() == StatusCode::OK {
            Ok(answered)
        } else {
            Err(self.refusal(what, answered).await)
        }
    }

    async fn send(&self, origin: &Origin, what: &str, ask: &Ask) -> Result<Answered, ImageError> {
        self.transport.ask(origin, ask).await.map_err(|broken| self.broken(what, origin, broken))
    }

    fn broken(&self, what: &str, host: &Origin, broken: Broken) -> ImageError {
        match broken {
            Broken::Unreachable(cause) => ImageError::RegistryUnavailable {
                reference: self.reference.to_string(),
                host: host.to_string(),
                doing: what.to_owned(),
                cause,
            },
            Broken::Refused(reason) => ImageError::Content {
                reference: self.reference.to_string(),
                host: host.to_string(),
                descriptor: what.to_owned(),
                reason,
            },
        }
    }

    /// The error that a status other than 200 is. A gateway that cannot reach its registry counts as not reached.
    async fn refusal(&self, what: &str, answered: Answered) -> ImageError {
        const UNREACHED: [StatusCode; 3] =
            [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
        let status = answered.response.status();
        let (reference, host, doing) =
            (self.reference.to_string(), answered.origin.to_string(), what.to_owned());
        let body = self.transport.document(answered.response.into_body(), MAX_ERROR_DOCUMENT);
        // Without a document the status alone is the answer.
        let document =
            timeout(ERROR_DOCUMENT_LIMIT, body).await.ok().and_then(Result::ok).unwrap_or_default();
        let detail = detail(&document);
        if UNREACHED.contains(&status) {
            let cause = format!("the registry answered {}: {detail}", status.as_u16());
            return ImageError::RegistryUnavailable { reference, host, doing, cause };
        }
        ImageError::Registry { reference, host, doing, status: status.as_u16(), detail }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn challenges(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .map(str::to_owned)
        .collect()
}

/// Codes and messages of an error document of the distribution specification, printable and bounded.
fn detail(document: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(parsed) = serde_json::from_slice::<Errors>(document) else { return String::new() };
    let all: Vec<String> = parsed.errors.iter().map(|one| format!("{} {}", one.code, one.message)).collect();
    all.join("; ").trim().chars().take(SHOWN_DETAIL).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_documents_become_short_text() {
        let table = [
            (
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{}}]}"#,
                "MANIFEST_UNKNOWN manifest unknown",
            ),
            (r#"{"errors":[{"code":"A"},{"message":"b\u0000"}]}"#, "A ;  b\\0"),
            ("<html>", ""),
            ("", ""),
        ];
        for (document, expected) in table {
            assert_eq!(detail(document.as_bytes()), expected);
        }
        let long = format!(r#"{{"errors":[{{"code":"{}"}}]}}"#, "x".repeat(10_000));
        assert_eq!(detail(long.as_bytes()).len(), SHOWN_DETAIL);
    }
}
