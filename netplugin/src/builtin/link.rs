//! The veth pair of a pod, its addresses and routes.
//!
//! ```text
//!   pod: eth0 10.88.0.5/32                        host: <link> 10.88.0.1/32 (on every pod's link)
//!     10.88.0.1 dev eth0 scope link                 10.88.0.5 dev <link> scope link src 10.88.0.1
//!     default via 10.88.0.1 dev eth0                unreachable 10.88.0.0/16 (once)
//! ```
//!
//! There is no bridge: a packet between pods is routed by the host, and no pod hears another's broadcasts. The pod's
//! end is made inside the pod's namespace at once, so it never has a name on the host.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rustix::io::Errno;

use super::NetworkError;
use super::netlink::{Netlink, Request};
use super::route::{self, Route, family, full_prefix};
use super::sysctl;

/// What every tool expects the pod's link to be called.
pub(super) const POD_LINK: &str = "eth0";
/// Tells the link-layer addresses of both ends apart.
const HOST_END: u8 = b'h';
/// As [`HOST_END`].
const POD_END: u8 = b'p';
/// A new network namespace has its loopback link first.
const LOOPBACK: u32 = 1;
/// One address of a pod.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leased {
    /// The pod's.
    pub(super) address: IpAddr,
    /// Of the address's range: where the pod sends to.
    pub(super) gateway: IpAddr,
}

/// Makes the pair, gives it its addresses and routes. A pair of that name from an attach that was cut off is replaced.
pub(super) fn attach(netns: BorrowedFd<'_>, name: &str, addresses: &[Leased]) -> Result<(), NetworkError> {
    let (host, pod) = (Netlink::here()?, Netlink::inside(netns)?);
    let (host_index, pod_index) = make(&host, netns, name)?;
    // Before the link is up, when the first router advertisement could come in (CVE-2020-10749).
    sysctl::protect(name, addresses.iter().any(|leased| leased.address.is_ipv6()))?;
    pod.run(pod_requests(name, pod_index, addresses))?;
    host.run(host_requests(name, host_index, addresses))?;
    Ok(())
}

/// Takes the pair's host end out of use: the pod's addresses lead nowhere from here on, and what the pod still sends is
/// dropped, since no route leads back. The pair itself goes with the next [`remove_doomed`] of the group: the kernel
/// takes some 30 ms for that, for one as for many.
pub(super) fn doom(name: &str, addresses: &[IpAddr], group: u32) -> Result<(), NetworkError> {
    let host = Netlink::here()?;
    let answers = host.run(vec![Request { done: &[Errno::NODEV], ..find(name) }])?;
    // Another program's of that name, which kept the pod from having one, stays.
    let Some((index, _)) = indexes(&answers).filter(|_| is_ours(&answers, name)) else { return Ok(()) };
    // By the link's index: the address may be another pod's by now.
    let mut requests: Vec<Request> =
        addresses.iter().map(|address| route::remove(Route::to(*address, index).message())).collect();
    let mut marked = LinkMessage::default();
    marked.header.index = index;
    marked.attributes = vec![LinkAttribute::Group(group)];
    requests.push(Request {
        message: RouteNetlinkMessage::SetLink(marked),
        flags: 0,
        doing: "mark for removal",
        object: name.to_owned(),
        done: &[Errno::NODEV],
    });
    host.run(requests).map(drop)
}

/// The pod's addresses behind a host end, as [`attach`] gave them: IPv4 first. None where there is no such link.
pub(super) fn addresses(name: &str) -> Result<Vec<IpAddr>, NetworkError> {
    let host = Netlink::here()?;
    match indexes(&host.run(vec![Request { done: &[Errno::NODEV], ..find(name) }])?) {
        Some((index, _)) => route::destinations(&host, index),
        None => Ok(Vec::new()),
    }
}

/// Removes every pair of a group; addresses and routes go with it, in both namespaces.
pub(super) fn remove_doomed(group: u32) -> Result<(), NetworkError> {
    let mut all = LinkMessage::default();
    all.attributes = vec![LinkAttribute::Group(group)];
    let request = Request {
        message: RouteNetlinkMessage::DelLink(all),
        flags: 0,
        doing: "remove links of group",
        object: format!("{group:#x}"),
        done: &[Errno::NODEV],
    };
    Netlink::here()?.run(vec![request]).map(drop)
}

/// Removes one pair by the name of its host end. Gone is done.
pub(super) fn remove(name: &str) -> Result<(), NetworkError> {
    Netlink::here()?.run(vec![delete(name)]).map(drop)
}

