//! Host ports: on which addresses of the host they are open, over IPv4 and IPv6, and which flows they end.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kernel::conntrack::{Conntrack, Flow, Selection};
use kernel::{Rtnl, sysctl};
use netstate::{IfName, IpFamily, Protocol};
use serde_json::json;

use crate::attach::{say, who_called};
use crate::node::{DUAL_ENV, Node, bound, inside, native, with};
use crate::ports::{NODE, addr, elements, mapped, outside};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("host_port_over_ipv6_is_reached_from_outside_from_the_node_and_by_hairpin", over_ipv6),
    ("host_address_of_every_form_opens_the_port_where_it_says", every_form),
    ("traffic_to_the_same_port_elsewhere_is_untouched", elsewhere),
    ("port_of_one_address_goes_before_the_port_of_all", exact_first),
    ("udp_flows_of_exactly_that_address_are_ended_by_add", ended_by_add),
    ("udp_flows_of_exactly_that_address_are_ended_by_del", ended_by_del),
    ("flows_are_ended_by_gc_as_well", ended_by_gc),
    ("what_cannot_be_forwarded_reaches_what_listens_on_the_node", not_captured),
    ("host_address_that_cannot_be_forwarded_is_refused_by_name", refused_addresses),
];

/// Needs a kernel with SCTP.
pub(crate) const SCTP_TESTS: &[Test] = &[("host_port_over_sctp_is_reached", over_sctp)];

/// True when the kernel has SCTP.
pub(crate) fn has_sctp() -> bool {
    sctp_socket().is_ok()
}

/// An SCTP socket of the one-to-one style (RFC 6458 §4).
fn sctp_socket() -> std::io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: socket(2) reads no memory of ours; a descriptor that it answers is ours alone.
    #[allow(unsafe_code)]
    unsafe {
        let fd = nix::libc::socket(nix::libc::AF_INET, nix::libc::SOCK_STREAM, nix::libc::IPPROTO_SCTP);
        if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(std::os::fd::OwnedFd::from_raw_fd(fd)) }
    }
}

/// As [`outside`], with fd00:4::200 there and fd00:4::21 here.
pub(crate) fn outside_v6(node: &Node) -> PathBuf {
    let client = outside(node);
    let add = |link: &str, address: &str| {
        sysctl::write(&format!("net/ipv6/conf/{link}/accept_dad").parse().unwrap(), "0").unwrap();
        let mut rtnl = Rtnl::open().unwrap();
        let index = rtnl.link(&IfName::new(link).unwrap()).unwrap().unwrap().index;
        rtnl.add_address(index, address.parse().unwrap(), 64).unwrap();
    };
    add("underlay", "fd00:4::21");
    inside(&client, || add("eth0", "fd00:4::200"));
    client
}

fn is_open(addr: SocketAddr) -> bool {
    TcpStream::connect_timeout(&addr, Duration::from_secs(5)).is_ok()
}

/// Runs `work` while `pod` listens on port 80 of both families.
fn listening<T: Send>(pod: &Path, work: impl FnOnce() -> T) -> T {
    let listener = inside(pod, || bound(|| std::net::TcpListener::bind("[::]:80")));
    let outcome = work();
    drop(listener);
    outcome
}

fn over_ipv6(node: &Node) {
    std::fs::write("/run/flannel/subnet.env", DUAL_ENV).unwrap();
    let client = outside_v6(node);
    let pod = node.pod();
    node.add(&mapped(&native(), "tcp", 8080, 80, ""), "web-1", &pod).result();
    let called = |by: &(dyn Fn() + Sync)| who_called(&pod, addr("[::]:80"), by).to_string();
    let port = addr("[fd00:4::21]:8080");
    assert_eq!(called(&|| inside(&client, || say(port))), "fd00:4::200", "from outside, source kept");
    assert_eq!(called(&|| say(port)), "fd00:4::21", "from the node");
    assert_eq!(called(&|| inside(&pod, || say(port))), "fd00:7:0:21::1", "from the Pod to itself");
    assert_eq!(called(&|| inside(&client, || say(addr("10.4.7.21:8080")))), "::ffff:10.4.7.200", "and over IPv4");
    node.del(&native(), "web-1", &pod).silent();
    assert!(!is_open(port) && elements() == 0);
}

fn every_form(node: &Node) {
    std::fs::write("/run/flannel/subnet.env", DUAL_ENV).unwrap();
    let client = outside_v6(node);
    let (local4, node4, node6) = ("127.0.0.1:8080", "10.4.7.21:8080", "[fd00:4::21]:8080");
    for (at, (host_ip, open)) in [
        ("", [true, true, true]),
        (NODE, [false, true, false]),
        ("::ffff:10.4.7.21", [false, true, false]),
        ("0.0.0.0", [true, true, false]),
        ("fd00:4::21", [false, false, true]),
        ("::", [false, false, true]),
        ("10.4.7.99", [false, false, false]),
    ]
    .into_iter()
    .enumerate()
    {
        let (pod, id) = (node.pod(), format!("web-{at}"));
        node.add(&mapped(&native(), "tcp", 8080, 80, host_ip), &id, &pod).result();
        let found = listening(&pod, || {
            [is_open(addr(local4)), inside(&client, || is_open(addr(node4))), inside(&client, || is_open(addr(node6)))]
        });
        assert_eq!(found, open, "hostIP {host_ip:?}");
        node.del(&native(), &id, &pod).silent();
    }
    assert_eq!(elements(), 0);
}

