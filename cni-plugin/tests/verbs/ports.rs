//! Host ports: who reaches the Pod through them, and what is left of them.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kernel::nft::Nft;
use kernel::{Netns, Rtnl};
use netstate::nft::{Family, Name, TableKey};
use netstate::{IfName, Link, LinkKind};
use serde_json::{Value, json};

use crate::attach::{say, who_called};
use crate::node::{Node, bound, flannel, inside, native, with};
use crate::port_owners::second;

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("host_port_is_reached_from_everywhere", reached_from_everywhere),
    ("host_port_of_the_stock_chain_is_opened_and_closed_by_portmap", stock_chain),
    ("host_port_on_one_address_is_open_there_only", one_address),
    ("udp_flow_follows_the_port_to_its_new_pod", udp_flow),
    ("check_reports_a_closed_port", check_reports),
    ("five_hundred_ports_of_one_pod_are_opened_on_a_fresh_node_and_refused_to_another", many),
    ("host_port_of_one_container_in_two_networks_is_the_later_ones", two_networks),
];

pub(crate) const NODE: &str = "10.4.7.21";

/// `conf` with one mapping, in containerd's spelling.
pub(crate) fn mapped(conf: &Value, protocol: &str, host_port: u16, container_port: u16, host_ip: &str) -> Value {
    let mapping =
        json!({"HostPort": host_port, "ContainerPort": container_port, "Protocol": protocol, "HostIP": host_ip});
    with(conf, "runtimeConfig", json!({"portMappings": [mapping]}))
}

/// A machine at 10.4.7.200, and the node at 10.4.7.21.
pub(crate) fn outside(node: &Node) -> PathBuf {
    let path = node.pod();
    let end = |name: &str, mac: u8| kernel::link::VethEnd {
        name: IfName::new(name).unwrap(),
        mac: netstate::MacAddr([2, 0, 0, 0, 1, mac]),
    };
    let mut host = Rtnl::open().unwrap();
    // A veth is always made as a port; the uplink then leaves that bridge.
    let bridge = IfName::new("underlay").unwrap();
    let link = |kind, mac| Link { kind, mtu: None, mac, up: true, master: None };
    host.create_link(&bridge, &link(LinkKind::Bridge(Default::default()), None)).unwrap();
    let master = host.link(&bridge).unwrap().unwrap().index;
    host.create_veth(&end("uplink", 1), master, &end("eth0", 2), &Netns::open(&path).unwrap(), 1500).unwrap();
    host.add_address(master, NODE.parse().unwrap(), 24).unwrap();
    inside(&path, || {
        let mut rtnl = Rtnl::open().unwrap();
        let eth0 = IfName::new("eth0").unwrap();
        let index = rtnl.link(&eth0).unwrap().unwrap().index;
        rtnl.add_address(index, "10.4.7.200".parse().unwrap(), 24).unwrap();
        rtnl.set_link(&eth0, &link(LinkKind::Veth, None)).unwrap();
    });
    path
}

/// Waits until `holds` does, for at most ten seconds.
pub(crate) fn eventually(holds: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "it did not come about within ten seconds");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn table() -> TableKey {
    TableKey { family: Family::Inet, name: Name::literal("netd-ports") }
}

pub(crate) fn elements() -> usize {
    Nft::open().unwrap().ruleset(&table()).unwrap().map_or(0, |ruleset| ruleset.elements.len())
}

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Opens tcp 8080 to port 80 of a new Pod.
pub(crate) fn served(node: &Node, id: &str) -> PathBuf {
    let pod = node.pod();
    node.add(&mapped(&native(), "tcp", 8080, 80, ""), id, &pod).result();
    pod
}

