//! Who a container is and what it may do: identity, capabilities, and which system calls it may make.

use std::str::FromStr;
use std::sync::Once;

use oci_spec::runtime::Capability;

use super::super::wire;
use super::field::{known, no_control, user_id};
use crate::container::config::{AppArmor, CapabilityChange, RunAs, Seccomp};
use crate::error::Error;
use crate::sandbox::config::UserNamespace;

/// The longest user name: LOGIN_NAME_MAX (limits.h).
const MAX_USER: usize = 256;
/// NGROUPS_MAX (limits.h).
const MAX_GROUPS: usize = 65_536;
/// The longest name of an AppArmor profile that is taken: PATH_MAX, since profiles are named by paths.
const MAX_PROFILE: usize = 4096;
/// The longest part of an SELinux label that is taken: they are words of a policy.
const MAX_LABEL: usize = 255;
const FIELD: &str = "config.linux.security_context";

/// User, group and further groups: those that exist in the pod's user namespace.
pub(super) fn run_as(
    security: &wire::LinuxContainerSecurityContext,
    pod: Option<UserNamespace>,
) -> Result<RunAs, Error> {
    let at = |field: &str| format!("{FIELD}.{field}");
    let user_id = |field: &str, value| {
        let id = user_id(field, value)?;
        match pod {
            Some(UserNamespace { length, .. }) if id >= length => {
                let reason = format!("{id} is not one of the {length} ids of the pod's user namespace");
                Err(Error::invalid(field, reason))
            }
            Some(_) | None => Ok(id),
        }
    };
    let id = |field: &str, value: Option<&wire::Int64Value>| {
        value.map(|value| user_id(&at(field), value.value)).transpose()
    };
    let user = id("run_as_user", security.run_as_user.as_ref())?;
    let group = id("run_as_group", security.run_as_group.as_ref())?;
    let username = (!security.run_as_username.is_empty()).then(|| security.run_as_username.clone());
    if let Some(username) = &username {
        user_name(&at("run_as_username"), username)?;
    }
    if group.is_some() && user.is_none() && username.is_none() {
        return Err(Error::invalid(at("run_as_group"), "needs run_as_user or run_as_username"));
    }
    if security.supplemental_groups.len() > MAX_GROUPS {
        return Err(Error::invalid(at("supplemental_groups"), format!("are more than {MAX_GROUPS}")));
    }
    let groups = security.supplemental_groups.iter().enumerate();
    let policy: wire::SupplementalGroupsPolicy =
        known(&at("supplemental_groups_policy"), security.supplemental_groups_policy)?;
    Ok(RunAs {
        // The CRI lets the id win where both are given.
        username: if user.is_some() { None } else { username },
        user,
        group,
        supplemental_groups: groups
            .map(|(index, id)| user_id(&at(&format!("supplemental_groups[{index}]")), *id))
            .collect::<Result<_, _>>()?,
        strict_groups: policy == wire::SupplementalGroupsPolicy::Strict,
    })
}

/// A name is one field of a line of /etc/passwd, so it cannot hold what ends a field or a line.
fn user_name(field: &str, value: &str) -> Result<(), Error> {
    no_control(field, value)?;
    if value.len() > MAX_USER || value.contains([':', '/', ',']) || value.contains(char::is_whitespace) {
        return Err(Error::invalid(field, format!("{value:?} is not a user name")));
    }
    if value.bytes().all(|byte| byte.is_ascii_digit()) {
        let id = value.parse().unwrap_or(i64::MAX);
        user_id(field, id)?;
    }
    Ok(())
}

/// Names in one form, each one that the kernel has.
pub(super) fn capabilities(capability: wire::Capability) -> Result<CapabilityChange, Error> {
    let names = |field: &str, values: Vec<String>| {
        let one = |(index, value): (usize, String)| {
            let upper = value.to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if name == "ALL" || Capability::from_str(name).is_ok() {
                return Ok(name.to_owned());
            }
            let field = format!("{FIELD}.capabilities.{field}[{index}]");
            Err(Error::invalid(field, format!("{value:?} is not a capability")))
        };
        values.into_iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()
    };
    Ok(CapabilityChange {
        add: names("add_capabilities", capability.add_capabilities)?,
        drop: names("drop_capabilities", capability.drop_capabilities)?,
        add_ambient: names("add_ambient_capabilities", capability.add_ambient_capabilities)?,
    })
}

