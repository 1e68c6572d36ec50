//! flannel's stock configuration, driven as libcni drives it, with the binary installed as `flannel` and `portmap`.

use std::fs;
use std::path::Path;

use kernel::Rtnl;
use netstate::IfName;
use serde_json::{Value, json};

use crate::node::{Node, first_address, flannel, host_link, inside, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("stock_flannel_conflist_works_unchanged", stock_conflist),
    ("flannel_state_file_is_what_flannels_plugin_writes", state_file),
    ("flannel_state_file_that_is_empty_or_junk_does_not_stop_del", junk_state),
    ("loopback_is_set_up_and_down", loopback),
    ("pod_of_the_former_chain_is_removed_by_its_own_names", former_chain),
];

/// The file as kube-flannel.yml installs it.
const STOCK: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}"#;

/// What libcni hands to each plugin of the list: name and version of the list, the previous result.
fn entries(previous: Option<&Value>) -> Vec<Value> {
    let list: Value = serde_json::from_str(STOCK).unwrap();
    let entry = |plugin: &Value| {
        let mut conf = plugin.clone();
        conf["name"] = list["name"].clone();
        conf["cniVersion"] = list["cniVersion"].clone();
        if let Some(previous) = previous {
            conf["prevResult"] = previous.clone();
        }
        conf
    };
    list["plugins"].as_array().unwrap().iter().map(entry).collect()
}

fn stock_conflist(node: &Node) {
    let before = node.links();
    let pod = node.pod();
    let first = node.add(&entries(None)[0], "web-1", &pod).result();
    assert_eq!(first["interfaces"][0]["name"], json!("cni0"), "flannel's bridge, not the network's name");
    assert_eq!(first_address(&first).to_string(), "172.7.21.2");
    let second = node.add(&entries(Some(&first))[1], "web-1", &pod).result();
    assert_eq!(second, first, "portmap answers the previous result");
    // libcni runs DEL backwards, for version 0.3.1 without the previous result.
    for conf in entries(None).iter().rev() {
        node.del(conf, "web-1", &pod).silent();
    }
    let mut links = node.links();
    links.retain(|name| name != "cni0");
    assert_eq!((links, node.files()), (before, vec![]));
}

fn state_file(node: &Node) {
    let pod = node.pod();
    node.add(&flannel(), "web-1", &pod).result();
    assert_eq!(
        fs::read_to_string("/var/lib/cni/flannel/web-1").unwrap(),
        r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"172.7.21.0/24"}]],"routes":[{"dst":"172.7.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#
    );
    node.del(&flannel(), "web-1", &pod).silent();
    assert!(!Path::new("/var/lib/cni/flannel/web-1").exists());
}

fn junk_state(node: &Node) {
    for junk in ["", "{", "[1]", "\u{0}\u{0}"] {
        let pod = node.pod();
        node.add(&flannel(), "web-1", &pod).result();
        fs::write("/var/lib/cni/flannel/web-1", junk).unwrap();
        node.del(&flannel(), "web-1", &pod).silent();
        assert_eq!(node.files(), [], "{junk:?}");
        assert!(!node.links().contains(&host_link("web-1")));
    }
}

fn former_chain(node: &Node) {
    // A Pod as flannel, bridge and host-local leave it: random veth name, files of theirs, none of ours.
    let (pod, _) = node.attached(&flannel(), "web-1");
    let (ours, theirs) = (host_link("web-1"), "veth0badcafe");
    let rename = |args: &[&str]| assert!(std::process::Command::new("ip").args(args).status().unwrap().success());
    rename(&["link", "set", &ours, "down"]);
    rename(&["link", "set", &ours, "name", theirs]);
    fs::remove_dir_all("/var/lib/cni/netd").unwrap();
    node.del(&flannel(), "web-1", &pod).silent();
    assert_eq!(node.files(), []);
    assert!(!node.links().iter().any(|name| name == theirs), "{:?}", node.links());
}

fn loopback(node: &Node) {
    // containerd's built-in configuration.
    let conf = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
    let pod = node.pod();
    let is_up = || inside(&pod, || Rtnl::open().unwrap().link(&IfName::new("lo").unwrap()).unwrap().unwrap().link.up);
    assert!(!is_up());
    let result = node.add(&conf, "web-1", &pod).result();
    assert!(is_up());
    let path = pod.to_str().unwrap();
    let interfaces = json!([{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": path}]);
    assert_eq!(result["interfaces"], interfaces);
    assert_eq!(result["ips"][0], json!({"version": "4", "interface": 0, "address": "127.0.0.1/8"}));
    let chained = with(&conf, "prevResult", json!({"cniVersion": "0.3.1", "vendor": 1}));
    assert_eq!(node.add(&chained, "web-1", &pod).result(), chained["prevResult"]);
    let modern = with(&conf, "cniVersion", json!("1.0.0"));
    node.verb("CHECK", &modern, "web-1", path).silent();
    node.del(&conf, "web-1", &pod).silent();
    assert!(!is_up());
    assert_eq!(node.verb("CHECK", &modern, "web-1", path).error().0, 102);
    node.verb("DEL", &conf, "web-1", "").silent();
    node.verb("DEL", &conf, "web-1", "/run/netns/never-there").silent();
}
