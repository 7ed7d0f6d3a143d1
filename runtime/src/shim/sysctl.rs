//! Kernel parameters of the pod's own namespaces, each written by itself. What belongs to the host, or to a namespace that
//! the pod shares with it, is refused here too, whatever the daemon let pass.

use std::path::PathBuf;

use cove_path::Proc;

use super::failure;
use crate::protocol::{Failure, SandboxSpec};
use crate::sysctl::{Own, as_path, fault};

/// Refuses a list of which anything is not the pod's own.
pub fn check(spec: &SandboxSpec) -> Result<(), Failure> {
    let own = Own { net: spec.new_net, ipc: spec.new_ipc, uts: spec.new_uts };
    match spec.sysctls.iter().find_map(|(key, value)| Some((key, fault(key, value, own)?))) {
        Some((key, why)) => Err(failure::new("sysctl", 0, &format!("{key:?}: {why}"))),
        None => Ok(()),
    }
}

/// Of the UTS namespace: only the host's root may write it, whoever owns the namespace.
pub fn is_of_uts(key: &str) -> bool {
    as_path(key) == "kernel/domainname"
}

/// Writes those that are `meant` of a list that has been checked. The kernel takes the writer's namespaces for those
/// that are meant.
pub fn write(proc: &Proc, spec: &SandboxSpec, meant: impl Fn(&str) -> bool) -> Result<(), Failure> {
    for (key, value) in spec.sysctls.iter().filter(|(key, _)| meant(key)) {
        let path = PathBuf::from("sys").join(as_path(key));
        proc.write(&path, value.as_bytes()).map_err(|error| {
            let errno = error.errno().map_or(0, rustix::io::Errno::raw_os_error);
            failure::new("sysctl", errno, &format!("{key} = {value:?}"))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_taken_whole_or_not() {
        let spec = |keys: &[&str]| SandboxSpec {
            sandbox: "x".into(),
            new_net: true,
            new_ipc: false,
            new_uts: true,
            hostname: String::new(),
            sysctls: keys.iter().map(|key| ((*key).to_owned(), "1".to_owned())).collect(),
        };
        assert!(check(&spec(&["net.ipv4.ip_forward", "kernel.domainname"])).is_ok());
        let refused = check(&spec(&["net.ipv4.ip_forward", "kernel.shmmax"])).unwrap_err();
        assert!(refused.detail.contains("kernel.shmmax"), "{refused:?}");
    }
}
