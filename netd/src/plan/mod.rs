//! From leases to kernel tables.
//!
//! Pure: values in, values out. Invariants: every row of the plan lies inside the Pod network or on this program's own
//! device; a lease that cannot be used is left out alone and named with its reason; the order of the leases does not
//! matter.

mod backend;
mod masquerade;
mod overlap;
mod peers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use netstate::nft;
use netstate::{
    Address, AddressKey, Fdb, FdbKey, IfName, Link, MacAddr, Neighbour, NeighbourKey, Prefix, Route, RouteKey,
    SysctlKey,
};

pub use backend::vxlan::{device, generated_mac};
pub use masquerade::{Masquerade, TABLE};
pub use overlap::{Overlap, overlaps};

use backend::{host_gw, vxlan};

use crate::format::lease::{BackendAttrs, Lease};
use crate::format::net_conf::{Backend, Network};

/// What is particular to this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalNode {
    /// The subnet it leases.
    pub subnet: Prefix,
    /// Its address as other nodes see it.
    pub public_ip: Ipv4Addr,
    /// The interface towards the other nodes.
    pub interface: IfName,
    /// That interface's own address; differs from `public_ip` behind NAT.
    pub address: Ipv4Addr,
    /// The network of that address.
    pub node_network: Prefix,
    /// That interface's MTU in bytes.
    pub mtu: u32,
    /// Hardware address of the tunnel device.
    pub vtep_mac: MacAddr,
    /// The kernel has IPv6, and with it IPv6 parameters of every link.
    pub has_ipv6: bool,
}

/// The desired rows of every kernel table that netd writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Links.
    pub links: BTreeMap<IfName, Link>,
    /// Addresses of those links.
    pub addresses: BTreeMap<AddressKey, Address>,
    /// Kernel parameters.
    pub sysctls: BTreeMap<SysctlKey, String>,
    /// Masquerade and forward rules.
    pub nft: BTreeMap<nft::RowKey, nft::Row>,
    /// Networks that foreign chains of the forward hook must not drop.
    pub forward: BTreeSet<Prefix>,
    /// Neighbours behind the tunnel.
    pub neighbours: BTreeMap<NeighbourKey, Neighbour>,
    /// Remote ends of the tunnel.
    pub fdb: BTreeMap<FdbKey, Fdb>,
    /// Routes to the other nodes' subnets.
    pub routes: BTreeMap<RouteKey, Route>,
}

/// A plan for one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What the kernel shall hold.
    pub tables: Tables,
    /// Leases that are not used, by subnet, with the reason.
    pub skipped: BTreeMap<Prefix, String>,
}

/// MTU of Pod interfaces in bytes: what is left of the network below after encapsulation.
#[must_use]
pub fn pod_mtu(backend: &Backend, interface_mtu: u32) -> u32 {
    match backend {
        Backend::Vxlan(options) => options.mtu.unwrap_or(interface_mtu).saturating_sub(netstate::mtu::VXLAN_OVER_IPV4),
        Backend::HostGw => interface_mtu,
    }
}

/// How this node wants to be reached, for its lease.
#[must_use]
pub fn backend_attrs(backend: &Backend, vtep_mac: MacAddr) -> BackendAttrs {
    match backend {
        Backend::Vxlan(options) => BackendAttrs::Vxlan { vni: options.vni, mac: vtep_mac },
        Backend::HostGw => BackendAttrs::HostGw,
    }
}

/// The tables that make every subnet of `leases` reachable from `local`. Its own lease may be among them.
#[must_use]
pub fn plan<'a>(
    network: &Network,
    local: &LocalNode,
    masquerade: Masquerade,
    leases: impl IntoIterator<Item = &'a Lease>,
) -> Plan {
    let (peers, mut skipped) = peers::usable(network, local, leases);
    let mut tables = match &network.backend {
        Backend::Vxlan(options) => vxlan::tables(options, local, &peers, &mut skipped),
        Backend::HostGw => host_gw::tables(local, &peers, &mut skipped),
    };
    if masquerade.forward {
        tables.forward.insert(network.network);
    }
    tables.nft = masquerade::rows(masquerade, network.network, local.subnet);
    // Pods reach the other nodes through this host: without forwarding every packet ends here.
    tables.sysctls.extend("net/ipv4/ip_forward".parse().ok().map(|key: SysctlKey| (key, "1".to_owned())));
    Plan { tables, skipped }
}

/// True for routes that netd made, or that a flannel before it made for the same purpose:
///
/// * our protocol number, with a next hop, in the main table;
/// * `proto boot` (flannel's netlink library sets nothing else) to a subnet inside the Pod network of a lease's length,
///   by way of a node: through a tunnel device, or through the external interface.
///
/// Routes that a person adds for good carry `proto static` and stay.
#[must_use]
pub fn owns_route(network: &Network, local: &LocalNode, key: &RouteKey, route: &Route) -> bool {
    /// RTPROT_BOOT (include/uapi/linux/rtnetlink.h).
    const BOOT: u8 = 3;
    if key.table != netstate::route::TABLE_MAIN || route.via.is_none() || local.subnet.covers(&key.dst) {
        return false;
    }
    let predecessor = || {
        let link = route.link.as_ref();
        let towards_nodes = link == Some(&local.interface) || link.is_some_and(vxlan::is_device);
        route.protocol == BOOT
            && network.network.covers(&key.dst)
            && key.dst.len() == network.subnet_len
            && towards_nodes
    };
    route.protocol == netstate::route::ROUTE_PROTOCOL || predecessor()
}

/// A route to `subnet` by way of `via`.
fn route(subnet: Prefix, via: IpAddr, link: &IfName, onlink: bool) -> (RouteKey, Route) {
    let key =
        RouteKey { table: netstate::route::TABLE_MAIN, dst: subnet, metric: netstate::route::spread_metric(&subnet) };
    let route = Route {
        kind: netstate::RouteKind::Unicast,
        via: Some(via),
        link: Some(link.clone()),
        onlink,
        src: None,
        scope: netstate::RouteScope::Universe,
        protocol: netstate::route::ROUTE_PROTOCOL,
        metrics: netstate::RouteMetrics::default(),
    };
    (key, route)
}

#[cfg(test)]
mod tests;
