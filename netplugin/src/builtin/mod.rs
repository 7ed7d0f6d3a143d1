//! The built-in network: a veth pair a pod, /32 (/128) addresses and link routes as in the field's teaching example,
//! masquerade to go out, host ports. Routed, without a bridge; see `link` for the picture and `table` for the rules.
//!
//! Keeps no files: what a pod was given is its [`Attachment`], which the caller records before it is made, and the
//! leases in memory are rebuilt from those records. Executes `nft` twice at start, and for pods with host ports.
//!
//! Never: a change of a link, route or table that is not its own, be it called like one; a global sysctl turned off.

mod error;
mod inventory;
mod lease;
mod link;
mod name;
mod netlink;
mod nft;
mod owner;
mod port;
mod reaper;
mod route;
mod sysctl;
mod table;

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub use error::NetworkError;
pub use inventory::{Element, Inventory, Table};
use lease::Range;
use link::Leased;
use port::Ports;
use reaper::Reaper;

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
pub struct Builtin {
    instance: String,
    link_prefix: String,
    reaper: Reaper,
    leases: Mutex<Leases>,
}

/// What is given to whom.
#[derive(Debug)]
struct Leases {
    ranges: Vec<Range>,
    /// Host links by address. An address that is only known to be in use has none.
    owners: HashMap<IpAddr, String>,
    ports: Ports,
}

impl Builtin {
    /// `instance` prefixes the nft table and the veths; `ranges` are pod CIDRs, at most one a family, or
    /// none as long as nobody knows them ([`Self::take_ranges`]); `used` are the
    /// addresses of the sandboxes' records. Writes the nft table in one transaction, turns on forwarding. Repeatable:
    /// the host ports of live pods stay.
    ///
    /// # Errors
    /// [`NetworkError::Range`] and [`NetworkError::Name`] for what is configured; [`NetworkError::Another`] where a
    /// table of that name is another program's; [`NetworkError::Nft`] where the rules cannot be had.
    pub fn start(instance: &str, ranges: &[String], used: &[IpAddr]) -> Result<Self, NetworkError> {
        name::check_instance(instance)?;
        let mut ranges = parse(ranges)?;
        for range in &mut ranges {
            used.iter().for_each(|address| range.mark(*address));
        }
        let link_prefix = name::prefix(instance);
        write(instance, &link_prefix, &ranges)?;
        let reaper = Reaper::start(name::number(instance))?;
        let leases = Leases { ranges, owners: HashMap::new(), ports: Ports::default() };
        Ok(Self { instance: instance.to_owned(), link_prefix, reaper, leases: Mutex::new(leases) })
    }

    /// What a pod seems to have been given, as the kernel shows it: for one whose record cannot be read. None where no
    /// address leads to it. Host ports cannot be seen there; `ports` are those that it asked for. Needs no `start`.
    ///
    /// # Errors
    /// The kernel's refusal to list its routes.
    pub fn find(
        instance: &str,
        sandbox: &str,
        ports: &[HostPort],
    ) -> Result<Option<Attachment>, NetworkError> {
        let host_link = name::link(&name::prefix(instance), sandbox)?;
        let addresses = link::addresses(&host_link)?;
        Ok((!addresses.is_empty()).then(|| Attachment { host_link, addresses, ports: ports.to_vec() }))
    }

    /// There is a range that pods can have addresses of.
    pub fn has_range(&self) -> bool {
        !self.leases().ranges.is_empty()
    }

    /// Takes other ranges from now on; the same ones change nothing. Blocking.
    ///
    /// # Errors
    /// [`NetworkError::Range`] for what cannot be a range, and while pods have addresses of the present ones, which would
    /// lead nowhere; the kernel's or nft's refusal: the ranges are those from before then.
    pub fn take_ranges(&self, ranges: &[String]) -> Result<(), NetworkError> {
        let ranges = parse(ranges)?;
        let mut leases = self.leases();
        let cidrs = |ranges: &[Range]| ranges.iter().map(|range| range.cidr().to_owned()).collect::<Vec<_>>();
        if cidrs(&leases.ranges) == cidrs(&ranges) {
            return Ok(());
        }
        if let Some(range) = leases.ranges.iter().find(|range| range.is_used()) {
            return Err(NetworkError::Range {
                cidr: range.cidr().to_owned(),
                reason: "pods have addresses of it: it can be changed once they are stopped",
            });
        }
        // Held until it is done: nobody is given an address that does not lead anywhere yet.
        self.write(&ranges)?;
        leases.ranges = ranges;
        Ok(())
    }

