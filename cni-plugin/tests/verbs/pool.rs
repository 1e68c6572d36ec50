//! Networks that share a subnet share its addresses.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::thread;

use serde_json::{Value, json};

use crate::node::{Node, SUBNET_ENV, first_address, flannel, host_link, native, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("networks_of_one_lease_never_give_one_address_twice", one_lease),
    ("adds_of_two_networks_at_once_never_get_one_address", at_once),
    ("pool_is_full_for_every_network_and_reclaimed_for_every_network", full),
    ("address_of_another_network_is_refused_when_it_is_asked_for", asked_for),
    ("networks_that_may_never_meet_avoid_each_others_addresses_only", apart),
];

fn named(conf: &Value, name: &str) -> Value {
    with(&with(conf, "name", json!(name)), "cniVersion", json!("1.1.0"))
}

fn reference(name: &str) -> Value {
    json!({"cniVersion": "1.1.0", "name": name, "type": "bridge", "bridge": "br0", "isGateway": true,
        "ipam": {"type": "host-local", "subnet": "10.7.0.0/29"}})
}

fn host_local(name: &str) -> Value {
    json!({"cniVersion": "1.1.0", "name": name, "type": "host-local",
        "ipam": {"type": "host-local", "subnet": "10.7.0.0/29"}})
}

fn small_lease() {
    fs::write("/run/flannel/subnet.env", SUBNET_ENV.replace("172.7.21.1/24", "172.7.21.1/29")).unwrap();
}

fn one_lease(node: &Node) {
    let networks = [named(&native(), "cbr0"), named(&native(), "second"), named(&flannel(), "third")];
    let mut given: BTreeSet<IpAddr> = BTreeSet::new();
    for round in 0..4 {
        for (at, conf) in networks.iter().enumerate() {
            let (_, address) = node.attached(conf, &format!("web-{round}-{at}"));
            assert!(given.insert(address), "{address} was given twice: {given:?}");
        }
    }
    // What one network gives back is anybody's.
    node.verb("DEL", &networks[0], "web-0-0", "").silent();
    let wanted = json!(["172.7.21.2"]);
    let conf = with(&networks[1], "runtimeConfig", json!({"ips": wanted}));
    assert_eq!(first_address(&node.add(&conf, "web-9", &node.pod()).result()).to_string(), "172.7.21.2");
    for name in ["a", "b"] {
        let (_, address) = node.attached(&reference(name), &format!("ref-{name}"));
        assert!(given.insert(address), "{address} was given twice");
    }
}

fn at_once(node: &Node) {
    let pods: Vec<_> = (0..40).map(|_| node.pod()).collect();
    // The bridge is there before the crowd.
    node.attached(&named(&native(), "cbr0"), "first");
    let given: Vec<IpAddr> = thread::scope(|scope| {
        let adds = pods.iter().enumerate().map(|(at, pod)| {
            let conf = named(&native(), if at % 2 == 0 { "cbr0" } else { "second" });
            scope.spawn(move || first_address(&node.add(&conf, &format!("web-{at}"), pod).result()))
        });
        adds.collect::<Vec<_>>().into_iter().map(|add| add.join().unwrap()).collect()
    });
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), given.len(), "{given:?}");
}

fn full(node: &Node) {
    small_lease();
    let (first, second) = (named(&native(), "cbr0"), named(&native(), "second"));
    let pods: Vec<_> = (0..5)
        .map(|at| {
            let conf = if at < 3 { &first } else { &second };
            (node.attached(conf, &format!("web-{at}")).0, conf)
        })
        .collect();
    for conf in [&first, &second] {
        let (code, text) = node.add(conf, "web-9", &node.pod()).error();
        assert!(code == 11 && text.contains("no IP addresses available"), "{text}");
    }
    // Nobody says DEL for the one of the other network.
    node.remove_pod(&pods[3].0);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while node.links().contains(&host_link("web-3")) {
        assert!(std::time::Instant::now() < deadline);
        thread::yield_now();
    }
    let (_, address) = node.attached(&first, "web-9");
    assert_eq!(address.to_string(), "172.7.21.5", "reclaimed, and those of the living are kept");
    node.verb("DEL", &second, "web-4", "").silent();
    node.attached(&first, "web-10");
}

fn asked_for(node: &Node) {
    let (_, address) = node.attached(&named(&native(), "cbr0"), "web-1");
    let before = node.files();
    let conf = with(&named(&native(), "second"), "runtimeConfig", json!({"ips": [address.to_string()]}));
    let (code, text) = node.add(&conf, "web-2", &node.pod()).error();
    assert!(code == 7 && text.contains("network cbr0 has it"), "{text}");
    assert_eq!(node.files(), before);
}

fn apart(node: &Node) {
    let add = |conf: &Value, id: &str| node.add(conf, id, &node.pod());
    let mut given = BTreeSet::new();
    for (at, name) in ["a", "b", "a", "b"].into_iter().enumerate() {
        let address = first_address(&add(&host_local(name), &format!("web-{at}")).result());
        assert!(given.insert(address), "{address} again, though others are free");
    }
    // The fifth address, and then those of the other network: two macvlan networks with one plan are nobody's fault.
    for at in 4..7 {
        add(&host_local("a"), &format!("web-{at}")).result();
    }
    assert_eq!(add(&host_local("a"), "web-9").error().0, 11);
    let asked = with(&host_local("b"), "runtimeConfig", json!({"ips": ["10.7.0.6"]}));
    assert_eq!(first_address(&add(&asked, "web-10").result()).to_string(), "10.7.0.6");
}
