//! What the distribution protocol offers, for one pull: a manifest by tag or digest, and a blob. Speaks to the registry of
//! the reference and to the mirrors that the administrator gave it, one after another.

mod blob;
mod retry;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cove_layer::Digest;
use futures_util::stream::BoxStream;
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::http::HeaderMap;
use hyper::{Method, StatusCode};
use tokio::time::timeout;

use super::ImageError;
use super::auth::challenge::{self, Challenge};
use super::auth::{Answer, Credentials, token};
use super::bounds::Bounds;
use super::hosts::Host;
use super::manifest::{self, Descriptor};
use super::reference::Reference;
use super::transport::{Answered, Ask, Broken, Origin, Transport};
pub(super) use blob::Ranges;
pub(super) use retry::Patience;
use retry::Wait;

/// How much of a registry's error document is read, and for how long: it only makes an error text better.
const MAX_ERROR_DOCUMENT: usize = 64 * 1024;
/// See [`MAX_ERROR_DOCUMENT`].
const ERROR_DOCUMENT_LIMIT: Duration = Duration::from_secs(5);
/// How many characters of what a registry says are shown.
const SHOWN_DETAIL: usize = 300;

/// The name of the limit of a manifest, an index or a config.
const DOCUMENT_LIMIT: &str = "image_limits.document_bytes";
/// How often one request is answered with new credentials: a token may end while a pull runs.
const MAX_CHALLENGES: usize = 3;

/// What every pull's registry is asked by.
#[derive(Debug, Clone)]
pub(super) struct Manner {
    /// Connections.
    pub(super) transport: Arc<Transport>,
    /// What an image may cost.
    pub(super) bounds: Bounds,
    /// How large blobs are fetched.
    pub(super) ranges: Ranges,
    /// How long to wait for a registry that is busy.
    pub(super) patience: Patience,
}

/// The registry of one pull, with the credentials of that pull.
#[derive(Debug)]
pub(super) struct Registry {
    transport: Arc<Transport>,
    pub(super) bounds: Bounds,
    ranges: Ranges,
    patience: Patience,
    reference: Reference,
    /// Never empty.
    hosts: Vec<Place>,
    credentials: Credentials,
}

/// A host, and what its challenge was answered with: the tokens of a pull are its own, and end with it.
#[derive(Debug)]
struct Place {
    host: Host,
    /// Held while a token is asked for, so that the layers of one pull ask for one.
    authorization: tokio::sync::Mutex<Option<HeaderValue>>,
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
    /// First and last byte.
    range: Option<(u64, u64)>,
}

impl Registry {
    /// No connection is made yet. `hosts` are asked in their order.
    pub(super) fn new(
        manner: Manner,
        reference: Reference,
        hosts: Vec<Host>,
        credentials: Credentials,
    ) -> Self {
        let Manner { transport, bounds, ranges, patience } = manner;
        let hosts =
            hosts.into_iter().map(|host| Place { host, authorization: tokio::sync::Mutex::default() });
        Self { transport, bounds, ranges, patience, reference, hosts: hosts.collect(), credentials }
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
            .document(answered.response.into_body(), self.bounds.document_bytes, DOCUMENT_LIMIT)
            .await
            .map_err(|broken| self.broken(&what, &answered.origin, broken))?;
        Ok(Document { bytes, media_type, claimed })
    }

