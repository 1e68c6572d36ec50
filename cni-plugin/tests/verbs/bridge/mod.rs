//! The name `bridge`: the reference bridge plugin's configuration, with the expectations of its own tests.
//!
//! What those tests verify from inside the plugin (an address given to a bridge, a flag of it) is verified here in
//! the kernel after an ADD.

pub(crate) mod address;
pub(crate) mod stock;
pub(crate) mod table;
pub(crate) mod vlan;

use std::path::Path;
use std::process::Command;

use kernel::link::LinkState;
use kernel::{Netns, Rtnl};
use netstate::IfName;
use serde_json::{Value, json};

use crate::node::{Node, bound, first_address, host_link, inside, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("bridge_layer2_wires_the_link_and_nothing_else", layer2),
    ("bridge_explicit_mac_comes_from_the_strongest_source", explicit_mac),
    ("bridge_promiscuous_mode_is_set_and_excludes_hairpin", promiscuous),
    ("bridge_ports_are_isolated_when_asked", isolated),
    ("bridge_isolated_pods_reach_the_host_and_not_each_other", isolated_pods),
    ("bridge_container_interface_stays_down_in_layer2_only", interface_disabled),
    ("bridge_del_of_the_unknown_succeeds", del_unconfigured),
    ("bridge_ipam_other_than_host_local_is_refused_by_name", foreign_ipam),
    ("bridge_masquerades_every_subnet_of_the_network", masquerades),
    ("bridge_chain_with_portmap_opens_and_closes_ports", chained),
    ("bridge_networks_live_side_by_side_and_are_collected_apart", several_networks),
];

/// Every version of the specification.
pub(crate) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A network of layer 2 on `bridge0`.
pub(crate) fn plain(version: &str) -> Value {
    json!({"cniVersion": version, "name": "testConfig", "type": "bridge", "bridge": "bridge0"})
}

/// A network with `subnets`, one address from each; its gateways on the bridge.
pub(crate) fn routed(version: &str, subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
    let conf = with(&plain(version), "ipam", json!({"type": "host-local", "ranges": ranges}));
    with(&conf, "isDefaultGateway", json!(true))
}

/// The link called `name` in the calling thread's namespace.
pub(crate) fn link(name: &str) -> LinkState {
    find(name).unwrap_or_else(|| panic!("no link {name}"))
}

pub(crate) fn find(name: &str) -> Option<LinkState> {
    Rtnl::open().unwrap().link(&IfName::new(name).unwrap()).unwrap()
}

pub(crate) fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What `ip -d -j link show` says of a link.
pub(crate) fn details(name: &str) -> Value {
    let output = Command::new("ip").args(["-d", "-j", "link", "show", "dev", name]).output().unwrap();
    serde_json::from_slice::<Value>(&output.stdout).unwrap()[0].clone()
}

pub(crate) fn addresses(name: &str) -> Vec<String> {
    let index = link(name).index;
    let all = Rtnl::open().unwrap().addresses_of(index).unwrap();
    all.iter().map(|(addr, len)| format!("{addr}/{len}")).filter(|text| !text.starts_with("fe80:")).collect()
}

fn layer2(node: &Node) {
    for version in VERSIONS {
        for ipam in [None, Some(json!({})), Some(json!({"type": ""}))] {
            let mut conf = plain(version);
            if let Some(ipam) = ipam {
                conf["ipam"] = ipam;
            }
            let pod = node.pod();
            let added = node.add(&conf, "web", &pod);
            if ["0.1.0", "0.2.0"].contains(&version) {
                // Those versions have no word for a network without addresses.
                let (code, text) = added.error();
                assert!(code == 1 && text.contains("without addresses"), "{text}");
                assert!(find(&host_link("web")).is_none());
                continue;
            }
            let result = added.result();
            assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
            assert!(result.get("ips").is_none() && result.get("routes").is_none(), "{result}");
            assert_eq!(link(&host_link("web")).master_index, Some(link("bridge0").index));
            assert_eq!(addresses("bridge0"), Vec::<String>::new());
            inside(&pod, || {
                assert!(link("eth0").link.up);
                assert_eq!(addresses("eth0"), Vec::<String>::new());
            });
            if ["0.4.0", "1.0.0", "1.1.0"].contains(&version) {
                node.check(&conf, "web", &pod, &result).silent();
            }
            node.del(&conf, "web", &pod).silent();
            assert!(inside(&pod, || find("eth0")).is_none() && find(&host_link("web")).is_none());
        }
    }
    assert_eq!(node.files(), []);
}

