//! `Prefix`: a network, `address/length`, of either family.
//!
//! Invariant: host bits are zero. `ipnetwork` keeps them (10.244.1.5/24 stays 10.244.1.5/24, and two such values
//! of one network compare unequal), which is why a network is never passed around as an `IpNetwork` here.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::IpFamily;

/// A network whose host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix(IpNetwork);

impl Ord for Prefix {
    /// IPv4 first, then by the address, then the longer network behind the shorter one: as numbers, because tables of
    /// thousands of rows are sorted by this.
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (IpNetwork::V4(a), IpNetwork::V4(b)) => (a.ip().to_bits(), a.prefix()).cmp(&(b.ip().to_bits(), b.prefix())),
            (IpNetwork::V6(a), IpNetwork::V6(b)) => (a.ip().to_bits(), a.prefix()).cmp(&(b.ip().to_bits(), b.prefix())),
            (IpNetwork::V4(_), IpNetwork::V6(_)) => Ordering::Less,
            (IpNetwork::V6(_), IpNetwork::V4(_)) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Prefix {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Why a text or a pair is no network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidPrefix(String);

impl fmt::Display for InvalidPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a network of the form 172.7.0.0/16 or fd00::/48", self.0)
    }
}

impl std::error::Error for InvalidPrefix {}

const fn host_bits(width: u32, len: u8) -> u32 {
    width.saturating_sub(u32::from_be_bytes([0, 0, 0, len]))
}

impl Prefix {
    /// An IPv4 network known when the program is written. A wrong one in a `const` does not compile.
    ///
    /// # Panics
    /// When `len` is over 32 or a host bit is set; use [`Prefix::new`] for what comes from outside.
    #[must_use]
    pub const fn v4_literal(addr: [u8; 4], len: u8) -> Self {
        let [a, b, c, d] = addr;
        let addr = Ipv4Addr::new(a, b, c, d);
        assert!(len <= 32, "an IPv4 prefix has 0 to 32 bits");
        assert!(host_bits(32, len) <= addr.to_bits().trailing_zeros(), "host bits of a network are zero");
        match Ipv4Network::new_checked(addr, len) {
            Some(net) => Self(IpNetwork::V4(net)),
            // No length that was asserted comes here.
            None => Self::v4_literal([0; 4], 0),
        }
    }

    /// An IPv6 network known when the program is written. A wrong one in a `const` does not compile.
    ///
    /// # Panics
    /// When `len` is over 128 or a host bit is set; use [`Prefix::new`] for what comes from outside.
    #[must_use]
    pub const fn v6_literal(addr: [u16; 8], len: u8) -> Self {
        let [a, b, c, d, e, f, g, h] = addr;
        let addr = Ipv6Addr::new(a, b, c, d, e, f, g, h);
        assert!(len <= 128, "an IPv6 prefix has 0 to 128 bits");
        assert!(host_bits(128, len) <= addr.to_bits().trailing_zeros(), "host bits of a network are zero");
        match Ipv6Network::new_checked(addr, len) {
            Some(net) => Self(IpNetwork::V6(net)),
            None => Self::v6_literal([0; 8], 0),
        }
    }

    /// The network of `addr` with `len` leading bits; host bits of `addr` are cleared.
    ///
    /// # Errors
    /// When `len` is over 32 (IPv4) or 128 (IPv6).
    pub fn new(addr: IpAddr, len: u8) -> Result<Self, InvalidPrefix> {
        IpNetwork::new(addr, len).map(Self::masked).map_err(|_| InvalidPrefix(format!("{addr}/{len}")))
    }

    /// The network that holds only `addr`: /32 or /128.
    #[must_use]
    pub fn host(addr: IpAddr) -> Self {
        Self(IpNetwork::from(addr))
    }

    fn masked(net: IpNetwork) -> Self {
        match net {
            IpNetwork::V4(n) => Self(IpNetwork::V4(Ipv4Network::new(n.network(), n.prefix()).unwrap_or(n))),
            IpNetwork::V6(n) => Self(IpNetwork::V6(Ipv6Network::new(n.network(), n.prefix()).unwrap_or(n))),
        }
    }

