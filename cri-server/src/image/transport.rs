//! HTTP to a registry and nothing of what it means: connections, time limits, redirects, bounded bodies. Plain HTTP
//! only where it is allowed, and never an `Authorization` to another scheme, host or port than the one it is for.

mod access;
mod client;
mod connect;
mod origin;
mod proxy;
mod tls;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cove_layer::Digest;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::HeaderMap;
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode, Uri};
use tokio::time::timeout;

pub(super) use access::{Access, Identity};
use client::Clients;
pub(super) use origin::Origin;
use origin::{is_loopback, parse_authority};
pub use proxy::Proxies;

/// How many ways to reach a host are remembered with their connections: files that change all the time must not fill
/// the memory.
const MAX_CLIENTS: usize = 64;

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// GET, HEAD or POST.
    pub(super) method: Method,
    /// Path and query on the registry.
    pub(super) path: String,
    /// Media types that are understood.
    pub(super) accept: Option<HeaderValue>,
    /// First and last byte that are wanted.
    pub(super) range: Option<(u64, u64)>,
    /// Sent to the first origin only: `Authorization`, and what the administrator adds.
    pub(super) bound: HeaderMap,
    /// The body of a form. It may hold a secret: it is not sent where a redirect leads.
    pub(super) form: Option<Bytes>,
    /// How the first origin is reached.
    pub(super) access: Arc<Access>,
}

impl Ask {
    /// A GET.
    pub(super) fn get(path: String, access: Arc<Access>) -> Self {
        let bound = HeaderMap::new();
        Self { method: Method::GET, path, accept: None, range: None, bound, form: None, access }
    }
}

/// Why there is no usable answer.
#[derive(Debug)]
pub(super) enum Broken {
    /// Nobody answered, or not to the end.
    Unreachable(String),
    /// Nothing came for as long as an administrator allows.
    Stalled(String),
    /// What was answered is not acceptable.
    Refused(String),
}

/// An answer and who gave it, after redirects.
#[derive(Debug)]
pub(super) struct Answered {
    /// Head and body.
    pub(super) response: Response<Incoming>,
    /// Who answered.
    pub(super) origin: Origin,
}

/// What transport needs to know of an administrator's choices.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// Hosts (`host` or `host:port`) that are asked without TLS, beside loopback.
    pub(super) plain_http: Vec<String>,
    /// How long a registry may send nothing.
    pub(super) progress: Duration,
    /// How many redirects are followed.
    pub(super) redirects: usize,
    /// Who stands between.
    pub(super) proxies: Proxies,
}

/// Every connection to registries.
pub(super) struct Transport {
    clients: Mutex<HashMap<Digest, Arc<Clients>>>,
    plain_http: Vec<String>,
    progress: Duration,
    redirects: usize,
    proxies: Arc<Proxies>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("plain_http", &self.plain_http)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

impl Transport {
    /// Connects to nobody yet.
    pub(super) fn new(settings: Settings) -> Self {
        let Settings { plain_http, progress, redirects, proxies } = settings;
        Self { clients: Mutex::default(), plain_http, progress, redirects, proxies: Arc::new(proxies) }
    }

    /// Where a registry named `authority` (host or host:port) is asked.
    pub(super) fn origin(&self, authority: &str) -> Result<Origin, Broken> {
        let parsed = parse_authority(authority)?;
        let (host, port) = parsed;
        let secure = !self.is_plain(&host, port);
        Ok(Origin::new(secure, host, port))
    }

    /// Origin and path of a URL that an administrator wrote; https if it names no scheme. What is written counts: plain HTTP
    /// needs no other permission.
    pub(super) fn place(&self, url: &str) -> Option<(Origin, String)> {
        let absolute = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let uri: Uri = absolute.parse().ok()?;
        let secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let (host, port) = parse_authority(uri.authority()?.as_str()).ok()?;
        uri.query().is_none().then(|| (Origin::new(secure, host, port), uri.path().to_owned()))
    }

