//! The request for a stream: which protocol the client wants, and the answer that switches to it. Pure: looks at
//! headers alone.

use hyper::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The header by which SPDY clients name the protocols that they know, the one they like best first.
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
const WS_PROTOCOL: &str = "sec-websocket-protocol";

/// What streams of one verb may look like on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// SPDY/3.1 with the streams of a command, version 1 to 4.
    SpdyCommand(u8),
    /// SPDY/3.1 with pairs of streams.
    SpdyPorts,
    /// WebSocket with numbered channels; version 1 (no name or `channel.k8s.io`), 4 or 5.
    Channels {
        /// 1, 4 or 5.
        version: u8,
        /// Text frames with base64.
        base64: bool,
    },
    /// SPDY/3.1 with pairs of streams, its bytes carried by a WebSocket (KEP-4006).
    TunnelledPorts,
}

/// Why a request is not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Not a request for an upgrade that is served.
    NotAnUpgrade,
    /// No protocol that both sides know; these are known.
    Unknown(&'static [&'static str]),
}

const SPDY_COMMANDS: &[&str] =
    &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
const SPDY_PORTS: &[&str] = &["portforward.k8s.io"];
const WS_COMMANDS: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const WS_PORTS: &[&str] = &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

/// What was agreed upon.
#[derive(Debug, PartialEq, Eq)]
pub struct Agreed {
    /// How to go on.
    pub protocol: Protocol,
    /// Its name for the answer; none if the client named none.
    name: Option<&'static str>,
    /// The answer to a WebSocket's key.
    accept: Option<String>,
}

/// Looks at a request for streams of a command (`exec`, `attach`) or of ports.
pub fn agree<T>(request: &Request<T>, ports: bool) -> Result<Agreed, Refused> {
    let headers = request.headers();
    if !has(headers, CONNECTION.as_str(), "upgrade") {
        return Err(Refused::NotAnUpgrade);
    }
    if has(headers, UPGRADE.as_str(), "spdy/3.1") {
        return spdy(headers, ports);
    }
    if has(headers, UPGRADE.as_str(), "websocket") && request.method() == Method::GET {
        return websocket(headers, ports);
    }
    Err(Refused::NotAnUpgrade)
}

fn spdy(headers: &HeaderMap, ports: bool) -> Result<Agreed, Refused> {
    let known = if ports { SPDY_PORTS } else { SPDY_COMMANDS };
    let name = first_known(headers, STREAM_PROTOCOL, known).ok_or(Refused::Unknown(known))?;
    let protocol = if ports { Protocol::SpdyPorts } else { Protocol::SpdyCommand(version(name)) };
    Ok(Agreed { protocol, name: Some(name), accept: None })
}

fn websocket(headers: &HeaderMap, ports: bool) -> Result<Agreed, Refused> {
    let known = if ports { WS_PORTS } else { WS_COMMANDS };
    let key = headers.get("sec-websocket-key").ok_or(Refused::NotAnUpgrade)?;
    if !has(headers, "sec-websocket-version", "13") {
        return Err(Refused::NotAnUpgrade);
    }
    let name = if headers.contains_key(WS_PROTOCOL) {
        Some(first_known(headers, WS_PROTOCOL, known).ok_or(Refused::Unknown(known))?)
    } else {
        None
    };
    let protocol = match name {
        Some(TUNNEL) => Protocol::TunnelledPorts,
        name => Protocol::Channels {
            version: name.map_or(1, version),
            base64: name.is_some_and(|name| name.contains("base64")),
        },
    };
    Ok(Agreed { protocol, name, accept: Some(derive_accept_key(key.as_bytes())) })
}

fn version(name: &str) -> u8 {
    match name.strip_prefix('v').and_then(|rest| rest.bytes().next()) {
        Some(digit) if digit.is_ascii_digit() => digit - b'0',
        _ => 1,
    }
}

/// The words of a header, which may stand in several lines.
fn words<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

fn has(headers: &HeaderMap, name: &str, word: &str) -> bool {
    words(headers, name).any(|found| found.eq_ignore_ascii_case(word))
}

