//! `vlan` and `vlanTrunk` as far as any kernel shows them: what is refused, and what a kernel without VLANs is said to be
//! without. What they do is shown in the lab's kernel (tests/tests/cni_vlan.rs).

use std::process::Command;

use serde_json::{Value, json};

use super::{details, ip, plain};
use crate::node::{Node, flannel, native, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("vlan_errors_have_the_references_words_under_every_name", wrong_vlans),
    ("vlan_on_a_kernel_without_it_is_refused_with_the_reason_and_nothing_is_left", refused_or_done),
];

fn wrong_vlans(node: &Node) {
    let delegated = |key: &str, value: &Value| with(&flannel(), "delegate", json!({key: value}));
    for (key, value, words) in [
        ("vlan", json!(4095), "invalid VLAN ID 4095 (must be between 0 and 4094)"),
        ("vlan", json!(-100), "invalid VLAN ID -100 (must be between 0 and 4094)"),
        ("vlanTrunk", json!([{"minID": 1000, "maxID": 99}]), "minID is greater than maxID in trunk parameter"),
        ("vlanTrunk", json!([{"minID": 5000, "maxID": 5001}]), "incorrect trunk minID parameter"),
        ("vlanTrunk", json!([{"minID": 10, "maxID": 5001}]), "incorrect trunk maxID parameter"),
        ("vlanTrunk", json!([{"minID": 10}]), "configured simultaneously, maxID is missing"),
        ("vlanTrunk", json!([{"maxID": 10}]), "configured simultaneously, minID is missing"),
        ("vlanTrunk", json!([{"id": 4095}]), "incorrect trunk id parameter"),
        ("vlanTrunk", json!([{"id": -1}]), "incorrect trunk id parameter"),
    ] {
        for (conf, path) in [
            (with(&plain("1.0.0"), key, value.clone()), key.to_owned()),
            (with(&native(), key, value.clone()), key.to_owned()),
            (delegated(key, &value), format!("delegate.{key}")),
        ] {
            let (code, text) = node.add(&conf, "web", &node.pod()).error();
            assert!(code == 7 && text.contains(words) && text.contains(&format!("{path}: ")), "{text}");
        }
    }
    let long = with(&with(&plain("1.0.0"), "vlan", json!(100)), "isGateway", json!(true));
    let (code, text) = node.add(&with(&long, "bridge", json!("abcdefghijkl")), "web", &node.pod()).error();
    assert!(code == 7 && text.contains("abcdefghijkl.100"), "{text}");
    assert_eq!((node.files(), node.links()), (vec![], vec!["lo".to_owned()]));
}

fn refused_or_done(node: &Node) {
    let can = Command::new("ip").args(["link", "add", "probe", "type", "bridge", "vlan_filtering", "1"]).output();
    let can = can.unwrap().status.success();
    if can {
        ip("link del probe");
    }
    let conf = with(&plain("1.0.0"), "vlan", json!(100));
    for made_before in [false, true] {
        if made_before {
            ip("link add bridge0 type bridge");
        }
        let before = (node.links(), node.files());
        let outcome = node.add(&conf, "web", &node.pod());
        if can {
            outcome.result();
            assert_eq!(details("bridge0")["linkinfo"]["info_data"]["vlan_filtering"], json!(1));
            node.verb("DEL", &conf, "web", "").silent();
            ip("link del bridge0");
        } else {
            let (code, text) = outcome.error();
            assert!(code == 100 && text.contains("bridge0") && text.contains("CONFIG_BRIDGE_VLAN_FILTERING"), "{text}");
            assert_eq!((node.links(), node.files()), before);
        }
    }
}
