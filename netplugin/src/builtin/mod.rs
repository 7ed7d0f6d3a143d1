//! The built-in network: a veth pair a pod, /32 (/128) addresses and link routes as in the field's teaching example,
//! masquerade to go out, host ports. STUB of the interface; its owner replaces it.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Every address of the range is leased.
    #[error("no address is free in {cidr}: {leased} are leased")]
    Exhausted {
        /// The range.
        cidr: String,
        /// How many.
        leased: usize,
    },
    /// The kernel refused.
    #[error("{doing} {object}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// On which link, address or route.
        object: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// `nft` refused the rules.
    #[error("nft: {0}")]
    Nft(String),
    /// A range that cannot be used.
    #[error("pod range {cidr:?}: {reason}")]
    Range {
        /// As configured.
        cidr: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// A host port that leads to the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// On the host.
    pub host_port: u16,
    /// Address of the host, or any.
    pub host_ip: Option<IpAddr>,
    /// In the pod.
    pub container_port: u16,
}

/// What a pod was given: enough to undo it. Kept in the sandbox's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the host end of the veth pair: instance prefix and id digits, at most 15 bytes.
    pub host_link: String,
    /// The pod's addresses, the primary first.
    pub addresses: Vec<IpAddr>,
    /// Host ports.
    pub ports: Vec<HostPort>,
}

/// The built-in network of one instance.
#[derive(Debug)]
pub struct Builtin {}

impl Builtin {
    /// `instance` prefixes the nft table and the veths; `ranges` are pod CIDRs, at most one a family; `used` are the
    /// addresses of the sandboxes' records. Writes the nft table in one transaction, turns on forwarding.
    pub fn start(instance: &str, ranges: &[String], used: &[IpAddr]) -> Result<Self, NetworkError> {
        let _ = (instance, ranges, used);
        Ok(Self {})
    }

    /// Leases addresses for a pod, and says how its links will be called: to be recorded before `attach`. The lease
    /// is given back by `detach`.
    pub fn lease(&self, sandbox: &str, ports: &[HostPort]) -> Result<Attachment, NetworkError> {
        let _ = (sandbox, ports);
        todo!()
    }

    /// Makes the veth pair, addresses, routes and host ports of a leased attachment. Blocking, a few milliseconds.
    pub fn attach(&self, netns: BorrowedFd<'_>, attachment: &Attachment) -> Result<(), NetworkError> {
        let _ = (netns, attachment);
        todo!()
    }

    /// Undoes `attach` and gives the lease back. What is not there is done already; needs no netns.
    pub fn detach(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let _ = attachment;
        todo!()
    }

    /// Removes the nft table of an instance. For `hack/down`.
    pub fn stop(instance: &str) -> Result<(), NetworkError> {
        let _ = instance;
        Ok(())
    }
}
