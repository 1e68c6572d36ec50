//! Host ports: the options of portmap, and the black-box cases of its own suite (portmap_test.go,
//! portmap_integ_test.go) in every version of the specification.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::attach::{say, who_called};
use crate::bridge::routed;
use crate::node::{DUAL_ENV, Node, bound, inside, native, with};
use crate::port_addresses::outside_v6;
use crate::port_owners::second;
use crate::ports::{NODE, addr, answer, ask, elements, mapped, outside};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("portmap_forwards_tcp_from_everywhere_in_every_version", tcp_in_every_version),
    ("portmap_forwards_udp_after_the_container_was_replaced_in_every_version", udp_in_every_version),
    ("portmap_needs_a_previous_result_and_bears_a_missing_interface_index", previous_result),
    ("portmap_refuses_invalid_mappings_and_options_by_field", invalid),
    ("portmap_without_mappings_passes_the_result_on_and_asks_for_nothing", no_mappings),
    ("without_snat_only_the_destination_changes", without_snat),
    ("masq_all_rewrites_every_source_of_both_families", masq_all),
    ("mark_bit_is_the_one_configured", mark_bit),
    ("conditions_open_a_port_to_whom_they_say_and_to_nobody_else", conditions),
    ("conditions_of_one_network_do_not_concern_another", conditions_apart),
    ("conditions_with_lists_and_links_hold_over_both_families", conditions_of_both_families),
    ("sctp_port_stands_in_the_table", sctp_element),
];

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn portmap(version: &str) -> Value {
    json!({"cniVersion": version, "name": "ports", "type": "portmap"})
}

/// The interface-making plugin of the chain: the `bridge` name with addresses from 10.9.0.0/24.
fn bridge(version: &str) -> Value {
    // Where bridged packets are shown to netfilter, a Pod's packet to itself leaves by the port that it came in by.
    let conf = with(&routed(version, &["10.9.0.0/24"]), "hairpinMode", json!(true));
    with(&conf, "name", json!("ports"))
}

/// Attaches `id` by bridge and portmap; `chained` is portmap's configuration.
fn chained(node: &Node, version: &str, chained: &Value, id: &str) -> std::path::PathBuf {
    let pod = node.pod();
    let result = node.add(&bridge(version), id, &pod).result();
    let chained = with(chained, "prevResult", result.clone());
    assert_eq!(node.add(&chained, id, &pod).result(), result, "{version}");
    pod
}

fn detached(node: &Node, version: &str, id: &str, pod: &Path) {
    node.del(&portmap(version), id, pod).silent();
    node.del(&bridge(version), id, pod).silent();
    assert_eq!(elements(), 0, "{version}");
}

fn is_closed(addr: SocketAddr) -> bool {
    TcpStream::connect_timeout(&addr, Duration::from_millis(500)).is_err()
}

fn tcp_in_every_version(node: &Node) {
    let client = outside(node);
    for version in VERSIONS {
        let id = format!("web-{version}");
        let pod = chained(node, version, &mapped(&portmap(version), "tcp", 9999, 7, ""), &id);
        let text = inside(&pod, || {
            String::from_utf8(Command::new("ip").args(["-4", "-o", "addr", "show", "eth0"]).output().unwrap().stdout)
                .unwrap()
        });
        let pod_addr: std::net::IpAddr =
            text.split("inet ").nth(1).unwrap().split('/').next().unwrap().parse().unwrap();
        let called = |by: &(dyn Fn() + Sync)| who_called(&pod, addr("0.0.0.0:7"), by).to_string();
        assert_eq!(called(&|| say(SocketAddr::new(pod_addr, 7))), "10.9.0.1", "{version}: direct");
        assert_eq!(called(&|| say(addr("10.4.7.21:9999"))), NODE, "{version}: by the host's address");
        assert_eq!(called(&|| say(addr("127.0.0.1:9999"))), "10.9.0.1", "{version}: by 127.0.0.1");
        assert_eq!(called(&|| inside(&pod, || say(addr("10.4.7.21:9999")))), "10.9.0.1", "{version}: hairpin");
        assert_eq!(
            called(&|| inside(&client, || say(addr("10.4.7.21:9999")))),
            "10.4.7.200",
            "{version}: from outside"
        );
        detached(node, version, &id, &pod);
        assert!(is_closed(addr("127.0.0.1:9999")), "{version}");
    }
}

