//! Addresses, MTU, ways to the other hosts, and networks that somebody else uses.
//!
//! Pure. Invariant: what our own programs made (bridge, tunnels, their routes) overlaps nothing.

use std::net::IpAddr;

use daemon::doctor::Trouble;
use netstate::Prefix;

use super::facts::{Case, Link};
use crate::topology::Backend;

/// Links of ours, by what their names begin with.
const OWN: [&str; 5] = ["flannel", "cbr0", "cni0", "kube-ipvs0", "veth"];

/// Bytes that a tunnel adds, over IPv4 and over IPv6.
const fn overhead(backend: Backend, is_ipv4: bool) -> u32 {
    match (backend, is_ipv4) {
        (Backend::Vxlan, true) => 50,
        (Backend::Vxlan, false) => 70,
        (Backend::Wireguard, true) => 60,
        (Backend::Wireguard, false) => 80,
        (Backend::HostGw, _) => 0,
    }
}

/// The least that IPv6 takes (RFC 8200, 5), and what IPv4 has to take (RFC 791, 3.1).
const LEAST: [u32; 2] = [576, 1280];

fn link_of(case: &Case, address: IpAddr) -> Option<&Link> {
    case.facts.links.iter().find(|link| link.addresses.iter().any(|(own, _)| *own == address))
}

/// Whether this host has its addresses, and a way from them to every other host.
pub(super) fn ways(case: &Case) -> Vec<Trouble> {
    let Some(plan) = &case.plan else { return Vec::new() };
    let mut troubles = Vec::new();
    for own in plan.host.addresses.iter().map(|address| address.value) {
        if link_of(case, own).is_none() && !case.facts.links.is_empty() {
            let found =
                format!("{own}, the address of {} in the topology, is none of this host's", plan.host.name.value);
            troubles.push(Trouble::problem(found, format!("ip address add {own}/LENGTH dev IFACE, and in the configuration of its network; or name the right host by --host")));
        }
    }
    for host in case.others() {
        for address in host.addresses.iter().map(|address| address.value) {
            let name = &host.name.value;
            let own = plan.host.addresses.iter().map(|own| own.value).find(|own| own.is_ipv4() == address.is_ipv4());
            let Some(own) = own else { continue };
            match case.facts.ways.get(&address) {
                Some(Err(reason)) => troubles.push(Trouble::problem(
                    format!("there is no route to {name} ({address}): {reason}"),
                    format!(
                        "ip route add {} via ROUTER, and in the configuration of its network",
                        Prefix::host(address)
                    ),
                )),
                Some(Ok(way)) => {
                    let source = way.source.filter(|source| *source != own);
                    let uplink = link_of(case, own).filter(|link| link.name != way.link);
                    if let (Some(source), Some(link)) = (source, uplink) {
                        let found = format!(
                            "packets to {name} ({address}) leave by {} from {source}, and those of {own} by {}",
                            way.link, link.name
                        );
                        troubles.push(Trouble::problem(
                            found,
                            format!("ip route add {} dev {} src {own}", Prefix::host(address), link.name),
                        ));
                    }
                }
                None => {}
            }
        }
    }
    troubles
}

/// Whether packets of Pods fit.
pub(super) fn mtu(case: &Case) -> Vec<Trouble> {
    let Some(plan) = &case.plan else { return Vec::new() };
    let mut troubles = Vec::new();
    let backend = plan.topology.pods.backend.value;
    if !case.has_netd() {
        return troubles;
    }
    for own in plan.host.addresses.iter().map(|address| address.value) {
        let Some(link) = link_of(case, own) else { continue };
        let room = link.mtu.saturating_sub(overhead(backend, own.is_ipv4()));
        let [four, six] = LEAST;
        let least = if plan.topology.networks.pods.iter().any(|pods| !pods.value.is_ipv4()) { six } else { four };
        if room < least {
            let found = format!(
                "{} has an MTU of {}: in {backend} {room} bytes are left, and {least} are needed",
                link.name, link.mtu
            );
            troubles.push(Trouble::problem(found, format!("ip link set {} mtu {}", link.name, link.mtu.max(1500))));
        }
        let own_bridge = |link: &&Link| matches!(link.name.as_str(), "cni0" | "cbr0") && link.mtu > room;
        if let Some(bridge) = case.facts.links.iter().find(own_bridge) {
            let found = format!(
                "{} has an MTU of {}, and packets of {room} bytes pass between nodes: larger ones vanish",
                bridge.name, bridge.mtu
            );
            troubles.push(Trouble::problem(
                found,
                format!("take \"mtu\" out of the files of /etc/cni/net.d, and: ip link delete {}", bridge.name),
            ));
        }
    }
    troubles
}

