//! Where packets from the other nodes enter this one, and which rules deny them there.
//!
//! Found by following the rules with such a packet, since a probe shows less: WireGuard and ipip answer from where they are
//! asked, and the answer to a question passes rules that a first packet does not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use kernel::legacy::{self, arrival::Input};
use kernel::link::LinkState;
use kernel::nft::Nft;
use kernel::nft::arrival::{Arrival, Arrivals, Denied};
use kernel::query::Interface;
use kernel::wireguard::Sessions;
use kernel::{KernelError, Rtnl};
use netstate::family::IpFamily;
use netstate::nft::{Family, Name, TableKey};
use netstate::{IfName, LinkKind, Prefix, Protocol};

use crate::plan::backend::Backend;
use crate::run::status::Status;

/// Other nodes for whom rules are followed.
const NODES: usize = 64;

/// IPPROTO_IPIP.
const IPIP: u8 = 4;

/// What packets of other nodes come as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entrance {
    /// Those of a tunnel at a UDP port.
    Udp(u16),
    /// Those of ipip.
    Ipip,
    /// Those of `netd doctor`, at a UDP port.
    Probes(u16),
}

impl Entrance {
    /// The UDP port, where there is one.
    pub(super) const fn port(self) -> Option<u16> {
        match self {
            Self::Udp(port) | Self::Probes(port) => Some(port),
            Self::Ipip => None,
        }
    }
}

impl fmt::Display for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(port) => write!(f, "the tunnel's packets to UDP port {port}"),
            Self::Ipip => f.write_str("the tunnel's packets of IP protocol 4"),
            Self::Probes(port) => write!(f, "probes to UDP port {port}"),
        }
    }
}

/// What denies packets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Denier {
    /// Rules of nftables.
    Nft(Denied),
    /// Those of iptables-legacy.
    Legacy(legacy::arrival::Denied),
}

impl fmt::Display for Denier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nft(denied) => denied.fmt(f),
            Self::Legacy(denied) => denied.fmt(f),
        }
    }
}

/// A program that makes rules from a configuration of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Firewall {
    Firewalld,
    Ufw,
}

impl Firewall {
    const ALL: [Self; 2] = [Self::Firewalld, Self::Ufw];

    /// A chain that it makes in tables of iptables.
    const fn chain(self, family: IpFamily) -> &'static str {
        match (self, family) {
            (Self::Firewalld, _) => "INPUT_direct",
            (Self::Ufw, IpFamily::V4) => "ufw-user-input",
            (Self::Ufw, IpFamily::V6) => "ufw6-user-input",
        }
    }
}

/// An entrance that rules close.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Closed {
    /// What they deny.
    pub entrance: Entrance,
    /// What denies.
    pub denied: Denier,
    /// Whose rules deny, where that is known.
    pub firewall: Option<Firewall>,
    /// The tunnel's device, or the interface.
    pub device: IfName,
    /// Nodes whose packets are denied.
    pub nodes: BTreeSet<IpAddr>,
    /// The network that they share with this node, or the first node alone.
    pub network: Prefix,
}

/// Follows the rules for each tunnel of this node and each other node.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn closed(
    status: Option<&Status>,
    interfaces: &[Interface],
    nodes: impl Iterator<Item = IpAddr>,
    probes: Option<u16>,
) -> Result<Vec<Closed>, KernelError> {
    let Some(status) = status else { return Ok(Vec::new()) };
    let Some(uplink) = interfaces.iter().find(|found| found.name.as_str() == status.node.interface) else {
        return Ok(Vec::new());
    };
    let nodes: BTreeSet<IpAddr> = nodes.take(NODES).collect();
    let mut rules = Rules::read()?;
    let mut closed: BTreeMap<(Entrance, Denier, IpFamily), Closed> = BTreeMap::new();
    for (device, family, entrance) in entrances(&Rtnl::open()?.links()?, &uplink.name, probes) {
        let own = |address: &&netstate::InterfaceAddress| {
            IpFamily::of(address.addr) == family && !is_link_local(address.addr)
        };
        let Some(own) = uplink.addresses.iter().find(own) else { continue };
        for node in nodes.iter().filter(|node| IpFamily::of(**node) == family) {
            let protocol = entrance.port().map_or(IPIP, |_| Protocol::Udp.number());
            let link = (uplink.name.clone(), uplink.index);
            let arrival = Arrival { link, from: Some(*node), to: own.addr, protocol, port: entrance.port() };
            let Some((denied, firewall)) = rules.denied(&arrival)? else { continue };
            let network = Prefix::new(own.addr, own.len).ok().filter(|network| network.contains(*node));
            let network = network.unwrap_or_else(|| Prefix::host(*node));
            let new = || Closed {
                entrance,
                denied: denied.clone(),
                firewall,
                device: device.clone(),
                nodes: [].into(),
                network,
            };
            // What opens it says of which family.
            closed.entry((entrance, denied.clone(), family)).or_insert_with(new).nodes.insert(*node);
        }
    }
    Ok(closed.into_values().collect())
}

