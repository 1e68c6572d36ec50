//! The backends: how packets get from node to node, one room each.
//!
//! This is the only file that tells backends apart. Each room answers the same questions: its options in net-conf, its
//! lease attributes both ways, its device, what it takes off the MTU, what it refuses, the rows of this node and of a
//! peer, and which links and routes are its own. Invariants: a backend writes rows for leases of its own kind only; a
//! backend of flannel that this program does not have is refused by name.

pub(crate) mod host_gw;
pub(crate) mod vxlan;

use std::net::IpAddr;

use netstate::family::{IpFamily, PerFamily};
use netstate::{IfName, Link, MacAddr, Prefix, Route, RouteKey};
use serde_json::value::RawValue;

use super::{LocalNode, Tables};
use crate::format::go_json::Object;
use crate::format::lease::{DATA, LeaseAttrs};
use cluster::Problem;
pub(crate) use vxlan::{Vtep, Vxlan};

/// What `Backend.Type` may say.
const ACCEPTED: &str = "vxlan or host-gw";

/// How packets get from node to node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Backend {
    /// A VXLAN tunnel to each node.
    Vxlan(Vxlan),
    /// A plain route through each node's address; nodes share one layer 2 network.
    HostGw,
}

/// How a node wants to be reached, as its lease says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BackendAttrs {
    /// Through its VXLAN device of each family.
    Vxlan(PerFamily<Option<Vtep>>),
    /// By a route through its address.
    HostGw,
    /// A backend that this program does not have, by name (may be empty).
    Other(String),
}

impl Backend {
    /// The backend that is meant when net-conf names none.
    #[must_use]
    pub(crate) fn absent() -> Self {
        Self::Vxlan(Vxlan::default())
    }

    /// Reads the options of backend `kind`; `None` when they have problems or there is no such backend.
    pub(crate) fn take(kind: &str, options: &mut Object, problems: &mut Vec<Problem>) -> Option<Self> {
        let message = match kind.to_ascii_lowercase().as_str() {
            "vxlan" => return Vxlan::take(options, problems).map(Self::Vxlan),
            "host-gw" => return Some(Self::HostGw),
            "udp" | "ipip" | "wireguard" | "ipsec" | "extension" | "alloc" | "tencent-vpc" => {
                format!("{kind:?} is a backend of flannel that this netd does not have")
            }
            _ => format!("{kind:?} is an unknown backend type"),
        };
        problems.push(Problem::new("Backend.Type", message, ACCEPTED));
        None
    }

    /// What of its options it cannot do for all of `families`, if there is something.
    pub(crate) fn refuses_families(&self, families: impl Iterator<Item = IpFamily>) -> Option<Problem> {
        match self {
            Self::Vxlan(options) => options.refuses_families(families),
            Self::HostGw => None,
        }
    }