fn elsewhere(node: &Node) {
    // plugins#1209: another machine's port of the same number belongs to that machine, for Pods and for the node.
    let client = outside(node);
    let pod = node.pod();
    node.add(&mapped(&native(), "tcp", 8080, 80, ""), "web-1", &pod).result();
    let (other, _) = node.attached(&with(&native(), "ipMasq", json!(false)), "web-2");
    inside(&client, || {
        let status = std::process::Command::new("ip").args(["route", "add", "172.7.0.0/16", "via", NODE]).status();
        assert!(status.unwrap().success());
    });
    let target = addr("10.4.7.200:8080");
    assert_eq!(who_called(&client, target, || say(target)).to_string(), NODE);
    assert_eq!(who_called(&client, target, || inside(&other, || say(target))).to_string(), "172.7.21.3");
    // And through the node, to another Pod that serves the same number itself.
    let target = addr("172.7.21.3:8080");
    assert_eq!(who_called(&other, target, || inside(&client, || say(target))).to_string(), "10.4.7.200");
}

fn exact_first(node: &Node) {
    let client = outside(node);
    let (exact, all) = (node.pod(), node.pod());
    node.add(&mapped(&native(), "tcp", 8080, 80, ""), "web-all", &all).result();
    node.add(&mapped(&native(), "tcp", 8080, 80, NODE), "web-one", &exact).result();
    let server = addr("0.0.0.0:80");
    let called = who_called(&exact, server, || inside(&client, || say(addr("10.4.7.21:8080"))));
    assert_eq!(called.to_string(), "10.4.7.200");
    let called = who_called(&all, server, || say(addr("127.0.0.1:8080")));
    assert_eq!(called.to_string(), "172.7.21.1");
    node.del(&native(), "web-one", &exact).silent();
    let called = who_called(&all, server, || inside(&client, || say(addr("10.4.7.21:8080"))));
    assert_eq!(called.to_string(), "10.4.7.200");
}

/// The UDP flows of the client to port 53 of the node, by the address it called and the one that answers.
fn flows() -> Vec<(String, String)> {
    let of_client =
        |flow: &Flow| flow.original.src.ip() == IpAddr::from([10, 4, 7, 200]) && flow.original.dst.port() == 53;
    let found = Conntrack::open().unwrap().flows(&Selection::all(IpFamily::V4, Protocol::Udp), of_client).unwrap();
    let mut found: Vec<_> =
        found.iter().map(|flow| (flow.original.dst.ip().to_string(), flow.reply.src.ip().to_string())).collect();
    found.sort();
    found
}

/// A client outside with a flow to port 53 of each address; the node has 10.4.7.22 as well, and tracks connections.
fn client_of(node: &Node) -> PathBuf {
    let client = outside(node);
    let mut rtnl = Rtnl::open().unwrap();
    let underlay = rtnl.link(&IfName::new("underlay").unwrap()).unwrap().unwrap().index;
    rtnl.add_address(underlay, "10.4.7.22".parse().unwrap(), 24).unwrap();
    // Connections are tracked as soon as there is a table that translates.
    node.add(&mapped(&native(), "tcp", 1, 1, ""), "first", &node.pod()).result();
    client
}

fn send(client: &Path, from: u16, to: &[&str]) {
    inside(client, || {
        let socket = bound(|| UdpSocket::bind(("10.4.7.200", from)));
        for to in to {
            socket.send_to(b"ping", (*to, 53)).unwrap();
        }
    });
}

fn pair(one: &str, other: &str) -> (String, String) {
    (one.to_owned(), other.to_owned())
}

fn ended_by_add(node: &Node) {
    let client = client_of(node);
    send(&client, 40000, &[NODE, "10.4.7.22"]);
    assert_eq!(flows(), [pair(NODE, NODE), pair("10.4.7.22", "10.4.7.22")]);
    let conf = mapped(&native(), "udp", 53, 53, NODE);
    node.add(&conf, "dns-1", &node.pod()).result();
    assert_eq!(flows(), [pair("10.4.7.22", "10.4.7.22")], "only those to the address whose port changed hands");
    // On every address, all of them go; a flow to another port of the same address stays.
    node.add(&mapped(&native(), "udp", 53, 53, ""), "dns-2", &node.pod()).result();
    assert_eq!(flows(), []);
}

