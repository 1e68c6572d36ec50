//! `IpFamily`: IPv4 or IPv6, and `PerFamily`: one value for each of them.
//!
//! Invariant: whatever differs between the families is a method here or a value in a `PerFamily`, never a `bool`; a new
//! place that must know both cannot forget one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Prefix;

/// A version of the Internet Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// IPv4 (RFC 791).
    V4,
    /// IPv6 (RFC 8200).
    V6,
}

impl IpFamily {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub const fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// True for IPv4.
    #[must_use]
    pub const fn is_v4(self) -> bool {
        matches!(self, Self::V4)
    }

    /// Bits of an address: 32 or 128.
    #[must_use]
    pub const fn width(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The number in the kernel's interfaces: AF_INET 2, AF_INET6 10 (include/linux/socket.h).
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// The family of a number of the kernel's interfaces, if it is one of the two.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            2 => Some(Self::V4),
            10 => Some(Self::V6),
            _ => None,
        }
    }

    /// Smallest MTU of a link that carries the family, in bytes.
    #[must_use]
    pub const fn min_mtu(self) -> u32 {
        match self {
            Self::V4 => crate::mtu::MIN_IPV4,
            Self::V6 => crate::mtu::MIN_IPV6,
        }
    }

    /// The address of nobody: 0.0.0.0 or `::`.
    #[must_use]
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// The network of all addresses: 0.0.0.0/0 or `::/0`.
    #[must_use]
    pub const fn any(self) -> Prefix {
        match self {
            Self::V4 => Prefix::v4_literal([0; 4], 0),
            Self::V6 => Prefix::v6_literal([0; 8], 0),
        }
    }

    /// The host's own network: 127.0.0.0/8 or `::1/128`.
    #[must_use]
    pub const fn loopback(self) -> Prefix {
        match self {
            Self::V4 => Prefix::v4_literal([127, 0, 0, 0], 8),
            Self::V6 => Prefix::v6_literal([0, 0, 0, 0, 0, 0, 0, 1], 128),
        }
    }

    /// The network of multicast groups: 224.0.0.0/4 (RFC 5771) or ff00::/8 (RFC 4291 §2.7).
    #[must_use]
    pub const fn multicast(self) -> Prefix {
        match self {
            Self::V4 => Prefix::v4_literal([224, 0, 0, 0], 4),
            Self::V6 => Prefix::v6_literal([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
        }
    }
}

impl From<IpAddr> for IpFamily {
    fn from(addr: IpAddr) -> Self {
        Self::of(addr)
    }
}

impl From<&Prefix> for IpFamily {
    fn from(prefix: &Prefix) -> Self {
        prefix.family()
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One value for each family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PerFamily<T> {
    /// Of IPv4.
    pub v4: T,
    /// Of IPv6.
    pub v6: T,
}

impl<T> PerFamily<T> {
    /// The two values.
    pub const fn new(v4: T, v6: T) -> Self {
        Self { v4, v6 }
    }

    /// What `make` gives for each family, IPv4 first.
    pub fn from_fn(mut make: impl FnMut(IpFamily) -> T) -> Self {
        Self { v4: make(IpFamily::V4), v6: make(IpFamily::V6) }
    }

    /// The value of one family.
    pub const fn get(&self, family: IpFamily) -> &T {
        match family {
            IpFamily::V4 => &self.v4,
            IpFamily::V6 => &self.v6,
        }
    }

    /// The value of one family, to be changed.
    pub const fn get_mut(&mut self, family: IpFamily) -> &mut T {
        match family {
            IpFamily::V4 => &mut self.v4,
            IpFamily::V6 => &mut self.v6,
        }
    }

    /// Both with their family, IPv4 first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (IpFamily, &T)> + use<'_, T> {
        [(IpFamily::V4, &self.v4), (IpFamily::V6, &self.v6)].into_iter()
    }

    /// Both with their family, to be changed, IPv4 first.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = (IpFamily, &mut T)> + use<'_, T> {
        [(IpFamily::V4, &mut self.v4), (IpFamily::V6, &mut self.v6)].into_iter()
    }

    /// Both, IPv4 first.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &T> + use<'_, T> {
        [&self.v4, &self.v6].into_iter()
    }

    /// References to both.
    pub const fn as_ref(&self) -> PerFamily<&T> {
        PerFamily { v4: &self.v4, v6: &self.v6 }
    }

    /// What `change` makes of each.
    pub fn map<U>(self, mut change: impl FnMut(IpFamily, T) -> U) -> PerFamily<U> {
        PerFamily { v4: change(IpFamily::V4, self.v4), v6: change(IpFamily::V6, self.v6) }
    }

    /// What `change` makes of each.
    ///
    /// # Errors
    /// The first one that `change` returns.
    pub fn try_map<U, E>(self, mut change: impl FnMut(IpFamily, T) -> Result<U, E>) -> Result<PerFamily<U>, E> {
        Ok(PerFamily { v4: change(IpFamily::V4, self.v4)?, v6: change(IpFamily::V6, self.v6)? })
    }

    /// Each together with the one of `other`.
    pub fn zip<U>(self, other: PerFamily<U>) -> PerFamily<(T, U)> {
        PerFamily { v4: (self.v4, other.v4), v6: (self.v6, other.v6) }
    }
}

