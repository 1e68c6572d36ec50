//! Golden tables and properties of plans.

use super::backend::vxlan::generated_mac;
use super::backend::{BackendAttrs, Vtep};
use super::*;
use crate::choose::interface::NodeAddress;
use crate::format::lease::LeaseAttrs;
use crate::format::net_conf::NetConf;
use netstate::nft::Row;
use netstate::{MacAddr, row_text};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

mod families;

/// A whole plan and what it refuses.
struct Plan {
    tables: Tables,
    skipped: BTreeMap<Prefix, String>,
}

/// The plan of a node that hears of `leases` one after the other, each a revision newer than the one before.
fn plan<'a>(
    network: &Network,
    local: &LocalNode,
    masquerade: Masquerade,
    leases: impl IntoIterator<Item = &'a Lease>,
) -> Plan {
    let mut planner = Planner::new(network.clone(), masquerade, local.clone());
    for (revision, lease) in (1..).zip(leases) {
        planner.update([put(lease, revision)]);
    }
    let skipped = planner
        .refused()
        .iter()
        .map(|(key, refusal)| (key.subnets().v4.or(key.subnets().v6).unwrap(), refusal.to_string()));
    Plan { skipped: skipped.collect(), tables: planner.tables() }
}

fn put(lease: &Lease, revision: i64) -> (SubnetKey, Option<Arc<StoredLease>>) {
    (lease.key, Some(Arc::new(StoredLease { lease: lease.clone(), created: revision, revision, token: Some(1) })))
}

fn ownership(network: &Network, local: &LocalNode) -> Ownership {
    let earlier = vec!["10.99.0.0/16".parse().unwrap()];
    Ownership { earlier, ..Ownership::of(network.clone(), local.clone()) }
}

