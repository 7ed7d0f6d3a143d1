//! Names of one instance: its nft table, the links of its pods, the number of its routes and links.

use super::NetworkError;

/// The longest name of a link: IFNAMSIZ of the kernel without its NUL, in bytes.
pub(super) const LINK_MAX: usize = 15;
/// The longest instance that is the beginning of its links' names as it stands: 8 digits of the sandbox are left then.
const PREFIX_MAX: usize = 7;
/// The longest instance, in bytes: it is also part of paths and cgroup names.
const INSTANCE_MAX: usize = 32;

/// FNV-1a, 64 bits: spreads short names; nothing here needs a hash that withstands an attacker, since names are
/// checked for being taken.
pub(super) fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// An instance is part of names in scripts for `nft`, of links and of paths: letters, digits, dashes.
pub(super) fn check_instance(instance: &str) -> Result<(), NetworkError> {
    let fine = instance.len() <= INSTANCE_MAX
        && instance.starts_with(|first: char| first.is_ascii_lowercase())
        && instance.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if fine {
        return Ok(());
    }
    Err(NetworkError::Name {
        what: "instance",
        name: instance.to_owned(),
        reason: "must be a lower-case letter and up to 31 letters, digits or dashes",
    })
}

/// What the names of an instance's links begin with: the instance, or where that is too long its start and a hash.
pub(super) fn prefix(instance: &str) -> String {
    if instance.len() <= PREFIX_MAX {
        return instance.to_owned();
    }
    let hash = hash(instance.bytes()) & 0xffff;
    format!("{}{hash:04x}", &instance[..PREFIX_MAX - 4])
}

/// The host link of a sandbox: prefix, then as many digits of its id as fit.
pub(super) fn link(prefix: &str, sandbox: &str) -> Result<String, NetworkError> {
    let digits = &sandbox.as_bytes()[..sandbox.len().min(LINK_MAX - prefix.len())];
    match std::str::from_utf8(digits) {
        Ok(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            Ok(format!("{prefix}{digits}"))
        }
        _ => Err(NetworkError::Name {
            what: "sandbox",
            name: sandbox.to_owned(),
            reason: "must be letters and digits",
        }),
    }
}

/// A link's name from a record: it becomes part of a path below /proc/sys.
pub(super) fn check_link(name: &str) -> Result<(), NetworkError> {
    let fine = !name.is_empty()
        && name.len() <= LINK_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if fine {
        return Ok(());
    }
    Err(NetworkError::Name {
        what: "link",
        name: name.to_owned(),
        reason: "must be at most 15 letters, digits or dashes",
    })
}

/// An instance as a number: the metric of its own routes, less preferred than all that people write by hand, and the
/// group of its links that are to be removed, which people number from 0 on.
pub(super) fn number(instance: &str) -> u32 {
    let hash = hash(instance.bytes()) & 0x7fff_ffff;
    u32::try_from(hash).expect("31 bits fit") | 0x8000_0000
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        let id = "0123456789abcdef".repeat(4);
        for (instance, expected) in
            [("cove", "cove0123456789a"), ("a", "a0123456789abcd"), ("cove-ab", "cove-ab01234567")]
        {
            assert_eq!(link(&prefix(instance), &id).unwrap(), expected);
        }
        let (one, two) = (prefix("cove-test-1"), prefix("cove-test-2"));
        assert_ne!(one, two);
        assert_eq!(one.len(), PREFIX_MAX);
        assert_ne!(number("cove-test-1"), number("cove-test-2"));
        assert!(link("cove", "ab").is_ok());
    }

    #[test]
    fn refuses_what_would_not_stay_a_name() {
        for instance in
            ["", "Cove", "1a", "-a", "a b", "a;b", "a\"b", "a/b", "a.b", "a\n", "é", &"a".repeat(33)]
        {
            assert!(check_instance(instance).is_err(), "{instance:?}");
        }
        for name in ["", "..", "a/b", "a b", "a.b", "0123456789abcdef", "é"] {
            assert!(check_link(name).is_err(), "{name:?}");
        }
        for sandbox in ["", "../..", "a b", "é"] {
            assert!(link("cove", sandbox).is_err(), "{sandbox:?}");
        }
    }
}
