//! Kernel parameters of the pod's own namespaces. What belongs to the host, or to a namespace that the pod shares with
//! it, is refused here too, whatever the daemon let pass.

use std::path::PathBuf;

use cove_path::Proc;

use super::failure;
use crate::protocol::{Failure, SandboxSpec};

/// Those of the IPC namespace: ipc_namespaces(7), and kernel.shm_rmid_forced of proc_sys_kernel(5).
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Refuses a list of which anything is not the pod's own.
pub fn check(spec: &SandboxSpec) -> Result<(), Failure> {
    for (key, value) in &spec.sysctls {
        let refuse = |why: &str| Err(failure::new("sysctl", 0, &format!("{key:?}: {why}")));
        let path = as_path(key);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./@".contains(&byte);
        if !key.bytes().all(plain)
            || path.split('/').any(|part| part.is_empty() || part == "." || part == "..")
        {
            return refuse("not the name of a kernel parameter");
        }
        if value.contains(['\0', '\n']) {
            return refuse("its value has a character that ends it");
        }
        let own = if path.starts_with("net/") {
            spec.new_net
        } else if path.starts_with("fs/mqueue/") || IPC.contains(&path.as_str()) {
            spec.new_ipc
        } else if path == "kernel/domainname" {
            spec.new_uts
        } else {
            false
        };
        if !own {
            return refuse("not of a namespace that is the pod's own");
        }
    }
    Ok(())
}

/// Writes a list that has been checked. The kernel takes the writer's namespaces for those that are meant.
pub fn write(proc: &Proc, spec: &SandboxSpec) -> Result<(), Failure> {
    for (key, value) in &spec.sysctls {
        let path = PathBuf::from("sys").join(as_path(key));
        proc.write(&path, value.as_bytes()).map_err(|error| {
            let errno = error.errno().map_or(0, rustix::io::Errno::raw_os_error);
            failure::new("sysctl", errno, &format!("{key} = {value:?}"))
        })?;
    }
    Ok(())
}

/// sysctl(8): whichever of dot and slash comes first separates; the other belongs to the names (an interface called
/// `eth0.5`).
fn as_path(key: &str) -> String {
    if key.find(['.', '/']).is_some_and(|at| key.as_bytes()[at] == b'.') {
        key.chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect()
    } else {
        key.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(own: bool, key: &str, value: &str) -> SandboxSpec {
        SandboxSpec {
            sandbox: "x".into(),
            new_net: own,
            new_ipc: own,
            new_uts: own,
            hostname: String::new(),
            sysctls: vec![(key.into(), value.into())],
        }
    }

    #[test]
    fn only_the_pods_own() {
        for (key, fits) in [
            ("net.ipv4.ip_forward", true),
            ("net/ipv4/ip_forward", true),
            ("net.ipv4.conf.eth0/5.forwarding", true),
            ("kernel.shm_rmid_forced", true),
            ("fs.mqueue.msg_max", true),
            ("kernel.sem", true),
            ("kernel.core_pattern", false),
            ("vm.swappiness", false),
            ("net/../kernel/core_pattern", false),
            ("net/./ipv4", false),
            ("net..ipv4", false),
            ("/net/ipv4", false),
            ("net.ipv4.a\nb", false),
            ("net", false),
            ("", false),
        ] {
            assert_eq!(check(&spec(true, key, "1")).is_ok(), fits, "{key:?}");
            assert!(check(&spec(false, key, "1")).is_err(), "{key:?}");
        }
        assert!(check(&spec(true, "net.ipv4.ip_forward", "1\n0")).is_err());
    }

    #[test]
    fn dots_and_slashes() {
        assert_eq!(as_path("net.ipv4.conf.eth0/5.forwarding"), "net/ipv4/conf/eth0.5/forwarding");
        assert_eq!(as_path("net/ipv4/conf/eth0.5/forwarding"), "net/ipv4/conf/eth0.5/forwarding");
    }
}
