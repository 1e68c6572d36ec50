//! Host ports: whose they are. One table serves all networks of the node.

use std::fs;
use std::process::{Command, Stdio};

use kernel::Rtnl;
use kernel::nft::Nft;
use netstate::IfName;
use netstate::nft::{Family, TableKey};
use serde_json::{Value, json};

use crate::attach::{say, who_called};
use crate::node::{Node, SUBNET_ENV, host_link, inside, native, with};
use crate::ports::{NODE, addr, elements, mapped, outside, served, table};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("host_port_in_use_is_refused_with_its_holder_and_nothing_is_left", port_in_use),
    ("host_port_in_use_is_refused_with_its_holder_over_every_protocol_and_address", every_protocol),
    ("host_port_of_another_network_is_refused_with_its_holder_and_network", other_network),
    ("two_adds_for_one_host_port_open_it_for_one", two_at_once),
    ("port_of_a_dead_attachment_is_taken_over", dead_holder),
    ("port_behind_another_plugins_link_is_never_taken_over", foreign_link),
    ("add_again_with_other_ports_leaves_none_of_the_earlier_ones", again),
    ("gc_closes_the_ports_of_the_dead", gc_closes),
    ("gc_of_one_network_leaves_the_ports_of_another", gc_of_one),
    ("del_without_its_record_finds_the_ports", lost_record),
    ("del_leaves_a_port_that_another_pod_has_meanwhile", taken_meanwhile),
    ("port_is_opened_by_one_request_and_closed_without_a_listing_however_many_there_are", requests),
    ("options_of_each_network_hold_for_its_own_pods", options_apart),
    ("ports_of_the_predecessors_table_go_on_and_are_moved_into_the_shared_one", predecessors_table_moves),
    ("ports_of_the_predecessors_table_are_closed_by_del_and_by_gc", predecessors_table_closed),
];

/// A second native network on this node: another bridge with another subnet.
pub(crate) fn second() -> Value {
    let text = SUBNET_ENV.replace("172.7.21.1/24", "172.7.22.1/24");
    fs::write("/run/flannel/second.env", text).unwrap();
    let conf = with(&native(), "name", json!("second"));
    with(&with(&conf, "bridge", json!("br2")), "subnetFile", json!("/run/flannel/second.env"))
}

