//! The checks on facts made by hand: each finding appears by its fault, and a node that is well has none.

use std::collections::{BTreeMap, BTreeSet};

use ::daemon::doctor::{Finding, Severity, text};
use kernel::listener::Listener;
use kernel::nft::forward::{Denier, Denying};
use kernel::query::Interface;
use netstate::nft::{ChainKey, Family, Name, TableKey};
use netstate::{InterfaceAddress, IpFamily, Protocol, Route, RouteKey};
use serde_json::json;

use super::facts::Facts;
use super::{CHECKS, examine};
use crate::dataplane::Mode;
use crate::explain::tests::{IPVS, NFTABLES, node, node_with_local, spec, web};
use crate::run::status::ProxyStatus;

/// A node that is well.
fn well(mode: Mode) -> Facts {
    with(mode, &web())
}

fn with(mode: Mode, objects: &[serde_json::Value]) -> Facts {
    let mut known = node(mode, objects);
    known.status = Some(ProxyStatus { ok: true, ..ProxyStatus::default() });
    let parameters = [
        ("ipv4/ip_forward", "1"),
        ("ipv4/vs/conntrack", "1"),
        ("ipv4/conf/all/rp_filter", "1"),
        ("ipv4/ip_local_port_range", "32768\t60999"),
        ("netfilter/nf_conntrack_count", "10"),
        ("netfilter/nf_conntrack_max", "1000"),
    ];
    Facts {
        known,
        parameters: parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        has_ipvs: true,
        lacking: Vec::new(),
        has_scheduler: Some(true),
        rival: None,
        leftovers: Vec::new(),
        denying: Vec::new(),
        legacy: Vec::new(),
        reverse_path_drops: 0,
        unreachable: BTreeMap::new(),
        listeners: BTreeSet::new(),
    }
}

fn bad(facts: &Facts) -> Vec<String> {
    let bad = examine(facts).into_iter().filter(|finding| finding.severity != Severity::Ok);
    bad.map(|Finding { check, severity, found, fix }| format!("{severity:?} {check} {found} | {fix}")).collect()
}

/// What is found after `change` in the mode ipvs.
fn after(change: impl FnOnce(&mut Facts)) -> Vec<String> {
    let mut facts = well(IPVS);
    change(&mut facts);
    bad(&facts)
}

fn set(name: &'static str, value: &'static str) -> Vec<String> {
    after(|facts| drop(facts.parameters.insert(name.to_owned(), value.to_owned())))
}

fn listening(at: &str) -> Vec<String> {
    let listener = Listener { protocol: Protocol::Tcp, at: at.parse().unwrap() };
    let mut facts = well(NFTABLES);
    facts.listeners.insert(listener);
    bad(&facts)
}

#[test]
fn a_node_that_is_well_has_no_finding_but_one_line_for_each_check() {
    assert_eq!(bad(&well(NFTABLES)), Vec::<String>::new());
    assert_eq!(text(&examine(&well(NFTABLES))).lines().count(), CHECKS.len());
}

#[test]
fn each_fault_of_the_host_is_found_once_by_its_check_with_what_to_do() {
    let chain = |obstructed| {
        let table = TableKey { family: Family::Ip, name: Name::literal("filter") };
        Denying { key: ChainKey { table, chain: Name::literal("FORWARD") }, by: Denier::Policy, obstructed }
    };
    let bridge = Interface {
        index: 9,
        name: "cbr0".parse().unwrap(),
        kind: "bridge".to_owned(),
        mtu: 1500,
        up: true,
        master: None,
        lower: None,
        addresses: vec![InterfaceAddress::lasting([172, 7, 21, 1].into(), 24)],
    };
    let taken = InterfaceAddress::lasting([192, 168, 0, 10].into(), 32);
    for (found, check, part) in [
        (
            after(|facts| facts.known.silence = Some("ipvs-proxy is not running".to_owned())),
            "Problem daemon",
            "systemctl start",
        ),
        (
            after(|facts| facts.known.lost = Some("refused".to_owned())),
            "Problem daemon",
            "Services cannot be read: refused",
        ),
        (
            after(|facts| facts.known.remarks.push("the zone of this node is z1, by --node-zone".to_owned())),
            "Note node",
            "change the flag, or the Node object",
        ),
        (set("ipv4/ip_forward", "0"), "Problem forwarding", "sysctl -w net.ipv4.ip_forward=1"),
        (after(|facts| facts.reverse_path_drops = 3), "Note rp_filter", "3 packets were dropped"),
        (
            after(|facts| facts.known.kernel.interfaces.push(bridge)),
            "Problem br_netfilter",
            "modprobe br_netfilter && sysctl",
        ),
        (set("netfilter/nf_conntrack_count", "850"), "Note conntrack", "850 of 1000"),
        (set("netfilter/nf_conntrack_count", "960"), "Problem conntrack", "nf_conntrack_max=2000"),
        (after(|facts| facts.has_ipvs = false), "Problem ipvs", "modprobe ip_vs"),
        (
            after(|facts| facts.lacking.push(("dummy devices".to_owned(), "modprobe dummy".to_owned()))),
            "Problem ipvs this kernel has no dummy devices",
            "modprobe dummy",
        ),
        (after(|facts| facts.has_scheduler = Some(false)), "Problem ipvs", "modprobe ip_vs_rr"),
        (set("ipv4/vs/conntrack", "0"), "Problem ipvs", "net.ipv4.vs.conntrack=1"),
        (
            after(|facts| facts.rival = Some("kube-proxy (process 7) runs".to_owned())),
            "Problem rival",
            "or its unit), then ipvs-proxy --cleanup-kube-proxy",
        ),
        (
            after(|facts| facts.leftovers.push("chain ip nat KUBE-SERVICES".to_owned())),
            "Problem rival",
            "ipvs-proxy --cleanup-kube-proxy",
        ),
        (after(|facts| facts.denying.push(chain(true))), "Problem forward", "cannot accept"),
        (after(|facts| facts.legacy.push(IpFamily::V4)), "Problem forward", "iptables-legacy -I FORWARD"),
        (
            after(|facts| facts.known.kernel.interfaces[0].addresses.push(taken)),
            "Problem addresses",
            "ip address delete 192.168.0.10/32 dev eth0",
        ),
        (
            after(|facts| facts.known.kernel.routes.extend(local_route())),
            "Note local",
            "ip route delete local 192.168.0.0/16 table local",
        ),
        (
            after(|facts| drop(facts.unreachable.insert([192, 168, 0, 10].into(), "ENETUNREACH".to_owned()))),
            "Problem route",
            "ENETUNREACH",
        ),
        (
            after(|facts| drop(facts.unreachable.insert([172, 7, 22, 2].into(), "ENETUNREACH".to_owned()))),
            "Problem endpoints",
            "services/default/web: 1 of its endpoints",
        ),
        (
            listening("0.0.0.0:30080"),
            "Problem listeners",
            "listens at 0.0.0.0:30080/tcp, the node port of services/default/web",
        ),
    ] {
        let found: Vec<_> =
            found.into_iter().filter(|line| !line.contains("spec.ports.nodePort: 30080 is not served")).collect();
        assert_eq!(found.len(), 1, "{check}: {found:?}");
        assert!(found[0].starts_with(check) && found[0].contains(part), "{check}, {part}: {found:?}");
    }
    assert!(after(|facts| facts.denying.push(chain(false))).iter().all(|line| !line.contains("forward")));
    assert!(listening("127.0.0.1:30080").is_empty() && listening("0.0.0.0:80").is_empty());
    for at in ["10.4.7.99:30080", "[fd00::99]:30080"] {
        assert_eq!(listening(at), [""; 0], "no node port is at {at}");
    }
}

