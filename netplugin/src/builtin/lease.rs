//! Which addresses of a range are in use: a bitmap in memory, rebuilt from the records at each start. No file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::NetworkError;

/// How many addresses of a range are used, from its start: 65,536 is far more than pods fit on a node (the kubelet's
/// default is 110), and keeps the bitmap of an IPv6 /64 at 8 KiB.
const MAX_ADDRESSES: u32 = 1 << 16;
/// The network itself (IPv6: the anycast address of its routers), and the gateway of the pods.
const RESERVED_FIRST: u32 = 2;
/// The smallest ranges: four addresses, of which one is left for a pod.
const MAX_PREFIX_V4: u8 = 30;
/// As [`MAX_PREFIX_V4`].
const MAX_PREFIX_V6: u8 = 126;
/// Bits in a word of the bitmap.
const WORD: u32 = u64::BITS;

/// A pod CIDR and its leases.
#[derive(Debug)]
pub(super) struct Range {
    cidr: String,
    network: IpAddr,
    prefix: u8,
    /// Offsets from the network that may be leased: below this.
    end: u32,
    leased: Vec<u64>,
    count: usize,
    /// Where the search goes on, so that an address rests for as long as possible before it is used again: peers
    /// still have it in neighbour tables and open connections.
    next: u32,
}

impl Range {
    /// Reads a CIDR such as `10.88.0.0/16` or `fd00:88::/64`.
    pub(super) fn parse(cidr: &str) -> Result<Self, NetworkError> {
        let fault = |reason| NetworkError::Range { cidr: cidr.to_owned(), reason };
        let (address, prefix) = cidr.split_once('/').ok_or_else(|| fault("has no prefix length"))?;
        let network: IpAddr = address.parse().map_err(|_| fault("does not begin with an IP address"))?;
        let prefix: u8 = prefix.parse().map_err(|_| fault("has no number after the slash"))?;
        let (bits, largest) = if network.is_ipv4() { (32, MAX_PREFIX_V4) } else { (128, MAX_PREFIX_V6) };
        if prefix > largest {
            return Err(fault("has no room for a pod: the longest prefixes are /30 and /126"));
        }
        if network.is_loopback() || network.is_multicast() || network.is_unspecified() {
            return Err(fault("is loopback, multicast or unspecified"));
        }
        let host_bits = bits - u32::from(prefix);
        let number = number(network);
        if number & low_bits(host_bits) != 0 {
            return Err(fault("has bits set behind its prefix"));
        }
        // The last address is IPv4's broadcast; IPv6 has none, but one rule for both is easier to remember.
        let last = u32::try_from(low_bits(host_bits)).unwrap_or(u32::MAX);
        let end = last.min(MAX_ADDRESSES);
        let words = usize::try_from(end.div_ceil(WORD)).map_err(|_| fault("is too large"))?;
        Ok(Self {
            cidr: cidr.to_owned(),
            network,
            prefix,
            end,
            leased: vec![0; words],
            count: 0,
            next: RESERVED_FIRST,
        })
    }

    /// As configured.
    pub(super) fn cidr(&self) -> &str {
        &self.cidr
    }

    /// Its network address and prefix length.
    pub(super) fn network(&self) -> (IpAddr, u8) {
        (self.network, self.prefix)
    }

    /// The first address: what pods send to, held by the host's end of every pair.
    pub(super) fn gateway(&self) -> IpAddr {
        self.address(1)
    }

    /// An address of it is leased.
    pub(super) fn is_used(&self) -> bool {
        self.count > 0
    }

    /// The address is of this range.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let bits = if self.network.is_ipv4() { 32 } else { 128 };
        address.is_ipv4() == self.network.is_ipv4()
            && number(address) & !low_bits(bits - u32::from(self.prefix)) == number(self.network)
    }

    /// Leases an address: the next free one after the last that was leased.
    pub(super) fn take(&mut self) -> Result<IpAddr, NetworkError> {
        let offset = (self.next..self.end)
            .chain(RESERVED_FIRST..self.next)
            .find(|offset| !self.is_leased(*offset))
            .ok_or_else(|| NetworkError::Exhausted { cidr: self.cidr.clone(), leased: self.count })?;
        self.set(offset);
        Ok(self.address(offset))
    }

    /// Takes note of an address in use. One of another range, or one that is never leased, is none of ours.
    pub(super) fn mark(&mut self, address: IpAddr) {
        if let Some(offset) = self.offset(address)
            && !self.is_leased(offset)
        {
            self.set(offset);
        }
    }

    /// Gives an address back. One that is free already stays free.
    pub(super) fn release(&mut self, address: IpAddr) {
        if let Some(offset) = self.offset(address)
            && self.is_leased(offset)
        {
            let (word, bit) = place(offset);
            self.leased[word] &= !bit;
            self.count -= 1;
        }
    }

    fn is_leased(&self, offset: u32) -> bool {
        let (word, bit) = place(offset);
        self.leased[word] & bit != 0
    }

    fn set(&mut self, offset: u32) {
        let (word, bit) = place(offset);
        self.leased[word] |= bit;
        self.count += 1;
        self.next = if offset + 1 < self.end { offset + 1 } else { RESERVED_FIRST };
    }

    fn address(&self, offset: u32) -> IpAddr {
        match self.network {
            IpAddr::V4(network) => IpAddr::V4(Ipv4Addr::from_bits(network.to_bits() + offset)),
            IpAddr::V6(network) => IpAddr::V6(Ipv6Addr::from_bits(network.to_bits() + u128::from(offset))),
        }
    }

    /// The place of an address that can be leased.
    fn offset(&self, address: IpAddr) -> Option<u32> {
        if !self.contains(address) {
            return None;
        }
        let offset = u32::try_from(number(address) - number(self.network)).ok()?;
        (RESERVED_FIRST..self.end).contains(&offset).then_some(offset)
    }
}

