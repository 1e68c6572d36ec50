//! The `vxlan` backend: one device, and three rows per node.
//!
//! For each lease the first address of its subnet is a next hop on our device (route, `onlink`), that next hop has the
//! hardware address of the node's device (neighbour), and frames for that address go to the node (forwarding entry).
//! These are flannel's rows (pkg/backend/vxlan/vxlan_network.go), so a flannel node sees no difference.

use std::net::{IpAddr, Ipv4Addr};

use netstate::{
    Address, AddressKey, Fdb, FdbKey, IfName, Link, LinkKind, MacAddr, Neighbour, NeighbourKey, Prefix, Route,
    RouteKey, SysctlKey, VxlanOptions,
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{BackendAttrs, host_gw};
use crate::format::go_json::{BOOL, Object};
use crate::format::lease::LeaseAttrs;
use crate::plan::{LocalNode, Tables, route};
use cluster::Problem;

pub(super) const NAME: &str = "vxlan";

/// flannel's VXLAN network identifier when none is configured.
const DEFAULT_VNI: u32 = 1;

/// The UDP port of Linux' VXLAN before IANA gave it 4789; flannel uses it when `Port` is 0 (drivers/net/vxlan).
const DEFAULT_PORT: u16 = 8472;

const DEVICE_PREFIX: &str = "flannel.";

const MTU: &str = "the MTU of the network below in bytes, from 118 to 65535";

/// Options of the `vxlan` backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vxlan {
    /// VXLAN network identifier, 1..=16777215; the device is `flannel.<VNI>`.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Largest MTU in bytes of the network *below* the tunnel; the external interface's when absent or smaller.
    pub mtu: Option<u32>,
    /// Group policy extension.
    pub gbp: bool,
    /// Learn remote end points from traffic.
    pub learning: bool,
    /// Use a plain route to nodes on the external interface's own network.
    pub direct_routing: bool,
}

impl Default for Vxlan {
    fn default() -> Self {
        Self { vni: DEFAULT_VNI, port: DEFAULT_PORT, mtu: None, gbp: false, learning: false, direct_routing: false }
    }
}

/// `BackendData`. Old flannel nodes split this text at `:"`, so the order of the two is part of the format.
#[derive(Serialize)]
struct Data {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    mac: String,
}

pub(super) fn render_attrs(vni: u32, mac: MacAddr) -> Option<Box<RawValue>> {
    // Serializing a number and a text has no way to fail.
    serde_json::value::to_raw_value(&Data { vni, mac: mac.to_string() }).ok()
}

/// Reads `BackendData` of a lease.
pub(super) fn take_attrs(lease: &mut Object, problems: &mut Vec<Problem>) -> Option<(u32, MacAddr)> {
    let accepted = r#"{"VNI":1,"VtepMAC":"02:00:5e:10:00:01"}"#;
    let known = problems.len();
    let Some(mut data) = lease.take_object("BackendData", problems) else {
        if problems.len() == known {
            problems.push(Problem::new("BackendData", "missing", accepted));
        }
        return None;
    };
    let vni = data.take("VNI", "a number from 1 to 16777215", problems);
    let mac = data.take::<String>("VtepMAC", "a hardware address", problems);
    let mac = mac.and_then(|text| {
        let parsed = text.parse::<MacAddr>().ok().filter(is_unicast);
        if parsed.is_none() {
            let message = format!("{text:?} is not the hardware address of one device");
            let accepted = "six pairs of digits such as 02:00:5e:10:00:01";
            problems.push(Problem::new("BackendData.VtepMAC", message, accepted));
        }
        parsed
    });
    if problems.len() == known && mac.is_none() {
        problems.push(Problem::new("BackendData.VtepMAC", "missing", accepted));
    }
    // flannel leaves a zero VNI out of nothing but very old values; 1 was the only one they could have.
    mac.map(|mac| (vni.unwrap_or(DEFAULT_VNI), mac))
}

/// A multicast or zero address as the next hop's would send frames to nobody or to everybody.
fn is_unicast(mac: &MacAddr) -> bool {
    let [first, ..] = mac.0;
    first & 1 == 0 && mac.0 != [0; 6]
}