    /// Sends, follows redirects, and returns the first answer that is none. The limit is one of progress.
    pub(super) async fn ask(&self, origin: &Origin, ask: &Ask) -> Result<Answered, Broken> {
        let (mut at, mut path) = (origin.clone(), ask.path.clone());
        for _ in 0..=self.redirects {
            let response = self.send(&at, &path, ask, at == *origin).await?;
            let Some(location) = redirect(&response)? else {
                refuse_encoding(&response)?;
                return Ok(Answered { response, origin: at });
            };
            if ask.form.is_some() {
                return Err(Broken::Refused(format!("{at} redirects, and what it was sent is for it alone")));
            }
            (at, path) = self.target(&at, &location)?;
        }
        Err(Broken::Refused(format!(
            "redirected more than {} times (image_limits.redirects)",
            self.redirects
        )))
    }

    async fn send(
        &self,
        at: &Origin,
        path: &str,
        ask: &Ask,
        is_first: bool,
    ) -> Result<Response<Incoming>, Broken> {
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(format!("{at}{path}"))
            .header(header::USER_AGENT, concat!("cove/", env!("CARGO_PKG_VERSION")));
        if let Some(accept) = &ask.accept {
            request = request.header(header::ACCEPT, accept);
        }
        if let Some((first, last)) = ask.range {
            request = request.header(header::RANGE, format!("bytes={first}-{last}"));
        }
        if ask.form.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        if !at.secure
            && let Some(proxy) = self.proxies.of(at).map_err(Broken::Refused)?
            && let Some(authorization) = &proxy.authorization
        {
            request = request.header(header::PROXY_AUTHORIZATION, authorization);
        }
        let mut request = request
            .body(Full::new(ask.form.clone().unwrap_or_default()))
            .map_err(|error| Broken::Refused(format!("{at} has no URL that can be asked: {error}")))?;
        if is_first {
            for (name, value) in &ask.bound {
                request.headers_mut().append(name, value.clone());
            }
        }
        let clients =
            if is_first { self.clients(&ask.access) } else { self.clients(&ask.access.elsewhere()) };
        let sent = if at.secure {
            let access = if is_first { (*ask.access).clone() } else { ask.access.elsewhere() };
            clients.secure(&self.proxies, &access)?.request(request)
        } else {
            clients.plain().request(request)
        };
        match timeout(self.progress, sent).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Broken::Unreachable(causes(&error))),
            Err(_) => Err(self.stalled("no answer")),
        }
    }

    fn stalled(&self, what: &str) -> Broken {
        Broken::Stalled(format!("{what} in {:?} (images.progress_seconds)", self.progress))
    }

    fn clients(&self, access: &Access) -> Arc<Clients> {
        let key = access.fingerprint();
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MAX_CLIENTS && !clients.contains_key(&key) {
            clients.clear();
        }
        let make = || Arc::new(Clients::new(&self.proxies, access));
        clients.entry(key).or_insert_with(make).clone()
    }

    fn is_plain(&self, host: &str, port: Option<u16>) -> bool {
        let listed = |entry: &String| match parse_authority(entry) {
            Ok((listed, None)) => listed == host,
            Ok((listed, listed_port)) => listed == host && listed_port == port,
            Err(_) => false,
        };
        is_loopback(host) || self.plain_http.iter().any(listed)
    }

    /// Where a redirect leads, if it may lead there: never from https to http, and to this machine only from this machine.
    fn target(&self, from: &Origin, location: &str) -> Result<(Origin, String), Broken> {
        let refused = |why: &str| Broken::Refused(format!("{from} redirects to {}, {why}", shown(location)));
        let absolute = if location.starts_with("//") {
            format!("{}:{location}", if from.secure { "https" } else { "http" })
        } else if location.starts_with('/') {
            format!("{from}{location}")
        } else {
            location.to_owned()
        };
        let (to, path) = parse_url(&absolute).map_err(refused)?;
        if from.secure && !to.secure {
            return Err(refused("which would leave TLS"));
        }
        if !to.secure && to != *from && !self.is_plain(&to.host, Some(to.port)) {
            return Err(refused("which is not allowed without TLS"));
        }
        if to.is_loopback() && !from.is_loopback() {
            return Err(refused("which is this machine"));
        }
        Ok((to, path))
    }

    /// Where the token server of a registry is, if a password may go there: by https, or, from a registry that is itself
    /// asked without TLS, to the same host without it (A23).
    pub(super) fn realm(&self, registry: &Origin, realm: &str) -> Result<(Origin, String), Broken> {
        let refused =
            |why: &str| Broken::Refused(format!("{registry} sends for a token to {}, {why}", shown(realm)));
        let (to, path) = parse_url(realm).map_err(refused)?;
        if !to.secure && registry.secure {
            return Err(refused("which would leave TLS"));
        }
        if !to.secure && to.host != registry.host {
            return Err(refused("which is another host without TLS"));
        }
        if to.is_loopback() && !registry.is_loopback() {
            return Err(refused("which is this machine"));
        }
        Ok((to, path))
    }

    /// The next piece of a body; `None` at its end. The limit is one of progress.
    pub(super) async fn next(&self, body: &mut Incoming) -> Result<Option<Bytes>, Broken> {
        loop {
            let frame = match timeout(self.progress, body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(Broken::Unreachable(causes(&error))),
                Err(_) => return Err(self.stalled("no byte")),
            };
            // Trailers carry nothing that is asked for.
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
    }

    /// A whole body of at most `max` bytes, which `limit` names. Small, so the limit of progress holds for all of it
    /// together.
    pub(super) async fn document(
        &self,
        mut body: Incoming,
        max: usize,
        limit: &'static str,
    ) -> Result<Vec<u8>, Broken> {
        let too_large = || Broken::Refused(format!("is larger than {limit} = {max}"));
        if body.size_hint().lower() > u64::try_from(max).unwrap_or(u64::MAX) {
            return Err(too_large());
        }
        let read = async {
            let mut bytes = Vec::new();
            while let Some(data) = self.next(&mut body).await? {
                if bytes.len() + data.len() > max {
                    return Err(too_large());
                }
                bytes.extend_from_slice(&data);
            }
            Ok(bytes)
        };
        match timeout(self.progress, read).await {
            Ok(read) => read,
            Err(_) => Err(self.stalled("not sent whole")),
        }
    }
}

