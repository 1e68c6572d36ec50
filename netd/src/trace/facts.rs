//! What a packet meets on this node, read from the kernel without sending anything.
//!
//! Invariant: the kernel is asked as it would ask itself: by the interface that the packet comes in by, with its source,
//! protocol and port.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use kernel::ipvs::Ipvs;
use kernel::link::LinkState;
use kernel::way::Packet;
use kernel::wireguard::Sessions;
use kernel::{KernelError, Rtnl};
use netstate::ipvs::VirtualServerKey;
use netstate::{IfName, LinkKind, MacAddr, Prefix, Protocol, Route, RouteKey, SysctlKey};

use super::outer;
use super::pods::Place;
use crate::run::status::Status;
use crate::run::subnet_file;

/// The packet that is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traced {
    /// Its source.
    pub from: IpAddr,
    /// Its destination.
    pub to: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
}

/// Why the kernel has no route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The kernel's number.
    pub errno: Option<i32>,
    /// Its words.
    pub text: String,
}

/// What the lookup of a route says.
pub(crate) type Entry = Result<(RouteKey, Route), Refused>;

/// A Pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    /// Where its namespace was found.
    pub netns: String,
    /// Its interface.
    pub interface: IfName,
    /// That interface's MTU in bytes.
    pub mtu: u32,
    /// It is up.
    pub up: bool,
    /// Its own route to the destination.
    pub entry: Entry,
    /// Index of the interface's other end on the host.
    pub host_end: Option<u32>,
}

/// Another node, by its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its subnet of the destination's family.
    pub subnet: Prefix,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The links by which packets shall leave for it.
    pub path: String,
}

/// A Service's address in IPVS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// The virtual server.
    pub key: VirtualServerKey,
    /// How it chooses.
    pub scheduler: String,
    /// Its servers with their weights.
    pub servers: Vec<(SocketAddr, u32)>,
}

/// What a tunnel or a link needs to pass the packet on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Beyond {
    /// The next hop on the link, where the link has such.
    pub hop: Option<IpAddr>,
    /// Its hardware address, and whether it was set for good.
    pub neighbour: Option<(MacAddr, bool)>,
    /// Where a tunnel sends frames for that.
    pub ends: Vec<IpAddr>,
    /// The peers of a WireGuard device.
    pub sessions: Option<Sessions>,
    /// When they were listed, in seconds since 1970.
    pub now: u64,
    /// The route of the tunnel's own packets, by their destination.
    pub outer: Option<(IpAddr, Entry)>,
}

/// Everything that is judged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Pod networks and this node's own subnets, as far as they are known.
    pub networks: Vec<Prefix>,
    /// This node's subnets.
    pub subnets: Vec<Prefix>,
    /// The daemon answers.
    pub has_daemon: bool,
    /// Interfaces by index.
    pub links: BTreeMap<u32, LinkState>,
    /// Addresses with the index of their interface.
    pub addresses: Vec<(u32, IpAddr)>,
    /// Whether packets that come in by an interface, or `all`, are forwarded.
    pub forwarding: BTreeMap<String, bool>,
    /// The Pod that sends.
    pub pod: Option<Pod>,
    /// Index of the interface by which the packet comes to the host.
    pub came_by: Option<u32>,
    /// The Service that the packet is for.
    pub service: Option<Service>,
    /// Rules of nftables give the packet another destination.
    pub is_translated: bool,
    /// Where the packet goes, behind a Service.
    pub to: Option<SocketAddr>,
    /// The other node that has it.
    pub node: Option<Node>,
    /// The VRF in which the other nodes are reached.
    pub vrf: Option<IfName>,
    /// The host's route.
    pub entry: Option<Entry>,
    /// What comes behind it.
    pub beyond: Beyond,
    /// The namespace of the Pod that shall get it, where that is on this node.
    pub receiver: Option<String>,
}

impl Facts {
    /// The interface with this name.
    pub(super) fn link(&self, name: &IfName) -> Option<&LinkState> {
        self.links.values().find(|link| link.name == *name)
    }
}