fn udp_in_every_version(node: &Node) {
    let client = outside(node);
    for version in VERSIONS {
        let socket = inside(&client, || {
            let socket = std::net::UdpSocket::bind("10.4.7.200:0").unwrap();
            socket.connect("10.4.7.21:9998").unwrap();
            socket
        });
        let patience = Duration::from_secs(5);
        let conf = mapped(&portmap(version), "udp", 9998, 5353, "");
        let first = chained(node, version, &conf, &format!("first-{version}"));
        assert!(answer(&first, || ask(&socket, patience)), "{version}");
        detached(node, version, &format!("first-{version}"), &first);
        let second = chained(node, version, &conf, &format!("second-{version}"));
        assert!(answer(&second, || ask(&socket, patience)), "{version}: the same flow, to the second container");
        detached(node, version, &format!("second-{version}"), &second);
    }
}

fn previous_result(node: &Node) {
    let (code, text) = node.add(&mapped(&portmap("1.0.0"), "tcp", 80, 80, ""), "web-1", &node.pod()).error();
    assert!(code == 7 && text.contains("must be called as chained plugin"), "{text}");
    // portmap_test.go "does not fail on missing prevResult interface index".
    for interface in [json!(null), json!(7)] {
        let mut ip = json!({"address": "127.0.0.9/8"});
        if !interface.is_null() {
            ip["interface"] = interface;
        }
        let result = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "host"}], "ips": [ip]});
        let conf = with(&mapped(&portmap("1.0.0"), "tcp", 8080, 80, ""), "prevResult", result.clone());
        let pod = node.pod();
        assert_eq!(node.add(&conf, "web-1", &pod).result(), result);
        assert_eq!(elements(), 2);
        node.del(&portmap("1.0.0"), "web-1", &pod).silent();
    }
    // An address of somebody else's interface is not the container's.
    let result = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "host"}],
                        "ips": [{"address": "127.0.0.9/8", "interface": 0}]});
    let conf = with(&mapped(&portmap("1.0.0"), "tcp", 8080, 80, ""), "prevResult", result);
    let (code, text) = node.add(&conf, "web-1", &node.pod()).error();
    assert!(code == 7 && text.contains("no address of the container's interface"), "{text}");
}

fn invalid(node: &Node) {
    let result = json!({"cniVersion": "1.0.0", "ips": [{"address": "127.0.0.9/8"}]});
    let base = with(&portmap("1.0.0"), "prevResult", result);
    let with_mapping = |mapping: Value| with(&base, "runtimeConfig", json!({"portMappings": [mapping]}));
    let good = json!({"hostPort": 8080, "containerPort": 80});
    for (conf, code, field) in [
        (with_mapping(json!({"hostPort": 8080, "containerPort": 0})), 7, "portMappings[0].containerPort"),
        (with_mapping(json!({"hostPort": 8080, "containerPort": -1})), 7, "portMappings[0].containerPort"),
        (with_mapping(json!({"hostPort": 65536, "containerPort": 80})), 7, "portMappings[0].hostPort"),
        (with_mapping(json!({"hostPort": 8080, "containerPort": 80, "protocol": "icmp"})), 7, "protocol"),
        (with_mapping(json!({"hostPort": 8080, "containerPort": 80, "hostIP": "10.4.7"})), 7, "hostIP"),
        (with(&base, "runtimeConfig", json!({"portMappings": {"hostPort": 8080}})), 7, "portMappings"),
        (with(&with_mapping(good.clone()), "markMasqBit", json!(32)), 7, "markMasqBit"),
        (with(&with_mapping(good.clone()), "snat", json!("yes")), 7, "snat"),
        (with(&with_mapping(good.clone()), "backend", json!("iptables")), 2, "backend"),
        (with(&with_mapping(good.clone()), "externalSetMarkChain", json!("KUBE-MARK-MASQ")), 2, "externalSetMarkChain"),
        (with(&with_mapping(good.clone()), "conditionsV4", json!(["-s", "10.0.0.0/8"])), 2, "iptables' language"),
        (with(&with_mapping(good.clone()), "conditionsV4", json!(["!", "-s", "10.0.0.1"])), 2, "iptables' language"),
        (with(&with_mapping(good.clone()), "conditionsV6", json!(["ip6", "hoplimit", "3"])), 2, "hoplimit"),
        (with(&with_mapping(good.clone()), "conditionsV4", json!("ip saddr 10.0.0.1")), 7, "conditionsV4"),
    ] {
        let (found, text) = node.add(&conf, "web-1", &node.pod()).error();
        assert!(found == code && text.contains(field), "{conf}: {found} {text}");
    }
    let two = json!([good, {"hostPort": 8080, "containerPort": 81}]);
    let (code, text) =
        node.add(&with(&base, "runtimeConfig", json!({"portMappings": two})), "web-1", &node.pod()).error();
    assert!(code == 7 && text.contains("one container port for each host port"), "{text}");
    assert_eq!((elements(), node.files()), (0, Vec::new()), "nothing was done");
}

