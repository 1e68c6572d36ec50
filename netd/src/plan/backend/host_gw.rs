//! The `host-gw` backend: one route per node, by way of the node itself.
//!
//! Invariant: no device, no encapsulation. The nodes must share a layer 2 network; whether one does is the kernel's to
//! say when it is given the route.

use std::net::IpAddr;

use netstate::{Prefix, Route};

use super::BackendAttrs;
use crate::format::lease::LeaseAttrs;
use crate::plan::{LocalNode, Tables, route};

pub(super) const NAME: &str = "host-gw";

pub(super) fn refuses(local: &LocalNode) -> Option<String> {
    (local.public_ip != local.address).then(|| {
        format!(
            "backend host-gw: public IP {} differs from {} of interface {}: other nodes cannot route through an \
             address behind NAT; use backend vxlan or drop --public-ip",
            local.public_ip, local.address, local.interface
        )
    })
}

pub(super) fn peer_rows(local: &LocalNode, subnet: Prefix, attrs: &LeaseAttrs) -> Result<Tables, String> {
    if attrs.backend != BackendAttrs::HostGw {
        return Err(format!("{} uses another backend than this network's host-gw", attrs.public_ip));
    }
    let (key, value) = route(subnet, IpAddr::V4(attrs.public_ip), &local.interface, false);
    Ok(Tables { routes: [(key, value)].into(), ..Tables::default() })
}

/// flannel's route (pkg/backend/route_network.go): by way of a node on the external interface's own network.
pub(super) fn flannel_made(local: &LocalNode, route: &Route) -> bool {
    route.link.as_ref() == Some(&local.interface)
        && !route.onlink
        && route.via.is_some_and(|via| local.node_network.contains(via) && via != IpAddr::V4(local.address))
}
