//! `netd-cni cleanup`: what Pods shared goes once they are gone, and nothing of somebody else's.

use std::fs;
use std::path::Path;
use std::process::Command;

use kernel::Rtnl;
use netstate::{IfName, Link, LinkKind};
use serde_json::{Value, json};

use crate::bridge::{ip, link};
use crate::node::{Node, flannel, host_link, native, with};
use crate::port_owners::second;
use crate::ports::{elements, mapped};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("cleanup_lists_and_then_removes_what_pods_shared", removes),
    ("cleanup_leaves_a_network_with_a_pod_that_is_alive", alive),
    ("cleanup_goes_past_a_broken_list_and_a_living_network", goes_past),
    ("cleanup_refuses_a_file_that_is_no_list", no_list),
    ("cleanup_leaves_what_is_somebody_elses", foreign),
    ("cleanup_names_what_stays_for_somebody_else", kept),
    ("cleanup_removes_tables_and_leaves_the_host_ports_of_other_networks", tables),
    ("cleanup_removes_a_bridge_with_the_links_of_its_vlans_alone", vlans),
];

const LIST: &str = "/run/10-test.conflist";

/// A list of `conf` alone, as runtimes have it: name and version are the list's.
fn list(conf: &Value) -> Value {
    let mut plugin = conf.clone();
    plugin.as_object_mut().unwrap().retain(|key, _| !["name", "cniVersion"].contains(&key.as_str()));
    json!({"cniVersion": conf["cniVersion"], "name": conf["name"], "plugins": [plugin]})
}

