//! The `vxlan` backend: one device, and three rows per node.
//!
//! For each lease the first address of its subnet is a next hop on our device (route, `onlink`), that next hop has the
//! hardware address of the node's device (neighbour), and frames for that address go to the node (forwarding entry).
//! These are flannel's rows (pkg/backend/vxlan/vxlan_network.go), so a flannel node sees no difference.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use netstate::{
    Address, AddressKey, Fdb, FdbKey, IfName, Link, LinkKind, MacAddr, Neighbour, NeighbourKey, Prefix, SysctlKey,
    VxlanOptions,
};

use crate::format::lease::{BackendAttrs, LeaseAttrs};
use crate::format::net_conf::Vxlan;
use crate::plan::{LocalNode, Tables, route};

const DEVICE_PREFIX: &str = "flannel.";

/// The name of the tunnel device: flannel's.
///
/// # Errors
/// Never for a VNI of 24 bits; the name's own type is kept.
pub fn device(vni: u32) -> Result<IfName, netstate::ifname::InvalidIfName> {
    IfName::new(format!("{DEVICE_PREFIX}{vni}"))
}

/// True for the name of a tunnel device of flannel or netd.
pub(in crate::plan) fn is_device(link: &IfName) -> bool {
    let number = link.as_str().strip_prefix(DEVICE_PREFIX);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A hardware address that is the same after every restart and reboot, and differs from node to node: 64-bit
/// FNV-1a of the node's address and the VNI.
#[must_use]
pub fn generated_mac(public_ip: Ipv4Addr, vni: u32) -> MacAddr {
    let bytes = public_ip.octets().into_iter().chain(vni.to_be_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let [_, _, a, b, c, d, e, f] = hash.to_be_bytes();
    MacAddr::local([a, b, c, d, e, f])
}

pub(in crate::plan) fn tables(
    options: &Vxlan,
    local: &LocalNode,
    peers: &BTreeMap<Prefix, &LeaseAttrs>,
    skipped: &mut BTreeMap<Prefix, String>,
) -> Tables {
    let mut tables = Tables::default();
    let Ok(name) = device(options.vni) else { return tables };
    own_rows(&mut tables, &name, options, local);
    for (subnet, attrs) in peers {
        if let Err(reason) = peer_rows(&mut tables, &name, options, local, *subnet, attrs) {
            skipped.insert(*subnet, reason);
        }
    }
    tables
}

/// The device with its address; there even before the first lease is known.
fn own_rows(tables: &mut Tables, name: &IfName, options: &Vxlan, local: &LocalNode) {
    let kind = LinkKind::Vxlan(VxlanOptions {
        vni: options.vni,
        port: options.port,
        // The interface's own address: behind NAT the kernel cannot send from the public one.
        local: Some(IpAddr::V4(local.address)),
        lower: Some(local.interface.clone()),
        learning: options.learning,
        gbp: options.gbp,
    });
    let mtu = options.mtu.unwrap_or(local.mtu).saturating_sub(netstate::mtu::VXLAN_OVER_IPV4);
    let link = Link { kind, mtu: Some(mtu), mac: Some(local.vtep_mac), up: true, master: None };
    tables.links.insert(name.clone(), link);
    // /32: an address of the subnet's length would claim the Pods of this node for the device.
    let address = AddressKey { link: name.clone(), addr: local.subnet.addr(), len: 32 };
    tables.addresses.insert(address, Address);
    if local.has_ipv6 {
        // A router advertisement that reached the tunnel would change this node's default route.
        let key = format!("net/ipv6/conf/{name}/accept_ra").parse().ok();
        tables.sysctls.extend(key.map(|key: SysctlKey| (key, "0".to_owned())));
    }
}

fn peer_rows(
    tables: &mut Tables,
    name: &IfName,
    options: &Vxlan,
    local: &LocalNode,
    subnet: Prefix,
    attrs: &LeaseAttrs,
) -> Result<(), String> {
    let BackendAttrs::Vxlan { vni, mac } = attrs.backend else {
        return Err(format!("{} uses another backend than this network's vxlan", attrs.public_ip));
    };
    let public_ip = IpAddr::V4(attrs.public_ip);
    if options.direct_routing && local.node_network.contains(public_ip) {
        let (key, value) = route(subnet, public_ip, &local.interface, false);
        tables.routes.insert(key, value);
        return Ok(());
    }
    if vni != options.vni {
        return Err(format!("{public_ip} uses VNI {vni}, this network has {}", options.vni));
    }
    if mac == local.vtep_mac {
        return Err(format!("{public_ip} has the hardware address of this node's own device, {mac}"));
    }
    let forwarding = FdbKey { link: name.clone(), mac };
    if let Some(other) = tables.fdb.get(&forwarding).filter(|other| other.dst != public_ip) {
        return Err(format!("{public_ip} has the hardware address of {}, {mac}", other.dst));
    }
    tables.fdb.insert(forwarding, Fdb { dst: public_ip });
    let next_hop = subnet.addr();
    tables.neighbours.insert(NeighbourKey { link: name.clone(), addr: next_hop }, Neighbour { mac });
    let (key, value) = route(subnet, next_hop, name, true);
    tables.routes.insert(key, value);
    Ok(())
}
