//! The packets that a tunnel puts others into, as the kernel looks up their route.
//!
//! Invariant: pure; what the kernel's own look-up does not know is not in it either. VXLAN gives the device's address, protocol
//! and port and no interface but a VRF's, ipip its address, WireGuard protocol and both ports (drivers/net/vxlan, net/ipv4/ip_tunnel.c,
//! drivers/net/wireguard/socket.c), so that rules of `ip rule` are met as they will be. Two things cannot be asked: VXLAN's source
//! port, which differs from flow to flow, and ipip's protocol, which the kernel takes no questions about.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use kernel::link::LinkState;
use kernel::way::Packet;
use netstate::{LinkKind, Protocol};

/// What the tunnel `link` sends to its other end `end`; the port there is WireGuard's, as is `own_port`, the others have their
/// own.
#[must_use]
pub(crate) fn packet(
    link: &LinkState,
    links: &BTreeMap<u32, LinkState>,
    own_port: Option<u16>,
    end: SocketAddr,
) -> Packet {
    let own = Packet::own(end.ip());
    match &link.link.kind {
        LinkKind::Vxlan(options) => {
            let from = options.local.filter(|local| local.is_ipv4() == end.is_ipv4());
            let lower = link.lower_index.and_then(|index| links.get(&index));
            let leaves_by = lower.and_then(|lower| vrf_of(lower, links));
            Packet { from, leaves_by, port: Some((Protocol::Udp, options.port)), ..own }
        }
        LinkKind::Ipip(options) => Packet { from: options.local.map(IpAddr::V4), ..own },
        LinkKind::Wireguard => Packet { port: Some((Protocol::Udp, end.port())), source_port: own_port, ..own },
        _ => own,
    }
}

/// Index of the VRF that a link is in.
fn vrf_of(link: &LinkState, links: &BTreeMap<u32, LinkState>) -> Option<u32> {
    let master = links.get(&link.master_index?)?;
    matches!(&master.link.kind, LinkKind::Other(kind) if kind == "vrf").then_some(master.index)
}
