//! flannel's stock configuration, driven as libcni drives it, with the binary installed as `flannel` and `portmap`.

use std::fs;
use std::path::Path;

use kernel::Rtnl;
use netstate::IfName;
use serde_json::{Value, json};

use crate::node::{Node, first_address, flannel, host_link, inside, native, vars, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("stock_flannel_conflist_works_unchanged", stock_conflist),
    ("flannel_state_file_is_what_flannels_plugin_writes", state_file),
    ("flannel_state_file_that_is_empty_or_junk_does_not_stop_del", junk_state),
    ("flannel_state_file_stays_as_long_as_the_interface_that_it_is_of", state_of_another_interface),
    ("loopback_is_set_up_and_down", loopback),
    ("plugin_that_makes_an_interface_comes_anywhere_in_its_chain", anywhere),
    ("pod_of_the_predecessor_is_removed_by_its_own_names", predecessor),
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

/// What libcni passes to each plugin of the list: name and version of the list, the previous result.
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
    assert_eq!(second, first, "portmap returns the previous result");
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

/// multus: further interfaces of a Pod that flannel's network came to first.
fn state_of_another_interface(node: &Node) {
    let path = Path::new("/var/lib/cni/flannel/web-1");
    let pod = node.pod();
    node.add(&flannel(), "web-1", &pod).result();
    let written = fs::read_to_string(path).unwrap();
    let further = |command: &str, conf: &Value| {
        let mut vars = vars(command, "web-1", pod.to_str().unwrap());
        vars[3].1 = "net1";
        let outcome = node.exec(conf["type"].as_str().unwrap(), &vars, &conf.to_string());
        assert_eq!(fs::read_to_string(path).unwrap_or_default(), written, "{command} of {}", conf["name"]);
        outcome
    };
    let range = json!({"type": "host-local", "subnet": "10.7.0.0/24"});
    let reference = json!({"cniVersion": "0.3.1", "name": "red", "type": "bridge", "bridge": "br0", "ipam": range});
    further("DEL", &reference).silent();
    further("ADD", &reference).result();
    further("DEL", &reference).silent();
    for conf in [reference, with(&native(), "name", json!("red")), with(&flannel(), "name", json!("red"))] {
        further("DEL", &conf).silent();
    }
    // The lease has no further address: nothing is written yet.
    let taken = with(&flannel(), "args", json!({"cni": {"ips": ["172.7.21.1"]}}));
    further("ADD", &taken).error();
    node.del(&flannel(), "web-1", &pod).silent();
    assert!(!path.exists());
}

fn predecessor(node: &Node) {
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

/// nomad's order: loopback comes first.
fn anywhere(node: &Node) {
    let reference = json!({"name": "cbr0", "type": "bridge", "bridge": "br0", "isDefaultGateway": true,
        "ipam": {"type": "host-local", "subnet": "10.7.0.0/24"}});
    for version in ["0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        for conf in [native(), flannel(), reference.clone()] {
            let when = format!("{} {version}", conf["type"]);
            let versioned = |conf: &Value| with(conf, "cniVersion", json!(version));
            let conf = versioned(&conf);
            let pod = node.pod();
            let first = node.add(&versioned(&json!({"name": "cbr0", "type": "loopback"})), "web-1", &pod).result();
            let alone = node.add(&conf, "web-1", &pod).result();
            node.del(&conf, "web-1", &pod).silent();
            let mut previous = first.clone();
            previous["x-of-another"] = json!({"kept": true});
            let result = node.add(&with(&conf, "prevResult", previous), "web-1", &pod).result();
            assert_eq!((&result["cniVersion"], &result["x-of-another"]), (&json!(version), &json!({"kept": true})));
            if version == "0.2.0" {
                assert_ne!(result["ip4"], first["ip4"], "one place per family: the Pod's own address");
            } else {
                let (found, there) =
                    (result["interfaces"].as_array().unwrap(), first["interfaces"].as_array().unwrap());
                let own = alone["interfaces"].as_array().unwrap();
                assert!(found.starts_with(there) && found.len() == there.len() + own.len(), "{when}: {result}");
                let own_ip = result["ips"].as_array().unwrap().last().unwrap();
                let index = usize::try_from(own_ip["interface"].as_u64().unwrap()).unwrap();
                assert_eq!(found[index]["name"], json!("eth0"), "{when}: {result}");
                assert!(result["ips"].as_array().unwrap().len() > alone["ips"].as_array().unwrap().len(), "{when}");
            }
            let mapping = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
            if version != "0.2.0" {
                let mut portmap = versioned(&json!({"name": "cbr0", "type": "portmap", "runtimeConfig": mapping}));
                portmap["prevResult"] = result.clone();
                assert_eq!(node.add(&portmap, "web-1", &pod).result(), result, "{when}");
                assert!(crate::ports::elements() > 0);
                node.del(&portmap, "web-1", &pod).silent();
            }
            if version >= "0.4.0" {
                node.check(&conf, "web-1", &pod, &result).silent();
            }
            node.del(&conf, "web-1", &pod).silent();
            assert_eq!(node.files(), [], "{when}");
        }
    }
    let pod = node.pod();
    let junk = with(&native(), "prevResult", json!({"ips": [{"address": "x"}]}));
    assert_eq!(node.add(&junk, "web-1", &pod).error().0, 7);
    assert_eq!(node.files(), []);
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
