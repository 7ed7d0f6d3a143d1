//! `linux.seccomp` of the spec: which system calls a container's processes may make. A profile that is asked for and
//! cannot be had is an error, never "unconfined" (security-bar.md A64).

use cove_runtime::seccomp::{self, Profile};
use serde_json::{Value, json};

use crate::container::config::{ContainerConfig, Seccomp};
use crate::error::Error;

/// The profile with `bounding`, the container's capabilities, taken into account; none where nothing is asked for.
/// Blocking: reads the profile's file.
pub(super) fn seccomp(config: &ContainerConfig, bounding: u64) -> Result<Option<Value>, Error> {
    let field = "config.linux.security_context.seccomp";
    let refused = |error: seccomp::SeccompError| Error::invalid(field, error.to_string());
    let profile = match &config.seccomp {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::RuntimeDefault => Profile::runtime_default(),
        Seccomp::Localhost(path) => Profile::from_file(path).map_err(refused)?,
    };
    // What no filter can be made of is refused now: at the start nobody would be told by its field.
    seccomp::compile(&profile, bounding).map_err(refused)?;
    Ok(Some(json!(profile.to_oci(bounding).map_err(refused)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_had_or_refused() {
        let mut config = super::super::tests::config();
        assert_eq!(seccomp(&config, 0).unwrap(), None);
        config.seccomp = Seccomp::RuntimeDefault;
        let value = seccomp(&config, 0).unwrap().unwrap();
        assert_eq!(value["defaultAction"], "SCMP_ACT_ERRNO");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile.json");
        config.seccomp = Seccomp::Localhost(path.clone());
        assert!(seccomp(&config, 0).is_err(), "a missing file");
        for bad in ["", "{}", "{\"defaultAction\": \"SCMP_ACT_SURPRISE\"}", "not json"] {
            std::fs::write(&path, bad).unwrap();
            assert!(seccomp(&config, 0).is_err(), "{bad:?}");
        }
        std::fs::write(&path, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
        assert_eq!(seccomp(&config, 0).unwrap().unwrap()["defaultAction"], "SCMP_ACT_ALLOW");
    }
}
