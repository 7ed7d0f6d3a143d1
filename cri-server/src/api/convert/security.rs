//! Who a container is and what it may do: identity, capabilities, and the confinements that are not built yet.

use std::str::FromStr;
use std::sync::Once;

use oci_spec::runtime::Capability;

use super::super::wire;
use super::field::{known, no_control, not_built, user_id};
use crate::container::config::{CapabilityChange, RunAs};
use crate::error::Error;

/// The longest user name: LOGIN_NAME_MAX (limits.h).
const MAX_USER: usize = 256;
/// NGROUPS_MAX (limits.h).
const MAX_GROUPS: usize = 65_536;
const FIELD: &str = "config.linux.security_context";

/// User, group and further groups.
pub(super) fn run_as(security: &wire::LinuxContainerSecurityContext) -> Result<RunAs, Error> {
    let at = |field: &str| format!("{FIELD}.{field}");
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

/// Seccomp and AppArmor: only "unconfined" is built. A privileged container is unconfined whatever is asked.
pub(super) fn profiles(security: &wire::LinuxContainerSecurityContext) -> Result<(), Error> {
    let asks = |field: &str, profile: Option<&wire::SecurityProfile>| {
        let Some(profile) = profile else { return Ok(false) };
        let kind: wire::security_profile::ProfileType =
            known(&format!("{FIELD}.{field}.profile_type"), profile.profile_type)?;
        Ok::<_, Error>(kind != wire::security_profile::ProfileType::Unconfined)
    };
    let seccomp = asks("seccomp", security.seccomp.as_ref())?;
    let apparmor = asks("apparmor", security.apparmor.as_ref())?;
    if security.privileged {
        return Ok(());
    }
    not_built(&format!("{FIELD}.seccomp"), seccomp)?;
    not_built(&format!("{FIELD}.apparmor"), apparmor)?;
    let old = |field: &str, new: bool, value: &str| {
        // The newer field wins over the older one.
        not_built(&format!("{FIELD}.{field}"), !new && !value.is_empty() && value != "unconfined")
    };
    #[expect(deprecated, reason = "what an older client sends must be refused, not dropped")]
    let (seccomp_path, apparmor_name) = (&security.seccomp_profile_path, &security.apparmor_profile);
    old("seccomp_profile_path", security.seccomp.is_some(), seccomp_path)?;
    old("apparmor_profile", security.apparmor.is_some(), apparmor_name)
}

/// The host's, or none: a user namespace is not built.
pub(super) fn user_namespace(field: &str, options: Option<&wire::UserNamespace>) -> Result<(), Error> {
    let Some(options) = options else { return Ok(()) };
    let mode: wire::NamespaceMode = known(&format!("{field}.mode"), options.mode)?;
    match mode {
        wire::NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => Ok(()),
        wire::NamespaceMode::Node => Err(Error::invalid(field, "NODE takes no mappings")),
        wire::NamespaceMode::Pod => not_built(field, true),
        wire::NamespaceMode::Container | wire::NamespaceMode::Target => {
            Err(Error::invalid(format!("{field}.mode"), "must be POD or NODE"))
        }
    }
}

/// SELinux labels are checked for form and, on a node without SELinux, have no effect.
pub(super) fn selinux(field: &str, options: Option<&wire::SeLinuxOption>) -> Result<(), Error> {
    static WARNED: Once = Once::new();
    let Some(options) = options else { return Ok(()) };
    for value in [&options.user, &options.role, &options.r#type, &options.level] {
        no_control(field, value)?;
        if !value.is_empty() {
            WARNED.call_once(|| tracing::warn!(field, "SELinux labels have no effect: said once"));
        }
    }
    Ok(())
}