fn explicit_mac(node: &Node) {
    let mac = |n: u8| format!("02:00:00:00:00:{n:02x}");
    for version in VERSIONS {
        let base = routed(version, &["10.1.2.0/24"]);
        let in_args = with(&base, "args", json!({"cni": {"mac": mac(2)}}));
        // The reference's own test writes it so.
        let in_runtime = with(&in_args, "RuntimeConfig", json!({"mac": mac(3)}));
        for (conf, expected) in [(&base, mac(1)), (&in_args, mac(2)), (&in_runtime, mac(3))] {
            let pod = node.pod();
            let vars = [
                ("CNI_COMMAND", "ADD"),
                ("CNI_CONTAINERID", "web"),
                ("CNI_NETNS", pod.to_str().unwrap()),
                ("CNI_IFNAME", "eth0"),
                ("CNI_PATH", "/run/bin"),
                ("CNI_ARGS", "IgnoreUnknown=true;MAC=02:00:00:00:00:01"),
            ];
            let result = node.exec("bridge", &vars, &conf.to_string()).result();
            if version.starts_with("0.3") || version >= "0.4" {
                assert_eq!(result["interfaces"][2]["mac"], json!(expected), "{version}");
            }
            assert_eq!(inside(&pod, || link("eth0").link.mac.unwrap().to_string()), expected, "{version}");
            node.del(conf, "web", &pod).silent();
        }
    }
}

/// Attaches a new Pod; answers its namespace and the result.
pub(crate) fn attached(node: &Node, conf: &Value, id: &str) -> (std::path::PathBuf, Value) {
    let pod = node.pod();
    let result = node.add(conf, id, &pod).result();
    (pod, result)
}

fn promiscuous(node: &Node) {
    let (_, _) = attached(node, &plain("1.0.0"), "web-1");
    assert_eq!(details("bridge0")["promiscuity"], json!(0));
    let conf = with(&plain("1.0.0"), "promiscMode", json!(true));
    attached(node, &conf, "web-2");
    assert!(details("bridge0")["flags"].as_array().unwrap().contains(&json!("PROMISC")));
    let both = with(&conf, "hairpinMode", json!(true));
    let (code, text) = node.add(&both, "web-3", &node.pod()).error();
    assert!(code == 7 && text.contains("cannot set hairpin mode and promiscuous mode at the same time"), "{text}");
}

fn isolated(node: &Node) {
    for (number, (key, hairpin, isolated)) in
        [("mtu", false, false), ("portIsolation", false, true), ("hairpinMode", true, false)].into_iter().enumerate()
    {
        let value = if key == "mtu" { json!(1400) } else { json!(true) };
        let id = format!("web-{number}");
        attached(node, &with(&plain("1.0.0"), key, value), &id);
        let port = &details(&host_link(&id))["linkinfo"]["info_slave_data"];
        assert_eq!((&port["hairpin"], &port["isolated"]), (&json!(hairpin), &json!(isolated)), "{key}");
    }
}

