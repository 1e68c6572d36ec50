//! Addresses: order, exhaustion, many at once.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kernel::Rtnl;
use netstate::{IfName, Link, LinkKind};
use serde_json::json;

use crate::node::{DUAL_ENV, Node, SUBNET_ENV, first_address, flannel, host_link, native, vars, with};
use crate::ports::{elements, mapped};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("a_slash_24_holds_253_pods_and_the_254th_is_refused", exhaustion),
    ("addresses_go_round_before_one_is_reused", round_robin),
    ("fifty_adds_at_once_get_fifty_addresses", fifty_at_once),
    ("two_adds_at_once_for_one_container_leave_one_attachment", same_container_at_once),
    ("empty_reservation_of_a_crash_is_taken_over", empty_reservation),
    ("leftovers_are_reclaimed_when_the_range_is_full_and_living_pods_are_not", leftovers),
    ("reclaimed_address_brings_no_host_port_of_the_pod_that_had_it", reclaimed_without_ports),
    ("leftovers_are_judged_whole_and_by_their_own_network", judged),
    ("address_that_somebody_blocked_by_a_text_stays_blocked_when_the_range_is_full", blocked),
];

fn reservation(host: u32) -> String {
    format!("/var/lib/cni/networks/cbr0/172.7.21.{host}")
}

/// Reservations of 253 Pods that the chain before us attached.
fn fill() {
    fs::create_dir_all("/var/lib/cni/networks/cbr0").unwrap();
    for host in 2..=254 {
        fs::write(reservation(host), format!("other{host}\r\neth0")).unwrap();
    }
}

/// A veth that such a Pod could be behind.
pub(crate) fn living_foreign_pod() -> IfName {
    let name = IfName::new("veth0badcafe").unwrap();
    let veth = Link { kind: LinkKind::Veth, mtu: None, mac: None, up: false, master: None };
    Rtnl::open().unwrap().create_link(&name, &veth).unwrap();
    name
}

fn exhaustion(node: &Node) {
    fill();
    living_foreign_pod();
    fs::remove_file(reservation(99)).unwrap();
    let (pod, address) = node.attached(&native(), "web-1");
    assert_eq!(address.to_string(), "172.7.21.99", "the one free address is found");
    let before = (node.links(), node.files());
    let (code, text) = node.add(&native(), "web-2", &node.pod()).error();
    assert_eq!(code, 11);
    assert!(text.contains("no IP addresses available in range set: 172.7.21.1-172.7.21.254"), "{text}");
    assert_eq!((node.links(), node.files()), before, "a refused ADD leaves nothing");
    node.del(&native(), "web-1", &pod).silent();
    assert_eq!(node.attached(&native(), "web-3").1, address);
}

