//! What flannel's own plugin is tested for (flannel_linux_test.go), asked of ours from outside.
//!
//! The tables of its unit tests stand beside the code: netconf/flannel.rs and, of the subnet file, lib/netstate.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::node::{Node, flannel, host_link, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("flannel_lifecycle_with_one_network", lifecycle_v4),
    ("flannel_lifecycle_with_two_networks", lifecycle_two_networks),
    ("flannel_lifecycle_with_ipv6_alone", lifecycle_v6),
    ("flannel_lifecycle_with_both_families", lifecycle_dual),
    ("flannel_conf_takes_its_paths_or_flannels_defaults", paths),
    ("flannel_conf_with_a_bad_delegate_is_refused_by_field", bad_delegates),
    ("flannel_subnet_file_of_every_valid_form_is_read", valid_subnet_files),
    ("flannel_subnet_file_that_lacks_something_is_refused_with_what_it_lacks", invalid_subnet_files),
    ("flannel_del_needs_neither_subnet_file_nor_state_file", del_without_files),
];

const V4: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
const TWO: &str =
    "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
const V6: &str =
    "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
const DUAL: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\n\
    FLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

const SUBNET_FILE: &str = "/run/elsewhere/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/elsewhere";

/// The configuration of flannel's tests: no version, its own places, nothing else.
fn conf() -> Value {
    json!({"name": "cni-flannel", "type": "flannel", "subnetFile": SUBNET_FILE, "dataDir": DATA_DIR})
}

fn subnet_file(text: &str) {
    fs::create_dir_all("/run/elsewhere").unwrap();
    fs::write(SUBNET_FILE, text).unwrap();
}