/// What the table looks like to an operator.
fn listing() -> String {
    let output = Command::new("nft").args(["list", "table", "inet", "netd-ports"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn port_in_use(node: &Node) {
    served(node, "web-1");
    let before = (node.links(), node.files(), elements());
    let both = json!([{"hostPort": 8081, "containerPort": 81}, {"hostPort": 8080, "containerPort": 80}]);
    let conf = with(&native(), "runtimeConfig", json!({"portMappings": both}));
    let pod = node.pod();
    let (code, text) = node.add(&conf, "web-2", &pod).error();
    assert!(code == 11 && text.contains("tcp 8080") && text.contains("web-1@eth0"), "{text}");
    assert_eq!((node.links(), node.files(), elements()), before, "all ports or none, and nothing else is left");
}

fn every_protocol(node: &Node) {
    for protocol in ["tcp", "udp", "sctp"] {
        for (held, asked) in [("", ""), ("", "0.0.0.0"), (NODE, NODE)] {
            let pod = node.pod();
            node.add(&mapped(&native(), protocol, 5353, 53, held), "web-1", &pod).result();
            let (code, text) = node.add(&mapped(&native(), protocol, 5353, 53, asked), "web-2", &node.pod()).error();
            let port = format!("{protocol} 5353");
            assert!(code == 11 && text.contains(&port) && text.contains("web-1@eth0 of network cbr0"), "{text}");
            node.del(&native(), "web-1", &pod).silent();
        }
    }
    // Somebody's own element names nobody.
    served(node, "web-1");
    let element = "add element inet netd-ports ports4 { udp . 5353 : 172.7.21.9 . 53 }";
    assert!(Command::new("nft").args(element.split(' ')).status().unwrap().success());
    let (code, text) = node.add(&mapped(&native(), "udp", 5353, 53, ""), "web-2", &node.pod()).error();
    assert!(code == 11 && text.contains("udp 5353") && text.contains("ports4"), "{text}");
}

/// An ADD that was killed, or whose DEL was lost, and the one that follows it, which asks for other ports.
fn again(node: &Node) {
    let made = |previous: Option<&Value>| {
        let conf = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "portmap"});
        previous.map_or_else(native, |result| with(&conf, "prevResult", result.clone()))
    };
    for chained in [true, false] {
        let (pod, other) = (node.pod(), node.pod());
        let result = chained.then(|| node.add(&native(), "web-1", &pod).result());
        let conf = made(result.as_ref());
        let begin_again = || {
            if !chained {
                // It came no further.
                Rtnl::open().unwrap().delete_link(&IfName::new(host_link("web-1")).unwrap()).unwrap();
            }
        };
        node.add(&mapped(&conf, "tcp", 8080, 80, ""), "web-1", &pod).result();
        let one = elements();
        begin_again();
        node.add(&mapped(&conf, "tcp", 8081, 80, ""), "web-1", &pod).result();
        assert_eq!(elements(), one, "chained {chained}: 8080 is open besides");
        // Nor does one that fails forget what is open.
        begin_again();
        node.add(&mapped(&native(), "tcp", 8082, 80, ""), "web-2", &other).result();
        assert_eq!(node.add(&mapped(&conf, "tcp", 8082, 80, ""), "web-1", &pod).error().0, 11);
        node.del(&conf, "web-1", &pod).silent();
        node.del(&native(), "web-1", &pod).silent();
        node.del(&native(), "web-2", &other).silent();
        assert_eq!(elements(), 0, "chained {chained}: some port outlives its Pod");
    }
}

fn other_network(node: &Node) {
    served(node, "web-1");
    let second = second();
    let pod = node.pod();
    let before = (node.files(), elements());
    let (code, text) = node.add(&mapped(&second, "tcp", 8080, 80, ""), "web-2", &pod).error();
    assert!(code == 11 && text.contains("web-1@eth0 of network cbr0"), "{text}");
    assert_eq!((node.files(), elements()), before);
    // The chained portmap of a third network meets them, too.
    let portmap = json!({"cniVersion": "1.0.0", "name": "third", "type": "portmap"});
    let result = node.add(&with(&second, "bridge", json!("br2")), "web-3", &node.pod()).result();
    let chained = with(&mapped(&portmap, "tcp", 8080, 80, ""), "prevResult", result);
    let (code, text) = node.add(&chained, "web-3", &node.pod()).error();
    assert!(code == 11 && text.contains("web-1@eth0 of network cbr0"), "{text}");
    // Each has its own port.
    node.add(&mapped(&second, "tcp", 8081, 80, ""), "web-2", &pod).result();
    let called = who_called(&pod, addr("0.0.0.0:80"), || say(addr("127.0.0.1:8081")));
    assert_eq!(called.to_string(), "172.7.22.1");
}

fn two_at_once(node: &Node) {
    let conf = mapped(&native(), "tcp", 8080, 80, "");
    for round in 0..8 {
        let ids: Vec<String> = (0..4).map(|number| format!("web-{round}-{number}")).collect();
        let pods: Vec<_> = ids.iter().map(|_| node.pod()).collect();
        let start = |(id, pod): (&String, &std::path::PathBuf)| {
            let vars = [
                ("CNI_COMMAND", "ADD"),
                ("CNI_CONTAINERID", id.as_str()),
                ("CNI_NETNS", pod.to_str().unwrap()),
                ("CNI_IFNAME", "eth0"),
            ];
            node.start("netd-cni", &vars, &conf.to_string())
        };
        let calls: Vec<_> = ids.iter().zip(&pods).map(start).collect();
        let ends: Vec<_> = calls.into_iter().map(|call| call.wait_with_output().unwrap()).collect();
        let winners = ends.iter().filter(|end| end.status.success()).count();
        assert_eq!((winners, elements()), (1, 2), "round {round}");
        for (end, id) in ends.iter().zip(&ids) {
            let text = String::from_utf8_lossy(&end.stdout);
            assert!(end.status.success() || text.contains("is held by web-"), "{id}: {text}");
        }
        ids.iter().zip(&pods).for_each(|(id, pod)| node.del(&conf, id, pod).silent());
        assert_eq!(elements(), 0);
    }
}

fn dead_holder(node: &Node) {
    served(node, "web-1");
    Rtnl::open().unwrap().delete_link(&IfName::new(host_link("web-1")).unwrap()).unwrap();
    let pod = served(node, "web-2");
    let called = who_called(&pod, addr("0.0.0.0:80"), || say(addr("127.0.0.1:8080")));
    assert_eq!(called.to_string(), "172.7.21.1");
}

fn foreign_link(node: &Node) {
    // Another plugin made the link, so that none of ours is there: that says nothing about the container.
    let result = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}],
                        "ips": [{"address": "127.0.0.9/8", "interface": 0}]});
    let portmap = json!({"cniVersion": "1.0.0", "name": "ptp", "type": "portmap"});
    let chained = with(&mapped(&portmap, "tcp", 8080, 80, ""), "prevResult", result.clone());
    let pod = node.pod();
    assert_eq!(node.add(&chained, "web-1", &pod).result(), result);
    let (code, text) = node.add(&mapped(&native(), "tcp", 8080, 80, ""), "web-2", &node.pod()).error();
    assert!(code == 11 && text.contains("web-1@eth0 of network ptp"), "{text}");
    node.del(&portmap, "web-1", &pod).silent();
    served(node, "web-2");
}

