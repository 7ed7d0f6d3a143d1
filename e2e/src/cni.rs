//! The real CNI plugins (`hack/deps cni`), configurations for them, and what they leave on a host by design.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Outcome;
use crate::cache::cached;

/// How a daemon under test finds CNI.
#[derive(Debug, Clone)]
pub struct Cni {
    /// Directory of configurations.
    pub configurations: PathBuf,
    /// Directories of plugins.
    pub plugins: Vec<PathBuf>,
    /// How long the plugins of a pod may take.
    pub seconds: u64,
}

/// The directory of the real plugins.
pub fn plugins() -> PathBuf {
    cached("bin/cni")
}

/// Addresses by `host-local`, which keeps its leases in `leases`.
pub fn host_local(leases: &Path, ranges: &[&str]) -> Value {
    let ranges: Vec<_> = ranges.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
    let route = |dst: &str| json!({"dst": dst});
    json!({"type": "host-local", "dataDir": leases, "ranges": ranges, "routes": [route("0.0.0.0/0"), route("::/0")]})
}

/// A bridge that masquerades.
pub fn bridge(name: &str, ipam: &Value) -> Value {
    json!({"type": "bridge", "bridge": name, "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": ipam})
}

/// Host ports.
pub fn portmap() -> Value {
    json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}})
}

/// A network configuration.
pub fn list(version: &str, name: &str, plugins: &[Value]) -> Value {
    json!({"cniVersion": version, "name": name, "plugins": plugins})
}

/// The leases of a network below the directory of `host_local`: files that are named by an address.
pub fn leases(directory: &Path, network: &str) -> BTreeSet<String> {
    fs::read_dir(directory.join(network))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "lock" && !name.starts_with("last_reserved"))
        .collect()
}

/// Firewall tables and links of the host. Plugins share their bridge and the chains that their rules hang on among all
/// pods, and leave them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Before {
    tables: BTreeSet<String>,
    links: BTreeSet<String>,
}

impl Before {
    /// As it is now.
    pub fn now() -> Outcome<Self> {
        Ok(Self { tables: tables()?, links: links()? })
    }

    /// Takes away what plugins have left since: tables of iptables and their own, and bridges whose name begins so. A table
    /// of the family inet is a Cove's, it may be another one's.
    pub fn restore(&self, bridges: &str) -> Outcome {
        for link in links()?.difference(&self.links).filter(|link| link.starts_with(bridges)) {
            run("ip", &["link", "del", link])?;
        }
        let theirs =
            |table: &&String| !table.starts_with("table inet ") || table.starts_with("table inet cni_");
        for table in tables()?.difference(&self.tables).filter(theirs) {
            let words: Vec<_> = ["delete"].into_iter().chain(table.split(' ')).collect();
            run("nft", &words)?;
        }
        Ok(())
    }
}

fn links() -> Outcome<BTreeSet<String>> {
    let entries = fs::read_dir("/sys/class/net")?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn tables() -> Outcome<BTreeSet<String>> {
    Ok(run("nft", &["list", "tables"])?.lines().map(|line| line.trim().to_owned()).collect())
}

/// Runs a program of the host; its standard output.
pub fn run(program: &str, arguments: &[&str]) -> Outcome<String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{program} {}: {said}", arguments.join(" ")).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
