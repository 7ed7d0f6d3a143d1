//! `process.apparmorProfile` of the spec. A profile that is asked for and cannot be enforced is an error, never left out
//! (security-bar.md E18); the builder reads back what it has set.

use std::io;
use std::path::Path;

use crate::container::config::AppArmor;
use crate::error::Error;

/// Where the kernel tells of itself.
pub(super) const SYSFS: &str = "/sys";
/// Below it: `Y` where AppArmor is on.
const ENABLED: &str = "module/apparmor/parameters/enabled";
/// Below it: the profiles that are loaded, a line each, `name (mode)`.
const PROFILES: &str = "kernel/security/apparmor/profiles";
const FIELD: &str = "config.linux.security_context.apparmor";

/// The name of the profile; none where nothing is asked for. Blocking.
pub(super) fn profile<'a>(asked: &'a AppArmor, sysfs: &Path) -> Result<Option<&'a str>, Error> {
    if asked.is_unconfined() {
        return Ok(None);
    }
    if !is_on(&sysfs.join(ENABLED))? {
        let reason = "this kernel runs without AppArmor, so no profile of it can be enforced";
        return Err(Error::invalid(FIELD, reason));
    }
    let AppArmor::Localhost(name) = asked else {
        let reason =
            "the default profile is not implemented by this version of Cove: name a profile of the node";
        return Err(Error::invalid(FIELD, reason));
    };
    let profiles = sysfs.join(PROFILES);
    let loaded = std::fs::read_to_string(&profiles)
        .map_err(|error| Error::system("read", profiles.display().to_string(), error))?;
    if is_loaded(&loaded, name) {
        return Ok(Some(name));
    }
    Err(Error::invalid(
        FIELD,
        format!("the profile {name:?} is not loaded on this node: see apparmor_parser(8)"),
    ))
}

fn is_on(path: &Path) -> Result<bool, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim() == "Y"),
        // A kernel that was built without it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::system("read", path.display().to_string(), error)),
    }
}

fn is_loaded(profiles: &str, name: &str) -> bool {
    profiles.lines().filter_map(|line| line.rsplit_once(" (")).any(|(known, _)| known == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn refused(asked: &AppArmor, sysfs: &Path, text: &str) {
        let error = profile(asked, sysfs).unwrap_err().to_string();
        assert!(error.contains(FIELD) && error.contains(text), "{error}");
    }

    #[test]
    fn a_profile_is_had_or_refused() {
        let host = tempfile::tempdir().unwrap();
        let sysfs = host.path();
        let web = AppArmor::Localhost("web server".into());
        assert_eq!(profile(&AppArmor::Unconfined, sysfs).unwrap(), None);
        refused(&web, sysfs, "without AppArmor");
        refused(&AppArmor::RuntimeDefault, sysfs, "without AppArmor");
        for file in [ENABLED, PROFILES] {
            fs::create_dir_all(sysfs.join(file).parent().unwrap()).unwrap();
        }
        fs::write(sysfs.join(ENABLED), "N\n").unwrap();
        refused(&web, sysfs, "without AppArmor");
        fs::write(sysfs.join(ENABLED), "Y\n").unwrap();
        assert!(profile(&web, sysfs).is_err(), "profiles that cannot be read");
        fs::write(sysfs.join(PROFILES), "web (enforce)\nother (complain)\n").unwrap();
        refused(&web, sysfs, "not loaded");
        refused(&AppArmor::RuntimeDefault, sysfs, "default profile");
        fs::write(sysfs.join(PROFILES), "web (enforce)\nweb server (enforce)\n").unwrap();
        assert_eq!(profile(&web, sysfs).unwrap(), Some("web server"));
        assert_eq!(profile(&AppArmor::Unconfined, sysfs).unwrap(), None);
    }
}