#[test]
fn a_process_at_an_address_that_a_load_balancer_serves_itself_has_its_clients() {
    let at = |mode: &str| {
        let mut objects = web();
        objects[0]["status"] = json!({"loadBalancer": {"ingress": [{"ip": "10.4.7.99", "ipMode": mode}]}});
        let mut facts = with(NFTABLES, &objects);
        facts.listeners.insert(Listener { protocol: Protocol::Tcp, at: "10.4.7.99:80".parse().unwrap() });
        bad(&facts).iter().filter(|line| line.starts_with("Problem listeners")).count()
    };
    assert_eq!((at("VIP"), at("Proxy")), (1, 0));
}

#[test]
fn each_fault_of_the_objects_is_found_by_its_check_with_what_to_do() {
    let node_port = |port: u16| spec(|spec| spec["ports"][0]["nodePort"] = port.into());
    let mut twice = web();
    let mut other = twice[0].clone();
    other["metadata"]["name"] = "other".into();
    twice.push(other);
    let mut unread = web();
    unread.push(json!({"kind": "Service", "metadata": {"name": "bad"}, "spec": {"clusterIP": 7}}));
    let outside = spec(|spec| spec["clusterIP"] = "10.9.9.9".into());
    let mut called_otherwise = web();
    called_otherwise[1]["endpoints"][0]["nodeName"] = "n1.host.com".into();
    for (objects, check, part) in [
        (called_otherwise, "Problem node", "this node is n1, and EndpointSlices have endpoints on n1.host.com"),
        (node_port(40_000), "Note ports", "1 node ports, such as 40000"),
        (twice, "Problem conflicts", "services/default/other: tcp 192.168.0.10:80 belongs to services/default/web"),
        (unread, "Problem objects", "services/default/bad: "),
        (outside, "Problem objects", "services/default/web: spec.clusterIP: 10.9.9.9 is outside the Service network"),
        (
            spec(|spec| spec["ports"][0]["name"] = "web".into()),
            "Problem objects",
            "which no EndpointSlice has a port for",
        ),
    ] {
        let found = bad(&with(NFTABLES, &objects));
        let other = |line: &&String| line.starts_with(check) && line.contains(part);
        assert!(found.iter().filter(other).count() == 1, "{check}, {part}: {found:?}");
    }
    let mut reserved = with(NFTABLES, &node_port(40_000));
    reserved.parameters.insert("ipv4/ip_local_reserved_ports".to_owned(), "22,39000-41000".to_owned());
    assert_eq!(bad(&reserved), Vec::<String>::new());
}

/// What makes 192.168.0.0/16 local.
fn local_route() -> BTreeMap<RouteKey, Route> {
    node_with_local(IPVS, &[], &["192.168.0.0/16"]).planned.plane.local_routes()
}

#[test]
fn a_network_that_is_to_be_local_and_is_not_is_a_problem() {
    let mut facts = well(IPVS);
    let status = facts.known.status.take();
    facts.known = node_with_local(IPVS, &web(), &["192.168.0.0/16", "fd09::/108"]);
    facts.known.status = status;
    let [missing, lacks] = bad(&facts).try_into().unwrap();
    assert!(missing.starts_with("Problem local 192.168.0.0/16 is to be local and is not"), "{missing}");
    assert!(lacks.starts_with("Note local fd09::/108 of ipvs.localCIDRs is not local"), "{lacks}");
    facts.known.local.pop();
    facts.known.kernel.routes = local_route();
    assert_eq!(bad(&facts), Vec::<String>::new());
}
