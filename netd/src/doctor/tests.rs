//! The checks on facts made by hand: each finding appears by its fault, and a node that is well has none.

use std::net::SocketAddr;

use kernel::query::Interface;
use netstate::InterfaceAddress;

use ::daemon::doctor::text;

use super::entrance::{Closed, Entrance};
use super::packet::Answer;
use super::probing::{Outcome, Paths, Peer};
use super::*;
use crate::run::forward::Advice;
use crate::run::status::{Node, Status};

fn answer(subnet: &str) -> Outcome {
    Outcome::Answered(Answer { number: 1, clock: 1, subnet: Some(subnet.parse().unwrap()) }, 12)
}

fn peer() -> Peer {
    Peer {
        name: "172.7.22.0/24".to_owned(),
        backend: "vxlan".to_owned(),
        direct: SocketAddr::from(([10, 4, 7, 22], packet::PORT)),
        vrf: None,
        tunnel: Some(SocketAddr::from(([172, 7, 22, 0], packet::PORT))),
        subnet: "172.7.22.0/24".parse().unwrap(),
    }
}

fn interface(name: &str, address: [u8; 4], len: u8) -> Interface {
    Interface {
        index: 2,
        name: name.parse().unwrap(),
        kind: String::new(),
        mtu: 1500,
        up: true,
        master: None,
        lower: None,
        addresses: vec![InterfaceAddress::lasting(address.into(), len)],
    }
}

fn closed(entrance: Entrance, device: &str) -> Closed {
    let name = |text: &'static str| netstate::nft::Name::new(text).unwrap();
    let table = netstate::nft::TableKey { family: netstate::nft::Family::Inet, name: name("filter") };
    let denied =
        kernel::nft::arrival::Denied { table, base: name("input"), chain: name("input"), undecided: None, rule: None };
    let denied = super::entrance::Denier::Nft(denied);
    let (nodes, network) = ([[10, 4, 7, 22].into()].into(), "10.4.7.0/24".parse().unwrap());
    Closed { entrance, denied, firewall: None, device: device.parse().unwrap(), nodes, network }
}

/// A node that is well.
fn well() -> Facts {
    let node = Node {
        public_ip: "10.4.7.21".to_owned(),
        interface: "eth0".to_owned(),
        network: "172.7.0.0/16".to_owned(),
        subnet: Some("172.7.21.0/24".to_owned()),
        backend: "vxlan".to_owned(),
        checksum_workaround: None,
        mtu: 1450,
        in_sync: true,
    };
    let mut facts = Facts { daemon: Some(Status { node, ..Status::default() }), ..Facts::default() };
    facts.interfaces = vec![interface("eth0", [10, 4, 7, 21], 24), interface("flannel.1", [172, 7, 21, 0], 32)];
    for (name, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/eth0/forwarding", "1"),
        ("ipv4/conf/flannel.1/forwarding", "1"),
        ("bridge/bridge-nf-call-iptables", "1"),
    ] {
        facts.parameters.insert(name.to_owned(), value.to_owned());
    }
    let there = answer("172.7.22.0/24");
    facts.paths = vec![(peer(), Paths { direct: there, tunnel: Some(there), unchecked: None, largest: Some(1450) })];
    facts
}

/// What is found after `change`, as `SEVERITY check found | fix`.
fn after(change: impl FnOnce(&mut Facts)) -> Vec<String> {
    let mut facts = well();
    change(&mut facts);
    let bad = examine(&facts).into_iter().filter(|finding| finding.severity != Severity::Ok);
    bad.map(|Finding { check, severity, found, fix }| format!("{severity:?} {check} {found} | {fix}")).collect()
}

fn path(change: impl FnOnce(&mut Paths)) -> Vec<String> {
    after(|facts| change(&mut facts.paths[0].1))
}

#[test]
fn a_node_that_is_well_has_no_finding_but_one_line_for_each_check() {
    assert_eq!(after(|_| {}), Vec::<String>::new());
    assert_eq!(text(&examine(&well())).lines().count(), CHECKS.len());
}

