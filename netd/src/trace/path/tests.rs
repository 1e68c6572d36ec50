//! The steps of facts made by hand: a whole path has nothing that stops, and each fault is found once with what to do.

use netstate::{IfName, Link, Route, RouteKey, RouteMetrics, RouteScope, VxlanOptions};

use super::super::facts::{Beyond, Pod, Service};
use super::super::step::Verdict;
use super::*;

fn link(index: u32, name: &str, kind: LinkKind, mtu: u32) -> (u32, LinkState) {
    let link = Link { kind, mtu: Some(mtu), mac: None, up: true, master: None };
    let state = LinkState {
        index,
        name: IfName::new(name).unwrap(),
        link,
        master_index: (name == "veth0").then_some(3),
        lower_index: None,
        peer_netns_id: None,
        running: true,
        operational: true,
        promiscuous: false,
    };
    (index, state)
}

fn entry(dst: &str, via: Option<&str>, link: &str) -> (RouteKey, Route) {
    let route = Route {
        kind: RouteKind::Unicast,
        via: via.map(|via| via.parse().unwrap()),
        link: Some(IfName::new(link).unwrap()),
        onlink: false,
        src: None,
        scope: RouteScope::Universe,
        protocol: 121,
        metrics: RouteMetrics::default(),
    };
    (RouteKey { table: TABLE_MAIN, dst: dst.parse().unwrap(), metric: 0 }, route)
}

/// A Pod's packet to a Pod of another node, in a tunnel.
fn whole() -> Facts {
    let vxlan = VxlanOptions::new(1, 8472);
    let bridge = LinkKind::Bridge(netstate::link::BridgeOptions::default());
    Facts {
        networks: vec!["172.7.0.0/16".parse().unwrap()],
        subnets: vec!["172.7.21.0/24".parse().unwrap()],
        has_daemon: true,
        links: [
            link(2, "eth0", LinkKind::Other(String::new()), 1500),
            link(3, "cbr0", bridge, 1450),
            link(4, "veth0", LinkKind::Veth, 1450),
            link(5, "flannel.1", LinkKind::Vxlan(vxlan), 1450),
        ]
        .into(),
        addresses: vec![(3, "172.7.21.1".parse().unwrap())],
        forwarding: [("all".to_owned(), true), ("cbr0".to_owned(), true)].into(),
        pod: Some(Pod {
            netns: "/run/netns/web".to_owned(),
            interface: IfName::new("eth0").unwrap(),
            mtu: 1450,
            up: true,
            entry: Ok(entry("0.0.0.0/0", Some("172.7.21.1"), "eth0")),
            host_end: Some(4),
        }),
        came_by: Some(3),
        to: Some("172.7.22.2:80".parse().unwrap()),
        node: Some(Node {
            subnet: "172.7.22.0/24".parse().unwrap(),
            addresses: vec!["10.4.7.22".parse().unwrap()],
            path: "flannel.1".to_owned(),
        }),
        entry: Some(Ok(entry("172.7.22.0/24", Some("172.7.22.0"), "flannel.1"))),
        beyond: Beyond {
            hop: Some("172.7.22.0".parse().unwrap()),
            neighbour: Some(("02:00:00:00:00:22".parse().unwrap(), true)),
            ends: vec!["10.4.7.22".parse().unwrap()],
            outer: Some(("10.4.7.22".parse().unwrap(), Ok(entry("10.4.7.0/24", None, "eth0")))),
            ..Beyond::default()
        },
        ..Facts::default()
    }
}

/// The steps that are not as they must be after `change`.
fn after(change: impl FnOnce(&mut Facts)) -> Vec<String> {
    let mut facts = whole();
    change(&mut facts);
    let bad = steps(&facts).into_iter().filter(|step| step.verdict != Verdict::Ok);
    bad.map(|step| format!("{:?} {} {} | {}", step.verdict, step.part, step.found, step.fix)).collect()
}

fn refused(errno: i32) -> Option<Entry> {
    Some(Err(Refused { errno: Some(errno), text: std::io::Error::from_raw_os_error(errno).to_string() }))
}

#[test]
fn whole_path_has_its_steps_in_order_and_none_that_stops() {
    assert_eq!(after(|_| {}), Vec::<String>::new());
    let parts: Vec<String> = steps(&whole()).iter().map(|step| step.part.to_string()).collect();
    let all = ["pod", "pod route", "veth", "bridge", "route", "device", "neighbour", "tunnel end", "outer route"];
    assert_eq!(parts, all);
}