/// Exit status and all that was printed.
fn cleanup(node: &Node, conf: &Value, yes: bool) -> (Option<i32>, String) {
    fs::write(LIST, list(conf).to_string()).unwrap();
    let words: &[&str] = if yes { &["--yes", LIST] } else { &[LIST] };
    let output = Command::new(node.plugin("netd-cni")).arg("cleanup").args(words).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

fn removes(node: &Node) {
    let elsewhere = with(&native(), "ipam", json!({"dataDir": "/var/lib/elsewhere"}));
    for (conf, bridge) in [(native(), "cbr0"), (flannel(), "cni0"), (elsewhere, "cbr0")] {
        let (pod, _) = node.attached(&conf, "web");
        node.attached(&conf, "forgotten");
        node.del(&conf, "web", &pod).silent();
        // As a crash leaves it: the Pod's network is gone, and nobody said DEL.
        Rtnl::open().unwrap().delete_link(&IfName::new(host_link("forgotten")).unwrap()).unwrap();
        let before = (node.links(), node.files());
        let (status, said) = cleanup(node, &conf, false);
        assert_eq!(status, Some(0), "{said}");
        for line in [format!("link {bridge}\n"), "what container forgotten left".to_owned(), "--yes does".to_owned()] {
            assert!(said.contains(&line), "{line} is not in {said}");
        }
        assert_eq!((node.links(), node.files()), before, "without --yes");
        let (status, said) = cleanup(node, &conf, true);
        assert!(status == Some(0) && said.ends_with("removed\n"), "{said}");
        assert!(!node.links().iter().any(|link| link == bridge), "{:?}", node.links());
        let name = conf["name"].as_str().unwrap();
        for folder in ["/var/lib/cni/netd", "/var/lib/cni/networks"] {
            assert!(!Path::new(folder).join(name).exists(), "{folder} still knows {name}");
        }
        assert!(!Path::new("/var/lib/cni/netd/.pools").exists());
        assert!(cleanup(node, &conf, true).1.contains("nothing of this program's is here"));
    }
}

fn alive(node: &Node) {
    let conf = native();
    node.attached(&conf, "web");
    let before = (node.links(), node.files());
    let (status, said) = cleanup(node, &conf, true);
    assert!(status == Some(1) && said.contains("container web of network") && said.contains("is alive"), "{said}");
    assert_eq!((node.links(), node.files()), before);
}

fn goes_past(node: &Node) {
    let plugin = |name: &str, bridge: &str| {
        json!({"cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": bridge, "isGateway": true,
            "ipam": {"type": "host-local", "subnet": if name == "alive" { "10.7.0.0/24" } else { "10.8.0.0/24" }}})
    };
    let (alive, dead) = (plugin("alive", "br0"), plugin("dead", "br1"));
    node.attached(&alive, "web");
    let (pod, _) = node.attached(&dead, "gone");
    node.del(&dead, "gone", &pod).silent();
    // Of three lists one is broken off in its middle, one has a Pod that lives, and the last is a file of one plugin.
    // Besides, a pattern that no file fits, as a shell passes it on, and a name that is mistyped.
    let others = ["/run/*.conflist.none", "/run/10-alvie.conflist"];
    let paths = ["/run/00-junk.conflist", "/run/10-alive.conflist", "/run/20-dead.conf"];
    for (path, text) in paths.iter().zip([r#"{"name": "#.to_owned(), list(&alive).to_string(), dead.to_string()]) {
        fs::write(path, text).unwrap();
    }
    let output =
        Command::new(node.plugin("netd-cni")).args(["cleanup", "--yes"]).args(others).args(paths).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains(paths[0]) && said.contains("is alive"), "{said}");
    assert!(said.contains("/run/10-alvie.conflist; No such file") && !said.contains("none"), "{said}");
    let did = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(did.contains("link br1\n") && did.ends_with("\nremoved\n"), "what was done for the others: {did}");
    assert!(!did.contains("br0") && !did.contains("web"), "of the living network nothing is: {did}");
    let links = node.links();
    assert!(links.contains(&"br0".to_owned()) && !links.contains(&"br1".to_owned()), "{links:?}");
    assert!(Path::new("/var/lib/cni/netd/alive").exists() && !Path::new("/var/lib/cni/netd/dead").exists());
}

/// Nothing is said of a network whose list is none.
fn no_list(node: &Node) {
    for list in [
        "{}",
        r#"{"name": "cbr0", "plugins": []}"#,
        r#"{"name": "cbr0", "plugins": [{}]}"#,
        r#"{"name": "cbr0", "plugins": {}}"#,
    ] {
        fs::write("/run/list", list).unwrap();
        let output = Command::new(node.plugin("netd-cni")).args(["cleanup", "/run/list"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.code() == Some(1) && said.contains("/run/list") && said.contains("no list"),
            "{list}: {said}"
        );
        assert!(!said.contains("nothing of this program's"), "{said}");
    }
}

fn foreign(node: &Node) {
    // A bridge of the name that a list gives, where this program never made anything.
    let bridge = IfName::new("cbr0").unwrap();
    let link = Link { kind: LinkKind::Bridge(Default::default()), mtu: None, mac: None, up: false, master: None };
    Rtnl::open().unwrap().create_link(&bridge, &link).unwrap();
    let (status, said) = cleanup(node, &native(), true);
    assert!(status == Some(0) && said.contains("nothing of this program's is here"), "{said}");
    assert!(Rtnl::open().unwrap().link(&bridge).unwrap().is_some());
}

fn kept(node: &Node) {
    let (conf, blocked) = (native(), "/var/lib/cni/networks/cbr0/172.7.21.9");
    let (pod, _) = node.attached(&conf, "web");
    node.del(&conf, "web", &pod).silent();
    fs::write(blocked, "the printer has this one\n").unwrap();
    ip("link add theirs type veth peer name away");
    ip("link set theirs master cbr0");
    let stays = [
        "link cbr0 stays: theirs is plugged into it\n",
        "folder /var/lib/cni/networks/cbr0 stays: a reservation in it names no container\n",
    ];
    for yes in [false, true] {
        let (status, said) = cleanup(node, &conf, yes);
        assert!(status == Some(0) && stays.iter().all(|line| said.contains(line)), "{said}");
        assert!(!said.contains("link cbr0\n") && said.contains("folder /var/lib/cni/netd/cbr0\n"), "{said}");
        assert_eq!(said.ends_with("\nremoved\n"), yes, "{said}");
    }
    assert!(node.links().contains(&"cbr0".to_owned()) && Path::new(blocked).exists());
}

fn tables(node: &Node) {
    let second = second();
    let guarded = with(&with(&native(), "ipMasq", json!(true)), "macspoofchk", json!(true));
    let used = || {
        let (pod, _) = node.attached(&mapped(&guarded, "tcp", 8080, 80, ""), "web");
        node.del(&guarded, "web", &pod).silent();
        let other = node.pod();
        node.add(&mapped(&second, "tcp", 8081, 80, ""), "other", &other).result();
        other
    };
    let found = || {
        let output = Command::new("nft").args(["list", "tables"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let own = ["inet netd-masq-cbr0", "bridge netd-spoof-cbr0"];
    let other = used();
    let open = elements();
    let (_, said) = cleanup(node, &guarded, true);
    assert!(own.iter().all(|table| said.contains(&format!("nft table {table}\n"))), "{said}");
    assert!(said.contains("folder /var/lib/cni/netd/cbr0\n") && !said.contains("netd-ports"), "{said}");
    assert_eq!(found(), "table inet netd-ports\n");
    assert!(elements() == open && open > 0, "the other network's ports are open still");
    node.del(&second, "other", &other).silent();
    let other = used();
    node.del(&second, "other", &other).silent();
    let (_, said) = cleanup(node, &guarded, true);
    assert!(said.contains("nft table inet netd-ports\n"), "{said}");
    assert_eq!(found(), "");
}

/// The end of the VLAN's link on the bridge, as `plan/attach/vlan.rs` names it for VLAN 100 of cbr0.
const VLAN_PORT: &str = "veth9z7vje3sj4f";

fn vlans(node: &Node) {
    let conf = native();
    let kept = |stranger: &str, names: &[&str]| {
        let (status, said) = cleanup(node, &conf, true);
        assert_eq!(status, Some(0), "{said}");
        let links = node.links();
        assert!(names.iter().all(|name| links.iter().any(|link| link == name)), "{stranger}: {links:?}");
    };
    let used = || {
        let (pod, _) = node.attached(&conf, "web");
        node.del(&conf, "web", &pod).silent();
    };
    // Somebody's own: a pair of such a name with another port, something plugged in, something on top of the bridge.
    for (stranger, gone) in [
        ("link add mine master cbr0 type veth peer name cbr0.100", "cbr0.100"),
        ("link add tap0 master cbr0 type veth peer name tap1", "tap0"),
        ("link add link cbr0 name mac0 type macvlan", "mac0"),
    ] {
        used();
        if gone != "cbr0.100" {
            ip(&format!("link add {VLAN_PORT} master cbr0 type veth peer name cbr0.100"));
        }
        ip(stranger);
        kept(stranger, &["cbr0", "cbr0.100", gone]);
        ip(&format!("link del {gone}"));
        ip("link del cbr0");
        if gone != "cbr0.100" {
            ip("link del cbr0.100");
        }
    }
    used();
    ip(&format!("link add {VLAN_PORT} master cbr0 type veth peer name cbr0.100"));
    // The other end of somebody's pair has the bridge's index, in its own namespace.
    let pod = node.pod();
    let (index, pod) = (link("cbr0").index, pod.file_name().unwrap().to_str().unwrap());
    ip(&format!("link add theirs type veth peer name theirs1 index {index} netns {pod}"));
    let (_, said) = cleanup(node, &conf, false);
    assert!(said.contains("link cbr0\n") && said.contains("link cbr0.100\n"), "{said}");
    let (status, said) = cleanup(node, &conf, true);
    assert!(status == Some(0) && said.ends_with("removed\n"), "{said}");
    assert_eq!(node.links(), ["lo", "theirs"]);
    // A link of another kind with the bridge's name.
    used();
    ip("link del cbr0");
    ip("link add cbr0 type veth peer name mine");
    cleanup(node, &conf, true);
    assert_eq!(node.links(), ["cbr0", "lo", "mine", "theirs"]);
}