fn reached_from_everywhere(node: &Node) {
    let client = outside(node);
    let pod = served(node, "web-1");
    let (other, other_addr) = node.attached(&native(), "web-2");
    let server = addr("0.0.0.0:80");
    let node_port = addr("10.4.7.21:8080");
    let called = |by: &(dyn Fn() + Sync)| who_called(&pod, server, by).to_string();
    assert_eq!(called(&|| inside(&client, || say(node_port))), "10.4.7.200", "from outside, source kept");
    assert_eq!(called(&|| say(node_port)), NODE, "from the node to its own address");
    assert_eq!(called(&|| say(addr("127.0.0.1:8080"))), "172.7.21.1", "from the node to 127.0.0.1");
    assert_eq!(called(&|| inside(&pod, || say(node_port))), "172.7.21.1", "from the Pod to itself");
    let from_other = called(&|| inside(&other, || say(node_port)));
    assert!(["172.7.21.1", &other_addr.to_string()].contains(&from_other.as_str()), "from another Pod: {from_other}");
    // What is not this host's is nobody's port: a Pod serving 8080 itself is still reached.
    let direct = SocketAddr::new(other_addr, 8080);
    assert_eq!(who_called(&other, direct, || inside(&pod, || say(direct))).to_string(), "172.7.21.2");
    // What listens on the node's 127.0.0.1 is not laid open to Pods.
    let local = bound(|| std::net::TcpListener::bind("127.0.0.1:9999"));
    let stolen = inside(&pod, || {
        // What a container with raw sockets can do without it.
        kernel::sysctl::write(&"net/ipv4/conf/eth0/route_localnet".parse().unwrap(), "1").unwrap();
        let mut rtnl = Rtnl::open().unwrap();
        let eth0 = IfName::new("eth0").unwrap();
        let route = netstate::Route {
            kind: netstate::RouteKind::Unicast,
            via: Some("172.7.21.1".parse().unwrap()),
            link: Some(eth0),
            onlink: false,
            src: None,
            scope: netstate::RouteScope::Universe,
            protocol: 3,
            metrics: netstate::RouteMetrics::default(),
        };
        let key = netstate::RouteKey { table: 255, dst: "127.0.0.1/32".parse().unwrap(), metric: 0 };
        rtnl.add_routes(&[(key, route)]).unwrap();
        std::net::TcpStream::connect_timeout(&addr("127.0.0.1:9999"), Duration::from_millis(300)).is_ok()
    });
    drop(local);
    assert!(!stolen, "a Pod reached 127.0.0.1 of the node");
    node.del(&native(), "web-1", &pod).silent();
    assert_eq!(elements(), 0);
    inside(&client, || assert!(std::net::TcpStream::connect_timeout(&node_port, Duration::from_secs(5)).is_err()));
}

fn stock_chain(node: &Node) {
    let client = outside(node);
    let pod = node.pod();
    let portmap = with(&flannel(), "type", json!("portmap"));
    let portmap: Value = portmap
        .as_object()
        .unwrap()
        .iter()
        .filter(|(k, _)| *k != "delegate")
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let first = node.add(&flannel(), "web-1", &pod).result();
    let chained = with(&mapped(&portmap, "tcp", 8080, 80, ""), "prevResult", first.clone());
    assert_eq!(node.add(&chained, "web-1", &pod).result(), first);
    assert_eq!(elements(), 2);
    let called = who_called(&pod, addr("0.0.0.0:80"), || inside(&client, || say(addr("10.4.7.21:8080"))));
    assert_eq!(called.to_string(), "10.4.7.200");
    node.del(&portmap, "web-1", &pod).silent();
    assert_eq!(elements(), 0);
    node.del(&portmap, "web-1", &pod).silent();
    node.del(&flannel(), "web-1", &pod).silent();
    assert_eq!(node.files(), []);
}

fn one_address(node: &Node) {
    let client = outside(node);
    let pod = node.pod();
    node.add(&mapped(&native(), "tcp", 8080, 80, NODE), "web-1", &pod).result();
    let called = who_called(&pod, addr("0.0.0.0:80"), || inside(&client, || say(addr("10.4.7.21:8080"))));
    assert_eq!(called.to_string(), "10.4.7.200");
    assert!(std::net::TcpStream::connect_timeout(&addr("127.0.0.1:8080"), Duration::from_secs(5)).is_err());
    // Another Pod may have the same port on every other address.
    node.add(&mapped(&native(), "tcp", 8080, 80, ""), "web-2", &node.pod()).result();
    assert_eq!(elements(), 4);
}

/// Asks until an echo comes, for at most `patience`; the socket stays, and with it the flow. A flow that leads elsewhere
/// is kept alive by being asked again, so patience hides nothing.
pub(crate) fn ask(socket: &UdpSocket, patience: Duration) -> bool {
    let deadline = std::time::Instant::now() + patience;
    socket.set_read_timeout(Some(patience / 10)).unwrap();
    let mut word = [0; 8];
    while std::time::Instant::now() < deadline {
        // A refusal of the time when nobody had the port may still be waiting in the socket.
        if socket.send(b"ping").is_ok() && socket.recv(&mut word).is_ok() {
            return true;
        }
    }
    false
}

