//! The `wireguard` backend: an encrypted tunnel to each node through one device, or one of each family.
//!
//! For each lease the device has a peer with the lease's key, and a route leads to its subnet. Names, ports and lease
//! data are flannel's (pkg/backend/wireguard). Invariants: a plan knows this node's public key and never the private
//! one; a peer may send from its own subnets only; a route leads to a peer and to nobody else's Pods, where flannel has
//! one for the whole Pod network.

use std::net::{IpAddr, SocketAddr};

use netstate::family::{IpFamily, PerFamily};
use netstate::wireguard::{Device, Endpoint, Peer, PresharedKey, PublicKey, Row, RowKey};
use netstate::{Address, AddressKey, IfName, Link, LinkKind, Prefix, Route, RouteKey, RouteScope};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{BackendAttrs, host_gw};
use crate::format::go_json::Object;
use crate::format::lease::{Lease, LeaseAttrs};
use crate::plan::{LocalNode, PeerRows, Tables, route};
use cluster::Problem;

/// What it loses over an interface in a VRF.
pub(super) const IN_VRF: &str = "wireguard takes the main routing table to the other nodes, and they are in the VRF's: lead it there and take what \
     comes from there (ip route add NODES dev INTERFACE, outside of the VRF, and sysctl -w net.ipv4.udp_l3mdev_accept=1, on each \
     node), or use backend vxlan";

pub(super) const NAME: &str = "wireguard";

/// flannel's names: one device, or one of each family.
const DEVICES: PerFamily<IfName> = PerFamily::new(IfName::literal("flannel-wg"), IfName::literal("flannel-wg-v6"));

const DEFAULT_PORTS: PerFamily<u16> = PerFamily::new(51820, 51821);

const MODE: &str = "separate, auto, ipv4 or ipv6";

const MTU: &str = "the MTU of the network below in bytes, from 148 to 65535";

const DATA: &str = r#"{"PublicKey":"44 characters of base64","Port":51820}"#;

/// Which devices there are, and over which of a node's addresses its packets go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A device of each family, over addresses of that family.
    #[default]
    Separate,
    /// One device, over the address that is likelier to be reached.
    Auto,
    /// One device, over this family.
    Over(IpFamily),
}

/// Options of the `wireguard` backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wireguard {
    /// UDP ports that the devices receive on; a single device on the first.
    pub ports: PerFamily<u16>,
    /// Which devices there are.
    pub mode: Mode,
    /// What all nodes share beside their keys.
    pub preshared: Option<PresharedKey>,
    /// Seconds between packets that keep a NAT's memory; 0 for none.
    pub keepalive: u16,
    /// Largest MTU in bytes of the network below; the external interface's when absent or smaller.
    pub mtu: Option<u32>,
    /// Use a plain, unencrypted route to nodes that are reached without a router.
    pub direct_routing: bool,
}

/// A node's device as its lease describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// Its identity.
    pub key: PublicKey,
    /// Its UDP port; leases of flannel before 0.26 do not say.
    pub port: Option<u16>,
}