    /// The first address, all host bits zero.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        self.0.ip()
    }

    /// Number of leading network bits: 0 to 32 (IPv4) or 128 (IPv6).
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "the length of a prefix, not of a collection")]
    pub fn len(&self) -> u8 {
        self.0.prefix()
    }

    /// True for 0.0.0.0/0 and ::/0.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.len() == 0
    }

    /// True for an IPv4 network.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.0.is_ipv4()
    }

    /// IPv4 or IPv6.
    #[must_use]
    pub const fn family(&self) -> IpFamily {
        match self.0 {
            IpNetwork::V4(_) => IpFamily::V4,
            IpNetwork::V6(_) => IpFamily::V6,
        }
    }

    /// Number of bits of an address of this family: 32 or 128.
    #[must_use]
    pub const fn width(&self) -> u8 {
        self.family().width()
    }

    /// True when `addr` is of this family and inside.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.0.contains(addr)
    }

    /// True when every address of `other` is inside `self`.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.len() <= other.len() && self.contains(other.addr())
    }

    /// True when some address is in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The `n`th address, counted from the first; `None` past the end.
    #[must_use]
    pub fn nth(&self, n: u128) -> Option<IpAddr> {
        let addr = match self.addr() {
            IpAddr::V4(a) => {
                let sum = u32::from(a).checked_add(u32::try_from(n).ok()?)?;
                IpAddr::V4(Ipv4Addr::from(sum))
            }
            IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from(u128::from(a).checked_add(n)?)),
        };
        self.contains(addr).then_some(addr)
    }

    /// The number of `addr` in it, counted from the first; `None` outside. 10.4.7.21 is number 21 of 10.4.7.0/24.
    #[must_use]
    pub fn number_of(&self, addr: IpAddr) -> Option<u128> {
        let number = |addr: IpAddr| match addr {
            IpAddr::V4(addr) => u128::from(u32::from(addr)),
            IpAddr::V6(addr) => u128::from(addr),
        };
        self.contains(addr).then(|| number(addr).saturating_sub(number(self.addr())))
    }

    /// The `n`th part of it that has `len` bits, counted from the first; `None` past the end, and for a part that is
    /// larger than all. Part 21 of 172.7.0.0/16 with 24 bits is 172.7.21.0/24.
    #[must_use]
    pub fn subnet(&self, len: u8, n: u128) -> Option<Self> {
        let len = Some(len).filter(|len| *len >= self.len())?;
        let step = 1u128.checked_shl(u32::from(self.width().checked_sub(len)?))?;
        Self::new(self.nth(n.checked_mul(step)?)?, len).ok()
    }

    /// The last address (IPv4: the broadcast address, except in /31 and /32).
    #[must_use]
    pub fn last(&self) -> IpAddr {
        match self.0 {
            IpNetwork::V4(n) => IpAddr::V4(n.broadcast()),
            IpNetwork::V6(n) => IpAddr::V6(n.broadcast()),
        }
    }

    /// The network of the same length that follows; `None` after the last one of the address space.
    #[must_use]
    pub fn next(&self) -> Option<Self> {
        let addr = match self.last() {
            IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from(u32::from(a).checked_add(1)?)),
            IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from(u128::from(a).checked_add(1)?)),
        };
        Self::new(addr, self.len()).ok()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.len())
    }
}

impl FromStr for Prefix {
    type Err = InvalidPrefix;

