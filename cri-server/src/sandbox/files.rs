//! The files that a pod finds in /etc: hosts, hostname, resolv.conf. One copy a pod, bind-mounted into its containers.
//!
//! A value that would begin a line of its own in one of them is refused, whoever sent it.

use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cove_guard::Guard;

use super::config::{NamespaceMode, SandboxConfig};
use crate::error::Error;

/// Bytes of a host's file that are copied: a hosts file with many thousands of lines fits.
const MAX_HOST_FILE: u64 = 1024 * 1024;

/// What the files hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Files {
    hosts: Vec<u8>,
    hostname: String,
    resolv_conf: Vec<u8>,
}

/// Name of `/etc/hosts` in a sandbox's state directory.
pub const HOSTS: &str = "hosts";
/// Name of `/etc/hostname` there.
pub const HOSTNAME: &str = "hostname";
/// Name of `/etc/resolv.conf` there.
pub const RESOLV_CONF: &str = "resolv.conf";

/// The hostname of a pod: with the host's network it is the host's.
pub fn hostname(config: &SandboxConfig) -> String {
    if config.network == NamespaceMode::Node && config.hostname.is_empty() {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    } else {
        config.hostname.clone()
    }
}

/// Refuses values that cannot be in these files.
pub fn check(config: &SandboxConfig) -> Result<(), Error> {
    line("config.hostname", &config.hostname)?;
    if let Some(dns) = &config.dns {
        let fields = [
            ("config.dns_config.servers", &dns.servers),
            ("config.dns_config.searches", &dns.searches),
            ("config.dns_config.options", &dns.options),
        ];
        for (field, values) in fields {
            values.iter().try_for_each(|value| line(field, value))?;
        }
    }
    Ok(())
}

fn line(field: &str, value: &str) -> Result<(), Error> {
    if value.contains(['\n', '\r', '\0']) && Guard::OneLine.holds() {
        let reason = format!("{value:?} holds a line end or a NUL byte, which would forge a line of a file");
        return Err(Error::invalid(field, reason));
    }
    Ok(())
}

impl Files {
    /// For a pod with these addresses. Reads the host's own files where the pod shares them. Blocking.
    pub fn new(config: &SandboxConfig, addresses: &[IpAddr]) -> Result<Self, Error> {
        check(config)?;
        let hostname = hostname(config);
        let hosts = if config.network == NamespaceMode::Node {
            host_file(Path::new("/etc/hosts"))?
        } else {
            hosts(&hostname, addresses).into_bytes()
        };
        let resolv_conf = match &config.dns {
            Some(dns) => resolv_conf(dns).into_bytes(),
            None => host_file(Path::new("/etc/resolv.conf"))?,
        };
        Ok(Self { hosts, hostname: format!("{hostname}\n"), resolv_conf })
    }

    /// Writes them to `directory`, readable for everyone. Blocking.
    pub fn write(&self, directory: &Path) -> Result<(), Error> {
        let files =
            [(HOSTS, &*self.hosts), (HOSTNAME, self.hostname.as_bytes()), (RESOLV_CONF, &*self.resolv_conf)];
        for (name, content) in files {
            let path = directory.join(name);
            fs::write(&path, content)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)))
                .map_err(|error| Error::system("write", path.display().to_string(), error))?;
        }
        Ok(())
    }
}

fn hosts(hostname: &str, addresses: &[IpAddr]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for address in addresses {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    text
}

/// In the order that every runtime writes; empty lists give no line, and a config without any gives an empty file.
fn resolv_conf(dns: &super::config::Dns) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

/// A file of the host; one that is missing is empty.
fn host_file(path: &Path) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    match fs::File::open(path).and_then(|file| file.take(MAX_HOST_FILE).read_to_end(&mut content)) {
        Ok(_) => Ok(content),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(content),
        Err(error) => Err(Error::system("read", path.display().to_string(), error)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::config::{Dns, SandboxName};
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn config() -> SandboxConfig {
        SandboxConfig {
            name: SandboxName { name: "p".into(), namespace: "n".into(), uid: "u".into(), attempt: 0 },
            hostname: "pod-1".into(),
            log_directory: None,
            dns: None,
            ports: Vec::new(),
            labels: Default::default(),
            annotations: Default::default(),
            cgroup_parent: None,
            network: NamespaceMode::Pod,
            pid: NamespaceMode::Pod,
            ipc: NamespaceMode::Pod,
            user_namespace: None,
            sysctls: Default::default(),
            privileged: false,
            runtime_handler: String::new(),
        }
    }

    fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> Dns {
        let list = |values: &[&str]| values.iter().map(ToString::to_string).collect();
        Dns { servers: list(servers), searches: list(searches), options: list(options) }
    }

    #[test]
    fn the_lines_are_in_the_order_that_tools_know() {
        let full = dns(&["10.0.0.10", "10.0.0.11"], &["a.svc", "svc"], &["ndots:5", "edns0"]);
        assert_eq!(
            resolv_conf(&full),
            "search a.svc svc\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5 edns0\n"
        );
        assert_eq!(resolv_conf(&dns(&[], &[], &[])), "");
        let addresses = ["10.9.0.2".parse().unwrap()];
        assert!(hosts("pod-1", &addresses).ends_with("\n10.9.0.2\tpod-1\n"));
    }

    #[test]
    fn they_are_written_whole() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config();
        config.dns = Some(dns(&["1.1.1.1"], &[], &[]));
        Files::new(&config, &[]).unwrap().write(directory.path()).unwrap();
        let read = |name| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read(HOSTNAME), "pod-1\n");
        assert_eq!(read(RESOLV_CONF), "nameserver 1.1.1.1\n");
    }

    proptest! {
        #[test]
        fn no_value_makes_a_line_of_its_own(hostname in ".*", search in "\\PC*[\\n\\r\\x00]?") {
            let mut config = config();
            config.hostname = hostname.clone();
            config.dns = Some(dns(&["9.9.9.9"], &[&search], &[]));
            match Files::new(&config, &["10.1.1.1".parse().unwrap()]) {
                Err(_) => {
                    let sent = format!("{hostname}{search}");
                    prop_assert!(sent.contains(['\n', '\r', '\0']));
                }
                Ok(files) => {
                    prop_assert_eq!(files.hostname.lines().count(), 1);
                    prop_assert_eq!(String::from_utf8(files.hosts).unwrap().split('\n').count(), 4);
                    prop_assert_eq!(String::from_utf8(files.resolv_conf).unwrap().split('\n').count(), 3);
                }
            }
        }
    }
}
