//! The `vxlan` backend: one device, and three rows per node.
//!
//! For each lease the first address of its subnet is a next hop on our device (route, `onlink`), that next hop has the
//! hardware address of the node's device (neighbour), and frames for that address go to the node (forwarding entry).
//! These are flannel's rows (pkg/backend/vxlan/vxlan_network.go), so a flannel node sees no difference.

use std::net::IpAddr;

use netstate::family::{IpFamily, PerFamily};
use netstate::{
    Address, AddressKey, Fdb, FdbKey, IfName, Link, LinkKind, MacAddr, Neighbour, NeighbourKey, Prefix, Route,
    RouteKey, SysctlKey, VxlanOptions,
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::checksum::Workaround;
use super::{BackendAttrs, host_gw};
use crate::format::go_json::{BOOL, Object};
use crate::format::lease::LeaseAttrs;
use crate::plan::{LocalNode, PeerRows, Place, Tables, route};
use cluster::Problem;

pub(super) const NAME: &str = "vxlan";

/// flannel's VXLAN network identifier when none is configured.
const DEFAULT_VNI: u32 = 1;

/// The UDP port of Linux' VXLAN before IANA gave it 4789; flannel uses it when `Port` is 0 (drivers/net/vxlan).
const DEFAULT_PORT: u16 = 8472;

/// What DirectRouting loses over an interface in a VRF.
pub(super) const DIRECT_IN_VRF: &str = "DirectRouting has no effect, because packets from other nodes would meet the VRF's routing table first, and a \
     default route there takes them away from this node's Pods; the tunnel is used to every node";

/// What comes before the VNI in the name of the device of each family.
const DEVICE_PREFIX: PerFamily<&str> = PerFamily::new("flannel.", "flannel-v6.");

/// What encapsulation over each family takes from the MTU of the network below, in bytes.
const OVERHEAD: PerFamily<u32> = PerFamily::new(netstate::mtu::VXLAN_OVER_IPV4, netstate::mtu::VXLAN_OVER_IPV6);

const MTU: &str = "the MTU of the network below in bytes, from 118 to 65535";

/// A node's tunnel device of one family, as its lease describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vtep {
    /// VXLAN network identifier; flannel up to 0.13 does not write it, and up to 0.23 its lower 16 bits only.
    pub vni: Option<u32>,
    /// Hardware address.
    pub mac: MacAddr,
}

/// Options of the `vxlan` backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vxlan {
    /// VXLAN network identifier, 1..=16777215; the devices are `flannel.<VNI>` and `flannel-v6.<VNI>`.
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
    /// Whether nodes count checksums of the tunnel's packets themselves.
    pub checksums: Workaround,
}

impl Default for Vxlan {
    fn default() -> Self {
        let checksums = Workaround::Auto;
        Self {
            vni: DEFAULT_VNI,
            port: DEFAULT_PORT,
            mtu: None,
            gbp: false,
            learning: false,
            direct_routing: false,
            checksums,
        }
    }
}

/// `BackendData`. Old flannel nodes split this text at `:"`, so the order of the two is part of the format.
#[derive(Serialize)]
struct Data {
    #[serde(rename = "VNI", skip_serializing_if = "Option::is_none")]
    vni: Option<u32>,
    #[serde(rename = "VtepMAC")]
    mac: String,
}

pub(super) fn render_attrs(vtep: &Vtep) -> Option<Box<RawValue>> {
    // Serializing a number and a text has no way to fail.
    serde_json::value::to_raw_value(&Data { vni: vtep.vni, mac: vtep.mac.to_string() }).ok()
}

/// Reads the member `field` of a lease.
pub(super) fn take_attrs(field: &str, lease: &mut Object, problems: &mut Vec<Problem>) -> Option<Vtep> {
    let accepted = r#"{"VNI":1,"VtepMAC":"02:00:5e:10:00:01"}"#;
    let known = problems.len();
    let Some(mut data) = lease.take_object(field, problems) else {
        if problems.len() == known {
            problems.push(Problem::new(field, "missing", accepted));
        }
        return None;
    };
    let vni = data.take("VNI", "a number from 1 to 16777215", problems);
    let mac = data.take::<String>("VtepMAC", "a hardware address", problems);
    let mac_field = data.path_of("VtepMAC");
    let mac = mac.and_then(|text| {
        let parsed = text.parse::<MacAddr>().ok().filter(is_unicast);
        if parsed.is_none() {
            let message = format!("{text:?} is not the hardware address of one device");
            problems.push(Problem::new(&mac_field, message, "six pairs of digits such as 02:00:5e:10:00:01"));
        }
        parsed
    });
    if problems.len() == known && mac.is_none() {
        problems.push(Problem::new(&mac_field, "missing", accepted));
    }
    mac.map(|mac| Vtep { vni, mac })
}