    /// A small blob, verified against its descriptor before anyone looks into it.
    pub(super) async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let what = format!("config {descriptor}");
        let max = usize::try_from(descriptor.size).unwrap_or(usize::MAX);
        if max > self.bounds.document_bytes {
            let limit = self.bounds.document_bytes;
            return Err(self.content(&what, format!("is larger than {DOCUMENT_LIMIT} = {limit}")));
        }
        let answered = self.ask_blob(&what, &descriptor.digest).await?;
        let bytes = self
            .transport
            .document(answered.response.into_body(), max, "the size that its descriptor says")
            .await
            .map_err(|broken| self.broken(&what, &answered.origin, broken))?;
        descriptor.verify(&bytes).map_err(|reason| self.content(&what, reason))?;
        Ok(bytes)
    }

    /// The bytes of a blob, in order, and no more than its descriptor says. Nothing else is verified.
    pub(super) async fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
    ) -> Result<BoxStream<'a, Result<Bytes, ImageError>>, ImageError> {
        blob::open(self, descriptor).await
    }

    /// What was sent is wrong.
    pub(super) fn content(&self, descriptor: &str, reason: impl Into<String>) -> ImageError {
        ImageError::Content {
            reference: self.reference.to_string(),
            host: self
                .hosts
                .iter()
                .map(|place| place.host.origin.to_string())
                .collect::<Vec<_>>()
                .join(" or "),
            descriptor: descriptor.to_owned(),
            reason: reason.into(),
        }
    }

    async fn ask_manifest(&self, method: &Method, name: &str) -> Result<Answered, ImageError> {
        self.ask(Wanted { what: &format!("manifest {name}"), method, kind: "manifests", name, range: None })
            .await
    }

    async fn ask_blob(&self, what: &str, digest: &Digest) -> Result<Answered, ImageError> {
        let name = &digest.to_string();
        self.ask(Wanted { what, method: &Method::GET, kind: "blobs", name, range: None }).await
    }

    /// Asks one host after another until one has it. The error is that of the last, and tells the others' too.
    async fn ask(&self, wanted: Wanted<'_>) -> Result<Answered, ImageError> {
        let is_tag = !wanted.name.contains(':');
        let may = |place: &&Place| if is_tag { place.host.resolves } else { place.host.pulls };
        let mut places = self.hosts.iter().filter(may).peekable();
        let mut failed: Option<ImageError> = None;
        while let Some(place) = places.next() {
            // Somebody else may have it: nobody waits for a mirror that is busy.
            let waits = places.peek().is_none();
            match self.ask_host(place, wanted, waits).await {
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

    /// Asks, and answers challenges.
    async fn ask_host(&self, place: &Place, wanted: Wanted<'_>, waits: bool) -> Result<Answered, ImageError> {
        let (host, what) = (&place.host, wanted.what);
        let mut known = place.authorization.lock().await.clone();
        let mut ask = Ask {
            method: wanted.method.clone(),
            path: format!("{}/{}/{}/{}", host.base, self.reference.path(), wanted.kind, wanted.name),
            accept: (wanted.kind == "manifests").then(manifest::accepted),
            range: wanted.range,
            bound: bound(host, known.as_ref()),
            form: None,
            access: host.access.clone(),
        };
        let mut answered = self.send(&host.origin, what, &ask, waits).await?;
        for _ in 0..MAX_CHALLENGES {
            if answered.response.status() != StatusCode::UNAUTHORIZED || answered.origin != host.origin {
                break;
            }
            let mut authorization = place.authorization.lock().await;
            let is_new = *authorization == known;
            if is_new {
                let asked = challenges(answered.response.headers());
                match self.answer(host, &asked).await? {
                    Some(answer) if known.as_ref() != Some(&answer) => *authorization = Some(answer),
                    _ => break,
                }
            }
            known.clone_from(&authorization);
            drop(authorization);
            ask.bound = bound(host, known.as_ref());
            answered = self.send(&host.origin, what, &ask, waits).await?;
            if is_new {
                break;
            }
        }
        let is_part = ask.range.is_some() && answered.response.status() == StatusCode::PARTIAL_CONTENT;
        if answered.response.status() == StatusCode::OK || is_part {
            Ok(answered)
        } else {
            Err(self.refusal(what, answered).await)
        }
    }

    /// The `Authorization` that answers a host. Only the registry itself is shown the credentials.
    async fn answer(&self, host: &Host, asked: &[Challenge]) -> Result<Option<HeaderValue>, ImageError> {
        let anonymous = Credentials::Anonymous;
        let credentials = if host.is_own { &self.credentials } else { &anonymous };
        match credentials.answer(asked, self.reference.path()) {
            Answer::Header(value) => Ok(Some(value)),
            Answer::Token(wanted) => self.token(host, credentials, &wanted).await.map(Some),
            Answer::Nothing => Ok(None),
        }
    }

    /// Asks a host's token server (distribution's token specification): with a GET, or with a refresh token as OAuth2 has it.
    async fn token(
        &self,
        host: &Host,
        credentials: &Credentials,
        wanted: &token::Wanted,
    ) -> Result<HeaderValue, ImageError> {
        let what = "a token";
        let broken = |origin: &Origin, broken| self.broken(what, origin, broken);
        let realm = self.transport.realm(&host.origin, &wanted.realm);
        let (origin, path) = realm.map_err(|refused| broken(&host.origin, refused))?;
        let access = if origin == host.origin { (*host.access).clone() } else { host.access.elsewhere() };
        let mut ask = Ask::get(path, Arc::new(access));
        match credentials {
            Credentials::Refresh(refresh) => {
                ask.method = Method::POST;
                ask.form = Some(wanted.form(refresh).into());
            }
            Credentials::Basic(value) => {
                ask.bound.insert(header::AUTHORIZATION, value.clone());
            }
            Credentials::Anonymous | Credentials::Bearer(_) => (),
        }
        if ask.form.is_none() {
            ask.path =
                format!("{}{}{}", ask.path, if ask.path.contains('?') { '&' } else { '?' }, wanted.query());
        }
        let answered = self.send(&origin, what, &ask, true).await?;
        if answered.response.status() != StatusCode::OK {
            return Err(self.refusal(what, answered).await);
        }
        let document =
            self.transport.document(answered.response.into_body(), token::MAX_ANSWER, "the limit").await;
        let document = document.map_err(|error| broken(&answered.origin, error))?;
        token::parse(&document).map_err(|reason| broken(&answered.origin, Broken::Refused(reason.to_owned())))
    }

    /// Sends, and sends again to somebody who is busy.
    async fn send(
        &self,
        origin: &Origin,
        what: &str,
        ask: &Ask,
        waits: bool,
    ) -> Result<Answered, ImageError> {
        let mut tries = 0;
        loop {
            let sent = self.transport.ask(origin, ask).await;
            let answered = sent.map_err(|broken| self.broken(what, origin, broken))?;
            let (status, headers) = (answered.response.status(), answered.response.headers());
            let retry_after = text(headers, header::RETRY_AFTER.as_str());
            match self.patience.wait(tries, status, retry_after.as_deref(), SystemTime::now()) {
                Wait::For(pause) if waits => {
                    tracing::info!(%origin, status = status.as_u16(), ?pause, "the registry is busy: waiting");
                    tokio::time::sleep(pause).await;
                    tries += 1;
                }
                Wait::TooLong(asked) => {
                    let (asked, longest) = (asked.as_secs(), self.patience.longest.as_secs());
                    let cause = format!(
                        "the registry answered {} and wants a wait of {asked} s, longer than images.max_wait_seconds = {longest}",
                        status.as_u16()
                    );
                    return Err(self.broken(what, &answered.origin, Broken::Unreachable(cause)));
                }
                Wait::For(_) | Wait::No => return Ok(answered),
            }
        }
    }

    fn broken(&self, what: &str, host: &Origin, broken: Broken) -> ImageError {
        match broken {
            Broken::Unreachable(cause) | Broken::Stalled(cause) => ImageError::RegistryUnavailable {
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
        let body = self.transport.document(answered.response.into_body(), MAX_ERROR_DOCUMENT, "the limit");
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

fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(header::WWW_AUTHENTICATE).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(challenge::parse).collect()
}

/// What goes to a host and nowhere else.
fn bound(host: &Host, authorization: Option<&HeaderValue>) -> HeaderMap {
    let mut headers = host.headers.clone();
    if let Some(authorization) = authorization {
        headers.insert(header::AUTHORIZATION, authorization.clone());
    }
    headers
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