/// ADD keeps to the byte what flannel's plugin keeps, and answers `addresses`; DEL takes it away, and again is no error.
fn lifecycle(node: &Node, env: &str, ranges: &str, routes: &str, addresses: &[&str]) {
    subnet_file(env);
    let state = format!(
        r#"{{"ipMasq":false,"ipam":{{"ranges":[{ranges}],"routes":[{routes}],"type":"host-local"}},"isGateway":true,"mtu":1472,"name":"cni-flannel","type":"bridge"}}"#
    );
    let versioned = format!(r#"{{"cniVersion":"0.3.1",{}"#, &state[1..]);
    for (number, (conf, state)) in
        [(conf(), state), (with(&conf(), "cniVersion", json!("0.3.1")), versioned)].into_iter().enumerate()
    {
        let id = format!("some-container-{number}");
        let (pod, path) = (node.pod(), format!("{DATA_DIR}/{id}"));
        let result = node.add(&conf, &id, &pod).result();
        assert_eq!(fs::read_to_string(&path).unwrap(), state);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(found(&result).len(), addresses.len(), "{result}");
        for (found, subnet) in found(&result).iter().zip(addresses) {
            assert!(found.starts_with(subnet), "{found} is not of {subnet}");
        }
        for _ in 0..2 {
            node.del(&conf, &id, &pod).silent();
            assert!(!Path::new(&path).exists() && !node.links().contains(&host_link(&id)));
        }
    }
    assert_eq!(node.files(), []);
}

/// The addresses of a result of any version.
fn found(result: &Value) -> Vec<String> {
    let old = ["ip4", "ip6"].into_iter().filter_map(|key| result[key]["ip"].as_str());
    let new = result["ips"].as_array().into_iter().flatten().filter_map(|ip| ip["address"].as_str());
    old.chain(new).map(str::to_owned).collect()
}

fn lifecycle_v4(node: &Node) {
    lifecycle(node, V4, r#"[{"subnet":"10.1.17.0/24"}]"#, r#"{"dst":"10.1.0.0/16"}"#, &["10.1.17."]);
}

fn lifecycle_two_networks(node: &Node) {
    let routes = r#"{"dst":"10.1.0.0/16"},{"dst":"192.168.0.0/16"}"#;
    lifecycle(node, TWO, r#"[{"subnet":"10.1.17.0/24"}]"#, routes, &["10.1.17."]);
}

fn lifecycle_v6(node: &Node) {
    lifecycle(node, V6, r#"[{"subnet":"fc00::/64"}]"#, r#"{"dst":"fc00::/48"}"#, &["fc00::"]);
}

fn lifecycle_dual(node: &Node) {
    let ranges = r#"[{"subnet":"10.1.17.0/24"}],[{"subnet":"fc00::/64"}]"#;
    lifecycle(node, DUAL, ranges, r#"{"dst":"10.1.0.0/16"},{"dst":"fc00::/48"}"#, &["10.1.17.", "fc00::"]);
}

fn paths(node: &Node) {
    subnet_file(V4);
    let cases = [
        (json!(SUBNET_FILE), json!(DATA_DIR), "10.1.17.", DATA_DIR),
        (json!(SUBNET_FILE), Value::Null, "10.1.17.", "/var/lib/cni/flannel"),
        (Value::Null, json!(DATA_DIR), "172.7.21.", DATA_DIR),
        (Value::Null, Value::Null, "172.7.21.", "/var/lib/cni/flannel"),
        (json!(""), json!(""), "172.7.21.", "/var/lib/cni/flannel"),
    ];
    for (subnet, data, address, dir) in cases {
        let conf = with(&with(&flannel(), "subnetFile", subnet), "dataDir", data);
        let pod = node.pod();
        let result = node.add(&conf, "web-1", &pod).result();
        assert!(found(&result)[0].starts_with(address), "{conf}: {result}");
        assert!(Path::new(dir).join("web-1").exists(), "{conf}");
        node.del(&conf, "web-1", &pod).silent();
        assert_eq!(node.files(), []);
        kernel::Rtnl::open().unwrap().delete_link(&"cni0".parse().unwrap()).unwrap();
    }
    for key in ["subnetFile", "dataDir"] {
        let (code, text) = node.add(&with(&flannel(), key, json!(7)), "web-1", &node.pod()).error();
        assert!(code == 7 && text.contains(key), "{text}");
    }
}

fn bad_delegates(node: &Node) {
    for (delegate, code, words) in [
        (json!({"type": 7}), 7, "delegate.type"),
        (json!({"name": "other"}), 7, "delegate.name"),
        (json!({"ipam": {}}), 7, "delegate.ipam"),
        (json!({"type": "ptp"}), 2, "delegate.type=ptp"),
        (json!("bridge"), 7, "delegate"),
    ] {
        let (found, text) = node.add(&with(&flannel(), "delegate", delegate), "web-1", &node.pod()).error();
        assert!(found == code && text.contains(words), "{found} {text}");
    }
    assert_eq!(node.files(), []);
}

fn valid_subnet_files(node: &Node) {
    let quoted = V4.replace("10.1.0.0/16", "\"10.1.0.0/16\"");
    let unknown = format!("# by hand\nOTHER=1\n\n{V4}");
    for (number, env) in [V4, TWO, DUAL, &quoted, &unknown, V4.trim_end()].into_iter().enumerate() {
        subnet_file(env);
        let id = format!("web-{number}");
        let pod = node.pod();
        assert!(found(&node.add(&conf(), &id, &pod).result())[0].starts_with("10.1.17."), "{env:?}");
        node.del(&conf(), &id, &pod).silent();
    }
}

fn invalid_subnet_files(node: &Node) {
    let without = |key: &str| DUAL.lines().filter(|line| !line.contains(key)).collect::<Vec<_>>().join("\n");
    for (env, words) in [
        (
            String::new(),
            "is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, \
             FLANNEL_IPMASQ",
        ),
        (without("_NETWORK"), "is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK"),
        (without("_SUBNET"), "is missing FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET"),
        (without("MTU"), "is missing FLANNEL_MTU"),
        (without("IPMASQ"), "is missing FLANNEL_IPMASQ"),
        (format!("{V4}FLANNEL_MTU\n"), "line 5: FLANNEL_MTU"),
        (V4.replace("10.1.17.1/24", "10.1.17.1"), "line 2: FLANNEL_SUBNET"),
    ] {
        subnet_file(&env);
        let (code, text) = node.add(&conf(), "web-1", &node.pod()).error();
        assert!(code == 7 && text.contains(SUBNET_FILE) && text.contains(words), "{code} {text}");
    }
    fs::remove_file(SUBNET_FILE).unwrap();
    let (code, text) = node.add(&conf(), "web-1", &node.pod()).error();
    assert!(code == 11 && text.contains("failed to load flannel 'subnet.env' file") && text.contains(SUBNET_FILE));
    assert_eq!(node.files(), []);
}

fn del_without_files(node: &Node) {
    subnet_file(V4);
    let pod = node.pod();
    for gone in [SUBNET_FILE, "/var/lib/cni/elsewhere/web-1"] {
        subnet_file(V4);
        node.add(&conf(), "web-1", &pod).result();
        fs::remove_file(gone).unwrap();
        node.del(&conf(), "web-1", &pod).silent();
        // There is nothing left that flannel's plugin would have leaked.
        assert!(!node.links().contains(&host_link("web-1")));
        assert_eq!(node.files(), []);
    }
}
