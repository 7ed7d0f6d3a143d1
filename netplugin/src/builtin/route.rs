//! Routes of the host's and the pods' main tables, and the route that keeps a range's unleased addresses inside.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::NetworkError;
use super::lease::Range;
use super::netlink::{Netlink, Request};

/// Who made a route, in the kernel's one byte for that (rtnetlink.h: 128 to 255 are for routing daemons with a
/// number of their own; below it, from 100 on, none is given).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(112);

/// A route of the main table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    destination: IpAddr,
    prefix: u8,
    kind: RouteType,
    link: Option<u32>,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    metric: Option<u32>,
}

impl Route {
    /// To one address, which is at the other end of a link.
    pub(super) fn to(destination: IpAddr, link: u32) -> Self {
        Self {
            destination,
            prefix: full_prefix(destination),
            kind: RouteType::Unicast,
            link: Some(link),
            gateway: None,
            source: None,
            metric: None,
        }
    }

    /// As [`Self::to`], for packets of the host itself from this address of its own.
    pub(super) fn from_source(destination: IpAddr, link: u32, source: IpAddr) -> Self {
        Self { source: Some(source), ..Self::to(destination, link) }
    }

    /// To everywhere.
    pub(super) fn default_by(gateway: IpAddr, link: u32) -> Self {
        Self { prefix: 0, gateway: Some(gateway), ..Self::to(gateway, link) }
    }

    /// Of a whole range, for what no pod has: with the lowest preference, which also tells the instance.
    fn unreachable(range: &Range, metric: u32) -> Self {
        let (destination, prefix) = range.network();
        Self {
            destination,
            prefix,
            kind: RouteType::Unreachable,
            link: None,
            gateway: None,
            source: None,
            metric: Some(metric),
        }
    }

    pub(super) fn message(self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.destination);
        message.header.destination_prefix_length = self.prefix;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = PROTOCOL;
        message.header.kind = self.kind;
        message.header.scope = match (self.link, self.gateway) {
            (Some(_), None) => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        let address = |address: IpAddr| RouteAddress::from(address);
        let attributes = [
            (self.prefix > 0).then(|| RouteAttribute::Destination(address(self.destination))),
            self.link.map(RouteAttribute::Oif),
            self.gateway.map(|gateway| RouteAttribute::Gateway(address(gateway))),
            self.source.map(|source| RouteAttribute::PrefSource(address(source))),
            self.metric.map(RouteAttribute::Priority),
        ];
        message.attributes = attributes.into_iter().flatten().collect();
        message
    }
}

/// A new route.
pub(super) fn add(route: Route) -> Request {
    let object = match route.gateway {
        Some(gateway) => format!("default via {gateway}"),
        None => format!("{}/{}", route.destination, route.prefix),
    };
    Request {
        message: RouteNetlinkMessage::NewRoute(route.message()),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        doing: "add route",
        object,
        done: &[],
    }
}

/// What no pod of a range has is unreachable from here on, instead of leaving by the host's default route. Routes of
/// the instance's earlier ranges go.
pub(super) fn keep_inside(ranges: &[Range], metric: u32) -> Result<(), NetworkError> {
    let netlink = Netlink::here()?;
    let mut requests = removals(&netlink, metric)?;
    requests.extend(ranges.iter().map(|range| add(Route::unreachable(range, metric))));
    if requests.is_empty() { Ok(()) } else { netlink.run(requests).map(drop) }
}

/// Undoes [`keep_inside`].
pub(super) fn release(metric: u32) -> Result<(), NetworkError> {
    let netlink = Netlink::here()?;
    let requests = removals(&netlink, metric)?;
    if requests.is_empty() { Ok(()) } else { netlink.run(requests).map(drop) }
}

fn removals(netlink: &Netlink, metric: u32) -> Result<Vec<Request>, NetworkError> {
    let mut requests = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut all = RouteMessage::default();
        all.header.address_family = family;
        for answer in netlink.dump(RouteNetlinkMessage::GetRoute(all))? {
            if let RouteNetlinkMessage::NewRoute(route) = answer
                && route.header.protocol == PROTOCOL
                && route.header.kind == RouteType::Unreachable
                && route.attributes.contains(&RouteAttribute::Priority(metric))
            {
                requests.push(remove(route));
            }
        }
    }
    Ok(requests)
}

/// Where the routes of ours lead that go to single addresses by this link, IPv4 first.
pub(super) fn destinations(netlink: &Netlink, link: u32) -> Result<Vec<IpAddr>, NetworkError> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut all = RouteMessage::default();
        all.header.address_family = family;
        for answer in netlink.dump(RouteNetlinkMessage::GetRoute(all))? {
            let RouteNetlinkMessage::NewRoute(route) = answer else { continue };
            if route.header.protocol != PROTOCOL || !route.attributes.contains(&RouteAttribute::Oif(link)) {
                continue;
            }
            found.extend(route.attributes.iter().filter_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
                _ => None,
            }));
        }
    }
    Ok(found)
}

/// A route as it was listed, or made.
pub(super) fn remove(listed: RouteMessage) -> Request {
    let mut route = RouteMessage::default();
    route.header = listed.header;
    route.attributes = listed
        .attributes
        .into_iter()
        .filter(|attribute| {
            matches!(
                attribute,
                RouteAttribute::Destination(_) | RouteAttribute::Priority(_) | RouteAttribute::Oif(_)
            )
        })
        .collect();
    Request {
        object: format!("{:?}", route.attributes),
        message: RouteNetlinkMessage::DelRoute(route),
        flags: 0,
        doing: "remove route",
        done: &[Errno::SRCH, Errno::NODEV],
    }
}

/// The family of an address.
pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The length of the prefix that is the address itself.
pub(super) fn full_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
