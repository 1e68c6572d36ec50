//! The trace of a flow against the running kernel, with rules that the nft tool made.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::net::UdpSocket;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{cases, feed, ip, sh};
use kernel::Rtnl;
use kernel::nft::Nft;
use kernel::nft::trace::{End, Event, Fate, Flow, Trace, left_over};
use kernel::way::Packet;
use netstate::Protocol;
use netstate::nft::Hook;

const SOON: Duration = Duration::from_secs(10);

fn is_dropped(events: &[Event]) -> bool {
    events.iter().any(|event| matches!(event.fate, Fate::Dropped { .. }))
}

/// Sends a packet from loopback to itself and follows it until `enough`.
fn follow(vxlan: Vec<u16>, enough: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    let (socket, target) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let flow = Flow { source: socket.local_addr().unwrap(), protocol: Protocol::Udp, vxlan };
    let mut trace = Trace::start(flow).unwrap();
    // Refused when a rule drops it on its way out.
    let _ = socket.send_to(b"x", target.local_addr().unwrap());
    let mut events = Vec::new();
    trace.collect(&mut events, Instant::now() + SOON, enough).unwrap();
    events
}

fn each_hook_of_a_packet_is_seen_and_another_flow_is_not() {
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = |events: &[Event], place: (Hook, End)| events.iter().any(|event| event.fate == Fate::At(place.0, place.1));
    other.send_to(b"y", "127.0.0.1:9").unwrap();
    let events = follow(Vec::new(), |events| at(events, (Hook::Input, End::Last)));
    for hook in [Hook::Output, Hook::Postrouting, Hook::Prerouting, Hook::Input] {
        let lo = |event: &Event| event.came_by.or(event.leaves_by) == Some(1);
        assert!(events.iter().all(lo), "{events:?}");
        assert!(at(&events, (hook, End::First)) && at(&events, (hook, End::Last)), "{hook:?}: {events:?}");
    }
    let port = other.local_addr().unwrap().port();
    assert!(events.iter().all(|event| event.source.port() != port && !event.is_tunnel), "{events:?}");
}