/// Networks of Pods and Services that a route or an address of this host leads elsewhere.
pub(super) fn overlaps(case: &Case) -> Vec<Trouble> {
    let Some(plan) = &case.plan else { return Vec::new() };
    let networks = &plan.topology.networks;
    let ours = |name: &str| OWN.iter().any(|own| name.starts_with(own));
    let mut troubles = Vec::new();
    for (what, list) in [("Pods", &networks.pods), ("Services", &networks.services)] {
        for network in list.iter().map(|network| network.value) {
            let routes = case.facts.routes.iter().filter(|route| !route.ours && !ours(&route.link));
            let mut links: Vec<(&str, Prefix)> = routes
                .filter(|route| route.dst.overlaps(&network))
                .map(|route| (route.link.as_str(), route.dst))
                .collect();
            let foreign = case.facts.links.iter().filter(|link| !ours(&link.name));
            for link in foreign {
                let prefixes = link.addresses.iter().filter_map(|(address, len)| Prefix::new(*address, *len).ok());
                links.extend(prefixes.filter(|own| own.overlaps(&network)).map(|own| (link.name.as_str(), own)));
            }
            links.sort_unstable();
            links.dedup();
            troubles.extend(links.into_iter().map(|(link, dst)| {
                let found = format!("{dst} on {link} overlaps {network}, the network of {what}: packets to those are taken there");
                let fix = if link.starts_with("docker") || link.starts_with("br-") {
                    "give docker others (\"bip\" and \"default-address-pools\" in /etc/docker/daemon.json), or networks in the topology that are free".to_owned()
                } else {
                    format!("ip route delete {dst} dev {link}, or choose networks in the topology that are free")
                };
                Trouble::problem(found, fix)
            }));
        }
    }
    troubles
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::facts::{Route, Way};
    use crate::preflight::tests::said;

    fn link(name: &str, mtu: u32, address: &str, len: u8) -> Link {
        Link { name: name.into(), mtu, addresses: vec![(address.parse().unwrap(), len)] }
    }

    fn node(links: Vec<Link>) -> Case {
        let mut case = Case::default().of_host("hdss7-21");
        case.facts.links = links;
        case
    }

    #[test]
    fn a_host_without_its_address_and_one_without_a_route_are_found() {
        let found = said(ways(&node(vec![link("eth0", 1500, "10.4.7.99", 24)])));
        assert!(
            found.contains("10.4.7.21, the address of hdss7-21 in the topology, is none of this host's"),
            "{found}"
        );
        let mut case = node(vec![link("eth0", 1500, "10.4.7.21", 24), link("eth1", 1500, "192.168.9.2", 24)]);
        assert_eq!(said(ways(&case)), "");
        let (lost, astray, good) =
            ("10.4.7.22".parse().unwrap(), "10.4.7.11".parse().unwrap(), "10.4.7.12".parse().unwrap());
        case.facts.ways.insert(lost, Err("Network is unreachable".into()));
        case.facts.ways.insert(astray, Ok(Way { link: "eth1".into(), source: "192.168.9.2".parse().ok() }));
        case.facts.ways.insert(good, Ok(Way { link: "eth0".into(), source: "10.4.7.21".parse().ok() }));
        let found = said(ways(&case));
        assert!(found.contains("no route to hdss7-22 (10.4.7.22): Network is unreachable"), "{found}");
        assert!(found.contains("packets to hdss7-11 (10.4.7.11) leave by eth1 from 192.168.9.2"), "{found}");
        assert!(!found.contains("hdss7-12"), "{found}");
    }

    #[test]
    fn an_mtu_that_leaves_no_room_and_a_bridge_that_has_too_much_are_found() {
        let eth = |mtu| link("eth0", mtu, "10.4.7.21", 24);
        assert!(said(mtu(&node(vec![eth(600)]))).contains("in vxlan 550 bytes are left, and 576 are needed"));
        let found = said(mtu(&node(vec![eth(1500), link("cni0", 1500, "172.7.21.1", 24)])));
        assert!(found.contains("cni0 has an MTU of 1500, and packets of 1450 bytes pass"), "{found}");
        assert_eq!(said(mtu(&node(vec![eth(1500), link("cni0", 1450, "172.7.21.1", 24)]))), "");
    }

    #[test]
    fn a_network_that_somebody_else_uses_is_found() {
        let mut case = node(vec![link("eth0", 1500, "10.4.7.21", 24), link("docker0", 1500, "172.7.0.1", 16)]);
        let route = |dst: &str, link: &str, ours| Route { dst: dst.parse().unwrap(), link: link.into(), ours };
        case.facts.routes = vec![
            route("10.4.7.0/24", "eth0", false),
            route("192.168.44.0/24", "tun0", false),
            route("172.7.22.0/24", "flannel.1", true),
            route("172.7.21.0/24", "cni0", false),
        ];
        let found = said(overlaps(&case));
        assert!(found.contains("172.7.0.0/16 on docker0 overlaps 172.7.0.0/16, the network of Pods"), "{found}");
        assert!(found.contains("default-address-pools"), "{found}");
        assert!(found.contains("192.168.44.0/24 on tun0 overlaps 192.168.0.0/16, the network of Services"), "{found}");
        assert_eq!(found.lines().count(), 4, "{found}");
    }
}
