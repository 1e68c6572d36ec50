//! The page of a small cluster, of none, of a large one, and of one with hostile names.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::document::{POLICY, SCRIPT, STYLE, document};
use super::facts::*;
use super::picture::MOST;
use super::sections::{IDS, sections};
use super::*;
use crate::format::status::{Node, Peer, Probe, Store};

/// 2026-11-28 01:00:00 UTC.
const NOW: u64 = 1_795_827_600;

fn status(leases: &serde_json::Value) -> Reported {
    serde_json::from_value(json!({
        "version": "0.1.0",
        "node": {"public_ip": "10.4.7.21", "interface": "eth0", "network": "172.7.0.0/16", "subnet": "172.7.21.0/24",
            "backend": "vxlan", "mtu": 1450, "in_sync": true},
        "store": {"kind": "etcd", "complete": true},
        "leases": leases, "lease_count": leases.as_object().unwrap().len(),
        "repaired": 2, "tables": {"routes": {"desired": 3, "done": 3}},
    }))
    .unwrap()
}

fn small() -> Snapshot {
    let peer = |ip: &str| json!({"public_ip": ip, "backend": "vxlan 02:00:00:00:00:22", "path": "flannel.1"});
    let leases = json!({"172.7.22.0/24": peer("10.4.7.22"), "172.7.23.0/24": peer("10.4.7.23"),
        "172.7.24.0/24": peer("10.4.7.24"), "172.7.25.0/24": peer("10.4.7.25")});
    let probe = |age, reached, largest| Probe { at: NOW - age, reached, largest };
    let probes = [
        ("172.7.22.0/24", probe(130, true, Some(1450))),
        ("172.7.23.0/24", probe(130, false, None)),
        ("172.7.24.0/24", probe(7300, true, Some(1372))),
    ];
    let services = json!({"mode": "nftables", "count": 1, "matching": 1, "services": [{"name": "shop/web", "place_count": 2, "places": [
        {"at": "tcp 192.168.0.10:80", "kind": "ClusterIP", "answer": "served", "endpoint_count": 10, "endpoints": [
            {"at": "172.7.21.2:8080", "weight": 1, "here": true}, {"at": "172.7.22.3:8080", "weight": 5, "here": false}]},
        {"at": "tcp 10.4.7.9:80", "kind": "ExternalIP", "answer": "refused: no endpoint is ready"}]}]});
    let change = |number, kind, text: &str| Change {
        at: NOW - 60 + number,
        program: "netd",
        number,
        kind,
        text: text.to_owned(),
    };
    Snapshot {
        version: "0.1.0",
        now: NOW,
        status: Arc::new(status(&leases)),
        probes: Arc::new(probes.map(|(subnet, probe)| (subnet.to_owned(), probe)).into()),
        pods: Arc::new(vec![Pod {
            name: Some("shop/web-0".to_owned()),
            container: "0123456789abcdef".to_owned(),
            addresses: vec!["172.7.21.2".parse().unwrap(), "fc00::2".parse().unwrap()],
        }]),
        has_records: true,
        proxy: Arc::new(Proxy { problem: None, services: Some(serde_json::from_value(services).unwrap()) }),
        changes: Arc::new(vec![
            change(1, Kind::Change, "kernel tables changed (set 4)"),
            change(2, Kind::Repair, "kernel tables changed (cause change, set 1)"),
            change(3, Kind::Warning, "etcd cannot be reached: no route"),
        ]),
    }
}

/// A part, with a line break before each element, so that a difference is a line.
fn lines(html: &str) -> String {
    html.replace("><", ">\n<") + "\n"
}

fn whole(snapshot: &Snapshot, query: &Query) -> String {
    document(snapshot, query, &sections(snapshot, query))
}

#[test]
fn the_page_of_a_small_cluster_is_as_it_was_read_and_approved() {
    let query = Query { node: "172.7.23.0/24".to_owned(), ..Query::default() };
    let text = lines(&whole(&small(), &query));
    let expected = include_str!("golden.html");
    for (number, (found, expected)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "line {} of {text}", number + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count());
}

