//! Whether this node's tunnels have a route to the other nodes: rules of `ip rule` may send their packets elsewhere than the
//! host's own, which a probe beside the tunnel does not show.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use kernel::way::Packet;
use kernel::wireguard::Sessions;
use kernel::{KernelError, Rtnl};
use netstate::{IfName, LinkKind};

use super::{Facts, Trouble};
use crate::plan::backend::Backend;
use crate::trace::outer;

/// Other nodes whose route is looked up.
const NODES: usize = 512;

/// A tunnel without a route to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Astray {
    /// The tunnel's device.
    pub device: IfName,
    /// What it sends.
    pub packet: Packet,
    /// The kernel's words.
    pub reason: String,
}

/// Looks up the route of each tunnel's packets to the nodes that it leads to.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn astray(nodes: impl Iterator<Item = IpAddr>) -> Result<Vec<Astray>, KernelError> {
    let nodes: Vec<IpAddr> = nodes.take(NODES).collect();
    let mut rtnl = Rtnl::open()?;
    let links: BTreeMap<u32, _> = rtnl.links()?.into_iter().map(|link| (link.index, link)).collect();
    let mut found = Vec::new();
    for link in links.values().filter(|link| Backend::owns_device(&link.name)) {
        let ends: Vec<SocketAddr> = match &link.link.kind {
            LinkKind::Wireguard => {
                let peers = Sessions::of(&link.name).map(|sessions| sessions.peers).unwrap_or_default();
                peers.iter().filter_map(|peer| peer.endpoint).take(NODES).collect()
            }
            LinkKind::Vxlan(options) => {
                let v4 = options.local.is_none_or(|local| local.is_ipv4());
                let of_family = nodes.iter().filter(|node| node.is_ipv4() == v4);
                of_family.map(|node| SocketAddr::new(*node, options.port)).collect()
            }
            LinkKind::Ipip(_) => {
                nodes.iter().filter(|node| node.is_ipv4()).map(|node| SocketAddr::new(*node, 0)).collect()
            }
            _ => Vec::new(),
        };
        for end in ends {
            let packet = outer::packet(link, &links, end);
            if let Err(error) = rtnl.entry_for(&packet) {
                let words = error.errno().map(|number| std::io::Error::from_raw_os_error(number).to_string());
                let reason = words.unwrap_or_else(|| error.to_string());
                found.push(Astray { device: link.name.clone(), packet, reason });
            }
        }
    }
    Ok(found)
}

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    let trouble = |Astray { device, packet, reason }: &Astray| {
        let Packet { from, to, port, .. } = packet;
        let from = from.map(|from| format!(" from {from}")).unwrap_or_default();
        let port = port.map(|(protocol, port)| format!(" ipproto {protocol} dport {port}")).unwrap_or_default();
        let fix = format!(
            "see which rule of `ip rule` takes them (`ip route get {to}{from}{port}`), and give them a route there"
        );
        Trouble::problem(format!("{device}: its packets{from} to {to} have no route: {reason}"), fix)
    };
    facts.astray.iter().map(trouble).collect()
}
