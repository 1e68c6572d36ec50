//! Plans of networks with IPv6, alone and beside IPv4.

use super::*;
use crate::format::lease::read_lease;

const DUAL: &str = r#""Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48""#;
const V6: &str = r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:7::/48""#;

fn network(pools: &str, backend: &str) -> Network {
    NetConf::parse(&format!(r#"{{{pools},"Backend":{backend}}}"#)).unwrap().network
}

fn place_v6() -> Place {
    Place {
        subnet: "fd00:7:0:21::/64".parse().unwrap(),
        public_ip: "fd00:10::21".parse().unwrap(),
        address: "fd00:10::21".parse().unwrap(),
        node_network: "fd00:10::/64".parse().unwrap(),
        mac: "02:00:00:00:06:21".parse().unwrap(),
    }
}

fn dual() -> LocalNode {
    LocalNode { places: PerFamily::new(Some(place()), Some(place_v6())), ..local() }
}

fn v6_only() -> LocalNode {
    LocalNode { places: PerFamily::new(None, Some(place_v6())), ..local() }
}

/// The lease of node `n` in both families, with devices.
fn vxlan_of(n: u8) -> Lease {
    lease_of(&format!("172.7.{n}.0-24&fd00:7:0:{n}::-64"), n)
}

fn lease_of(key: &str, n: u8) -> Lease {
    let value = format!(
        r#"{{"PublicIP":"10.4.7.{n}","PublicIPv6":"fd00:10::{n}","BackendType":"vxlan",
            "BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{n}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"02:00:00:00:06:{n}"}}}}"#
    );
    read_lease(key, value.as_bytes()).unwrap()
}

fn host_gw_of(n: u8) -> Lease {
    Lease { attrs: LeaseAttrs { backend: BackendAttrs::HostGw, ..vxlan_of(n).attrs }, ..vxlan_of(n) }
}

const LOCAL_V6: &str = "\
link flannel-v6.1 vxlan id 1 dstport 8472 local fd00:10::21 dev eth0 nolearning mtu 1430 lladdr 02:00:00:00:06:21 up
address fd00:7:0:21::/128 dev flannel-v6.1
sysctl net/ipv6/conf/flannel-v6.1/accept_ra 0
sysctl net/ipv6/conf/flannel-v6.1/disable_ipv6 0
sysctl net/ipv6/conf/all/forwarding 1";

const PEER_V6: &str = "\
neighbour fd00:7:0:22:: dev flannel-v6.1 lladdr 02:00:00:00:06:22
fdb 02:00:00:00:06:22 dev flannel-v6.1 dst fd00:10::22
route fd00:7:0:22::/64 metric 1034 via fd00:7:0:22:: dev flannel-v6.1 onlink proto 121";

#[test]
fn ipv6_takes_a_device_and_three_rows_per_node_of_its_own() {
    let plan = plan(&network(V6, r#"{"Type":"vxlan"}"#), &v6_only(), Masquerade::MASQ, &[vxlan_of(21), vxlan_of(22)]);
    assert_eq!(text(&plan.tables), format!("{LOCAL_V6}\n{PEER_V6}"));
    assert_eq!(plan.tables.forward.networks, ["fd00:7::/48".parse().unwrap()].into());
    assert!(plan.tables.nft.keys().all(|key| key.to_string().contains("ip6 netd")), "{:?}", plan.tables.nft.keys());
}

#[test]
fn interface_that_takes_what_routers_announce_goes_on_taking_it_where_pods_have_ipv6() {
    let asked = |local: LocalNode| {
        let local = LocalNode { accepts_routers: true, ..local };
        let tables = Planner::new(network(DUAL, r#"{"Type":"vxlan"}"#), Masquerade::MASQ, local).tables();
        tables.sysctls.get(&"net/ipv6/conf/eth0/accept_ra".parse().unwrap()).cloned()
    };
    assert_eq!((asked(dual()), asked(v6_only()), asked(local())), (Some("2".to_owned()), Some("2".to_owned()), None));
    let tables = Planner::new(network(DUAL, r#"{"Type":"vxlan"}"#), Masquerade::MASQ, dual()).tables();
    assert!(!tables.sysctls.contains_key(&"net/ipv6/conf/eth0/accept_ra".parse().unwrap()), "it took nothing before");
    // A device of less than 1,280 bytes has no parameters of IPv6.
    for (mtu, there) in [(1350, true), (1349, false)] {
        let local = LocalNode { mtu, ..v6_only() };
        let tables = Planner::new(network(V6, r#"{"Type":"vxlan"}"#), Masquerade::MASQ, local).tables();
        let key = "net/ipv6/conf/flannel-v6.1/disable_ipv6".parse().unwrap();
        assert_eq!(tables.sysctls.contains_key(&key), there, "{mtu}");
    }
}

#[test]
fn both_families_are_the_two_of_them_side_by_side() {
    let conf = network(DUAL, r#"{"Type":"vxlan"}"#);
    let both = plan(&conf, &dual(), Masquerade::MASQ, &[vxlan_of(22)]).tables;
    let v4 = LocalNode { places: PerFamily::new(Some(place()), None), ..dual() };
    let v6 = LocalNode { places: PerFamily::new(None, Some(place_v6())), ..dual() };
    let mut merged = plan(&conf, &v4, Masquerade::MASQ, &[vxlan_of(22)]).tables;
    merged.extend(plan(&conf, &v6, Masquerade::MASQ, &[vxlan_of(22)]).tables);
    assert_eq!(both, merged);
    assert_eq!((both.links.len(), both.routes.len(), both.fdb.len(), both.neighbours.len()), (2, 2, 2, 2));
    assert_eq!((both.nft.len(), both.forward.networks.len()), (2, 2));
    let mtu = |local: &LocalNode| Planner::new(conf.clone(), Masquerade::MASQ, local.clone()).pod_mtu();
    assert_eq!((mtu(&v4), mtu(&v6), mtu(&dual())), (1450, 1430, 1430), "Pods have one interface for both");
}

#[test]
fn host_gw_takes_one_route_per_node_and_family() {
    let plan = plan(&network(DUAL, r#"{"Type":"host-gw"}"#), &dual(), Masquerade::MASQ, &[host_gw_of(22)]);
    let expected = "\
sysctl net/ipv4/conf/eth0/forwarding 1
sysctl net/ipv4/ip_forward 1
sysctl net/ipv6/conf/all/forwarding 1
route 172.7.22.0/24 metric 1790 via 10.4.7.22 dev eth0 proto 121
route fd00:7:0:22::/64 metric 1034 via fd00:10::22 dev eth0 proto 121";
    assert_eq!(text(&plan.tables), expected);
}

#[test]
fn peer_is_served_in_the_families_that_both_nodes_have() {
    let conf = network(DUAL, r#"{"Type":"vxlan"}"#);
    let dsts = |local: &LocalNode, lease: &Lease| {
        let plan = self::plan(&conf, local, Masquerade::MASQ, [lease]);
        plan.tables.routes.keys().map(|key| key.dst.to_string()).collect::<Vec<_>>()
    };
    let (v4, v6) = (lease_of("172.7.22.0-24", 22), lease_of("0.0.0.0-0&fd00:7:0:22::-64", 22));
    assert_eq!(dsts(&dual(), &v4), ["172.7.22.0/24"]);
    assert_eq!(dsts(&dual(), &v6), ["fd00:7:0:22::/64"]);
    assert_eq!(dsts(&local(), &vxlan_of(22)), ["172.7.22.0/24"]);
    assert_eq!(dsts(&v6_only(), &vxlan_of(22)), ["fd00:7:0:22::/64"]);
    // A peer that names no address or device of a family is served in the other.
    let mut half = vxlan_of(22);
    half.attrs.public_ips.v6 = None;
    assert_eq!(dsts(&dual(), &half), ["172.7.22.0/24"]);
    let mut planner = Planner::new(conf, Masquerade::MASQ, dual());
    planner.update([put(&half, 1)]);
    assert_eq!((planner.used_count(), planner.used().count()), (1, 1));
    assert_eq!(planner.refused()[&half.key].to_string(), "10.4.7.22 has no usable PublicIPv6");
}

#[test]
fn own_lease_with_a_family_that_this_node_has_no_address_of_is_no_other_nodes() {
    // A Node of Kubernetes has podCIDRs of both families, whatever addresses it has.
    let mut own = vxlan_of(21);
    own.attrs.public_ips.v6 = None;
    let unserved = PerFamily::new(None, own.key.subnets().v6);
    let local = LocalNode { unserved, ..local() };
    let mut planner = Planner::new(network(DUAL, r#"{"Type":"vxlan"}"#), Masquerade::MASQ, local.clone());
    let alone = planner.tables();
    planner.update([put(&own, 1)]);
    assert_eq!((planner.tables(), planner.used_count(), planner.used().count()), (alone, 0, 0));
    assert!(planner.refused().is_empty(), "{:?}", planner.refused());
    // Another node's is served in the family that both have.
    planner.update([put(&vxlan_of(22), 2)]);
    assert_eq!((planner.used_count(), planner.tables().routes.len()), (1, 1));
}

#[test]
fn ipv6_leases_that_cannot_be_used_are_left_out_alone_and_named() {
    let good = vxlan_of(22);
    let named = |key: &str, holder: &str| {
        let mut lease = lease_of(key, 66);
        lease.attrs.public_ips.v6 = holder.parse().ok();
        lease
    };
    for (bad, reason) in [
        (named("0.0.0.0-0&::-0", "fd00:10::66"), "no subnet of the Pod network"),
        (named("0.0.0.0-0&fd00:7::-48", "fd00:10::66"), "no subnet of the Pod network"),
        (named("0.0.0.0-0&fd00:7:0:21:8000::-65", "fd00:10::66"), "overlaps this node's own subnet fd00:7:0:21::/64"),
        (named("0.0.0.0-0&fd00:7:0:66::-64", "fd00:10::21"), "this node's own address"),
        (named("0.0.0.0-0&fd00:7:0:66::-64", "::"), "not the address of a host"),
        (named("0.0.0.0-0&fd00:7:0:66::-64", "ff02::1"), "not the address of a host"),
        (named("0.0.0.0-0&fd00:7:0:66::-64", "::1"), "not the address of a host"),
        (named("0.0.0.0-0&fd00:7:0:66::-64", "fe80::66"), "an address of one link only"),
        (named("0.0.0.0-0&fd00:7:0:66::-64", "::ffff:127.0.0.1"), "IPv4 address in the form of IPv6"),
        (named("0.0.0.0-0&fd00:7:0:66::-64", "::ffff:10.4.7.21"), "IPv4 address in the form of IPv6"),
        (named("0.0.0.0-0&fd00:7:0:66::-64", "fd00:7:0:66::5"), "an address of the Pod network"),
        (named("0.0.0.0-0&fd00:7:0:22:8000::-65", "fd00:10::66"), "fd00:7:0:22::/64 of fd00:10::22"),
    ] {
        let mut planner = Planner::new(network(DUAL, r#"{"Type":"vxlan"}"#), Masquerade::MASQ, dual());
        planner.update([put(&good, 1)]);
        let without = planner.tables();
        planner.update([put(&bad, 2)]);
        assert_eq!(planner.tables(), without, "{bad:?}");
        assert!(planner.refused()[&bad.key].to_string().contains(reason), "{:?} lacks {reason}", planner.refused());
    }
    // IPv6 has no broadcast address.
    let last = named("0.0.0.0-0&fd00:7:0:66::-64", "fd00:10::ffff:ffff:ffff:ffff");
    assert_eq!(plan(&network(DUAL, r#"{"Type":"vxlan"}"#), &dual(), Masquerade::MASQ, [&last]).tables.routes.len(), 1);
}

#[test]
fn another_key_with_a_nodes_subnet_takes_no_packet_from_it() {
    let peer = vxlan_of(22);
    for key in ["172.7.22.0-24", "172.7.22.0-24&fd00:7:0:66::-64", "0.0.0.0-0&fd00:7:0:22::-64"] {
        let stray = lease_of(key, 66);
        let mut planner = Planner::new(network(DUAL, r#"{"Type":"vxlan"}"#), Masquerade::MASQ, dual());
        planner.update([put(&peer, 1)]);
        let alone = planner.tables();
        planner.update([put(&stray, 2)]);
        let both = planner.tables();
        assert!(alone.routes.iter().all(|(key, route)| both.routes.get(key) == Some(route)), "{key}");
        assert!(alone.neighbours.iter().all(|(key, at)| both.neighbours.get(key) == Some(at)), "{key}");
        let reason = planner.refused()[&stray.key].to_string();
        assert!(
            reason.contains("22 of ") || reason.contains("of fd00:10::22") || reason.contains("of 10.4.7.22"),
            "{reason}"
        );
        assert!(!planner.refused().contains_key(&peer.key), "{key}");
        // Once the older one is gone, the other is served.
        planner.update([(peer.key, None)]);
        assert!(planner.refused().is_empty(), "{key}");
    }
}

#[test]
fn of_a_peers_two_keys_the_newest_is_used_in_each_family() {
    let (both, v4) = (vxlan_of(22), lease_of("172.7.22.0-24", 22));
    for order in [[&both, &v4], [&v4, &both]] {
        let mut planner = Planner::new(network(DUAL, r#"{"Type":"vxlan"}"#), Masquerade::MASQ, dual());
        // The newer one has another device.
        let mut newer = order[1].clone();
        newer.attrs.backend = vxlan("02:00:00:00:00:99");
        planner.update([put(order[0], 1), put(&newer, 2)]);
        let fdb: Vec<String> = planner.tables().fdb.keys().map(|key| key.mac.to_string()).collect();
        assert!(
            fdb.contains(&"02:00:00:00:00:99".to_owned()) && !fdb.contains(&"02:00:00:00:00:22".to_owned()),
            "{fdb:?}"
        );
        assert!(planner.refused()[&order[0].key].to_string().contains("superseded by the newer lease"));
        planner.update([(newer.key, None)]);
        assert_eq!(
            planner.tables(),
            plan(&network(DUAL, r#"{"Type":"vxlan"}"#), &dual(), Masquerade::MASQ, [order[0]]).tables
        );
    }
}

#[test]
fn routes_of_flannel_for_ipv6_are_adopted_and_own_ones_known() {
    let (conf, local) = (network(DUAL, r#"{"Type":"vxlan"}"#), dual());
    let (mut key, mut value) = route(
        "fd00:7:0:22::/64".parse().unwrap(),
        "fd00:7:0:22::".parse().unwrap(),
        &"flannel-v6.1".parse().unwrap(),
        true,
    );
    let own = Ownership::of(conf, local);
    assert!(own.owns(&key, &value));
    // The kernel gives 1024 to a route of IPv6 without a metric.
    (key.metric, value.protocol) = (1024, 3);
    assert!(!own.owns(&key, &value));
    assert!(own.adopting([(key, value.clone())], &PerFamily::default()).owns(&key, &value));
}

proptest! {
    /// Few addresses, so that nearly every lease is in conflict with others in one family or both.
    #[test]
    fn changes_add_up_to_the_whole_plan_in_both_families(
        steps in prop::collection::vec((0u8..5, 0u8..5, 1u8..5, 0u8..3, 0i64..8, any::<bool>()), 1..30),
    ) {
        let network = network(DUAL, r#"{"Type":"vxlan"}"#);
        let mut planner = Planner::new(network.clone(), Masquerade::MASQ, dual());
        let mut desired = planner.tables();
        let mut known: BTreeMap<SubnetKey, Arc<StoredLease>> = BTreeMap::new();
        for (v4, v6, holder, mac, revision, there) in steps {
            let key = match (v4, v6) {
                (0, v6) => format!("0.0.0.0-0&fd00:7:0:4{v6}::-64"),
                (v4, 0) => format!("172.7.4{v4}.0-24"),
                (v4, v6) => format!("172.7.4{v4}.0-24&fd00:7:0:4{v6}::-64"),
            };
            let vtep = |family| Some(Vtep { vni: Some(1), mac: MacAddr::local([family, 0, 0, 0, 0, mac]) });
            let public_ips = PerFamily::new(
                format!("10.4.7.{holder}").parse().ok(),
                format!("fd00:10::{holder}").parse().ok(),
            );
            let backend = BackendAttrs::Vxlan(PerFamily::new(vtep(4), vtep(6)));
            let lease = Lease { key: key.parse().unwrap(), attrs: LeaseAttrs { public_ips, backend } };
            let change = if there { put(&lease, revision) } else { (lease.key, None) };
            match &change.1 {
                Some(stored) => known.insert(change.0, stored.clone()),
                None => known.remove(&change.0),
            };
            desired.apply(planner.update([change]));
            let mut whole = Planner::new(network.clone(), Masquerade::MASQ, dual());
            whole.update_all(known.values().map(|stored| (stored.lease.key, Some(stored.clone()))));
            prop_assert_eq!(&desired, &whole.tables());
            prop_assert_eq!(planner.refused(), whole.refused());
            prop_assert_eq!(planner.used_count(), planner.used().count());
            let dsts: Vec<Prefix> = desired.routes.keys().map(|key| key.dst).collect();
            prop_assert!(dsts.iter().enumerate().all(|(n, a)| dsts.iter().skip(n + 1).all(|b| !a.overlaps(b))), "{:?}", dsts);
        }
    }
}
