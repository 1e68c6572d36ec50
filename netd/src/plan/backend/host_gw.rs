//! The `host-gw` backend: one route per node, by way of the node itself.
//!
//! Invariant: no device, no encapsulation. The nodes must share a layer 2 network; whether one does is the kernel's to
//! say when it is given the route.

use std::net::IpAddr;

use netstate::{Prefix, Route, RouteKey};

use super::{Backend, BackendAttrs};
use crate::format::lease::LeaseAttrs;
use crate::plan::{LocalNode, PeerRows, route};

pub(super) const NAME: &str = "host-gw";

/// What it loses over an interface in a VRF.
pub(super) const IN_VRF: &str = "packets from other nodes meet the VRF's routing table first, and a default route there takes them away from \
     this node's Pods; use backend vxlan, or add a route to them there (ip route add SUBNET dev BRIDGE vrf VRF)";

impl Backend {
    /// True when packets of Pods come in by the interface towards the other nodes as they are, from some of these at least.
    #[must_use]
    pub(crate) const fn enters_plainly(&self) -> bool {
        matches!(self, Self::HostGw) || self.routes_directly()
    }
}

pub(super) fn refuses(local: &LocalNode) -> Option<String> {
    let mut behind_nat = local.places.present().filter(|(_, place)| place.public_ip != place.address);
    behind_nat.next().map(|(_, place)| {
        format!(
            "backend host-gw: public IP {} differs from {} of interface {}: other nodes cannot route through an \
             address behind NAT; use backend vxlan or drop --public-ip",
            place.public_ip, place.address, local.interface
        )
    })
}

pub(super) fn peer_rows(
    local: &LocalNode,
    subnet: Prefix,
    attrs: &LeaseAttrs,
    rows: &mut PeerRows,
) -> Result<(), String> {
    let public_ip = attrs.public_ip(subnet.family())?;
    if attrs.backend != BackendAttrs::HostGw {
        return Err(format!("{public_ip} uses another backend than this network's host-gw"));
    }
    rows.routes.push(direct_route(local, subnet, public_ip));
    Ok(())
}

/// A plain route to `subnet` by way of its node.
pub(super) fn direct_route(local: &LocalNode, subnet: Prefix, public_ip: IpAddr) -> (RouteKey, Route) {
    let link = local.ways.direct.get(&public_ip).unwrap_or(&local.interface);
    route(subnet, public_ip, link, false)
}

/// flannel's route (pkg/backend/route_network.go): by way of a node that the external interface reaches without a router.
pub(super) fn flannel_made(local: &LocalNode, key: &RouteKey, route: &Route) -> bool {
    let Some(place) = local.places.get(key.dst.family()) else { return false };
    route.link.as_ref() == Some(&local.interface)
        && !route.onlink
        && route.via.is_some_and(|via| {
            via != place.address && (place.node_network.contains(via) || local.ways.direct.contains_key(&via))
        })
}