impl<T> PerFamily<Option<T>> {
    /// The value of `family` only.
    pub fn only(family: IpFamily, value: T) -> Self {
        match family {
            IpFamily::V4 => Self { v4: Some(value), v6: None },
            IpFamily::V6 => Self { v4: None, v6: Some(value) },
        }
    }

    /// The values that are there, with their family.
    pub fn present(&self) -> impl DoubleEndedIterator<Item = (IpFamily, &T)> + use<'_, T> {
        self.iter().filter_map(|(family, value)| value.as_ref().map(|value| (family, value)))
    }

    /// The families that have a value.
    pub fn families(&self) -> impl DoubleEndedIterator<Item = IpFamily> + use<'_, T> {
        self.present().map(|(family, _)| family)
    }

    /// True when neither family has a value.
    pub const fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    /// The values that are there as one text, the families apart by a comma.
    #[must_use]
    pub fn list(&self) -> String
    where
        T: fmt::Display,
    {
        self.present().map(|(_, value)| value.to_string()).collect::<Vec<_>>().join(",")
    }

    /// True when both families have a value.
    pub const fn is_dual(&self) -> bool {
        self.v4.is_some() && self.v6.is_some()
    }
}

impl<T> PerFamily<Vec<T>> {
    /// `items` apart by the family that `family` says, each in the order they came.
    pub fn partition(items: impl IntoIterator<Item = T>, family: impl Fn(&T) -> IpFamily) -> Self {
        let mut parts = Self { v4: Vec::new(), v6: Vec::new() };
        for item in items {
            parts.get_mut(family(&item)).push(item);
        }
        parts
    }
}

impl<T> IntoIterator for PerFamily<T> {
    type Item = (IpFamily, T);
    type IntoIter = std::array::IntoIter<(IpFamily, T), 2>;

    fn into_iter(self) -> Self::IntoIter {
        [(IpFamily::V4, self.v4), (IpFamily::V6, self.v6)].into_iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_differs_between_families_is_known_of_both() {
        let facts = |family: IpFamily| {
            let (any, own, groups) = (family.any(), family.loopback(), family.multicast());
            format!("{family} {any} {own} {groups} {} {}", family.unspecified(), family.min_mtu())
        };
        assert_eq!(facts(IpFamily::V4), "IPv4 0.0.0.0/0 127.0.0.0/8 224.0.0.0/4 0.0.0.0 68");
        assert_eq!(facts(IpFamily::V6), "IPv6 ::/0 ::1/128 ff00::/8 :: 1280");
        for family in IpFamily::ALL {
            assert_eq!(IpFamily::of(family.unspecified()), family);
            assert_eq!(family.any().family(), family);
            assert_eq!(family.width(), family.any().width());
            assert_eq!(IpFamily::from_number(family.number()), Some(family));
            assert_ne!(family.other(), family);
        }
        assert_eq!(IpFamily::from_number(17), None);
    }

    #[test]
    fn a_missing_family_is_not_among_the_present_ones() {
        let one = PerFamily::only(IpFamily::V6, "fd00::/48");
        assert_eq!(one.present().collect::<Vec<_>>(), [(IpFamily::V6, &"fd00::/48")]);
        assert!(!one.is_empty() && !one.is_dual());
        assert!(PerFamily::<Option<u8>>::default().is_empty());
        assert_eq!((one.list(), PerFamily::new(Some(4), Some(6)).list()), ("fd00::/48".to_owned(), "4,6".to_owned()));
        let failed = PerFamily::new(1, 2).try_map(|family, n| if family.is_v4() { Ok(n) } else { Err(n) });
        assert_eq!(failed, Err(2));
    }

    proptest! {
        #[test]
        fn partition_loses_nothing_and_keeps_the_order(items in prop::collection::vec((any::<bool>(), any::<u8>()), 0..20)) {
            let family = |item: &(bool, u8)| if item.0 { IpFamily::V4 } else { IpFamily::V6 };
            let parts = PerFamily::partition(items.clone(), family);
            for (of, part) in parts.iter() {
                let expected: Vec<_> = items.iter().copied().filter(|item| family(item) == of).collect();
                prop_assert_eq!(part, &expected);
            }
        }

        #[test]
        fn get_map_and_iteration_agree(v4 in any::<u8>(), v6 in any::<u8>()) {
            let pair = PerFamily::new(v4, v6);
            prop_assert_eq!(PerFamily::from_fn(|family| *pair.get(family)), pair);
            let listed: Vec<_> = pair.iter().map(|(family, value)| (family, *value)).collect();
            prop_assert_eq!(pair.into_iter().collect::<Vec<_>>(), listed);
            prop_assert_eq!(pair.map(|family, value| (family, value)).v6, (IpFamily::V6, v6));
            let mut changed = pair;
            *changed.get_mut(IpFamily::V4) = 0;
            prop_assert_eq!((changed.v4, changed.v6), (0, v6));
        }
    }
}