/// Origin, and path with query, of a URL that a server gave.
fn parse_url(text: &str) -> Result<(Origin, String), &'static str> {
    let absolute = text.split('#').next().unwrap_or_default();
    let uri: Uri = absolute.parse().map_err(|_| "which is no URL")?;
    let secure = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err("which is neither http nor https"),
    };
    let authority = uri.authority().map(Authority::as_str).unwrap_or_default();
    let (host, port) = parse_authority(authority).map_err(|_| "whose host is not valid")?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    Ok((Origin::new(secure, host, port), path))
}

fn redirect(response: &Response<Incoming>) -> Result<Option<String>, Broken> {
    const REDIRECTS: [StatusCode; 5] = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    if !REDIRECTS.contains(&response.status()) {
        return Ok(None);
    }
    let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
    location.map(|location| Some(location.to_owned())).ok_or_else(|| {
        Broken::Refused(format!("answered {} without a place to go to", response.status().as_u16()))
    })
}

/// Nothing asks for an encoding: digests and sizes are of the bytes as they are sent.
fn refuse_encoding(response: &Response<Incoming>) -> Result<(), Broken> {
    match response.headers().get(header::CONTENT_ENCODING) {
        None => Ok(()),
        Some(encoding) if encoding.as_bytes().eq_ignore_ascii_case(b"identity") => Ok(()),
        Some(encoding) => {
            Err(Broken::Refused(format!("sent with Content-Encoding {encoding:?}, which was not asked for")))
        }
    }
}

/// An error with every cause beneath it: the kernel's answer is the last. Where an administrator can do something about
/// it, that is said first.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let (mut text, mut advice) = (error.to_string(), tls::explained(error));
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        advice = advice.or_else(|| tls::explained(cause));
        next = cause.source();
    }
    match advice {
        Some(advice) => format!("{advice} ({text})"),
        None => text,
    }
}

