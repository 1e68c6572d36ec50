//! The `ipip` backend: IPv4 in IPv4 through one device, and one route per node.
//!
//! The route says where outer packets go: by way of the node's address on our device, `onlink` (flannel's rows,
//! pkg/backend/ipip/ipip.go). Invariant: the device has this node's address as its own end, so packets for it come here
//! and not to `tunl0`, which the module makes by itself and which is never touched.

use std::net::IpAddr;

use netstate::family::IpFamily;
use netstate::{Address, AddressKey, IfName, IpipOptions, Link, LinkKind, Prefix, Route, RouteKey};

use super::{BackendAttrs, host_gw};
use crate::format::go_json::{BOOL, Object};
use crate::format::lease::LeaseAttrs;
use crate::plan::{LocalNode, PeerRows, Tables, route};
use cluster::Problem;

pub(super) const NAME: &str = "ipip";

/// What it loses over an interface in a VRF.
pub(super) const IN_VRF: &str = "ipip takes the main routing table to the other nodes, and they are in the VRF's: lead it there (ip route add \
     NODES dev INTERFACE, outside of the VRF, on each node), or use backend vxlan";

/// flannel's name.
const DEVICE: IfName = IfName::literal("flannel.ipip");

/// Options of the `ipip` backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ipip {
    /// Use a plain route to nodes that are reached without a router.
    pub direct_routing: bool,
}

impl Ipip {
    /// Reads the options of net-conf.
    pub(super) fn take(backend: &mut Object, problems: &mut Vec<Problem>) -> Option<Self> {
        let known = problems.len();
        let direct_routing = backend.take("DirectRouting", BOOL, problems).unwrap_or(false);
        (problems.len() == known).then_some(Self { direct_routing })
    }

    pub(crate) const fn device(family: IpFamily) -> Option<IfName> {
        match family {
            IpFamily::V4 => Some(DEVICE),
            IpFamily::V6 => None,
        }
    }

    pub(super) fn refuses_families(mut families: impl Iterator<Item = IpFamily>) -> Option<Problem> {
        families.find(|family| *family == IpFamily::V6)?;
        let message = "ipip carries IPv4 only";
        Some(Problem::new("Backend.Type", message, "vxlan, host-gw or wireguard in a network with IPv6"))
    }

    pub(super) const fn mtu(interface_mtu: u32) -> u32 {
        interface_mtu.saturating_sub(netstate::mtu::IPIP)
    }

    /// The device with its address; there even before the first lease is known.
    pub(super) fn local_rows(local: &LocalNode) -> Tables {
        let mut tables = Tables::default();
        let Some(place) = &local.places.v4 else { return tables };
        let IpAddr::V4(address) = place.address else { return tables };
        let kind = LinkKind::Ipip(IpipOptions { local: Some(address), remote: None });
        let link = Link { kind, mtu: Some(Self::mtu(local.mtu)), mac: None, up: true, master: None };
        tables.links.insert(DEVICE, link);
        // /32: an address of the subnet's length would claim the Pods of this node for the device.
        tables.addresses.insert(AddressKey { link: DEVICE, addr: place.subnet.addr(), len: 32 }, Address);
        tables
    }

    pub(super) fn peer_rows(
        &self,
        local: &LocalNode,
        subnet: Prefix,
        attrs: &LeaseAttrs,
        rows: &mut PeerRows,
    ) -> Result<(), String> {
        let public_ip = attrs.public_ip(subnet.family())?;
        if self.direct_routing && super::is_direct(local, public_ip, attrs, NAME) {
            rows.routes.push(host_gw::direct_route(local, subnet, public_ip));
            return Ok(());
        }
        if attrs.backend != BackendAttrs::Ipip {
            return Err(format!("{public_ip} uses another backend than this network's ipip"));
        }
        rows.routes.push(route(subnet, public_ip, &DEVICE, true));
        Ok(())
    }

    /// flannel's route by way of a node's address on the device.
    pub(super) fn flannel_made(&self, local: &LocalNode, key: &RouteKey, route: &Route) -> bool {
        let through_device = route.link.as_ref() == Some(&DEVICE) && route.onlink && route.via.is_some();
        through_device || (self.direct_routing && host_gw::flannel_made(local, key, route))
    }
}

/// True for the name of the tunnel device.
pub(super) fn is_device(link: &IfName) -> bool {
    *link == DEVICE
}

pub(super) const fn makes_link(link: &Link) -> bool {
    matches!(link.kind, LinkKind::Ipip(_))
}
