//! Rules that hold for more than one field: each takes the path of the field for its message.

use std::path::{Component, Path, PathBuf};

use cove_guard::Guard;

use super::super::wire;
use crate::config::Network;
use crate::error::Error;

/// PATH_MAX less its final NUL (limits.h).
const MAX_PATH: usize = 4095;
/// A DNS subdomain, the longest name that Kubernetes has.
const MAX_NAME: usize = 253;

/// A message that must be there.
pub(in crate::api) fn required<T>(field: &str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::invalid(field, "is missing"))
}

/// Refuses a field that is not built, when it asks for something.
pub(in crate::api) fn not_built(field: &str, asked: bool) -> Result<(), Error> {
    if asked { Err(Error::invalid(field, "is not implemented by this version of Cove")) } else { Ok(()) }
}

/// An id, or the beginning of one. What no object can be called is left to the look-up, which knows no such object.
pub(in crate::api) fn id(field: &str, value: String) -> Result<String, Error> {
    if value.is_empty() { Err(Error::invalid(field, "must not be empty")) } else { Ok(value) }
}

/// A Kubernetes name: it stands in keys, log lines and messages, never in a path of its own.
pub(super) fn name(field: &str, value: String) -> Result<String, Error> {
    if value.is_empty() {
        return Err(Error::invalid(field, "must not be empty"));
    }
    part(field, value)
}

/// As `name`, but may be empty.
pub(super) fn part(field: &str, value: String) -> Result<String, Error> {
    if value.len() > MAX_NAME {
        return Err(Error::invalid(field, format!("is {} bytes long, more than {MAX_NAME}", value.len())));
    }
    if value == "." || value == ".." || value.contains('/') {
        return Err(Error::invalid(field, "must not be a path"));
    }
    no_control(field, &value)?;
    Ok(value)
}

/// No control character: such a value ends up in a line of a file or of a log.
pub(super) fn no_control(field: &str, value: &str) -> Result<(), Error> {
    match value.chars().find(|letter| letter.is_control()) {
        Some(letter) if Guard::OneLine.holds() => {
            Err(Error::invalid(field, format!("holds the control character {}", letter.escape_unicode())))
        }
        _ => Ok(()),
    }
}

/// One word of a line: no white space, no control character, not empty.
pub(super) fn word(field: &str, value: &str, longest: usize) -> Result<(), Error> {
    no_control(field, value)?;
    if value.is_empty()
        || value.len() > longest
        || value.contains(char::is_whitespace) && Guard::OneLine.holds()
    {
        return Err(Error::invalid(
            field,
            format!("must be one word of 1 to {longest} bytes, without white space"),
        ));
    }
    Ok(())
}

/// No NUL: what the kernel takes as a string would end there.
pub(super) fn no_nul(field: &str, value: &[u8]) -> Result<(), Error> {
    if value.contains(&0) { Err(Error::invalid(field, "holds a NUL byte")) } else { Ok(()) }
}

/// An absolute path without `..` and control characters. Where it leads is found out by whoever opens it.
pub(super) fn absolute(field: &str, value: &str) -> Result<PathBuf, Error> {
    plain(field, value)?;
    if !value.starts_with('/') {
        return Err(Error::invalid(field, format!("{value:?} is not an absolute path")));
    }
    Ok(PathBuf::from(value))
}

/// A path below another: relative, without `.`, `..` and control characters.
pub(super) fn relative(field: &str, value: &str) -> Result<PathBuf, Error> {
    plain(field, value)?;
    let below = Path::new(value).components().all(|part| matches!(part, Component::Normal(_)));
    if value.is_empty() || !below || value.ends_with('/') {
        return Err(Error::invalid(field, format!("{value:?} is not a file below its directory")));
    }
    Ok(PathBuf::from(value))
}

fn plain(field: &str, value: &str) -> Result<(), Error> {
    if value.len() > MAX_PATH {
        return Err(Error::invalid(field, format!("is {} bytes long, more than {MAX_PATH}", value.len())));
    }
    no_control(field, value)?;
    if Path::new(value).components().any(|part| part == Component::ParentDir) {
        return Err(Error::invalid(field, format!("{value:?} must not contain '..'")));
    }
    Ok(())
}

/// A user or group id. -1 stands for "unchanged" in every system call that takes one, so it is none.
pub(super) fn user_id(field: &str, value: i64) -> Result<u32, Error> {
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| Error::invalid(field, format!("{value} is not an id: 0 to 4294967294")))
}