fn isolated_pods(node: &Node) {
    let reaches = |from: &Path, target: std::net::SocketAddr, millis: u64| {
        inside(from, || std::net::TcpStream::connect_timeout(&target, std::time::Duration::from_millis(millis)).is_ok())
    };
    for (bridge, subnet, isolated) in [("bridge0", "10.1.2.0/24", true), ("bridge1", "10.1.3.0/24", false)] {
        let mut conf = with(&routed("1.0.0", &[subnet]), "portIsolation", json!(isolated));
        (conf["bridge"], conf["name"]) = (json!(bridge), json!(bridge));
        let (first, _) = attached(node, &conf, &format!("{bridge}-1"));
        let (second, result) = attached(node, &conf, &format!("{bridge}-2"));
        let listener = inside(&second, || bound(|| std::net::TcpListener::bind((first_address(&result), 80))));
        let millis = if isolated { 1500 } else { 900 };
        assert_eq!(reaches(&first, listener.local_addr().unwrap(), millis), !isolated, "Pod to Pod");
        let gateway = subnet.replace("0/24", "1");
        let on_host = bound(|| std::net::TcpListener::bind((gateway.as_str(), 80)));
        assert!(reaches(&first, on_host.local_addr().unwrap(), 10_000), "Pod to host");
        assert!(std::net::TcpStream::connect(listener.local_addr().unwrap()).is_ok(), "host to Pod");
    }
}

fn interface_disabled(node: &Node) {
    let down = with(&plain("1.0.0"), "disableContainerInterface", json!(true));
    let (pod, result) = attached(node, &down, "web-1");
    assert!(!inside(&pod, || link("eth0").link.up));
    let host = link(&host_link("web-1"));
    assert!(host.link.up && !host.running, "without a carrier from the other side");
    node.check(&down, "web-1", &pod, &result).silent();
    node.del(&down, "web-1", &pod).silent();
    let both = with(&routed("1.0.0", &["10.1.2.0/24"]), "disableContainerInterface", json!(true));
    let before = node.links();
    let (code, text) = node.add(&both, "web-2", &node.pod()).error();
    assert!(code == 7 && text.contains("disableContainerInterface") && text.contains("ipam"), "{text}");
    assert_eq!(node.links(), before);
}

fn del_unconfigured(node: &Node) {
    for version in VERSIONS {
        let conf = routed(version, &["10.1.2.0/24"]);
        for path in [node.pod().to_str().unwrap(), "", "/run/netns/never-there"] {
            node.verb("DEL", &conf, "web", path).silent();
        }
    }
    assert_eq!((node.files(), node.links()), (vec![], vec!["lo".to_owned()]));
}

fn foreign_ipam(node: &Node) {
    for kind in ["dhcp", "static", "whereabouts"] {
        let conf = with(&plain("1.0.0"), "ipam", json!({"type": kind, "anything": 1}));
        for command in ["ADD", "STATUS"] {
            let conf = with(&conf, "cniVersion", json!("1.1.0"));
            let (code, text) = node.verb(command, &conf, "web", node.pod().to_str().unwrap()).error();
            assert!([2, 50].contains(&code) && text.contains(&format!("ipam.type={kind}")), "{code} {text}");
        }
        node.verb("DEL", &conf, "web", "").silent();
    }
    let untyped = with(&plain("1.0.0"), "ipam", json!({"subnet": "10.1.2.0/24"}));
    let (code, text) = node.add(&untyped, "web", &node.pod()).error();
    assert!(code == 7 && text.contains("ipam.type"), "{text}");
    let backend = with(&with(&plain("1.0.0"), "ipMasq", json!(true)), "ipMasqBackend", json!("iptables"));
    let (code, text) = node.add(&backend, "web", &node.pod()).error();
    assert!(code == 2 && text.contains("ipMasqBackend=iptables"), "{text}");
    assert_eq!(node.links(), ["lo"]);
}