    /// Accepts `address/length`; host bits are cleared. A bare address or a netmask is refused: in every format
    /// this product reads they are mistakes.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPrefix(s.to_owned());
        let (addr, len) = s.split_once('/').ok_or_else(invalid)?;
        if len.is_empty() || !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid());
        }
        let addr = addr.parse().map_err(|_| invalid())?;
        Self::new(addr, len.parse().map_err(|_| invalid())?).map_err(|_| invalid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &str) -> Prefix {
        s.parse().unwrap()
    }

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(p("172.7.21.9/24"), p("172.7.21.0/24"));
        assert_eq!(p("fd00::9/64").to_string(), "fd00::/64");
    }

    #[test]
    fn networks_are_in_the_order_of_family_address_and_length() {
        let sorted =
            ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.1.0/24", "172.7.0.0/16", "::/0", "fd00::/48", "fd00::/64"];
        let networks = sorted.map(p);
        for (a, one) in networks.iter().enumerate() {
            for (b, other) in networks.iter().enumerate() {
                assert_eq!(one.cmp(other), a.cmp(&b), "{one} {other}");
            }
        }
    }

    #[test]
    fn the_number_of_a_host_is_that_of_its_subnet() {
        for (network, addr, len, pods, subnet) in [
            ("10.4.7.0/24", "10.4.7.21", 24, "172.7.0.0/16", Some("172.7.21.0/24")),
            ("fd00:10:4:7::/64", "fd00:10:4:7::21", 64, "fd00:7::/48", Some("fd00:7:0:21::/64")),
            ("10.4.0.0/16", "10.4.7.21", 24, "172.7.0.0/16", None),
            ("10.4.7.0/24", "10.4.7.21", 12, "172.7.0.0/16", None),
            ("10.4.7.0/24", "10.4.7.21", 33, "172.7.0.0/16", None),
            ("0.0.0.0/0", "255.255.255.255", 32, "0.0.0.0/0", Some("255.255.255.255/32")),
            ("::/0", "ffff::", 128, "::/0", Some("ffff::/128")),
        ] {
            let number = p(network).number_of(addr.parse().unwrap()).unwrap();
            assert_eq!(p(pods).subnet(len, number), subnet.map(p), "{addr} in {network}");
        }
        assert_eq!(p("10.4.7.0/24").number_of("10.4.8.1".parse().unwrap()), None);
        assert_eq!(p("10.4.7.0/24").number_of("fd00::1".parse().unwrap()), None);
    }

    #[test]
    fn junk_is_refused() {
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/255.0.0.0",
            "10.0.0/8",
            "fd00::/129",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "a/8",
        ] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn literals_are_the_networks_they_name() {
        const PODS: Prefix = Prefix::v4_literal([172, 7, 0, 0], 16);
        assert_eq!(PODS, p("172.7.0.0/16"));
        assert_eq!(Prefix::v6_literal([0xfd00, 0, 0, 0, 0, 0, 0, 0], 48), p("fd00::/48"));
        assert!(std::panic::catch_unwind(|| Prefix::v4_literal([172, 7, 21, 9], 24)).is_err());
        assert!(std::panic::catch_unwind(|| Prefix::v4_literal([0; 4], 33)).is_err());
        assert!(std::panic::catch_unwind(|| Prefix::v6_literal([0; 8], 129)).is_err());
    }

    #[test]
    fn containment_and_overlap_follow_the_bits() {
        assert!(p("172.7.0.0/16").covers(&p("172.7.21.0/24")));
        assert!(!p("172.7.21.0/24").covers(&p("172.7.0.0/16")));
        assert!(p("172.7.21.0/24").overlaps(&p("172.7.0.0/16")));
        assert!(!p("172.7.21.0/24").overlaps(&p("172.7.22.0/24")));
        assert!(!p("0.0.0.0/0").covers(&p("::/0")));
    }

    #[test]
    fn addresses_are_counted_from_the_first_and_stop_at_the_last() {
        let net = p("172.7.21.0/24");
        assert_eq!(net.nth(1).unwrap().to_string(), "172.7.21.1");
        assert_eq!(net.last().to_string(), "172.7.21.255");
        assert_eq!(net.nth(256), None);
        assert_eq!(p("255.255.255.0/24").next(), None);
        assert_eq!(net.next(), Some(p("172.7.22.0/24")));
        assert_eq!(p("fd00::/64").nth(2).unwrap().to_string(), "fd00::2");
    }
}
