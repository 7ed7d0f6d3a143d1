//! Host ports: which are whose, and what each means for each of a pod's addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Attachment, HostPort, NetworkError};

/// A transport protocol with ports, by its number in an IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            "sctp" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// IANA, protocol numbers.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A host port for one address of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) protocol: Protocol,
    /// Address of the host; `None`: every one.
    pub(super) at: Option<IpAddr>,
    pub(super) host_port: u16,
    pub(super) pod: IpAddr,
    pub(super) pod_port: u16,
}

/// The rules of an attachment: each port once for each address of its family.
pub(super) fn rules(attachment: &Attachment) -> Result<Vec<Rule>, NetworkError> {
    let mut rules = Vec::new();
    for pod in &attachment.addresses {
        for port in &attachment.ports {
            let (protocol, at) = key(port)?;
            if at.is_none_or(|at| at.is_ipv4() == pod.is_ipv4()) {
                let (host_port, pod_port) = (port.host_port, port.container_port);
                rules.push(Rule { protocol, at, host_port, pod: *pod, pod_port });
            }
        }
    }
    Ok(rules)
}

fn text(port: &HostPort) -> String {
    match port.host_ip {
        Some(at) => format!("{}/{at} {}", port.protocol, port.host_port),
        None => format!("{}/{}", port.protocol, port.host_port),
    }
}

/// Protocol, and address if it is a certain one.
fn key(port: &HostPort) -> Result<(Protocol, Option<IpAddr>), NetworkError> {
    let fault = |reason: &str| NetworkError::Port { port: text(port), reason: reason.to_owned() };
    let protocol =
        Protocol::parse(&port.protocol).ok_or_else(|| fault("the protocol is none of tcp, udp, sctp"))?;
    if port.host_port == 0 || port.container_port == 0 {
        return Err(fault("a port is 0"));
    }
    Ok((protocol, port.host_ip.filter(|at| !at.is_unspecified())))
}

/// Who has which host port.
#[derive(Debug, Default)]
pub(super) struct Ports(BTreeMap<(Protocol, Option<IpAddr>, u16), String>);

impl Ports {
    /// Gives ports to a pod, all or none. `families`: those that its addresses are of, IPv4 and IPv6.
    pub(super) fn take(
        &mut self,
        ports: &[HostPort],
        owner: &str,
        families: [bool; 2],
    ) -> Result<(), NetworkError> {
        let mut keys = Vec::new();
        for port in ports {
            let (protocol, at) = key(port)?;
            let fault = |reason: String| NetworkError::Port { port: text(port), reason };
            if at.is_some_and(|at| !families[usize::from(at.is_ipv6())]) {
                return Err(fault("the pod has no address of that family".to_owned()));
            }
            let key = (protocol, at, port.host_port);
            match self.0.get(&key) {
                Some(other) if other != owner => {
                    return Err(fault(format!("is taken by the pod at {other}")));
                }
                _ if keys.contains(&key) => return Err(fault("is asked for twice".to_owned())),
                _ => keys.push(key),
            }
        }
        self.0.extend(keys.into_iter().map(|key| (key, owner.to_owned())));
        Ok(())
    }

    /// The pod may undo its rule for this port: the port is its own, or nobody's.
    pub(super) fn may_undo(&self, rule: &Rule, owner: &str) -> bool {
        self.0.get(&(rule.protocol, rule.at, rule.host_port)).is_none_or(|other| other == owner)
    }

    /// Takes back everything of a pod.
    pub(super) fn release(&mut self, owner: &str) {
        self.0.retain(|_, other| other != owner);
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn port(protocol: &str, host_port: u16, host_ip: Option<&str>) -> HostPort {
        HostPort {
            protocol: protocol.to_owned(),
            host_port,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            container_port: 80,
        }
    }

    #[test]
    fn a_port_has_one_owner() {
        let mut ports = Ports::default();
        ports.take(&[port("tcp", 80, None)], "a", [true, false]).unwrap();
        ports.take(&[port("tcp", 80, Some("0.0.0.0"))], "a", [true, false]).unwrap();
        for other in [port("udp", 80, None), port("tcp", 81, None), port("tcp", 80, Some("10.0.0.1"))] {
            ports.take(&[other], "b", [true, false]).unwrap();
        }
        let error = ports.take(&[port("udp", 9, None), port("tcp", 80, None)], "b", [true, false]);
        assert!(error.unwrap_err().to_string().contains("taken by the pod at a"));
        ports.take(&[port("udp", 9, None)], "c", [true, false]).unwrap();
        ports.release("a");
        ports.take(&[port("tcp", 80, None)], "b", [true, false]).unwrap();
    }

    #[test]
    fn refuses_what_is_no_port() {
        let mut ports = Ports::default();
        for (asked, reason) in [
            (vec![port("icmp", 1, None)], "none of tcp"),
            (vec![port("TCP", 1, None)], "none of tcp"),
            (vec![port("tcp } ; flush ruleset", 1, None)], "none of tcp"),
            (vec![port("tcp", 0, None)], "a port is 0"),
            (vec![port("tcp", 1, Some("fd00::1"))], "no address of that family"),
            (vec![port("tcp", 1, None), port("tcp", 1, None)], "twice"),
        ] {
            let error = ports.take(&asked, "a", [true, false]).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        ports.take(&[port("tcp", 1, None)], "b", [true, false]).unwrap();
    }

    #[test]
    fn each_address_has_the_ports_of_its_family() {
        let attachment = Attachment {
            host_link: "a".to_owned(),
            addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            ports: vec![port("tcp", 1, None), port("udp", 2, Some("10.9.9.9")), port("sctp", 3, Some("::"))],
        };
        let rules: Vec<_> = rules(&attachment)
            .unwrap()
            .iter()
            .map(|rule| (rule.pod.is_ipv4(), rule.host_port, rule.at.is_some()))
            .collect();
        assert_eq!(
            rules,
            [(true, 1, false), (true, 2, true), (true, 3, false), (false, 1, false), (false, 3, false)]
        );
    }
}