/// The system calls that are let through. The newer field wins over the path; a privileged container is unconfined
/// whatever is asked. The profile itself is read when the container is created.
pub(super) fn seccomp(security: &wire::LinuxContainerSecurityContext) -> Result<Seccomp, Error> {
    #[expect(deprecated, reason = "what an older client sends must be honoured, not dropped")]
    let path = security.seccomp_profile_path.as_str();
    let asked = match &security.seccomp {
        Some(profile) => {
            let kind = known(&format!("{FIELD}.seccomp.profile_type"), profile.profile_type)?;
            let at = format!("{FIELD}.seccomp.localhost_ref");
            match kind {
                wire::security_profile::ProfileType::Unconfined => Seccomp::Unconfined,
                wire::security_profile::ProfileType::RuntimeDefault => Seccomp::RuntimeDefault,
                wire::security_profile::ProfileType::Localhost => {
                    localhost_profile(&at, &profile.localhost_ref)?
                }
            }
        }
        None => match path {
            "" | "unconfined" => Seccomp::Unconfined,
            "runtime/default" | "docker/default" => Seccomp::RuntimeDefault,
            other => {
                let at = format!("{FIELD}.seccomp_profile_path");
                match other.strip_prefix("localhost/") {
                    Some(path) => localhost_profile(&at, path)?,
                    None => return Err(Error::invalid(at, format!("{other:?} names no seccomp profile"))),
                }
            }
        },
    };
    Ok(if security.privileged { Seccomp::Unconfined } else { asked })
}

/// A missing path is never "unconfined" (CVE-2023-2431).
fn localhost_profile(field: &str, path: &str) -> Result<Seccomp, Error> {
    no_control(field, path)?;
    if !path.starts_with('/') {
        return Err(Error::invalid(field, format!("{path:?} is not an absolute path of a seccomp profile")));
    }
    Ok(Seccomp::Localhost(path.into()))
}

/// The AppArmor profile. The newer field wins over the older one; a privileged container is unconfined whatever is asked.
/// Whether the node can enforce it is found out when the container is created.
pub(super) fn apparmor(security: &wire::LinuxContainerSecurityContext) -> Result<AppArmor, Error> {
    #[expect(deprecated, reason = "what an older client sends must be honoured, not dropped")]
    let name = security.apparmor_profile.as_str();
    let asked = match &security.apparmor {
        Some(profile) => match known(&format!("{FIELD}.apparmor.profile_type"), profile.profile_type)? {
            wire::security_profile::ProfileType::Unconfined => AppArmor::Unconfined,
            wire::security_profile::ProfileType::RuntimeDefault => AppArmor::RuntimeDefault,
            wire::security_profile::ProfileType::Localhost => {
                loaded_profile(&format!("{FIELD}.apparmor.localhost_ref"), &profile.localhost_ref)?
            }
        },
        None => match name {
            "" | "unconfined" => AppArmor::Unconfined,
            "runtime/default" => AppArmor::RuntimeDefault,
            other => {
                let at = format!("{FIELD}.apparmor_profile");
                match other.strip_prefix("localhost/") {
                    Some(name) => loaded_profile(&at, name)?,
                    None => return Err(Error::invalid(at, format!("{other:?} names no AppArmor profile"))),
                }
            }
        },
    };
    Ok(if security.privileged { AppArmor::Unconfined } else { asked })
}

/// The name of a profile ends up in a file of procfs. A missing one is never "unconfined".
fn loaded_profile(field: &str, name: &str) -> Result<AppArmor, Error> {
    no_control(field, name)?;
    // What clients of older runtimes send in either field.
    let name = name.strip_prefix("localhost/").unwrap_or(name);
    if name.is_empty() || name.len() > MAX_PROFILE {
        let reason = format!("must be the name of an AppArmor profile, of 1 to {MAX_PROFILE} bytes");
        return Err(Error::invalid(field, reason));
    }
    Ok(AppArmor::Localhost(name.to_owned()))
}

/// The pod's own, or none: the host's.
pub(super) fn user_namespace(
    field: &str,
    options: Option<&wire::UserNamespace>,
) -> Result<Option<UserNamespace>, Error> {
    let Some(options) = options else { return Ok(None) };
    let mode: wire::NamespaceMode = known(&format!("{field}.mode"), options.mode)?;
    match mode {
        wire::NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => Ok(None),
        wire::NamespaceMode::Node => Err(Error::invalid(field, "NODE takes no mappings")),
        wire::NamespaceMode::Pod => {
            mapping([&format!("{field}.uids"), &format!("{field}.gids")], &options.uids, &options.gids)
                .map(Some)
        }
        wire::NamespaceMode::Container | wire::NamespaceMode::Target => {
            Err(Error::invalid(format!("{field}.mode"), "must be POD or NODE"))
        }
    }
}

/// The mapping of a volume: that of the pod's user namespace, or none.
pub(super) fn volume_mapping(
    fields: [&str; 2],
    uids: &[wire::IdMapping],
    gids: &[wire::IdMapping],
    pod: Option<UserNamespace>,
) -> Result<Option<UserNamespace>, Error> {
    if uids.is_empty() && gids.is_empty() {
        return Ok(None);
    }
    let asked = mapping(fields, uids, gids)?;
    if pod == Some(asked) {
        return Ok(pod);
    }
    Err(Error::invalid(fields[0], "must be those of the user namespace of the pod"))
}

