//! Mappings of ids: of the pod's user namespace, and of what is mounted for it. There is one, from 0 on, the same for
//! users and groups.

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};

use super::SpecError;
use crate::protocol::IdMap;

/// The ids of the user namespace that a spec asks for.
pub(super) fn of_namespace(spec: &Spec) -> Result<Option<IdMap>, SpecError> {
    let Some(linux) = spec.linux() else { return Ok(None) };
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let own = namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    match (one("linux", linux.uid_mappings().as_deref(), linux.gid_mappings().as_deref())?, own) {
        (Some(_), false) => Err(SpecError::new("linux.uidMappings", "are there without a user namespace")),
        (None, true) => Err(SpecError::new("linux.uidMappings", "are missing for the user namespace")),
        (ids, _) => Ok(ids),
    }
}

/// The mapping of two lists below `field`; none if both are empty.
pub(super) fn one(
    field: &str,
    uids: Option<&[LinuxIdMapping]>,
    gids: Option<&[LinuxIdMapping]>,
) -> Result<Option<IdMap>, SpecError> {
    let uids = list(&format!("{field}.uidMappings"), uids)?;
    let gids = list(&format!("{field}.gidMappings"), gids)?;
    if uids != gids {
        return Err(SpecError::new(format!("{field}.gidMappings"), "are not the same as those of users"));
    }
    Ok(uids)
}

fn list(field: &str, all: Option<&[LinuxIdMapping]>) -> Result<Option<IdMap>, SpecError> {
    let mapping = match all.unwrap_or_default() {
        [] => return Ok(None),
        [mapping] => mapping,
        [..] => return Err(SpecError::new(field, "more than one mapping is not built")),
    };
    if mapping.container_id() != 0 {
        return Err(SpecError::new(format!("{field}[0].containerID"), "0 is not mapped"));
    }
    let ids = IdMap { host: mapping.host_id(), size: mapping.size() };
    match ids.fault() {
        None => Ok(Some(ids)),
        Some(fault) => Err(SpecError::new(format!("{field}[0]"), fault)),
    }
}
