//! Changing over: what Debian's bridge (`ipMasq`) and portmap leave in the firewall, with the real iptables-nft.
//!
//! "As before" means before the Pod came, on a node where Debian's plugins have run once: their own DEL leaves the
//! chains CNI-HOSTPORT-DNAT, -SETMARK and -MASQ, which all Pods share, and so does ours.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::attach::{say, who_called};
use crate::node::{Node, flannel, inside, native, with};
use crate::ports::{addr, elements, mapped};
use crate::predecessor::{DIR, debians};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("firewall_is_as_before_when_we_delete_a_predecessors_pod", del_of_theirs),
    (
        "firewall_is_as_before_when_the_namespace_of_a_predecessors_pod_is_empty_gone_or_no_namespace",
        del_without_namespace,
    ),
    ("gc_removes_the_firewall_rules_of_a_predecessors_pods_that_are_not_valid", gc_of_theirs),
    ("nft_rules_of_the_predecessor_are_removed_by_their_comments", nft_rules),
    ("chains_of_other_containers_and_networks_stay", others_stay),
    ("shaping_link_of_a_predecessors_pod_goes_with_it", shaping_link),
    ("link_that_only_the_previous_result_names_is_removed", named_link),
    ("for_our_pods_no_rule_of_a_predecessor_is_searched_for", nothing_searched_for),
    ("ports_of_our_pod_outlive_debians_del_until_gc", ours_then_theirs),
];

/// True when iptables-nft, portmap and bridge are there.
pub(crate) fn is_installed() -> bool {
    let answers = Command::new("iptables").arg("--version").output();
    let is_nft = answers.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("nf_tables"));
    is_nft && crate::predecessor::is_installed() && Path::new(DIR).join("portmap").exists()
}

/// Need a kernel with iptables-legacy.
pub(crate) const LEGACY_TESTS: &[Test] = &[("rules_of_iptables_legacy_are_reported_and_left_alone", legacy)];

/// True when iptables-legacy works, as seen in a namespace of its own: looking makes the table.
pub(crate) fn has_legacy() -> bool {
    let command = Command::new("unshare").args(["-n", "iptables-legacy", "-t", "nat", "-S"]).output();
    command.is_ok_and(|output| output.status.success())
}

/// The text of a program's standard output.
fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything that iptables and nft show, without counters, dates and handles.
fn firewall() -> Vec<String> {
    let texts = [
        output("iptables-save", &["-t", "nat"]),
        output("ip6tables-save", &["-t", "nat"]),
        output("nft", &["-s", "list", "ruleset"]),
    ];
    let lines = texts.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with('#'));
    // iptables counts the packets of a built-in chain since 1.8.11.
    lines
        .map(|line| if line.starts_with(':') { line.split(" [").next().unwrap_or(line) } else { line }.to_owned())
        .collect()
}

fn bridge() -> Value {
    json!({"cniVersion": "1.0.0", "hairpinMode": true, "ipMasq": true, "isDefaultGateway": true, "isGateway": true,
           "ipam": {"ranges": [[{"subnet": "172.7.21.0/24"}]], "type": "host-local"},
           "mtu": 1450, "name": "cbr0", "type": "bridge"})
}

fn portmap() -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "portmap"})
}

/// Runs a verb of the plugin of Debian's that `conf` names.
fn debian(command: &str, conf: &Value, id: &str, netns: &str) -> Value {
    debians(conf["type"].as_str().unwrap(), command, conf, id, netns, DIR)
}

/// portmap with a TCP and a UDP port. Debian's removes nothing when DEL names no port.
fn two_ports(port: u16) -> Value {
    let mappings = json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp"},
                          {"hostPort": port, "containerPort": 53, "protocol": "udp"}]);
    with(&portmap(), "runtimeConfig", json!({"portMappings": mappings}))
}

/// A Pod attached by Debian's chain, with `conf` in place of bridge's own: flannel's state file, masquerade rules, two
/// ports.
fn their_pod(node: &Node, id: &str, conf: &Value) -> std::path::PathBuf {
    let pod = node.pod();
    let netns = pod.to_str().unwrap();
    fs::create_dir_all("/var/lib/cni/flannel").unwrap();
    fs::write(format!("/var/lib/cni/flannel/{id}"), conf.to_string()).unwrap();
    let result = debian("ADD", conf, id, netns);
    let port = if id == "old-0" { 7080 } else { 8080 };
    let chained = with(&with(&two_ports(port), "name", conf["name"].clone()), "prevResult", result);
    debian("ADD", &chained, id, netns);
    pod
}

