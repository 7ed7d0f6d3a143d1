//! The pod network that the configuration chose. Keeps nothing: an attachment is in its sandbox's record.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use cove_netplugin::builtin::{Attachment, Builtin, HostPort};

use crate::blocking;
use crate::config::{self, NetworkMode};
use crate::error::Error;
use crate::sandbox::config::{PortMapping, Protocol};

/// Who attaches pods.
#[derive(Debug, Clone)]
pub enum Network {
    /// Nobody: only pods on the host's network run.
    None,
    /// A veth pair a pod.
    Builtin(Arc<Builtin>),
}

impl Network {
    /// Starts what the configuration names; `used` are the addresses of the records. Blocking.
    pub fn start(instance: &str, config: &config::Network, used: &[IpAddr]) -> Result<Self, Error> {
        match config.mode {
            NetworkMode::None => Ok(Self::None),
            NetworkMode::Builtin => {
                Ok(Self::Builtin(Arc::new(Builtin::start(instance, &config.ranges, used)?)))
            }
        }
    }

    /// What a pod was given, as the kernel shows it: for one whose record cannot be read. Needs no network that was
    /// started. Blocking.
    pub fn find(
        instance: &str,
        config: &config::Network,
        sandbox: &str,
        ports: &[PortMapping],
    ) -> Result<Option<Attachment>, Error> {
        match config.mode {
            NetworkMode::None => Ok(None),
            NetworkMode::Builtin => {
                let ports: Vec<HostPort> = ports.iter().map(host_port).collect();
                Ok(Builtin::find(instance, sandbox, &ports)?)
            }
        }
    }

    /// Takes over the attachments of the records. Blocking.
    pub fn adopt<'a>(&self, attachments: impl IntoIterator<Item = &'a Attachment>) -> Result<(), Error> {
        match self {
            Self::None => Ok(()),
            Self::Builtin(builtin) => Ok(builtin.adopt(attachments)?),
        }
    }

    /// Takes down what `start` made, for an instance that has no pod left. Blocking.
    pub fn close(&self, instance: &str) -> Result<(), Error> {
        match self {
            Self::None => Ok(()),
            Self::Builtin(_) => Ok(Builtin::stop(instance)?),
        }
    }

    /// A pod with a network of its own can be run.
    pub fn is_ready(&self) -> bool {
        match self {
            Self::None => false,
            Self::Builtin(builtin) => builtin.has_range(),
        }
    }

    /// Takes the pod ranges that a kubelet was told of.
    pub async fn take_ranges(&self, ranges: Vec<String>) -> Result<(), Error> {
        match self {
            Self::None => Ok(()),
            Self::Builtin(builtin) => {
                let builtin = Arc::clone(builtin);
                blocking::run(move || Ok(builtin.take_ranges(&ranges)?)).await
            }
        }
    }

    /// What a pod will be given: to be recorded before it is attached.
    pub fn lease(&self, sandbox: &str, ports: &[PortMapping]) -> Result<Attachment, Error> {
        match self {
            Self::None => Err(Error::Unavailable(
                "network is not ready: no pod network is configured (network.mode is \"none\")",
            )),
            Self::Builtin(builtin) => {
                let ports: Vec<HostPort> = ports.iter().map(host_port).collect();
                Ok(builtin.lease(sandbox, &ports)?)
            }
        }
    }

    /// Attaches a pod as leased.
    pub async fn attach(&self, netns: OwnedFd, attachment: Attachment) -> Result<(), Error> {
        match self {
            Self::None => Err(Error::Unavailable("network is not ready: no pod network is configured")),
            Self::Builtin(builtin) => {
                use std::os::fd::AsFd;
                let builtin = Arc::clone(builtin);
                blocking::run(move || Ok(builtin.attach(netns.as_fd(), &attachment)?)).await
            }
        }
    }

    /// Detaches a pod and gives its lease back. What is not there is done already.
    pub async fn detach(&self, attachment: Attachment) -> Result<(), Error> {
        match self {
            // The network that attached it was turned off since: its links went with the namespace.
            Self::None => Ok(()),
            Self::Builtin(builtin) => {
                let builtin = Arc::clone(builtin);
                blocking::run(move || Ok(builtin.detach(&attachment)?)).await
            }
        }
    }
}

fn host_port(port: &PortMapping) -> HostPort {
    HostPort {
        protocol: match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
        .to_owned(),
        host_port: port.host_port,
        host_ip: port.host_ip,
        container_port: port.container_port,
    }
}