/// Hostile text for an error: without query (it may be signed), bounded and printable.
fn shown(text: &str) -> String {
    const SHOWN: usize = 200;
    text.split('?').next().unwrap_or_default().chars().take(SHOWN).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transport() -> Transport {
        Transport::new(Settings {
            plain_http: vec!["plain.lan:5000".into(), "any.lan".into()],
            progress: Duration::from_secs(1),
            redirects: 10,
            proxies: Proxies::default(),
        })
    }

    #[test]
    fn tls_is_left_out_only_where_it_is_allowed() {
        let table = [
            ("r.io", "https://r.io"),
            ("r.io:5000", "https://r.io:5000"),
            ("R.IO:443", "https://r.io"),
            ("localhost", "http://localhost"),
            ("127.9.0.1:5000", "http://127.9.0.1:5000"),
            ("[::1]:5000", "http://[::1]:5000"),
            ("plain.lan:5000", "http://plain.lan:5000"),
            ("plain.lan:5001", "https://plain.lan:5001"),
            ("any.lan:1", "http://any.lan:1"),
            ("localhost.evil.io", "https://localhost.evil.io"),
        ];
        for (authority, origin) in table {
            assert_eq!(transport().origin(authority).unwrap().to_string(), origin, "{authority}");
        }
        for authority in ["", "a@b", "a:", "a:x", "a/b"] {
            assert!(transport().origin(authority).is_err(), "{authority}");
        }
    }

    #[test]
    fn redirects_lead_only_where_they_may() {
        let transport = transport();
        let (secure, plain, here) = (
            transport.origin("r.io").unwrap(),
            transport.origin("any.lan").unwrap(),
            transport.origin("localhost").unwrap(),
        );
        let allowed = [
            (&secure, "/x?y=1", "https://r.io", "/x?y=1"),
            (&secure, "https://cdn.io/b#f", "https://cdn.io", "/b"),
            (&secure, "//cdn.io:444/b", "https://cdn.io:444", "/b"),
            (&plain, "http://plain.lan:5000/b", "http://plain.lan:5000", "/b"),
            (&plain, "https://cdn.io", "https://cdn.io", "/"),
            (&here, "http://127.0.0.1:81/b", "http://127.0.0.1:81", "/b"),
        ];
        for (from, location, origin, path) in allowed {
            let (to, to_path) = transport.target(from, location).unwrap();
            assert_eq!((to.to_string().as_str(), to_path.as_str()), (origin, path), "{location}");
        }
        let refused = [
            (&secure, "http://any.lan/b"),
            (&secure, "https://localhost/b"),
            (&plain, "http://cdn.io/b"),
            (&plain, "http://127.0.0.1/b"),
            (&here, "ftp://localhost/b"),
            (&here, "b"),
            (&here, "http://u:p@localhost/b"),
            (&here, ""),
        ];
        for (from, location) in refused {
            let Err(Broken::Refused(text)) = transport.target(from, location) else {
                panic!("{location} is followed")
            };
            assert!(text.contains("redirects to"), "{text}");
        }
    }

    #[test]
    fn tokens_are_asked_for_where_passwords_may_go() {
        let transport = transport();
        let table = [
            ("r.io", "https://auth.io/token?a=b", Ok("https://auth.io")),
            ("r.io", "https://r.io/token", Ok("https://r.io")),
            ("r.io", "http://r.io/token", Err("leave TLS")),
            ("r.io", "http://auth.io/token", Err("leave TLS")),
            ("r.io", "https://127.0.0.1/token", Err("this machine")),
            ("any.lan", "http://any.lan:5001/token", Ok("http://any.lan:5001")),
            ("any.lan", "http://plain.lan:5000/token", Err("another host without TLS")),
            ("any.lan", "https://auth.io/token", Ok("https://auth.io")),
            ("127.0.0.1:5000", "http://127.0.0.1:5001/token", Ok("http://127.0.0.1:5001")),
            ("127.0.0.1:5000", "http://127.0.0.2:5001/token", Err("another host without TLS")),
            ("r.io", "https://u:secret@auth.io/token", Err("host is not valid")),
            ("r.io", "/token", Err("neither http nor https")),
            ("r.io", "", Err("no URL")),
        ];
        for (registry, realm, expected) in table {
            let registry = transport.origin(registry).unwrap();
            match (transport.realm(&registry, realm), expected) {
                (Ok((origin, _)), Ok(expected)) => assert_eq!(origin.to_string(), expected),
                (Err(Broken::Refused(text)), Err(expected)) => assert!(text.contains(expected), "{text}"),
                (found, _) => panic!("{realm}: {found:?}"),
            }
        }
    }
}