/// Gathers what the packet meets: from `pod` if it sends it, else from the host or, by `came_by`, from outside. `behind` is the
/// destination that rules of nftables give it.
///
/// # Errors
/// When the kernel cannot be read.
pub(crate) fn gather(
    traced: &Traced,
    pod: Option<&Place>,
    status: Option<&Status>,
    subnet_file: &str,
    behind: Option<SocketAddr>,
) -> Result<Facts> {
    let mut rtnl = Rtnl::open()?;
    let mut facts = Facts { has_daemon: status.is_some(), ..Facts::default() };
    (facts.networks, facts.subnets) = networks(status, subnet_file);
    facts.links = rtnl.links()?.into_iter().map(|link| (link.index, link)).collect();
    facts.addresses = rtnl.addresses()?.into_iter().map(|(index, addr, _)| (index, addr)).collect();
    facts.service = service(traced);
    let chosen = facts.service.as_ref().and_then(|service| service.servers.iter().find(|(_, weight)| *weight > 0));
    let to = behind.unwrap_or_else(|| chosen.map_or(traced.to, |(server, _)| *server));
    facts.is_translated = behind.is_some();
    facts.to = Some(to);
    facts.pod = pod.map(|place| inside(place, traced)).transpose()?;
    let host_end = facts.pod.as_ref().and_then(|pod| pod.host_end);
    facts.came_by = host_end.map(|index| facts.links.get(&index).and_then(|link| link.master_index).unwrap_or(index));
    if facts.pod.is_none() && facts.subnets.iter().any(|subnet| subnet.contains(traced.from)) {
        let bridge = |addr: &&(u32, IpAddr)| facts.subnets.iter().any(|subnet| subnet.contains(addr.1));
        let own = facts.addresses.iter().any(|(_, addr)| *addr == traced.from);
        let ports = facts.addresses.iter().filter(bridge).find(|(index, _)| is_bridge(facts.links.get(index)));
        facts.came_by = ports.map(|(index, _)| *index).filter(|_| !own);
    }
    facts.vrf = status.and_then(|status| crate::doctor::vrf(&mut rtnl, status));
    facts.node = status.and_then(|status| node(status, to.ip()));
    facts.entry = Some(look_up(&mut rtnl, traced, to, facts.came_by));
    facts.beyond = beyond(&mut rtnl, &facts, to)?;
    facts.forwarding = forwarding(&facts, to);
    let own_pod = facts.subnets.iter().any(|subnet| subnet.contains(to.ip()));
    let is_own = facts.addresses.iter().any(|(_, addr)| *addr == to.ip());
    let receiver = || super::pods::place_of(to.ip()).map(|place| place.netns.path().display().to_string());
    facts.receiver = if own_pod && !is_own { receiver() } else { None };
    Ok(facts)
}

fn is_bridge(link: Option<&LinkState>) -> bool {
    link.is_some_and(|link| matches!(link.link.kind, LinkKind::Bridge(_)))
}

fn refused(error: &KernelError) -> Refused {
    let text =
        error.errno().map_or_else(|| error.to_string(), |number| std::io::Error::from_raw_os_error(number).to_string());
    Refused { errno: error.errno(), text }
}

fn look_up(rtnl: &mut Rtnl, traced: &Traced, to: SocketAddr, came_by: Option<u32>) -> Entry {
    let from = Some(traced.from).filter(|from| !from.is_unspecified());
    let packet = Packet { from, came_by, port: Some((traced.protocol, to.port())), ..Packet::own(to.ip()) };
    rtnl.entry_for(&packet).map_err(|error| refused(&error))
}

/// The Pod networks and the own subnets: of the daemon, or of the file that it leaves for the CNI plugin.
fn networks(status: Option<&Status>, subnet_file: &str) -> (Vec<Prefix>, Vec<Prefix>) {
    let parse = |text: &str| text.split(',').filter_map(|prefix| prefix.parse().ok()).collect();
    if let Some(node) = status.map(|status| &status.node) {
        return (parse(&node.network), parse(node.subnet.as_deref().unwrap_or_default()));
    }
    let Some(file) = subnet_file::load(Path::new(subnet_file)) else { return Default::default() };
    let network = |prefix: Prefix| Prefix::new(prefix.addr(), prefix.len()).ok();
    let subnets = [file.subnet_v4, file.subnet_v6].into_iter().flatten().filter_map(network).collect();
    (file.networks().copied().collect(), subnets)
}