/// The firewall of a node where Debian's chain has run, without any Pod.
fn ran_before(node: &Node) -> Vec<String> {
    let pod = their_pod(node, "old-0", &bridge());
    debian("DEL", &two_ports(7080), "old-0", pod.to_str().unwrap());
    debian("DEL", &bridge(), "old-0", pod.to_str().unwrap());
    fs::remove_file("/var/lib/cni/flannel/old-0").unwrap();
    let before = firewall();
    assert!(before.iter().any(|line| line.contains("CNI-HOSTPORT-DNAT")), "{before:#?}");
    assert!(!before.iter().any(|line| line.contains("old-0")), "{before:#?}");
    before
}

/// The ways in which a runtime may ask us: each a list of configurations, last plugin first.
fn ways() -> [Vec<Value>; 3] {
    [vec![portmap(), flannel()], vec![native()], vec![portmap(), bridge()]]
}

/// True when both hold the same lines, in whatever order chains are listed.
fn same(one: &[String], other: &[String]) -> bool {
    let sorted = |lines: &[String]| {
        let mut lines = lines.to_vec();
        lines.sort();
        lines
    };
    sorted(one) == sorted(other)
}

fn del_of_theirs(node: &Node) {
    let before = ran_before(node);
    for way in ways() {
        let pod = their_pod(node, "old-1", &bridge());
        let made = firewall();
        assert!(made.iter().any(|line| line.contains("-N CNI-") || line.contains(":CNI-DN-")), "{made:#?}");
        let called = who_called(&pod, addr("0.0.0.0:80"), || say(addr("127.0.0.1:8080")));
        assert_eq!(called.to_string(), "172.7.21.1", "Debian's chain works here");
        for conf in &way {
            node.del(conf, "old-1", &pod).silent();
            node.del(conf, "old-1", &pod).silent();
        }
        let after = firewall();
        assert!(same(&after, &before), "{way:?}\n{after:#?}\n{before:#?}");
        let _ = fs::remove_file("/var/lib/cni/flannel/old-1");
        assert_eq!(node.files(), [], "{way:?}");
    }
}

fn del_without_namespace(node: &Node) {
    let before = ran_before(node);
    for way in ways() {
        for netns in ["", "/run/netns/gone", "/run/flannel/subnet.env"] {
            let pod = their_pod(node, "old-1", &bridge());
            let links = node.links();
            node.remove_pod(&pod);
            crate::ports::eventually(|| node.links() != links);
            way.iter().for_each(|conf| node.verb("DEL", conf, "old-1", netns).silent());
            let after = firewall();
            assert!(same(&after, &before), "{way:?} {netns}\n{after:#?}");
            let _ = fs::remove_file("/var/lib/cni/flannel/old-1");
            assert_eq!(node.files(), [], "{way:?} {netns}");
        }
    }
}

fn gc_of_theirs(node: &Node) {
    let before = ran_before(node);
    let conf = with(&native(), "cniVersion", json!("1.1.0"));
    let gc = |valid: Value| {
        let conf = with(&conf, "cni.dev/valid-attachments", valid).to_string();
        node.exec("netd-cni", &[("CNI_COMMAND", "GC")], &conf).silent();
    };
    let pod = their_pod(node, "old-1", &bridge());
    let made = firewall();
    gc(json!([{"containerID": "old-1", "ifname": "eth0"}]));
    assert!(same(&firewall(), &made), "who is valid keeps everything");
    node.remove_pod(&pod);
    gc(json!([]));
    assert!(same(&firewall(), &before));
    // Nothing else names this container any more (plugins#810): its rules do, by their comments.
    their_pod(node, "old-2", &bridge());
    fs::remove_dir_all("/var/lib/cni/networks/cbr0").unwrap();
    fs::remove_dir_all("/var/lib/cni/flannel").unwrap();
    gc(json!([{"containerID": "old-1", "ifname": "eth0"}]));
    let after = firewall();
    assert!(same(&after, &before), "{after:#?}");
}

/// The rules that versions 1.6 and later of the reference plugins make with nftables.
const NFT_RULES: &str = r#"
table ip cni_hostport {
	chain hostports {
		tcp dport 8080 dnat to 172.7.21.2:80 comment "old-1"
		tcp dport 8081 dnat to 172.7.21.3:80 comment "old-2"
	}
	chain masquerading {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 172.7.21.2 ip daddr 172.7.21.2 masquerade comment "old-1"
	}
}
table ip6 cni_hostport {
	chain hostports {
		tcp dport 8080 dnat to [fd00::2]:80 comment "old-1"
	}
}
table inet cni_plugins_masquerade {
	chain masq_checks {
		ip saddr 172.7.21.2 ip daddr != 172.7.21.0/24 masquerade comment "HASH1, net: cbr0, if: eth0, id: old-1"
		ip saddr 172.7.21.3 ip daddr != 172.7.21.0/24 masquerade comment "HASH2, net: cbr0, if: eth0, id: old-2"
	}
}
"#;