#[test]
fn a_link_says_no_more_than_its_probe_found() {
    let snapshot = small();
    let parts = sections(&snapshot, &Query::default());
    let row = |ip: &str| {
        let rows = parts["nodes"].split("<tr>").find(|row| row.contains(&format!(">{ip}</a>"))).unwrap();
        rows.split("<td").skip(5).map(|cell| cell.split_once('>').unwrap().1.replace("</td>", "")).collect::<Vec<_>>()
    };
    assert_eq!(row("10.4.7.22")[0], "reached");
    assert!(row("10.4.7.22")[1].contains(">2 minutes ago</time>"));
    assert_eq!(row("10.4.7.23")[0], "lost");
    assert_eq!(row("10.4.7.24")[0], "reached, but no packet above 1372 bytes");
    assert!(row("10.4.7.24")[1].contains(">2 hours ago</time>"));
    assert_eq!(row("10.4.7.25")[0], "not probed");
    assert!(row("10.4.7.25")[1].starts_with("never"));
    assert!(parts["picture"].contains("aria-label=\"Node 10.4.7.25, subnet 172.7.25.0/24, link not probed\""));
}

/// The numbers in a text, in their order.
fn numbers(text: &str) -> Vec<f64> {
    let words = text.split(|letter: char| !letter.is_ascii_digit() && letter != '.');
    words.filter_map(|word| word.parse().ok()).collect()
}

/// What an attribute of an element has.
fn attribute<'a>(element: &'a str, name: &str) -> &'a str {
    element.split_once(&format!("{name}=\"")).unwrap().1.split('"').next().unwrap()
}

/// The places that a link's line leads through: a curve and a straight line.
fn points(path: &str) -> Vec<(f64, f64)> {
    let [x, y, x1, y1, x2, y2, x3, y3, end] = numbers(path).try_into().unwrap();
    let curve = (0..=50).map(|step| {
        let t = f64::from(step) / 50.0;
        let at = |a: f64, b: f64, c: f64, d: f64| {
            let u = 1.0 - t;
            u * u * u * a + 3.0 * u * u * t * b + 3.0 * u * t * t * c + t * t * t * d
        };
        (at(x, x1, x2, x3), at(y, y1, y2, y3))
    });
    let straight = (0..=50).map(|step| (x3 + (end - x3) * f64::from(step) / 50.0, y3));
    curve.chain(straight).collect()
}

#[test]
fn no_link_crosses_what_is_written_on_another_or_on_itself() {
    // The longest that is written: a narrow link over a device with the longest name, and more nodes than are drawn.
    let mut leases: serde_json::Map<_, _> = serde_json::Map::new();
    for number in 0..MOST + 6 {
        let peer = json!({"public_ip": format!("10.5.0.{number}"), "backend": "wireguard", "path": "flannel-wg-v6.x"});
        leases.insert(format!("10.64.{number}.0/24"), peer);
    }
    let probe = Probe { at: NOW - 30, reached: true, largest: Some(1280) };
    let probes = leases.keys().map(|subnet| (subnet.clone(), probe)).collect();
    let crowded = Snapshot { status: Arc::new(status(&leases.into())), probes: Arc::new(probes), ..small() };
    for snapshot in [&small(), &large(), &crowded] {
        let picture = sections(snapshot, &Query::default())["picture"].clone();
        let paths: Vec<_> = picture.split("<path ").skip(1).map(|path| points(attribute(path, " d"))).collect();
        let labels: Vec<&str> = picture.split("<text class=\"label\"").skip(1).collect();
        assert_eq!(labels.len(), 2 * paths.len());
        for label in labels {
            let (x, y) = (numbers(attribute(label, " x"))[0], numbers(attribute(label, " y"))[0]);
            let text = label.split_once('>').unwrap().1.split('<').next().unwrap();
            // A letter of 11 units takes 5.7 on the average; page.rs measures what Chromium makes of it.
            let width = 5.7 * f64::from(u8::try_from(text.chars().count()).unwrap());
            let from = if attribute(label, "text-anchor") == "end" { x - width } else { x };
            let crossed =
                |(at, height): &&(f64, f64)| (from..from + width).contains(at) && (y - 10.0..y + 3.0).contains(height);
            assert_eq!(paths.iter().flatten().find(crossed), None, "{text} at {x} {y}");
        }
    }
}

