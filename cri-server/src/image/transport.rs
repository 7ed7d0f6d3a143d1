//! HTTP to a registry and nothing of what it means: connections, time limits, redirects, bounded bodies. Plain HTTP
//! only where it is allowed, and never an `Authorization` to another scheme, host or port than the one it is for.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;

/// How long a registry may take to accept a connection: a host that drops packets answers nothing at all.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// How many redirects are followed (security-bar.md R28).
const MAX_REDIRECTS: usize = 10;
/// Idle connections are closed soon: a node pulls in bursts and must be quiet between them.
const IDLE_LIMIT: Duration = Duration::from_secs(15);
/// The most that one connection buffers, so that a pull stays within its memory (R28).
const READ_BUFFER: usize = 128 * 1024;

/// Scheme, host and port: what credentials are bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    secure: bool,
    /// Lower case.
    host: String,
    port: u16,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        if self.port == default_port(self.secure) {
            write!(f, "{scheme}://{}", self.host)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// GET or HEAD.
    pub(super) method: Method,
    /// Path and query on the registry.
    pub(super) path: String,
    /// Media types that are understood.
    pub(super) accept: Option<HeaderValue>,
    /// Sent to the first origin only.
    pub(super) authorization: Option<HeaderValue>,
}

/// Why there is no usable answer.
#[derive(Debug)]
pub(super) enum Broken {
    /// Nobody answered, or not in time, or not to the end.
    Unreachable(String),
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

type PlainClient = Client<HttpConnector, Empty<Bytes>>;
type SecureClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// Every connection to registries.
pub(super) struct Transport {
    plain: PlainClient,
    /// Made at first use: reading the system's roots costs time and memory that a node without https does not spend.
    secure: OnceLock<Result<SecureClient, String>>,
    plain_http: Vec<String>,
    progress: Duration,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("plain_http", &self.plain_http)
            .field("progress", &self.progress)
            .finish()
    }
}

impl Transport {
    /// `plain_http` lists hosts (`host` or `host:port`) that are asked without TLS, beside loopback; `progress` is how long
    /// a registry may send nothing.
    pub(super) fn new(plain_http: Vec<String>, progress: Duration) -> Self {
        let plain = builder().build(connector());
        Self { plain, secure: OnceLock::new(), plain_http, progress }
    }

    /// Where a registry named `authority` (host or host:port) is asked.
    pub(super) fn origin(&self, authority: &str) -> Result<Origin, Broken> {
        let parsed = parse_authority(authority)?;
        let (host, port) = parsed;
        let secure = !self.is_plain(&host, port);
        Ok(Origin { secure, host, port: port.unwrap_or(default_port(secure)) })
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
        let origin = Origin { secure, port: port.unwrap_or(default_port(secure)), host };
        uri.query().is_none().then(|| (origin, uri.path().to_owned()))
    }

    /// Sends, follows redirects, and returns the first answer that is none. The limit is one of progress.
    pub(super) async fn ask(&self, origin: &Origin, ask: &Ask) -> Result<Answered, Broken> {
        let (mut at, mut path) = (origin.clone(), ask.path.clone());
        for _ in 0..=MAX_REDIRECTS {
            let authorization = if at == *origin { ask.authorization.as_ref() } else { None };
            let response = self.send(&at, &path, ask, authorization).await?;
            let Some(location) = redirect(&response)? else {
                refuse_encoding(&response)?;
                return Ok(Answered { response, origin: at });
            };
            (at, path) = self.target(&at, &location)?;
        }
        Err(Broken::Refused(format!("redirected more than {MAX_REDIRECTS} times")))
    }

    async fn send(
        &self,
        at: &Origin,
        path: &str,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, Broken> {
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(format!("{at}{path}"))
            .header(header::USER_AGENT, concat!("cove/", env!("CARGO_PKG_VERSION")));
        if let Some(accept) = &ask.accept {
            request = request.header(header::ACCEPT, accept);
        }
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request
            .body(Empty::new())
            .map_err(|error| Broken::Refused(format!("{at}{path} is no URL that can be asked: {error}")))?;
        let sent = if at.secure { self.secure()?.request(request) } else { self.plain.request(request) };
        match timeout(self.progress, sent).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Broken::Unreachable(causes(&error))),
            Err(_) => Err(Broken::Unreachable(format!("no answer in {:?}", self.progress))),
        }
    }

    fn secure(&self) -> Result<&SecureClient, Broken> {
        let made = self.secure.get_or_init(|| {
            let connector = hyper_rustls::HttpsConnectorBuilder::new()
                .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
                .map_err(|error| format!("the system's certificate roots cannot be read: {error}"))?
                .https_only()
                .enable_http1()
                .enable_http2()
                .wrap_connector(connector());
            Ok(builder().build(connector))
        });
        made.as_ref().map_err(|reason| Broken::Refused(reason.clone()))
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
        let absolute = absolute.split('#').next().unwrap_or_default();
        let uri: Uri = absolute.parse().map_err(|_| refused("which is no URL"))?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(refused("which is neither http nor https")),
        };
        let authority = uri.authority().map(Authority::as_str).unwrap_or_default();
        let (host, port) = parse_authority(authority).map_err(|_| refused("whose host is not valid"))?;
        let to = Origin { secure, port: port.unwrap_or(default_port(secure)), host };
        if from.secure && !secure {
            return Err(refused("which would leave TLS"));
        }
        if !secure && to != *from && !self.is_plain(&to.host, Some(to.port)) {
            return Err(refused("which is not allowed without TLS"));
        }
        if is_loopback(&to.host) && !is_loopback(&from.host) {
            return Err(refused("which is this machine"));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok((to, path))
    }

    /// The next piece of a body; `None` at its end. The limit is one of progress.
    pub(super) async fn next(&self, body: &mut Incoming) -> Result<Option<Bytes>, Broken> {
        loop {
            let frame = match timeout(self.progress, body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(Broken::Unreachable(causes(&error))),
                Err(_) => return Err(Broken::Unreachable(format!("no byte in {:?}", self.progress))),
            };
            // Trailers carry nothing that is asked for.
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Ok(Some(data));
            }
        }
    }

    /// A whole body of at most `max` bytes. Small, so the limit holds for all of it together.
    pub(super) async fn document(&self, mut body: Incoming, max: usize) -> Result<Vec<u8>, Broken> {
        let too_large = || Broken::Refused(format!("is larger than the limit of {max} bytes"));
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
            Err(_) => Err(Broken::Unreachable(format!("not sent whole in {:?}", self.progress))),
        }
    }
}

fn builder() -> hyper_util::client::legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_timer(hyper_util::rt::TokioTimer::new());
    builder.pool_idle_timeout(IDLE_LIMIT);
    builder.http1_max_buf_size(READ_BUFFER);
    builder
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_LIMIT));
    connector.set_nodelay(true);
    connector.enforce_http(false);
    connector
}

fn default_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn parse_authority(text: &str) -> Result<(String, Option<u16>), Broken> {
    let refused = || Broken::Refused(format!("{} is not host or host:port", shown(text)));
    let authority: Authority = text.parse().map_err(|_| refused())?;
    if authority.as_str().contains('@') || authority.host().is_empty() {
        return Err(refused());
    }
    let has_port = authority.as_str().len() > authority.host().len();
    let port = authority.port_u16();
    if has_port && port.is_none() {
        return Err(refused());
    }
    Ok((authority.host().to_ascii_lowercase(), port))
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

/// An error with every cause beneath it: the kernel's answer is the last.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
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
        Transport::new(vec!["plain.lan:5000".into(), "any.lan".into()], Duration::from_secs(1))
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
}