/// Answers one datagram in `pod` with the Pod's own word.
pub(crate) fn answer(pod: &Path, ask: impl FnOnce() -> bool) -> bool {
    let (ready, listening) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            inside(pod, || {
                let socket = bound(|| UdpSocket::bind("0.0.0.0:5353"));
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                ready.send(()).unwrap();
                let mut word = [0; 8];
                let Ok((size, peer)) = socket.recv_from(&mut word) else { return false };
                socket.send_to(&word[..size], peer).unwrap();
                true
            })
        });
        listening.recv().unwrap();
        ask() & server.join().unwrap()
    })
}

fn udp_flow(node: &Node) {
    let client = outside(node);
    let conf = mapped(&native(), "udp", 53, 5353, "");
    let first = node.pod();
    node.add(&conf, "dns-1", &first).result();
    let socket = inside(&client, || {
        let socket = bound(|| UdpSocket::bind("10.4.7.200:40000"));
        socket.connect("10.4.7.21:53").unwrap();
        socket
    });
    let patience = Duration::from_secs(5);
    assert!(answer(&first, || ask(&socket, patience)), "first Pod");
    node.del(&native(), "dns-1", &first).silent();
    let second = node.pod();
    node.add(&conf, "dns-2", &second).result();
    assert!(answer(&second, || ask(&socket, patience)), "the same flow reaches the second Pod");
    // A flow that began while nobody had the port.
    node.del(&native(), "dns-2", &second).silent();
    assert!(!ask(&socket, Duration::from_millis(50)));
    let third = node.pod();
    node.add(&conf, "dns-3", &third).result();
    assert!(answer(&third, || ask(&socket, patience)), "and the third");
}

fn check_reports(node: &Node) {
    let conf = mapped(&native(), "tcp", 8080, 80, "");
    let pod = node.pod();
    let result = node.add(&conf, "web-1", &pod).result();
    node.check(&conf, "web-1", &pod, &result).silent();
    Nft::open().unwrap().release(&table(), |_, _| true).unwrap();
    let (code, text) = node.check(&conf, "web-1", &pod, &result).error();
    assert!(code == 102 && text.contains("@ports4 { tcp . 8080 } is missing"), "{text}");
    let portmap = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "portmap"});
    let chained = mapped(&portmap, "tcp", 8080, 80, "");
    assert_eq!(node.check(&chained, "web-1", &pod, &result).error().0, 102);
}

/// The kernel refuses each of them by a message of its own, where the table is not there yet and where they are held.
fn many(node: &Node) {
    let port = |number: u16| json!({"hostPort": 20_000 + number, "containerPort": 80, "protocol": "tcp"});
    let mappings: Vec<Value> = (0..500).map(port).collect();
    let conf = with(&native(), "runtimeConfig", json!({"portMappings": mappings}));
    node.add(&conf, "web-1", &node.pod()).result();
    let before = (node.files(), elements());
    let (code, text) = node.add(&conf, "web-2", &node.pod()).error();
    assert!(code == 11 && text.contains("web-1@eth0"), "{text}");
    assert_eq!((node.files(), elements()), before);
}

/// As podman and nerdctl ask for them.
fn two_networks(node: &Node) {
    let pod = node.pod();
    let (first, other) = (mapped(&native(), "tcp", 8080, 80, ""), mapped(&second(), "tcp", 8080, 80, ""));
    let there = |command: &str| {
        let netns = pod.to_str().unwrap();
        let vars = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "web-1"),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth1"),
            ("CNI_PATH", "/run/bin"),
        ];
        node.exec("netd-cni", &vars, &other.to_string())
    };
    let leads_there = || {
        let all = Nft::open().unwrap().ruleset(&table()).unwrap().unwrap().elements;
        all.values().all(|element| element.comment.as_deref().is_some_and(|by| by.ends_with("web-1@eth1")))
    };
    let previous = node.add(&first, "web-1", &pod).result();
    there("ADD").result();
    assert!(leads_there());
    node.check(&first, "web-1", &pod, &previous).silent();
    let (code, text) = node.add(&first, "web-2", &node.pod()).error();
    assert!(code == 11 && text.contains("web-1@eth1"), "{text}");
    node.del(&first, "web-1", &pod).silent();
    assert!(elements() > 0 && leads_there(), "DEL of the first network closes nothing of the other");
    there("DEL").silent();
    assert_eq!(elements(), 0);
}