fn no_mappings(node: &Node) {
    let result = json!({"cniVersion": "1.0.0", "ips": [], "x": {"kept": true}});
    for mappings in [json!([]), json!([{"containerPort": 80}])] {
        let conf = with(&portmap("1.0.0"), "prevResult", result.clone());
        let conf = with(&conf, "runtimeConfig", json!({"portMappings": mappings}));
        assert_eq!(node.add(&conf, "web-1", &node.pod()).result(), result);
    }
    assert_eq!(node.files(), []);
}

fn without_snat(node: &Node) {
    let client = outside(node);
    let pod = node.pod();
    node.add(&mapped(&with(&native(), "snat", json!(false)), "tcp", 8080, 80, ""), "web-1", &pod).result();
    let server = addr("0.0.0.0:80");
    let port = addr("10.4.7.21:8080");
    assert_eq!(who_called(&pod, server, || inside(&client, || say(port))).to_string(), "10.4.7.200");
    assert_eq!(who_called(&pod, server, || say(port)).to_string(), NODE);
    assert!(is_closed(addr("127.0.0.1:8080")), "its answer would go to 127.0.0.1 of the Pod");
    assert!(inside(&pod, || is_closed(port)), "a Pod that called itself would not know its own answer");
    let localnet = kernel::sysctl::read(&"net/ipv4/conf/cbr0/route_localnet".parse().unwrap()).unwrap();
    assert_eq!(localnet, "0", "what is not needed is not switched on");
}

fn masq_all(node: &Node) {
    std::fs::write("/run/flannel/subnet.env", DUAL_ENV).unwrap();
    let client = outside_v6(node);
    let pod = node.pod();
    node.add(&mapped(&with(&native(), "masqAll", json!(true)), "tcp", 8080, 80, ""), "web-1", &pod).result();
    let called = who_called(&pod, addr("0.0.0.0:80"), || inside(&client, || say(addr("10.4.7.21:8080"))));
    assert_eq!(called.to_string(), "172.7.21.1");
    let called = who_called(&pod, addr("[::]:80"), || inside(&client, || say(addr("[fd00:4::21]:8080"))));
    assert_eq!(called.to_string(), "fd00:7:0:21::1");
    let called = who_called(&pod, addr("0.0.0.0:80"), || say(addr("127.0.0.1:8080")));
    assert_eq!(called.to_string(), "172.7.21.1");
}

/// Counts packets whose mark has exactly one bit, for each of two bits.
const MARKS: &str = "
table ip marks {
	chain postrouting {
		type filter hook postrouting priority 0; policy accept;
		meta mark 0x80 counter comment \"bit 7\"
		meta mark 0x2000 counter comment \"bit 13\"
	}
}
";

