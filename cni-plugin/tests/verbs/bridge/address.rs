//! `bridge`: what the bridge itself is and keeps: its addresses, its hardware address, what it knows of its Pods.

use std::process::Command;

use serde_json::{Value, json};

use super::{VERSIONS, addresses, attached, ip, link, plain, routed};
use crate::node::{Node, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("bridge_address_mismatch_is_refused_unless_forced", ensure_address),
    ("bridge_of_another_plugin_is_used_as_it_is", existing_bridge),
    ("bridge_releases_addresses_when_add_fails", released_on_error),
    ("bridge_knows_the_new_owner_of_a_reused_address_at_once", reused_address),
    ("bridge_keeps_its_mac_through_add_and_del", stable_mac),
];

fn ensure_address(node: &Node) {
    // The address on the bridge, the subnet of the next network, whether both may stand side by side.
    for (present, subnet, gateway, beside) in [
        ("10.0.0.1/8", "10.1.2.0/24", "10.1.2.1/24", false),
        ("10.1.2.1/16", "10.1.2.0/24", "10.1.2.1/24", false),
        ("192.0.2.1/24", "10.1.2.0/24", "10.1.2.1/24", false),
        ("2001:db8:1::1/48", "2001:db8:1::/64", "2001:db8:1::1/64", false),
        ("2001:db8:2::1/64", "2001:db8:1::/64", "2001:db8:1::1/64", true),
        ("10.1.2.1/24", "10.1.2.0/24", "10.1.2.1/24", true),
    ] {
        ip("link add bridge0 type bridge");
        ip("link set bridge0 up");
        ip(&format!("addr add {present} dev bridge0"));
        let conf = routed("1.0.0", &[subnet]);
        if !beside {
            let (code, text) = node.add(&conf, "web", &node.pod()).error();
            assert_eq!(code, 7, "{text}");
            let expected = format!("\"bridge0\" already has an IP address different from {gateway}: {present}");
            assert!(text.contains(&expected) && text.contains("forceAddress"), "{text}");
            assert_eq!(addresses("bridge0"), [present], "nothing is touched");
        }
        let forced = with(&conf, "forceAddress", json!(true));
        let (pod, _) = attached(node, &forced, "web");
        let mut expected = vec![gateway.to_owned()];
        if beside && present != gateway {
            expected.insert(0, present.to_owned());
        }
        let mut found = addresses("bridge0");
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{present}");
        node.del(&forced, "web", &pod).silent();
        ip("link del bridge0");
    }
    ip("link add bridge0 type veth peer other");
    let (code, text) = node.add(&plain("1.0.0"), "web", &node.pod()).error();
    assert!(code == 7 && text.contains("bridge0 already exists but is not a bridge"), "{text}");
}

fn existing_bridge(node: &Node) {
    ip("link add bridge0 address 02:11:22:33:44:55 mtu 1400 type bridge");
    let index = link("bridge0").index;
    let (_, result) = attached(node, &routed("1.0.0", &["10.1.2.0/24"]), "web");
    let bridge = link("bridge0");
    assert_eq!((bridge.index, bridge.link.up), (index, true));
    assert_eq!(result["interfaces"][0]["mac"], json!("02:11:22:33:44:55"));
    // Without the option the name is the reference's.
    let mut unnamed = routed("1.0.0", &["10.9.0.0/24"]);
    unnamed.as_object_mut().unwrap().remove("bridge");
    unnamed["name"] = json!("other");
    let (_, result) = attached(node, &unnamed, "web-2");
    assert_eq!(result["interfaces"][0]["name"], json!("cni0"));
}

fn released_on_error(node: &Node) {
    ip("link add bridge0 type bridge");
    ip("addr add 192.0.2.1/24 dev bridge0");
    for version in VERSIONS {
        let conf = routed(version, &["10.1.2.0/24"]);
        assert_eq!(node.add(&conf, "web", &node.pod()).error().0, 7);
        assert_eq!(node.files(), [], "{version}");
    }
}

fn reused_address(node: &Node) {
    let conf = routed("1.0.0", &["10.1.2.0/24", "2001:db8::/64"]);
    let neighbour = |addr: &str| {
        let shown = Command::new("ip").args(["neigh", "show", "dev", "bridge0", addr]).output().unwrap();
        String::from_utf8_lossy(&shown.stdout).into_owned()
    };
    let mut held: Option<(std::path::PathBuf, Value)> = None;
    for mac in ["02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:0c"] {
        let wanted = json!({"cni": {"mac": mac, "ips": ["10.1.2.9", "2001:db8::9"]}});
        let conf = with(&conf, "args", wanted);
        if let Some((pod, earlier)) = held.take() {
            node.del(&earlier, "web", &pod).silent();
        }
        let pod = node.pod();
        node.add(&conf, "web", &pod).result();
        for addr in ["10.1.2.9", "2001:db8::9"] {
            assert!(neighbour(addr).contains(&format!("lladdr {mac}")), "{addr}: {}", neighbour(addr));
        }
        let target = std::net::SocketAddr::new("10.1.2.9".parse().unwrap(), 80);
        crate::attach::who_called(&pod, target, || crate::attach::say(target));
        held = Some((pod, conf));
    }
}

fn stable_mac(node: &Node) {
    for version in VERSIONS {
        let conf = routed(version, &["10.1.2.0/24"]);
        let (pod1, _) = attached(node, &conf, "web-1");
        let before = link("bridge0").link.mac.unwrap();
        // A port with the lowest hardware address: a bridge without one of its own would take it.
        let low = with(&conf, "args", json!({"cni": {"mac": "02:00:00:00:00:00"}}));
        let (pod2, _) = attached(node, &low, "web-2");
        ip("link add lowest address 02:00:00:00:00:00 type veth peer other");
        ip("link set lowest master bridge0 up");
        assert_eq!(link("bridge0").link.mac, Some(before));
        ip("link del lowest");
        node.del(&low, "web-2", &pod2).silent();
        node.del(&conf, "web-1", &pod1).silent();
        assert_eq!(link("bridge0").link.mac, Some(before));
    }
}