#[test]
fn without_a_daemon_nothing_is_called_well_that_nobody_asked() {
    let mut facts = well();
    facts.daemon = None;
    facts.paths.clear();
    let said = text(&examine(&facts));
    assert!(said.contains("PROBLEM  daemon") && said.contains("ok       forwarding"), "{said}");
    for check in ["networks", "duplicates", "outer", "port", "checksum", "mtu", "clock"] {
        assert!(!said.contains(&format!("ok       {check}")), "{said}");
    }
}

#[test]
fn each_fault_is_found_once_by_its_check_with_what_to_do() {
    let silent = Outcome::Silent;
    let arrived = answer("172.7.22.0/24");
    for (found, check, part) in [
        (after(|facts| facts.daemon = None), "Problem daemon", "systemctl start netd"),
        (after(|facts| facts.daemon.as_mut().unwrap().node.subnet = None), "Problem daemon", "no subnet"),
        (
            after(|facts| drop(facts.parameters.insert("ipv4/ip_forward".to_owned(), "0".to_owned()))),
            "Problem forwarding",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
        (
            after(|facts| drop(facts.parameters.insert("ipv4/conf/eth0/forwarding".to_owned(), "0".to_owned()))),
            "Problem forwarding",
            "by eth0",
        ),
        (after(|facts| facts.reverse_path_drops = 3), "Problem rp_filter", "rp_filter=2"),
        (
            after(|facts| drop(facts.parameters.remove("bridge/bridge-nf-call-iptables"))),
            "Note br_netfilter",
            "modprobe br_netfilter",
        ),
        (
            after(|facts| facts.lacking.push(("vxlan devices".to_owned(), "modprobe vxlan".to_owned()))),
            "Problem kernel this kernel has no vxlan devices",
            "modprobe vxlan",
        ),
        (
            after(|facts| {
                facts.lacking_for_pods.push(("token buckets: refused".to_owned(), "modprobe sch_tbf".to_owned()))
            }),
            "Note kernel this kernel has no token buckets",
            "modprobe sch_tbf",
        ),
        (
            after(|facts| facts.interfaces.push(interface("docker0", [172, 7, 99, 1], 24))),
            "Problem networks",
            "docker0 has 172.7.99.1/24",
        ),
        (
            after(|facts| facts.paths[0].1.direct = answer("172.7.33.0/24")),
            "Problem duplicates",
            "a node with 172.7.33.0/24 answers",
        ),
        (
            after(|facts| facts.paths[0].1.direct = answer("10.5.22.0/24")),
            "Note duplicates 10.4.7.22 answers for 10.5.22.0/24",
            "--probe-port of its own",
        ),
        (path(|paths| paths.tunnel = Some(silent)), "Problem port", "open the tunnel's UDP port"),
        (path(|paths| paths.direct = silent), "Note port", "its tunnel does"),
        (
            path(|paths| (paths.direct, paths.tunnel) = (silent, Some(silent))),
            "Problem port",
            "nothing comes back from 10.4.7.22",
        ),
        (
            path(|paths| (paths.tunnel, paths.unchecked) = (Some(silent), Some(arrived))),
            "Problem checksum",
            "Backend.ChecksumWorkaround=on",
        ),
        (path(|paths| paths.largest = Some(1372)), "Problem mtu", "netd config edit Backend.MTU=1422"),
        (after(|facts| facts.drops.push(("rule 7 of ip filter INPUT".to_owned(), 4))), "Note firewall", "4 packets"),
        (
            after(|facts| {
                let (found, fix) = ("FORWARD drops".to_owned(), "iptables-legacy -A".to_owned());
                facts.legacy.push(Advice { found, fix });
            }),
            "Problem firewall",
            "FORWARD drops",
        ),
        (
            after(|facts| facts.closed.push(closed(Entrance::Udp(8472), "flannel.1"))),
            "Problem firewall the policy of inet filter input denies the tunnel's packets to UDP port 8472 from 10.4.7.22 | ",
            "nft insert rule inet filter input ip saddr 10.4.7.0/24 udp dport 8472 accept",
        ),
        (
            after(|facts| facts.closed.push(closed(Entrance::Udp(51820), "flannel-wg"))),
            "Problem firewall",
            "it passes only for a while after this node has sent something",
        ),
        (
            after(|facts| facts.closed.push(closed(Entrance::Probes(10247), "eth0"))),
            "Note firewall",
            "probes to UDP port 10247",
        ),
        (
            path(|paths| {
                let Outcome::Answered(answer, _) = paths.direct else { panic!() };
                paths.direct = Outcome::Answered(answer, -20_000);
            }),
            "Problem clock",
            "20 s behind",
        ),
    ] {
        assert_eq!(found.len(), 1, "{check}: {found:?}");
        assert!(found[0].starts_with(check) && found[0].contains(part), "{check}, {part}: {found:?}");
    }
}

#[test]
fn node_without_this_daemon_is_reached_when_its_kernel_says_so() {
    let closed = Outcome::Closed;
    assert_eq!(path(|paths| (paths.direct, paths.tunnel) = (closed, Some(closed))), Vec::<String>::new());
}

#[test]
fn text_of_the_store_cannot_forge_a_line() {
    let forged = after(|facts| {
        let skipped = &mut facts.daemon.as_mut().unwrap().skipped;
        skipped.insert("x\nok       port".to_owned(), "y".to_owned());
    });
    assert_eq!(forged.len(), 1);
    let mut facts = well();
    facts.daemon.as_mut().unwrap().skipped.insert("x\nok       port".to_owned(), "y".to_owned());
    assert_eq!(text(&examine(&facts)).lines().filter(|line| line.starts_with("ok       port")).count(), 1);
}

#[test]
fn size_that_is_advised_is_that_of_the_network_below_and_never_takes_ipv6_its_link() {
    let advice = |backend: &str, direct: &str, networks: &str, largest| {
        let found = after(|facts| {
            facts.daemon.as_mut().unwrap().node.network = networks.to_owned();
            let (peer, paths) = &mut facts.paths[0];
            (peer.backend, peer.direct) = (backend.to_owned(), direct.parse().unwrap());
            paths.largest = Some(largest);
        });
        found.iter().find_map(|found| Some(found.split_once("Backend.MTU=")?.1.parse::<u32>().unwrap()))
    };
    let (v4, v6, dual) = ("10.4.7.22:10247", "[fd00:10:4:7::22]:10247", "172.7.0.0/16,fd00:7::/48");
    assert_eq!(advice("vxlan", v4, "172.7.0.0/16", 1200), Some(1250));
    assert_eq!(advice("vxlan", v6, dual, 1330), Some(1400));
    assert_eq!(advice("vxlan", v6, dual, 1279), None);
    assert_eq!(advice("vxlan", v4, dual, 1279), None);
    assert_eq!(advice("wireguard", v4, "172.7.0.0/16", 1320), Some(1400));
    assert_eq!(advice("ipip", v4, "172.7.0.0/16", 1380), None);
    assert_eq!(advice("host-gw", v4, "172.7.0.0/16", 1400), None);
}

#[test]
fn others_with_this_nodes_address_are_named_and_nobody_asked_is_said() {
    let address = "10.4.7.21".parse().unwrap();
    let held = |held| after(|facts| facts.holders = vec![(address, held)]);
    assert!(held(Ok(std::collections::BTreeSet::new())).is_empty());
    let found = held(Ok(["02:00:00:00:00:99".parse().unwrap()].into()));
    let expected = "Problem duplicates 10.4.7.21: another host on the link has it as well, with hardware address 02:00:00:00:00:99 |";
    assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
    let found = held(Err("Operation not permitted".to_owned()));
    assert!(found.len() == 1 && found[0].starts_with("Note duplicates 10.4.7.21: whether another"), "{found:?}");
}

#[test]
fn only_addresses_that_the_interface_has_are_asked_for() {
    let mut facts = well();
    let own = |facts: &Facts| holders::own(facts.daemon.as_ref(), &facts.interfaces);
    assert_eq!(own(&facts), [("eth0".parse().unwrap(), "10.4.7.21".parse().unwrap())]);
    facts.daemon.as_mut().unwrap().node.public_ip = "203.0.113.7".to_owned();
    assert!(own(&facts).is_empty());
    facts.daemon = None;
    assert!(own(&facts).is_empty());
}
