//! Golden tables and properties of plans.

use super::*;
use crate::format::lease::{LeaseAttrs, SubnetKey};
use crate::format::net_conf::NetConf;
use proptest::prelude::*;

const ALL: Masquerade = Masquerade { masquerade: true, fully_random: true, forward: true };

fn network(backend: &str) -> Network {
    NetConf::parse(&format!(r#"{{"Network":"172.7.0.0/16","Backend":{backend}}}"#)).unwrap().network
}

fn local() -> LocalNode {
    LocalNode {
        subnet: "172.7.21.0/24".parse().unwrap(),
        public_ip: "10.4.7.21".parse().unwrap(),
        interface: "eth0".parse().unwrap(),
        address: "10.4.7.21".parse().unwrap(),
        node_network: "10.4.7.0/24".parse().unwrap(),
        mtu: 1500,
        vtep_mac: "02:00:00:00:00:21".parse().unwrap(),
        has_ipv6: true,
    }
}

fn lease(subnet: &str, holder: &str, backend: BackendAttrs) -> Lease {
    let attrs = LeaseAttrs { public_ip: holder.parse().unwrap(), public_ipv6: None, backend };
    Lease { key: SubnetKey::v4(subnet.parse().unwrap()), attrs }
}

fn vxlan(mac: &str) -> BackendAttrs {
    BackendAttrs::Vxlan { vni: 1, mac: mac.parse().unwrap() }
}

/// Every row but the nft table's as a line of text.
fn text(tables: &Tables) -> String {
    let mut lines = Vec::new();
    lines.extend(tables.links.iter().map(|(name, link)| format!("link {name} mtu {:?} mac {:?}", link.mtu, link.mac)));
    lines.extend(tables.addresses.keys().map(|key| format!("address {key}")));
    lines.extend(tables.sysctls.iter().map(|(key, value)| format!("sysctl {key} = {value}")));
    lines.extend(tables.neighbours.iter().map(|(key, value)| format!("{key} lladdr {}", value.mac)));
    lines.extend(tables.fdb.iter().map(|(key, value)| format!("{key} dst {}", value.dst)));
    lines.extend(tables.routes.iter().map(|(key, value)| format!("{key} {value}")));
    lines.join("\n")
}

#[test]
fn vxlan_takes_three_rows_per_node() {
    let leases = [
        lease("172.7.21.0/24", "10.4.7.21", vxlan("02:00:00:00:00:21")),
        lease("172.7.22.0/24", "10.4.7.22", vxlan("02:00:00:00:00:22")),
    ];
    let plan = plan(&network(r#"{"Type":"vxlan"}"#), &local(), ALL, &leases);
    assert_eq!(
        text(&plan.tables),
        "\
link flannel.1 mtu Some(1450) mac Some(MacAddr([2, 0, 0, 0, 0, 33]))
address 172.7.21.0/32 dev flannel.1
sysctl net/ipv4/ip_forward = 1
sysctl net/ipv6/conf/flannel.1/accept_ra = 0
neighbour 172.7.22.0 dev flannel.1 lladdr 02:00:00:00:00:22
fdb 02:00:00:00:00:22 dev flannel.1 dst 10.4.7.22
route 172.7.22.0/24 metric 1790 via 172.7.22.0 dev flannel.1 onlink proto 121"
    );
    assert_eq!(plan.skipped, BTreeMap::new());
}

#[test]
fn host_gw_takes_one_route_per_node() {
    let leases = [lease("172.7.22.0/24", "10.4.7.22", BackendAttrs::HostGw)];
    let plan = plan(&network(r#"{"Type":"host-gw"}"#), &local(), ALL, &leases);
    assert_eq!(
        text(&plan.tables),
        "sysctl net/ipv4/ip_forward = 1\nroute 172.7.22.0/24 metric 1790 via 10.4.7.22 dev eth0 proto 121"
    );
}

#[test]
fn direct_routing_uses_the_tunnel_only_beyond_the_own_network() {
    let leases = [
        lease("172.7.22.0/24", "10.4.7.22", vxlan("02:00:00:00:00:22")),
        lease("172.7.23.0/24", "10.9.9.23", vxlan("02:00:00:00:00:23")),
    ];
    let plan = plan(&network(r#"{"Type":"vxlan","DirectRouting":true}"#), &local(), ALL, &leases);
    let routes: Vec<String> = plan.tables.routes.iter().map(|(key, route)| format!("{} {route}", key.dst)).collect();
    assert_eq!(
        routes,
        [
            "172.7.22.0/24 via 10.4.7.22 dev eth0 proto 121",
            "172.7.23.0/24 via 172.7.23.0 dev flannel.1 onlink proto 121"
        ]
    );
    assert_eq!((plan.tables.neighbours.len(), plan.tables.fdb.len()), (1, 1));
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
        (lease("172.7.66.0/24", "10.4.7.66", BackendAttrs::HostGw), "another backend"),
        (lease("172.7.66.0/24", "10.4.7.66", vxlan("02:00:00:00:00:21")), "this node's own device"),
        (lease("172.7.66.0/24", "10.4.7.66", vxlan("02:00:00:00:00:22")), "hardware address of 10.4.7.22"),
        (
            lease(
                "172.7.66.0/24",
                "10.4.7.66",
                BackendAttrs::Vxlan { vni: 2, mac: "02:00:00:00:00:66".parse().unwrap() },
            ),
            "uses VNI 2",
        ),
    ] {
        let network = network(r#"{"Type":"vxlan"}"#);
        let with = plan(&network, &local(), ALL, [&good, &bad]);
        let without = plan(&network, &local(), ALL, [&good]);
        assert_eq!(with.tables, without.tables, "{bad:?}");
        assert!(with.skipped[&bad.key.v4].contains(reason), "{:?} lacks {reason:?}", with.skipped);
    }
}

#[test]
fn own_and_predecessors_routes_are_told_from_foreign_ones() {
    let (network, local) = (network(r#"{"Type":"vxlan"}"#), local());
    let owns = |dst: &str, via: Option<&str>, link: &str, protocol: u8| {
        let dst: Prefix = dst.parse().unwrap();
        let (key, mut route) = route(dst, "10.4.7.22".parse().unwrap(), &link.parse().unwrap(), false);
        route.via = via.map(|via| via.parse().unwrap());
        route.protocol = protocol;
        owns_route(&network, &local, &key, &route)
    };
    assert!(owns("172.7.22.0/24", Some("172.7.22.0"), "flannel.1", 121));
    assert!(owns("10.99.0.0/24", Some("10.4.7.22"), "eth0", 121), "of an earlier Pod network");
    assert!(owns("172.7.22.0/24", Some("172.7.22.0"), "flannel.1", 3), "flannel's vxlan");
    assert!(owns("172.7.22.0/24", Some("10.4.7.22"), "eth0", 3), "flannel's host-gw");
    assert!(!owns("172.7.22.0/24", Some("10.4.7.22"), "eth0", 4), "a person's");
    assert!(!owns("172.7.22.128/25", Some("10.4.7.22"), "eth0", 3), "no lease's length");
    assert!(!owns("10.9.0.0/24", Some("10.4.7.1"), "eth0", 3), "not Pods");
    assert!(!owns("172.7.21.0/24", None, "cbr0", 2), "this node's bridge");
    assert!(!owns("172.7.21.5/32", Some("172.7.21.1"), "cbr0", 121), "this node's Pods");
}

#[test]
fn hardware_address_is_stable_and_differs_between_nodes_and_devices() {
    let mac = |ip: &str, vni| generated_mac(ip.parse().unwrap(), vni).to_string();
    assert_eq!(mac("10.4.7.21", 1), mac("10.4.7.21", 1));
    // A golden value: a change of it would make every node's peers learn a new address after an upgrade.
    assert_eq!(mac("10.4.7.21", 1), "56:6e:ef:30:b2:d0");
    let all: std::collections::BTreeSet<MacAddr> =
        (0..=u16::MAX).map(|n| generated_mac(Ipv4Addr::from(0x0a04_0000 + u32::from(n)), 1)).collect();
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
                let backend = BackendAttrs::Vxlan { vni: 1, mac: MacAddr::local(mac) };
                (subnet, lease(&subnet.to_string(), &Ipv4Addr::from(ip).to_string(), backend))
            })
            .collect();
        let forward = plan(&network, &local(), ALL, leases.values());
        prop_assert!(forward.tables.routes.keys().all(|key| network.network.covers(&key.dst) && !key.dst.overlaps(&local().subnet)));
        prop_assert!(forward.tables.routes.iter().all(|(key, route)| owns_route(&network, &local(), key, route)));
        prop_assert_eq!(forward.tables.routes.len() + forward.skipped.len(), leases.len());
        prop_assert_eq!(plan(&network, &local(), ALL, leases.values().rev()), forward);
    }
}
