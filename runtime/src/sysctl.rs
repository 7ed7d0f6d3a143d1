//! Which kernel parameters belong to which namespace: the daemon refuses by this what is not the pod's own, and so does the
//! shim, whatever the daemon let pass. A parameter of the host is never one of a pod (CVE-2022-0532, CVE-2022-0811).

use cove_guard::Guard;

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

/// Which namespaces are the pod's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// Network.
    pub net: bool,
    /// System V IPC and POSIX message queues.
    pub ipc: bool,
    /// Host and domain name.
    pub uts: bool,
}

/// Why a parameter cannot be set for a pod with these namespaces; none: it can.
pub fn fault(key: &str, value: &str, own: Own) -> Option<&'static str> {
    let path = as_path(key);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./@".contains(&byte);
    if !key.bytes().all(plain) || path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Some("not the name of a kernel parameter");
    }
    if value.contains(['\0', '\n']) {
        return Some("its value has a character that ends it");
    }
    let own = if path.starts_with("net/") {
        own.net
    } else if path.starts_with("fs/mqueue/") || IPC.contains(&path.as_str()) {
        own.ipc
    } else if path == "kernel/domainname" {
        own.uts
    } else {
        false
    };
    if own || !Guard::OwnSysctls.holds() { None } else { Some("not of a namespace that is the pod's own") }
}

/// The parameter's path below /proc/sys. sysctl(8): whichever of dot and slash comes first separates; the other belongs
/// to the names (an interface called `eth0.5`).
pub fn as_path(key: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    if key.find(['.', '/']).is_some_and(|at| key.as_bytes()[at] == b'.') {
        key.chars().map(swap).collect()
    } else {
        key.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pods_own() {
        let all = |own| Own { net: own, ipc: own, uts: own };
        for (key, fits) in [
            ("net.ipv4.ip_forward", true),
            ("net/ipv4/ip_forward", true),
            ("net.ipv4.conf.eth0/5.forwarding", true),
            ("kernel.shm_rmid_forced", true),
            ("fs.mqueue.msg_max", true),
            ("kernel.sem", true),
            ("kernel.domainname", true),
            ("kernel.hostname", false),
            ("kernel.core_pattern", false),
            ("kernel/core_pattern", false),
            ("vm.swappiness", false),
            ("fs.file-max", false),
            ("user.max_user_namespaces", false),
            ("net/../kernel/core_pattern", false),
            ("net.//.kernel.core_pattern", false),
            ("net/./ipv4", false),
            ("net..ipv4", false),
            ("/net/ipv4", false),
            ("net.ipv4.a\nb", false),
            ("net.ipv4.ip_forward=1+kernel.core_pattern", false),
            ("net", false),
            ("", false),
        ] {
            assert_eq!(fault(key, "1", all(true)).is_none(), fits, "{key:?}");
            assert!(fault(key, "1", all(false)).is_some(), "{key:?}");
        }
        for bad in ["1\n0", "1\0"] {
            assert!(fault("net.ipv4.ip_forward", bad, all(true)).is_some(), "{bad:?}");
        }
        let own = Own { net: true, ipc: false, uts: false };
        assert!(
            fault("kernel.shmmax", "1", own).is_some() && fault("net.core.somaxconn", "1", own).is_none()
        );
    }

    #[test]
    fn dots_and_slashes() {
        assert_eq!(as_path("net.ipv4.conf.eth0/5.forwarding"), "net/ipv4/conf/eth0.5/forwarding");
        assert_eq!(as_path("net/ipv4/conf/eth0.5/forwarding"), "net/ipv4/conf/eth0.5/forwarding");
    }
}