#[derive(Serialize)]
struct Data {
    #[serde(rename = "PublicKey")]
    key: String,
    #[serde(rename = "Port", skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

pub(super) fn render_attrs(end: &End) -> Option<Box<RawValue>> {
    // Serializing a text and a number has no way to fail.
    serde_json::value::to_raw_value(&Data { key: end.key.to_string(), port: end.port }).ok()
}

/// Reads the member `field` of a lease.
pub(super) fn take_attrs(field: &str, lease: &mut Object, problems: &mut Vec<Problem>) -> Option<End> {
    let known = problems.len();
    let Some(mut data) = lease.take_object(field, problems) else {
        if problems.len() == known {
            problems.push(Problem::new(field, "missing", DATA));
        }
        return None;
    };
    let key = data.take::<String>("PublicKey", DATA, problems).unwrap_or_default();
    let port = data.take::<u16>("Port", "a UDP port", problems).filter(|port| *port != 0);
    match key.parse() {
        Ok(key) => Some(End { key, port }),
        Err(error) => {
            problems.push(Problem::new(data.path_of("PublicKey"), format!("{key:?} is {error}"), DATA));
            None
        }
    }
}

fn take_mode(backend: &mut Object, problems: &mut Vec<Problem>) -> Mode {
    match backend.take::<String>("Mode", MODE, problems).as_deref() {
        None | Some("separate") => Mode::Separate,
        Some("auto") => Mode::Auto,
        Some("ipv4") => Mode::Over(IpFamily::V4),
        Some("ipv6") => Mode::Over(IpFamily::V6),
        Some(other) => {
            problems.push(Problem::new("Backend.Mode", format!("{other:?} is no mode"), MODE));
            Mode::Separate
        }
    }
}

fn take_preshared(backend: &mut Object, problems: &mut Vec<Problem>) -> Option<PresharedKey> {
    // A secret: neither a bad text nor a value of another type is repeated.
    let raw = backend.take_raw("PSK").filter(|raw| raw.get() != "null")?;
    let text: String = serde_json::from_str(raw.get()).unwrap_or_else(|_| "another type".to_owned());
    if text.is_empty() {
        return None;
    }
    let parsed = text.parse();
    parsed
        .map_err(|error: netstate::wireguard::InvalidKey| {
            problems.push(Problem::new("Backend.PSK", error.to_string(), "what `wg genpsk` prints"));
        })
        .ok()
}

impl Wireguard {
    /// Reads the options of net-conf; `None` when they have problems.
    pub(super) fn take(backend: &mut Object, problems: &mut Vec<Problem>) -> Option<Self> {
        let known = problems.len();
        let mut port = |name, default| {
            backend.take::<u16>(name, "a UDP port", problems).filter(|port| *port != 0).unwrap_or(default)
        };
        let ports = PerFamily::new(port("ListenPort", DEFAULT_PORTS.v4), port("ListenPortV6", DEFAULT_PORTS.v6));
        let mode = take_mode(backend, problems);
        let preshared = take_preshared(backend, problems);
        let accepted = "seconds from 0 (none) to 65535";
        let keepalive = backend.take("PersistentKeepaliveInterval", accepted, problems).unwrap_or(0);
        let mtu = backend.take::<u32>("MTU", MTU, problems).filter(|mtu| *mtu != 0);
        let smallest = netstate::mtu::MIN_IPV4 + netstate::mtu::WIREGUARD;
        if let Some(mtu) = mtu.filter(|mtu| !(smallest..=65535).contains(mtu)) {
            problems.push(Problem::new("Backend.MTU", mtu.to_string(), MTU));
        }
        if mode == Mode::Separate && ports.v4 == ports.v6 {
            let message = format!("{}: ListenPort is the same, and each device needs one of its own", ports.v6);
            problems.push(Problem::new("Backend.ListenPortV6", message, "another UDP port"));
        }
        let options = Self { ports, mode, preshared, keepalive, mtu, direct_routing: false };
        (problems.len() == known).then_some(options)
    }

    /// Leases have addresses of the network's families only.
    pub(super) fn refuses_families(&self, mut families: impl Iterator<Item = IpFamily>) -> Option<Problem> {
        let Mode::Over(over) = self.mode else { return None };
        if families.any(|family| family == over) {
            return None;
        }
        let message = format!("packets shall go over {over}, and the network, and so its leases, have no {over}");
        Some(Problem::new("Backend.Mode", message, "auto, or a family that the network has"))
    }

    /// The device of one family.
    pub(super) fn device(&self, family: IpFamily) -> IfName {
        match self.mode {
            Mode::Separate => DEVICES.get(family).clone(),
            Mode::Auto | Mode::Over(_) => DEVICES.v4.clone(),
        }
    }

