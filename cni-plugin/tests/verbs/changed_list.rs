//! A node's list of plugins changes while Pods run: DEL and GC of whatever list comes next release what the list before it
//! made.

use std::path::Path;

use serde_json::{Value, json};

use crate::bandwidth;
use crate::node::{Node, Outcome, flannel, host_link, native, with};
use crate::ports::elements;

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("del_of_every_list_releases_what_every_other_list_made", del_of_every_list),
    ("del_of_every_list_releases_a_pod_whose_namespace_is_gone", del_without_namespace),
    ("del_of_a_list_with_another_name_releases_what_the_list_before_it_made", del_of_a_renamed_list),
    ("gc_of_every_name_releases_what_every_list_made", gc_of_every_name),
    ("gc_of_every_name_keeps_what_is_valid_whoever_made_it", gc_keeps),
    ("chained_names_leave_a_living_interface_to_the_name_that_makes_it", chained_leave_the_link),
];

/// Need a kernel that can limit traffic.
pub(crate) const LIMITED_TESTS: &[Test] =
    &[("limits_of_every_list_are_released_by_del_and_gc_of_every_other", limits_of_every_list)];

fn modern(conf: &Value) -> Value {
    with(conf, "cniVersion", json!("1.1.0"))
}

fn portmap() -> Value {
    json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "portmap"})
}

fn shaper() -> Value {
    json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "bandwidth"})
}

fn reference() -> Value {
    json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "bridge", "bridge": "cni0", "isDefaultGateway": true,
        "ipam": {"type": "host-local", "subnet": "172.7.21.0/24"}})
}

fn host_local() -> Value {
    json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "host-local",
        "ipam": {"type": "host-local", "subnet": "172.7.21.0/24"}})
}

/// The lists that a node may have, each plugin in the order of ADD.
fn lists() -> Vec<Vec<Value>> {
    let chained = |first: Value| vec![first, portmap(), shaper()];
    vec![vec![modern(&native())], chained(modern(&flannel())), chained(reference())]
}

