//! Links that are in the way, half made or changed by others; and what was always wrong with those of the predecessor.

use std::fs;
use std::path::Path;
use std::process::Command;

use kernel::link::VethEnd;
use kernel::{Netns, Rtnl};
use netstate::{IfName, Link, LinkKind, MacAddr};
use serde_json::{Value, json};

use crate::node::{DUAL_ENV, Node, SUBNET_ENV, flannel, host_link, inside, native, vars, with};
use crate::state::HostState;

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("half_created_veth_does_not_stop_the_next_add", half_created),
    ("foreign_link_with_a_pods_name_is_refused_and_kept", foreign_link),
    ("bridge_name_taken_by_another_link_is_refused_and_kept", taken_bridge),
    ("bridge_that_lost_its_address_gets_it_back_with_the_next_add", addressless_bridge),
    ("bridge_with_a_foreign_address_is_refused_before_a_pod_is_made", foreign_address),
    ("hairpin_is_on_and_queues_and_addresses_are_set", link_settings),
    ("reused_address_is_known_by_its_new_hardware_address_at_once", reused_address),
    ("one_masquerade_table_serves_all_pods", one_masquerade),
    ("failed_add_leaves_no_bridge_and_no_address_in_the_corrected_lists_way", nothing_in_the_way),
    ("failed_add_leaves_a_bridge_that_pods_use_as_it_was", used_bridge_stays),
    ("ipv6_switched_off_on_the_node_is_reported_as_such", ipv6_off),
    ("no_verb_executes_another_program", one_execution),
];

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn text_of(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn stranger(name: &IfName, kind: LinkKind) {
    let link = Link { kind, mtu: None, mac: None, up: false, master: None };
    Rtnl::open().unwrap().create_link(name, &link).unwrap();
}

fn half_created(node: &Node) {
    for conf in [native(), flannel()] {
        let (first, _) = node.attached(&conf, "first");
        let bridge = if conf["type"] == json!("flannel") { "cni0" } else { "cbr0" };
        let end = |name: IfName, last: u8| VethEnd { name, mac: MacAddr([2, 0, 0, 0, 9, last]) };
        let half = |id: &str, netns: &Path| {
            let mut host = Rtnl::open().unwrap();
            let master = host.link(&name(bridge)).unwrap().unwrap().index;
            let ends = (end(name(&host_link(id)), 1), end(name("eth0"), 2));
            host.create_veth(&ends.0, master, &ends.1, &Netns::open(netns).unwrap(), 1450).unwrap();
        };
        // The record was written and the pair made, nothing more; the runtime comes again, or with a new sandbox.
        for is_same in [true, false] {
            let pod = node.pod();
            let before = HostState::now();
            let record = "/var/lib/cni/netd/cbr0/web-1@eth0";
            std::fs::write(record, "").unwrap();
            std::fs::set_permissions(record, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            half("web-1", &pod);
            let pod = if is_same { pod } else { node.pod() };
            let result = node.add(&conf, "web-1", &pod).result();
            node.check(
                &with(&conf, "cniVersion", json!("1.0.0")),
                "web-1",
                &pod,
                &with(&result, "cniVersion", json!("1.0.0")),
            )
            .silent();
            node.del(&conf, "web-1", &pod).silent();
            HostState::now().must_be(&before, "half a veth pair");
        }
        // Without the record it cannot be distinguished from somebody's work: DEL, which every runtime sends then, makes way.
        let pod = node.pod();
        let before = HostState::now();
        half("web-1", &pod);
        let (code, text) = node.add(&conf, "web-1", &pod).error();
        assert!(code == 101 && text.contains(&host_link("web-1")) && text.contains("DEL it first"), "{text}");
        node.del(&conf, "web-1", &pod).silent();
        HostState::now().must_be(&before, "half a veth pair without a record");
        node.add(&conf, "web-1", &pod).result();
        node.del(&conf, "web-1", &pod).silent();
        node.del(&conf, "first", &first).silent();
        Rtnl::open().unwrap().delete_link(&name(bridge)).unwrap();
    }
}

fn foreign_link(node: &Node) {
    let (first, _) = node.attached(&native(), "first");
    node.del(&native(), "first", &first).silent();
    stranger(&name(&host_link("web-1")), LinkKind::Bridge(Default::default()));
    let before = HostState::now();
    let pod = node.pod();
    let (code, text) = node.add(&native(), "web-1", &pod).error();
    assert!(code == 101 && text.contains(&host_link("web-1")), "{text}");
    HostState::now().must_be(&before, "refused ADD");
    // The runtime's DEL after the failed ADD: no bridge is a Pod's link.
    node.del(&native(), "web-1", &pod).silent();
    let conf = super::modern(&native());
    node.exec("netd-cni", &[("CNI_COMMAND", "GC")], &conf.to_string()).silent();
    HostState::now().must_be(&before, "DEL and GC");
}

fn taken_bridge(node: &Node) {
    stranger(&name("cbr0"), LinkKind::Veth);
    stranger(&name("cni0"), LinkKind::Veth);
    let before = (node.links(), node.files());
    for (conf, bridge) in [(native(), "cbr0"), (flannel(), "cni0")] {
        let (code, text) = node.add(&conf, "web-1", &node.pod()).error();
        assert!(code == 7 && text.contains(bridge) && text.contains("bridge"), "{code} {text}");
        node.verb("DEL", &conf, "web-1", "").silent();
        assert_eq!((node.links(), node.files()), before);
    }
}

fn addressless_bridge(node: &Node) {
    let (old, old_address) = node.attached(&native(), "web-1");
    let mut host = Rtnl::open().unwrap();
    let bridge = host.link(&name("cbr0")).unwrap().unwrap().index;
    host.delete_address(bridge, "172.7.21.1".parse().unwrap(), 24).unwrap();
    host.set_link(&name("cbr0"), &Link { up: false, ..host_bridge() }).unwrap();
    node.attached(&native(), "web-2");
    assert!(host.addresses_of(bridge).unwrap().contains(&("172.7.21.1".parse().unwrap(), 24)));
    let target = std::net::SocketAddr::new(old_address, 80);
    let caller = crate::attach::who_called(&old, target, || crate::attach::say(target));
    assert_eq!(caller.to_string(), "172.7.21.1", "Pods that were there reach the host again");
}

fn host_bridge() -> Link {
    let found = Rtnl::open().unwrap().link(&name("cbr0")).unwrap().unwrap();
    Link { mtu: None, mac: None, ..found.link }
}

fn foreign_address(node: &Node) {
    let (first, _) = node.attached(&native(), "first");
    node.del(&native(), "first", &first).silent();
    node.attached(&native(), "stays");
    let mut host = Rtnl::open().unwrap();
    let bridge = host.link(&name("cbr0")).unwrap().unwrap().index;
    host.delete_address(bridge, "172.7.21.1".parse().unwrap(), 24).unwrap();
    host.add_address(bridge, "10.99.0.1".parse().unwrap(), 24).unwrap();
    let before = HostState::now();
    let pod = node.pod();
    let (code, text) = node.add(&native(), "web-1", &pod).error();
    assert!(code == 7 && text.contains("already has an IP address different from 172.7.21.1/24"), "{text}");
    assert!(text.contains("10.99.0.1/24") && text.contains("forceAddress"), "what is there, and what to do: {text}");
    HostState::now().must_be(&before, "refused ADD");
    inside(&pod, || assert!(Rtnl::open().unwrap().link(&name("eth0")).unwrap().is_none()));
}

fn link_settings(node: &Node) {
    for (conf, bridge) in [(native(), "cbr0"), (flannel(), "cni0")] {
        let id = format!("web-{bridge}");
        let (pod, _) = node.attached(&conf, &id);
        let host = host_link(&id);
        assert!(text_of("ip", &["-d", "-o", "link", "show", &host]).contains("hairpin on"));
        // NET_ADDR_SET is 3: whoever gives out addresses leaves such a link alone (systemd.link(5) MACAddressPolicy).
        let set = |dev: &str| {
            let json = text_of("ip", &["-j", "-d", "link", "show", dev]);
            let links: serde_json::Value = serde_json::from_str(&json).unwrap();
            (links[0]["addrgenmode"].clone(), links[0]["txqlen"].as_u64().unwrap(), links[0]["address"].clone())
        };
        for dev in [host.as_str(), bridge] {
            assert_eq!(set(dev).1, 1000, "{dev}");
            assert_eq!(assign_type(dev), "3", "{dev}");
        }
        inside(&pod, || {
            assert_eq!(set("eth0").1, 1000);
            assert_eq!(assign_type("eth0"), "3");
        });
        node.del(&conf, &id, &pod).silent();
        Rtnl::open().unwrap().delete_link(&name(bridge)).unwrap();
    }
}

/// `addr_assign_type` of `dev` in the calling thread's namespace: a sysfs of that namespace is mounted for the look.
fn assign_type(dev: &str) -> String {
    let script = format!("mount -t sysfs none /sys && cat /sys/class/net/{dev}/addr_assign_type");
    text_of("unshare", &["-m", "sh", "-c", &script]).trim().to_owned()
}

fn reused_address(node: &Node) {
    let neighbour = || text_of("ip", &["neigh", "show", "172.7.21.77"]);
    node.attached(&native(), "other");
    for last in 1..4_u8 {
        let mac = format!("02:00:00:00:00:{last:02x}");
        let conf = with(&native(), "runtimeConfig", json!({"ips": ["172.7.21.77"], "mac": mac}));
        let id = format!("web-{last}");
        let (pod, address) = node.attached(&conf, &id);
        assert!(neighbour().contains(&mac), "{}", neighbour());
        let target = std::net::SocketAddr::new(address, 80);
        crate::attach::who_called(&pod, target, || crate::attach::say(target));
        node.del(&conf, &id, &pod).silent();
        assert_eq!(neighbour(), "", "nobody has it now");
    }
}

fn one_masquerade(node: &Node) {
    let conf = with(&native(), "ipMasq", json!(true));
    node.attached(&conf, "web-1");
    let one = text_of("nft", &["list", "ruleset"]);
    assert!(one.contains("masquerade"), "{one}");
    let pods: Vec<_> = (2..9).map(|n| (node.attached(&conf, &format!("web-{n}")).0, format!("web-{n}"))).collect();
    assert_eq!(text_of("nft", &["list", "ruleset"]), one);
    for (pod, id) in pods {
        node.del(&conf, &id, &pod).silent();
    }
    assert_eq!(text_of("nft", &["list", "ruleset"]), one);
}

/// Runs one verb under strace(1) and answers what it traced.
pub(crate) fn traced(node: &Node, conf: &serde_json::Value, command: &str, id: &str, netns: &str) -> String {
    std::fs::write("/run/stdin", conf.to_string()).unwrap();
    let output = Command::new("strace")
        .args(["-f", "-s", "64", "-o", "/run/trace", node.plugin(conf["type"].as_str().unwrap()).to_str().unwrap()])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .envs(vars(command, id, netns))
        .stdin(std::fs::File::open("/run/stdin").unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stdout));
    std::fs::read_to_string("/run/trace").unwrap()
}

fn one_execution(node: &Node) {
    let mapping = json!({"portMappings": [{"hostPort": 53, "containerPort": 53, "protocol": "udp"}]});
    let conf = with(&with(&super::modern(&native()), "runtimeConfig", mapping), "ipMasq", json!(true));
    let pod = node.pod();
    let path = pod.to_str().unwrap();
    for command in ["VERSION", "STATUS", "ADD", "DEL", "DEL", "GC"] {
        let trace = traced(node, &conf, command, "web-1", path);
        let executions = trace.lines().filter(|line| line.contains("execve(") || line.contains("execveat(")).count();
        assert_eq!(executions, 1, "{command}");
    }
}

fn reference(subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
    json!({"cniVersion": "1.0.0", "name": "wired", "type": "bridge", "bridge": "br0", "isDefaultGateway": true,
        "ipam": {"type": "host-local", "ranges": ranges}})
}

/// A route that the kernel refuses, long after the bridge and its address were made.
fn broken(conf: &Value) -> Value {
    let mut conf = conf.clone();
    conf["ipam"]["routes"] = json!([{"dst": "10.99.0.0/16", "gw": "10.98.0.1"}]);
    conf
}

fn switch_ipv6(off: &str) {
    for name in ["all", "default"] {
        kernel::sysctl::write(&format!("net/ipv6/conf/{name}/disable_ipv6").parse().unwrap(), off).unwrap();
    }
}

fn nothing_in_the_way(node: &Node) {
    let before = (node.links(), node.files());
    for (wrong, right) in
        [(broken(&reference(&["10.1.0.0/24"])), reference(&["10.2.0.0/24"])), (broken(&native()), native())]
    {
        let pod = node.pod();
        assert_eq!(node.add(&wrong, "web-1", &pod).error().0, 100);
        assert_eq!((node.links(), node.files()), before, "after {wrong}");
        node.add(&right, "web-1", &pod).result();
        node.del(&right, "web-1", &pod).silent();
        // The bridge stays, as ever; an address that another wrong list gave to it does not.
        let bridge = if right["type"] == json!("bridge") { "br0" } else { "cbr0" };
        let addresses = crate::bridge::addresses(bridge);
        crate::bridge::ip(&format!("addr flush dev {bridge}"));
        assert_eq!(node.add(&wrong, "web-1", &pod).error().0, 100);
        assert_eq!(crate::bridge::addresses(bridge), Vec::<String>::new(), "after {wrong}");
        node.add(&right, "web-1", &pod).result();
        assert_eq!(crate::bridge::addresses(bridge), addresses);
        node.del(&right, "web-1", &pod).silent();
        crate::bridge::ip(&format!("link del {bridge}"));
    }
}

fn used_bridge_stays(node: &Node) {
    let conf = reference(&["10.1.0.0/24"]);
    let (pod, _) = node.attached(&conf, "web-1");
    let forced = with(&broken(&reference(&["10.2.0.0/24"])), "forceAddress", json!(true));
    assert_eq!(node.add(&forced, "web-2", &node.pod()).error().0, 100);
    assert!(crate::bridge::addresses("br0").contains(&"10.1.0.1/24".to_owned()), "the address that gave way is back");
    assert_eq!(node.add(&broken(&conf), "web-3", &node.pod()).error().0, 100);
    assert!(node.links().contains(&"br0".to_owned()) && node.links().contains(&host_link("web-1")));
    let gateway = "10.1.0.1".parse().unwrap();
    let reached = inside(&pod, || Rtnl::open().unwrap().route_to(gateway).is_ok());
    assert!(reached);
}

fn ipv6_off(node: &Node) {
    fs::write("/run/flannel/subnet.env", DUAL_ENV).unwrap();
    switch_ipv6("1");
    let before = (node.links(), node.files());
    for conf in [native(), flannel(), reference(&["10.1.0.0/24", "fd00:9::/64"])] {
        let pod = node.pod();
        let (code, text) = node.add(&conf, "web-1", &pod).error();
        assert!(code == 100 && text.contains("IPv6") && text.contains("disable_ipv6"), "{text}");
        assert!(!text.contains("CAP_NET_ADMIN") && !text.contains("could not undo"), "{text}");
        assert_eq!((node.links(), node.files()), before);
    }
    fs::write("/run/flannel/subnet.env", SUBNET_ENV).unwrap();
    for conf in [native(), reference(&["10.2.0.0/24"])] {
        node.add(&conf, "web-1", &node.pod()).result();
        node.verb("DEL", &conf, "web-1", "").silent();
    }
}