fn ended_by_del(node: &Node) {
    let client = client_of(node);
    let (one, two) = (node.pod(), node.pod());
    node.add(&mapped(&native(), "udp", 53, 53, NODE), "dns-1", &one).result();
    node.add(&mapped(&native(), "udp", 53, 53, "10.4.7.22"), "dns-2", &two).result();
    send(&client, 40000, &[NODE, "10.4.7.22"]);
    assert_eq!(flows(), [pair(NODE, "172.7.21.3"), pair("10.4.7.22", "172.7.21.4")]);
    node.del(&native(), "dns-1", &one).silent();
    assert_eq!(flows(), [pair("10.4.7.22", "172.7.21.4")]);
    node.del(&native(), "dns-2", &two).silent();
    assert_eq!(flows(), []);
}

fn ended_by_gc(node: &Node) {
    let client = client_of(node);
    let conf = with(&native(), "cniVersion", json!("1.1.0"));
    node.add(&mapped(&conf, "udp", 53, 53, NODE), "dns-1", &node.pod()).result();
    node.add(&mapped(&conf, "udp", 53, 53, "10.4.7.22"), "dns-2", &node.pod()).result();
    send(&client, 40000, &[NODE, "10.4.7.22"]);
    let valid = json!([{"containerID": "dns-2", "ifname": "eth0"}]);
    let gc = with(&conf, "cni.dev/valid-attachments", valid).to_string();
    node.exec("netd-cni", &[("CNI_COMMAND", "GC")], &gc).silent();
    assert_eq!(flows(), [pair("10.4.7.22", "172.7.21.4")]);
}

fn over_sctp(node: &Node) {
    let pod = node.pod();
    node.add(&mapped(&native(), "sctp", 8080, 80, ""), "web-1", &pod).result();
    let server = inside(&pod, || {
        let socket = sctp_socket().unwrap();
        let any: nix::sys::socket::SockaddrIn = "0.0.0.0:80".parse().unwrap();
        nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &any).unwrap();
        nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        socket
    });
    let client = sctp_socket().unwrap();
    let port: nix::sys::socket::SockaddrIn = "127.0.0.1:8080".parse().unwrap();
    nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&client), &port).unwrap();
    drop(server);
}

/// Connects to `to` while something of the node's own listens there; true when that is what was reached.
fn reaches_the_node(to: &str) -> bool {
    let listener = bound(|| std::net::TcpListener::bind(addr(to)));
    listener.set_nonblocking(true).unwrap();
    let connected = TcpStream::connect_timeout(&addr(to), Duration::from_secs(3));
    connected.is_ok() && listener.accept().is_ok()
}

fn not_captured(node: &Node) {
    std::fs::write("/run/flannel/subnet.env", DUAL_ENV).unwrap();
    outside_v6(node);
    let link_local = {
        let mut rtnl = Rtnl::open().unwrap();
        let index = rtnl.link(&IfName::new("underlay").unwrap()).unwrap().unwrap().index;
        rtnl.add_address(index, "fe80::21".parse().unwrap(), 64).unwrap();
        format!("[fe80::21%{index}]:8080")
    };
    let local4 = "127.0.0.1:8080";
    for (at, (snat, captured)) in
        [(json!(null), true), (json!(false), false), (json!(true), true)].into_iter().enumerate()
    {
        let id = format!("web-{at}");
        let pod = node.pod();
        let conf = with(&mapped(&native(), "tcp", 8080, 80, ""), "snat", snat);
        node.add(&conf, &id, &pod).result();
        for to in ["[::1]:8080", &link_local] {
            assert!(reaches_the_node(to), "{to} with snat {}", conf["snat"]);
        }
        if captured {
            assert!(listening(&pod, || is_open(addr(local4))));
        } else {
            assert!(reaches_the_node(local4), "answers would have no way back");
        }
        node.del(&native(), &id, &pod).silent();
    }
}

fn refused_addresses(node: &Node) {
    let pod = node.pod();
    for (host_ip, snat, word) in [
        ("::1", true, "::1"),
        ("fe80::21", true, "fe80::21"),
        ("ff02::1", true, "ff02::1"),
        ("224.0.0.1", true, "224.0.0.1"),
        ("255.255.255.255", true, "255.255.255.255"),
        ("127.0.0.1", false, "127.0.0.1"),
        // The Pod has IPv4 alone.
        ("fd00:4::21", true, "fd00:4::21"),
    ] {
        let conf = with(&mapped(&native(), "udp", 8080, 80, host_ip), "snat", json!(snat));
        let (code, text) = node.add(&conf, "web-1", &pod).error();
        assert!(code == 7 && text.contains("portMappings") && text.contains(word), "{host_ip}: {code} {text}");
        assert_eq!(node.files(), []);
    }
    // Runtimes list a port of all addresses once for each family.
    node.add(&mapped(&native(), "tcp", 8080, 80, "::"), "web-1", &pod).result();
    assert_eq!(elements(), 0);
}