fn gc_closes(node: &Node) {
    let conf = with(&native(), "cniVersion", json!("1.1.0"));
    node.add(&mapped(&conf, "tcp", 8080, 80, ""), "dead", &node.pod()).result();
    node.add(&mapped(&conf, "tcp", 8081, 80, ""), "alive", &node.pod()).result();
    assert_eq!(elements(), 4);
    let valid = json!([{"containerID": "alive", "ifname": "eth0"}]);
    let conf = with(&conf, "cni.dev/valid-attachments", valid);
    for kind in ["netd-cni", "portmap"] {
        node.exec(kind, &[("CNI_COMMAND", "GC")], &with(&conf, "type", json!(kind)).to_string()).silent();
        assert_eq!(elements(), 2);
    }
    std::fs::write("/run/flannel/subnet.env", SUBNET_ENV).unwrap();
}

fn gc_of_one(node: &Node) {
    let modern = |conf: &Value| with(conf, "cniVersion", json!("1.1.0"));
    node.add(&mapped(&modern(&native()), "tcp", 8080, 80, ""), "web-1", &node.pod()).result();
    node.add(&mapped(&modern(&second()), "tcp", 8081, 80, ""), "web-2", &node.pod()).result();
    let gc = |conf: &Value| node.exec("netd-cni", &[("CNI_COMMAND", "GC")], &modern(conf).to_string()).silent();
    gc(&native());
    assert_eq!(elements(), 2, "{}", listing());
    assert!(listing().contains("web-2@eth0"), "{}", listing());
    gc(&second());
    assert_eq!(elements(), 0, "{}", listing());
    // What options of the past have left does not pile up.
    let policies = || listing().matches("chain policy-").count();
    for bit in 0..12 {
        let conf = with(&second(), "markMasqBit", json!(bit));
        node.add(&mapped(&conf, "tcp", 8081, 80, ""), "web-3", &node.pod()).result();
        node.del(&conf, "web-3", std::path::Path::new("")).silent();
    }
    assert!(policies() > 10, "{}", listing());
    gc(&native());
    assert_eq!(policies(), 0, "{}", listing());
}

fn lost_record(node: &Node) {
    let pod = served(node, "web-1");
    fs::remove_file("/var/lib/cni/netd/cbr0/web-1@eth0").unwrap();
    node.del(&native(), "web-1", &pod).silent();
    assert_eq!((elements(), node.files()), (0, Vec::new()));
    // A record of the form before this one says that there are ports, and not which.
    let pod = served(node, "web-2");
    let path = "/var/lib/cni/netd/cbr0/web-2@eth0";
    let mut record: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(record["ports"].as_array().unwrap().len(), 2, "{record}");
    record["ports"] = json!(true);
    fs::write(path, record.to_string()).unwrap();
    node.del(&native(), "web-2", &pod).silent();
    assert_eq!((elements(), node.files()), (0, Vec::new()));
}