fn network(backend: &str) -> Network {
    NetConf::parse(&format!(r#"{{"Network":"172.7.0.0/16","Backend":{backend}}}"#)).unwrap().network
}

fn local() -> LocalNode {
    let places = PerFamily::new(Some(place()), None);
    LocalNode { has_ipv6: true, ..LocalNode::plain(places, IfName::literal("eth0")) }
}

fn place() -> Place {
    Place {
        subnet: "172.7.21.0/24".parse().unwrap(),
        public_ip: "10.4.7.21".parse().unwrap(),
        address: "10.4.7.21".parse().unwrap(),
        node_network: "10.4.7.0/24".parse().unwrap(),
        mac: "02:00:00:00:00:21".parse().unwrap(),
    }
}

fn lease(subnet: &str, holder: &str, backend: BackendAttrs) -> Lease {
    let attrs = LeaseAttrs { public_ips: PerFamily::new(Some(holder.parse().unwrap()), None), backend };
    Lease { key: SubnetKey::of(subnet.parse().unwrap()), attrs }
}

fn vxlan(mac: &str) -> BackendAttrs {
    vtep(1, mac.parse().unwrap())
}

fn vtep(vni: u32, mac: MacAddr) -> BackendAttrs {
    BackendAttrs::Vxlan(PerFamily::new(Some(Vtep { vni: Some(vni), mac }), None))
}

/// Every row but the nft table's as a line of text, as `netd tables` prints it.
fn text(tables: &Tables) -> String {
    let mut lines = Vec::new();
    lines.extend(tables.links.iter().map(|(key, value)| format!("link {}", row_text(key, value))));
    lines.extend(tables.addresses.iter().map(|(key, value)| format!("address {}", row_text(key, value))));
    lines.extend(tables.sysctls.iter().map(|(key, value)| format!("sysctl {}", row_text(key, value))));
    lines.extend(tables.neighbours.iter().map(|(key, value)| row_text(key, value)));
    lines.extend(tables.fdb.iter().map(|(key, value)| row_text(key, value)));
    lines.extend(tables.routes.iter().map(|(key, value)| row_text(key, value)));
    lines.join("\n")
}

#[test]
fn vxlan_takes_three_rows_per_node() {
    let leases = [
        lease("172.7.21.0/24", "10.4.7.21", vxlan("02:00:00:00:00:21")),
        lease("172.7.22.0/24", "10.4.7.22", vxlan("02:00:00:00:00:22")),
    ];
    let plan = plan(&network(r#"{"Type":"vxlan"}"#), &local(), Masquerade::MASQ, &leases);
    assert_eq!(
        text(&plan.tables),
        "\
link flannel.1 vxlan id 1 dstport 8472 local 10.4.7.21 dev eth0 nolearning mtu 1450 lladdr 02:00:00:00:00:21 up
address 172.7.21.0/32 dev flannel.1
sysctl net/ipv4/conf/flannel.1/forwarding 1
sysctl net/ipv4/ip_forward 1
sysctl net/ipv6/conf/flannel.1/accept_ra 0
neighbour 172.7.22.0 dev flannel.1 lladdr 02:00:00:00:00:22
fdb 02:00:00:00:00:22 dev flannel.1 dst 10.4.7.22
route 172.7.22.0/24 metric 1790 via 172.7.22.0 dev flannel.1 onlink proto 121"
    );
    assert_eq!(plan.skipped, BTreeMap::new());
}

#[test]
fn host_gw_takes_one_route_per_node() {
    let leases = [lease("172.7.22.0/24", "10.4.7.22", BackendAttrs::HostGw)];
    let plan = plan(&network(r#"{"Type":"host-gw"}"#), &local(), Masquerade::MASQ, &leases);
    assert_eq!(
        text(&plan.tables),
        "sysctl net/ipv4/conf/eth0/forwarding 1\nsysctl net/ipv4/ip_forward 1\n\
         route 172.7.22.0/24 metric 1790 via 10.4.7.22 dev eth0 proto 121"
    );
}

#[test]
fn parameters_that_a_device_does_not_have_are_not_asked_for() {
    let sysctls = |local: &LocalNode| -> Vec<String> {
        let tables = Planner::new(network(r#"{"Type":"vxlan"}"#), Masquerade::MASQ, local.clone()).tables();
        tables.sysctls.keys().map(ToString::to_string).collect()
    };
    let accept_ra = "net/ipv6/conf/flannel.1/accept_ra".to_owned();
    // A link of less than 1,280 bytes has no parameters of IPv6.
    for (has_ipv6, mtu, asked) in [(true, 1500, true), (true, 1330, true), (true, 1329, false), (false, 1500, false)] {
        let local = LocalNode { has_ipv6, mtu, ..local() };
        assert_eq!(sysctls(&local).contains(&accept_ra), asked, "{has_ipv6} {mtu}");
    }
}

#[test]
fn flags_add_their_rows_and_no_others() {
    let plan = |masquerade| Planner::new(network(r#"{"Type":"vxlan"}"#), masquerade, local()).tables();
    let plain = plan(Masquerade::MASQ);
    let links: Vec<String> = plain.forward.links.iter().map(ToString::to_string).collect();
    assert_eq!((plain.forward.networks.len(), links), (1, ["eth0", "flannel.1"].map(str::to_owned).to_vec()));
    let silent = plan(Masquerade { forward: false, ..Masquerade::MASQ });
    assert!(silent.forward.networks.is_empty() && silent.forward.links.is_empty());
    let blackhole = plan(Masquerade { blackhole: true, ..Masquerade::MASQ });
    let routes: Vec<String> = blackhole.routes.iter().map(|(key, route)| format!("{key} {route}")).collect();
    assert!(
        matches!(routes.as_slice(), [one] if one.contains("blackhole") && one.contains("172.7.21.0/24")),
        "{routes:?}"
    );
    assert!(plain.routes.is_empty());
    // Before it holds a lease a node has no subnet of which packets could be dropped.
    let own = NodeAddress { address: place().address, network: place().node_network, public_ip: place().public_ip };
    let waiting = LocalNode { places: PerFamily::new(Some(Place::new(&own, place().mac)), None), ..local() };
    let wanted = Masquerade { blackhole: true, ..Masquerade::MASQ };
    assert!(Planner::new(network(r#"{"Type":"vxlan"}"#), wanted, waiting).tables().routes.is_empty());
}

#[test]
fn mtu_that_is_left_is_refused_below_the_smallest_of_the_families() {
    let refused = |local: &LocalNode, mtu| local.refuses_mtu(mtu).is_some();
    assert!(refused(&local(), 67) && !refused(&local(), 68));
    let six = Place { subnet: "fd00:7:0:21::/64".parse().unwrap(), ..place() };
    let dual = LocalNode { places: PerFamily::new(Some(place()), Some(six)), ..local() };
    assert!(refused(&dual, 1279) && !refused(&dual, 1280));
}

#[test]
fn direct_routing_uses_the_tunnel_only_beyond_a_router() {
    let leases = [
        lease("172.7.22.0/24", "10.4.7.22", vxlan("02:00:00:00:00:22")),
        lease("172.7.23.0/24", "10.9.9.23", vxlan("02:00:00:00:00:23")),
    ];
    let ways = Ways { direct: [("10.4.7.22".parse().unwrap(), "eth1".parse().unwrap())].into(), ..Ways::default() };
    let network = network(r#"{"Type":"vxlan","DirectRouting":true}"#);
    let plan = plan(&network, &LocalNode { ways: ways.clone(), ..local() }, Masquerade::MASQ, &leases);
    let routes: Vec<String> = plan.tables.routes.iter().map(|(key, route)| format!("{} {route}", key.dst)).collect();
    assert_eq!(
        routes,
        [
            "172.7.22.0/24 via 10.4.7.22 dev eth1 proto 121",
            "172.7.23.0/24 via 172.7.23.0 dev flannel.1 onlink proto 121"
        ]
    );
    assert_eq!((plan.tables.neighbours.len(), plan.tables.fdb.len()), (1, 1));
    // What the kernel says now: the other way round.
    let mut planner = Planner::new(network, Masquerade::MASQ, LocalNode { ways, ..local() });
    planner.update_all(leases.iter().map(|lease| put(lease, 1)));
    let ways = Ways { direct: [("10.9.9.23".parse().unwrap(), "eth0".parse().unwrap())].into(), ..Ways::default() };
    let changes = planner.set_ways(ways.clone());
    assert_eq!((changes.routes.len(), changes.neighbours.len(), changes.fdb.len()), (2, 2, 2));
    assert_eq!(planner.set_ways(ways).rows(), 0);
    // An address that is this node's own now.
    let own = [("10.9.9.23".parse().unwrap(), "eth1".parse().unwrap())].into();
    let changes = planner.set_ways(Ways { own, ..Ways::default() });
    assert_eq!((changes.routes.len(), changes.neighbours.len(), planner.used_count()), (1, 0, 1));
    assert!(planner.refused().values().next().unwrap().to_string().contains("this node's own eth1"));
}

#[test]
fn way_that_is_learned_concerns_the_leases_that_may_name_it_and_plans_what_all_ways_plan() {
    let (near, far): (IpAddr, IpAddr) = ("10.4.7.22".parse().unwrap(), "10.9.9.23".parse().unwrap());
    let leases = [
        lease("172.7.22.0/24", "10.4.7.22", vxlan("02:00:00:00:00:22")),
        lease("172.7.23.0/24", "10.9.9.23", vxlan("02:00:00:00:00:23")),
    ];
    let eth0 = IfName::literal("eth0");
    let planner = || {
        let mut planner = Planner::new(network(r#"{"Type":"vxlan","DirectRouting":true}"#), Masquerade::MASQ, local());
        planner.update_all(leases.iter().map(|lease| put(lease, 1)));
        planner
    };
    for answers in [
        Answers::from([(near, Some(eth0.clone()))]),
        Answers::from([(near, Some(eth0.clone())), (far, Some(eth0.clone()))]),
        Answers::from([(near, None)]),
    ] {
        let (mut by_all, mut by_some) = (planner(), planner());
        let ways = |direct: Answers| Ways {
            direct: direct.into_iter().filter_map(|(addr, link)| Some((addr, link?))).collect(),
            ..Ways::default()
        };
        let changes = by_all.set_ways(ways(answers.clone()));
        assert_eq!(by_some.learn_ways(answers.clone(), None), changes, "{answers:?}");
        assert_eq!((by_some.tables(), &by_some.local().ways), (by_all.tables(), &by_all.local().ways));
        // And back.
        let unknown = answers.keys().map(|addr| (*addr, None)).collect();
        assert_eq!(by_some.learn_ways(unknown, None), by_all.set_ways(Ways::default()));
    }
    // Before the lease that names it is planned: nothing changes until it is.
    let mut planner = planner();
    assert_eq!(planner.learn_ways([("10.4.7.24".parse().unwrap(), Some(eth0))].into(), Some(&[])).rows(), 0);
    let changes = planner.update([put(&lease("172.7.24.0/24", "10.4.7.24", vxlan("02:00:00:00:00:24")), 2)]);
    assert_eq!((changes.routes.len(), changes.neighbours.len()), (1, 0), "reached directly");
}

/// The node beside others that it reaches by these links without a router.
fn among(others: &[(u8, &str)]) -> LocalNode {
    let way = |(n, link): &(u8, &str)| (Ipv4Addr::new(10, 4, 7, *n).into(), link.parse().unwrap());
    LocalNode { ways: Ways { direct: others.iter().map(way).collect(), ..Ways::default() }, ..local() }
}

#[test]
fn link_of_plain_routes_forwards_for_as_long_as_one_leads_through_it() {
    let network = network(r#"{"Type":"vxlan","DirectRouting":true}"#);
    let at = |n: u8| lease(&format!("172.7.{n}.0/24"), &format!("10.4.7.{n}"), vxlan(&format!("02:00:00:00:00:{n}")));
    let forwards = |planner: &Planner, link: &str| {
        let key: SysctlKey = format!("net/ipv4/conf/{link}/forwarding").parse().unwrap();
        let value = planner.tables().sysctls.get(&key).cloned();
        assert_eq!(planner.parameters().contains(&key), value.is_some(), "{link} is watched");
        value.as_deref() == Some("1")
    };
    let ways = [(22, "eth1"), (23, "eth1"), (24, "eth0"), (25, "eth2")];
    let mut planner = Planner::new(network, Masquerade::MASQ, among(&ways));
    let mut desired = planner.tables();
    assert!(forwards(&planner, "eth0") && !forwards(&planner, "eth1"), "no route leads there yet");
    for (change, by_eth1) in [
        (put(&at(22), 1), true),
        (put(&at(23), 2), true),
        (put(&at(24), 3), true),
        ((at(22).key, None), true),
        ((at(23).key, None), false),
        (put(&at(22), 4), true),
    ] {
        desired.apply(planner.update([change]));
        assert_eq!(desired, planner.tables());
        assert_eq!(forwards(&planner, "eth1"), by_eth1);
        assert!(!forwards(&planner, "eth2") && !forwards(&planner, "flannel.2"));
    }
    // The kernel says something else of the way.
    let learned = Answers::from([([10, 4, 7, 22].into(), "eth3".parse().ok())]);
    desired.apply(planner.learn_ways(learned, None));
    assert_eq!((desired.sysctls.clone(), forwards(&planner, "eth1")), (planner.tables().sysctls, false));
    assert!(forwards(&planner, "eth3"));
    // It becomes the interface towards the other nodes.
    let ways = planner.local().ways.clone();
    desired.apply(planner.set_local(LocalNode { interface: IfName::literal("eth3"), ways, ..local() }));
    assert_eq!((desired.sysctls.clone(), forwards(&planner, "eth3")), (planner.tables().sysctls, true));
    planner.update([(at(22).key, None)]);
    assert!(forwards(&planner, "eth3"));
}

#[test]
fn lease_that_cannot_be_used_is_left_out_alone_and_named() {
    let good = lease("172.7.22.0/24", "10.4.7.22", vxlan("02:00:00:00:00:22"));
    for (bad, reason) in [
        (lease("0.0.0.0/0", "10.4.7.66", vxlan("02:00:00:00:00:66")), "no subnet of the Pod network"),
        (lease("172.7.0.0/16", "10.4.7.66", vxlan("02:00:00:00:00:66")), "no subnet of the Pod network"),
        (lease("10.4.7.0/24", "10.4.7.66", vxlan("02:00:00:00:00:66")), "no subnet of the Pod network"),
        (lease("172.7.21.128/25", "10.4.7.66", vxlan("02:00:00:00:00:66")), "overlaps this node's own subnet"),
        (lease("172.7.21.0/24", "10.4.7.66", vxlan("02:00:00:00:00:66")), "overlaps this node's own subnet"),
        (lease("172.7.66.0/24", "10.4.7.21", vxlan("02:00:00:00:00:66")), "this node's own address"),
        (lease("172.7.66.0/24", "0.0.0.0", vxlan("02:00:00:00:00:66")), "not the address of a host"),
        (lease("172.7.66.0/24", "224.0.0.1", vxlan("02:00:00:00:00:66")), "not the address of a host"),
        (lease("172.7.66.0/24", "10.4.7.255", vxlan("02:00:00:00:00:66")), "the broadcast address of 10.4.7.0/24"),
        (lease("172.7.66.0/24", "172.7.66.5", vxlan("02:00:00:00:00:66")), "an address of the Pod network"),
        (lease("172.7.66.0/24", "10.4.7.66", BackendAttrs::HostGw), "another backend"),
        (lease("172.7.66.0/24", "10.4.7.66", vxlan("02:00:00:00:00:21")), "this node's own device"),
        (lease("172.7.66.0/24", "10.4.7.66", vxlan("02:00:00:00:00:22")), "hardware address of 10.4.7.22"),
    ] {
        let network = network(r#"{"Type":"vxlan"}"#);
        let with = plan(&network, &local(), Masquerade::MASQ, [&bad, &good]);
        let without = plan(&network, &local(), Masquerade::MASQ, [&good]);
        assert_eq!(with.tables, without.tables, "{bad:?}");
        assert!(with.skipped[&bad.key.subnets().v4.unwrap()].contains(reason), "{:?} lacks {reason:?}", with.skipped);
    }
}

#[test]
fn routes_outside_the_pod_networks_and_those_of_own_pods_concern_nobody() {
    let ownership = ownership(&network(r#"{"Type":"vxlan"}"#), &local());
    let concerns = |table: u32, dst: &str, protocol| {
        ownership.concerns(&RouteKey { table, dst: dst.parse().unwrap(), metric: 0 }, protocol)
    };
    assert!(concerns(254, "172.7.22.0/24", 3), "somebody's, in the place of ours");
    assert!(concerns(254, "172.7.21.0/24", 3), "the own subnet leads elsewhere");
    assert!(concerns(254, "10.99.22.0/24", 121), "a network of earlier");
    assert!(concerns(254, "172.7.21.9/32", 121), "ours inside the own subnet");
    assert!(!concerns(254, "172.7.21.9/32", 3), "an own Pod");
    assert!(!concerns(254, "10.4.8.0/24", 121), "another network");
    assert!(!concerns(255, "172.7.22.0/24", 121), "another table");
}

#[test]
fn own_routes_are_known_from_foreign_ones_by_more_than_their_protocol() {
    let (network, local) = (network(r#"{"Type":"vxlan"}"#), local());
    let owns = |dst: &str, via: Option<&str>, link: &str, protocol: u8, metric: Option<u32>| {
        let dst: Prefix = dst.parse().unwrap();
        let (mut key, mut route) = route(dst, "10.4.7.22".parse().unwrap(), &link.parse().unwrap(), false);
        route.via = via.map(|via| via.parse().unwrap());
        route.protocol = protocol;
        key.metric = metric.unwrap_or(key.metric);
        ownership(&network, &local).adopting([(key, route.clone())], &PerFamily::default()).owns(&key, &route)
    };
    assert!(owns("172.7.22.0/24", Some("172.7.22.0"), "flannel.1", 121, None));
    assert!(owns("10.99.0.0/24", Some("10.4.7.22"), "eth0", 121, None), "of a Pod network of an earlier run");
    assert!(owns("172.7.21.0/24", Some("172.7.21.0"), "flannel.1", 121, None), "to what is the own subnet now");
    assert!(!owns("172.7.22.0/24", Some("172.7.22.0"), "flannel.1", 121, Some(0)), "another program's protocol 121");
    assert!(!owns("10.88.0.0/24", Some("10.4.7.22"), "eth0", 121, None), "no Pod network of ours");
    assert!(!owns("172.7.22.0/24", Some("10.4.7.22"), "eth0", 4, None), "a person's");
    assert!(!owns("172.7.21.0/24", None, "cbr0", 2, None), "this node's bridge");
    assert!(!owns("172.7.21.5/32", Some("172.7.21.1"), "cbr0", 121, None), "this node's Pods");
}

#[test]
fn lease_with_another_identifier_is_used_and_named_unless_flannel_cut_it() {
    let peer = |vni: Option<u32>| {
        let mac = "02:00:00:00:00:22".parse().unwrap();
        let backend = BackendAttrs::Vxlan(PerFamily::new(Some(Vtep { vni, mac }), None));
        lease("172.7.22.0/24", "10.4.7.22", backend)
    };
    let network = network(r#"{"Type":"vxlan","VNI":70000}"#);
    let mut planner = Planner::new(network, Masquerade::MASQ, local());
    for (vni, odd) in [(None, false), (Some(70000), false), (Some(70000 - 65536), false), (Some(1), true)] {
        planner.update([put(&peer(vni), 1)]);
        assert_eq!((planner.tables().routes.len(), planner.refused().len()), (1, 0), "{vni:?}");
        assert_eq!(planner.remarks().next().is_some(), odd, "{vni:?}");
    }
    let remark = planner.remarks().next().unwrap();
    assert!(
        remark.contains("172.7.22.0-24: 10.4.7.22 says that its device has VNI 1, this network has 70000"),
        "{remark}"
    );
    planner.update([(peer(None).key, None)]);
    assert_eq!(planner.remarks().count(), 0);
}

#[test]
fn only_flannels_shapes_are_adopted_and_only_at_the_first_start() {
    let owns = |backend: &str, adopts: bool, dst: &str, via: &str, link: &str, onlink: bool, metric: u32| {
        let (network, local) = (network(backend), local());
        let dst: Prefix = dst.parse().unwrap();
        let (mut key, mut route) = route(dst, via.parse().unwrap(), &link.parse().unwrap(), onlink);
        (key.metric, route.protocol) = (metric, 3);
        let found = adopts.then(|| (key, route.clone()));
        ownership(&network, &local).adopting(found, &PerFamily::default()).owns(&key, &route)
    };
    let (vxlan, direct, host_gw) =
        (r#"{"Type":"vxlan"}"#, r#"{"Type":"vxlan","DirectRouting":true}"#, r#"{"Type":"host-gw"}"#);
    let tunnel = ("172.7.22.0/24", "172.7.22.0", "flannel.1");
    let node = ("172.7.22.0/24", "10.4.7.22", "eth0");
    assert!(owns(vxlan, true, tunnel.0, tunnel.1, tunnel.2, true, 0));
    assert!(owns(direct, true, tunnel.0, tunnel.1, tunnel.2, true, 0));
    assert!(owns(direct, true, node.0, node.1, node.2, false, 0));
    assert!(owns(host_gw, true, node.0, node.1, node.2, false, 0));
    assert!(owns(vxlan, true, "172.7.21.0/24", "172.7.21.0", "flannel.1", true, 0), "to what is the own subnet now");
    assert!(!owns(vxlan, false, tunnel.0, tunnel.1, tunnel.2, true, 0), "not one that comes later");
    assert!(!owns(host_gw, false, node.0, node.1, node.2, false, 0), "not one that comes later");
    assert!(!owns(vxlan, true, node.0, node.1, node.2, false, 0), "vxlan makes none on the interface");
    assert!(!owns(vxlan, true, tunnel.0, tunnel.1, tunnel.2, false, 0), "flannel's are onlink");
    assert!(!owns(vxlan, true, tunnel.0, "172.7.22.1", tunnel.2, true, 0), "another next hop");
    assert!(!owns(vxlan, true, tunnel.0, tunnel.1, tunnel.2, true, 50), "flannel gives no metric");
    assert!(!owns(host_gw, true, node.0, "192.0.2.1", node.2, false, 0), "not by way of a node");
    assert!(!owns(host_gw, true, "172.7.22.128/25", node.1, node.2, false, 0), "no lease's length");
    assert!(!owns(host_gw, true, "10.9.0.0/24", node.1, node.2, false, 0), "not Pods");
}

#[test]
fn routes_of_flannel_are_adopted_at_the_length_that_kubernetes_gives_to_subnets() {
    let (network, local) = (network(r#"{"Type":"host-gw"}"#), local());
    let owns = |dst: &str, previous: &str| {
        let (mut key, mut route) =
            route(dst.parse().unwrap(), "10.4.7.22".parse().unwrap(), &IfName::literal("eth0"), false);
        (key.metric, route.protocol) = (0, 3);
        let previous = PerFamily::new(previous.parse().ok(), None);
        ownership(&network, &local).adopting([(key, route.clone())], &previous).owns(&key, &route)
    };
    assert!(owns("172.7.22.128/25", "172.7.21.0/25"), "as long as the own one");
    assert!(owns("172.7.22.0/24", "172.7.21.0/25"), "as long as net-conf says");
    assert!(!owns("172.7.22.64/26", "172.7.21.0/25") && !owns("172.7.22.128/25", ""));
}

#[test]
fn routes_of_flannel_are_left_in_either_family() {
    let networks = ["172.7.0.0/16", "fd00:7::/48"].map(|text| text.parse().unwrap()).into();
    let left = |dst: &str, via: &str, metric: u32| {
        let (mut key, mut value) = route(dst.parse().unwrap(), via.parse().unwrap(), &IfName::literal("eth0"), false);
        (key.metric, value.protocol) = (metric, 3);
        is_left_by_flannel(&networks, &[24, 64], &key, &value)
    };
    assert!(left("172.7.22.0/24", "10.4.7.22", 0) && left("fd00:7:0:22::/64", "fd00:10::22", 1024));
    assert!(!left("172.7.22.0/24", "10.4.7.22", 1024) && !left("fd00:7:0:22::/64", "fd00:10::22", 1));
    assert!(!left("fd00:8:0:22::/64", "fd00:10::22", 1024), "another network");
}

#[test]
fn refused_lease_is_named_when_its_refusal_changes_and_not_in_each_plan() {
    let mut planner = Planner::new(network(r#"{"Type":"vxlan"}"#), Masquerade::MASQ, local());
    let changed = |planner: &mut Planner| -> Vec<(String, bool)> {
        planner.take_changed().into_iter().map(|(key, refusal, _)| (key.to_string(), refusal.is_some())).collect()
    };
    let bad = |n: u8, backend| lease(&format!("172.7.{n}.0/24"), &format!("10.4.7.{n}"), backend);
    planner.update([put(&bad(22, BackendAttrs::HostGw), 1)]);
    assert_eq!(changed(&mut planner), [("172.7.22.0-24".to_owned(), true)]);
    planner.update([put(&bad(23, BackendAttrs::HostGw), 2), put(&bad(22, BackendAttrs::HostGw), 3)]);
    assert_eq!(changed(&mut planner), [("172.7.23.0-24".to_owned(), true)], "the other is refused as before");
    planner.update([put(&bad(22, vxlan("02:00:00:00:00:22")), 4)]);
    assert_eq!(changed(&mut planner), [("172.7.22.0-24".to_owned(), false)]);
    assert_eq!(changed(&mut planner), []);
}

#[test]
fn of_leases_with_one_hardware_address_the_newest_is_used() {
    let network = network(r#"{"Type":"vxlan"}"#);
    let old = lease("172.7.22.0/24", "10.4.7.22", vxlan("02:00:00:00:00:22"));
    let new = lease("172.7.50.0/24", "10.4.7.122", vxlan("02:00:00:00:00:22"));
    for (leases, used, refused) in [([&old, &new], "172.7.50.0/24", &old), ([&new, &old], "172.7.22.0/24", &new)] {
        let plan = plan(&network, &local(), Masquerade::MASQ, leases);
        let routes: Vec<String> = plan.tables.routes.keys().map(|key| key.dst.to_string()).collect();
        assert_eq!(routes, [used]);
        assert!(plan.skipped[&refused.key.subnets().v4.unwrap()].contains("newer"), "{:?}", plan.skipped);
    }
    // When the newer one goes, the older one is used again.
    let mut planner = Planner::new(network, Masquerade::MASQ, local());
    planner.update([put(&old, 1), put(&new, 2)]);
    planner.update([(new.key, None)]);
    assert_eq!(planner.tables().routes.len(), 1);
    assert!(planner.refused().is_empty());
    assert_eq!(planner.tables().fdb.values().map(|fdb| fdb.dst.to_string()).collect::<Vec<_>>(), ["10.4.7.22"]);
}

#[test]
fn of_overlapping_leases_of_different_nodes_the_oldest_is_used_and_both_are_named() {
    let network = network(r#"{"Type":"vxlan"}"#);
    let peer = lease("172.7.22.0/24", "10.4.7.22", vxlan("02:00:00:00:00:22"));
    for stray in ["172.7.22.0/29", "172.7.22.0/25", "172.7.22.128/25", "172.7.22.0/23"] {
        let stray = lease(stray, "10.4.7.66", vxlan("02:00:00:00:00:66"));
        let alone = plan(&network, &local(), Masquerade::MASQ, [&peer]);
        let both = plan(&network, &local(), Masquerade::MASQ, [&peer, &stray]);
        assert_eq!(both.tables, alone.tables, "{stray:?}");
        let reason = &both.skipped[&stray.key.subnets().v4.unwrap()];
        assert!(reason.contains("10.4.7.66") && reason.contains("172.7.22.0/24 of 10.4.7.22"), "{reason}");
        let reversed = plan(&network, &local(), Masquerade::MASQ, [&stray, &peer]);
        assert_eq!(
            reversed.skipped.keys().collect::<Vec<_>>(),
            [&peer.key.subnets().v4.unwrap()],
            "the older one stays"
        );
    }
    // A node whose subnets became smaller leaves its older lease behind.
    let moved = lease("172.7.22.0/25", "10.4.7.22", vxlan("02:00:00:00:00:22"));
    let both = plan(&network, &local(), Masquerade::MASQ, [&peer, &moved]);
    assert_eq!(both.skipped.keys().collect::<Vec<_>>(), [&peer.key.subnets().v4.unwrap()]);
}

#[test]
fn change_of_one_lease_costs_that_lease() {
    let lease = |n: u32| {
        let subnet = Prefix::new(Ipv4Addr::from(0x0a00_0000 + (n << 8)).into(), 24).unwrap();
        let [_, _, high, low] = n.to_be_bytes();
        let mac = MacAddr::local([4, 0, 0, 0, high, low]);
        let holder = Ipv4Addr::from(0x0b00_0000 + n).to_string();
        self::lease(&subnet.to_string(), &holder, vtep(1, mac))
    };
    let network = NetConf::parse(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#).unwrap().network;
    let mut planner = Planner::new(network, Masquerade::MASQ, local());
    let all = planner.update((1..=5000).map(|n| put(&lease(n), i64::from(n))));
    assert_eq!(all.rows(), 15_000);
    assert_eq!(planner.update([put(&lease(5001), 6000)]).rows(), 3, "a new node");
    assert_eq!(planner.update([put(&lease(5001), 6001)]).rows(), 0, "a renewal");
    let moved = Lease { attrs: lease(7777).attrs, ..lease(2500) };
    // Both hardware address and holder differ: a neighbour changes, a forwarding entry goes and one comes.
    assert_eq!(planner.update([put(&moved, 6002)]).rows(), 3, "a node that was replaced");
    assert_eq!(planner.update([(lease(2500).key, None)]).rows(), 3, "a node that went");
    assert_eq!(planner.tables().routes.len(), 5000);
}

#[test]
fn configured_mtu_is_the_largest_one_and_what_cannot_be_had_is_named() {
    let plan = |backend: &str, mtu: u32| {
        let planner = Planner::new(network(backend), Masquerade::MASQ, LocalNode { mtu, ..local() });
        (planner.pod_mtu(), planner.remark())
    };
    let jumbo = r#"{"Type":"vxlan","MTU":9000}"#;
    assert_eq!(plan(jumbo, 9000), (8950, None));
    let (mtu, remark) = plan(jumbo, 1500);
    assert_eq!(mtu, 1450);
    assert_eq!(remark.unwrap(), "Backend.MTU 9000 is more than interface eth0 carries, 1500: Pods get an MTU of 1450");
    assert_eq!(plan(r#"{"Type":"vxlan","MTU":1400}"#, 1500), (1350, None));
    assert_eq!(plan(r#"{"Type":"vxlan"}"#, 1400), (1350, None));
    assert_eq!(plan(r#"{"Type":"host-gw"}"#, 1400), (1400, None));
}

#[test]
fn hardware_address_is_stable_and_differs_between_nodes_and_devices() {
    let mac = |ip: &str, vni| generated_mac(ip.parse().unwrap(), vni, b"machine").to_string();
    // A golden value: a change of it would make every node's peers learn a new address after an upgrade.
    assert_eq!(mac("10.4.7.21", 1), "86:e4:23:2c:d8:75");
    assert_ne!(mac("10.4.7.21", 1), generated_mac("10.4.7.21".parse().unwrap(), 1, b"another").to_string());
    let all: BTreeSet<MacAddr> = (0..=u16::MAX)
        .map(|n| generated_mac(Ipv4Addr::from(0x0a04_0000 + u32::from(n)).into(), 1, b"machine"))
        .collect();
    assert_eq!(all.len(), 65536);
    assert_ne!(mac("10.4.7.21", 1), mac("10.4.7.21", 2));
}

proptest! {
    #[test]
    fn every_row_stays_inside_the_pod_network_and_order_does_not_matter(
        seeds in prop::collection::vec((any::<u32>(), 0u8..=31, any::<u32>(), any::<[u8; 6]>(), any::<bool>()), 0..30),
    ) {
        let network = network(r#"{"Type":"vxlan"}"#);
        let leases: BTreeMap<Prefix, Lease> = seeds
            .into_iter()
            .map(|(addr, len, ip, mac, inside)| {
                let addr = if inside { 0xac07_0000 | (addr & 0xffff) } else { addr };
                let subnet = Prefix::new(Ipv4Addr::from(addr).into(), len).unwrap();
                let backend = vtep(1, MacAddr::local(mac));
                (subnet, lease(&subnet.to_string(), &Ipv4Addr::from(ip).to_string(), backend))
            })
            .collect();
        let stored: Vec<_> = leases.values().zip(1..).map(|(lease, revision)| put(lease, revision)).collect();
        let mut forward = Planner::new(network.clone(), Masquerade::MASQ, local());
        stored.iter().for_each(|lease| { forward.update([lease.clone()]); });
        let tables = forward.tables();
        prop_assert!(tables.routes.keys().all(|key| network.has_subnet(&key.dst) && !key.dst.overlaps(&place().subnet)));
        prop_assert!(tables.routes.iter().all(|(key, route)| ownership(&network, &local()).owns(key, route)));
        prop_assert_eq!(tables.routes.len() + forward.refused().len(), leases.len());
        let mut backward = Planner::new(network, Masquerade::MASQ, local());
        stored.iter().rev().for_each(|lease| { backward.update([lease.clone()]); });
        prop_assert_eq!(backward.tables(), tables);
        prop_assert_eq!(backward.refused(), forward.refused());
    }

    /// Few addresses and hardware addresses, so that nearly every lease is in conflict with others.
    #[test]
    fn changes_add_up_to_the_whole_plan_whatever_the_conflicts(
        steps in prop::collection::vec((0u8..4, 22u8..=26, 22u8..=24, 0u8..4, 0i64..8, any::<bool>()), 1..40),
    ) {
        let network = network(r#"{"Type":"vxlan","DirectRouting":true}"#);
        let local = among(&[(22, "eth1"), (23, "eth2")]);
        let mut planner = Planner::new(network.clone(), Masquerade::MASQ, local.clone());
        let mut desired = planner.tables();
        let mut known: BTreeMap<SubnetKey, Arc<StoredLease>> = BTreeMap::new();
        for (third, len, holder, mac, revision, there) in steps {
            let subnet = Prefix::new(Ipv4Addr::new(172, 7, 40 + third, 0).into(), len).unwrap();
            let backend = vtep(1, MacAddr::local([mac; 6]));
            let lease = lease(&subnet.to_string(), &format!("10.4.7.{holder}"), backend);
            let change = if there { put(&lease, revision) } else { (lease.key, None) };
            match &change.1 {
                Some(stored) => known.insert(change.0, stored.clone()),
                None => known.remove(&change.0),
            };
            desired.apply(planner.update([change]));
            let mut whole = Planner::new(network.clone(), Masquerade::MASQ, local.clone());
            let all = whole.update_all(known.values().map(|stored| (stored.lease.key, Some(stored.clone()))));
            prop_assert_eq!(&desired, &whole.tables());
            prop_assert_eq!(all, Changes::between(Tables::default(), whole.tables()));
            prop_assert_eq!(planner.refused(), whole.refused());
            prop_assert_eq!(planner.used_count(), planner.used().count());
            let dsts: Vec<Prefix> = desired.routes.keys().map(|key| key.dst).collect();
            prop_assert!(dsts.iter().enumerate().all(|(n, a)| dsts.iter().skip(n + 1).all(|b| !a.overlaps(b))), "{:?}", dsts);
        }
    }
}

impl Tables {
    /// Carries out `changes`, as the worker does.
    fn apply(&mut self, changes: Changes) {
        fn rows<K: Ord, V>(table: &mut BTreeMap<K, V>, changes: RowChanges<K, V>) {
            for (key, value) in changes {
                match value {
                    Some(value) => table.insert(key, value),
                    None => table.remove(&key),
                };
            }
        }
        rows(&mut self.neighbours, changes.neighbours);
        rows(&mut self.fdb, changes.fdb);
        rows(&mut self.routes, changes.routes);
        rows(&mut self.links, changes.links);
        rows(&mut self.sysctls, changes.sysctls);
    }
}

#[test]
fn both_data_paths_stand_until_every_node_has_moved() {
    let (before, after) = (network(r#"{"Type":"vxlan"}"#), network(r#"{"Type":"host-gw"}"#));
    let old = |n: u8| lease(&format!("172.7.{n}.0/24"), &format!("10.4.7.{n}"), vxlan(&format!("02:00:00:00:00:{n}")));
    let new = |n: u8| lease(&format!("172.7.{n}.0/24"), &format!("10.4.7.{n}"), BackendAttrs::HostGw);
    let mut planner = Planner::new(before.clone(), Masquerade::MASQ, local());
    planner.update([put(&old(22), 1), put(&old(23), 2)]);
    let rows = text(&planner.tables());
    // One node has read the configuration before this one.
    assert_eq!(planner.update([put(&new(22), 3)]).rows(), 0, "it is reached as before");
    assert_eq!((planner.kept_count(), text(&planner.tables())), (1, rows));
    planner.set_network(after, vec![before.backend], local());
    planner.update([put(&new(22), 3)]);
    let rows = text(&planner.tables());
    assert!(
        rows.contains("link flannel.1 vxlan") && rows.contains("172.7.22.0/24 metric 1790 via 10.4.7.22 dev eth0"),
        "{rows}"
    );
    assert!(rows.contains("172.7.23.0/24 metric 1791 via 172.7.23.0 dev flannel.1"), "{rows}");
    assert_eq!((planner.kept_count(), planner.waiting(), planner.pod_mtu()), (0, 1, 1450));
    planner.update([put(&new(23), 4)]);
    assert_eq!((planner.waiting(), planner.pod_mtu()), (0, 1450));
    planner.retire();
    let rows = text(&planner.tables());
    assert_eq!(
        rows,
        "sysctl net/ipv4/conf/eth0/forwarding 1\nsysctl net/ipv4/ip_forward 1\n\
         route 172.7.22.0/24 metric 1790 via 10.4.7.22 dev eth0 proto 121\n\
         route 172.7.23.0/24 metric 1791 via 10.4.7.23 dev eth0 proto 121"
    );
    assert_eq!(planner.pod_mtu(), 1500);
}

/// The lease of node 22 with its device of this VNI.
fn on_vni(vni: u32) -> Lease {
    let mac = format!("02:00:00:00:00:3{vni}").parse().unwrap();
    lease("172.7.22.0/24", "10.4.7.22", vtep(vni, mac))
}

#[test]
fn a_node_is_reached_by_the_device_that_its_lease_names_until_it_has_moved() {
    let (before, after) = (network(r#"{"Type":"vxlan"}"#), network(r#"{"Type":"vxlan","VNI":2}"#));
    let by = |planner: &Planner, device: &str| {
        let tables = planner.tables();
        let links = tables.fdb.keys().map(|key| &key.link).chain(tables.neighbours.keys().map(|key| &key.link));
        let routes = tables.routes.values().filter_map(|route| route.link.as_ref());
        links.chain(routes).map(ToString::to_string).collect::<Vec<_>>() == [device; 3]
    };
    let mut planner = Planner::new(before.clone(), Masquerade::MASQ, local());
    planner.update([put(&on_vni(1), 1)]);
    assert!(by(&planner, "flannel.1"), "{}", text(&planner.tables()));
    planner.set_network(after, vec![before.backend], local());
    assert!(by(&planner, "flannel.1"), "{}", text(&planner.tables()));
    assert_eq!((planner.waiting(), planner.remarks().count()), (1, 0));
    planner.update([put(&on_vni(2), 2)]);
    assert!(by(&planner, "flannel.2"), "{}", text(&planner.tables()));
    assert_eq!((planner.waiting(), planner.remarks().count()), (0, 0));
    // One that never moves is used as flannel uses it, once the old device goes.
    planner.update([put(&on_vni(1), 3)]);
    planner.retire();
    assert!(by(&planner, "flannel.2"), "{}", text(&planner.tables()));
    assert_eq!(planner.remarks().count(), 1);
}

#[test]
fn a_node_that_moves_to_another_device_first_is_reached_by_the_old_one_and_named() {
    let (before, after) = (network(r#"{"Type":"vxlan"}"#), network(r#"{"Type":"vxlan","VNI":2}"#));
    let mut planner = Planner::new(before.clone(), Masquerade::MASQ, local());
    planner.update([put(&on_vni(1), 1)]);
    let tables = planner.tables();
    planner.take_changed();
    // It has read the configuration before this node.
    assert_eq!(planner.update([put(&on_vni(2), 2)]).rows(), 0);
    assert_eq!((planner.tables(), planner.kept_count()), (tables.clone(), 1));
    assert!(planner.remarks().next().unwrap().contains("has VNI 2, this network has 1"));
    assert_eq!(planner.take_changed().len(), 1, "named once");
    planner.update([put(&on_vni(2), 2)]);
    assert_eq!(planner.take_changed().len(), 0);
    // Another lease that has a say in it is judged; this one is still named.
    planner.update([put(&lease("172.7.22.0/25", "10.4.7.23", vtep(1, "02:00:00:00:00:41".parse().unwrap())), 3)]);
    assert_eq!(planner.remarks().count(), 1);
    // It goes back.
    let mut back = planner.clone();
    back.update([put(&on_vni(1), 4)]);
    assert_eq!((back.kept_count(), back.remarks().count()), (0, 0));
    // This node follows.
    planner.set_network(after, vec![before.backend], local());
    planner.update([put(&on_vni(2), 2)]);
    let fdb: Vec<String> = planner.tables().fdb.keys().map(|key| format!("{} {}", key.link, key.mac)).collect();
    assert!(fdb.contains(&"flannel.2 02:00:00:00:00:32".to_owned()), "{fdb:?}");
    assert_eq!((planner.kept_count(), planner.remarks().filter(|text| text.contains("10.4.7.22")).count()), (0, 0));
    // One with another address cannot be reached where it was.
    let mut moved = Planner::new(network(r#"{"Type":"vxlan"}"#), Masquerade::MASQ, local());
    moved.update([put(&on_vni(1), 1)]);
    moved.update([put(&lease("172.7.22.0/24", "10.4.7.99", vtep(2, "02:00:00:00:00:32".parse().unwrap())), 2)]);
    assert_eq!((moved.kept_count(), moved.remarks().count(), moved.tables().fdb.len()), (0, 1, 1));
}

#[test]
fn lease_of_another_backend_without_one_before_it_is_refused() {
    let mut planner = Planner::new(network(r#"{"Type":"vxlan"}"#), Masquerade::MASQ, local());
    planner.update([put(&lease("172.7.22.0/24", "10.4.7.22", BackendAttrs::HostGw), 1)]);
    assert_eq!((planner.refused().len(), planner.kept_count()), (1, 0));
    // Another node has taken the subnet: the way to the earlier one is of no use.
    planner.update([put(&lease("172.7.23.0/24", "10.4.7.23", vxlan("02:00:00:00:00:23")), 2)]);
    planner.update([put(&lease("172.7.23.0/24", "10.4.7.99", BackendAttrs::HostGw), 3)]);
    assert_eq!((planner.refused().len(), planner.kept_count()), (2, 0));
    planner.update([("172.7.23.0-24".parse().unwrap(), None)]);
    assert_eq!(planner.refused().len(), 1);
}

#[test]
fn untracked_tunnel_follows_the_interface_in_one_row_and_is_there_only_for_tunnels_with_a_port() {
    let untracked = Masquerade { untracked: true, ..Masquerade::MASQ };
    let mut planner = Planner::new(network(r#"{"Type":"vxlan"}"#), untracked.clone(), local());
    let device = |row: &Row| match row {
        Row::Table(table) => table.chains.values().find_map(|chain| chain.base.as_ref()?.device.clone()),
        _ => None,
    };
    let rows = planner.tables().ingress;
    assert_eq!(rows.values().map(device).collect::<Vec<_>>(), [Some(IfName::literal("eth0"))]);
    let changes = planner.set_local(LocalNode { interface: IfName::literal("eth1"), ..local() });
    let changed: Vec<_> = changes.ingress.values().map(|row| row.as_ref().and_then(device)).collect();
    assert_eq!(changed, [Some(IfName::literal("eth1"))]);
    assert_eq!(changes.ingress.keys().collect::<Vec<_>>(), rows.keys().collect::<Vec<_>>(), "one change, no removal");
    for (backend, wanted) in [("vxlan", Masquerade::MASQ), ("host-gw", untracked.clone()), ("ipip", untracked)] {
        let planner = Planner::new(network(&format!(r#"{{"Type":"{backend}"}}"#)), wanted, local());
        assert!(planner.tables().ingress.is_empty(), "{backend}");
    }
}