/// One line for users and the same for groups, from 0 on. What the kernel would make of more is nobody's wish: ids that
/// two pods share, or that differ between a user and its group.
fn mapping(
    fields: [&str; 2],
    uids: &[wire::IdMapping],
    gids: &[wire::IdMapping],
) -> Result<UserNamespace, Error> {
    let line = |field: &str, lines: &[wire::IdMapping]| {
        let [line] = lines else {
            return Err(Error::invalid(field, format!("must be one mapping, not {}", lines.len())));
        };
        if line.container_id != 0 {
            return Err(Error::invalid(format!("{field}[0].container_id"), "0 must be mapped"));
        }
        let ids = UserNamespace { host_id: line.host_id, length: line.length };
        match ids.ids().fault() {
            None => Ok(ids),
            Some(fault) => Err(Error::invalid(format!("{field}[0]"), fault)),
        }
    };
    let users = line(fields[0], uids)?;
    if users == line(fields[1], gids)? {
        return Ok(users);
    }
    Err(Error::invalid(fields[1], "must be the same mapping as that of users"))
}

/// SELinux labels are checked for form and, on a node without SELinux, have no effect.
pub(super) fn selinux(field: &str, options: Option<&wire::SeLinuxOption>) -> Result<(), Error> {
    static WARNED: Once = Once::new();
    let Some(options) = options else { return Ok(()) };
    for (name, value) in [("user", &options.user), ("role", &options.role), ("type", &options.r#type)] {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        if value.len() > MAX_LABEL || !value.bytes().all(allowed) {
            return Err(Error::invalid(
                format!("{field}.{name}"),
                format!("{value:?} is no part of a label"),
            ));
        }
    }
    if !options.level.is_empty() && !is_level(&options.level) {
        let reason = format!("{:?} is not a level such as s0 or s0-s0:c1,c2.c9", options.level);
        return Err(Error::invalid(format!("{field}.level"), reason));
    }
    if [&options.user, &options.role, &options.r#type, &options.level].iter().any(|value| !value.is_empty()) {
        WARNED.call_once(|| tracing::warn!(field, "SELinux labels have no effect: said once"));
    }
    Ok(())
}

/// A level of multi-level security: `s0`, or a range of two, with categories: `s0:c1,c3.c7`.
fn is_level(level: &str) -> bool {
    let number = |text: &str, letter: char| {
        let digits = text.strip_prefix(letter).unwrap_or_default();
        (1..=4).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let categories = |text: &str| {
        text.split(',').all(|part| match part.split_once('.') {
            Some((first, last)) => number(first, 'c') && number(last, 'c'),
            None => number(part, 'c'),
        })
    };
    let one = |text: &str| match text.split_once(':') {
        Some((sensitivity, set)) => number(sensitivity, 's') && categories(set),
        None => number(text, 's'),
    };
    match level.split_once('-') {
        Some((low, high)) => one(low) && one(high),
        None => one(level),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_a_form() {
        for good in ["s0", "s0-s15", "s0:c1", "s0-s0:c0.c1023", "s0:c1,c3.c7"] {
            assert!(is_level(good), "{good}");
        }
        for bad in
            ["", "0", "s", "s0:", "s0:c", "s0:c1,", "s0:c1.", "s0-", "s0:c12345", "s0 ", "s0:c1\n", "S0"]
        {
            assert!(!is_level(bad), "{bad:?}");
        }
    }

    #[test]
    #[expect(deprecated, reason = "what an older client sends must be honoured, not dropped")]
    fn the_newer_field_wins_and_privileged_is_unconfined() {
        let profile =
            |kind, name: &str| Some(wire::SecurityProfile { profile_type: kind, localhost_ref: name.into() });
        let with = |old: &str, new, privileged| {
            apparmor(&wire::LinuxContainerSecurityContext {
                apparmor_profile: old.into(),
                apparmor: new,
                privileged,
                ..Default::default()
            })
        };
        let web = || AppArmor::Localhost("web".into());
        for (old, new, expected) in [
            ("", None, AppArmor::Unconfined),
            ("unconfined", None, AppArmor::Unconfined),
            ("runtime/default", None, AppArmor::RuntimeDefault),
            ("localhost/web", None, web()),
            ("localhost/other", profile(2, "web"), web()),
            ("", profile(2, "localhost/web"), web()),
            ("localhost/web", profile(1, ""), AppArmor::Unconfined),
            ("unconfined", profile(0, ""), AppArmor::RuntimeDefault),
        ] {
            assert_eq!(with(old, new.clone(), false).unwrap(), expected, "{old} {new:?}");
            assert_eq!(with(old, new, true).unwrap(), AppArmor::Unconfined, "privileged");
        }
        let long = "x".repeat(MAX_PROFILE + 1);
        for (old, new) in [
            ("web", None),
            ("localhost/", None),
            ("docker/default", None),
            ("", profile(2, "")),
            ("", profile(2, "a\nb")),
            ("", profile(2, &long)),
            ("", profile(7, "")),
        ] {
            assert!(with(old, new.clone(), false).is_err(), "{old} {new:?}");
        }
    }
}