/// An address as a number.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// A number whose lowest bits, as many as given, are set.
fn low_bits(count: u32) -> u128 {
    if count >= u128::BITS { u128::MAX } else { (1 << count) - 1 }
}

/// Word and bit of an offset.
fn place(offset: u32) -> (usize, u64) {
    (usize::try_from(offset / WORD).expect("a usize has at least 32 bits on Linux"), 1 << (offset % WORD))
}

#[cfg(test)]
mod test {
    use super::*;

    fn range(cidr: &str) -> Range {
        Range::parse(cidr).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn leases_each_address_once_until_none_is_left() {
        for (cidr, first, last, size) in [
            ("10.7.0.16/28", "10.7.0.18", "10.7.0.30", 13),
            ("10.7.0.4/30", "10.7.0.6", "10.7.0.6", 1),
            ("fd00::10/124", "fd00::12", "fd00::1e", 13),
            ("10.8.0.0/16", "10.8.0.2", "10.8.255.254", 65_533),
            ("10.0.0.0/8", "10.0.0.2", "10.0.255.255", 65_534),
            ("fd00::/64", "fd00::2", "fd00::ffff", 65_534),
        ] {
            let mut range = range(cidr);
            let mut addresses: Vec<IpAddr> = (0..size).map(|_| range.take().unwrap()).collect();
            assert!(matches!(range.take(), Err(NetworkError::Exhausted { leased, .. }) if leased == size));
            addresses.sort_unstable();
            addresses.dedup();
            assert_eq!(addresses.len(), size, "{cidr}");
            assert_eq!((addresses[0], addresses[size - 1]), (ip(first), ip(last)), "{cidr}");
            assert!(addresses.iter().all(|address| range.contains(*address)));
            assert!(!addresses.contains(&range.gateway()));
        }
    }

    #[test]
    fn an_address_rests_before_it_is_used_again() {
        let mut range = range("10.7.0.0/28");
        let first = range.take().unwrap();
        range.release(first);
        let others: Vec<IpAddr> = (0..12).map(|_| range.take().unwrap()).collect();
        assert!(!others.contains(&first));
        assert_eq!(range.take().unwrap(), first);
    }

    #[test]
    fn a_full_range_gives_what_was_given_back() {
        let mut range = range("10.7.0.0/28");
        while range.take().is_ok() {}
        for _ in 0..3 {
            range.release(ip("10.7.0.9"));
        }
        assert_eq!(range.take().unwrap(), ip("10.7.0.9"));
        assert!(range.take().is_err());
    }

    #[test]
    fn what_is_used_is_not_leased_and_strangers_do_no_harm() {
        let mut range = range("10.7.0.0/29");
        for used in
            ["10.7.0.2", "10.7.0.2", "10.7.0.4", "10.9.0.3", "fd00::3", "10.7.0.0", "10.7.0.1", "10.7.0.7"]
        {
            range.mark(ip(used));
        }
        for stranger in ["10.7.0.1", "10.7.0.7", "10.9.0.3", "::1"] {
            range.release(ip(stranger));
        }
        let mut left: Vec<IpAddr> = std::iter::from_fn(|| range.take().ok()).collect();
        left.sort_unstable();
        assert_eq!(left, [ip("10.7.0.3"), ip("10.7.0.5"), ip("10.7.0.6")]);
    }

    #[test]
    fn refuses_ranges_that_are_none() {
        for (cidr, reason) in [
            ("", "prefix length"),
            ("10.0.0.0", "prefix length"),
            ("10.0.0/16", "IP address"),
            ("10.0.0.0/x", "number"),
            ("10.0.0.0/-1", "number"),
            ("10.0.0.0/31", "no room"),
            ("10.0.0.0/33", "no room"),
            ("fd00::/127", "no room"),
            ("10.0.0.1/16", "bits set"),
            ("fd00::1/64", "bits set"),
            ("127.0.0.0/8", "loopback"),
            ("224.0.0.0/8", "multicast"),
            ("0.0.0.0/0", "unspecified"),
        ] {
            let error = Range::parse(cidr).unwrap_err().to_string();
            assert!(error.contains(reason), "{cidr}: {error}");
        }
    }
}