/// The pod CIDRs of a node, which a kubelet writes with a comma between two. None says nothing.
pub(in crate::api) fn pod_cidrs(config: Option<wire::RuntimeConfig>) -> Result<Vec<String>, Error> {
    const FIELD: &str = "runtime_config.network_config.pod_cidr";
    let text = config.and_then(|config| config.network_config).unwrap_or_default().pod_cidr;
    let mut ranges: Vec<String> = Vec::new();
    for range in text.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (network, _) = Network::cidr(range).ok_or_else(|| {
            Error::invalid(FIELD, format!("{range:?} is not an address and a prefix length"))
        })?;
        let family =
            |known: &String| Network::cidr(known).is_some_and(|(ip, _)| ip.is_ipv4() == network.is_ipv4());
        if ranges.iter().any(family) {
            return Err(Error::invalid(FIELD, format!("{range:?} is a second one of its family")));
        }
        ranges.push(range.to_owned());
    }
    Ok(ranges)
}

/// A number within bounds.
pub(super) fn within(field: &str, value: i64, bounds: std::ops::RangeInclusive<i64>) -> Result<i64, Error> {
    if bounds.contains(&value) {
        Ok(value)
    } else {
        Err(Error::invalid(field, format!("{value} is not within {} to {}", bounds.start(), bounds.end())))
    }
}

/// A value of an enumeration of the CRI.
pub(super) fn known<T: TryFrom<i32>>(field: &str, value: i32) -> Result<T, Error> {
    T::try_from(value)
        .map_err(|_| Error::invalid(field, format!("{value} is not a value of this enumeration")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_paths_and_hold_no_control_characters() {
        for good in ["a", "web-0", "kube-system", "a.b", "%2e%2e", "x..y"] {
            assert!(name("f", good.into()).is_ok(), "{good:?}");
        }
        for bad in ["", ".", "..", "a/b", "../x", "a\nb", "a\0b", "a\u{85}b", &"a".repeat(254)] {
            assert!(name("f", bad.into()).is_err(), "{bad:?}");
        }
        assert!(part("f", String::new()).is_ok());
    }

    #[test]
    fn paths_are_confined() {
        for good in ["/", "/var/log/pods/x", "/a//b", "/a/..b"] {
            assert!(absolute("f", good).is_ok(), "{good:?}");
        }
        for bad in ["", "a", "/../a", "/a/..", "/a\nb", "/a\0", &format!("/{}", "a".repeat(4096))] {
            assert!(absolute("f", bad).is_err(), "{bad:?}");
        }
        for good in ["0.log", "web/0.log", "a/..b"] {
            assert!(relative("f", good).is_ok(), "{good:?}");
        }
        for bad in ["", ".", "/etc/x", "../x", "a/../../x", "a/", "a\n", "./a"] {
            assert!(relative("f", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_of_users_are_exact() {
        for (value, id) in [(0, 0), (1000, 1000), (4_294_967_294, 4_294_967_294)] {
            assert_eq!(user_id("f", value).unwrap(), id);
        }
        for bad in [-1, 4_294_967_295, 4_294_967_296, i64::MAX, i64::MIN] {
            assert!(user_id("f", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pod_cidrs_are_at_most_one_a_family() {
        let of = |text: &str| {
            let network_config = Some(wire::NetworkConfig { pod_cidr: text.into() });
            pod_cidrs(Some(wire::RuntimeConfig { network_config }))
        };
        assert_eq!(pod_cidrs(None).unwrap(), [""; 0]);
        for (text, ranges) in [
            ("", vec![]),
            ("10.244.1.0/24", vec!["10.244.1.0/24"]),
            ("10.244.1.0/24, fd00:1::/64", vec!["10.244.1.0/24", "fd00:1::/64"]),
        ] {
            assert_eq!(of(text).unwrap(), ranges);
        }
        for bad in ["10.244.1.0", "10.244.1.0/33", "10.0.0.0/24,10.1.0.0/24", "pods"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_stay_on_their_line() {
        assert!(word("f", "ndots:5", 16).is_ok());
        for bad in ["", "a b", "a\tb", "a\nb", "a\rb", "12345678901234567"] {
            assert!(word("f", bad, 16).is_err(), "{bad:?}");
        }
        assert!(word("f", "a\\nb", 16).is_ok(), "backslash and n are two letters");
    }
}
