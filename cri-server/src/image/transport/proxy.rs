//! Proxies, as `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` of the daemon's environment name them, in the meaning that Go's
//! programs give these variables (golang.org/x/net/http/httpproxy): operators set them once for every runtime.

use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::HeaderValue;

use super::origin::{Origin, address, is_loopback, parse_authority};

/// One proxy.
#[derive(Clone)]
pub(super) struct Proxy {
    /// Where it listens.
    pub(super) uri: Uri,
    /// `host:port`.
    pub(super) name: String,
    /// `Proxy-Authorization`, if its URL holds a user.
    pub(super) authorization: Option<HeaderValue>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The proxies of this node. Without any, every host is asked itself.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    http: Option<Result<Proxy, String>>,
    https: Option<Result<Proxy, String>>,
    direct: Vec<Direct>,
}

/// Hosts that are asked without a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Direct {
    All,
    /// An address, or a network by its prefix length.
    Network(IpAddr, u8, Option<u16>),
    /// A name; also those below it; also itself.
    Name {
        name: String,
        itself: bool,
        port: Option<u16>,
    },
}

impl Proxies {
    /// Reads the environment. A value that cannot be used is an error of every pull that would need it.
    #[must_use]
    pub fn from_env() -> Self {
        let read = |names: [&str; 2]| {
            names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        };
        Self::new(
            read(["HTTP_PROXY", "http_proxy"]).as_deref(),
            read(["HTTPS_PROXY", "https_proxy"]).as_deref(),
            read(["NO_PROXY", "no_proxy"]).as_deref(),
        )
    }

    /// From the values of the three variables.
    pub(super) fn new(http: Option<&str>, https: Option<&str>, direct: Option<&str>) -> Self {
        let parse = |name: &str, value: &str| {
            // The value may hold a password.
            proxy(value).ok_or_else(|| {
                format!("{name} of the daemon's environment is not http://[USER:PASSWORD@]HOST[:PORT]")
            })
        };
        Self {
            http: http.map(|value| parse("HTTP_PROXY", value)),
            https: https.map(|value| parse("HTTPS_PROXY", value)),
            direct: direct
                .unwrap_or_default()
                .split(',')
                .filter_map(|entry| exception(entry.trim()))
                .collect(),
        }
    }

    /// The proxy to ask `origin` by, if there is one. Never for this machine.
    pub(super) fn of(&self, origin: &Origin) -> Result<Option<&Proxy>, String> {
        let proxy = if origin.secure { &self.https } else { &self.http };
        match proxy {
            Some(proxy)
                if !is_loopback(&origin.host) && !self.direct.iter().any(|direct| direct.holds(origin)) =>
            {
                proxy.as_ref().map(Some).map_err(Clone::clone)
            }
            _ => Ok(None),
        }
    }
}

impl Direct {
    fn holds(&self, origin: &Origin) -> bool {
        let fits = |port: &Option<u16>| port.is_none_or(|port| port == origin.port);
        match self {
            Self::All => true,
            Self::Network(network, prefix, port) => {
                fits(port)
                    && address(&origin.host).is_some_and(|address| is_within(address, *network, *prefix))
            }
            Self::Name { name, itself, port } => {
                let is_below =
                    origin.host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                fits(port) && (is_below || *itself && origin.host == *name)
            }
        }
    }
}

