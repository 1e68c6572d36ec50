//! ADD, CHECK and DEL of `bridge` in every version, for every shape of address: the reference's own table.

use std::fs;
use std::path::Path;

use kernel::Rtnl;
use netstate::LinkKind;
use serde_json::{Value, json};

use super::{VERSIONS, addresses, details, find, link, routed};
use crate::node::{Node, host_link, inside, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("bridge_configures_and_deconfigures_ipv4_in_every_version", |node| configure(node, &V4)),
    ("bridge_configures_and_deconfigures_ipv6_in_every_version", |node| configure(node, &V6)),
    ("bridge_configures_and_deconfigures_dual_stack_in_every_version", |node| configure(node, &DUAL)),
    ("bridge_configures_and_deconfigures_three_subnets_in_every_version", |node| configure(node, &THREE)),
    ("bridge_configures_and_deconfigures_again_and_again", repeat),
];

/// One row of the table.
struct Shape {
    subnets: &'static [&'static str],
    gateways: &'static [&'static str],
    addresses: &'static [&'static str],
}

const V4: Shape = Shape { subnets: &["10.1.2.0/24"], gateways: &["10.1.2.1/24"], addresses: &["10.1.2.2/24"] };

const V6: Shape = Shape { subnets: &["2001:db8::/64"], gateways: &["2001:db8::1/64"], addresses: &["2001:db8::2/64"] };

const DUAL: Shape = Shape {
    subnets: &["192.168.0.0/24", "fd00::/64"],
    gateways: &["192.168.0.1/24", "fd00::1/64"],
    addresses: &["192.168.0.2/24", "fd00::2/64"],
};

const THREE: Shape = Shape {
    subnets: &["192.168.0.0/24", "fd00::/64", "2001:db8::/64"],
    gateways: &["192.168.0.1/24", "fd00::1/64", "2001:db8::1/64"],
    addresses: &["192.168.0.2/24", "fd00::2/64", "2001:db8::2/64"],
};

const RESOLVER: &str = "nameserver 192.0.2.0\ndomain example.com\nsearch example.com\noptions ndots:2\n";

fn configure(node: &Node, shape: &Shape) {
    for version in VERSIONS {
        one_version(node, shape, version, "web");
        super::ip("link del bridge0");
    }
}

fn repeat(node: &Node) {
    for shape in [&V4, &V6, &DUAL] {
        for round in 0..3 {
            let conf = conf(shape, "1.0.0");
            let pod = node.pod();
            let result = node.add(&conf, "web", &pod).result();
            let first = result["ips"][0]["address"].as_str().unwrap();
            assert!(first.contains(&format!("{}/", round + 2)), "the next address each time: {first}");
            node.del(&conf, "web", &pod).silent();
            node.del(&conf, "web", &pod).silent();
        }
        fs::remove_dir_all("/var/lib/cni").unwrap();
        super::ip("link del bridge0");
    }
}

fn conf(shape: &Shape, version: &str) -> Value {
    fs::write("/run/resolv.conf", RESOLVER).unwrap();
    let mut conf = routed(version, shape.subnets);
    conf["ipam"]["resolvConf"] = json!("/run/resolv.conf");
    conf["ipam"]["dataDir"] = json!(format!("/var/lib/cni/{version}"));
    conf
}

fn one_version(node: &Node, shape: &Shape, version: &str, id: &str) {
    let conf = conf(shape, version);
    let pod = node.pod();
    let added = node.add(&conf, id, &pod);
    let is_old = ["0.1.0", "0.2.0"].contains(&version);
    if is_old && shape.subnets.len() > 2 {
        let (code, text) = added.error();
        assert_eq!(code, 1);
        assert!(text.contains(&format!("CNI version {version} does not support more than 1 address per family")));
        // The reference fails here, and the runtime would repeat it for ever.
        node.del(&conf, id, &pod).silent();
        super::ip("link add bridge0 type bridge");
        return;
    }
    let result = added.result();
    assert_eq!(result["dns"]["nameservers"], json!(["192.0.2.0"]), "{result}");
    assert_eq!(result["dns"]["options"], json!(["ndots:2"]));
    if is_old {
        old_result(shape, &result)
    } else {
        interfaces(&result, id, &pod)
    }
    on_the_host(shape, id);
    inside(&pod, || in_the_pod(shape, id));
    assert_eq!(node.files().len(), shape.subnets.len() + 1, "a reservation each, and the record");
    check(node, &conf, id, &pod, &result);
    node.del(&conf, id, &pod).silent();
    assert!(find(&host_link(id)).is_none() && inside(&pod, || find("eth0")).is_none());
    assert_eq!(node.links(), ["bridge0", "lo"], "the bridge stays");
    assert_eq!(node.files(), []);
}

