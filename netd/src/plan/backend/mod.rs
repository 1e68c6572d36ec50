//! The backends: how packets get from node to node, one room each.
//!
//! This is the only file that tells backends apart. Each room answers the same questions: its options in net-conf, its
//! lease attributes both ways, its device, what it takes off the MTU, what it refuses, the rows of this node and of a
//! peer, and which links and routes are its own. Invariants: a backend writes rows for leases of its own kind only, and
//! of host-gw nodes where it routes directly; a backend of flannel that this program does not have is refused by name,
//! with what to use instead.

mod alloc;
mod attrs;
mod auto;
mod checksum;
mod extension;
mod host_gw;
mod ipip;
mod ports;
pub(crate) mod vxlan;
mod wireguard;

use std::net::IpAddr;

use netstate::family::IpFamily;
use netstate::{IfName, Link, MacAddr, Prefix, Route, RouteKey};

use super::{LocalNode, PeerRows, Tables};
use crate::format::go_json::Object;
use crate::format::lease::{Lease, LeaseAttrs};
use crate::format::net_conf::Network;
pub(crate) use attrs::{BackendAttrs, TunnelEnd};
pub(crate) use checksum::known_fault;
use cluster::Problem;
pub(crate) use extension::FileText;
pub(crate) use ipip::Ipip;
pub(crate) use vxlan::{Vtep, Vxlan};
pub(crate) use wireguard::{End, Wireguard};

/// What `Backend.Type` may say.
const ACCEPTED: &str = "vxlan, host-gw, wireguard, ipip, auto, alloc or extension";

/// Backends of flannel that this program does not have, each with what to use instead.
const REFUSED: [(&str, &str); 6] = [
    ("udp", "it copies every packet through a process, and vxlan runs everywhere where it does: use vxlan"),
    ("ipsec", "it needs a key daemon of its own: use wireguard, which encrypts in the kernel"),
    ("tencent-vpc", "the cloud's routes are its own: use host-gw inside one network, vxlan beyond, or extension"),
    ("aws-vpc", DROPPED),
    ("gce", DROPPED),
    ("ali-vpc", DROPPED),
];

/// What to use instead of a cloud's routes that flannel does not write any more.
const DROPPED: &str = "flannel has dropped it, too: use host-gw inside one subnet, vxlan beyond, or extension";

