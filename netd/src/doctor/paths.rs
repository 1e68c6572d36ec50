//! What the probes say: whether nodes are reached, whether checksums are right, and how large a packet may be.

use netstate::mtu;

use super::probing::{Outcome, Paths, Peer};
use super::{Facts, Trouble};

/// True when a packet arrives in the tunnel only without a checksum.
fn is_miscounted(paths: &Paths) -> bool {
    paths.tunnel.is_some_and(|found| !found.arrived()) && paths.unchecked.is_some_and(|found| found.arrived())
}

pub(super) fn reachability(facts: &Facts) -> Vec<Trouble> {
    facts.paths.iter().filter_map(|(peer, paths)| unreached(peer, paths)).collect()
}

fn unreached(peer: &Peer, paths: &Paths) -> Option<Trouble> {
    let (name, address, port) = (&peer.name, peer.direct.ip(), peer.direct.port());
    if is_miscounted(paths) {
        return None;
    }
    let tunnel = paths.tunnel.is_none_or(|found| found.arrived());
    match (paths.direct.arrived(), tunnel) {
        (true, true) => None,
        (true, false) => {
            let found = format!("{name}: {address} answers, its {} tunnel does not{}", peer.backend, why(paths.tunnel));
            let fix = match peer.backend.as_str() {
                "ipip" => {
                    "let IP protocol 4 pass between the nodes, in both directions, in every firewall between them"
                        .to_owned()
                }
                kind => {
                    let usual = if kind == "wireguard" { "51820" } else { "8472" };
                    format!(
                        "open the tunnel's UDP port (net-conf's Backend, usually {usual}) between the nodes, both ways"
                    )
                }
            };
            Some(Trouble::problem(found, fix))
        }
        (false, true) if paths.tunnel.is_some() => {
            let found = format!("{name}: UDP port {port} of {address} does not answer; its tunnel does");
            Some(Trouble::note(found, format!("nothing for Pods; to probe the way below the tunnel open UDP {port}")))
        }
        (false, _) => {
            let found = format!("{name}: nothing comes back from {address}{}", why(Some(paths.direct)));
            let fix = format!(
                "is that node up, and `ping {address}` well? then open UDP {port} (probes) and the tunnel's port there"
            );
            Some(Trouble::problem(found, fix))
        }
    }
}

/// The kernel's reason, where it gave one.
fn why(outcome: Option<Outcome>) -> String {
    match outcome {
        Some(Outcome::Refused(number)) => format!(" ({})", std::io::Error::from_raw_os_error(number)),
        _ => String::new(),
    }
}

pub(super) fn checksums(facts: &Facts) -> Vec<Trouble> {
    let wrong = facts.paths.iter().filter(|(_, paths)| is_miscounted(paths));
    wrong
        .map(|(peer, _)| {
            let found = format!("{}: packets arrive in the tunnel without a checksum only", peer.subnet);
            let fix = "a kernel or a network card counts them wrongly: netd config edit Backend.ChecksumWorkaround=on";
            Trouble::problem(found, fix)
        })
        .collect()
}

pub(super) fn sizes(facts: &Facts) -> Vec<Trouble> {
    let size = facts.daemon.as_ref().map_or(0, |daemon| daemon.node.mtu);
    let ipv6 = facts.networks().iter().any(|network| !network.is_ipv4());
    let mut troubles = Vec::new();
    for (peer, paths) in facts.paths.iter().filter(|(_, paths)| paths.carries()) {
        let found = match paths.largest {
            Some(largest) if largest >= size => continue,
            Some(largest) => format!("{}: packets of {size} bytes do not arrive, of {largest} do", peer.subnet),
            None => format!("{}: only the smallest packets arrive", peer.subnet),
        };
        // A link below the smallest MTU of IPv6 has none.
        let smallest = if ipv6 { mtu::MIN_IPV6 } else { mtu::MIN_IPV4 };
        let option = paths.largest.filter(|largest| *largest >= smallest).and_then(|largest| option(peer, largest));
        let fix = match option {
            Some(option) => format!(
                "raise the MTU of the network between the nodes, or lower the Pods': netd config edit Backend.MTU={option}"
            ),
            None => "raise the MTU of the network between the nodes, or let its routers send `fragmentation needed`"
                .to_owned(),
        };
        troubles.push(Trouble::problem(found, fix));
    }
    troubles
}

/// The `Backend.MTU` by which Pods send packets of up to `largest` bytes; `None` where the backend has no such option.
fn option(peer: &Peer, largest: u32) -> Option<u32> {
    let overhead = match peer.backend.as_str() {
        "vxlan" if peer.direct.is_ipv4() => mtu::VXLAN_OVER_IPV4,
        "vxlan" => mtu::VXLAN_OVER_IPV6,
        "wireguard" => mtu::WIREGUARD,
        _ => return None,
    };
    Some(largest.saturating_add(overhead))
}
