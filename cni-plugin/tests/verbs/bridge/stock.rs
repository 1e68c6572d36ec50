//! Side by side with the stock plugin (Debian's `containernetworking-plugins`): the same answers, the same Pods, and each
//! removes what the other made.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{find, ip, link, routed};
use crate::node::{Node, host_link, inside, with};
use crate::predecessor::DIR;

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("bridge_returns_and_wires_as_the_stock_plugin_does", same_results),
    ("pod_of_the_stock_bridge_plugin_is_removed_by_ours", theirs_then_ours),
    ("pod_of_our_bridge_is_removed_by_the_stock_plugin", ours_then_theirs),
    ("stock_bridge_and_ours_share_a_bridge_and_never_an_address", side_by_side),
];

/// Runs a verb of the stock plugin.
fn stock(command: &str, conf: &Value, id: &str, netns: &Path) -> Value {
    std::fs::write("/run/stdin", conf.to_string()).unwrap();
    let output = Command::new(format!("{DIR}/bridge"))
        .env_clear()
        .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("CNI_COMMAND", command), ("CNI_CONTAINERID", id)])
        .envs([("CNI_NETNS", netns.to_str().unwrap()), ("CNI_IFNAME", "eth0"), ("CNI_PATH", DIR)])
        .stdin(Stdio::from(std::fs::File::open("/run/stdin").unwrap()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{command} of {conf}: {}", String::from_utf8_lossy(&output.stdout));
    let text = if output.stdout.is_empty() { b"null".as_slice() } else { &output.stdout };
    serde_json::from_slice(text).unwrap()
}

/// The result without what every Pod has another of.
fn comparable(mut result: Value) -> Value {
    for (index, interface) in result["interfaces"].as_array_mut().into_iter().flatten().enumerate() {
        let interface = interface.as_object_mut().unwrap();
        assert_eq!(interface.remove("mac").unwrap().as_str().unwrap().len(), 17);
        if index == 1 {
            assert!(interface.remove("name").unwrap().as_str().unwrap().starts_with("veth"));
        }
    }
    // Empty settings may stand there or not from 1.0.0 on: plugins before 1.2 still wrote them.
    if result["cniVersion"] == json!("1.0.0") && result["dns"] == json!({}) {
        result.as_object_mut().unwrap().remove("dns");
    }
    result
}

/// Addresses and routes as `ip` shows them inside a Pod, and addresses of the bridge.
fn wired(pod: &Path) -> Vec<String> {
    let words = |args: &str| {
        let output = Command::new("ip").args(args.split(' ')).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let address = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let start = words.iter().position(|word| word.starts_with("inet")).unwrap();
        // `nodad` and `tentative` say how an address came, not what it is.
        let words = words[start..].iter().take_while(|word| !["\\", "valid_lft"].contains(word));
        words.filter(|word| !["nodad", "tentative"].contains(word)).copied().collect::<Vec<_>>().join(" ")
    };
    let shown =
        |args: &str| words(args).lines().filter(|line| !line.contains("fe80:")).map(address).collect::<Vec<_>>();
    let route = |line: &str| line.trim().replace(" pref medium", "");
    let mut lines = shown("-o addr show dev bridge0");
    inside(pod, || {
        lines.extend(shown("-o addr show dev eth0"));
        for args in ["route show", "-6 route show"] {
            let all = words(args);
            lines.extend(all.lines().filter(|line| !line.contains("fe80::")).map(route));
        }
    });
    lines.sort();
    lines
}

fn same_results(node: &Node) {
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        for subnets in [&["10.1.2.0/24"][..], &["2001:db8::/64"], &["10.1.2.0/24", "2001:db8::/64"]] {
            for (gateway, default_gateway) in [(false, false), (true, false), (true, true)] {
                let mut conf = routed(version, subnets);
                (conf["isGateway"], conf["isDefaultGateway"]) = (json!(gateway), json!(default_gateway));
                (conf["hairpinMode"], conf["mtu"]) = (json!(true), json!(1400));
                conf["ipam"]["routes"] =
                    json!([{"dst": if subnets[0].contains('.') { "10.0.0.0/8" } else { "fd00::/8" }}]);
                let pod = node.pod();
                conf["ipam"]["dataDir"] = json!("/var/lib/cni/stock");
                let theirs = (comparable(stock("ADD", &conf, "web", &pod)), wired(&pod));
                stock("DEL", &conf, "web", &pod);
                ip("link del bridge0");
                conf["ipam"]["dataDir"] = json!("/var/lib/cni/ours");
                let ours = (comparable(node.add(&conf, "web", &pod).result()), wired(&pod));
                node.del(&conf, "web", &pod).silent();
                ip("link del bridge0");
                std::fs::remove_dir_all("/var/lib/cni").unwrap();
                assert_eq!(ours, theirs, "{conf}");
            }
        }
    }
}

fn theirs_then_ours(node: &Node) {
    let conf = with(&routed("1.0.0", &["10.1.2.0/24", "2001:db8::/64"]), "hairpinMode", json!(true));
    let pod = node.pod();
    let result = stock("ADD", &conf, "old", &pod);
    node.check(&conf, "old", &pod, &result).silent();
    node.del(&with(&conf, "prevResult", result), "old", &pod).silent();
    assert!(inside(&pod, || find("eth0")).is_none());
    assert_eq!((node.links(), node.files()), (vec!["bridge0".to_owned(), "lo".to_owned()], vec![]));
}

fn ours_then_theirs(node: &Node) {
    let conf = routed("1.0.0", &["10.1.2.0/24", "2001:db8::/64"]);
    let pod = node.pod();
    let result = node.add(&conf, "web", &pod).result();
    let with_result = with(&conf, "prevResult", result);
    stock("CHECK", &with_result, "web", &pod);
    stock("DEL", &with_result, "web", &pod);
    assert!(inside(&pod, || find("eth0")).is_none() && find(&host_link("web")).is_none());
    let names: Vec<String> = node.files().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["/var/lib/cni/netd/testConfig/web@eth0"], "only our own record");
}

fn side_by_side(node: &Node) {
    let conf = routed("1.0.0", &["10.1.2.0/29"]);
    let mut addresses = Vec::new();
    for number in 0..2 {
        let (old, new) = (format!("old-{number}"), format!("web-{number}"));
        addresses.push(stock("ADD", &conf, &old, &node.pod())["ips"][0]["address"].clone());
        addresses.push(node.add(&conf, &new, &node.pod()).result()["ips"][0]["address"].clone());
    }
    let expected: Vec<Value> = (2..6).map(|n| json!(format!("10.1.2.{n}/29"))).collect();
    assert_eq!(addresses, expected, "one after the other, whoever asks");
    assert!(link("bridge0").link.up);
}