/// How packets get from node to node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Backend {
    /// A VXLAN tunnel to each node.
    Vxlan(Vxlan),
    /// A plain route through each node's address; nodes share one layer 2 network.
    HostGw,
    /// IPv4 in IPv4.
    Ipip(Ipip),
    /// An encrypted tunnel to each node.
    Wireguard(Wireguard),
    /// Leases only.
    Alloc,
    /// Files for the operator's own program.
    Extension,
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
            vxlan::NAME => return Vxlan::take(options, problems).map(Self::Vxlan),
            host_gw::NAME => return Some(Self::HostGw),
            ipip::NAME => return Ipip::take(options, problems).map(Self::Ipip),
            wireguard::NAME => return Wireguard::take(options, problems).map(Self::Wireguard),
            alloc::NAME => return Some(Self::Alloc),
            extension::NAME => return extension::take(options, problems).map(|()| Self::Extension),
            auto::NAME => return auto::take(options, problems),
            other => match REFUSED.iter().find(|(name, _)| *name == other) {
                Some((_, instead)) => format!("{kind:?} is a backend of flannel that netd does not have: {instead}"),
                None => format!("{kind:?} is an unknown backend type"),
            },
        };
        problems.push(Problem::new("Backend.Type", message, ACCEPTED));
        None
    }

    /// What of its options it cannot do for all of `families`, if there is something.
    pub(crate) fn refuses_families(&self, families: impl Iterator<Item = IpFamily>) -> Option<Problem> {
        match self {
            Self::Vxlan(options) => options.refuses_families(families),
            Self::Ipip(_) => Ipip::refuses_families(families),
            Self::Wireguard(options) => options.refuses_families(families),
            Self::HostGw | Self::Alloc | Self::Extension => None,
        }
    }

    /// The same with plain routes to nodes that are reached without a router.
    fn routing_directly(self) -> Self {
        match self {
            Self::Vxlan(options) => Self::Vxlan(Vxlan { direct_routing: true, ..options }),
            Self::Ipip(_) => Self::Ipip(Ipip { direct_routing: true }),
            Self::Wireguard(options) => Self::Wireguard(Wireguard { direct_routing: true, ..options }),
            other => other,
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
            Self::Ipip(_) => ipip::NAME,
            Self::Wireguard(_) => wireguard::NAME,
            Self::Alloc => alloc::NAME,
            Self::Extension => extension::NAME,
        }
    }

    /// True when this node needs an identity of WireGuard.
    #[must_use]
    pub(crate) const fn needs_key(&self) -> bool {
        matches!(self, Self::Wireguard(_))
    }

    /// True when the operator's own program carries the packets.
    #[must_use]
    pub(crate) const fn needs_files(&self) -> bool {
        matches!(self, Self::Extension)
    }

    /// The device that carries the tunnel of one family, if there is one.
    #[must_use]
    pub(crate) fn device(&self, family: IpFamily) -> Option<IfName> {
        match self {
            Self::Vxlan(options) => options.device(family),
            Self::Ipip(_) => Ipip::device(family),
            Self::Wireguard(options) => Some(options.device(family)),
            Self::HostGw | Self::Alloc | Self::Extension => None,
        }
    }

    /// True when its data path and that of `other` can stand side by side: they are of different kinds, or have devices
    /// of different names.
    #[must_use]
    pub(crate) fn stands_beside(&self, other: &Self) -> bool {
        let devices = |backend: &Self| IpFamily::ALL.map(|family| backend.device(family));
        self.name() != other.name() || devices(self) != devices(other)
    }

    /// What of a change from `before`, beside which it cannot stand, costs packets between nodes; `None` if nothing does.
    #[must_use]
    pub(crate) fn interruption(&self, before: &Self) -> Option<String> {
        match (self, before) {
            (Self::Vxlan(after), Self::Vxlan(before)) => after.interruption(before).map(str::to_owned),
            (Self::Wireguard(after), Self::Wireguard(before)) => after.interruption(before),
            _ => None,
        }
    }

    /// Why a node cannot go from this to `wanted` while it runs.
    #[must_use]
    pub(crate) fn refuses_change(&self, wanted: &Self) -> Option<String> {
        match (self, wanted) {
            (Self::Vxlan(current), Self::Vxlan(wanted)) => current.refuses_change(wanted),
            _ => None,
        }
    }

    /// Hardware address of a tunnel device that is still to be made, the same after every restart.
    #[must_use]
    pub(crate) fn generated_mac(&self, public_ip: IpAddr, machine: &[u8]) -> MacAddr {
        match self {
            Self::Vxlan(options) => vxlan::generated_mac(public_ip, options.vni, machine),
            _ => vxlan::generated_mac(public_ip, 0, machine),
        }
    }

    /// How this node wants to be reached, for its lease.
    #[must_use]
    pub(crate) fn attrs(&self, local: &LocalNode) -> BackendAttrs {
        match self {
            Self::Vxlan(options) => BackendAttrs::Vxlan(options.vteps(local)),
            Self::HostGw => BackendAttrs::HostGw,
            Self::Ipip(_) => BackendAttrs::Ipip,
            Self::Wireguard(options) => BackendAttrs::Wireguard(Box::new(options.ends(local))),
            Self::Alloc => BackendAttrs::Alloc,
            Self::Extension => BackendAttrs::Extension(Box::new(extension::data(local))),
        }
    }

    /// MTU of Pod interfaces in bytes: what is left of the network below after the encapsulation of every family that
    /// this node has.
    #[must_use]
    pub(crate) fn pod_mtu(&self, local: &LocalNode) -> u32 {
        let left = |family| match self {
            Self::Vxlan(options) => options.mtu(family, local.mtu),
            Self::Ipip(_) => Ipip::mtu(local.mtu),
            Self::Wireguard(options) => options.mtu(local.mtu),
            Self::HostGw | Self::Alloc | Self::Extension => local.mtu,
        };
        local.places.families().map(left).min().unwrap_or(local.mtu)
    }

    /// What of its options cannot be had on this node, for an operator.
    #[must_use]
    pub(crate) fn remark(&self, local: &LocalNode) -> Option<String> {
        match self {
            Self::Vxlan(options) => options.remark(local),
            Self::Wireguard(options) => options.remark(local),
            Self::HostGw | Self::Ipip(_) | Self::Alloc | Self::Extension => None,
        }
    }

    /// Whether this node counts checksums in its tunnel itself, and why, for an operator; `None` without such a choice.
    #[must_use]
    pub(crate) fn checksum_workaround(&self, local: &LocalNode) -> Option<String> {
        match self {
            Self::Vxlan(options) => Some(options.checksums.describe(local.checksum_fault.as_deref())),
            Self::HostGw | Self::Ipip(_) | Self::Wireguard(_) | Self::Alloc | Self::Extension => None,
        }
    }

    /// Why this backend cannot run on a node with these addresses, if it cannot.
    #[must_use]
    pub(crate) fn refuses(&self, local: &LocalNode) -> Option<String> {
        match self {
            Self::HostGw => host_gw::refuses(local),
            _ => None,
        }
    }

    /// Rows that this node needs whatever the other nodes are.
    #[must_use]
    pub(crate) fn local_rows(&self, network: &Network, local: &LocalNode) -> Tables {
        match self {
            Self::Vxlan(options) => options.local_rows(local),
            Self::Ipip(_) => Ipip::local_rows(local),
            Self::Wireguard(options) => options.local_rows(local),
            Self::Extension => extension::local_rows(network, local),
            Self::HostGw | Self::Alloc => Tables::default(),
        }
    }

    /// The family of the node's address to which packets for its subnet of `family` go.
    pub(crate) fn over(&self, local: &LocalNode, attrs: &LeaseAttrs, family: IpFamily) -> IpFamily {
        if let Self::Wireguard(options) = self { options.over(local, attrs, family) } else { family }
    }

    /// What is odd about a lease that is used all the same, for an operator.
    #[must_use]
    pub(crate) fn remark_on(&self, lease: &Lease) -> Option<String> {
        match self {
            Self::Vxlan(options) => options.remark_on(&lease.attrs),
            _ => None,
        }
    }

    /// Adds the rows that make the subnets of another node reachable.
    ///
    /// # Errors
    /// Why that node cannot be reached through this backend; nothing is added then.
    pub(crate) fn lease_rows(&self, local: &LocalNode, lease: &Lease, rows: &mut PeerRows) -> Result<(), String> {
        let mark = rows.mark();
        let added = match (self, &lease.attrs.backend) {
            (Self::Wireguard(options), _) => options.lease_rows(local, lease, rows),
            (Self::Extension, BackendAttrs::Extension(data)) => {
                rows.files.push(extension::lease_row(lease, data));
                Ok(())
            }
            (Self::Extension, _) => Err("uses another backend than this network's extension".to_owned()),
            _ => {
                let subnets = lease.key.subnets();
                subnets.present().try_for_each(|(_, subnet)| self.peer_rows(local, *subnet, &lease.attrs, rows))
            }
        };
        added.inspect_err(|_| rows.truncate(mark))
    }

    fn peer_rows(
        &self,
        local: &LocalNode,
        subnet: Prefix,
        attrs: &LeaseAttrs,
        rows: &mut PeerRows,
    ) -> Result<(), String> {
        match self {
            Self::Vxlan(options) => options.peer_rows(local, subnet, attrs, rows),
            Self::HostGw => host_gw::peer_rows(local, subnet, attrs, rows),
            Self::Ipip(options) => options.peer_rows(local, subnet, attrs, rows),
            Self::Wireguard(_) | Self::Alloc | Self::Extension => Ok(()),
        }
    }

    /// True when nodes that are reached without a router get a plain route instead of the tunnel.
    #[must_use]
    pub(crate) const fn routes_directly(&self) -> bool {
        match self {
            Self::Vxlan(options) => options.direct_routing,
            Self::Ipip(options) => options.direct_routing,
            Self::Wireguard(options) => options.direct_routing,
            Self::HostGw | Self::Alloc | Self::Extension => false,
        }
    }

    /// What it cannot do over an interface that is in a VRF, with what to do; `None` if nothing.
    #[must_use]
    pub(crate) const fn lost_in_vrf(&self) -> Option<&'static str> {
        match self {
            Self::Vxlan(options) if options.direct_routing => Some(vxlan::DIRECT_IN_VRF),
            Self::HostGw => Some(host_gw::IN_VRF),
            Self::Ipip(_) => Some(ipip::IN_VRF),
            Self::Wireguard(_) => Some(wireguard::IN_VRF),
            Self::Vxlan(_) | Self::Alloc | Self::Extension => None,
        }
    }

    /// True when its devices listen in the VRF that their interface was in when they came up, whatever becomes of it.
    #[must_use]
    pub(crate) const fn keeps_vrf(&self) -> bool {
        matches!(self, Self::Vxlan(_))
    }

    /// The kernel's names of these kinds of links.
    pub(crate) const LINK_KINDS: [&'static str; 3] = ["vxlan", "ipip", "wireguard"];

    /// True for a link of the kind that this backend makes.
    #[must_use]
    pub(crate) const fn makes_link(link: &Link) -> bool {
        vxlan::makes_link(link) || ipip::makes_link(link) || wireguard::makes_link(link)
    }

    /// True when a route leads to a node: by way of a tunnel device or of the external interface.
    #[must_use]
    pub(crate) fn leads_to_nodes(local: &LocalNode, route: &Route) -> bool {
        route.link.as_ref().is_some_and(|link| *link == local.interface || is_tunnel(link))
    }

    /// True for the name of a tunnel's device, whichever backend's.
    #[must_use]
    pub(crate) fn owns_device(device: &IfName) -> bool {
        is_tunnel(device)
    }

    /// True for a device whose private key is kept in a file.
    #[must_use]
    pub(crate) fn has_key(device: &IfName) -> bool {
        wireguard::is_device(device)
    }

    /// True when a route can lead to a node although it has no next hop: WireGuard chooses the node by itself.
    #[must_use]
    pub(crate) fn needs_no_hop(route: &Route) -> bool {
        route.link.as_ref().is_some_and(wireguard::is_device)
    }

    /// True for a route to a whole Pod network as flannel makes it for this backend.
    #[must_use]
    pub(crate) fn flannel_made_whole(&self, key: &RouteKey, route: &Route) -> bool {
        match self {
            Self::Wireguard(options) => options.flannel_made_whole(key, route),
            _ => false,
        }
    }

    /// True for a route to a node as flannel makes it for this backend.
    #[must_use]
    pub(crate) fn flannel_made(&self, local: &LocalNode, key: &RouteKey, route: &Route) -> bool {
        match self {
            Self::Vxlan(options) => options.flannel_made(local, key, route),
            Self::HostGw => host_gw::flannel_made(local, key, route),
            Self::Ipip(options) => options.flannel_made(local, key, route),
            Self::Wireguard(_) | Self::Alloc | Self::Extension => false,
        }
    }
}

fn is_tunnel(link: &IfName) -> bool {
    vxlan::is_device(link) || ipip::is_device(link) || wireguard::is_device(link)
}

/// True when packets for the node at `public_ip`, which has `attrs` in a network of the backend `own`, need no tunnel.
fn is_direct(local: &LocalNode, public_ip: IpAddr, attrs: &LeaseAttrs, own: &str) -> bool {
    local.ways.direct.contains_key(&public_ip) && [own, host_gw::NAME].contains(&attrs.backend.name())
}

#[cfg(test)]
mod tests;