fn taken_meanwhile(node: &Node) {
    let first = served(node, "web-1");
    Rtnl::open().unwrap().delete_link(&IfName::new(host_link("web-1")).unwrap()).unwrap();
    let second = served(node, "web-2");
    node.del(&native(), "web-1", &first).silent();
    let called = who_called(&second, addr("0.0.0.0:80"), || say(addr("127.0.0.1:8080")));
    assert_eq!(called.to_string(), "172.7.21.1");
}

/// The kinds of request to nftables that a verb sends, in order.
fn asked(node: &Node, command: &str, conf: &Value, id: &str, netns: &std::path::Path) -> Vec<String> {
    fs::write("/run/stdin", conf.to_string()).unwrap();
    let output = Command::new("strace")
        .args(["-f", "-e", "trace=sendto,sendmsg", "-o", "/run/trace"])
        .arg(node.plugin("netd-cni"))
        .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", id), ("CNI_IFNAME", "eth0")])
        .env("CNI_NETNS", netns)
        .stdin(Stdio::from(fs::File::open("/run/stdin").unwrap()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let trace = fs::read_to_string("/run/trace").unwrap();
    let kinds = ["NFNL_MSG_BATCH_BEGIN", "NFT_MSG_GETGEN", "NFT_MSG_GETSETELEM", "NFT_MSG_GET", "CTNETLINK"];
    let kind = |line: &str| kinds.into_iter().find(|kind| line.contains(kind)).map(str::to_owned);
    trace.lines().filter_map(kind).collect()
}

fn requests(node: &Node) {
    let conf = mapped(&native(), "tcp", 8080, 80, "");
    served(node, "first");
    node.del(&native(), "first", std::path::Path::new("")).silent();
    for others in [0, 20] {
        let many: Vec<Value> = (0..others).map(|n| json!({"hostPort": 9000 + n, "containerPort": 80})).collect();
        let many = with(&native(), "runtimeConfig", json!({"portMappings": many}));
        node.add(&many, &format!("many-{others}"), &node.pod()).result();
        let pod = node.pod();
        assert_eq!(asked(node, "ADD", &conf, "web-1", &pod), ["NFNL_MSG_BATCH_BEGIN"], "{others} others");
        let expected = ["NFT_MSG_GETGEN", "NFT_MSG_GETSETELEM", "NFNL_MSG_BATCH_BEGIN"];
        assert_eq!(asked(node, "DEL", &conf, "web-1", &pod), expected, "{others} others");
        let pod = node.pod();
        assert_eq!(asked(node, "ADD", &native(), "web-2", &pod), [""; 0], "no port, no request");
        assert_eq!(asked(node, "DEL", &native(), "web-2", &pod), [""; 0]);
    }
}

fn options_apart(node: &Node) {
    let client = outside(node);
    let (always, never) = (with(&second(), "masqAll", json!(true)), with(&native(), "snat", json!(false)));
    let always = with(&always, "markMasqBit", json!(7));
    let pods: Vec<_> = [(&always, "web-1", 8081), (&never, "web-2", 8082), (&native(), "web-3", 8083)]
        .into_iter()
        .map(|(conf, id, port)| {
            let pod = node.pod();
            node.add(&mapped(conf, "tcp", port, 80, ""), id, &pod).result();
            (pod, port)
        })
        .collect();
    let seen = |at: usize| {
        let (pod, port) = &pods[at];
        let port = std::net::SocketAddr::new(NODE.parse().unwrap(), *port);
        who_called(pod, addr("0.0.0.0:80"), || inside(&client, || say(port))).to_string()
    };
    for _ in 0..2 {
        assert_eq!(seen(0), "172.7.22.1", "always");
        assert_eq!(seen(1), "10.4.7.200", "never");
        assert_eq!(seen(2), "10.4.7.200", "only where needed");
        let local =
            std::net::TcpStream::connect_timeout(&addr("127.0.0.1:8082"), std::time::Duration::from_millis(300));
        assert!(local.is_err(), "without a rewritten source the answer does not come back");
        let called = who_called(&pods[2].0, addr("0.0.0.0:80"), || say(addr("127.0.0.1:8083")));
        assert_eq!(called.to_string(), "172.7.21.1");
        // Who comes last changes nothing for those who were there.
        let id = format!("late-{}", elements());
        node.add(&mapped(&never, "tcp", 9000, 80, ""), &id, &node.pod()).result();
        node.add(
            &mapped(&with(&second(), "markMasqBit", json!(9)), "udp", 9000, 80, ""),
            &format!("{id}b"),
            &node.pod(),
        )
        .result();
        node.del(&native(), &id, std::path::Path::new("")).silent();
        node.del(&second(), &format!("{id}b"), std::path::Path::new("")).silent();
    }
    let text = listing();
    for mark in ["0x00000080", "0x00002000", "0x00000200"] {
        assert!(text.contains(&format!("meta mark & {mark} == {mark} masquerade")), "{text}");
    }
}

/// Loads the table that the release before this one made for network cbr0, with the ports of `web-1`.
fn predecessors_table(node: &Node) -> std::path::PathBuf {
    let conf = with(&native(), "args", json!({"cni": {"ips": ["172.7.21.2"]}}));
    let (pod, address) = node.attached(&conf, "web-1");
    assert_eq!(address.to_string(), "172.7.21.2");
    fs::write("/run/predecessor.nft", include_str!("predecessor_ports.nft")).unwrap();
    let status = Command::new("nft").args(["-f", "/run/predecessor.nft"]).stdout(Stdio::null()).status().unwrap();
    assert!(status.success());
    kernel::sysctl::write(&"net/ipv4/conf/cbr0/route_localnet".parse().unwrap(), "1").unwrap();
    let record = fs::read_to_string("/var/lib/cni/netd/cbr0/web-1@eth0").unwrap();
    fs::write("/var/lib/cni/netd/cbr0/web-1@eth0", record.replace("\"ports\":false", "\"ports\":true")).unwrap();
    pod
}

fn predecessors_key() -> TableKey {
    TableKey { family: Family::Inet, name: netstate::nft::Name::literal("netd-ports-cbr0") }
}

fn is_predecessors_table_there() -> bool {
    Nft::open().unwrap().tables(Family::Inet).unwrap().contains(&predecessors_key())
}

fn predecessors_table_moves(node: &Node) {
    let pod = predecessors_table(node);
    let works = || {
        let called = who_called(&pod, addr("0.0.0.0:80"), || say(addr("127.0.0.1:8080")));
        assert_eq!(called.to_string(), "172.7.21.1");
        let called = who_called(&pod, addr("0.0.0.0:80"), || inside(&pod, || say(addr("172.7.21.1:8080"))));
        assert_eq!(called.to_string(), "172.7.21.1", "hairpin");
    };
    works();
    let (code, text) = node.add(&mapped(&second(), "tcp", 8080, 80, ""), "web-2", &node.pod()).error();
    assert!(code == 11 && text.contains("web-1@eth0 of network cbr0"), "{text}");
    assert!(!is_predecessors_table_there(), "one table holds all");
    works();
    assert_eq!(elements(), 6, "{}", listing());
    let pod2 = node.pod();
    node.add(&mapped(&native(), "tcp", 8081, 80, ""), "web-3", &pod2).result();
    node.del(&native(), "web-1", &pod).silent();
    assert_eq!(elements(), 2);
    node.del(&native(), "web-3", &pod2).silent();
    assert_eq!(Nft::open().unwrap().ruleset(&table()).unwrap().unwrap().elements.len(), 0);
}

fn predecessors_table_closed(node: &Node) {
    let pod = predecessors_table(node);
    node.del(&native(), "web-1", &pod).silent();
    assert!(!is_predecessors_table_there(), "nobody needs it any more");
    let pod = predecessors_table(node);
    let conf = with(&native(), "cniVersion", json!("1.1.0"));
    let gc = |valid: Value| {
        let conf = with(&conf, "cni.dev/valid-attachments", valid).to_string();
        node.exec("netd-cni", &[("CNI_COMMAND", "GC")], &conf).silent();
    };
    gc(json!([{"containerID": "web-1", "ifname": "eth0"}]));
    let called = who_called(&pod, addr("0.0.0.0:80"), || say(addr("127.0.0.1:8080")));
    assert_eq!(called.to_string(), "172.7.21.1", "who is valid keeps the port");
    gc(json!([]));
    assert!(!is_predecessors_table_there());
    assert_eq!(node.files(), []);
}
