//! Capability sets: the default ones, plus what is added, less what is dropped.

use std::sync::LazyLock;

use cove_runtime::build::capabilities::NAMES;
use serde_json::{Value, json};

use crate::container::config::ContainerConfig;
use crate::error::Error;

/// What a container has unless it asks otherwise: the 14 that its users know from Docker and containerd.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Those that the daemon itself could hand on: what its own bounding set lacks, the kernel would refuse.
static HELD: LazyLock<u64> = LazyLock::new(|| {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(u64::MAX)
});

/// `process.capabilities` of the spec.
pub(super) fn capabilities(config: &ContainerConfig) -> Result<Value, Error> {
    let permitted = names(permitted(config, *HELD)?);
    let ambient = config.capabilities.add_ambient.iter().try_fold(0, |mask, name| {
        number("config.linux.security_context.capabilities.add_ambient_capabilities", name)
            .map(|bit| mask | bit)
    })?;
    Ok(json!({
        "bounding": permitted,
        "effective": permitted,
        "permitted": permitted,
        // Always empty: CVE-2022-24769.
        "inheritable": [],
        "ambient": names(ambient),
    }))
}

/// The bounding set as a mask.
pub(super) fn bounding(config: &ContainerConfig) -> Result<u64, Error> {
    permitted(config, *HELD)
}

/// First `ALL`, which is what `held` has, added, then dropped; then the others, added, then dropped: so what is dropped by
/// its name is never there (as containerd has it).
fn permitted(config: &ContainerConfig, held: u64) -> Result<u64, Error> {
    let field = |list| format!("config.linux.security_context.capabilities.{list}");
    if config.privileged {
        return Ok(held & all());
    }
    let mut mask =
        DEFAULT.iter().try_fold(0, |mask, name| number("default", name).map(|bit| mask | bit))? & held;
    let (add, drop) = (&config.capabilities.add, &config.capabilities.drop);
    let is_all = |name: &String| name == "ALL";
    if add.iter().any(is_all) {
        mask = held & all();
    }
    if drop.iter().any(is_all) {
        mask = 0;
    }
    for name in add.iter().filter(|name| !is_all(name)) {
        mask |= number(&field("add_capabilities"), name)?;
    }
    for name in drop.iter().filter(|name| !is_all(name)) {
        mask &= !number(&field("drop_capabilities"), name)?;
    }
    Ok(mask)
}

fn all() -> u64 {
    (1 << NAMES.len()) - 1
}

fn number(field: &str, name: &str) -> Result<u64, Error> {
    match NAMES.iter().position(|known| *known == name) {
        Some(place) => Ok(1 << place),
        None => Err(Error::invalid(field, format!("{name:?} is no capability"))),
    }
}

fn names(mask: u64) -> Vec<String> {
    let set = NAMES.iter().enumerate().filter(|(place, _)| mask & (1 << place) != 0);
    set.map(|(_, name)| format!("CAP_{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(add: &[&str], drop: &[&str], privileged: bool) -> Result<Vec<String>, Error> {
        let mut config = crate::container::spec::tests::config();
        config.capabilities.add = add.iter().map(ToString::to_string).collect();
        config.capabilities.drop = drop.iter().map(ToString::to_string).collect();
        config.privileged = privileged;
        permitted(&config, all()).map(names)
    }

    #[test]
    fn what_is_dropped_by_name_is_gone() {
        assert_eq!(with(&[], &[], false).unwrap().len(), 14);
        assert_eq!(with(&["NET_ADMIN"], &["ALL"], false).unwrap(), ["CAP_NET_ADMIN"]);
        assert_eq!(with(&["ALL"], &["CHOWN"], false).unwrap().len(), 40);
        assert!(!with(&["CHOWN"], &["CHOWN"], false).unwrap().contains(&"CAP_CHOWN".to_owned()));
        assert_eq!(with(&["ALL", "KILL"], &["ALL"], false).unwrap(), ["CAP_KILL"]);
        assert_eq!(with(&[], &["ALL"], false).unwrap(), Vec::<String>::new());
        assert_eq!(with(&[], &["CHOWN"], false).unwrap().len(), 13);
        assert_eq!(with(&[], &["ALL"], true).unwrap().len(), 41);
        assert!(with(&["FLY"], &[], false).is_err());
        assert!(with(&[], &["FLY"], false).is_err());
    }

    #[test]
    fn nobody_inherits() {
        let sets = capabilities(&crate::container::spec::tests::config()).unwrap();
        assert_eq!(sets["inheritable"], json!([]));
        assert_eq!(sets["ambient"], json!([]));
    }
}
