//! The pod network that the configuration chose. Keeps nothing: an attachment is in its sandbox's record.

mod attachment;
mod cni;
mod pod;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use cove_netplugin::builtin::{self, Builtin, HostPort};
use tokio_util::sync::CancellationToken;

pub(crate) use attachment::Attachment;

use crate::blocking;
use crate::config::{self, NetworkMode};
use crate::error::Error;
use crate::sandbox::config::{PortMapping, Protocol};
use crate::sandbox::record::SandboxIdentity;
use cni::Cni;

/// Who attaches pods.
#[derive(Debug, Clone)]
pub enum Network {
    /// Nobody: only pods on the host's network run.
    None,
    /// A veth pair a pod.
    Builtin(Arc<Builtin>),
    /// CNI plugins.
    Cni(Arc<Cni>),
}

impl Network {
    /// Starts what the configuration names; `used` are the addresses of the records. Blocking.
    pub fn start(instance: &str, config: &config::Network, used: &[IpAddr]) -> Result<Self, Error> {
        match config.mode {
            NetworkMode::None => Ok(Self::None),
            NetworkMode::Builtin => {
                Ok(Self::Builtin(Arc::new(Builtin::start(instance, &config.ranges, used)?)))
            }
            NetworkMode::Cni => Ok(Self::Cni(Arc::new(Cni::start(config)))),
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
            // What plugins did is known to them alone.
            NetworkMode::None | NetworkMode::Cni => Ok(None),
            NetworkMode::Builtin => {
                let ports: Vec<HostPort> = ports.iter().map(host_port).collect();
                Ok(Builtin::find(instance, sandbox, &ports)?.map(Attachment::Builtin))
            }
        }
    }

    /// Takes over the attachments of the records. Blocking.
    pub fn adopt<'a>(
        &self,
        attachments: impl IntoIterator<Item = &'a builtin::Attachment>,
    ) -> Result<(), Error> {
        match self {
            Self::None | Self::Cni(_) => Ok(()),
            Self::Builtin(builtin) => Ok(builtin.adopt(attachments)?),
        }
    }

    /// Takes down what `start` made, for an instance that has no pod left. Blocking.
    pub fn close(&self, instance: &str) -> Result<(), Error> {
        match self {
            Self::None | Self::Cni(_) => Ok(()),
            Self::Builtin(_) => Ok(Builtin::stop(instance)?),
        }
    }

    /// Takes the pod ranges that a kubelet was told of.
    pub async fn take_ranges(&self, ranges: Vec<String>) -> Result<(), Error> {
        match self {
            Self::None | Self::Cni(_) => Ok(()),
            Self::Builtin(builtin) => {
                let builtin = Arc::clone(builtin);
                blocking::run(move || Ok(builtin.take_ranges(&ranges)?)).await
            }
        }
    }

    /// Looks again at what may have changed, for a bounded time.
    pub async fn look(&self, settings: &config::Network) {
        if let Self::Cni(cni) = self {
            cni.look(settings).await;
        }
    }

    /// Releases what belongs to none of the attachments, which are all that there are. In the background.
    pub fn collect(&self, settings: &config::Network, all: &[Arc<Attachment>]) {
        if let Self::Cni(cni) = self {
            let all = all.iter().filter_map(|one| match &**one {
                Attachment::Cni(attachment) => Some(cove_netplugin::Attachment::clone(attachment)),
                Attachment::Builtin(_) => None,
            });
            cni.collect(settings, &all.collect::<Vec<_>>());
        }
    }

    /// Why a pod with a network of its own cannot be run, from what is known.
    pub fn fault(&self) -> Option<String> {
        match self {
            Self::None => Some(
                "no pod network is configured: set network.mode = \"cni\", or \"builtin\" with network.ranges, in the \
                 configuration"
                    .to_owned(),
            ),
            Self::Builtin(builtin) => (!builtin.has_range()).then(|| {
                "no pod range is known yet: network.ranges is empty, and no kubelet has sent the node's pod CIDR".to_owned()
            }),
            Self::Cni(cni) => cni.fault(),
        }
    }

    /// What a pod will be given: to be recorded before it is attached.
    pub async fn lease(
        &self,
        identity: &SandboxIdentity,
        settings: &config::Network,
    ) -> Result<Attachment, Error> {
        match self {
            Self::None => Err(Error::Unavailable(
                "network is not ready: no pod network is configured (network.mode is \"none\")",
            )),
            Self::Builtin(builtin) => {
                let ports: Vec<HostPort> = identity.config.ports.iter().map(host_port).collect();
                Ok(Attachment::Builtin(builtin.lease(&identity.id, &ports)?))
            }
            Self::Cni(cni) => Ok(Attachment::Cni(Box::new(cni.lease(identity, settings).await?))),
        }
    }

    /// Attaches a pod as leased. Gives the attachment anew if there is more to record of it than before. When `closing` is
    /// set, it comes to an end soon.
    pub async fn attach(
        &self,
        netns: OwnedFd,
        attachment: Attachment,
        settings: &config::Network,
        closing: &CancellationToken,
    ) -> Result<Option<Attachment>, Error> {
        match (self, attachment) {
            (Self::Builtin(builtin), Attachment::Builtin(attachment)) => {
                use std::os::fd::AsFd;
                let builtin = Arc::clone(builtin);
                blocking::run(move || Ok(builtin.attach(netns.as_fd(), &attachment)?)).await.map(|()| None)
            }
            (Self::Cni(cni), Attachment::Cni(attachment)) => {
                let complete = cni.add(*attachment, settings, closing).await?;
                Ok(Some(Attachment::Cni(Box::new(complete))))
            }
            _ => Err(Error::Unavailable("network is not ready: no pod network is configured")),
        }
    }

    /// Stands for what a pod was given and no record tells any more: plugins know a pod by its id, so those that attach pods
    /// today are asked to detach it. Of the built-in network nothing is lost that is still in the kernel ([`Self::find`]).
    pub async fn lost(&self, identity: &SandboxIdentity, settings: &config::Network) -> Option<Attachment> {
        let Self::Cni(cni) = self else { return None };
        match cni.lease(identity, settings).await {
            Ok(attachment) => Some(Attachment::Cni(Box::new(attachment))),
            Err(error) => {
                tracing::error!(sandbox = identity.id, %error, "its address may be leaked: no plugin can be asked for it");
                None
            }
        }
    }

    /// Detaches a pod and gives its lease back. What is not there is done already.
    pub async fn detach(&self, attachment: &Attachment, settings: &config::Network) -> Result<(), Error> {
        match (self, attachment) {
            // Whatever is configured by now: its plugins know what they did.
            (_, Attachment::Cni(attachment)) => cni::del(attachment, settings).await,
            (Self::Builtin(builtin), Attachment::Builtin(attachment)) => {
                let (builtin, attachment) = (Arc::clone(builtin), attachment.clone());
                blocking::run(move || Ok(builtin.detach(&attachment)?)).await
            }
            // The network that attached it was turned off since: its links went with the namespace.
            (Self::None | Self::Cni(_), Attachment::Builtin(_)) => Ok(()),
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