/// True for the name of a tunnel device of flannel or netd.
pub(super) fn is_device(link: &IfName) -> bool {
    let number = link.as_str().strip_prefix(DEVICE_PREFIX);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

pub(super) const fn makes_link(link: &Link) -> bool {
    matches!(link.kind, LinkKind::Vxlan(_))
}

/// A hardware address that is the same after every restart and reboot, and differs from node to node: 64-bit
/// FNV-1a of the node's address and the VNI.
#[must_use]
pub(crate) fn generated_mac(public_ip: Ipv4Addr, vni: u32) -> MacAddr {
    let bytes = public_ip.octets().into_iter().chain(vni.to_be_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let [_, _, a, b, c, d, e, f] = hash.to_be_bytes();
    MacAddr::local([a, b, c, d, e, f])
}

impl Vxlan {
    /// Reads the options of net-conf; `None` when they have problems.
    pub(super) fn take(backend: &mut Object, problems: &mut Vec<Problem>) -> Option<Self> {
        let known = problems.len();
        let vni: Option<u32> = backend.take("VNI", "a number from 1 to 16777215", problems);
        let port: Option<u16> = backend.take("Port", "a UDP port from 0 (which means 8472) to 65535", problems);
        let mtu: Option<u32> = backend.take("MTU", MTU, problems);
        let mut flag = |name| backend.take(name, BOOL, problems).unwrap_or(false);
        let (gbp, learning, direct_routing) = (flag("GBP"), flag("Learning"), flag("DirectRouting"));
        // An option of flannel on Windows; accepted so that one text serves both.
        backend.take_raw("MacPrefix");
        if let Some(vni) = vni.filter(|vni| !(1..1 << 24).contains(vni)) {
            problems.push(Problem::new("Backend.VNI", vni.to_string(), "a number from 1 to 16777215"));
        }
        let mtu = mtu.filter(|mtu| *mtu != 0);
        let smallest = netstate::mtu::MIN_IPV4 + netstate::mtu::VXLAN_OVER_IPV4;
        if let Some(mtu) = mtu.filter(|mtu| !(smallest..=65535).contains(mtu)) {
            problems.push(Problem::new("Backend.MTU", mtu.to_string(), MTU));
        }
        (problems.len() == known).then(|| Self {
            vni: vni.unwrap_or(DEFAULT_VNI),
            port: port.filter(|port| *port != 0).unwrap_or(DEFAULT_PORT),
            mtu,
            gbp,
            learning,
            direct_routing,
        })
    }

    /// The name of the tunnel device: flannel's.
    pub(super) fn device(&self) -> Option<IfName> {
        // A VNI has at most eight digits, so the name is one.
        IfName::new(format!("{DEVICE_PREFIX}{}", self.vni)).ok()
    }

    pub(super) fn pod_mtu(&self, interface_mtu: u32) -> u32 {
        let below = self.mtu.map_or(interface_mtu, |mtu| mtu.min(interface_mtu));
        below.saturating_sub(netstate::mtu::VXLAN_OVER_IPV4)
    }

    /// What of the options cannot be had on this node, for an operator.
    pub(super) fn remark(&self, local: &LocalNode) -> Option<String> {
        let mtu = self.mtu.filter(|mtu| *mtu > local.mtu)?;
        let (interface, carried, left) = (&local.interface, local.mtu, self.pod_mtu(local.mtu));
        Some(format!(
            "Backend.MTU {mtu} is more than interface {interface} carries, {carried}: Pods get an MTU of {left}"
        ))
    }

    /// The device with its address; there even before the first lease is known.
    pub(super) fn local_rows(&self, local: &LocalNode) -> Tables {
        let mut tables = Tables::default();
        let Some(name) = self.device() else { return tables };
        let kind = LinkKind::Vxlan(VxlanOptions {
            vni: self.vni,
            port: self.port,
            // The interface's own address: behind NAT the kernel cannot send from the public one.
            local: Some(IpAddr::V4(local.address)),
            lower: Some(local.interface.clone()),
            learning: self.learning,
            gbp: self.gbp,
        });
        let mtu = self.pod_mtu(local.mtu);
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
        tables
    }

    pub(super) fn peer_rows(&self, local: &LocalNode, subnet: Prefix, attrs: &LeaseAttrs) -> Result<Tables, String> {
        let mut tables = Tables::default();
        let Some(name) = self.device() else { return Ok(tables) };
        let BackendAttrs::Vxlan { vni, mac } = attrs.backend else {
            return Err(format!("{} uses another backend than this network's vxlan", attrs.public_ip));
        };
        let public_ip = IpAddr::V4(attrs.public_ip);
        if self.direct_routing && local.node_network.contains(public_ip) {
            let (key, value) = route(subnet, public_ip, &local.interface, false);
            tables.routes.insert(key, value);
            return Ok(tables);
        }
        if vni != self.vni {
            return Err(format!("{public_ip} uses VNI {vni}, this network has {}", self.vni));
        }
        if mac == local.vtep_mac {
            return Err(format!("{public_ip} has the hardware address of this node's own device, {mac}"));
        }
        tables.fdb.insert(FdbKey { link: name.clone(), mac }, Fdb { dst: public_ip });
        let next_hop = subnet.addr();
        tables.neighbours.insert(NeighbourKey { link: name.clone(), addr: next_hop }, Neighbour { mac });
        let (key, value) = route(subnet, next_hop, &name, true);
        tables.routes.insert(key, value);
        Ok(tables)
    }

    /// flannel's route by way of the first address of the subnet, of any of its devices: the VNI may have changed.
    pub(super) fn flannel_made(&self, local: &LocalNode, key: &RouteKey, route: &Route) -> bool {
        let through_device = route.link.as_ref().is_some_and(is_device);
        (through_device && route.onlink && route.via == Some(key.dst.addr()))
            || (self.direct_routing && host_gw::flannel_made(local, route))
    }
}
