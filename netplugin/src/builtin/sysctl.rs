//! The few kernel switches that routing between pods needs.
//!
//! Global ones are turned on, never off: what else on the host relies on them nobody knows. Each change of a global one
//! is logged with its old value, so that a person can put it back.

use std::fs;
use std::io;

use super::NetworkError;

/// IPv4 packets are passed on between links.
const FORWARD_V4: &str = "net/ipv4/ip_forward";
/// IPv6 packets are passed on between links. The kernel then takes no more router advertisements on links whose
/// `accept_ra` is 1: a host that gets its own route by them needs 2 there.
const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";

/// Turns on forwarding for the families in use.
pub(super) fn forward(v4: bool, v6: bool) -> Result<(), NetworkError> {
    for (wanted, key) in [(v4, FORWARD_V4), (v6, FORWARD_V6)] {
        if !wanted {
            continue;
        }
        let before = read(key).map_err(|e| NetworkError::system("read sysctl", key, e))?;
        if before != "1" {
            write(key, "1")?;
            tracing::info!(sysctl = key, before, now = "1", "turned on forwarding for pods");
        }
    }
    Ok(())
}

/// For the host's end of a pair: it takes no router advertisements from its pod, and, where the pods have no IPv6,
/// speaks none at all.
pub(super) fn protect(link: &str, v6: bool) -> Result<(), NetworkError> {
    let key = |name: &str| format!("net/ipv6/conf/{link}/{name}");
    write_if_there(&key("accept_ra"), "0")?;
    if v6 { Ok(()) } else { write_if_there(&key("disable_ipv6"), "1") }
}

/// For the host's end of a pair whose pod has host ports: packets from 127.0.0.1 may leave there, and their answers come
/// in. The table drops what a pod itself sends to 127.0.0.0/8 (CVE-2020-8558).
pub(super) fn let_localhost_out(link: &str) -> Result<(), NetworkError> {
    write(&format!("net/ipv4/conf/{link}/route_localnet"), "1")
}

fn path(key: &str) -> String {
    format!("/proc/sys/{key}")
}

fn read(key: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path(key))?.trim().to_owned())
}

fn write(key: &str, value: &str) -> Result<(), NetworkError> {
    fs::write(path(key), value).map_err(|e| NetworkError::system("write sysctl", key, e))
}

/// A kernel without IPv6 has no switch of it to turn.
fn write_if_there(key: &str, value: &str) -> Result<(), NetworkError> {
    match write(key, value) {
        Err(NetworkError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