fn proxy(value: &str) -> Option<Proxy> {
    let rest = match value.split_once("://") {
        Some(("http", rest)) => rest,
        Some(_) => return None,
        None => value,
    };
    let rest = rest.split('/').next()?;
    let (user, authority) =
        rest.rsplit_once('@').map_or((None, rest), |(user, authority)| (Some(user), authority));
    let (host, port) = parse_authority(authority).ok()?;
    let name = format!("{host}:{}", port.unwrap_or(80));
    let authorization = match user {
        Some(user) => {
            let text = format!("Basic {}", STANDARD.encode(decoded(user)?));
            let mut header = HeaderValue::from_str(&text).ok()?;
            header.set_sensitive(true);
            Some(header)
        }
        None => None,
    };
    Some(Proxy { uri: format!("http://{name}").parse().ok()?, name, authorization })
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            decoded.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

/// One entry of `NO_PROXY`. One that means nothing holds nothing.
fn exception(entry: &str) -> Option<Direct> {
    if entry == "*" {
        return Some(Direct::All);
    }
    let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
    if let Some((network, prefix)) = entry.split_once('/') {
        let (network, prefix) = (address(network)?, prefix.parse().ok()?);
        return (prefix <= bits(network)).then_some(Direct::Network(network, prefix, None));
    }
    if let Some(address) = address(entry) {
        return Some(Direct::Network(address, bits(address), None));
    }
    let itself = !entry.starts_with(['.', '*']);
    let (name, port) = parse_authority(entry.trim_start_matches('*').trim_start_matches('.')).ok()?;
    match address(&name) {
        Some(address) => Some(Direct::Network(address, bits(address), port)),
        None => Some(Direct::Name { name, itself, port }),
    }
}

fn is_within(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let shared = |left: u128, right: u128, bits: u32| {
        u32::from(prefix) == 0 || (left ^ right) >> (bits - u32::from(prefix)) == 0
    };
    match (address.to_canonical(), network.to_canonical()) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            shared(u128::from(address.to_bits()), u128::from(network.to_bits()), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => shared(address.to_bits(), network.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        let (scheme, authority) = text.split_once("://").unwrap();
        let (host, port) = parse_authority(authority).unwrap();
        Origin::new(scheme == "https", host, port)
    }

    #[test]
    fn the_scheme_chooses_and_no_proxy_excepts() {
        let direct = "10.0.0.0/8, fd00::/16,192.168.1.7, .svc,example.com,r.lan:5000,*.wild.io,nonsense/99,,1.2.3.4:80";
        let proxies = Proxies::new(Some("p:3128"), Some("http://s"), Some(direct));
        let table = [
            ("http://r.io", Some("p:3128")),
            ("https://r.io", Some("s:80")),
            ("https://10.1.2.3", None),
            ("https://11.1.2.3", Some("s:80")),
            ("https://[fd00:0:1::1]:5000", None),
            ("https://[fd01::1]", Some("s:80")),
            ("https://192.168.1.7:5000", None),
            ("https://a.svc", None),
            ("https://svc", Some("s:80")),
            ("https://example.com", None),
            ("https://a.example.com", None),
            ("https://badexample.com", Some("s:80")),
            ("https://r.lan:5000", None),
            ("https://r.lan", Some("s:80")),
            ("https://a.wild.io", None),
            ("https://wild.io", Some("s:80")),
            ("http://1.2.3.4", None),
            ("http://1.2.3.4:81", Some("p:3128")),
            ("http://127.0.0.1:5000", None),
            ("http://localhost", None),
            ("https://[::1]", None),
        ];
        for (asked, expected) in table {
            let found = proxies.of(&origin(asked)).unwrap().map(|proxy| proxy.name.as_str());
            assert_eq!(found, expected, "{asked}");
        }
        let none = Proxies::new(Some("p"), Some("p"), Some("*"));
        assert!(none.of(&origin("https://r.io")).unwrap().is_none());
        assert!(Proxies::default().of(&origin("https://r.io")).unwrap().is_none());
    }

    #[test]
    fn users_become_a_header_and_bad_values_are_not_shown() {
        let proxies = Proxies::new(None, Some("http://us%40er:p%3Ass@p:1/"), None);
        let proxy = proxies.of(&origin("https://r.io")).unwrap().unwrap().clone();
        let header = proxy.authorization.as_ref().unwrap();
        assert!(header.is_sensitive());
        assert_eq!(header.to_str().unwrap(), format!("Basic {}", STANDARD.encode("us@er:p:ss")));
        assert!(!format!("{proxies:?}").contains("ss"));
        for bad in ["https://u:secret@p", "socks5://secret", "http://", "http://u:secret%zz@p", "a b secret"]
        {
            let proxies = Proxies::new(None, Some(bad), None);
            let reason = proxies.of(&origin("https://r.io")).unwrap_err();
            assert!(reason.contains("HTTPS_PROXY") && !reason.contains("secret"), "{bad}: {reason}");
            assert!(proxies.of(&origin("http://r.io")).unwrap().is_none());
        }
    }
}