fn nft_rules(node: &Node) {
    // A file that names the container alone is one of host-local's where a runtime has made the name up.
    const SECOND: &str = "110ec58a-a0f2-4ac4-8393-c866d813b8d1";
    let hash =
        |text: &str| output("sh", &["-c", &format!("printf %s {text} | sha512sum | cut -c1-16")]).trim().to_owned();
    let load = || {
        let of = |id: &str| format!("{}-{}", hash("cbr0"), hash(&format!("eth0:{id}")));
        let text = NFT_RULES.replace("HASH1", &of("old-1")).replace("HASH2", &of(SECOND)).replace("old-2", SECOND);
        fs::write("/run/rules.nft", format!("flush ruleset\n{text}")).unwrap();
        output("nft", &["-f", "/run/rules.nft"]);
    };
    let lines = |id: &str| firewall().iter().filter(|line| line.contains(id)).count();
    load();
    assert_eq!((lines("old-1"), lines(SECOND)), (4, 2));
    node.verb("DEL", &native(), "old-1", "").silent();
    assert_eq!((lines("old-1"), lines(SECOND)), (0, 2));
    load();
    node.verb("DEL", &portmap(), "old-1", "").silent();
    assert_eq!((lines("old-1"), lines(SECOND)), (1, 2), "portmap does not answer for the masquerade");
    node.verb("DEL", &flannel(), "old-1", "").silent();
    assert_eq!((lines("old-1"), lines(SECOND)), (0, 2));
    load();
    let conf = with(&native(), "cniVersion", json!("1.1.0"));
    let conf = with(&conf, "cni.dev/valid-attachments", json!([{"containerID": SECOND, "ifname": "eth0"}]));
    node.exec("netd-cni", &[("CNI_COMMAND", "GC")], &conf.to_string()).silent();
    assert_eq!((lines("old-1"), lines(SECOND)), (3, 2), "portmap's rules do not say their network");
    // A full range of Pods that are gone without a DEL: their addresses come back without their rules.
    load();
    fs::create_dir_all("/var/lib/cni/networks/cbr0").unwrap();
    for (host, owner) in (2..=254).map(|host| (host, if host == 7 { "old-1\r\neth0" } else { SECOND })) {
        fs::write(format!("/var/lib/cni/networks/cbr0/172.7.21.{host}"), owner).unwrap();
    }
    node.attached(&native(), "web-1");
    assert_eq!((lines("old-1"), lines(SECOND)), (0, 1), "of a container alone the masquerade has no name");
}

fn others_stay(node: &Node) {
    ran_before(node);
    their_pod(node, "old-1", &bridge());
    let other = with(&with(&bridge(), "name", json!("other")), "bridge", json!("br9"));
    let other = with(&other, "ipam", json!({"type": "host-local", "subnet": "10.9.0.0/24"}));
    output("iptables", &["-t", "nat", "-N", "MINE"]);
    output(
        "iptables",
        &["-t", "nat", "-A", "POSTROUTING", "-m", "comment", "--comment", "name: \"cbr0\" id: \"x\"", "-j", "MINE"],
    );
    let kept = firewall();
    let pod = node.pod();
    debian("ADD", &other, "old-3", pod.to_str().unwrap());
    let with_other = firewall();
    assert_ne!(kept, with_other);
    let conf = with(&native(), "cniVersion", json!("1.1.0"));
    let conf = with(&conf, "cni.dev/valid-attachments", json!([{"containerID": "old-1", "ifname": "eth0"}]));
    node.exec("netd-cni", &[("CNI_COMMAND", "GC")], &conf.to_string()).silent();
    node.verb("DEL", &native(), "unknown", "").silent();
    node.verb("DEL", &native(), "old-3", "").silent();
    assert_eq!(firewall(), with_other, "another network, another container, somebody's own rules");
    debian("DEL", &other, "old-3", pod.to_str().unwrap());
    assert!(same(&firewall(), &kept));
}

fn shaping_link(node: &Node) {
    let hash = output("sh", &["-c", "printf %s cbr0old-1 | sha512sum | cut -c1-12"]);
    let name = format!("bwp{}", hash.trim());
    output("ip", &["link", "add", &name, "type", "ifb"]);
    node.verb("DEL", &native(), "old-2", "").silent();
    assert!(node.links().contains(&name));
    node.verb("DEL", &native(), "old-1", "").silent();
    assert!(!node.links().contains(&name));
}

