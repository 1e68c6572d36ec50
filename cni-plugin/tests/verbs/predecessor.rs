//! Changing over, in both directions, with the plugins of Debian's `containernetworking-plugins` as the other side.
//!
//! flannel's own plugin is not in Debian; what it adds is one file, which the tests write as it does.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::node::{Node, first_address, flannel, host_link, inside, native, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("pod_attached_by_the_predecessor_is_detached_by_us", theirs_then_ours),
    ("pod_attached_by_us_is_detached_by_the_predecessor", ours_then_theirs),
    ("both_chains_share_one_bridge_and_never_an_address", side_by_side),
    ("pod_of_the_predecessor_passes_our_check", check_of_theirs),
];

/// Where Debian puts them.
pub(crate) const DIR: &str = "/usr/lib/cni";

/// True when the other side is installed.
pub(crate) fn is_installed() -> bool {
    ["bridge", "host-local", "bandwidth", "macvlan", "ptp"]
        .iter()
        .all(|name| std::path::Path::new(DIR).join(name).exists())
}

/// Runs a verb of Debian's plugin `program`, which finds what it delegates to in `path`; what it returns, null for nothing.
pub(crate) fn debians(program: &str, command: &str, conf: &Value, id: &str, netns: &str, path: &str) -> Value {
    fs::write("/run/stdin", conf.to_string()).unwrap();
    let output = Command::new(format!("{DIR}/{program}"))
        .env_clear()
        .envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("CNI_COMMAND", command), ("CNI_CONTAINERID", id)])
        .envs([("CNI_NETNS", netns), ("CNI_IFNAME", "eth0"), ("CNI_PATH", path)])
        .stdin(Stdio::from(fs::File::open("/run/stdin").unwrap()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let text = if output.stdout.is_empty() { b"null".as_slice() } else { &output.stdout };
    serde_json::from_slice(text).unwrap()
}

/// What flannel's plugin passes to the bridge plugin on this node.
fn delegate() -> Value {
    json!({"cniVersion": "0.3.1", "hairpinMode": true, "ipMasq": false, "isDefaultGateway": true, "isGateway": true,
           "ipam": {"ranges": [[{"subnet": "172.7.21.0/24"}]], "routes": [{"dst": "172.7.0.0/16"}], "type": "host-local"},
           "mtu": 1450, "name": "cbr0", "type": "bridge"})
}

/// Runs a verb of the predecessor, with flannel's state file.
fn theirs(command: &str, id: &str, netns: &str) -> Value {
    let state = format!("/var/lib/cni/flannel/{id}");
    fs::create_dir_all("/var/lib/cni/flannel").unwrap();
    let conf = if command == "ADD" {
        fs::write(&state, delegate().to_string()).unwrap();
        delegate()
    } else {
        // It acts by what the state file says, and by nothing else.
        serde_json::from_str(&fs::read_to_string(&state).unwrap()).unwrap()
    };
    let answer = debians("bridge", command, &conf, id, netns, DIR);
    if command == "DEL" {
        fs::remove_file(&state).unwrap();
    }
    answer
}

fn has_eth0(pod: &std::path::Path) -> bool {
    inside(pod, || kernel::Rtnl::open().unwrap().link(&"eth0".parse().unwrap()).unwrap().is_some())
}

fn theirs_then_ours(node: &Node) {
    let before = node.links();
    for (id, gone) in [("old-1", false), ("old-2", true)] {
        let pod = node.pod();
        let result = theirs("ADD", id, pod.to_str().unwrap());
        assert!(first_address(&result).to_string().starts_with("172.7.21."));
        if gone {
            node.verb("DEL", &flannel(), id, "").silent();
            assert_eq!(node.files(), [], "without the namespace only files can be found");
            continue;
        }
        node.del(&flannel(), id, &pod).silent();
        assert!(!has_eth0(&pod));
        assert_eq!(node.files(), []);
        let mut links = node.links();
        links.retain(|name| name != "cni0");
        assert_eq!(links, before);
    }
}

fn ours_then_theirs(node: &Node) {
    let pod = node.pod();
    node.add(&flannel(), "web-1", &pod).result();
    theirs("DEL", "web-1", pod.to_str().unwrap());
    assert!(!has_eth0(&pod) && !node.links().contains(&host_link("web-1")));
    // Only our own record is left, which no address and no link belongs to; our GC removes it.
    let names: Vec<String> = node.files().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["/var/lib/cni/netd/cbr0/web-1@eth0"]);
    let conf = with(&flannel(), "cniVersion", json!("1.1.0"));
    node.exec("flannel", &[("CNI_COMMAND", "GC")], &conf.to_string()).silent();
    assert_eq!(node.files(), []);
}

fn side_by_side(node: &Node) {
    let mut addresses = Vec::new();
    for number in 0..4 {
        let pod = node.pod();
        let (theirs_id, ours_id) = (format!("old-{number}"), format!("web-{number}"));
        addresses.push(first_address(&theirs("ADD", &theirs_id, pod.to_str().unwrap())));
        addresses.push(first_address(&node.add(&flannel(), &ours_id, &node.pod()).result()));
    }
    let mut unique = addresses.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 8, "{addresses:?}");
    // The native configuration joins them: a second bridge with the same subnet would cut everybody off.
    let pod = node.pod();
    let result = node.add(&native(), "web-9", &pod).result();
    assert_eq!(result["interfaces"][0]["name"], json!("cni0"));
    node.check(&native(), "web-9", &pod, &result).silent();
    assert!(!node.links().contains(&"cbr0".to_owned()));
    // Who names his bridge is not second-guessed.
    let (code, text) = node.add(&with(&native(), "bridge", json!("cbr0")), "web-10", &node.pod()).error();
    assert!(code == 7 && text.contains("cni0"), "{text}");
}

fn check_of_theirs(node: &Node) {
    let pod = node.pod();
    let result = theirs("ADD", "old-1", pod.to_str().unwrap());
    let conf = with(&flannel(), "cniVersion", json!("0.4.0"));
    node.check(&conf, "old-1", &pod, &result).silent();
}