    /// Writes what the ranges need to the kernel.
    fn write(&self, ranges: &[Range]) -> Result<(), NetworkError> {
        write(&self.instance, &self.link_prefix, ranges)
    }

    /// Takes over the attachments of the records after `start`: their addresses and host ports have owners again, and
    /// host ports that somebody wiped (`nft flush ruleset`) are written again, in one transaction.
    ///
    /// # Errors
    /// [`NetworkError::Nft`]. An attachment that contradicts an earlier one is left to that one, and logged.
    pub fn adopt<'a>(
        &self,
        attachments: impl IntoIterator<Item = &'a Attachment>,
    ) -> Result<(), NetworkError> {
        let mut rules = Vec::new();
        for attachment in attachments {
            let adopted = self.leases().adopt(attachment).and_then(|()| port::rules(attachment));
            match adopted {
                Ok(mut more) => rules.append(&mut more),
                Err(error) => tracing::warn!(link = attachment.host_link, %error, "host ports not adopted"),
            }
        }
        if rules.is_empty() { Ok(()) } else { nft::run(&table::add_ports(&self.instance, &rules)) }
    }

    /// Leases addresses for a pod, and says how its links will be called: to be recorded before `attach`. The lease
    /// is given back by `detach`.
    ///
    /// # Errors
    /// [`NetworkError::Exhausted`], [`NetworkError::Port`]: nothing is leased then.
    pub fn lease(&self, sandbox: &str, ports: &[HostPort]) -> Result<Attachment, NetworkError> {
        let host_link = name::link(&self.link_prefix, sandbox)?;
        let addresses = self.leases().take(&host_link, ports)?;
        Ok(Attachment { host_link, addresses, ports: ports.to_vec() })
    }

    /// Makes the veth pair, addresses, routes and host ports of a leased attachment. Blocking, a few milliseconds.
    /// Repeatable after an attach that was cut off. After an error, `detach` undoes what was made.
    ///
    /// # Errors
    /// The kernel's or nft's refusal.
    pub fn attach(&self, netns: BorrowedFd<'_>, attachment: &Attachment) -> Result<(), NetworkError> {
        let link = &attachment.host_link;
        name::check_link(link)?;
        let rules = port::rules(attachment)?;
        let leased = self.leases().leased(&attachment.addresses)?;
        link::attach(netns, link, &leased)?;
        if rules.is_empty() {
            return Ok(());
        }
        sysctl::let_localhost_out(link)?;
        nft::run(&table::add_ports(&self.instance, &rules))
    }

    /// Undoes `attach` and gives the lease back. What is not there is done already; needs no netns. On return nothing
    /// leads to the pod or comes from it; the links themselves are removed within some 30 ms by a thread, by the next
    /// `start`, or by the end of the pod's namespace, whichever is first.
    ///
    /// # Errors
    /// The kernel's or nft's refusal: the lease is kept then, since its address or port may still be in use.
    pub fn detach(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let link = &attachment.host_link;
        name::check_link(link)?;
        let mut rules = port::rules(attachment)?;
        {
            let leases = self.leases();
            rules.retain(|rule| leases.is_of(rule.pod, link) && leases.ports.may_undo(rule, link));
        }
        if !rules.is_empty() {
            nft::run(&table::remove_ports(&self.instance, &rules))?;
        }
        link::doom(link, &attachment.addresses, name::number(&self.instance))?;
        self.leases().release(attachment);
        self.reaper.wake()
    }

    /// Removes the nft table of an instance, its route, and links of detached pods. For `hack/down`. Forwarding stays
    /// on. Pods that are attached keep their links and addresses.
    ///
    /// # Errors
    /// [`NetworkError::Another`] where the table holds chains of somebody else, and stays; the kernel's or nft's refusal.
    pub fn stop(instance: &str) -> Result<(), NetworkError> {
        name::check_instance(instance)?;
        let removed = owner::may_remove(instance)
            .and_then(|may| if may { nft::run(&table::none(instance)) } else { Ok(()) });
        route::release(name::number(instance))?;
        link::remove_doomed(name::number(instance))?;
        removed
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        // Each change is made whole before anything that can panic.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The nft table in one transaction, the routes that keep the ranges inside, and forwarding. Repeatable.
fn write(instance: &str, link_prefix: &str, ranges: &[Range]) -> Result<(), NetworkError> {
    owner::may_write(instance)?;
    nft::run(&table::whole(instance, link_prefix, ranges))?;
    route::keep_inside(ranges, name::number(instance))?;
    let has = |v4: bool| ranges.iter().any(|range| range.network().0.is_ipv4() == v4);
    sysctl::forward(has(true), has(false))
}

fn parse(ranges: &[String]) -> Result<Vec<Range>, NetworkError> {
    let ranges: Vec<Range> = ranges.iter().map(|cidr| Range::parse(cidr)).collect::<Result<_, _>>()?;
    let fault = |cidr: &str, reason| Err(NetworkError::Range { cidr: cidr.to_owned(), reason });
    match &ranges[..] {
        [] | [_] => Ok(ranges),
        [one, two] if one.network().0.is_ipv4() != two.network().0.is_ipv4() => Ok(ranges),
        [.., last] => fault(last.cidr(), "is a second one of its family"),
    }
}

impl Leases {
    fn take(&mut self, link: &str, ports: &[HostPort]) -> Result<Vec<IpAddr>, NetworkError> {
        if self.ranges.is_empty() {
            return Err(NetworkError::Range {
                cidr: String::new(),
                reason: "none is known yet: none is configured, and no kubelet has sent the node's pod CIDR",
            });
        }
        let mut families = [false; 2];
        for range in &self.ranges {
            families[usize::from(range.network().0.is_ipv6())] = true;
        }
        self.ports.take(ports, link, families)?;
        let mut addresses = Vec::new();
        for range in &mut self.ranges {
            match range.take() {
                Ok(address) => addresses.push(address),
                Err(error) => {
                    self.free(&addresses, link);
                    return Err(error);
                }
            }
        }
        self.owners.extend(addresses.iter().map(|address| (*address, link.to_owned())));
        Ok(addresses)
    }

    fn adopt(&mut self, attachment: &Attachment) -> Result<(), NetworkError> {
        let families = [false, true].map(|v6| attachment.addresses.iter().any(|a| a.is_ipv6() == v6));
        for address in &attachment.addresses {
            self.ranges.iter_mut().for_each(|range| range.mark(*address));
            self.owners.entry(*address).or_insert_with(|| attachment.host_link.clone());
        }
        self.ports.take(&attachment.ports, &attachment.host_link, families)
    }

    fn leased(&self, addresses: &[IpAddr]) -> Result<Vec<Leased>, NetworkError> {
        let leased = |address: &IpAddr| {
            let range = self.ranges.iter().find(|range| range.contains(*address));
            let range = range.ok_or_else(|| NetworkError::Range {
                cidr: address.to_string(),
                reason: "this address of the pod is in no range that is configured now",
            })?;
            Ok(Leased { address: *address, gateway: range.gateway() })
        };
        addresses.iter().map(leased).collect()
    }

    /// The address is this link's, or nobody's.
    fn is_of(&self, address: IpAddr, link: &str) -> bool {
        self.owners.get(&address).is_none_or(|owner| owner == link)
    }

    fn release(&mut self, attachment: &Attachment) {
        self.free(&attachment.addresses, &attachment.host_link);
    }

    /// A second detach must not free what has been leased to somebody else since.
    fn free(&mut self, addresses: &[IpAddr], link: &str) {
        for address in addresses {
            if self.is_of(*address, link) {
                self.owners.remove(address);
                self.ranges.iter_mut().for_each(|range| range.release(*address));
            }
        }
        self.ports.release(link);
    }
}

#[cfg(test)]
mod test;