/// The rules that arriving packets meet.
struct Rules {
    nft: Arrivals,
    more: Nft,
    legacy: BTreeMap<IpFamily, Input>,
}

impl Rules {
    fn read() -> Result<Self, KernelError> {
        let mut legacy = BTreeMap::new();
        for family in IpFamily::ALL {
            legacy.insert(family, Input::of(family)?);
        }
        Ok(Self { nft: Arrivals::read(Nft::open()?)?, more: Nft::open()?, legacy })
    }

    /// What denies a packet, and whose that is.
    fn denied(&mut self, arrival: &Arrival) -> Result<Option<(Denier, Option<Firewall>)>, KernelError> {
        if let Some(denied) = self.nft.denied(arrival)? {
            let family = if denied.table.family == Family::Ip6 { IpFamily::V6 } else { IpFamily::V4 };
            let firewall = self.owner(&denied.table, family)?;
            return Ok(Some((Denier::Nft(denied), firewall)));
        }
        let family = IpFamily::of(arrival.to);
        let Some(input) = self.legacy.get(&family) else { return Ok(None) };
        let firewall = Firewall::ALL.into_iter().find(|firewall| input.has_chain(firewall.chain(family)));
        Ok(input.denied(arrival).map(|denied| (Denier::Legacy(denied), firewall)))
    }

    /// Whose rules are in a table.
    fn owner(&mut self, table: &TableKey, family: IpFamily) -> Result<Option<Firewall>, KernelError> {
        if table.family == Family::Inet {
            return Ok((table.name.as_str() == "firewalld").then_some(Firewall::Firewalld));
        }
        for firewall in Firewall::ALL {
            if self.more.has_chain(table, &Name::literal(firewall.chain(family)))? {
                return Ok(Some(firewall));
            }
        }
        Ok(None)
    }
}

fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

/// The entrances of this node's tunnels and of probes, for packets of each family.
fn entrances(links: &[LinkState], uplink: &IfName, probes: Option<u16>) -> Vec<(IfName, IpFamily, Entrance)> {
    let mut found = Vec::new();
    for link in links.iter().filter(|link| Backend::owns_device(&link.name)) {
        match &link.link.kind {
            LinkKind::Vxlan(options) => {
                let family = options.local.map_or(IpFamily::V4, IpFamily::of);
                found.push((link.name.clone(), family, Entrance::Udp(options.port)));
            }
            LinkKind::Ipip(_) => found.push((link.name.clone(), IpFamily::V4, Entrance::Ipip)),
            LinkKind::Wireguard => {
                let Ok(sessions) = Sessions::of(&link.name) else { continue };
                let over: BTreeSet<IpFamily> =
                    sessions.peers.iter().filter_map(|peer| Some(IpFamily::of(peer.endpoint?.ip()))).collect();
                found.extend(over.into_iter().map(|family| (link.name.clone(), family, Entrance::Udp(sessions.port))));
            }
            _ => {}
        }
    }
    let of_family = |port| IpFamily::ALL.map(|family| (uplink.clone(), family, Entrance::Probes(port)));
    found.extend(probes.into_iter().flat_map(of_family));
    found
}