fn rule_and_policy_that_drop_are_named() {
    feed(
        "nft",
        &["-f", "-"],
        "table inet theirs { chain in { type filter hook input priority 0; udp length 9 drop comment \"audit\"; }; }",
    );
    let events = follow(Vec::new(), is_dropped);
    let handle = sh("nft", &["-a", "list", "chain", "inet", "theirs", "in"]);
    let handle =
        handle.lines().find(|line| line.contains("drop")).unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    let Fate::Dropped { table, chain, rule } = &events.last().unwrap().fate else { panic!("{events:?}") };
    assert_eq!((table.to_string(), chain.as_str(), *rule), ("inet theirs".to_owned(), "in", Some(handle)));
    let text = Nft::open().unwrap().describe(table, chain, *rule).unwrap();
    assert_eq!(text, format!(r#"rule {handle} of inet theirs in ("audit")"#));
    sh("nft", &["flush", "ruleset"]);
    feed("nft", &["-f", "-"], "table ip theirs { chain out { type filter hook output priority 0; policy drop; }; }");
    let events = follow(Vec::new(), is_dropped);
    let Fate::Dropped { table, rule, .. } = &events.last().unwrap().fate else { panic!("{events:?}") };
    assert_eq!((table.to_string(), *rule), ("ip theirs".to_owned(), None));
}

fn packet_is_followed_into_its_tunnel() {
    ip("link add veth0 type veth peer name veth1");
    ip("address add 10.0.0.1/24 dev veth0");
    for link in ["veth0", "veth1"] {
        ip(&format!("link set {link} up"));
    }
    ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev veth0 nud permanent");
    ip("link add vx0 type vxlan id 1 dstport 8472 local 10.0.0.1 remote 10.0.0.2 dev veth0 nolearning");
    ip("address add 172.7.21.0/32 dev vx0");
    ip("link set vx0 up");
    ip("route add 172.7.22.0/24 dev vx0");
    ip("neigh add 172.7.22.2 lladdr 02:00:00:00:00:22 dev vx0 nud permanent");
    let socket = UdpSocket::bind("172.7.21.0:0").unwrap();
    let flow = Flow { source: socket.local_addr().unwrap(), protocol: Protocol::Udp, vxlan: vec![8472] };
    let mut trace = Trace::start(flow).unwrap();
    socket.send_to(b"x", "172.7.22.2:53").unwrap();
    let mut events = Vec::new();
    let left = |event: &Event| event.is_tunnel && event.fate == Fate::At(Hook::Postrouting, End::Last);
    trace.collect(&mut events, Instant::now() + SOON, |events| events.iter().any(left)).unwrap();
    let outer = events.iter().find(|event| left(event)).unwrap_or_else(|| panic!("{events:?}"));
    assert_eq!(
        (outer.source.ip().to_string(), outer.destination.to_string()),
        ("10.0.0.1".into(), "10.0.0.2:8472".into())
    );
    let inner = events.iter().find(|event| !event.is_tunnel).unwrap();
    assert_eq!(inner.destination.to_string(), "172.7.22.2:53");
}

fn table_goes_with_its_socket() {
    let flow = Flow { source: "127.0.0.1:9".parse().unwrap(), protocol: Protocol::Tcp, vxlan: vec![8472] };
    let (first, second) = (Trace::start(flow.clone()).unwrap(), Trace::start(flow).unwrap());
    let tables = || sh("nft", &["list", "tables"]).lines().filter(|line| line.contains("inet netd-trace-")).count();
    assert_eq!(tables(), 2);
    // A process that another test starts has the socket until it executes its program.
    let await_tables = |count: usize| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while tables() != count {
            assert!(Instant::now() < deadline, "{} tables instead of {count}", tables());
            std::thread::yield_now();
        }
    };
    drop(first);
    await_tables(1);
    drop(second);
    await_tables(0);
}

/// Whether nft takes `text`.
fn is_taken(text: &str) -> bool {
    let script = format!("echo '{text}' | nft -f -");
    std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success()
}

fn table_is_left_over_when_its_socket_is_gone_and_not_before() {
    let flow = Flow { source: "127.0.0.1:9".parse().unwrap(), protocol: Protocol::Tcp, vxlan: vec![8472] };
    let trace = Trace::start(flow.clone()).unwrap();
    // As a process that was killed leaves one on a kernel where it belongs to no socket.
    sh("nft", &["add", "table", "inet", "netd-trace-4194999"]);
    sh("nft", &["add", "table", "inet", "theirs"]);
    let left = || left_over(&mut Nft::open().unwrap()).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(left(), ["inet netd-trace-4194999"]);
    drop(trace);
    // The next trace takes it away on a kernel that leaves any.
    let knows_owners = is_taken("table inet tried { flags owner; }");
    let _again = Trace::start(flow).unwrap();
    assert_eq!(left().is_empty(), !knows_owners, "{:?}", left());
    assert!(sh("nft", &["list", "tables"]).contains("inet theirs"));
}

fn route_is_looked_up_for_a_packet_that_comes_in() {
    ip("link add veth0 type veth peer name veth1");
    for link in ["veth0", "veth1"] {
        ip(&format!("link set {link} up"));
    }
    ip("address add 10.0.0.1/24 dev veth0");
    ip("route add 172.7.22.0/24 via 10.0.0.2 metric 1007 proto 121");
    ip("route add blackhole 172.7.23.0/24");
    ip("rule add from 10.0.0.9 lookup 77");
    ip("route add 172.7.22.0/24 dev veth0 table 77");
    ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev veth0 nud permanent");
    sh("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
    let mut rtnl = Rtnl::open().unwrap();
    let index = rtnl.link(&"veth0".parse().unwrap()).unwrap().unwrap().index;
    let packet = |from: Option<&str>, to: &str| Packet {
        from: from.map(|from| from.parse().unwrap()),
        to: to.parse().unwrap(),
        came_by: from.map(|_| index),
        leaves_by: None,
        mark: 0,
        source_port: None,
        port: Some((Protocol::Udp, 53)),
    };
    let (key, route) = rtnl.entry_for(&packet(None, "172.7.22.2")).unwrap();
    assert_eq!((key.table, key.metric, route.protocol), (254, 1007, 121));
    assert_eq!(rtnl.entry_for(&packet(Some("10.0.0.9"), "172.7.22.2")).unwrap().0.table, 77);
    assert!(rtnl.entry_for(&packet(None, "172.7.23.1")).unwrap_err().errno().is_some());
    assert!(rtnl.entry_for(&packet(None, "172.7.24.1")).unwrap_err().errno().is_some());
    ip("-6 route add fd00:7::/64 dev veth0 metric 1007");
    let (key, _) = rtnl.entry_for(&packet(None, "fd00:7::2")).unwrap();
    assert_eq!((key.table, key.dst.to_string()), (254, "fd00:7::/64".to_owned()));
    let neighbour = rtnl.neighbour_on(index, "10.0.0.2".parse().unwrap()).unwrap();
    assert_eq!(neighbour.unwrap().0.to_string(), "02:00:00:00:00:02");
    assert_eq!(rtnl.neighbour_on(index, "10.0.0.3".parse().unwrap()).unwrap(), None);
}

fn main() -> ExitCode {
    common::main(cases![
        each_hook_of_a_packet_is_seen_and_another_flow_is_not,
        rule_and_policy_that_drop_are_named,
        packet_is_followed_into_its_tunnel,
        table_goes_with_its_socket,
        table_is_left_over_when_its_socket_is_gone_and_not_before,
        route_is_looked_up_for_a_packet_that_comes_in,
    ])
}
