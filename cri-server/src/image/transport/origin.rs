//! Scheme, host and port: what credentials are bound to, and what is compared when an answer leads elsewhere.

use std::net::IpAddr;

use hyper::http::uri::Authority;

use super::Broken;

/// Scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Origin {
    /// By TLS.
    pub(super) secure: bool,
    /// Lower case.
    pub(super) host: String,
    /// Given, or the scheme's.
    pub(super) port: u16,
}

impl Origin {
    /// With the port of the scheme where none is given.
    pub(super) fn new(secure: bool, host: String, port: Option<u16>) -> Self {
        Self { secure, host, port: port.unwrap_or(default_port(secure)) }
    }

    /// The same host and port with TLS.
    pub(in crate::image) fn with_tls(mut self) -> Self {
        if !self.secure && self.port == default_port(false) {
            self.port = default_port(true);
        }
        self.secure = true;
        self
    }

    /// Whether a registry named `authority` (host or host:port) is meant. A name without a port means the port of either
    /// scheme.
    pub(in crate::image) fn is_named(&self, authority: &str) -> bool {
        parse_authority(authority).is_ok_and(|(host, port)| {
            host == self.host && self.port == port.unwrap_or(default_port(self.secure))
        })
    }

    /// `host:port`, always with the port.
    pub(super) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Whether it is this machine.
    pub(super) fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
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

fn default_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

/// Whether `host` is a name or address of this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || address(host).is_some_and(|address| address.is_loopback())
}

/// The address that `host` is, with or without the brackets of a URL.
pub(super) fn address(host: &str) -> Option<IpAddr> {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).parse().ok()
}

/// Host (lower case) and port.
pub(super) fn parse_authority(text: &str) -> Result<(String, Option<u16>), Broken> {
    let refused = || Broken::Refused(format!("{} is not host or host:port", super::shown(text)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_named_by_host_and_port() {
        let origin = |secure, port| Origin { secure, host: "r.io".into(), port };
        let table = [
            (origin(true, 443), "r.io", true),
            (origin(true, 443), "R.IO:443", true),
            (origin(false, 80), "r.io", true),
            (origin(false, 443), "r.io", false),
            (origin(true, 5000), "r.io:5000", true),
            (origin(false, 5000), "r.io:5000", true),
            (origin(true, 5000), "r.io", false),
            (origin(true, 443), "a.r.io", false),
        ];
        for (origin, name, expected) in table {
            assert_eq!(origin.is_named(name), expected, "{origin} {name}");
        }
        assert_eq!(origin(false, 80).with_tls().to_string(), "https://r.io");
        assert_eq!(origin(false, 5000).with_tls().to_string(), "https://r.io:5000");
    }
}