/// A multicast or zero address as the next hop's would send frames to nobody or to everybody.
fn is_unicast(mac: &MacAddr) -> bool {
    let [first, ..] = mac.0;
    first & 1 == 0 && mac.0 != [0; 6]
}

/// True for the name of a tunnel device of flannel or netd.
pub(super) fn is_device(link: &IfName) -> bool {
    let numbers = DEVICE_PREFIX.map(|_, prefix| link.as_str().strip_prefix(prefix));
    let mut numbers = numbers.present().map(|(_, number)| *number);
    numbers.any(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

pub(super) const fn makes_link(link: &Link) -> bool {
    matches!(link.kind, LinkKind::Vxlan(_))
}

/// A hardware address that is the same after every restart and reboot, and differs from node to node, also of those that
/// share an address: 64-bit FNV-1a of the node's address, the VNI and what identifies the `machine`.
#[must_use]
pub(crate) fn generated_mac(public_ip: IpAddr, vni: u32, machine: &[u8]) -> MacAddr {
    let octets = match public_ip {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    let bytes = octets.into_iter().chain(vni.to_be_bytes()).chain(machine.iter().copied());
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
        let checksums = Workaround::take(backend, problems);
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
            checksums,
        })
    }

    /// The kernel's names of links are short.
    pub(super) fn refuses_families(&self, mut families: impl Iterator<Item = IpFamily>) -> Option<Problem> {
        let nameless = families.find(|family| self.device(*family).is_none())?;
        let message = format!(
            "{}: no link can have the name {}{} of the device of {nameless}",
            self.vni,
            DEVICE_PREFIX.get(nameless),
            self.vni
        );
        Some(Problem::new("Backend.VNI", message, "a number from 1 to 9999 in a network with IPv6"))
    }

    /// The name of the tunnel device of one family: flannel's; `None` when it is too long for a link.
    pub(super) fn device(&self, family: IpFamily) -> Option<IfName> {
        IfName::numbered(DEVICE_PREFIX.get(family), self.vni)
    }

    /// Leases say neither port nor GBP, so that nobody could know which of two devices of one VNI a node uses.
    pub(super) const fn interruption(&self, before: &Self) -> Option<&'static str> {
        match (self.port == before.port, self.gbp == before.gbp) {
            _ if self.vni != before.vni => None,
            (true, true) => None,
            (false, true) => Some("Port (not so with another VNI in the same change)"),
            (true, false) => Some("GBP (not so with another VNI and Port in the same change)"),
            (false, false) => Some("Port and GBP (not so with another VNI in the same change)"),
        }
    }

    /// Why the devices of `self` and `wanted` cannot be there at once although their names differ: the kernel has one socket for each port,
    /// with or without GBP (drivers/net/vxlan, VXLAN_F_RCV_FLAGS).
    pub(super) fn refuses_change(&self, wanted: &Self) -> Option<String> {
        (self.vni != wanted.vni && self.port == wanted.port && self.gbp != wanted.gbp).then(|| {
            let port = self.port;
            format!("Backend: another VNI and GBP need another Port in the same change: UDP port {port} serves devices with GBP or devices without")
        })
    }

    /// This node's devices.
    pub(super) fn vteps(&self, local: &LocalNode) -> PerFamily<Option<Vtep>> {
        let vtep = |place: &Place| Vtep { vni: Some(self.vni), mac: place.mac };
        PerFamily::from_fn(|family| local.places.get(family).as_ref().map(vtep))
    }

    /// MTU of the device of one family.
    pub(super) fn mtu(&self, family: IpFamily, interface_mtu: u32) -> u32 {
        let below = self.mtu.map_or(interface_mtu, |mtu| mtu.min(interface_mtu));
        below.saturating_sub(*OVERHEAD.get(family))
    }

    /// What of the options cannot be had on this node, for an operator.
    pub(super) fn remark(&self, local: &LocalNode) -> Option<String> {
        let mtu = self.mtu.filter(|mtu| *mtu > local.mtu)?;
        let left = local.places.families().map(|family| self.mtu(family, local.mtu)).min()?;
        let (interface, carried) = (&local.interface, local.mtu);
        Some(format!(
            "Backend.MTU {mtu} is more than interface {interface} carries, {carried}: Pods get an MTU of {left}"
        ))
    }

    /// The devices with their addresses; there even before the first lease is known.
    pub(super) fn local_rows(&self, local: &LocalNode) -> Tables {
        let mut tables = Tables::default();
        for (family, place) in local.places.present() {
            if let Some(name) = self.device(family) {
                tables.extend(self.device_rows(&name, family, place, local));
            }
        }
        tables
    }

    fn device_rows(&self, name: &IfName, family: IpFamily, place: &Place, local: &LocalNode) -> Tables {
        let mut tables = Tables::default();
        let kind = LinkKind::Vxlan(VxlanOptions {
            // The interface's own address: behind NAT the kernel cannot send from the public one.
            local: Some(place.address),
            lower: Some(local.interface.clone()),
            learning: self.learning,
            gbp: self.gbp,
            ..VxlanOptions::new(self.vni, self.port)
        });
        let mtu = self.mtu(family, local.mtu);
        let link = Link { kind, mtu: Some(mtu), mac: Some(place.mac), up: true, master: None };
        let checksum = self.checksums.desired(local.checksum_fault.as_deref());
        tables.checksums.extend(checksum.map(|checksum| (name.clone(), checksum)));
        tables.links.insert(name.clone(), link);
        // /32 or /128: an address of the subnet's length would claim the Pods of this node for the device.
        let address = AddressKey { link: name.clone(), addr: place.subnet.addr(), len: family.width() };
        tables.addresses.insert(address, Address);
        // A link of fewer bytes has no parameters of IPv6 (net/ipv6/addrconf.c).
        if local.has_ipv6 && self.mtu(family, local.mtu) >= IpFamily::V6.min_mtu() {
            // A router advertisement that reached the tunnel would change this node's default route.
            let key = format!("net/ipv6/conf/{name}/accept_ra").parse().ok();
            tables.sysctls.extend(key.map(|key: SysctlKey| (key, "0".to_owned())));
        }
        tables
    }

    pub(super) fn peer_rows(
        &self,
        local: &LocalNode,
        subnet: Prefix,
        attrs: &LeaseAttrs,
        rows: &mut PeerRows,
    ) -> Result<(), String> {
        let family = subnet.family();
        let public_ip = attrs.public_ip(family)?;
        let (Some(name), Some(place)) = (self.device(family), local.places.get(family)) else { return Ok(()) };
        if self.direct_routing && super::is_direct(local, public_ip, attrs, NAME) {
            rows.routes.push(host_gw::direct_route(local, subnet, public_ip));
            return Ok(());
        }
        let BackendAttrs::Vxlan(vteps) = &attrs.backend else {
            return Err(format!("{public_ip} uses another backend than this network's vxlan"));
        };
        let Some(Vtep { mac, .. }) = *vteps.get(family) else {
            return Err(format!("{public_ip} has no usable VXLAN device of {family}"));
        };
        if mac == place.mac {
            return Err(format!("{public_ip} has the hardware address of this node's own device, {mac}"));
        }
        rows.fdb.push((FdbKey { link: name.clone(), mac }, Fdb { dst: public_ip }));
        let next_hop = subnet.addr();
        rows.neighbours.push((NeighbourKey { link: name.clone(), addr: next_hop }, Neighbour { mac }));
        rows.routes.push(route(subnet, next_hop, &name, true));
        Ok(())
    }

    /// What is odd about a lease that is used all the same, as flannel uses it.
    pub(super) fn remark_on(&self, attrs: &LeaseAttrs) -> Option<String> {
        let BackendAttrs::Vxlan(vteps) = &attrs.backend else { return None };
        let differs = |vni: u32| vni != self.vni && vni != self.vni & 0xffff;
        let other = vteps.present().find_map(|(_, vtep)| vtep.vni.filter(|vni| differs(*vni)))?;
        let (holder, own) = (attrs.public_ips.list(), self.vni);
        Some(format!(
            "{holder} says that its device has VNI {other}, this network has {own}: it drops what comes with another"
        ))
    }

    /// flannel's route by way of the first address of the subnet, of any of its devices: the VNI may have changed.
    pub(super) fn flannel_made(&self, local: &LocalNode, key: &RouteKey, route: &Route) -> bool {
        let through_device = route.link.as_ref().is_some_and(is_device);
        (through_device && route.onlink && route.via == Some(key.dst.addr()))
            || (self.direct_routing && host_gw::flannel_made(local, key, route))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_its_whole_name_and_a_card_by_one_host() {
        for (name, is) in [
            ("flannel.1", true),
            ("flannel.4096", true),
            ("flannel-v6.1", true),
            ("flannel.", false),
            ("flannel-v6.", false),
            ("flannel.1a", false),
            ("flannel.ipip", false),
            ("flannel1", false),
            ("xflannel.1", false),
        ] {
            assert_eq!(is_device(&IfName::new(name).unwrap()), is, "{name}");
        }
        for (mac, is) in [
            ("02:00:5e:10:00:01", true),
            ("00:00:00:00:00:01", true),
            ("00:00:00:00:00:00", false),
            ("01:00:5e:00:00:01", false),
            ("ff:ff:ff:ff:ff:ff", false),
        ] {
            assert_eq!(is_unicast(&mac.parse().unwrap()), is, "{mac}");
        }
    }
}