/// Whether the runtime was asked for limits as well as for ports.
fn runtime(conf: &Value, limited: bool) -> Value {
    let mut runtime = json!({});
    if ["netd-cni", "portmap"].contains(&conf["type"].as_str().unwrap()) {
        runtime["portMappings"] = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                                         {"hostPort": 8053, "containerPort": 53, "protocol": "udp"}]);
    }
    if limited && ["netd-cni", "bandwidth"].contains(&conf["type"].as_str().unwrap()) {
        let (rate, burst) = (8_000_000, 800_000);
        runtime["bandwidth"] =
            json!({"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst});
    }
    with(conf, "runtimeConfig", runtime)
}

/// Attaches container `id` by all plugins of `list`; returns its namespace and the result.
fn attached(node: &Node, list: &[Value], id: &str, limited: bool) -> (std::path::PathBuf, Value) {
    let pod = node.pod();
    let mut result: Option<Value> = None;
    for conf in list {
        let mut conf = runtime(conf, limited);
        if let Some(result) = &result {
            conf["prevResult"] = result.clone();
        }
        result = Some(node.add(&conf, id, &pod).result());
    }
    (pod, result.unwrap())
}

fn gc(node: &Node, conf: &Value) -> Outcome {
    let vars = [("CNI_COMMAND", "GC"), ("CNI_PATH", "/run/bin")];
    node.exec(conf["type"].as_str().unwrap(), &vars, &conf.to_string())
}

/// Nothing of a Pod is left anywhere.
fn nothing_left(node: &Node, when: &str) {
    assert_eq!(node.files(), [], "{when}");
    assert_eq!(elements(), 0, "{when}");
    let own = |name: &String| name == &host_link("web-1") || name.starts_with("bwp");
    assert!(!node.links().iter().any(own), "{when}: {:?}", node.links());
}

fn names(list: &[Value]) -> String {
    list.iter().map(|conf| conf["type"].as_str().unwrap()).collect::<Vec<_>>().join("+")
}

fn del_of_every_list(node: &Node) {
    released_by_del(node, false, false);
}

fn del_without_namespace(node: &Node) {
    released_by_del(node, false, true);
}

fn limits_of_every_list(node: &Node) {
    assert!(bandwidth::is_possible());
    released_by_del(node, true, false);
    released_by_gc(node, true);
}

fn released_by_del(node: &Node, limited: bool, without_namespace: bool) {
    for made in lists() {
        let mut others = lists();
        // The entries that follow the first one may have gone from the list as well.
        others.extend([vec![modern(&flannel())], vec![reference()]]);
        for deleted in others {
            let when = format!("{} deleted by {}", names(&made), names(&deleted));
            let (pod, _) = attached(node, &made, "web-1", limited);
            let path = if without_namespace { String::new() } else { pod.display().to_string() };
            for conf in deleted.iter().rev() {
                node.verb("DEL", conf, "web-1", &path).silent();
            }
            nothing_left(node, &when);
            remove_bridges(node);
        }
    }
}

fn del_of_a_renamed_list(node: &Node) {
    for made in lists() {
        for deleted in lists() {
            let when = format!("{} deleted by {} of another name", names(&made), names(&deleted));
            let (pod, _) = attached(node, &made, "web-1", false);
            let stays = node.pod();
            node.add(&made[0], "web-2", &stays).result();
            for conf in deleted.iter().rev() {
                node.del(&with(conf, "name", json!("renamed")), "web-1", &pod).silent();
            }
            let left = node.files();
            assert!(
                !left.iter().any(|(name, text)| name.contains("web-1") || text.contains("web-1")),
                "{when}: {left:?}"
            );
            assert_eq!(elements(), 0, "{when}");
            assert!(
                !node.links().contains(&host_link("web-1")) && node.links().contains(&host_link("web-2")),
                "{when}"
            );
            node.del(&made[0], "web-2", &stays).silent();
            nothing_left(node, &when);
            remove_bridges(node);
        }
    }
    // An address for another plugin.
    let pod = node.pod();
    node.add(&host_local(), "web-1", &pod).result();
    node.del(&with(&host_local(), "name", json!("renamed")), "web-1", &pod).silent();
    nothing_left(node, "host-local");
}

fn remove_bridges(node: &Node) {
    for bridge in ["cbr0", "cni0"].into_iter().filter(|name| node.links().iter().any(|link| link == name)) {
        crate::bridge::ip(&format!("link del {bridge}"));
    }
}

fn gc_of_every_name(node: &Node) {
    released_by_gc(node, false);
}

fn released_by_gc(node: &Node, limited: bool) {
    for made in lists() {
        for conf in [modern(&native()), modern(&flannel()), reference(), portmap(), shaper(), host_local()] {
            let when = format!("{} collected by {}", names(&made), conf["type"]);
            attached(node, &made, "web-1", limited);
            gc(node, &conf).silent();
            nothing_left(node, &when);
            remove_bridges(node);
        }
    }
}

fn gc_keeps(node: &Node) {
    for made in lists() {
        let (pod, result) = attached(node, &made, "web-1", false);
        let before = (node.files(), elements(), node.links());
        for conf in [modern(&native()), modern(&flannel()), reference(), portmap(), shaper(), host_local()] {
            let valid = json!([{"containerID": "web-1", "ifname": "eth0"}]);
            gc(node, &with(&conf, "cni.dev/valid-attachments", valid)).silent();
            assert_eq!((node.files(), elements(), node.links()), before, "{} after {}", names(&made), conf["type"]);
        }
        node.check(&runtime(&made[0], false), "web-1", &pod, &result).silent();
        made.iter().rev().for_each(|conf| node.del(conf, "web-1", &pod).silent());
        remove_bridges(node);
    }
}

fn chained_leave_the_link(node: &Node) {
    for made in lists() {
        let (pod, _) = attached(node, &made, "web-1", false);
        node.del(&portmap(), "web-1", &pod).silent();
        assert_eq!(elements(), 0, "{}", names(&made));
        assert!(node.links().contains(&host_link("web-1")), "{}", names(&made));
        assert!(Path::new("/var/lib/cni/netd/cbr0/web-1@eth0").exists());
        node.del(&made[0], "web-1", &pod).silent();
        nothing_left(node, &names(&made));
        remove_bridges(node);
    }
}
