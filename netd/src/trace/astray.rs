//! Tunnels whose own packets have no route to a node: rules of `ip rule` may send them elsewhere than the host's own, which no
//! probe beside the tunnel shows.
//!
//! Invariant: each packet is looked up with all that the tunnel gives the kernel ([`outer`]); reads only.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kernel::link::LinkState;
use kernel::way::Packet;
use kernel::{KernelError, Rtnl};
use netstate::{IfName, LinkKind};

use super::outer;

/// A tunnel and where it sends to; the port is WireGuard's, the others have their own.
pub(crate) type End = (IfName, SocketAddr);

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

/// Those of `ends`, each named by a key, that have no route. `own_port` says which port a WireGuard device receives on.
///
/// # Errors
/// When the kernel cannot be read.
pub(crate) fn find<K>(
    rtnl: &mut Rtnl,
    own_port: impl Fn(&IfName) -> Option<u16>,
    ends: impl IntoIterator<Item = (K, End)>,
) -> Result<Vec<(K, Astray)>, KernelError> {
    let (mut devices, mut links) = (BTreeMap::<IfName, Option<LinkState>>::new(), BTreeMap::new());
    let mut found = Vec::new();
    for (key, (device, end)) in ends {
        if !devices.contains_key(&device) {
            let link = rtnl.link(&device)?;
            if let Some(link) = &link {
                note_below(rtnl, link, &mut links)?;
            }
            devices.insert(device.clone(), link);
        }
        let Some(link) = devices.get(&device).and_then(Option::as_ref) else { continue };
        let packet = outer::packet(link, &links, own_port(&device), end);
        let reason = match rtnl.entry_for(&packet) {
            Ok((_, route)) if route.link.as_ref() == Some(&device) => "it leads into the tunnel itself".to_owned(),
            Ok(_) => continue,
            Err(error) => match error.errno() {
                Some(number) => std::io::Error::from_raw_os_error(number).to_string(),
                None => return Err(error),
            },
        };
        found.push((key, Astray { device, packet, reason }));
    }
    Ok(found)
}

/// Notes the link below a tunnel and the VRF that this is in, of which its packets depend.
fn note_below(rtnl: &mut Rtnl, tunnel: &LinkState, links: &mut BTreeMap<u32, LinkState>) -> Result<(), KernelError> {
    let LinkKind::Vxlan(_) = &tunnel.link.kind else { return Ok(()) };
    let Some(lower) = tunnel.lower_index.map(|index| rtnl.link_by_index(index)).transpose()?.flatten() else {
        return Ok(());
    };
    let vrf = rtnl.vrf_of(&lower.name)?;
    links.extend(std::iter::once(lower).chain(vrf).map(|link| (link.index, link)));
    Ok(())
}

impl Astray {
    /// What an operator can do.
    #[must_use]
    fn fix(&self) -> String {
        let Packet { from, to, port, source_port, .. } = self.packet;
        let from = from.map(|from| format!(" from {from}")).unwrap_or_default();
        let port = port.map(|(protocol, port)| format!(" ipproto {protocol} dport {port}")).unwrap_or_default();
        let source_port = source_port.map(|port| format!(" sport {port}")).unwrap_or_default();
        format!(
            "see which rule of `ip rule` takes them (`ip route get {to}{from}{port}{source_port}`), and give them a route there"
        )
    }
}

/// What there is to say of `all`, however many they are: a text and what to do, once for each device and reason.
pub(crate) fn findings<'a>(all: impl IntoIterator<Item = &'a Astray>) -> Vec<(String, String)> {
    let mut alike: BTreeMap<_, (&Astray, bool)> = BTreeMap::new();
    for astray in all {
        let place = (&astray.device, astray.packet.from, &astray.reason);
        alike.entry(place).and_modify(|(_, more)| *more = true).or_insert((astray, false));
    }
    alike.into_values().map(|(first, more)| (first.text(more), first.fix())).collect()
}

impl Astray {
    /// What is wrong, of this one or of `more` like it.
    fn text(&self, more: bool) -> String {
        let Self { device, packet, reason } = self;
        let from = packet.from.map(|from| format!(" from {from}")).unwrap_or_default();
        let more = if more { " and to other nodes" } else { "" };
        format!("{device}: its packets{from} to {}{more} have no route: {reason}", packet.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_without_a_route_for_one_reason_are_one_finding() {
        let astray = |device: &str, to: &str, reason: &str| Astray {
            device: device.parse().unwrap(),
            packet: Packet { from: Some([10, 4, 7, 21].into()), ..Packet::own(to.parse().unwrap()) },
            reason: reason.to_owned(),
        };
        let all = [
            astray("flannel.1", "10.4.8.1", "Network is unreachable"),
            astray("flannel.1", "10.4.8.2", "No route to host"),
            astray("flannel.1", "10.4.8.3", "Network is unreachable"),
            astray("flannel-wg", "10.4.8.1", "Network is unreachable"),
        ];
        let texts: Vec<_> = findings(&all).into_iter().map(|(text, _)| text).collect();
        assert_eq!(
            texts,
            [
                "flannel-wg: its packets from 10.4.7.21 to 10.4.8.1 have no route: Network is unreachable",
                "flannel.1: its packets from 10.4.7.21 to 10.4.8.1 and to other nodes have no route: Network is unreachable",
                "flannel.1: its packets from 10.4.7.21 to 10.4.8.2 have no route: No route to host",
            ]
        );
    }
}