/// The indexes of both ends.
fn make(host: &Netlink, netns: BorrowedFd<'_>, name: &str) -> Result<(u32, u32), NetworkError> {
    let create = || Request {
        message: RouteNetlinkMessage::NewLink(pair(netns, name)),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        doing: "make link",
        object: format!("{name} with {POD_LINK} in the pod"),
        done: &[],
    };
    let answers = match host.run(vec![create(), find(name)]) {
        // The second try tells a left-over of ours from an eth0 that the pod has already.
        Err(NetworkError::System { source, .. }) if Errno::from_io_error(&source) == Some(Errno::EXIST) => {
            let answers = host.run(vec![Request { done: &[Errno::NODEV], ..find(name) }])?;
            if !answers.is_empty() && !is_ours(&answers, name) {
                let todo = "remove or rename it".to_owned();
                return Err(NetworkError::Another { what: "link", name: name.to_owned(), todo });
            }
            host.run(vec![delete(name), create(), find(name)])?
        }
        answers => answers?,
    };
    indexes(&answers).ok_or_else(|| NetworkError::system("look up", name, Errno::NODEV))
}

/// The host's link of this name is one that we made, as sysfs shows it.
pub(super) fn is_made_by_us(name: &str) -> std::io::Result<bool> {
    let ours = mac(name, HOST_END).map(|byte| format!("{byte:02x}")).join(":");
    match std::fs::read_to_string(format!("/sys/class/net/{name}/address")) {
        Ok(address) => Ok(address.trim() == ours),
        // It goes at this moment: the last is sysfs's answer for a device that is being unregistered.
        Err(error)
            if [Errno::NOENT, Errno::NODEV, Errno::INVAL]
                .map(Some)
                .contains(&Errno::from_io_error(&error)) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The link that was found is one that we made: it has the address that its name gives it.
fn is_ours(answers: &[RouteNetlinkMessage], name: &str) -> bool {
    let address = LinkAttribute::Address(mac(name, HOST_END).to_vec());
    answers.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => link.attributes.contains(&address),
        _ => false,
    })
}

/// Of the host's end and the pod's. The kernel may leave out the pod's when it is the same number.
fn indexes(answers: &[RouteNetlinkMessage]) -> Option<(u32, u32)> {
    let link = answers.iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    })?;
    let peer = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    });
    Some((link.header.index, peer.unwrap_or(link.header.index)))
}

/// Both ends in one message. They get addresses of their own choosing: else systemd-udevd would change the host end's
/// soon after (MACAddressPolicy=persistent), when the pod has it in its neighbour table.
fn pair(netns: BorrowedFd<'_>, name: &str) -> LinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(POD_LINK.to_owned()),
        LinkAttribute::Address(mac(name, POD_END).to_vec()),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
    ];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac(name, HOST_END).to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    link
}

/// A locally administered unicast address that depends on the link's name alone.
fn mac(name: &str, end: u8) -> [u8; 6] {
    let hash = super::name::hash(name.bytes().chain([end])).to_be_bytes();
    [0x02, hash[3], hash[4], hash[5], hash[6], hash[7]]
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    link
}

fn find(name: &str) -> Request {
    Request {
        message: RouteNetlinkMessage::GetLink(named(name)),
        flags: 0,
        doing: "look up",
        object: name.to_owned(),
        done: &[],
    }
}

fn delete(name: &str) -> Request {
    Request {
        message: RouteNetlinkMessage::DelLink(named(name)),
        flags: 0,
        doing: "remove link",
        object: name.to_owned(),
        done: &[Errno::NODEV],
    }
}

fn up(index: u32, name: &str) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    Request {
        message: RouteNetlinkMessage::SetLink(link),
        flags: 0,
        doing: "set up link",
        object: name.to_owned(),
        done: &[],
    }
}

fn pod_requests(name: &str, index: u32, addresses: &[Leased]) -> Vec<Request> {
    let mut requests = vec![up(LOOPBACK, "lo of the pod"), up(index, "eth0 of the pod")];
    for Leased { address, gateway } in addresses.iter().copied() {
        requests.push(add_address(index, address));
        requests.push(add_neighbour(index, gateway, mac(name, HOST_END)));
        requests.push(route::add(Route::to(gateway, index)));
        requests.push(route::add(Route::default_by(gateway, index)));
    }
    requests
}

fn host_requests(name: &str, index: u32, addresses: &[Leased]) -> Vec<Request> {
    let mut requests = vec![up(index, name)];
    for Leased { address, gateway } in addresses.iter().copied() {
        requests.push(add_address(index, gateway));
        requests.push(add_neighbour(index, address, mac(name, POD_END)));
        // The source is said, since the host has the gateway's address on many links.
        requests.push(route::add(Route::from_source(address, index, gateway)));
    }
    requests
}

fn add_address(index: u32, address: IpAddr) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = full_prefix(address);
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    // Nobody else can have it: detection would only keep it unusable for a second.
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    Request {
        message: RouteNetlinkMessage::NewAddress(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        doing: "add address",
        object: address.to_string(),
        done: &[],
    }
}

/// Who is at the other end is known. So no packet waits for an answer, a host with a strict `arp_ignore` works, and pods
/// do not fill the host's neighbour table (permanent entries do not count against its gc_thresh3 of 1,024).
fn add_neighbour(index: u32, address: IpAddr, mac: [u8; 6]) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    Request {
        message: RouteNetlinkMessage::NewNeighbour(message),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        doing: "add neighbour",
        object: address.to_string(),
        done: &[],
    }
}
