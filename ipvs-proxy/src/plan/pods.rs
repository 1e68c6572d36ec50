//! `Pods`: how clients of one family are known for Pods.
//!
//! Invariant: whoever asks which clients are Pods asks this value, so that plans, rules and tracked connections agree.

use netstate::Prefix;
use netstate::family::PerFamily;

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pods {
    /// By their address, which is in this network.
    Inside(Prefix),
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
            Self::Inside(_) => true,
            Self::Unknown => false,
        }
    }
}
