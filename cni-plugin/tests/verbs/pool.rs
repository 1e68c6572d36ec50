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
    ("networks_of_one_lease_share_it_wherever_they_keep_their_addresses", other_directories),
    ("addresses_stay_their_pods_when_the_directory_changes", changed_directory),
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

fn kept_in(conf: &Value, dir: &str) -> Value {
    with(conf, "ipam", json!({"dataDir": dir}))
}

fn other_directories(node: &Node) {
    fs::create_dir_all("/run/pool").unwrap();
    std::os::unix::fs::symlink("/run/pool", "/run/alias").unwrap();
    let networks = [
        named(&native(), "cbr0"),
        kept_in(&named(&native(), "second"), "/run/pool"),
        kept_in(&named(&flannel(), "third"), "/run/third"),
        kept_in(&named(&native(), "fourth"), "/run/alias/"),
    ];
    let mut given: BTreeSet<IpAddr> = BTreeSet::new();
    for round in 0..3 {
        for (at, conf) in networks.iter().enumerate() {
            let (_, address) = node.attached(conf, &format!("web-{round}-{at}"));
            assert!(given.insert(address), "{address} was given twice: {given:?}");
        }
    }
    let asked = with(&networks[0], "runtimeConfig", json!({"ips": ["172.7.21.3"]}));
    let (code, text) = node.add(&asked, "web-9", &node.pod()).error();
    assert!(code == 7 && text.contains("network second has it"), "{text}");
    // What is planted in the list's place is not followed.
    fs::remove_dir_all("/var/lib/cni/netd/.pools").unwrap();
    fs::create_dir_all("/run/elsewhere").unwrap();
    std::os::unix::fs::symlink("/run/elsewhere", "/var/lib/cni/netd/.pools").unwrap();
    let (code, text) = node.add(&networks[1], "web-10", &node.pod()).error();
    assert!(code == 5 && text.contains("symbolic link"), "{text}");
    assert_eq!(fs::read_dir("/run/elsewhere").unwrap().count(), 0);
}

fn changed_directory(node: &Node) {
    small_lease();
    for (before, after) in
        [("/var/lib/cni/networks", "/run/new"), ("/run/new", "/var/lib/cni/networks"), ("/run/new", "/run/newer")]
    {
        let (before, after) = (kept_in(&named(&native(), "cbr0"), before), kept_in(&named(&native(), "cbr0"), after));
        let pods: Vec<_> = (0..3).map(|at| node.attached(&before, &format!("old-{at}"))).collect();
        let (_, address) = node.attached(&after, "new-0");
        assert!(pods.iter().all(|(_, old)| *old != address), "{address} is another Pod's: {pods:?}");
        node.del(&after, "old-0", &pods[0].0).silent();
        // A record that is lost is searched for.
        fs::remove_file("/var/lib/cni/netd/cbr0/old-1@eth0").unwrap();
        node.del(&after, "old-1", &pods[1].0).silent();
        for at in 1..=3 {
            node.attached(&after, &format!("new-{at}"));
        }
        assert_eq!(node.add(&after, "web-9", &node.pod()).error().0, 11, "one of the former ones lives on");
        let gc = with(&after, "cni.dev/valid-attachments", json!([]));
        node.exec("netd-cni", &[("CNI_COMMAND", "GC")], &gc.to_string()).silent();
        for dir in ["/var/lib/cni/networks/cbr0", "/run/new/cbr0", "/run/newer/cbr0"] {
            let names = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().file_name());
            let addresses: Vec<_> = names.filter(|name| name.to_string_lossy().parse::<IpAddr>().is_ok()).collect();
            assert!(addresses.is_empty(), "{dir}: {addresses:?}");
        }
    }
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
