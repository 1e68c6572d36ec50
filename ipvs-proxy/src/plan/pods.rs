//! `Pods`: how clients of one family are known for Pods.
//!
//! Invariant: whoever asks which clients are Pods asks this value, so that plans, rules and tracked connections agree.

use std::net::IpAddr;

use netstate::family::PerFamily;
use netstate::{IfName, Prefix};

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pods {
    /// By their address, which is in this network.
    Inside(Prefix),
    /// By the interface that their packets come in by, which has this name.
    From(IfName),
    /// By that interface, too, whose name begins with this.
    FromAny(IfName),
    /// By nothing: no client is.
    Unknown,
}

/// How they are known in each family that is served.
pub(crate) type PodsOfFamilies = PerFamily<Option<Pods>>;

impl Pods {
    /// All clients inside `networks`.
    #[must_use]
    pub(crate) fn inside(networks: PerFamily<Option<Prefix>>) -> PodsOfFamilies {
        networks.map(|_, network| network.map(Self::Inside))
    }

    /// True when a Pod can be known from other clients.
    #[must_use]
    pub(crate) const fn are_known(&self) -> bool {
        match self {
            Self::Inside(_) | Self::From(_) | Self::FromAny(_) => true,
            Self::Unknown => false,
        }
    }

    /// Whether a client with this address is a Pod; `None` where addresses do not say it.
    #[must_use]
    pub(crate) fn has(&self, client: IpAddr) -> Option<bool> {
        match self {
            Self::Inside(network) => Some(network.contains(client)),
            Self::From(_) | Self::FromAny(_) => None,
            Self::Unknown => Some(false),
        }
    }

    /// True when what comes in by this interface is a Pod's for that.
    #[must_use]
    pub(crate) fn are_behind(&self, link: &IfName) -> bool {
        match self {
            Self::From(name) => link == name,
            Self::FromAny(prefix) => link.as_str().starts_with(prefix.as_str()),
            Self::Inside(_) | Self::Unknown => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_has_pods_behind_it_where_it_is_what_they_are_known_by() {
        let name = |text: &str| IfName::new(text).unwrap();
        let links = || ["cali1", "cali12", "eth0"].map(name);
        for (pods, behind) in [
            (Pods::From(name("cali1")), [true, false, false]),
            (Pods::FromAny(name("cali")), [true, true, false]),
            (Pods::Inside("172.7.0.0/16".parse().unwrap()), [false; 3]),
            (Pods::Unknown, [false; 3]),
        ] {
            assert_eq!(links().map(|link| pods.are_behind(&link)), behind, "{pods:?}");
        }
    }
}