    /// The accepted form of `Backend.Type`.
    pub(crate) const fn accepted() -> &'static str {
        ACCEPTED
    }

    /// The backend's name in net-conf and in leases.
    #[must_use]
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => vxlan::NAME,
            Self::HostGw => host_gw::NAME,
        }
    }

    /// The device that carries the tunnel of one family, if there is one.
    #[must_use]
    pub(crate) fn device(&self, family: IpFamily) -> Option<IfName> {
        match self {
            Self::Vxlan(options) => options.device(family),
            Self::HostGw => None,
        }
    }

    /// Hardware address of a tunnel device that is still to be made, the same after every restart.
    #[must_use]
    pub(crate) fn generated_mac(&self, public_ip: IpAddr) -> MacAddr {
        match self {
            Self::Vxlan(options) => vxlan::generated_mac(public_ip, options.vni),
            Self::HostGw => vxlan::generated_mac(public_ip, 0),
        }
    }

    /// How this node wants to be reached, for its lease.
    #[must_use]
    pub(crate) fn attrs(&self, local: &LocalNode) -> BackendAttrs {
        match self {
            Self::Vxlan(options) => BackendAttrs::Vxlan(options.vteps(local)),
            Self::HostGw => BackendAttrs::HostGw,
        }
    }

    /// MTU of Pod interfaces in bytes: what is left of the network below after the encapsulation of every family that
    /// this node has.
    #[must_use]
    pub(crate) fn pod_mtu(&self, local: &LocalNode) -> u32 {
        let left = |family| match self {
            Self::Vxlan(options) => options.mtu(family, local.mtu),
            Self::HostGw => local.mtu,
        };
        local.places.families().map(left).min().unwrap_or(local.mtu)
    }

    /// What of its options cannot be had on this node, for an operator.
    #[must_use]
    pub(crate) fn remark(&self, local: &LocalNode) -> Option<String> {
        match self {
            Self::Vxlan(options) => options.remark(local),
            Self::HostGw => None,
        }
    }

    /// Why this backend cannot run on a node with these addresses, if it cannot.
    #[must_use]
    pub(crate) fn refuses(&self, local: &LocalNode) -> Option<String> {
        match self {
            Self::Vxlan(_) => None,
            Self::HostGw => host_gw::refuses(local),
        }
    }

    /// Rows that this node needs whatever the other nodes are.
    #[must_use]
    pub(crate) fn local_rows(&self, local: &LocalNode) -> Tables {
        match self {
            Self::Vxlan(options) => options.local_rows(local),
            Self::HostGw => Tables::default(),
        }
    }

    /// Rows that make `subnet` of another node reachable.
    ///
    /// # Errors
    /// Why that node cannot be reached through this backend.
    pub(crate) fn peer_rows(&self, local: &LocalNode, subnet: Prefix, attrs: &LeaseAttrs) -> Result<Tables, String> {
        match self {
            Self::Vxlan(options) => options.peer_rows(local, subnet, attrs),
            Self::HostGw => host_gw::peer_rows(local, subnet, attrs),
        }
    }

    /// True for a link of the kind that this backend makes.
    #[must_use]
    pub(crate) fn makes_link(link: &Link) -> bool {
        vxlan::makes_link(link)
    }

    /// True when a route leads to a node: by way of a tunnel device or of the external interface.
    #[must_use]
    pub(crate) fn leads_to_nodes(local: &LocalNode, route: &Route) -> bool {
        route.link.as_ref().is_some_and(|link| *link == local.interface || vxlan::is_device(link))
    }

    /// True for a route to a node as flannel makes it for this backend.
    #[must_use]
    pub(crate) fn flannel_made(&self, local: &LocalNode, key: &RouteKey, route: &Route) -> bool {
        match self {
            Self::Vxlan(options) => options.flannel_made(local, key, route),
            Self::HostGw => host_gw::flannel_made(local, key, route),
        }
    }
}

impl BackendAttrs {
    /// Reads a lease's members with the data of backend `kind`; what has problems is left out.
    pub(crate) fn take(kind: String, lease: &mut Object, problems: &mut PerFamily<Vec<Problem>>) -> Self {
        match kind.as_str() {
            vxlan::NAME => Self::Vxlan(PerFamily::from_fn(|family| {
                vxlan::take_attrs(DATA.get(family), lease, problems.get_mut(family))
            })),
            host_gw::NAME => Self::HostGw,
            _ => Self::Other(kind),
        }
    }

    /// The member `BackendType`; empty for leases without one.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Vxlan(_) => vxlan::NAME,
            Self::HostGw => host_gw::NAME,
            Self::Other(name) => name,
        }
    }

    /// The data of one family, to the byte as flannel writes it.
    pub(crate) fn data(&self, family: IpFamily) -> Option<Box<RawValue>> {
        match self {
            Self::Vxlan(vteps) => vteps.get(family).as_ref().and_then(vxlan::render_attrs),
            Self::HostGw | Self::Other(_) => None,
        }
    }

    /// Hardware address of the node's tunnel device of each family, if it has one.
    #[must_use]
    pub(crate) fn macs(&self) -> PerFamily<Option<MacAddr>> {
        match self {
            Self::Vxlan(vteps) => vteps.map(|_, vtep| vtep.map(|vtep| vtep.mac)),
            Self::HostGw | Self::Other(_) => PerFamily::default(),
        }
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
        let macs = self.macs();
        if macs.is_empty() { self.name().to_owned() } else { format!("{} {}", self.name(), macs.list()) }
    }
}