fn inside(place: &Place, traced: &Traced) -> Result<Pod> {
    let mut rtnl = Rtnl::open_in(&place.netns)?;
    Ok(Pod {
        netns: place.netns.path().display().to_string(),
        interface: place.interface.clone(),
        mtu: place.mtu,
        up: place.up,
        entry: look_up(&mut rtnl, traced, traced.to, None),
        host_end: place.peer,
    })
}

/// The node whose lease has `address`.
pub(super) fn node(status: &Status, address: IpAddr) -> Option<Node> {
    status.leases.iter().flatten().find_map(|(subnets, peer)| {
        let subnet =
            subnets.split(',').filter_map(|text| text.parse::<Prefix>().ok()).find(|own| own.contains(address))?;
        let addresses = peer.public_ip.split(',').filter_map(|text| text.parse().ok()).collect();
        Some(Node { subnet, addresses, path: peer.path.clone() })
    })
}

/// What IPVS has for the packet; a kernel without IPVS has nothing.
fn service(traced: &Traced) -> Option<Service> {
    let mut ipvs = Ipvs::open().ok()?;
    let key = VirtualServerKey { protocol: traced.protocol, addr: traced.to.ip(), port: traced.to.port() };
    let server = ipvs.virtual_server(&key).ok()??;
    let servers = ipvs.real_servers(&key).ok()?;
    let servers = servers.into_iter().map(|(key, (server, _))| (SocketAddr::new(key.addr, key.port), server.weight));
    Some(Service { key, scheduler: server.scheduler.to_string(), servers: servers.collect() })
}

/// What comes behind the host's route.
fn beyond(rtnl: &mut Rtnl, facts: &Facts, to: SocketAddr) -> Result<Beyond> {
    let mut beyond = Beyond::default();
    let Some(Ok((_, route))) = &facts.entry else { return Ok(beyond) };
    let Some(link) = route.link.as_ref().and_then(|name| facts.link(name)) else { return Ok(beyond) };
    if link.name.as_str() == "lo" || facts.addresses.iter().any(|(_, addr)| *addr == to.ip()) {
        return Ok(beyond);
    }
    let hop = route.via.unwrap_or(to.ip());
    let remote = match &link.link.kind {
        LinkKind::Ipip(_) => Some(SocketAddr::new(hop, 0)),
        LinkKind::Wireguard => {
            beyond.sessions = Sessions::of(&link.name).ok();
            beyond.now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            beyond.sessions.as_ref().and_then(|sessions| sessions.peer_of(to.ip())?.endpoint)
        }
        LinkKind::Vxlan(options) => {
            beyond.hop = Some(hop);
            beyond.neighbour = rtnl.neighbour_on(link.index, hop)?;
            if let Some((mac, _)) = beyond.neighbour {
                beyond.ends = rtnl.tunnel_ends_of(link.index, mac)?;
            }
            beyond.ends.first().map(|end| SocketAddr::new(*end, options.port))
        }
        _ => {
            beyond.hop = Some(hop);
            beyond.neighbour = rtnl.neighbour_on(link.index, hop)?;
            None
        }
    };
    beyond.outer = remote.map(|remote| {
        let own_port = beyond.sessions.as_ref().map(|sessions| sessions.port);
        let packet = outer::packet(link, &facts.links, own_port, remote);
        (remote.ip(), rtnl.entry_for(&packet).map_err(|error| refused(&error)))
    });
    Ok(beyond)
}

/// Forwarding of the host, and of the interface that the packet comes in by.
fn forwarding(facts: &Facts, to: SocketAddr) -> BTreeMap<String, bool> {
    let came_by = facts.came_by.and_then(|index| facts.links.get(&index)).map(|link| link.name.to_string());
    let family = if to.is_ipv4() { "ipv4" } else { "ipv6" };
    let read = |name: String| {
        let key = format!("net/{family}/conf/{name}/forwarding").parse::<SysctlKey>().ok()?;
        Some((name, kernel::sysctl::read(&key).ok()?.trim() != "0"))
    };
    ["all".to_owned()].into_iter().chain(came_by).filter_map(read).collect()
}