fn first_known(headers: &HeaderMap, name: &str, known: &[&'static str]) -> Option<&'static str> {
    words(headers, name).find_map(|wanted| known.iter().find(|known| **known == wanted)).copied()
}

impl Agreed {
    /// The answer after which the other protocol begins.
    pub fn response<B: Default>(self) -> Response<B> {
        let mut response = Response::new(B::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let spdy = self.accept.is_none();
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(if spdy { "SPDY/3.1" } else { "websocket" }));
        if let Some(name) = self.name {
            let header = if spdy { STREAM_PROTOCOL } else { WS_PROTOCOL };
            headers.insert(header, HeaderValue::from_static(name));
        }
        // Base64, so it is a header value.
        if let Some(Ok(accept)) = self.accept.map(|accept| HeaderValue::from_str(&accept)) {
            headers.insert("sec-websocket-accept", accept);
        }
        response
    }
}

impl Refused {
    /// The answer to it.
    pub fn response<B: Default + From<String>>(self) -> Response<B> {
        match self {
            Self::NotAnUpgrade => {
                let text = "an upgrade to SPDY/3.1 or websocket is required\n".to_owned();
                let mut response = Response::new(B::from(text));
                *response.status_mut() = StatusCode::BAD_REQUEST;
                response
            }
            Self::Unknown(known) => {
                let text = format!("unable to upgrade: none of the protocols is known, only {known:?}\n");
                let mut response = Response::new(B::from(text));
                *response.status_mut() = StatusCode::FORBIDDEN;
                for name in known {
                    response
                        .headers_mut()
                        .append("x-accepted-stream-protocol-versions", HeaderValue::from_static(name));
                }
                response
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().method("GET").uri("/exec/x").header("Connection", "Upgrade");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn the_first_that_both_know() {
        let spdy = ("Upgrade", "SPDY/3.1");
        let versions = |text| ("X-Stream-Protocol-Version", text);
        let ws = |protocols| {
            vec![
                ("Upgrade", "websocket"),
                ("Sec-WebSocket-Version", "13"),
                ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("Sec-WebSocket-Protocol", protocols),
            ]
        };
        type Case = (Vec<(&'static str, &'static str)>, bool, Result<Protocol, Refused>);
        let table: Vec<Case> = vec![
            (
                vec![spdy, versions("v5.channel.k8s.io"), versions("v4.channel.k8s.io")],
                false,
                Ok(Protocol::SpdyCommand(4)),
            ),
            (vec![spdy, versions("v2.channel.k8s.io, channel.k8s.io")], false, Ok(Protocol::SpdyCommand(2))),
            (vec![spdy, versions("channel.k8s.io")], false, Ok(Protocol::SpdyCommand(1))),
            (vec![spdy, versions("v9")], false, Err(Refused::Unknown(SPDY_COMMANDS))),
            (vec![spdy], false, Err(Refused::Unknown(SPDY_COMMANDS))),
            (vec![spdy, versions("portforward.k8s.io")], true, Ok(Protocol::SpdyPorts)),
            (vec![spdy, versions("portforward.k8s.io")], false, Err(Refused::Unknown(SPDY_COMMANDS))),
            (
                ws("v5.channel.k8s.io,v4.channel.k8s.io"),
                false,
                Ok(Protocol::Channels { version: 5, base64: false }),
            ),
            (ws("base64.channel.k8s.io"), false, Ok(Protocol::Channels { version: 1, base64: true })),
            (ws("v4.base64.channel.k8s.io"), true, Ok(Protocol::Channels { version: 4, base64: true })),
            (ws("v5.channel.k8s.io"), true, Err(Refused::Unknown(WS_PORTS))),
            (ws("SPDY/3.1+portforward.k8s.io"), true, Ok(Protocol::TunnelledPorts)),
            (ws("SPDY/3.1+portforward.k8s.io"), false, Err(Refused::Unknown(WS_COMMANDS))),
            (vec![("Upgrade", "h2c")], false, Err(Refused::NotAnUpgrade)),
            (vec![("Upgrade", "websocket")], false, Err(Refused::NotAnUpgrade)),
        ];
        for (headers, ports, expected) in table {
            let agreed = agree(&request(&headers), ports).map(|agreed| agreed.protocol);
            assert_eq!(agreed, expected, "{headers:?}");
        }
    }

    #[test]
    fn the_answer_names_what_was_agreed() {
        let request = request(&[
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]);
        let response: Response<String> = agree(&request, false).unwrap().response();
        assert_eq!(response.status(), 101);
        // RFC 6455, section 1.3.
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!response.headers().contains_key("sec-websocket-protocol"));
    }
}