#[test]
fn what_is_not_known_is_said_to_be_so() {
    let problem = Some("ipvs-proxy is not running on this node: it has ended".to_owned());
    let snapshot = Snapshot { proxy: Arc::new(Proxy { problem, services: None }), now: NOW, ..Snapshot::default() };
    let text = whole(&snapshot, &Query::default());
    for said in [
        "<dt>This node</dt><dd>not begun yet</dd>",
        ": not yet listed</dd>",
        "This node knows no other node",
        "ipvs-proxy is not running on this node: it has ended",
        "/var/lib/cni has no records of Pods",
        ">Pods not known<",
        "no subnet yet",
        "not in sync",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let gone = Query { node: "172.7.99.0/24".to_owned(), ..Query::default() };
    assert!(sections(&snapshot, &gone)["detail"].contains("No lease of this subnet is used."));
}

#[test]
fn a_hostile_name_is_text_wherever_it_stands() {
    let evil = "\"><script>alert(1)</script><img src=x onerror='alert(1)'>\u{202e}&amp;\r\n";
    let text = || evil.to_owned();
    let mut snapshot = small();
    let peer = Peer { public_ip: text(), backend: text(), path: text(), probe: None };
    let mut status =
        Reported { leases: Some([(text(), peer)].into()), warnings: vec![text()], ..(*snapshot.status).clone() };
    status.node = Node {
        public_ip: text(),
        interface: text(),
        network: text(),
        subnet: Some(text()),
        backend: text(),
        ..status.node
    };
    status.store =
        Store { kind: text(), lost: Some(text()), broken: Some(text()), lease_trouble: Some(text()), ..status.store };
    (status.invalid, status.skipped) = ([(text(), text())].into(), [(text(), text())].into());
    status.tables = [(text(), Table { desired: 2, done: 1 })].into();
    snapshot.status = Arc::new(status);
    snapshot.pods = Arc::new(vec![Pod { name: Some(text()), container: text(), addresses: Vec::new() }]);
    let endpoint = Endpoint { at: text(), weight: 1, here: None };
    let place = Place { at: text(), kind: text(), answer: text(), endpoints: vec![endpoint], endpoint_count: 1 };
    let refused = Place { endpoints: Vec::new(), endpoint_count: 0, ..place.clone() };
    let service = Service { name: text(), places: vec![place, refused], place_count: 2 };
    let services = Services { mode: text(), count: 1, matching: 1, services: vec![service] };
    snapshot.proxy = Arc::new(Proxy { problem: Some(text()), services: Some(services) });
    snapshot.changes =
        Arc::new(vec![Change { at: NOW, program: "netd", number: 1, kind: Kind::Warning, text: text() }]);
    // What is searched for is found in everything.
    for query in [
        Query::default(),
        Query { node: text(), nodes: text(), pods: text(), services: text() },
        Query { node: "other".to_owned() + evil, ..Query::default() },
    ] {
        let page = whole(&snapshot, &query);
        assert!(page.matches("alert(1)").count() > 20, "{page}");
        assert_eq!(page.matches("<script").count(), 1, "{page}");
        assert!(!page.contains("<img") && !page.contains('\u{202e}') && !page.contains('\r'), "{page}");
        for attribute in page.split('<').filter_map(|element| element.split('>').next()) {
            assert_eq!(attribute.matches('"').count() % 2, 0, "{attribute}");
            assert!(!attribute.contains("onerror='"), "{attribute}");
        }
    }
}

#[test]
fn the_page_asks_for_nothing_elsewhere_and_has_no_handlers_of_its_own() {
    let page = whole(&small(), &Query::default());
    assert!(!page.contains(" style=") && !page.contains("<style") && !page.contains("javascript:"));
    for element in page.split('<') {
        let attributes = element.split('>').next().unwrap_or_default();
        assert!(!attributes.split(' ').any(|attribute| attribute.starts_with("on")), "{attributes}");
    }
    for text in [&page, SCRIPT, STYLE] {
        assert!(!text.contains("//") || text == SCRIPT, "an address of another origin");
        assert!(!text.contains("http:") && !text.contains("https:") && !text.contains("url("));
    }
    for forbidden in ["unsafe", "*", "http", "data:"] {
        assert!(!POLICY.contains(forbidden), "{POLICY}");
    }
    assert!(POLICY.starts_with("default-src 'none';"));
}

#[test]
fn a_search_finds_what_it_names_and_the_links_keep_it() {
    let query = Query { nodes: "10.4.7.2".to_owned(), services: "we b".to_owned(), ..Query::default() };
    let parts = sections(&small(), &query);
    assert!(parts["nodes"].starts_with("<p class=\"count\">4 nodes of 4 other nodes</p>"), "{}", parts["nodes"]);
    assert!(parts["nodes"].contains("href=\"?node=172.7.22.0%2F24&amp;nodes=10.4.7.2&amp;services=we%20b#detail\""));
    for (search, count) in
        [("10.4.7.22", "1 node"), ("not probed", "1 node"), ("172.7.2", "4 nodes"), ("none", "0 nodes")]
    {
        let parts = sections(&small(), &Query { nodes: search.to_owned(), ..Query::default() });
        assert!(parts["nodes"].contains(&format!(">{count} of 4 other nodes<")), "{search}: {}", parts["nodes"]);
    }
    for (search, count) in [("web-0", "1 Pod"), ("172.7.21.2", "1 Pod"), ("0123", "1 Pod"), ("none", "0 Pods")] {
        let parts = sections(&small(), &Query { pods: search.to_owned(), ..Query::default() });
        assert!(parts["pods"].contains(&format!(">{count} of 1,")), "{search}: {}", parts["pods"]);
    }
}

/// A cluster of a thousand nodes, whose node has a thousand Pods and serves ten thousand Services.
fn large() -> Snapshot {
    let peer = |n: usize| json!({"public_ip": format!("10.5.{}.{}", n / 250, n % 250), "backend": "vxlan 02:00:00:00:00:22", "path": "flannel.1"});
    let leases: serde_json::Map<_, _> =
        (0..1000).map(|n| (format!("10.{}.{}.0/24", 64 + n / 250, n % 250), peer(n))).collect();
    let endpoint = |n: usize| Endpoint { at: format!("10.64.0.{n}:8080"), weight: 1, here: Some(false) };
    let place = || Place {
        at: "tcp 192.168.100.100:80".to_owned(),
        kind: "ClusterIP".to_owned(),
        answer: "served".to_owned(),
        endpoints: (0..8).map(endpoint).collect(),
        endpoint_count: 10,
    };
    let service = |n| Service { name: format!("shop/web-{n}"), places: vec![place(), place()], place_count: 2 };
    let services = Services {
        mode: "ipvs".to_owned(),
        count: 10_000,
        matching: 10_000,
        services: (0..100).map(service).collect(),
    };
    let pod = |n: usize| Pod {
        name: Some(format!("shop/web-{n}")),
        container: "0123456789abcdef".to_owned(),
        addresses: vec![[10, 64, 0, 2].into()],
    };
    Snapshot {
        status: Arc::new(status(&leases.into())),
        pods: Arc::new((0..1000).map(pod).collect()),
        proxy: Arc::new(Proxy { problem: None, services: Some(services) }),
        probes: Arc::new(BTreeMap::new()),
        ..small()
    }
}

#[test]
fn services_on_ipvs_are_shown_with_their_unequal_weights() {
    let endpoint = |at: &str, weight, here| json!({"at": at, "weight": weight, "here": here});
    let endpoints = [("172.7.21.2:80", 4, true), ("172.7.22.2:80", 1, false), ("172.7.22.3:80", 65_535, false)];
    let endpoints = endpoints.map(|(at, weight, here)| endpoint(at, weight, here));
    let place = json!({"at": "udp 192.168.0.2:53", "kind": "ClusterIP", "answer": "served", "endpoint_count": 3, "endpoints": endpoints});
    let services = json!({"mode": "ipvs", "count": 1, "matching": 1,
        "services": [{"name": "kube-system/dns", "place_count": 1, "places": [place]}]});
    let proxy = Proxy { problem: None, services: Some(serde_json::from_value(services).unwrap()) };
    let part = sections(&Snapshot { proxy: Arc::new(proxy), ..small() }, &Query::default())["services"].clone();
    assert!(part.contains("1 Service of 1 Service, served by ipvs"), "{part}");
    for said in ["172.7.21.2:80 weight 4, on this node<", "172.7.22.2:80 weight 1<", "172.7.22.3:80 weight 65535<"] {
        assert!(part.contains(said), "{said}: {part}");
    }
}

#[test]
fn a_large_cluster_is_shown_in_part_and_the_page_says_how_much_is_not() {
    let snapshot = large();
    let begun = std::time::Instant::now();
    let parts = sections(&snapshot, &Query::default());
    println!("{} bytes in {:?}", parts.values().map(String::len).sum::<usize>(), begun.elapsed());
    let size: usize = parts.values().map(String::len).sum();
    assert!(size < 300_000, "{size} bytes");
    assert!(parts["nodes"].contains("900 more are not shown; search for them."));
    assert!(parts["pods"].contains("900 more are not shown; search for them."));
    assert!(parts["services"].contains("9,900 more are not shown; search for them."));
    assert!(parts["picture"].contains("24 of 1,000 nodes drawn"));
    assert_eq!(parts["picture"].matches("class=\"node ").count(), MOST);
    assert_eq!(parts["nodes"].matches("<tr>").count(), ROWS + 1);
    assert_eq!(parts.keys().copied().collect::<std::collections::BTreeSet<_>>(), IDS.into());
}