fn named_link(node: &Node) {
    let pod = node.pod();
    let result = debian("ADD", &bridge(), "old-1", pod.to_str().unwrap());
    let links = node.links();
    // Its hardware address is another's: no proof.
    let mut wrong = result.clone();
    wrong["interfaces"].as_array_mut().unwrap().retain(|i| i["sandbox"].is_null());
    wrong["interfaces"][1]["mac"] = json!("02:00:00:00:00:09");
    let before = fs::read("/var/lib/cni/networks/cbr0/172.7.21.2").unwrap();
    node.verb("DEL", &with(&native(), "prevResult", wrong), "old-1", "").silent();
    assert_eq!(node.links(), links);
    fs::write("/var/lib/cni/networks/cbr0/172.7.21.2", before).unwrap();
    node.verb("DEL", &with(&native(), "prevResult", result), "old-1", "").silent();
    let gone = inside(&pod, || kernel::Rtnl::open().unwrap().link(&"eth0".parse().unwrap()).unwrap().is_none());
    assert!(gone && node.links().len() == links.len() - 1, "{:?}", node.links());
}

fn legacy(node: &Node) {
    let listing = || Command::new("iptables-legacy").args(["-t", "nat", "-S"]).output().unwrap();
    let notice = |id: &str| {
        let pod = node.pod();
        debian("ADD", &with(&bridge(), "ipMasq", json!(false)), id, pod.to_str().unwrap());
        fs::write("/run/stdin", native().to_string()).unwrap();
        let output = Command::new(node.plugin("netd-cni"))
            .envs([("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", id), ("CNI_IFNAME", "eth0")])
            .env("CNI_NETNS", &pod)
            .stdin(Stdio::from(fs::File::open("/run/stdin").unwrap()))
            .output()
            .unwrap();
        assert!(output.status.success() && output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(notice("old-1"), "", "nothing to report where that table is not in use");
    let before = listing().stdout;
    let text = notice("old-2");
    assert!(text.contains("old-2") && text.contains("CNI-DN-") && text.lines().count() == 1, "{text}");
    assert_eq!(listing().stdout, before);
    // Of our own Pods nothing is reported.
    let (pod, _) = node.attached(&native(), "web-1");
    node.del(&native(), "web-1", &pod).silent();
}

fn nothing_searched_for(node: &Node) {
    let (pod, _) = node.attached(&flannel(), "web-1");
    for conf in [portmap(), flannel()] {
        let program = conf["type"].as_str().unwrap();
        fs::write("/run/stdin", conf.to_string()).unwrap();
        let output = Command::new("strace")
            .args(["-f", "-e", "trace=socket", "-o", "/run/trace"])
            .arg(node.plugin(program))
            .envs([("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "web-1"), ("CNI_IFNAME", "eth0")])
            .env("CNI_NETNS", &pod)
            .stdin(Stdio::from(fs::File::open("/run/stdin").unwrap()))
            .output()
            .unwrap();
        assert!(output.status.success());
        let trace = fs::read_to_string("/run/trace").unwrap();
        assert!(!trace.contains("NETLINK_NETFILTER"), "{program}: {trace}");
    }
    assert_eq!(node.files(), []);
}

fn ours_then_theirs(node: &Node) {
    let before = ran_before(node);
    let pod = node.pod();
    let result = node.add(&flannel(), "web-1", &pod).result();
    let portmap = with(&portmap(), "cniVersion", json!("0.3.1"));
    let chained = with(&mapped(&portmap, "tcp", 8080, 80, ""), "prevResult", result);
    node.add(&chained, "web-1", &pod).result();
    assert_eq!(elements(), 2);
    debian("DEL", &portmap, "web-1", pod.to_str().unwrap());
    let stored = fs::read_to_string("/var/lib/cni/flannel/web-1").unwrap();
    debian("DEL", &serde_json::from_str(&stored).unwrap(), "web-1", pod.to_str().unwrap());
    fs::remove_file("/var/lib/cni/flannel/web-1").unwrap();
    // They know nothing of our table: GC does.
    assert_eq!(elements(), 2);
    for conf in [portmap, flannel()] {
        let program = conf["type"].as_str().unwrap();
        let conf = with(&conf, "cniVersion", json!("1.1.0"));
        node.exec(program, &[("CNI_COMMAND", "GC")], &conf.to_string()).silent();
    }
    assert_eq!((elements(), node.files()), (0, Vec::new()));
    output("nft", &["delete", "table", "inet", "netd-ports"]);
    assert!(same(&firewall(), &before));
}
