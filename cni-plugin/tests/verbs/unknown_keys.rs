//! Keys that nobody here knows: what the plugin of the same name ignores is ignored with one warning, what it honours and we
//! cannot is refused.

use serde_json::{Value, json};

use crate::node::{Node, Outcome, flannel, native, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("keys_that_the_plugin_of_the_name_ignores_are_ignored_with_one_warning", ignored),
    ("kubenets_own_configuration_works", kubenet),
    ("own_name_refuses_what_it_does_not_know", own_name),
    ("what_the_plugin_of_the_name_honours_and_we_cannot_is_refused", honoured_elsewhere),
];

fn reference() -> Value {
    json!({"cniVersion": "1.0.0", "name": "wired", "type": "bridge", "bridge": "br0", "isGateway": true,
        "ipam": {"type": "host-local", "subnet": "10.7.0.0/24"}})
}

/// One line on standard error that names `paths`, and none on the verbs that change nothing.
fn warned(outcome: &Outcome, name: &str, paths: &[&str]) {
    let paths = paths.join(", ");
    assert!(outcome.ok, "{}", outcome.stdout);
    assert_eq!(outcome.notice.lines().count(), 1, "{}", outcome.notice);
    assert!(outcome.notice.contains(&format!("plugin {name} does not know")), "{}", outcome.notice);
    assert!(outcome.notice.trim_end().ends_with(&format!(": {paths}")), "{}", outcome.notice);
}

fn ignored(node: &Node) {
    let in_ipam = |conf: &Value| {
        let mut conf = conf.clone();
        conf["ipam"]["made"] = json!("up");
        conf
    };
    let mapping = json!({"portMappings": [{"hostPort": 80, "containerPort": 80}], "aliases": {"a": []}});
    let bridge = with(&with(&in_ipam(&reference()), "master", json!("eth0")), "runtimeConfig", mapping);
    let mut stock = in_ipam(&with(&flannel(), "interface", json!("eth0")));
    stock["delegate"]["addIf"] = json!("eth0");
    let conf = |name: &str| json!({"cniVersion": "1.0.0", "name": "wired", "type": name, "x": 1});
    let host_local = in_ipam(&with(&conf("host-local"), "ipam", json!({"subnet": "10.8.0.0/24"})));
    for (conf, paths) in [
        (&bridge, &["ipam.made", "master", "runtimeConfig.aliases", "runtimeConfig.portMappings"][..]),
        (&stock, &["delegate.addIf", "interface", "ipam.made"]),
        (&host_local, &["ipam.made"]),
        (&conf("loopback"), &["x"]),
    ] {
        let pod = node.pod();
        let name = conf["type"].as_str().unwrap();
        let added = node.add(conf, "web-1", &pod);
        warned(&added, name, paths);
        if name == "loopback" {
            continue;
        }
        let again = with(conf, "cniVersion", json!("1.1.0"));
        let check = node.check(&again, "web-1", &pod, &added.result());
        check.silent();
        let status = node.verb("STATUS", &again, "", "");
        status.silent();
        let del = node.del(&again, "web-1", &pod);
        del.silent();
        assert_eq!([check.notice, status.notice, del.notice].concat(), "", "once, by ADD");
    }
    let pod = node.pod();
    let result = node.add(&reference(), "web-1", &pod).result();
    for name in ["portmap", "bandwidth"] {
        let chained = with(&conf(name), "prevResult", result.clone());
        let added = node.add(&with(&chained, "_note", json!("comments are no keys")), "web-1", &pod);
        warned(&added, name, &["x"]);
    }
}

/// What kubelet's kubenet wrote for the bridge plugin.
fn kubenet(node: &Node) {
    let conf = json!({"cniVersion": "0.1.0", "name": "kubenet", "type": "bridge", "bridge": "cbr0", "mtu": 1460,
        "addIf": "eth0", "isGateway": true, "ipMasq": false, "hairpinMode": false,
        "ipam": {"type": "host-local", "subnet": "10.9.0.0/24", "gateway": "10.9.0.1",
            "routes": [{"dst": "0.0.0.0/0"}]}});
    let pod = node.pod();
    let added = node.add(&conf, "web-1", &pod);
    warned(&added, "bridge", &["addIf"]);
    assert_eq!(added.result()["ip4"]["ip"], json!("10.9.0.2/24"));
    node.del(&conf, "web-1", &pod).silent();
}

fn own_name(node: &Node) {
    let pod = node.pod();
    for (key, value) in [("addIf", json!("eth0")), ("hairpinmod", json!(true)), ("ipam", json!({"made": "up"}))] {
        let (code, text) = node.add(&with(&native(), key, value), "web-1", &pod).error();
        assert!(code == 2 && text.contains(key), "{key}: {code} {text}");
    }
    assert_eq!(node.files(), []);
}

fn honoured_elsewhere(node: &Node) {
    let pod = node.pod();
    let result = node.add(&reference(), "web-0", &node.pod()).result();
    let chained = |name: &str| json!({"cniVersion": "1.0.0", "name": "wired", "type": name, "prevResult": result});
    let before = node.files();
    for (conf, word) in [
        (with(&with(&reference(), "ipMasq", json!(true)), "ipMasqBackend", json!("iptables")), "ipMasqBackend"),
        (with(&reference(), "ipam", json!({"type": "dhcp"})), "dhcp"),
        (with(&flannel(), "delegate", json!({"type": "macvlan"})), "delegate.type"),
        (with(&chained("portmap"), "backend", json!("iptables")), "backend"),
        (with(&chained("portmap"), "externalSetMarkChain", json!("KUBE-MARK-MASQ")), "externalSetMarkChain"),
        (with(&chained("portmap"), "conditionsV4", json!(["-s", "10.0.0.0/8"])), "conditionsV4"),
        (with(&chained("bandwidth"), "unshapedSubnets", json!(["10.0.0.0/8"])), "unshapedSubnets"),
    ] {
        let (code, text) = node.add(&conf, "web-1", &pod).error();
        assert!(code == 2 && text.contains(word), "{word}: {code} {text}");
    }
    assert_eq!(node.files(), before);
}
