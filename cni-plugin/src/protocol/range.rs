//! Ranges of addresses and the order in which they are handed out.
//!
//! A network has one or more range sets; a container gets one address from each. A set is a pool of ranges of one
//! family (plugins/ipam/host-local/backend/allocator). Invariants: a range lies in its subnet and leaves out the
//! network and (IPv4) the broadcast address; ranges of a network do not overlap; the order is round robin from the
//! address given out last, so that an address is reused only after the whole set has gone by. That hides stale
//! neighbour and conntrack entries of the earlier owner.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netstate::{IpFamily, Prefix};

/// A run of addresses of one subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    subnet: Prefix,
    first: IpAddr,
    last: IpAddr,
    gateway: IpAddr,
}

/// Why a range or a range set is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRange {
    /// The subnet has no address to give.
    #[error("network {0} too small to allocate from: IPv4 needs a prefix of at most 30 bits, IPv6 of at most 126")]
    TooSmall(Prefix),
    /// A bound or the gateway is of the other family, or a bound is not in the subnet.
    #[error("{what} {addr} is not in network {subnet}")]
    Outside {
        /// `rangeStart`, `rangeEnd` or `gateway`.
        what: &'static str,
        /// The address.
        addr: IpAddr,
        /// The range's subnet.
        subnet: Prefix,
    },
    /// The first address comes after the last.
    #[error("rangeStart {0} comes after rangeEnd {1}")]
    Reversed(IpAddr, IpAddr),
    /// A set without ranges.
    #[error("empty range set")]
    Empty,
    /// A set of both families.
    #[error("mixed address families in one range set")]
    MixedFamilies,
    /// Two ranges share addresses.
    #[error("subnets {0} and {1} overlap")]
    Overlap(Prefix, Prefix),
}

impl Range {
    /// A range of `subnet`. Unless given, it goes from the first host to the last host, and the gateway is the first
    /// host; the gateway itself is never handed out. Bounds that are the network's or the broadcast address, as podman
    /// writes them, mean the hosts next to these.
    ///
    /// # Errors
    /// When the subnet is too small or an address does not fit into it.
    pub fn new(
        subnet: Prefix,
        first: Option<IpAddr>,
        last: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Self, InvalidRange> {
        let too_small = || InvalidRange::TooSmall(subnet);
        if subnet.width() - subnet.len() < 2 {
            return Err(too_small());
        }
        let first_host = subnet.nth(1).ok_or_else(too_small)?;
        let last_host = last_host(&subnet);
        let range = Self {
            subnet,
            first: first.filter(|addr| *addr != subnet.addr()).unwrap_or(first_host),
            last: last.filter(|addr| *addr != subnet.last()).unwrap_or(last_host),
            gateway: gateway.unwrap_or(first_host),
        };
        let outside = |what, addr| Err(InvalidRange::Outside { what, addr, subnet });
        if !subnet.contains(range.first) || range.first > last_host {
            return outside("rangeStart", range.first);
        }
        if !subnet.contains(range.last) || range.last < first_host {
            return outside("rangeEnd", range.last);
        }
        if range.gateway.is_ipv4() != subnet.is_ipv4() {
            return outside("gateway", range.gateway);
        }
        if range.first > range.last {
            return Err(InvalidRange::Reversed(range.first, range.last));
        }
        Ok(range)
    }

    /// The subnet; its length is the prefix length of addresses handed out.
    #[must_use]
    pub fn subnet(&self) -> Prefix {
        self.subnet
    }

    /// The subnet's gateway.
    #[must_use]
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// True when `addr` is between the bounds.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.first.is_ipv4() == addr.is_ipv4() && self.first <= addr && addr <= self.last
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || self.contains(other.last) || other.contains(self.first)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

fn last_host(subnet: &Prefix) -> IpAddr {
    match subnet.last() {
        IpAddr::V4(broadcast) => IpAddr::V4(Ipv4Addr::from(u32::from(broadcast).saturating_sub(1))),
        v6 @ IpAddr::V6(_) => v6,
    }
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

fn successor(addr: IpAddr) -> Option<IpAddr> {
    match addr {
        IpAddr::V4(a) => u32::from(a).checked_add(1).map(|n| IpAddr::V4(Ipv4Addr::from(n))),
        IpAddr::V6(a) => u128::from(a).checked_add(1).map(|n| IpAddr::V6(Ipv6Addr::from(n))),
    }
}

/// A pool of ranges of one family: a container gets one address of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    /// Checks that `ranges` are of one family and do not overlap.
    ///
    /// # Errors
    /// When they are, or when there are none.
    pub fn new(ranges: Vec<Range>) -> Result<Self, InvalidRange> {
        let set = Self(ranges);
        let family = set.0.first().ok_or(InvalidRange::Empty)?.subnet.family();
        if set.0.iter().any(|range| range.subnet.family() != family) {
            return Err(InvalidRange::MixedFamilies);
        }
        let mut rest = set.0.as_slice();
        while let Some((one, others)) = rest.split_first() {
            if let Some(other) = others.iter().find(|other| one.overlaps(other)) {
                return Err(InvalidRange::Overlap(one.subnet, other.subnet));
            }
            rest = others;
        }
        Ok(set)
    }

    /// True when both sets have some address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|one| other.0.iter().any(|two| one.overlaps(two)))
    }

    /// The family of its ranges.
    #[must_use]
    pub fn family(&self) -> Option<IpFamily> {
        self.0.first().map(|range| range.subnet.family())
    }

    /// The ranges, at least one.
    #[must_use]
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// The range that holds `addr`.
    #[must_use]
    pub fn range_of(&self, addr: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(addr))
    }