fn mark_bit(node: &Node) {
    std::fs::write("/run/marks.nft", MARKS).unwrap();
    assert!(Command::new("nft").args(["-f", "/run/marks.nft"]).status().unwrap().success());
    let seen = |bit: &str| {
        let output = Command::new("nft").args(["list", "table", "ip", "marks"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find(|line| line.contains(&format!("\"{bit}\""))).unwrap().to_owned();
        !line.contains("packets 0 ")
    };
    let (seven, thirteen) = (node.pod(), node.pod());
    node.add(&mapped(&with(&native(), "markMasqBit", json!(7)), "tcp", 8087, 80, ""), "web-7", &seven).result();
    node.add(&mapped(&native(), "tcp", 8093, 80, ""), "web-13", &thirteen).result();
    assert_eq!((seen("bit 7"), seen("bit 13")), (false, false));
    let called = who_called(&seven, addr("0.0.0.0:80"), || say(addr("127.0.0.1:8087")));
    assert_eq!((called.to_string().as_str(), seen("bit 7"), seen("bit 13")), ("172.7.21.1", true, false));
    let called = who_called(&thirteen, addr("0.0.0.0:80"), || say(addr("127.0.0.1:8093")));
    assert_eq!((called.to_string().as_str(), seen("bit 13")), ("172.7.21.1", true));
}

fn conditions(node: &Node) {
    let client = outside(node);
    let pod = node.pod();
    let conf = with(&native(), "conditionsV4", json!(["ip", "saddr", "10.4.7.200", "tcp", "dport", "8080"]));
    let two = json!([{"hostPort": 8080, "containerPort": 80}, {"hostPort": 8081, "containerPort": 80},
                     {"hostPort": 8080, "containerPort": 80, "hostIP": NODE}]);
    node.add(&with(&conf, "runtimeConfig", json!({"portMappings": two})), "web-1", &pod).result();
    let (server, port) = (addr("0.0.0.0:80"), addr("10.4.7.21:8080"));
    assert_eq!(who_called(&pod, server, || inside(&client, || say(port))).to_string(), "10.4.7.200", "who is named");
    assert!(is_closed(port), "the node is not named");
    assert!(inside(&client, || is_closed(addr("10.4.7.21:8081"))), "the port is not named");
    assert!(is_closed(addr("127.0.0.1:8080")));
    // Whom the port is closed to meets what the node itself serves there.
    let local = bound(|| std::net::TcpListener::bind(port));
    assert!(!is_closed(port));
    assert_eq!(who_called(&pod, server, || inside(&client, || say(port))).to_string(), "10.4.7.200");
    drop(local);
    node.del(&conf, "web-1", &pod).silent();
    assert_eq!(elements(), 0);
}

fn conditions_apart(node: &Node) {
    let client = outside(node);
    let (open, closed) = (node.pod(), node.pod());
    let never = with(&second(), "conditionsV4", json!(["ip", "saddr", "192.0.2.1"]));
    node.add(&mapped(&native(), "tcp", 8080, 80, ""), "web-1", &open).result();
    node.add(&mapped(&never, "tcp", 8081, 80, ""), "web-2", &closed).result();
    let server = addr("0.0.0.0:80");
    for port in [9001, 9002] {
        let called = who_called(&open, server, || inside(&client, || say(addr("10.4.7.21:8080"))));
        assert_eq!(called.to_string(), "10.4.7.200", "the last ADD does not decide for everybody");
        let called = who_called(&open, server, || say(addr("127.0.0.1:8080")));
        assert_eq!(called.to_string(), "172.7.21.1");
        assert!(inside(&client, || is_closed(addr("10.4.7.21:8081"))));
        node.add(&mapped(&native(), "udp", port, 80, ""), &format!("web-{port}"), &node.pod()).result();
    }
}

fn conditions_of_both_families(node: &Node) {
    std::fs::write("/run/flannel/subnet.env", DUAL_ENV).unwrap();
    let client = outside_v6(node);
    let pod = node.pod();
    let conf =
        with(&native(), "conditionsV4", json!(["iifname", "{ underlay, eth9 }", "ip saddr != { 10.0.0.1, 10.0.0.2 }"]));
    let conf = with(&conf, "conditionsV6", json!(["ip6", "saddr", "fd00:4::/64", "ip6", "daddr", "!=", "fd00:4::99"]));
    let conf = with(&conf, "snat", json!(false));
    node.add(&mapped(&conf, "tcp", 8080, 80, ""), "web-1", &pod).result();
    let called = who_called(&pod, addr("0.0.0.0:80"), || inside(&client, || say(addr("10.4.7.21:8080"))));
    assert_eq!(called.to_string(), "10.4.7.200");
    let called = who_called(&pod, addr("[::]:80"), || inside(&client, || say(addr("[fd00:4::21]:8080"))));
    assert_eq!(called.to_string(), "fd00:4::200");
    assert!(is_closed(addr("10.4.7.21:8080")), "the node's own packets come in by no link");
    assert!(inside(&pod, || is_closed(addr("[fd00:4::21]:8080"))), "a Pod is of another network");
    node.del(&conf, "web-1", &pod).silent();
    assert_eq!(elements(), 0);
}

fn sctp_element(node: &Node) {
    let pod = node.pod();
    node.add(&mapped(&native(), "sctp", 8080, 80, ""), "web-1", &pod).result();
    let output = Command::new("nft").args(["list", "map", "inet", "netd-ports", "ports4"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("sctp . 8080") && text.contains("172.7.21.2 . 80"), "{text}");
    // TCP and UDP of the same number are somebody else's to have.
    node.add(&mapped(&native(), "tcp", 8080, 80, ""), "web-2", &node.pod()).result();
    node.del(&native(), "web-1", &pod).silent();
    assert_eq!(elements(), 2);
}