#[test]
fn each_fault_of_a_path_is_found_once_with_what_to_do() {
    let default = || Some(Ok(entry("0.0.0.0/0", Some("10.4.7.1"), "eth0")));
    let up = |facts: &mut Facts, index: u32| facts.links.get_mut(&index).unwrap().link.up = false;
    for (found, part, words) in [
        (after(|facts| facts.pod.as_mut().unwrap().up = false), "Wrong pod ", "down"),
        (after(|facts| up(facts, 4)), "Wrong veth", "ip link set veth0 up"),
        (after(|facts| facts.pod.as_mut().unwrap().host_end = None), "Missing veth", "no other end"),
        (after(|facts| up(facts, 3)), "Wrong bridge", "ip link set cbr0 up"),
        (after(|facts| facts.addresses.clear()), "Missing bridge", "ip address add 172.7.21.1/24 dev cbr0"),
        (
            after(|facts| *facts.forwarding.get_mut("cbr0").unwrap() = false),
            "Wrong forwarding",
            "sysctl -w net.ipv4.conf.cbr0.forwarding=1",
        ),
        (
            after(|facts| (facts.entry, facts.beyond) = (default(), Beyond::default())),
            "Missing route",
            "no route for 172.7.22.0/24",
        ),
        (
            after(|facts| (facts.entry, facts.beyond, facts.node) = (default(), Beyond::default(), None)),
            "Missing route",
            "no node has a lease of it",
        ),
        (after(|facts| facts.entry = refused(libc::EXDEV)), "Wrong route", "net.ipv4.conf.cbr0.rp_filter=2"),
        (after(|facts| facts.entry = refused(libc::ENETUNREACH)), "Missing route", "no route to 172.7.22.2"),
        (
            after(|facts| {
                (facts.entry, facts.node, facts.to) =
                    (refused(libc::ENETUNREACH), None, Some("203.0.113.1:80".parse().unwrap()));
            }),
            "Missing route",
            "the route there is this host's own",
        ),
        (after(|facts| facts.node.as_mut().unwrap().path = "eth0".to_owned()), "Wrong route", "netd wants it by eth0"),
        (after(|facts| up(facts, 5)), "Wrong device", "ip link set flannel.1 up"),
        (after(|facts| facts.pod.as_mut().unwrap().mtu = 1500), "Note device", "below the Pod's 1500"),
        (
            after(|facts| (facts.beyond.neighbour, facts.beyond.ends, facts.beyond.outer) = (None, Vec::new(), None)),
            "Missing neighbour",
            "no hardware address on flannel.1",
        ),
        (after(|facts| facts.beyond.neighbour.as_mut().unwrap().1 = false), "Wrong neighbour", "not permanent"),
        (
            after(|facts| (facts.beyond.ends, facts.beyond.outer) = (Vec::new(), None)),
            "Missing tunnel end",
            "no forwarding entry",
        ),
        (
            after(|facts| facts.beyond.ends = vec!["10.4.7.99".parse().unwrap()]),
            "Wrong tunnel end",
            "the lease says 10.4.7.22",
        ),
        (
            after(|facts| facts.beyond.outer.as_mut().unwrap().1 = refused(libc::ENETUNREACH).unwrap()),
            "Missing outer route",
            "no route for the tunnel's packets to the node 10.4.7.22",
        ),
        (
            after(|facts| facts.beyond.outer.as_mut().unwrap().1 = Ok(entry("10.0.0.0/8", None, "flannel.1"))),
            "Wrong outer route",
            "leads into itself",
        ),
        (
            after(|facts| facts.links.get_mut(&2).unwrap().link.mtu = Some(1480)),
            "Wrong outer route",
            "netd config edit Backend.MTU=1430",
        ),
    ] {
        assert_eq!(found.len(), 1, "{part}: {found:?}");
        assert!(found[0].starts_with(part) && found[0].contains(words), "{part}, {words}: {found:?}");
    }
}

#[test]
fn service_without_servers_and_receiver_without_a_namespace_are_named() {
    let service = |servers: &[(&str, u32)]| Service {
        key: netstate::ipvs::VirtualServerKey {
            protocol: netstate::Protocol::Tcp,
            addr: "192.168.0.10".parse().unwrap(),
            port: 80,
        },
        scheduler: "rr".to_owned(),
        servers: servers.iter().map(|(addr, weight)| (addr.parse().unwrap(), *weight)).collect(),
    };
    assert_eq!(after(|facts| facts.service = Some(service(&[("172.7.22.2:80", 1)]))), Vec::<String>::new());
    let none = after(|facts| facts.service = Some(service(&[("172.7.22.2:80", 0)])));
    assert!(none.len() == 1 && none[0].starts_with("Wrong service"), "{none:?}");
    let gone = after(|facts| {
        (facts.to, facts.node) = (Some("172.7.21.9:80".parse().unwrap()), None);
        facts.entry = Some(Ok(entry("172.7.21.0/24", None, "cbr0")));
        facts.beyond = Beyond { hop: Some("172.7.21.9".parse().unwrap()), ..Beyond::default() };
    });
    assert!(gone.iter().any(|step| step.starts_with("Missing receiver")), "{gone:?}");
}
