//! `cove net ls`: how pods are attached, from their records alone. Needs no daemon, and changes nothing.

use std::error::Error;
use std::io::Write as _;
use std::path::Path;

use clap::Subcommand;

use super::table::table;
use crate::config::Config;
use crate::network::Attachment;
use crate::sandbox::config::{NamespaceMode, PortMapping, Protocol};
use crate::sandbox::record::{Places, SandboxIdentity};
use crate::sandbox::state::{SandboxState, Stage};
use crate::store::{self, RecordError};

/// How many digits of an id are shown, as crictl does.
const DIGITS: usize = 13;
/// The heads of the columns.
const HEAD: [&str; 7] = ["POD", "SANDBOX", "STATE", "ADDRESSES", "HOST PORTS", "ATTACHED BY", "NETNS"];

/// What to do with the pod network.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// List pods: addresses, host ports, network namespace, and who attached them
    Ls,
}

pub(super) fn run(action: &Action, option: Option<&Path>) -> Result<(), Box<dyn Error>> {
    let Action::Ls = action;
    let config = Config::load(option)?;
    Ok(std::io::stdout().write_all(table(HEAD, rows(&config)?).as_bytes())?)
}

/// One line a sandbox, the oldest first.
fn rows(config: &Config) -> std::io::Result<Vec<[String; 7]>> {
    let directory = config.root.join("sandboxes");
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        // No daemon ran here yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(std::io::Error::new(error.kind(), format!("{}: {error}", directory.display())));
        }
    };
    let mut rows = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some(id) = name.to_str().filter(|id| store::is_id(id)) else { continue };
        match row(&Places::new(&config.root, &config.state, id)) {
            Ok(Some(row)) => rows.push(row),
            // Made or removed at this moment.
            Ok(None) => {}
            Err(error) => {
                let mut row = HEAD.map(|_| "?".to_owned());
                (row[1], row[5]) = (short(id), error.to_string());
                rows.push((0, row));
            }
        }
    }
    rows.sort();
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

fn row(places: &Places) -> Result<Option<(i64, [String; 7])>, RecordError> {
    let Some(identity) = store::read::<SandboxIdentity>(&places.identity())? else { return Ok(None) };
    let state = store::read::<SandboxState>(&places.state())?.unwrap_or_default();
    let attachment = store::read::<Attachment>(&places.attachment())?;
    let by = match &attachment {
        _ if identity.config.network == NamespaceMode::Node => "the host's network".to_owned(),
        None => "-".to_owned(),
        Some(Attachment::Builtin(attachment)) => format!("built-in, link {}", attachment.host_link),
        Some(Attachment::Cni(attachment)) => match attachment.list() {
            Ok(list) => {
                let plugins: Vec<_> = list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
                format!("CNI {} ({})", list.name, plugins.join(", "))
            }
            Err(error) => format!("CNI, {error}"),
        },
    };
    let addresses = attachment.map(|attachment| attachment.addresses()).unwrap_or_default();
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let ports: Vec<_> = identity.config.ports.iter().map(port).collect();
    let name = &identity.config.name;
    let row = [
        format!("{}/{}", name.namespace, name.name),
        short(&identity.id),
        match state.stage {
            Stage::Making => "making".to_owned(),
            Stage::Ready => "ready".to_owned(),
            Stage::NotReady => "not ready".to_owned(),
        },
        addresses.join(", "),
        ports.join(", "),
        by,
        identity.netns.filter(|_| !state.down).map(|path| path.display().to_string()).unwrap_or_default(),
    ];
    Ok(Some((identity.created_at, row)))
}

fn short(id: &str) -> String {
    id.chars().take(DIGITS).collect()
}

/// As `docker ps` shows them, which people read.
fn port(port: &PortMapping) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    let host = match port.host_ip {
        None => "*".to_owned(),
        Some(ip) if ip.is_ipv6() => format!("[{ip}]"),
        Some(ip) => ip.to_string(),
    };
    format!("{host}:{}->{}/{protocol}", port.host_port, port.container_port)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sandbox::files::tests::config;
    use crate::store::Durability;

    fn record(settings: &Config, id: &str, created_at: i64, attachment: Option<&str>) {
        let mut config = config();
        let host_ip = Some("::1".parse().unwrap());
        config.ports =
            vec![PortMapping { protocol: Protocol::Udp, container_port: 53, host_port: 5353, host_ip }];
        let places = Places::new(&settings.root, &settings.state, id);
        store::make_private_directory(&places.record).unwrap();
        let identity = SandboxIdentity {
            id: id.to_owned(),
            config: Arc::new(config),
            created_at,
            netns: Some("/run/netns/x".into()),
            cgroup: "/x".into(),
            own_cgroup: true,
            shm_size: 0,
            volatile: true,
        };
        store::write(&places.identity(), &identity, Durability::Renamed).unwrap();
        if let Some(text) = attachment {
            let value: Attachment = serde_json::from_str(text).unwrap();
            store::write(&places.attachment(), &value, Durability::Renamed).unwrap();
        }
    }

    #[test]
    fn each_pod_has_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().display();
        let settings =
            Config::parse(&format!("root = \"{root}/root\"\nstate = \"{root}/state\""), Path::new("t"))
                .unwrap();
        assert_eq!(rows(&settings).unwrap().len(), 0);
        let builtin = r#"{"host_link":"cove01","addresses":["10.0.0.2","fd00::2"],"ports":[]}"#;
        record(&settings, &"b".repeat(64), 2, Some(builtin));
        record(&settings, &"a".repeat(64), 3, None);
        record(&settings, &"c".repeat(64), 1, None);
        std::fs::write(settings.root.join("sandboxes").join("c".repeat(64)).join("state.json"), "x").unwrap();
        let text = table(HEAD, rows(&settings).unwrap());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].starts_with("POD") && lines[1].contains("cannot be used"), "{text}");
        assert!(lines[2].contains("10.0.0.2, fd00::2  [::1]:5353->53/udp  built-in, link cove01"), "{text}");
        assert!(lines[3].contains("making  -"), "{text}");
    }
}