    /// True when `addr` is the gateway of one of the ranges.
    #[must_use]
    pub fn is_gateway(&self, addr: IpAddr) -> bool {
        self.0.iter().any(|range| range.gateway == addr)
    }

    /// How many addresses the set has to give.
    #[must_use]
    pub fn capacity(&self) -> u128 {
        let size = |range: &Range| number(range.last).saturating_sub(number(range.first)).saturating_add(1);
        let mut gateways: Vec<IpAddr> =
            self.0.iter().map(Range::gateway).filter(|gw| self.range_of(*gw).is_some()).collect();
        gateways.sort();
        gateways.dedup();
        let all = self.0.iter().map(size).fold(0, u128::saturating_add);
        gateways.iter().fold(all, |left, _| left.saturating_sub(1))
    }

    /// Every address of the set once, without gateways, beginning after `last_reserved`.
    #[must_use]
    pub fn candidates(&self, last_reserved: Option<IpAddr>) -> Candidates<'_> {
        let place = |addr: IpAddr| self.0.iter().position(|range| range.contains(addr)).map(|index| (index, addr));
        let start = self.0.first().map(|range| (0, range.first));
        let next = match last_reserved.and_then(place) {
            Some((index, addr)) => after(&self.0, index, addr),
            None => start,
        };
        Candidates { set: self, first: next, next }
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.0.iter().map(Range::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

/// The place after `addr` of range `index`, going round at the end of the set.
fn after(ranges: &[Range], index: usize, addr: IpAddr) -> Option<(usize, IpAddr)> {
    let range = ranges.get(index)?;
    match successor(addr).filter(|next| *next <= range.last) {
        Some(next) => Some((index, next)),
        None => {
            let index = if index + 1 < ranges.len() { index + 1 } else { 0 };
            ranges.get(index).map(|range| (index, range.first))
        }
    }
}

/// An address that belongs to an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The address.
    pub addr: IpAddr,
    /// Prefix length of its subnet.
    pub len: u8,
    /// The subnet's gateway.
    pub gateway: IpAddr,
}

/// Iterator over the addresses of a set, see [`RangeSet::candidates`].
#[derive(Debug)]
pub struct Candidates<'a> {
    set: &'a RangeSet,
    first: Option<(usize, IpAddr)>,
    next: Option<(usize, IpAddr)>,
}

