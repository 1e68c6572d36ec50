//! What a lease says of its node's backend, in flannel's words.
//!
//! Invariant: what is read and written again is the same text; data that cannot be read are a problem of their family.

use std::fmt;

use netstate::MacAddr;
use netstate::family::{IpFamily, PerFamily};
use netstate::wireguard::PublicKey;
use serde_json::value::RawValue;

use super::{End, Vtep, alloc, extension, host_gw, ipip, vxlan, wireguard};
use crate::format::go_json::Object;
use crate::format::lease::DATA;
use cluster::Problem;

/// What makes a node's end of the tunnel that one and no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TunnelEnd {
    /// Hardware address of its device.
    Mac(MacAddr),
    /// Identity of its device.
    Key(PublicKey),
}

impl TunnelEnd {
    /// What it is, for an operator.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Mac(_) => "hardware address",
            Self::Key(_) => "public key",
        }
    }
}

impl fmt::Display for TunnelEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => mac.fmt(f),
            Self::Key(key) => key.fmt(f),
        }
    }
}

/// How a node wants to be reached, as its lease says it. Each lease has one, so what is large stands apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BackendAttrs {
    /// Through its VXLAN device of each family.
    Vxlan(PerFamily<Option<Vtep>>),
    /// By a route through its address.
    HostGw,
    /// Through its ipip device.
    Ipip,
    /// Through its WireGuard device of each family.
    Wireguard(Box<PerFamily<Option<End>>>),
    /// However its operator's program says; what that says.
    Extension(Box<PerFamily<Option<String>>>),
    /// Not at all, as far as flannel goes.
    Alloc,
    /// A backend that this program does not have, by name (may be empty).
    Other(String),
}

impl BackendAttrs {
    /// Reads a lease's members with the data of backend `kind`; what has problems is left out.
    pub(crate) fn take(kind: String, lease: &mut Object, problems: &mut PerFamily<Vec<Problem>>) -> Self {
        match kind.as_str() {
            vxlan::NAME => Self::Vxlan(PerFamily::from_fn(|family| {
                vxlan::take_attrs(DATA.get(family), lease, problems.get_mut(family))
            })),
            host_gw::NAME => Self::HostGw,
            ipip::NAME => Self::Ipip,
            wireguard::NAME => Self::Wireguard(Box::new(PerFamily::from_fn(|family| {
                wireguard::take_attrs(DATA.get(family), lease, problems.get_mut(family))
            }))),
            extension::NAME => Self::Extension(Box::new(PerFamily::from_fn(|family| {
                extension::take_attrs(DATA.get(family), lease, problems.get_mut(family))
            }))),
            alloc::LEASE_TYPE => Self::Alloc,
            _ => Self::Other(kind),
        }
    }

    /// The member `BackendType`; empty for leases without one.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Vxlan(_) => vxlan::NAME,
            Self::HostGw => host_gw::NAME,
            Self::Ipip => ipip::NAME,
            Self::Wireguard(_) => wireguard::NAME,
            Self::Extension(_) => extension::NAME,
            Self::Alloc => alloc::LEASE_TYPE,
            Self::Other(name) => name,
        }
    }

    /// The data of one family, to the byte as flannel writes it.
    pub(crate) fn data(&self, family: IpFamily) -> Option<Box<RawValue>> {
        match self {
            Self::Vxlan(vteps) => vteps.get(family).as_ref().and_then(vxlan::render_attrs),
            Self::Wireguard(ends) => ends.get(family).as_ref().and_then(wireguard::render_attrs),
            Self::Extension(data) => data.get(family).as_ref().and_then(extension::render_attrs),
            Self::HostGw | Self::Ipip | Self::Alloc | Self::Other(_) => None,
        }
    }

    /// Hardware address of the node's tunnel device of each family, if it has one.
    #[must_use]
    pub(crate) fn macs(&self) -> PerFamily<Option<MacAddr>> {
        match self {
            Self::Vxlan(vteps) => vteps.map(|_, vtep| vtep.map(|vtep| vtep.mac)),
            _ => PerFamily::default(),
        }
    }

    /// Identity of the node's tunnel device of each family, if it has one.
    #[must_use]
    pub(crate) fn keys(&self) -> PerFamily<Option<PublicKey>> {
        match self {
            Self::Wireguard(ends) => ends.map(|_, end| end.map(|end| end.key)),
            _ => PerFamily::default(),
        }
    }

    /// True when other nodes say the same of themselves, so that nothing but its address tells two of them apart. With host-gw
    /// that is the address of an interface, which two hosts on a link cannot both have.
    #[must_use]
    pub(crate) const fn is_common(&self) -> bool {
        matches!(self, Self::Ipip | Self::Alloc | Self::Extension(_))
    }

    /// True when devices can be made such that a lease with `self` is true of them as `other` is.
    #[must_use]
    pub(crate) fn can_be(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Vxlan(vteps), Self::Vxlan(before)) => {
                let vni = |_, vtep: Option<Vtep>| vtep.map(|vtep| vtep.vni);
                vteps.map(vni) == before.map(vni)
            }
            _ => false,
        }
    }

    /// The text for an operator.
    #[must_use]
    pub(crate) fn describe(&self) -> String {
        let mut ends: Vec<String> = self.keys().present().map(|(_, key)| key.to_string()).collect();
        ends.dedup();
        let ends = if ends.is_empty() { self.macs().list() } else { ends.join(",") };
        let name = if *self == Self::Alloc { alloc::NAME } else { self.name() };
        if ends.is_empty() { name.to_owned() } else { format!("{name} {ends}") }
    }
}