    /// Nodes that read the other preshared key later refuse this one's next handshake; those that have not read this one's lease
    /// send to a port at which nobody is.
    pub(super) fn interruption(&self, before: &Self) -> Option<String> {
        let moves = |family| self.port(family) != before.port(family) && self.device(family) == before.device(family);
        let fields = [
            ("PSK", self.preshared != before.preshared),
            ("ListenPort", moves(IpFamily::V4)),
            ("ListenPortV6", self.mode == Mode::Separate && moves(IpFamily::V6)),
        ];
        let differing: Vec<&str> = fields.iter().filter(|(_, differs)| *differs).map(|(field, _)| *field).collect();
        (!differing.is_empty()).then(|| differing.join(" and "))
    }

    fn port(&self, family: IpFamily) -> u16 {
        match self.mode {
            Mode::Separate => *self.ports.get(family),
            Mode::Auto | Mode::Over(_) => self.ports.v4,
        }
    }

    /// This node's devices as its lease describes them.
    pub(super) fn ends(&self, local: &LocalNode) -> PerFamily<Option<End>> {
        let end = |family| Some(End { key: local.public_key?, port: Some(self.port(family)) });
        PerFamily::from_fn(|family| local.places.get(family).as_ref().and_then(|_| end(family)))
    }

    pub(super) fn mtu(&self, interface_mtu: u32) -> u32 {
        let below = self.mtu.map_or(interface_mtu, |mtu| mtu.min(interface_mtu));
        below.saturating_sub(netstate::mtu::WIREGUARD)
    }

    /// What of the options cannot be had on this node, for an operator.
    pub(super) fn remark(&self, local: &LocalNode) -> Option<String> {
        let mtu = self.mtu.filter(|mtu| *mtu > local.mtu)?;
        let (interface, carried, left) = (&local.interface, local.mtu, self.mtu(local.mtu));
        Some(format!(
            "Backend.MTU {mtu} is more than interface {interface} carries, {carried}: Pods get an MTU of {left}"
        ))
    }

    /// The devices with their addresses; there even before the first lease is known.
    pub(super) fn local_rows(&self, local: &LocalNode) -> Tables {
        let mut tables = Tables::default();
        for (family, place) in local.places.present() {
            let name = self.device(family);
            let mtu = Some(self.mtu(local.mtu));
            tables
                .links
                .insert(name.clone(), Link { kind: LinkKind::Wireguard, mtu, mac: None, up: true, master: None });
            let device = Device { public_key: local.public_key, listen_port: self.port(family) };
            tables.wireguard.insert(RowKey::Device(name.clone()), Row::Device(device));
            // /32 or /128: an address of the subnet's length would claim the Pods of this node for the device.
            let address = AddressKey { link: name, addr: place.subnet.addr(), len: family.width() };
            tables.addresses.insert(address, Address);
        }
        tables
    }

    /// Rows that make the subnets of another node reachable: one peer for all of them where there is one device.
    pub(super) fn lease_rows(&self, local: &LocalNode, lease: &Lease, rows: &mut PeerRows) -> Result<(), String> {
        let mut peers = std::collections::BTreeMap::<RowKey, Peer>::new();
        for (family, subnet) in lease.key.subnets().present() {
            if local.places.get(family).is_none() {
                continue;
            }
            let public_ip = lease.attrs.public_ip(family)?;
            if self.is_direct(local, &lease.attrs, public_ip) {
                rows.routes.push(host_gw::direct_route(local, *subnet, public_ip));
                continue;
            }
            let end = own_end(local, &lease.attrs, family, public_ip)?;
            let device = self.device(family);
            let new = || Peer {
                endpoint: Endpoint::Open,
                allowed: [].into(),
                preshared: self.preshared,
                keepalive: self.keepalive,
            };
            let peer = peers.entry(RowKey::Peer(device.clone(), end.key)).or_insert_with(new);
            peer.endpoint = Endpoint::At(self.endpoint(local, &lease.attrs, family)?);
            peer.allowed.insert(*subnet);
            rows.routes.push(tunnel_route(*subnet, &device));
        }
        rows.wireguard.extend(peers.into_iter().map(|(key, peer)| (key, Row::Peer(peer))));
        Ok(())
    }