fn old_result(shape: &Shape, result: &Value) {
    for address in shape.addresses {
        let key = if address.contains(':') { "ip6" } else { "ip4" };
        assert_eq!(result[key]["ip"], json!(address));
    }
}

fn interfaces(result: &Value, id: &str, pod: &Path) {
    let listed = result["interfaces"].as_array().unwrap();
    let names: Vec<&str> = listed.iter().map(|i| i["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["bridge0", host_link(id).as_str(), "eth0"]);
    for (index, interface) in listed.iter().enumerate() {
        assert_eq!(interface["mac"].as_str().unwrap().len(), 17);
        let sandbox = (index == 2).then(|| json!(pod.to_str().unwrap()));
        assert_eq!(interface.get("sandbox"), sandbox.as_ref());
    }
    let mac = |name: &str| json!(link(name).link.mac.unwrap().to_string());
    assert_eq!((&listed[0]["mac"], &listed[1]["mac"]), (&mac("bridge0"), &mac(&host_link(id))));
    assert_eq!(listed[2]["mac"], inside(pod, || mac("eth0")));
    for ip in result["ips"].as_array().unwrap() {
        assert_eq!(ip["interface"], json!(2));
    }
}

fn on_the_host(shape: &Shape, id: &str) {
    let (bridge, veth) = (link("bridge0"), link(&host_link(id)));
    assert!(matches!(&bridge.link.kind, LinkKind::Bridge(options) if !options.vlan_filtering));
    let mut found = addresses("bridge0");
    let mut expected: Vec<String> = shape.gateways.iter().map(|text| (*text).to_owned()).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(Rtnl::open().unwrap().links().unwrap().len(), 3, "lo, the bridge, one end");
    assert_eq!((veth.link.kind.clone(), veth.master_index), (LinkKind::Veth, Some(bridge.index)));
    assert_ne!(bridge.link.mac, veth.link.mac);
    let shown = details(&host_link(id));
    assert_eq!(shown["linkinfo"]["info_slave_data"]["isolated"], json!(false));
    assert_eq!(shown["txqlen"], json!(1000));
}

fn in_the_pod(shape: &Shape, id: &str) {
    let eth0 = link("eth0");
    assert_eq!(eth0.link.kind, LinkKind::Veth);
    let shown = details("eth0");
    assert_eq!((&shown["operstate"], &shown["txqlen"]), (&json!("UP"), &json!(1000)), "{id}");
    let mut found = addresses("eth0");
    let mut expected: Vec<String> = shape.addresses.iter().map(|text| (*text).to_owned()).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let routes = Rtnl::open().unwrap().routes().unwrap();
    for v4 in [true, false] {
        let defaults: Vec<_> =
            routes.iter().filter(|(key, _)| key.dst.is_default() && key.dst.is_ipv4() == v4).collect();
        let gateway = shape.gateways.iter().find(|text| text.contains('.') == v4);
        assert_eq!(defaults.len(), usize::from(gateway.is_some()), "{defaults:?}");
        if let (Some((_, route)), Some(gateway)) = (defaults.first(), gateway) {
            let gateway = gateway.split('/').next().unwrap().parse().unwrap();
            assert_eq!((route.via, route.src), (Some(gateway), None));
        }
    }
}

fn check(node: &Node, conf: &Value, id: &str, pod: &Path, result: &Value) {
    let version = conf["cniVersion"].as_str().unwrap();
    if version < "0.4" {
        let (code, text) = node.check(conf, id, pod, result).error();
        assert!(code == 1 && text.contains("does not allow CHECK"), "{text}");
        return;
    }
    node.check(conf, id, pod, result).silent();
    let mut other = result.clone();
    other["interfaces"][0]["mac"] = json!("02:00:00:00:00:99");
    assert_eq!(node.check(conf, id, pod, &other).error().0, 102);
    let promiscuous = with(conf, "promiscMode", json!(true));
    let (code, text) = node.check(&promiscuous, id, pod, result).error();
    assert!(code == 102 && text.contains("promisc"), "{text}");
}