fn leftovers(node: &Node) {
    // Our own Pod is alive, another one of ours died with its namespace, the rest is the predecessor's.
    let (alive, kept) = node.attached(&native(), "alive");
    let (dead, freed) = node.attached(&native(), "dead");
    Rtnl::open().unwrap().delete_link(&IfName::new(host_link("dead")).unwrap()).unwrap();
    for host in 4..=254 {
        fs::write(reservation(host), format!("other{host}\r\neth0")).unwrap();
    }
    let foreign = living_foreign_pod();
    assert_eq!(node.attached(&native(), "web-1").1, freed, "the dead one's address is the only one to give");
    let (code, _) = node.add(&native(), "web-2", &node.pod()).error();
    assert_eq!(code, 11, "the predecessor's Pods may be alive");
    Rtnl::open().unwrap().delete_link(&foreign).unwrap();
    node.attached(&native(), "web-3");
    assert_eq!(fs::read_to_string(reservation(2)).unwrap(), "alive\r\neth0");
    assert_eq!(
        (kept.to_string().as_str(), node.files().len()),
        ("172.7.21.2", 6),
        "three Pods, each with record and address"
    );
    node.del(&native(), "alive", &alive).silent();
    node.del(&native(), "dead", &dead).silent();
    // After a reboot the records are of another boot: nothing they name can exist.
    for host in 2..=254 {
        if !Path::new(&reservation(host)).exists() {
            fs::write(reservation(host), format!("old{host}\r\neth0")).unwrap();
            fs::write(format!("/var/lib/cni/netd/cbr0/old{host}@eth0"), r#"{"boot":"another","addresses":[]}"#)
                .unwrap();
        }
    }
    living_foreign_pod();
    node.attached(&native(), "web-4");
    assert_eq!(node.files().len(), 6, "{:?}", node.files());
}

fn reclaimed_without_ports(node: &Node) {
    fs::write("/run/flannel/subnet.env", SUBNET_ENV.replace("172.7.21.1/24", "172.7.21.1/29")).unwrap();
    for chained in [false, true] {
        let pod = node.pod();
        let first = if chained { with(&flannel(), "delegate", json!({"bridge": "cbr0"})) } else { native() };
        let previous = node.add(&mapped(&first, "tcp", 8080, 80, ""), "dead", &pod).result();
        if chained {
            let portmap = json!({"cniVersion": "0.3.1", "name": "cbr0", "type": "portmap", "prevResult": previous});
            node.add(&mapped(&portmap, "tcp", 8080, 80, ""), "dead", &pod).result();
        }
        assert!(elements() > 0, "chained {chained}");
        // It dies with its namespace, and nobody says DEL.
        Rtnl::open().unwrap().delete_link(&IfName::new(host_link("dead")).unwrap()).unwrap();
        let living: Vec<_> =
            (0..5).map(|n| (format!("web-{n}"), node.attached(&native(), &format!("web-{n}")))).collect();
        assert!(living.iter().any(|(_, (_, address))| *address == first_address(&previous)), "{living:?}");
        assert_eq!(elements(), 0, "chained {chained}: the port of the dead Pod leads to another one");
        assert!(!node.files().iter().any(|(name, _)| name.contains("dead@")), "{:?}", node.files());
        living.iter().for_each(|(id, (pod, _))| node.del(&native(), id, pod).silent());
        fs::remove_dir_all("/var/lib/cni/flannel").unwrap_or_default();
    }
}

fn round_robin(node: &Node) {
    let conf = native();
    let (pod, first) = node.attached(&conf, "web-0");
    node.del(&conf, "web-0", &pod).silent();
    let (_, second) = node.attached(&conf, "web-1");
    assert_eq!((first.to_string().as_str(), second.to_string().as_str()), ("172.7.21.2", "172.7.21.3"));
    fs::write("/var/lib/cni/networks/cbr0/last_reserved_ip.0", "172.7.21.254").unwrap();
    assert_eq!(node.attached(&conf, "web-2").1.to_string(), "172.7.21.2", "wraps");
    assert_eq!(node.attached(&conf, "web-3").1.to_string(), "172.7.21.4", "passes over what is taken");
    fs::write("/var/lib/cni/networks/cbr0/last_reserved_ip.0", "").unwrap();
    assert_eq!(node.attached(&conf, "web-4").1.to_string(), "172.7.21.5", "an empty memory starts at the beginning");
}

fn fifty_at_once(node: &Node) {
    let conf = native();
    let pods: Vec<_> = (0..50).map(|n| (format!("web-{n}"), node.pod())).collect();
    let start = |verb: &'static str| {
        let conf = conf.to_string();
        let children: Vec<_> = pods
            .iter()
            .map(|(id, pod)| node.start("netd-cni", &vars(verb, id, pod.to_str().unwrap()), &conf))
            .collect();
        children.into_iter().map(|child| child.wait_with_output().unwrap()).collect::<Vec<_>>()
    };
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    for output in start("ADD") {
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        addresses.insert(first_address(&serde_json::from_str(&text).unwrap()));
    }
    assert_eq!(addresses.len(), 50);
    assert_eq!(node.links().iter().filter(|name| name.starts_with("veth")).count(), 50);
    for output in start("DEL") {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!(node.files(), []);
    assert!(!node.links().iter().any(|name| name.starts_with("veth")));
}

fn same_container_at_once(node: &Node) {
    let pod = node.pod();
    let vars = vars("ADD", "web-1", pod.to_str().unwrap());
    let children: Vec<_> = (0..6).map(|_| node.start("netd-cni", &vars, &native().to_string())).collect();
    let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    assert_eq!(outputs.iter().filter(|output| output.status.success()).count(), 1);
    for output in outputs.iter().filter(|output| !output.status.success()) {
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("\"code\": 101"), "{text}");
    }
    assert!(node.links().contains(&host_link("web-1")));
    assert!(Path::new(&reservation(2)).exists() && !Path::new(&reservation(3)).exists());
}

