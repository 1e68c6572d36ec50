//! Which virtual addresses a route makes local, and which the node has by themselves.

use netstate::nft::{Match, Op, Reject, Statement, Verdict};
use serde_json::json;

use super::packets::{BOTH, NODE, options, served_under};
use super::*;
use crate::dataplane::local;

/// Both Service networks of a dual-stack cluster, and a second one of IPv4.
const NETWORKS: [&str; 3] = ["192.168.0.0/16", "10.96.0.0/12", "fd09::/108"];

fn options_with(mode: Mode, networks: &[&str], of_links: &[&str]) -> Options {
    let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Prefix>>();
    let mut options = Options { local: read(networks), ..options(mode) };
    options.node.networks.extend(read(of_links));
    options
}

fn routes(options: Options) -> Vec<String> {
    DataPlane::new(options).local_routes().keys().map(ToString::to_string).collect()
}

#[test]
fn one_route_stands_for_each_network_of_either_family_with_ipvs_alone() {
    let wanted = [
        "route 10.96.0.0/12 metric 0 table 255",
        "route 192.168.0.0/16 metric 0 table 255",
        "route fd09::/108 metric 1024 table 255",
    ];
    assert_eq!(routes(options_with(Mode::Ipvs, &NETWORKS, &[])), wanted);
    assert!(
        routes(options_with(Mode::Nftables, &NETWORKS, &[])).is_empty(),
        "nftables leads packets before they are routed"
    );
    let nested = ["192.168.0.0/16", "192.168.0.0/16", "192.168.7.0/24"];
    assert_eq!(routes(options_with(Mode::Ipvs, &nested, &[])), wanted[1..2], "one inside another is no more");
    let single = Options {
        pods: Pods::inside(PerFamily::only(IpFamily::V6, "fd07::/16".parse().unwrap())),
        ..options_with(Mode::Ipvs, &NETWORKS, &[])
    };
    assert_eq!(routes(single), wanted[2..], "a family that is not served");
}

#[test]
fn networks_of_links_and_of_the_pods_are_no_part_of_it() {
    let found =
        routes(options_with(Mode::Ipvs, &["192.168.0.0/16"], &["192.168.128.0/17", "192.168.0.9/32", "10.4.7.0/24"]));
    assert_eq!(found.len(), 15, "{found:?}");
    assert!(found.iter().all(|key| !key.contains("192.168.128.0/17") && !key.contains("192.168.0.9/32")), "{found:?}");
    assert!(
        routes(options_with(Mode::Ipvs, &["192.168.0.0/16"], &["192.160.0.0/12"])).is_empty(),
        "all of it is the node's"
    );
    assert!(routes(options_with(Mode::Ipvs, &["172.7.8.0/24"], &[])).is_empty(), "Pods have it");
}

#[test]
fn what_a_route_covers_is_not_bound_and_external_addresses_are() {
    for mode in [Mode::Ipvs, Mode::Nftables] {
        let options = Options { local: vec!["192.168.0.0/16".parse().unwrap()], ..options(mode) };
        let kernel = served_under(options, &json!({"externalIPs": ["192.168.7.99"]}), &BOTH, |here| here);
        let bound: Vec<_> = kernel.bound.keys().map(|key| key.addr.to_string()).collect();
        let wanted: &[&str] =
            if mode == Mode::Ipvs { &["10.4.7.99", "192.168.7.99", "fd04:7::99", "fd09::10"] } else { &[] };
        assert_eq!(bound, wanted, "{mode:?}");
    }
}

#[test]
fn a_local_address_that_no_service_has_is_dropped_where_it_comes_in() {
    let chain = |options: Options| {
        let (_, row) = DataPlane::new(options).tables().next().unwrap();
        let nft_rows::Row::Table(table) = row else { panic!("{row}") };
        table.chains.get(&nft_rows::Name::literal("refuse-input")).unwrap().rules.clone()
    };
    let without = chain(options_with(Mode::Ipvs, &[], &[]));
    let with = chain(options_with(Mode::Ipvs, &NETWORKS[..1], &[]));
    assert_eq!(with[..without.len()], without[..], "what Services refuse comes first");
    let [reset, drop] = &with[without.len()..] else { panic!("{with:?}") };
    for (rule, last) in [(reset, Reject::TcpReset.into()), (drop, Statement::Verdict(Verdict::Drop))] {
        let inside = Statement::Match(Match::Daddr(Op::Is, NETWORKS[0].parse().unwrap()));
        assert!(rule.statements.contains(&inside) && rule.statements.last() == Some(&last), "{rule:?}");
    }
    assert_eq!(chain(options_with(Mode::Nftables, &NETWORKS, &[])), chain(options_with(Mode::Nftables, &[], &[])));
    let of = |family| local::to_nobody(family, &options_with(Mode::Ipvs, &NETWORKS, &[])).len();
    assert_eq!(IpFamily::ALL.map(of), [2, 1]);
}

#[test]
fn a_network_that_comes_to_a_link_is_cut_out_and_given_back() {
    let mut desired = Desired::new();
    desired.plane = DataPlane::new(options_with(Mode::Ipvs, &["192.168.0.0/16"], &[]));
    desired.set(&name("web"), service("", &[(key(10, 80), &[2, 3])], "web"));
    let with = NodeAddresses {
        networks: ["192.168.0.0/24".parse().unwrap()].into(),
        own: [NODE[0].parse().unwrap()].into(),
        ..NodeAddresses::default()
    };
    let changes = desired.plane.set_node(with, desired.claims.all());
    assert_eq!(changes.addresses.values().filter(|row| row.is_some()).count(), 1, "its address is had by itself");
    assert_eq!(changes.routes.values().filter(|row| row.is_none()).count(), 1);
    assert_eq!(changes.routes.len(), 9, "and eight networks beside it");
    let changes = desired.plane.set_node(NodeAddresses::default(), desired.claims.all());
    assert_eq!(changes.addresses.values().filter(|row| row.is_none()).count(), 1);
    assert_eq!(changes.routes.values().filter(|row| row.is_some()).count(), 1);
}