fn masquerades(node: &Node) {
    for (number, version) in VERSIONS.iter().enumerate().skip(2) {
        for backend in ["", "nftables"] {
            let mut conf = with(&routed(version, &["10.1.2.0/24", "2001:db8:1::/64"]), "ipMasq", json!(true));
            conf["ipMasqBackend"] = json!(backend);
            conf["ipam"]["ranges"][0] = json!([{"subnet": "10.1.2.0/30"}, {"subnet": "10.1.9.0/24"}]);
            let first = node.pod();
            node.add(&conf, &format!("web-{number}"), &first).result();
            // Two Pods whose addresses come from two subnets: neither's rule may replace the other's.
            let second = node.pod();
            node.add(&conf, &format!("db-{number}"), &second).result();
            let rules = Command::new("nft").args(["list", "table", "inet", "netd-masq-testConfig"]).output().unwrap();
            let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
            for subnet in ["ip saddr 10.1.2.0/30", "ip saddr 10.1.9.0/24", "ip6 saddr 2001:db8:1::/64"] {
                assert_eq!(rules.matches(subnet).count(), 1, "{rules}");
            }
            node.del(&conf, &format!("web-{number}"), &first).silent();
            node.del(&conf, &format!("db-{number}"), &second).silent();
        }
    }
}

fn chained(node: &Node) {
    let conf = routed("1.0.0", &["10.1.2.0/24"]);
    let (pod, result) = attached(node, &conf, "web");
    let mappings = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let portmap = json!({"cniVersion": "1.0.0", "name": "testConfig", "type": "portmap", "prevResult": result,
                         "capabilities": {"portMappings": true}, "runtimeConfig": mappings});
    assert_eq!(node.add(&portmap, "web", &pod).result(), result);
    let target = std::net::SocketAddr::new(first_address(&result), 80);
    let host_port = std::net::SocketAddr::new("10.1.2.1".parse().unwrap(), 8080);
    crate::attach::who_called(&pod, target, || crate::attach::say(host_port));
    node.del(&portmap, "web", &pod).silent();
    node.del(&conf, "web", &pod).silent();
    assert_eq!(node.files(), []);
    let own = with(&conf, "runtimeConfig", mappings);
    let added = node.add(&own, "web-2", &node.pod());
    assert!(added.ok && added.notice.contains("runtimeConfig.portMappings"), "ports are portmap's: {added:?}");
    assert_eq!(crate::ports::elements(), 0);
}

fn several_networks(node: &Node) {
    let one = routed("1.1.0", &["10.1.2.0/24"]);
    let mut two = routed("1.1.0", &["10.1.3.0/24", "2001:db8:1::/64"]);
    (two["name"], two["bridge"]) = (json!("second"), json!("bridge1"));
    let (pod1, result1) = attached(node, &one, "web-1");
    let (_, result2) = attached(node, &two, "web-2");
    assert_eq!(link(&host_link("web-1")).master_index, Some(link("bridge0").index));
    assert_eq!(link(&host_link("web-2")).master_index, Some(link("bridge1").index));
    // Routed by the node, from one bridge to the other.
    let target = std::net::SocketAddr::new(first_address(&result1), 80);
    let netns = Path::new("/run/netns/pod1");
    let caller = crate::attach::who_called(&pod1, target, || inside(netns, || crate::attach::say(target)));
    assert_eq!(caller, first_address(&result2));
    for conf in [&one, &two] {
        node.verb("STATUS", conf, "", "").silent();
    }
    let same_subnet = with(&one, "bridge", json!("bridge2"));
    let (_, text) = node.add(&same_subnet, "web-3", &node.pod()).error();
    assert!(text.contains("bridge bridge0 already has 10.1.2.1/24"), "{text}");
    node.verb("GC", &with(&one, "cni.dev/valid-attachments", json!([])), "", "").silent();
    assert!(find(&host_link("web-1")).is_none() && find(&host_link("web-2")).is_some());
    assert!(node.files().iter().all(|(name, _)| !name.contains("testConfig")), "{:?}", node.files());
    let valid = json!([{"containerID": "web-2", "ifname": "eth0"}]);
    node.verb("GC", &with(&two, "cni.dev/valid-attachments", valid), "", "").silent();
    assert!(find(&host_link("web-2")).is_some());
    assert!(Netns::open(netns).is_ok());
}