impl Iterator for Candidates<'_> {
    type Item = (IpAddr, u8);

    /// The next address with the prefix length of its subnet.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (index, addr) = self.next?;
            self.next = after(&self.set.0, index, addr).filter(|place| Some(*place) != self.first);
            if !self.set.is_gateway(addr) {
                return self.set.0.get(index).map(|range| (addr, range.subnet.len()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn range(subnet: &str, first: &str, last: &str) -> Range {
        let bound = |text: &str| (!text.is_empty()).then(|| ip(text));
        Range::new(subnet.parse().unwrap(), bound(first), bound(last), None).unwrap()
    }

    fn set(ranges: &[(&str, &str, &str)]) -> RangeSet {
        RangeSet::new(ranges.iter().map(|(subnet, first, last)| range(subnet, first, last)).collect()).unwrap()
    }

    fn walk(set: &RangeSet, last: &str) -> Vec<String> {
        set.candidates(last.parse().ok()).map(|(addr, _)| addr.to_string()).collect()
    }

    #[test]
    fn a_slash_24_has_253_addresses_from_2_to_254() {
        let set = set(&[("172.7.21.0/24", "", "")]);
        let all = walk(&set, "");
        assert_eq!(all.len(), 253);
        assert_eq!((all.first().unwrap().as_str(), all.last().unwrap().as_str()), ("172.7.21.2", "172.7.21.254"));
        assert_eq!(set.to_string(), "172.7.21.1-172.7.21.254");
    }

    #[test]
    fn order_is_round_robin_from_the_last_reserved_address() {
        let one = set(&[("10.0.0.0/29", "", "")]);
        assert_eq!(walk(&one, "10.0.0.4"), ["10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        assert_eq!(walk(&one, "10.0.0.6")[0], "10.0.0.2", "wraps at the end");
        assert_eq!(walk(&one, "192.168.0.1")[0], "10.0.0.2", "a foreign address starts anew");
        let two = set(&[("10.0.0.0/29", "10.0.0.5", "10.0.0.6"), ("10.1.0.0/29", "10.1.0.1", "10.1.0.3")]);
        assert_eq!(walk(&two, "10.0.0.6"), ["10.1.0.2", "10.1.0.3", "10.0.0.5", "10.0.0.6"]);
        assert_eq!(walk(&two, "10.1.0.3")[0], "10.0.0.5", "goes from the last range to the first");
    }

    #[test]
    fn every_address_comes_once_wherever_the_walk_begins() {
        let set = set(&[("10.0.0.0/29", "", ""), ("10.1.0.0/30", "", "")]);
        let mut all = walk(&set, "");
        all.sort();
        for last in ["10.0.0.1", "10.0.0.2", "10.0.0.6", "10.1.0.1", "10.1.0.2", "::1"] {
            let mut walked = walk(&set, last);
            walked.sort();
            assert_eq!(walked, all, "{last}");
        }
        assert_eq!(u128::try_from(all.len()).unwrap(), set.capacity());
    }

    #[test]
    fn ipv6_uses_the_last_address_and_stops_at_the_end_of_the_space() {
        let top = set(&[("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126", "", "")]);
        assert_eq!(walk(&top, "").len(), 2);
        assert_eq!(set(&[("fd00::/64", "", "")]).candidates(None).next(), Some((ip("fd00::2"), 64)));
    }

    #[test]
    fn a_set_of_gateways_only_ends() {
        assert!(walk(&set(&[("10.0.0.0/30", "10.0.0.1", "10.0.0.1")]), "").is_empty());
    }

    #[test]
    fn network_and_broadcast_address_as_bounds_mean_the_hosts_next_to_them() {
        // podman network create --subnet 10.5.0.0/24 --ip-range 10.5.0.128/25 writes the broadcast address as the end.
        assert_eq!(range("10.5.0.0/24", "10.5.0.129", "10.5.0.255").to_string(), "10.5.0.129-10.5.0.254");
        assert_eq!(range("10.5.0.0/24", "10.5.0.0", "").to_string(), "10.5.0.1-10.5.0.254");
        let v6 = range("fd00::/120", "fd00::", "fd00::ff");
        assert_eq!(v6.to_string(), "fd00::1-fd00::ff", "IPv6 has no broadcast address");
        // The broadcast address of a part is an ordinary host of the whole.
        assert_eq!(range("10.5.0.0/16", "10.5.1.0", "10.5.1.255").to_string(), "10.5.1.0-10.5.1.255");
    }

    #[test]
    fn ranges_that_do_not_fit_are_refused() {
        let new = |subnet: &str, first: &str, last: &str, gw: &str| {
            let p = |t: &str| t.parse::<IpAddr>().ok();
            Range::new(subnet.parse().unwrap(), p(first), p(last), p(gw)).unwrap_err().to_string()
        };
        assert!(new("10.0.0.0/31", "", "", "").contains("too small"));
        assert!(new("fd00::/127", "", "", "").contains("too small"));
        assert_eq!(new("10.0.0.0/24", "10.1.0.1", "", ""), "rangeStart 10.1.0.1 is not in network 10.0.0.0/24");
        assert_eq!(new("10.0.0.0/24", "", "10.0.0.0", ""), "rangeEnd 10.0.0.0 is not in network 10.0.0.0/24");
        assert_eq!(new("10.0.0.0/24", "10.0.0.255", "", ""), "rangeStart 10.0.0.255 is not in network 10.0.0.0/24");
        assert_eq!(new("10.0.0.0/24", "", "", "fd00::1"), "gateway fd00::1 is not in network 10.0.0.0/24");
        assert_eq!(new("10.0.0.0/24", "10.0.0.9", "10.0.0.8", ""), "rangeStart 10.0.0.9 comes after rangeEnd 10.0.0.8");
    }

    #[test]
    fn sets_are_of_one_family_without_overlap() {
        let of = |ranges: Vec<Range>| RangeSet::new(ranges).unwrap_err();
        assert_eq!(of(vec![]), InvalidRange::Empty);
        assert_eq!(of(vec![range("10.0.0.0/24", "", ""), range("fd00::/64", "", "")]), InvalidRange::MixedFamilies);
        let wide = range("10.0.0.0/16", "", "");
        let inner = range("10.0.3.0/24", "", "");
        assert!(matches!(of(vec![wide.clone(), inner.clone()]), InvalidRange::Overlap(..)));
        assert!(matches!(of(vec![inner, wide]), InvalidRange::Overlap(..)));
        assert!(set(&[("10.0.0.0/24", "10.0.0.1", "10.0.0.9"), ("10.0.0.0/24", "10.0.0.10", "")]).ranges().len() == 2);
    }
}
