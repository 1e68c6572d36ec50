//! Plans of the backends from flannel's texts: net-conf and leases in, rows out.

use std::net::IpAddr;
use std::sync::Arc;

use netstate::family::PerFamily;
use netstate::route::{ROUTE_PROTOCOL, TABLE_MAIN};
use netstate::{IfName, Route, RouteKey, RouteKind, RouteMetrics, RouteScope, row_text};

use crate::format::lease::{LeaseAttrs, StoredLease, read_lease};
use crate::format::net_conf::{NetConf, Network};
use crate::plan::{LocalNode, Masquerade, Ownership, PeerRows, Place, Planner, Tables, Ways};

const OWN: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const PEER: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
const PSK: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";

fn network(backend: &str) -> Network {
    parse(&format!(r#"{{"Network":"172.7.0.0/16","Backend":{backend}}}"#)).unwrap()
}

fn dual(backend: &str) -> Network {
    let text = r#"{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":"#;
    parse(&format!("{text}{backend}}}")).unwrap()
}

fn parse(text: &str) -> Result<Network, String> {
    let texts = |problems: Vec<cluster::Problem>| problems.iter().map(|p| p.to_string()).collect::<Vec<_>>().join("\n");
    NetConf::parse(text).map(|conf| conf.network).map_err(texts)
}

fn refused(backend: &str) -> String {
    parse(&format!(r#"{{"Network":"172.7.0.0/16","Backend":{backend}}}"#)).unwrap_err()
}

fn place(subnet: &str, address: &str, network: &str) -> Place {
    let address = address.parse().unwrap();
    Place {
        subnet: subnet.parse().unwrap(),
        public_ip: address,
        address,
        node_network: network.parse().unwrap(),
        mac: "02:00:00:00:00:21".parse().unwrap(),
    }
}

fn local(network: &Network) -> LocalNode {
    let v4 = place("172.7.21.0/24", "10.4.7.21", "10.4.7.0/24");
    let v6 = network.pools.v6.is_some().then(|| place("fd00:7:0:21::/64", "fd00:10:4:7::21", "fd00:10:4:7::/64"));
    LocalNode {
        has_ipv6: true,
        public_key: OWN.parse().ok(),
        ways: Ways { direct: (22..=29).flat_map(on_the_link).collect(), ..Ways::default() },
        ..LocalNode::plain(PerFamily::new(Some(v4), v6), IfName::literal("eth0"))
    }
}

/// The addresses of node `n`, reached without a router.
fn on_the_link(n: u8) -> [(IpAddr, IfName); 2] {
    let v6 = format!("fd00:10:4:7::{n}").parse().unwrap();
    [IpAddr::from([10, 4, 7, n]), v6].map(|addr| (addr, IfName::literal("eth0")))
}

/// The plan of node 21 with these leases, keys and values as in the store.
fn planner(network: &Network, leases: &[(&str, &str)]) -> Planner {
    let mut planner = Planner::new(network.clone(), Masquerade::MASQ, local(network));
    for (revision, (key, value)) in (1..).zip(leases) {
        let lease = read_lease(key, value.as_bytes()).unwrap();
        planner.update([(lease.key, Some(Arc::new(StoredLease { lease, created: revision, revision, token: None })))]);
    }
    planner
}

fn plan(network: &Network, leases: &[(&str, &str)]) -> String {
    let planner = planner(network, leases);
    assert_eq!(planner.refused().len(), 0, "{:?}", planner.refused());
    text(&planner.tables())
}

fn refusals(network: &Network, leases: &[(&str, &str)]) -> Vec<String> {
    planner(network, leases).refused().values().map(ToString::to_string).collect()
}

/// Every row but the nft table's and the parameters', as `netd tables` prints it.
fn text(tables: &Tables) -> String {
    let mut lines: Vec<String> = tables.links.iter().map(|(key, value)| row_text(key, value)).collect();
    lines.extend(tables.wireguard.iter().map(|(key, value)| row_text(key, value)));
    lines.extend(tables.addresses.iter().map(|(key, value)| row_text(key, value)));
    lines.extend(tables.neighbours.iter().map(|(key, value)| row_text(key, value)));
    lines.extend(tables.fdb.iter().map(|(key, value)| row_text(key, value)));
    lines.extend(tables.routes.iter().map(|(key, value)| row_text(key, value)));
    lines.extend(tables.files.iter().map(|(key, value)| row_text(key, value)));
    lines.join("\n")
}

fn wireguard(ip: &str, key: &str) -> String {
    format!(
        r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"wireguard","BackendData":{{"PublicKey":"{key}","Port":51820}}}}"#
    )
}

#[test]
fn wireguard_takes_a_peer_and_a_route_per_node() {
    let backend = format!(r#"{{"Type":"wireguard","PSK":"{PSK}","PersistentKeepaliveInterval":25}}"#);
    assert_eq!(
        plan(&network(&backend), &[("172.7.22.0-24", &wireguard("10.4.7.22", PEER))]),
        format!(
            "\
flannel-wg wireguard mtu 1420 up
flannel-wg public key {OWN} port 51820
flannel-wg peer {PEER} endpoint 10.4.7.22:51820 allowed 172.7.22.0/24 psk (hidden) keepalive 25
172.7.21.0/32 dev flannel-wg
route 172.7.22.0/24 metric 1790 dev flannel-wg proto 121"
        )
    );
}

const BOTH: &str = r#"{"PublicIP":"10.4.7.22","PublicIPv6":"fd00:10:4:7::22","BackendType":"wireguard","BackendData":{"PublicKey":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=","Port":51820},"BackendV6Data":{"PublicKey":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=","Port":51821}}"#;

#[test]
fn wireguard_has_a_device_of_each_family_or_one_for_both() {
    let leases = [("172.7.22.0-24&fd00:7:0:22::-64", BOTH)];
    let rows = |mode: &str| plan(&dual(&format!(r#"{{"Type":"wireguard","Mode":"{mode}"}}"#)), &leases);
    let separate = rows("separate");
    for line in [
        "flannel-wg-v6 wireguard mtu 1420 up".to_owned(),
        format!("flannel-wg-v6 public key {OWN} port 51821"),
        format!("flannel-wg peer {PEER} endpoint 10.4.7.22:51820 allowed 172.7.22.0/24"),
        format!("flannel-wg-v6 peer {PEER} endpoint [fd00:10:4:7::22]:51821 allowed fd00:7:0:22::/64"),
        "fd00:7:0:21::/128 dev flannel-wg-v6".to_owned(),
    ] {
        assert!(separate.lines().any(|found| found == line), "{line} is not in\n{separate}");
    }
    assert!(separate.contains("dev flannel-wg-v6 proto 121"), "{separate}");
    for (mode, endpoint) in
        [("ipv4", "10.4.7.22:51820"), ("ipv6", "[fd00:10:4:7::22]:51821"), ("auto", "10.4.7.22:51820")]
    {
        let one = rows(mode);
        let peer = format!("flannel-wg peer {PEER} endpoint {endpoint} allowed 172.7.22.0/24,fd00:7:0:22::/64");
        assert!(one.contains(&peer) && !one.contains("flannel-wg-v6"), "{mode}: {peer} is not in\n{one}");
        assert!(one.contains("fd00:7:0:21::/128 dev flannel-wg\n"), "{one}");
    }
}

#[test]
fn wireguard_chooses_the_address_that_is_likelier_to_be_reached() {
    let endpoint = |own: &str, v4: &str, v6: &str| {
        let network = dual(r#"{"Type":"wireguard","Mode":"auto"}"#);
        let value = BOTH.replace("10.4.7.22", v4).replace("fd00:10:4:7::22", v6);
        let lease = read_lease("172.7.22.0-24&fd00:7:0:22::-64", value.as_bytes()).unwrap();
        let mut local = local(&network);
        local.places.v6.as_mut().unwrap().public_ip = own.parse().unwrap();
        let mut rows = PeerRows::default();
        network.backend.lease_rows(&local, &lease, &mut rows).unwrap();
        text(&rows.into_tables())
    };
    assert!(endpoint("2001:db8::21", "10.4.7.22", "2001:db8::22").contains("endpoint [2001:db8::22]"));
    assert!(endpoint("2001:db8::21", "192.0.2.22", "2001:db8::22").contains("endpoint 192.0.2.22"), "not private");
    assert!(endpoint("fd00::21", "10.4.7.22", "2001:db8::22").contains("endpoint 10.4.7.22"), "own IPv6 is private");
    assert!(endpoint("2001:db8::21", "10.4.7.22", "fd00::22").contains("endpoint 10.4.7.22"), "its IPv6 is private");
    assert!(
        endpoint("2001:db8::21", "169.254.7.22", "2001:db8::22").contains("endpoint [2001:db8::22]"),
        "of one link"
    );
}

#[test]
fn an_address_of_the_other_family_that_is_no_other_nodes_is_no_end_of_the_tunnel() {
    for (mode, named, reason) in [
        ("ipv6", "::1", "PublicIPv6 ::1 is not the address of a host"),
        ("ipv6", "ff02::1", "is not the address of a host"),
        ("ipv6", "::ffff:127.0.0.1", "is an IPv4 address in the form of IPv6"),
        ("ipv6", "fe80::22", "is an address of one link only"),
        ("ipv6", "fd00:10:4:7::21", "names this node's own address fd00:10:4:7::21"),
        ("ipv6", "fd00:7:0:22::5", "is an address of the Pod network"),
        ("ipv4", "127.0.0.1", "is not the address of a host"),
        ("ipv4", "10.4.7.255", "is the broadcast address of 10.4.7.0/24"),
        ("ipv4", "10.4.7.21", "names this node's own address 10.4.7.21"),
        ("ipv4", "192.0.2.21", "names 192.0.2.21, an address of this node's own eth1"),
    ] {
        let (key, honest) = match mode {
            "ipv6" => ("172.7.22.0-24", "fd00:10:4:7::22"),
            _ => ("0.0.0.0-0&fd00:7:0:22::-64", "10.4.7.22"),
        };
        let network = dual(&format!(r#"{{"Type":"wireguard","Mode":"{mode}"}}"#));
        let mut local = local(&network);
        local.ways.own = [(IpAddr::from([192, 0, 2, 21]), IfName::literal("eth1"))].into();
        let mut planner = Planner::new(network, Masquerade::MASQ, local);
        let mut put = |value: &str, revision| {
            let lease = read_lease(key, value.as_bytes()).unwrap();
            planner.update([(lease.key, Some(Arc::new(StoredLease { lease, created: 1, revision, token: None })))]);
            (planner.refused().values().map(ToString::to_string).collect::<Vec<_>>(), text(&planner.tables()))
        };
        let (refused, rows) = put(&BOTH.replace(honest, named), 1);
        assert!(!rows.contains(PEER), "{mode} {named}: {rows}");
        assert!(refused.len() == 1 && refused[0].contains(reason), "{mode} {named}: {refused:?}");
        let (refused, rows) = put(BOTH, 2);
        assert!(refused.is_empty() && rows.contains(PEER), "{mode}: {refused:?} {rows}");
    }
}

#[test]
fn lease_of_wireguard_is_flannels_to_the_byte() {
    let network = network(r#"{"Type":"wireguard"}"#);
    let local = self::local(&network);
    let attrs = LeaseAttrs { public_ips: local.public_ips(), backend: network.backend.attrs(&local) };
    assert_eq!(attrs.render(), wireguard("10.4.7.21", OWN));
    for text in [BOTH, &wireguard("10.4.7.22", PEER), &wireguard("10.4.7.22", PEER).replace(r#","Port":51820"#, "")] {
        let key = if text == BOTH { "172.7.22.0-24&fd00:7:0:22::-64" } else { "172.7.22.0-24" };
        assert_eq!(read_lease(key, text.as_bytes()).unwrap().attrs.render(), text);
    }
}

#[test]
fn lease_without_port_has_the_port_of_this_node() {
    let old = wireguard("10.4.7.22", PEER).replace(r#","Port":51820"#, "");
    let zero = old.replace(&format!("{PEER}\""), &format!(r#"{PEER}","Port":0"#));
    for value in [&old, &zero] {
        let rows = plan(&network(r#"{"Type":"wireguard","ListenPort":7777}"#), &[("172.7.22.0-24", value)]);
        assert!(rows.contains("endpoint 10.4.7.22:7777"), "{value}: {rows}");
    }
}

#[test]
fn wireguard_leases_that_cannot_be_used_say_why() {
    let network = network(r#"{"Type":"wireguard"}"#);
    let own = refusals(&network, &[("172.7.22.0-24", &wireguard("10.4.7.22", OWN))]);
    assert!(own[0].contains("10.4.7.22 has the public key of this node's own device"), "{own:?}");
    let other = r#"{"PublicIP":"10.4.7.22","PublicIPv6":null,"BackendType":"host-gw"}"#;
    assert!(refusals(&network, &[("172.7.22.0-24", other)])[0].contains("another backend"));
    let junk = wireguard("10.4.7.22", "secret");
    let error = read_lease("172.7.22.0-24", junk.as_bytes()).unwrap_err();
    assert!(error.contains("BackendData.PublicKey: \"secret\" is not a key"), "{error}");
    let bare = r#"{"PublicIP":"10.4.7.22","BackendType":"wireguard"}"#;
    let error = read_lease("172.7.22.0-24", bare.as_bytes()).unwrap_err();
    assert!(error.starts_with("BackendData: missing") && !error.contains(", "), "{error}");
    let text = r#"{"PublicIP":"10.4.7.22","BackendType":"wireguard","BackendData":7}"#;
    let error = read_lease("172.7.22.0-24", text.as_bytes()).unwrap_err();
    assert!(error.starts_with("BackendData: 7") && !error.contains("missing"), "{error}");
}

#[test]
fn of_two_nodes_with_one_public_key_the_newer_is_used_and_no_peer_has_both_subnets() {
    let leases = [
        ("172.7.22.0-24", wireguard("10.4.7.22", PEER)),
        ("172.7.23.0-24", wireguard("10.4.7.23", PEER)),
        ("172.7.24.0-24", wireguard("10.4.7.24", PSK)),
    ];
    let leases = leases.each_ref().map(|(key, value)| (*key, value.as_str()));
    let mut planner = planner(&network(r#"{"Type":"wireguard"}"#), &leases);
    let refused: Vec<String> = planner.refused().values().map(ToString::to_string).collect();
    assert_eq!(
        refused,
        [format!("10.4.7.22 has the public key of 10.4.7.23, {PEER}, whose lease 172.7.23.0/24 is newer")]
    );
    let rows = text(&planner.tables());
    assert!(rows.contains("allowed 172.7.23.0/24") && !rows.contains("172.7.22.0/24"), "{rows}");
    // The other one has made itself a key.
    let lease =
        read_lease("172.7.23.0-24", wireguard("10.4.7.23", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").as_bytes());
    let stored = StoredLease { lease: lease.unwrap(), created: 2, revision: 9, token: None };
    planner.update([(stored.lease.key, Some(Arc::new(stored)))]);
    assert_eq!(planner.refused().len(), 0);
    let rows = text(&planner.tables());
    assert!(rows.contains(&format!("{PEER} endpoint 10.4.7.22:51820 allowed 172.7.22.0/24")), "{rows}");
}

#[test]
fn every_subnet_of_a_node_with_several_leases_is_its_one_peers() {
    let (first, second) = (wireguard("10.4.7.22", PEER), wireguard("10.4.7.22", PEER).replace("51820", "7777"));
    let network = network(r#"{"Type":"wireguard"}"#);
    for (first_key, second_key) in [("172.7.22.0-24", "172.7.99.0-24"), ("172.7.99.0-24", "172.7.22.0-24")] {
        let mut planner = planner(&network, &[(first_key, &first), (second_key, &second)]);
        let peer = |rows: &str| rows.lines().find(|line| line.contains("peer")).unwrap_or_default().to_owned();
        let both = format!("{PEER} endpoint 10.4.7.22:7777 allowed 172.7.22.0/24,172.7.99.0/24");
        let rows = text(&planner.tables());
        assert!(peer(&rows).ends_with(&both) && rows.contains("route 172.7.99.0/24"), "{rows}");
        let mut anew = self::planner(&network, &[]);
        let leases = [(first_key, &first, 1), (second_key, &second, 2)].map(|(key, value, revision)| {
            let lease = read_lease(key, value.as_bytes()).unwrap();
            (lease.key, Some(Arc::new(StoredLease { lease, created: revision, revision, token: None })))
        });
        anew.update_all(leases);
        assert_eq!(peer(&text(&anew.tables())), peer(&rows), "all at once");
        // The newer one goes again.
        let changes = planner.update([(second_key.parse().unwrap(), None)]);
        let only = format!("endpoint 10.4.7.22:51820 allowed {}", first_key.replace("-24", "/24"));
        assert!(peer(&text(&planner.tables())).ends_with(&only), "{changes:?}");
        assert_eq!(changes.wireguard.len(), 1, "{changes:?}");
    }
}

#[test]
fn wireguard_options_are_checked_and_secrets_not_repeated() {
    for (backend, part) in [
        (r#"{"Type":"wireguard","Mode":"Separate"}"#, "Backend.Mode: \"Separate\" is no mode"),
        (r#"{"Type":"wireguard","Mode":"ipv6"}"#, "Backend.Mode: packets shall go over IPv6"),
        (r#"{"Type":"wireguard","PSK":"hunter2"}"#, "Backend.PSK: not a key"),
        (r#"{"Type":"wireguard","PSK":["hunter2"]}"#, "Backend.PSK: not a key"),
        (r#"{"Type":"wireguard","ListenPort":70000}"#, "Backend.ListenPort: 70000"),
        (r#"{"Type":"wireguard","ListenPortV6":51820}"#, "Backend.ListenPortV6"),
        (r#"{"Type":"wireguard","PersistentKeepaliveInterval":-1}"#, "Backend.PersistentKeepaliveInterval: -1"),
        (r#"{"Type":"wireguard","MTU":100}"#, "Backend.MTU: 100"),
    ] {
        let text = refused(backend);
        assert!(text.contains(part) && !text.contains("hunter2"), "{backend}: {text}");
    }
    let planner = planner(&network(r#"{"Type":"wireguard","MTU":1400,"PSK":""}"#), &[]);
    assert_eq!((planner.pod_mtu(), planner.remark()), (1320, None));
    let as_large = self::planner(&network(r#"{"Type":"wireguard","MTU":1500}"#), &[]);
    assert_eq!((as_large.pod_mtu(), as_large.remark()), (1420, None));
    // One device has one port, whatever the other one is.
    network(r#"{"Type":"wireguard","Mode":"auto","ListenPortV6":51820}"#);
    let default = network(r#"{"Type":"wireguard"}"#);
    assert_eq!(network(r#"{"Type":"wireguard","ListenPort":0,"ListenPortV6":0,"MTU":0}"#), default);
    let shared = network(&format!(r#"{{"Type":"wireguard","PSK":"{PSK}"}}"#)).backend;
    assert_eq!(shared.interruption(&default.backend).as_deref(), Some("PSK"));
    assert_eq!(shared.interruption(&shared.clone()), None);
    for (options, what) in [
        (r#""ListenPort":4500"#.to_owned(), Some("ListenPort")),
        (r#""ListenPortV6":4500"#.to_owned(), Some("ListenPortV6")),
        (format!(r#""ListenPort":4500,"PSK":"{PSK}""#), Some("PSK and ListenPort")),
        // Another device is there beside the one of before, and the port of one that is not is nobody's.
        (r#""Mode":"auto","ListenPortV6":4500"#.to_owned(), None),
        (r#""PersistentKeepaliveInterval":5"#.to_owned(), None),
    ] {
        let after = network(&format!(r#"{{"Type":"wireguard",{options}}}"#)).backend;
        assert_eq!(after.interruption(&default.backend).as_deref(), what, "{options}");
    }
    let large = self::planner(&network(r#"{"Type":"wireguard","MTU":9000}"#), &[]);
    assert!(large.remark().unwrap().contains("Pods get an MTU of 1420"));
}

const IPIP: &str = r#"{"PublicIP":"10.4.7.22","PublicIPv6":null,"BackendType":"ipip"}"#;

#[test]
fn ipip_takes_one_route_per_node_and_its_own_device() {
    assert_eq!(
        plan(&network(r#"{"Type":"ipip"}"#), &[("172.7.22.0-24", IPIP)]),
        "\
flannel.ipip ipip local 10.4.7.21 remote any mtu 1480 up
172.7.21.0/32 dev flannel.ipip
route 172.7.22.0/24 metric 1790 via 10.4.7.22 dev flannel.ipip onlink proto 121"
    );
    assert_eq!(planner(&network(r#"{"Type":"ipip"}"#), &[]).pod_mtu(), 1480);
    assert_eq!(read_lease("172.7.22.0-24", IPIP.as_bytes()).unwrap().attrs.render(), IPIP);
    let direct = plan(&network(r#"{"Type":"ipip","DirectRouting":true}"#), &[("172.7.22.0-24", IPIP)]);
    assert!(direct.ends_with("via 10.4.7.22 dev eth0 proto 121"), "{direct}");
    let v6 = r#"{"EnableIPv6":true,"Network":"172.7.0.0/16","IPv6Network":"fd00:7::/48","Backend":{"Type":"ipip"}}"#;
    assert!(parse(v6).unwrap_err().contains("ipip carries IPv4 only"));
}

#[test]
fn auto_routes_to_nodes_on_the_link_and_tunnels_to_the_others() {
    let far = IPIP.replace("10.4.7.22", "10.9.9.23");
    let host_gw = IPIP.replace("ipip", "host-gw").replace("10.4.7.22", "10.4.7.24");
    let leases = [("172.7.22.0-24", IPIP), ("172.7.23.0-24", far.as_str()), ("172.7.24.0-24", host_gw.as_str())];
    let rows = plan(&network(r#"{"Type":"auto","Tunnel":"ipip"}"#), &leases);
    assert!(rows.contains("172.7.22.0/24 metric 1790 via 10.4.7.22 dev eth0 proto"), "{rows}");
    assert!(rows.contains("172.7.23.0/24 metric 1791 via 10.9.9.23 dev flannel.ipip onlink"), "{rows}");
    assert!(rows.contains("172.7.24.0/24 metric 1792 via 10.4.7.24 dev eth0"), "a host-gw node on the link");
    let beyond = host_gw.replace("10.4.7.24", "10.9.9.24");
    let others = refusals(&network(r#"{"Type":"auto","Tunnel":"ipip"}"#), &[("172.7.24.0-24", &beyond)]);
    assert!(others[0].contains("10.9.9.24 uses another backend"), "{others:?}");

    let encrypted = network(r#"{"Type":"auto","Tunnel":"wireguard"}"#);
    let (near, far) = (wireguard("10.4.7.22", PEER), wireguard("10.9.9.23", PSK));
    let rows = plan(&encrypted, &[("172.7.22.0-24", &near), ("172.7.23.0-24", &far)]);
    assert!(rows.contains("172.7.22.0/24 metric 1790 via 10.4.7.22 dev eth0") && !rows.contains(PEER), "{rows}");
    assert!(rows.contains("172.7.23.0/24 metric 1791 dev flannel-wg"), "{rows}");

    let vxlan = network(r#"{"Type":"auto","VNI":7}"#);
    assert_eq!(vxlan, network(r#"{"Type":"vxlan","VNI":7,"DirectRouting":true}"#));
    assert!(refused(r#"{"Type":"auto","Tunnel":"host-gw"}"#).contains("Backend.Tunnel: host-gw is no tunnel"));
}

#[test]
fn alloc_leases_and_does_nothing_else() {
    let network = network(r#"{"Type":"alloc"}"#);
    let bare = r#"{"PublicIP":"10.4.7.22","PublicIPv6":null}"#;
    assert_eq!(plan(&network, &[("172.7.22.0-24", bare), ("172.7.23.0-24", &IPIP.replace(".22", ".23"))]), "");
    let attrs =
        LeaseAttrs { public_ips: local(&network).public_ips(), backend: network.backend.attrs(&local(&network)) };
    assert_eq!(attrs.render(), bare.replace(".22", ".21"));
    assert_eq!(planner(&network, &[]).pod_mtu(), 1500);
}

#[test]
fn extension_keeps_a_file_of_each_node() {
    let network = network(r#"{"Type":"extension"}"#);
    let peer = r#"{"PublicIP":"10.4.7.22","PublicIPv6":null,"BackendType":"extension","BackendData":"two\nlines"}"#;
    assert_eq!(
        plan(&network, &[("172.7.22.0-24", peer)]),
        "\
node.env \"NETWORK=172.7.0.0/16\\nSUBNET=172.7.21.0/24\\nPUBLIC_IP=10.4.7.21\\nMTU=1500\\n\\n\"
subnets/172.7.22.0-24 \"SUBNET=172.7.22.0/24\\nPUBLIC_IP=10.4.7.22\\n\\ntwo\\nlines\""
    );
    assert_eq!(read_lease("172.7.22.0-24", peer.as_bytes()).unwrap().attrs.render(), peer);
    let said = LocalNode { data: Some("two\nlines".to_owned()), ..local(&network) };
    let attrs = LeaseAttrs { public_ips: said.public_ips(), backend: network.backend.attrs(&said) };
    assert_eq!(attrs.render(), peer.replace(".22", ".21"));
}

#[test]
fn data_of_a_lease_are_no_longer_than_a_nodes_program_may_say() {
    let lease = |length: usize| {
        let value =
            format!(r#"{{"PublicIP":"10.4.7.22","BackendType":"extension","BackendData":"{}"}}"#, "x".repeat(length));
        read_lease("172.7.22.0-24", value.as_bytes())
    };
    assert!(lease(65_536).is_ok());
    let error = lease(65_537).unwrap_err();
    assert!(error.starts_with("BackendData: 65537 bytes; accepted: ") && error.len() < 200, "{error}");
}

#[test]
fn every_example_is_read_without_a_remark() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/net-conf.d");
    let mut names = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let conf = NetConf::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(conf.notes, Vec::<String>::new(), "{}", path.display());
        names.push(conf.network.backend.name());
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names, ["alloc", "extension", "host-gw", "ipip", "vxlan", "wireguard"]);
}

#[test]
fn commands_and_backends_that_netd_has_not_are_refused_with_what_to_use_instead() {
    for (backend, part) in [
        (r#"{"Type":"extension","PreStartupCommand":"x"}"#, "Backend.PreStartupCommand: netd executes no commands"),
        (r#"{"Type":"extension","SubnetAddCommand":"x"}"#, "extension/subnets/"),
        (r#"{"Type":"extension","ShutdownCommand":"x"}"#, "Backend.ShutdownCommand"),
        (r#"{"Type":"udp"}"#, "use vxlan"),
        (r#"{"Type":"IPsec","PSK":"hunter2"}"#, "use wireguard"),
        (r#"{"Type":"tencent-vpc"}"#, "use host-gw"),
        (r#"{"Type":"aws-vpc"}"#, "use host-gw"),
        (r#"{"Type":"gce"}"#, "use host-gw"),
        (r#"{"Type":"ali-vpc"}"#, "use host-gw"),
        (r#"{"Type":"teleport"}"#, "unknown backend type"),
    ] {
        let text = refused(backend);
        assert!(text.contains(part) && !text.contains("hunter2"), "{backend}: {text}");
    }
    parse(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"extension","SubnetAddCommand":""}}"#).unwrap();
}

#[test]
fn route_of_flannels_wireguard_is_adopted_whole_and_nothing_like_it() {
    let owner = |network: Network, routes: &[(RouteKey, Route)]| {
        let local = local(&network);
        let ownership = Ownership::of(network, local);
        ownership.adopting(routes.iter().cloned(), &PerFamily::default())
    };
    let route = |dst: &str, link: &str, protocol: u8| {
        let key = RouteKey { table: TABLE_MAIN, dst: dst.parse().unwrap(), metric: 0 };
        let value = Route {
            kind: RouteKind::Unicast,
            via: None,
            link: link.parse().ok(),
            onlink: false,
            src: None,
            scope: RouteScope::Link,
            protocol,
            metrics: RouteMetrics::default(),
        };
        (key, value)
    };
    let whole = route("172.7.0.0/16", "flannel-wg", 3);
    let others = [
        route("172.7.0.0/16", "eth0", 3),
        route("172.7.0.0/16", "flannel-wg", 4),
        route("172.7.22.0/24", "flannel-wg", 3),
    ];
    let ownership = owner(network(r#"{"Type":"wireguard"}"#), &[&[whole.clone()][..], &others].concat());
    assert!(ownership.owns(&whole.0, &whole.1));
    assert!(others.iter().all(|(key, route)| !ownership.owns(key, route)));
    let vxlan = owner(network(r#"{"Type":"vxlan"}"#), std::slice::from_ref(&whole));
    assert!(!vxlan.owns(&whole.0, &whole.1));
    // Our own, without a next hop: on the device only.
    let planner = planner(&network(r#"{"Type":"wireguard"}"#), &[("172.7.22.0-24", &wireguard("10.4.7.22", PEER))]);
    let tables = planner.tables();
    let (key, value) = tables.routes.first_key_value().unwrap();
    assert!(ownership.owns(key, value) && value.protocol == ROUTE_PROTOCOL);
    assert!(!ownership.owns(key, &Route { link: "eth0".parse().ok(), ..value.clone() }));
}

#[test]
fn routes_of_flannels_other_backends_are_adopted_in_its_shapes_and_no_others() {
    let route = |dst: &str, via: Option<&str>, link: &str, onlink: bool| {
        let (key, value) = crate::plan::route(
            dst.parse().unwrap(),
            via.unwrap_or("10.4.7.22").parse().unwrap(),
            &IfName::literal("eth0"),
            onlink,
        );
        let via = via.map(|via| via.parse().unwrap());
        (RouteKey { metric: 0, ..key }, Route { via, link: link.parse().ok(), protocol: 3, ..value })
    };
    let by_node = || route("172.7.22.0/24", Some("10.4.7.22"), "eth0", false);
    let routed = || route("172.7.22.0/24", Some("10.9.9.9"), "eth0", false);
    let own = || route("172.7.22.0/24", Some("10.4.7.21"), "eth0", false);
    let elsewhere = || route("172.7.22.0/24", Some("10.4.7.22"), "eth1", false);
    let onlink = || route("172.7.22.0/24", Some("10.4.7.22"), "eth0", true);
    let vxlan = || route("172.7.22.0/24", Some("172.7.22.0"), "flannel.1", true);
    let ipip = || route("172.7.22.0/24", Some("10.4.7.22"), "flannel.ipip", true);
    let without = |(key, value): (RouteKey, Route), change: fn(&mut Route)| {
        let mut value = value;
        change(&mut value);
        (key, value)
    };
    let never = [
        routed(),
        own(),
        elsewhere(),
        onlink(),
        without(by_node(), |route| route.via = None),
        without(by_node(), |route| route.protocol = 4),
        without(vxlan(), |route| route.onlink = false),
        without(vxlan(), |route| route.via = "172.7.22.1".parse().ok()),
        without(ipip(), |route| route.onlink = false),
        without(ipip(), |route| route.via = None),
        route("172.7.22.0/24", Some("172.7.22.0"), "flannel.", true),
        route("172.7.22.0/24", Some("172.7.22.0"), "flannel.1x", true),
        route("172.7.22.0/25", Some("10.4.7.22"), "eth0", false),
    ];
    for (backend, made) in [
        (r#"{"Type":"host-gw"}"#, vec![by_node()]),
        (r#"{"Type":"vxlan"}"#, vec![vxlan()]),
        (r#"{"Type":"vxlan","DirectRouting":true}"#, vec![vxlan(), by_node()]),
        (r#"{"Type":"ipip"}"#, vec![ipip()]),
        (r#"{"Type":"ipip","DirectRouting":true}"#, vec![ipip(), by_node()]),
        (r#"{"Type":"alloc"}"#, vec![]),
    ] {
        let network = network(backend);
        let local = local(&network);
        let all: Vec<_> = [by_node(), vxlan(), ipip()].into_iter().chain(never.clone()).collect();
        let ownership = Ownership::of(network, local);
        let ownership = ownership.adopting(all.iter().cloned(), &PerFamily::default());
        for (key, route) in &all {
            let is_made = made.iter().any(|(at, other)| (at, other) == (key, route));
            assert_eq!(ownership.owns(key, route), is_made, "{backend}: {key} {route:?}");
        }
    }
}

#[test]
fn data_paths_stand_side_by_side_where_kind_or_device_differs() {
    let backend = |text: &str| network(text).backend;
    let vxlan = backend(r#"{"Type":"vxlan"}"#);
    for (other, beside) in [
        (r#"{"Type":"vxlan","Port":4789}"#, false),
        (r#"{"Type":"vxlan","VNI":7}"#, true),
        (r#"{"Type":"host-gw"}"#, true),
        (r#"{"Type":"wireguard"}"#, true),
    ] {
        assert_eq!(vxlan.stands_beside(&backend(other)), beside, "{other}");
        assert_eq!(backend(other).stands_beside(&vxlan), beside, "{other}");
    }
    // Neither has a device, and each has its own way.
    assert!(backend(r#"{"Type":"host-gw"}"#).stands_beside(&backend(r#"{"Type":"alloc"}"#)));
    assert!(!backend(r#"{"Type":"host-gw"}"#).stands_beside(&backend(r#"{"Type":"host-gw"}"#)));
}

#[test]
fn node_that_has_left_wireguard_stays_known_until_that_retires_whatever_else_changes() {
    let (before, after) = (network(r#"{"Type":"wireguard"}"#), network(r#"{"Type":"vxlan"}"#));
    let mut planner = planner(&before, &[("172.7.22.0-24", &wireguard("10.4.7.22", PEER))]);
    planner.set_network(after.clone(), vec![before.backend.clone()], local(&after));
    let moved =
        r#"{"PublicIP":"10.4.7.22","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:22"}}"#;
    let lease = read_lease("172.7.22.0-24", moved.as_bytes()).unwrap();
    let put = (lease.key, Some(Arc::new(StoredLease { lease, created: 1, revision: 2, token: None })));
    planner.update([put.clone()]);
    let known = |planner: &Planner| text(&planner.tables()).contains(&format!("flannel-wg peer {PEER}"));
    let by = |planner: &Planner| planner.tables().routes.values().filter_map(|route| route.link.clone()).next();
    assert_eq!((known(&planner), by(&planner)), (true, "flannel.1".parse().ok()), "it may send the old way still");
    // Another change of the configuration, while nodes are on their way.
    let further = network(r#"{"Type":"vxlan","MTU":1400}"#);
    planner.set_network(further.clone(), vec![before.backend.clone()], local(&further));
    planner.update([put.clone()]);
    assert!(known(&planner), "{}", text(&planner.tables()));
    // A lease that goes takes what it said before along.
    let mut gone = planner.clone();
    gone.update([(put.0, None)]);
    assert!(!known(&gone));
    planner.retire();
    assert!(!known(&planner));
    // With WireGuard again, what it said then counts for nothing.
    planner.set_network(before.clone(), vec![after.backend], local(&before));
    planner.update([put]);
    assert!(!known(&planner), "{}", text(&planner.tables()));
}

#[test]
fn nodes_whose_leases_name_no_device_are_told_apart_by_nothing_but_their_address() {
    for (backend, is_common) in [
        (r#"{"Type":"vxlan"}"#, false),
        (r#"{"Type":"wireguard"}"#, false),
        (r#"{"Type":"host-gw"}"#, false),
        (r#"{"Type":"ipip"}"#, true),
        (r#"{"Type":"alloc"}"#, true),
        (r#"{"Type":"extension"}"#, true),
    ] {
        let network = network(backend);
        assert_eq!(network.backend.attrs(&local(&network)).is_common(), is_common, "{backend}");
    }
}

#[test]
fn devices_of_every_tunnel_are_known_and_nothing_else_is() {
    use crate::plan::backend::Backend;
    for (name, is) in [
        ("flannel.1", true),
        ("flannel-v6.1", true),
        ("flannel.ipip", true),
        ("flannel-wg", true),
        ("flannel-wg-v6", true),
        ("tunl0", false),
        ("wg0", false),
        ("eth0", false),
    ] {
        assert_eq!(Backend::owns_device(&IfName::new(name).unwrap()), is, "{name}");
    }
}