    fn is_direct(&self, local: &LocalNode, attrs: &LeaseAttrs, public_ip: IpAddr) -> bool {
        self.direct_routing && super::is_direct(local, public_ip, attrs, NAME)
    }

    /// The family of the address to which packets for a subnet of `family` go.
    pub(super) fn over(&self, local: &LocalNode, attrs: &LeaseAttrs, family: IpFamily) -> IpFamily {
        let public_ip = *attrs.public_ips.get(family);
        match self.mode {
            _ if public_ip.is_some_and(|public_ip| self.is_direct(local, attrs, public_ip)) => family,
            Mode::Separate => family,
            Mode::Over(over) => over,
            Mode::Auto => likelier(local, attrs),
        }
    }

    /// Where packets for a subnet of `family` go through the tunnel.
    fn endpoint(&self, local: &LocalNode, attrs: &LeaseAttrs, family: IpFamily) -> Result<SocketAddr, String> {
        let over = self.over(local, attrs, family);
        let BackendAttrs::Wireguard(ends) = &attrs.backend else { return Err("is no WireGuard node".to_owned()) };
        let said = ends.get(over).or(*ends.get(family)).and_then(|end| end.port);
        // As flannel does for leases that do not say.
        Ok(SocketAddr::new(attrs.public_ip(over)?, said.unwrap_or_else(|| self.port(over))))
    }

    /// flannel's route, for the whole Pod network.
    pub(super) fn flannel_made_whole(&self, key: &RouteKey, route: &Route) -> bool {
        route.link == Some(self.device(key.dst.family())) && route.via.is_none()
    }
}

/// flannel's choice (selectPublicEndpoint): IPv4 unless it is private and both sides' IPv6 is not.
fn likelier(local: &LocalNode, attrs: &LeaseAttrs) -> IpFamily {
    let own = local.public_ips();
    match (attrs.public_ips.v4, attrs.public_ips.v6) {
        (None, Some(_)) => IpFamily::V6,
        (Some(v4), Some(v6)) => {
            let v4_reached = !is_private(v4) && own.v4.is_some();
            let v6_reached = !is_private(v6) && own.v6.is_some_and(|own| !is_private(own));
            if !v4_reached && v6_reached { IpFamily::V6 } else { IpFamily::V4 }
        }
        _ => IpFamily::V4,
    }
}

/// Addresses that the Internet does not route (RFC 1918, RFC 4193, RFC 4291 §2.5.6).
fn is_private(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_private() || addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unique_local() || addr.is_unicast_link_local(),
    }
}

fn own_end(local: &LocalNode, attrs: &LeaseAttrs, family: IpFamily, public_ip: IpAddr) -> Result<End, String> {
    let BackendAttrs::Wireguard(ends) = &attrs.backend else {
        return Err(format!("{public_ip} uses another backend than this network's wireguard"));
    };
    let end = ends.get(family).ok_or_else(|| format!("{public_ip} has no usable WireGuard key of {family}"))?;
    if Some(end.key) == local.public_key {
        return Err(format!("{public_ip} has the public key of this node's own device, {}", end.key));
    }
    Ok(end)
}

fn tunnel_route(subnet: Prefix, device: &IfName) -> (RouteKey, Route) {
    let (key, value) = route(subnet, subnet.addr(), device, false);
    // The kernel gives every route of IPv6 the same scope.
    let scope = if subnet.is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    (key, Route { via: None, scope, ..value })
}

/// True for the name of a tunnel device.
pub(super) fn is_device(link: &IfName) -> bool {
    DEVICES.values().any(|device| device == link)
}

pub(super) const fn makes_link(link: &Link) -> bool {
    matches!(link.kind, LinkKind::Wireguard)
}