fn empty_reservation(node: &Node) {
    fs::create_dir_all("/var/lib/cni/networks/cbr0").unwrap();
    fs::write(reservation(2), "").unwrap();
    assert_eq!(node.attached(&native(), "web-1").1.to_string(), "172.7.21.2");
    // A directory that somebody made under an address's name is no reservation of ours to take.
    fs::create_dir(reservation(3)).unwrap();
    let conf = with(&native(), "args", json!({}));
    assert_eq!(node.attached(&conf, "web-2").1.to_string(), "172.7.21.4");
    assert_eq!(fs::read_to_string(reservation(2)).unwrap(), "web-1\r\neth0");
}

fn blocked(node: &Node) {
    let conf = with(&native(), "cniVersion", json!("1.1.0"));
    fs::create_dir_all("/var/lib/cni/networks/cbr0").unwrap();
    for host in 2..=254 {
        fs::write(reservation(host), "keep off, printer").unwrap();
    }
    let given = Path::new("/var/lib/cni/networks/cbr0/last_reserved_ip.0");
    fs::File::create(given).unwrap().set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    let status = || node.exec("netd-cni", &[("CNI_COMMAND", "STATUS")], &conf.to_string());
    assert_eq!(status().error().0, 50);
    assert_eq!(node.add(&conf, "web-1", &node.pod()).error().0, 11);
    assert_eq!(fs::read_to_string(reservation(2)).unwrap(), "keep off, printer");
    // What a power cut left says nothing.
    fs::write(reservation(9), "\0\0\0").unwrap();
    fs::File::options()
        .write(true)
        .open(given)
        .unwrap()
        .set_modified(SystemTime::now() - Duration::from_secs(60))
        .unwrap();
    status().silent();
    assert_eq!(node.attached(&conf, "web-1").1.to_string(), "172.7.21.9");
}

fn judged(node: &Node) {
    let fill = |network: &str, text: fn(u32) -> String| {
        fs::create_dir_all(format!("/var/lib/cni/networks/{network}")).unwrap();
        for path in (2..=254).map(reservation).filter(|path| !Path::new(path).exists()) {
            let number = path.rsplit('.').next().unwrap().parse().unwrap();
            fs::write(path.replace("/cbr0/", &format!("/{network}/")), text(number)).unwrap();
        }
    };
    // A Pod with both families that died with its namespace, among living ones of the chain before us: both its addresses go.
    fs::write("/run/flannel/subnet.env", DUAL_ENV).unwrap();
    node.attached(&native(), "dead");
    Rtnl::open().unwrap().delete_link(&IfName::new(host_link("dead")).unwrap()).unwrap();
    fill("cbr0", |host| format!("{host:064x}"));
    let foreign = living_foreign_pod();
    let (pod, address) = node.attached(&native(), "web-1");
    assert_eq!(address.to_string(), "172.7.21.2");
    assert!(node.files().iter().all(|(name, text)| !name.contains("dead") && !text.contains("dead")));
    // Reservations that name the container alone are of Pods that may live, as long as any of that chain can.
    assert_eq!(node.add(&native(), "web-2", &node.pod()).error().0, 11);
    Rtnl::open().unwrap().delete_link(&foreign).unwrap();
    let (second, _) = node.attached(&native(), "web-2");
    assert!(!node.files().iter().any(|(_, text)| text.len() == 64), "{:?}", node.files());
    node.del(&native(), "web-1", &pod).silent();
    node.del(&native(), "web-2", &second).silent();
    // Those of another network of the lease are not this one's to judge.
    fill("red", |host| if host % 2 == 0 { format!("{host:064x}") } else { format!("other{host}\r\neth0") });
    let before = node.files();
    assert_eq!(node.add(&native(), "web-3", &node.pod()).error().0, 11);
    assert_eq!(node.files(), before);
}
