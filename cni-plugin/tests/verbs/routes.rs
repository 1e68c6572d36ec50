//! Routes of the configuration: everything a route says is in the Pod's tables, and CHECK misses what is not.

use std::process::Command;

use serde_json::{Value, json};

use crate::bridge::{ip, routed};
use crate::node::{DUAL_ENV, Node, flannel, inside, native, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("route_mtu_advmss_priority_table_and_scope_are_installed", finer_points),
    ("default_route_of_another_table_does_not_replace_the_pods_own", default_elsewhere),
];

fn routes() -> Value {
    json!([
        {"dst": "198.51.100.0/24", "mtu": 1280, "advmss": 1200, "priority": 7},
        {"dst": "198.51.100.0/24", "mtu": 1300, "priority": 8},
        {"dst": "203.0.113.0/24", "table": 1000},
        {"dst": "192.0.2.0/24", "scope": 253},
        {"dst": "2001:db8:9::/48", "mtu": 1300, "priority": 9},
    ])
}

/// What `ip route show` prints, one route a line.
fn shown(args: &str) -> String {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    String::from_utf8_lossy(&output.stdout).replace("  ", " ")
}

fn finer_points(node: &Node) {
    std::fs::write("/run/flannel/subnet.env", DUAL_ENV).unwrap();
    let mut bridge = routed("1.1.0", &["10.1.2.0/24", "2001:db8::/64"]);
    bridge["ipam"]["routes"] = routes();
    let leased = |conf: Value| with(&with(&conf, "cniVersion", json!("1.1.0")), "ipam", json!({"routes": routes()}));
    for (conf, gateway, gateway6) in [
        (bridge, "10.1.2.1", "2001:db8::1"),
        (leased(native()), "172.7.21.1", "fd00:7:0:21::1"),
        (with(&leased(flannel()), "name", json!("other")), "172.7.21.1", "fd00:7:0:21::1"),
    ] {
        let pod = node.pod();
        let result = node.add(&conf, "web", &pod).result();
        let first = json!({"dst": "198.51.100.0/24", "mtu": 1280, "advmss": 1200, "priority": 7});
        assert_eq!(result["routes"][0], first);
        inside(&pod, || {
            let main = shown("route show table all");
            for expected in [
                format!("198.51.100.0/24 via {gateway} dev eth0 metric 7 mtu 1280 advmss 1200"),
                format!("198.51.100.0/24 via {gateway} dev eth0 metric 8 mtu 1300"),
                format!("203.0.113.0/24 via {gateway} dev eth0 table 1000"),
                "192.0.2.0/24 dev eth0 scope link".to_owned(),
            ] {
                assert!(main.contains(&expected), "{expected} is not in\n{main}");
            }
            let six = shown("-6 route show");
            assert!(six.contains(&format!("2001:db8:9::/48 via {gateway6} dev eth0 metric 9 mtu 1300")), "{six}");
        });
        node.check(&conf, "web", &pod, &result).silent();
        inside(&pod, || ip(&format!("route replace 198.51.100.0/24 via {gateway} metric 7 mtu 1290 advmss 1200")));
        let (code, text) = node.check(&conf, "web", &pod, &result).error();
        let expected = "route 198.51.100.0/24 metric 7 mtu 1280 advmss 1200 is missing";
        assert!(code == 102 && text.contains(expected), "{text}");
        node.del(&conf, "web", &pod).silent();
        if conf["type"] == json!("netd-cni") {
            ip("link del cbr0");
        }
    }
}

fn default_elsewhere(node: &Node) {
    let mut conf = routed("1.1.0", &["10.1.2.0/24"]);
    conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0", "table": 1000}]);
    let pod = node.pod();
    node.add(&conf, "web", &pod).result();
    inside(&pod, || {
        assert!(shown("route show").contains("default via 10.1.2.1 dev eth0"));
        assert!(shown("route show table 1000").contains("default via 10.1.2.1 dev eth0"));
    });
}
